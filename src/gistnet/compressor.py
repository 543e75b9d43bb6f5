"""A compressor in five lines: a trained GistNet with the language model that reads its gists.

    import gistnet

    model = gistnet.load("smollm2-135m-gist32")
    document = model.compress(open("book.txt").read())
    print(model.generate(document, "Who is the captain?", budget=512).text)

The parts are `Teacher`, `GistNet`, `GistEncoder`, `compress` and `generate`, for programs that need one of them alone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gistnet.context.generate import Generation, generate, prompt_context, streamed
from gistnet.data.sources import read_text
from gistnet.errors import ConfigError, DataError
from gistnet.model.fingerprint import Precision
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.paths import is_file_name
from gistnet.release_folder import find_folder
from gistnet.session import open_gistnet
from gistnet.tree.document import CompressedDocument, InMemoryDocument, compress
from gistnet.tree.encoder import require_tokens
from gistnet.tree.gist_encoder import GistEncoder

if TYPE_CHECKING:  # a tree needs packages that gists in memory do not
    from gistnet.context.memory import Memory
    from gistnet.tree.storage.snapshot import TreeDocument


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
        encoder: of both, what `GistTree` and `gistnet.compress` take.
    """

    def __init__(self, teacher: Teacher, gistnet: GistNet) -> None:
        self.teacher, self.gistnet = teacher, gistnet
        self.encoder = GistEncoder(teacher, gistnet)

    @overload
    def encode(self, text: list[str] | tuple[str, ...]) -> list[Encoded]: ...
    @overload
    def encode(self, text: str | Sequence[int] | NDArray[np.integer]) -> Encoded: ...
    def encode(
        self, text: list[str] | tuple[str, ...] | str | Sequence[int] | NDArray[np.integer]
    ) -> Encoded | list[Encoded]:
        """Gists of level 0 of a text, of each of a list of texts, or of token ids.

        The spans of all texts share batches of one size, so that vectors are those of each text alone (no bit differed
        on the CPUs where it was tried; a device whose products depend on the row may differ in the last). With a
        GistNet that reads spans where they stand, each text is read by itself.

        Raises:
            DataError: there is no text, or something that is no token id.
        """
        several = isinstance(text, list | tuple) and all(isinstance(each, str) for each in text)
        texts = [self._tokens(each) for each in (text if several else [text])]  # type: ignore[arg-type]
        groups = [[tokens] for tokens in texts] if self.gistnet.config.reads == "context" else [texts]
        encoded = [each for group in groups if group for each in self._encode_together(group)]
        return encoded if several else encoded[0]

    def _encode_together(self, texts: Sequence[NDArray[np.int64]]) -> list[Encoded]:
        """Gists of texts whose spans share batches."""
        size = self.encoder.info.branchings[0]
        counts = [len(tokens) // size for tokens in texts]
        whole = np.concatenate([tokens[: count * size] for tokens, count in zip(texts, counts, strict=True)])
        vectors = np.split(self.encoder.encode(0, whole.reshape(-1, size), 0), np.cumsum(counts)[:-1])
        return [Encoded(of_text, tokens[len(of_text) * size :]) for of_text, tokens in zip(vectors, texts, strict=True)]

    @overload
    def compress(self, text: str | Path | Sequence[int] | NDArray[np.integer]) -> InMemoryDocument: ...
    @overload
    def compress(
        self, text: str | Path | Sequence[int] | NDArray[np.integer], *, tree: str | Path, name: str | None = None
    ) -> "TreeDocument": ...
    def compress(
        self,
        text: str | Path | Sequence[int] | NDArray[np.integer],
        *,
        tree: str | Path | None = None,
        name: str | None = None,
    ) -> CompressedDocument:
        """A document: tokens, and gists of all levels, in memory or in a tree on disk.

        A tree keeps what it acknowledged: where it holds the beginning of the text under that name already, from a call
        that was interrupted, the rest is appended; where it holds all of it, nothing is.

        Args:
            text: a text, its token ids, or the `pathlib.Path` of a text file in UTF-8.
            tree: where a `GistTree` is, or is to be made: a folder, or a URI such as s3://bucket/tree.
            name: of the document in the tree; by default that of the file, or `main`.

        Raises:
            DataError: there is no text, the name of a file in its stead, or something that is no token id; or the tree
                holds another text of that name.
            CheckpointError, TeacherError: the tree has gists of another GistNet.
            StorageError: the tree cannot be written, or another process writes it.
            ConfigError: a name without a tree.
        """
        if tree is None:
            if name is not None:
                raise ConfigError(f"Got the name '{name}' of a document without a tree, expected a tree with it.")
            return compress(self._tokens(text), self.encoder)
        from gistnet.tree.compress import compress_tokens
        from gistnet.tree.tree import MAIN, GistTree

        tokens = self._tokens(text)
        name = name or (text.name if isinstance(text, Path) else MAIN)
        with GistTree.open_or_create(tree, self.encoder) as opened:
            compress_tokens(tokens, opened, name)
            return opened.document(name)

    def _tokens(self, text: str | Path | Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """Token ids of a text, at least one."""
        if isinstance(text, Path):
            text = "".join(read_text(text))
        elif isinstance(text, str) and is_file_name(text):
            raise DataError(f"Got {text!r}, the name of a file, expected a text; Path({text!r}) is read as a file.")
        elif text is None or isinstance(text, bytes):
            raise DataError(f"Got a text of type {type(text).__name__}, expected a text or its token ids.")
        tokens = (
            self.encoder.tokenize(text)
            if isinstance(text, str)
            else require_tokens(text, self.encoder.info.vocabulary_size)
        )
        if not len(tokens):
            raise DataError("Got an empty text to compress, expected one of at least one token.")
        return tokens

    def generate(self, document: CompressedDocument, prompt: str, *, budget: int = 1024, **options: Any) -> Generation:
        """The answer to a prompt about a document, within a budget of vectors; options, errors: `gistnet.generate`."""
        return generate(document, prompt, teacher=self.teacher, budget=budget, **options)

    def stream(self, document: CompressedDocument, prompt: str, *, budget: int = 1024, **options: Any) -> Iterator[str]:
        """Pieces of the answer that `generate` gives, as they are written; closing the iterator stops the writing."""
        return streamed(
            self.teacher, lambda streamer: self.generate(document, prompt, budget=budget, streamer=streamer, **options)
        )

    def memory(self, uri: str | Path) -> "Memory":
        """A conversation that is kept on disk, the one that is there or a new one; see `gistnet.context.memory`."""
        from gistnet.context.memory import Memory

        return Memory(self.teacher, self.encoder, uri)

    def context(self, document: CompressedDocument, prompt: str, *, budget: int = 1024) -> dict[str, Tensor]:
        """Arguments with which `model.generate(**arguments)` of transformers reads what `generate` would.

        Returns:
            `inputs_embeds` `[1, n, dim]`, `position_ids` and `attention_mask` `[1, n]`. Given embeddings, transformers
            returns the new tokens alone.

        Raises:
            ConfigError: the budget has no room for the document.
        """
        context, _ = prompt_context(document, prompt, teacher=self.teacher, budget=budget)
        return context.model_inputs

    def info(self) -> dict[str, Any]:
        """Names and sizes: teacher, branchings, dimensions, trained parameters, position policy, longest row of gists
        in training, fingerprint.
        """
        info = self.encoder.info
        return {
            "teacher": info.teacher.describe(),
            "branchings": list(info.branchings),
            "dim": info.dim,
            "trained_parameters": sum(p.numel() for p in self.gistnet.parameters() if p.requires_grad),
            "reads": self.gistnet.config.reads,
            "positions": info.positions,
            "longest_row": info.longest_row,
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
        ConfigError: there is no such device, or it does not compute in that precision; or either is given with a model;
            or a model that is not loaded, or a tokenizer without one.
    """
    if not isinstance(name, str | Path):
        raise ConfigError(f"Got the name {name!r}, expected a text or a path.")
    if model is None and tokenizer is not None:
        raise ConfigError("Got a tokenizer without a model, expected both, or neither.")
    if model is None:
        return Compressor(*open_gistnet(name, device=device, precision=precision, revision=revision))
    if device != "auto" or precision is not None:
        raise ConfigError("Got a model, and a device or precision to load it in; expected either.")
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(f"Got a model of type {type(model).__name__}, expected one of transformers that is loaded.")
    wrapped = None if tokenizer is None else TeacherTokenizer(tokenizer)
    teacher = Teacher(model, wrapped, name=model.config.name_or_path or type(model).__name__)
    return Compressor(teacher, GistNet.from_pretrained(find_folder(name, revision=revision), teacher))
