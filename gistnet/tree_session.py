"""From a checkpoint to what is done with a tree: compress files into it, measure, search, and answer from it."""

from dataclasses import dataclass
from pathlib import Path

from gistnet.context.generate import Generation, generate
from gistnet.errors import TeacherError
from gistnet.positions import Positions, policy_of
from gistnet.release_folder import find_folder
from gistnet.session import open_gistnet, open_teacher
from gistnet.tree.compress import CompressTotals, TextFiles, compress_files
from gistnet.tree.gist_encoder import GistEncoder
from gistnet.tree.quality import QualityOptions, add_quality
from gistnet.tree.ray_compress import ReadyGists, compress_files_with_ray
from gistnet.tree.storage.snapshot import Hit
from gistnet.tree.tree import GistTree


@dataclass(frozen=True)
class LoadEncoder:
    """Loads the encoder of a checkpoint when called; can be sent to another process, unlike the encoder."""

    checkpoint: Path

    def __call__(self) -> GistEncoder:
        """The encoder.

        Raises:
            CheckpointError: there is no usable checkpoint, or it belongs to another teacher.
        """
        return GistEncoder(*open_gistnet(self.checkpoint))


def open_or_create(uri: str, encoder: GistEncoder | ReadyGists) -> GistTree:
    """The tree, open for writing with its encoder, made where there is none.

    Raises:
        GistNetError: as `GistTree.open` and `GistTree.create`.
    """
    if GistTree.exists(uri):
        return GistTree.open(uri, encoder, writable=True)
    return GistTree.create(uri, encoder)


def compress_into(
    uri: str,
    checkpoint: Path,
    files: TextFiles,
    *,
    workers: int = 0,
    gpus_per_worker: float = 0,
) -> CompressTotals:
    """Compress files into a tree, in this process or, where `workers` are asked for, in theirs under Ray.

    Raises:
        GistNetError: as `compress_files`, `compress_files_with_ray` and `open_or_create`.
    """
    load = LoadEncoder(find_folder(checkpoint).resolve())
    ready = ReadyGists(load())
    with open_or_create(uri, ready) as tree:
        if not workers:
            return compress_files(files, tree, ready)
        return compress_files_with_ray(files, tree, ready, load, workers=workers, gpus_per_worker=gpus_per_worker)


def measure_tree(uri: str, checkpoint: Path) -> int:
    """Measure those gists of a tree that have not been, with the positions that the checkpoint was trained with.

    Returns:
        How many were measured.

    Raises:
        GistNetError: as `add_quality` and `GistTree.open`.
    """
    teacher, gistnet = open_gistnet(checkpoint)
    options = QualityOptions(positions=policy_of(gistnet.positions))
    with GistTree.open(uri, GistEncoder(teacher, gistnet), writable=True) as tree:
        return add_quality(tree, teacher, options)


def search_text(
    uri: str, checkpoint: Path, query: str, *, level: int = 0, k: int = 10, document: str | None = None
) -> list[tuple[Hit, str]]:
    """The gists of a tree that are nearest to a text, best first, each with the text that it stands for.

    Raises:
        GistNetError: as `GistTree.search` and `GistTree.open`.
    """
    teacher, gistnet = open_gistnet(checkpoint)
    with GistTree.open(uri, GistEncoder(teacher, gistnet)) as tree:
        hits = tree.search(query, level, k, document)
        if teacher.tokenizer is None:
            raise TeacherError(f"{teacher.name} has no tokenizer, expected one to show text.")
        decode = teacher.tokenizer.decode
        return [(hit, decode(tree.document(hit.document).tokens(hit.start, hit.stop).tolist())) for hit in hits]


def answer(
    uri: str,
    prompt: str,
    *,
    document: str | None = None,
    budget: int = 1024,
    positions: Positions | None = None,
    chat: bool | None = None,
    max_new_tokens: int = 256,
) -> Generation:
    """What the teacher of a tree says about one of its documents.

    Args:
        document: its name; None where the tree has only one.
        budget, positions, chat, max_new_tokens: see `generate`.

    Raises:
        GistNetError: as `GistTree.open`, `open_teacher` and `generate`; or it is not clear which document.
    """
    with GistTree.open(uri) as tree:
        compressed = tree.only_document(document)
        teacher = open_teacher(compressed.teacher)
        return generate(
            compressed,
            prompt,
            teacher=teacher,
            budget=budget,
            positions=positions,
            chat=chat,
            max_new_tokens=max_new_tokens,
        )
