"""What tells one language model from another; without torch, for whoever only compares."""

from gistnet.settings import Section


class TeacherFingerprint(Section):
    """What a checkpoint or a tree records of its teacher, to refuse another one."""

    name: str
    revision: str | None
    config_hash: str
    embedding_hash: str

    def same_model(self, other: "TeacherFingerprint") -> bool:
        """Whether both have the same configuration and embeddings, whatever the names they were loaded by.

        The other weights are not looked at: a fine-tune that leaves the embeddings alone counts as the same.
        """
        return (self.config_hash, self.embedding_hash) == (other.config_hash, other.embedding_hash)

    def describe(self) -> str:
        """One short phrase for error messages."""
        return f"{self.name} (config {self.config_hash[:8]}, embeddings {self.embedding_hash[:8]})"
