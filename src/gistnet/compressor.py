"""A compressor in five lines: a trained GistNet with the language model that reads its gists.

    import gistnet

    model = gistnet.load("smollm2-135m-gist32")
    document = model.compress(open("book.txt").read())
    print(model.generate(document, "Who is the captain?", budget=512).text)

The parts are `Teacher`, `GistNet`, `GistEncoder`, `compress` and `generate`, for programs that need one of them alone.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

from gistnet.context.generate import Generation, generate, prompt_context
from gistnet.errors import ConfigError, TeacherError
from gistnet.model.fingerprint import Precision
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.release_folder import find_folder
from gistnet.session import open_gistnet
from gistnet.tree.document import CompressedDocument, InMemoryDocument, compress
from gistnet.tree.gist_encoder import GistEncoder


class Encoded(NamedTuple):
    """Gists of a text, and what fills no span."""

    vectors: NDArray[np.float16]
    """`[spans, dim]`, in the space of the model's input embeddings."""
    tail: NDArray[np.int64]
    """Token ids `[tokens]` behind the last whole span, which no gist stands for."""


class Compressor:
    """A GistNet and its teacher; made by `load`.

    Attributes:
        teacher: the frozen language model.
        gistnet: of the highest level.
    """

    def __init__(self, teacher: Teacher, gistnet: GistNet) -> None:
        self.teacher, self.gistnet = teacher, gistnet
        self.encoder = GistEncoder(teacher, gistnet)

    def encode(self, text: str | Sequence[int] | NDArray[np.integer]) -> Encoded:
        """Gists of level 0 of a text or of token ids.

        Raises:
            DataError: there is no text, or something that is no token id.
        """
        document = compress(text, self.encoder, levels=1)
        (vectors,) = document.level_gists
        return Encoded(vectors, document.token_ids[len(vectors) * document.branchings[0] :])

    def compress(self, text: str | Sequence[int] | NDArray[np.integer]) -> InMemoryDocument:
        """A document in memory: tokens, and gists of all levels. A `GistTree` keeps documents on disk.

        Raises:
            DataError: there is no text, or something that is no token id.
        """
        return compress(text, self.encoder)

    def generate(self, document: CompressedDocument, prompt: str, *, budget: int = 1024, **options: Any) -> Generation:
        """The answer to a prompt about a document, read within a budget of vectors; see `gistnet.generate`."""
        return generate(document, prompt, teacher=self.teacher, budget=budget, **options)

    def stream(self, document: CompressedDocument, prompt: str, *, budget: int = 1024, **options: Any) -> Iterator[str]:
        """Pieces of the answer that `generate` gives, as they are written; it is written to its end in any case."""
        if self.teacher.tokenizer is None:
            raise TeacherError(f"{self.teacher.name} has no tokenizer, expected one to read the prompt.")
        streamer = TextIteratorStreamer(self.teacher.tokenizer.inner, skip_special_tokens=True)

        def write() -> None:
            try:
                self.generate(document, prompt, budget=budget, streamer=streamer, **options)
            finally:
                streamer.on_finalized_text("", stream_end=True)  # or who reads would wait for ever after an error

        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(write)
            yield from streamer
            written.result()

    def context(self, document: CompressedDocument, prompt: str, *, budget: int = 1024) -> dict[str, Tensor]:
        """Arguments with which `model.generate(**arguments)` of transformers reads what `generate` would.

        Raises:
            ConfigError: the budget has no room for the document.
        """
        context, _ = prompt_context(document, prompt, teacher=self.teacher, budget=budget)
        return context.model_inputs

    def info(self) -> dict[str, Any]:
        """Names and sizes: teacher, branchings, dimensions, trained parameters, position policy, fingerprint."""
        info = self.encoder.info
        return {
            "teacher": info.teacher.describe(),
            "branchings": list(info.branchings),
            "dim": info.dim,
            "trained_parameters": sum(p.numel() for p in self.gistnet.parameters() if p.requires_grad),
            "reads": self.gistnet.config.reads,
            "positions": info.positions,
            "fingerprint": info.fingerprint,
        }


def load(
    name: str | Path,
    *,
    device: str = "auto",
    precision: Precision | None = None,
    revision: str | None = None,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Compressor:
    """A trained GistNet with its language model.

    Args:
        name: of a run folder, one of its checkpoints, or a saved GistNet; of a release that comes with the package; or
            USER/NAME on the Hugging Face Hub, which is downloaded once.
        device: of the language model: auto (the GPU where there is one), cpu, cuda.
        precision: its number format, bfloat16, float32 or float64; by default the one that the GistNet was trained
            with. Gists made in another one are of another version: a tree takes those of one only.
        revision: branch, tag or commit of the repository on the Hub.
        model: the language model, where it is loaded already; by default the one that the GistNet was trained with is
            loaded, on the GPU where there is one. Its attention becomes this package's, and its weights are frozen.
        tokenizer: of the model given.

    Raises:
        CheckpointError: there is none of that name, it is damaged, or it belongs to another language model; or the Hub
            cannot be reached.
        TeacherError: the language model cannot be loaded, or cannot be a teacher.
        ConfigError: there is no such device, or it does not compute in that precision; or both are given with a model.
    """
    if model is None:
        return Compressor(*open_gistnet(name, device=device, precision=precision, revision=revision))
    if device != "auto" or precision is not None:
        raise ConfigError("Got a model, and a device or precision to load it in; expected either.")
    wrapped = None if tokenizer is None else TeacherTokenizer(tokenizer)
    teacher = Teacher(model, wrapped, name=model.config.name_or_path or type(model).__name__)
    return Compressor(teacher, GistNet.from_pretrained(find_folder(name, revision=revision), teacher))
