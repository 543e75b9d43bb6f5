"""Identity of a language model: what tells one from another. Without torch, so that comparing loads no model code."""

from typing import Literal

from gistnet.settings import Section

Precision = Literal["bfloat16", "float32", "float64"]


class TeacherFingerprint(Section):
    """Identity of a teacher, which a checkpoint or a tree records to refuse another one."""

    name: str
    revision: str | None
    precision: Precision
    """Number format that the weights were held in; not part of `same_model`."""
    config_hash: str
    weights_hash: str
    """Digest of values from every row and column of every tensor, rounded to bfloat16."""

    def same_model(self, other: "TeacherFingerprint") -> bool:
        """True if configuration and weights are equal, under any name and in any precision."""
        return (self.config_hash, self.weights_hash) == (other.config_hash, other.weights_hash)

    def describe(self) -> str:
        """One short phrase for error messages."""
        return f"{self.name} (config {self.config_hash[:8]}, weights {self.weights_hash[:8]})"
