"""What is appended comes back, as tokens and as gists of every level, in any portions; and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from gistnet.errors import CheckpointError, ConfigError, DataError, StorageError, TeacherError
from gistnet.tree.document import compress
from gistnet.tree.encoder import Encoder, EncoderInfo
from gistnet.tree.gist_encoder import GistEncoder
from gistnet.tree.tree import GistTree
from tests.gistnets import context_gistnet, woken_gistnet
from tests.stub_encoder import FailingEncoder, StubEncoder
from tests.teachers import tiny_teacher
from tests.tokenizers import FAST


def draw(n: int, seed: int = 0, below: int = 1000) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, below, n)


def real_encoder(seed: int = 0, branchings: tuple[int, ...] = (8, 8)) -> GistEncoder:
    """GistNets with random weights over a tiny Llama of 97 tokens."""
    teacher = tiny_teacher("llama", torch.float32)
    return GistEncoder(teacher, woken_gistnet(teacher, branchings=branchings, seed=seed), batch_spans=8)


@pytest.mark.parametrize("make", FAST)
def test_a_text_in_pieces_has_the_tokens_of_the_text_where_cuts_are_between_them(tmp_path: Path, make: Any) -> None:
    """Nothing is put before a piece, and pieces within a batch continue each other as well."""
    tokenizer = make()
    stub = StubEncoder(1)
    stub.tokenize = tokenizer.encode  # type: ignore[method-assign]
    pieces = ["the bee ate.", "\n\nan apple", ":\n\n", "a bee."]
    (whole,) = tokenizer.encode_batch(["".join(pieces)])
    (two,) = tokenizer.encode_batch(["".join(pieces[:2])])
    assert whole[: len(two)] == two
    with GistTree.create(tmp_path / "tree", stub) as tree:
        tree.append(pieces[0])
        tree.append("".join(pieces[1:]))
        with tree.batch():
            tree.append("", "other")
            tree.append("".join(pieces[:2]), "other")
            tree.append("".join(pieces[2:]), "other")
        for document in ("main", "other"):
            assert tree.document(document).tokens(0, len(whole)).tolist() == whole
            assert tree.document(document).n_tokens == len(whole)


def test_gists_are_those_of_the_blocks_and_the_tail_stays_tokens(tree: GistTree, stub: StubEncoder) -> None:
    """K = 4: of 75 tokens, 18 gists of level 0 (3 tokens over) and 4 of level 1 (2 gists over)."""
    tokens = draw(75)
    assert tree.append(tokens[:50]) == 50
    assert tree.append(tokens[50:]) == 75
    history = tree.document()
    assert (history.n_tokens, history.branchings, history.levels) == (75, (4, 4), 2)
    assert np.array_equal(history.tokens(0, 75), tokens)
    assert np.array_equal(history.tokens(48, 53), tokens[48:53])
    level_0 = stub.encode(0, tokens[:72].reshape(18, 4), 0)
    level_1 = stub.encode(1, level_0[:16].reshape(4, 4, 8), 0)
    assert np.array_equal(history.gists(0, 0, 18), level_0)
    assert np.array_equal(history.gists(0, 11, 14), level_0[11:14])
    assert np.array_equal(history.gists(1, 0, 4), level_1)


def encoder_in_context() -> GistEncoder:
    """As `real_encoder`, of GistNets that read spans where they stand: eight at once, after five others."""
    teacher = tiny_teacher("llama", torch.float32)
    return GistEncoder(teacher, context_gistnet(teacher, levels=2), batch_spans=8, context_spans=5)


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (lambda: StubEncoder(branchings=(4, 4, 4)), (249, 62, 15)),
        (lambda: StubEncoder(branchings=(4, 2, 8)), (249, 124, 15)),
        (lambda: StubEncoder(branchings=(4, 4, 4), read_together=6, read_before=5), (249, 62, 15)),
        (real_encoder, (124, 15)),
        (lambda: real_encoder(branchings=(4, 2, 8)), (249, 124, 15)),
        (encoder_in_context, (124, 15)),
    ],
)
def test_a_hundred_pieces_give_the_bits_of_one(
    tmp_path: Path, make: Callable[[], Encoder], counts: tuple[int, ...]
) -> None:
    encoder = make()
    tokens = draw(997, below=97)
    cuts = np.unique([0, 997, *np.random.default_rng(1).integers(0, 997, 99)])
    with GistTree.create(tmp_path / "one", encoder) as one, GistTree.create(tmp_path / "many", encoder) as many:
        one.append(tokens)
        for start, stop in pairwise(cuts):
            many.append(tokens[start:stop])
        assert np.array_equal(many.document().tokens(0, 997), tokens)
        for level, count in enumerate(counts):
            ours, theirs = (each.document().gists(level, 0, count).view(np.uint16) for each in (one, many))
            assert np.array_equal(ours, theirs)
            assert len(np.unique(ours, axis=0)) == count
        report = many.verify()
        assert (report.ok, report.recomputed) == (True, sum(counts))
        in_memory = compress(tokens, encoder)
        assert np.array_equal(in_memory.gists(0, 0, counts[0]), many.document().gists(0, 0, counts[0]))


def test_documents_are_apart_in_whatever_order_they_grow(tree: GistTree, stub: StubEncoder) -> None:
    wanted: dict[str, list[int]] = {}
    random = np.random.default_rng(3)
    for n in range(90):  # more than it takes for the first compaction
        name = ("b", "a", 'it\'s "α"')[n % 3]
        piece = draw(int(random.integers(1, 9)), seed=n)
        wanted.setdefault(name, []).extend(piece.tolist())
        assert tree.append(piece, name) == len(wanted[name])
    assert tree.documents() == ["b", "a", 'it\'s "α"']
    for name, tokens in wanted.items():
        spans = np.array(tokens[: len(tokens) // 4 * 4]).reshape(-1, 4)
        assert tree.document(name).tokens(0, len(tokens)).tolist() == tokens
        assert np.array_equal(tree.document(name).gists(0, 0, len(spans)), stub.encode(0, spans, 0))
    report = tree.verify()
    assert report.ok and report.tokens == sum(map(len, wanted.values()))


def test_a_long_append_is_read_in_part(tree: GistTree) -> None:
    """It is stored in several rows, of which only those that are asked for are read."""
    tokens = draw(20_001)
    tree.append(tokens[:3])
    tree.append(tokens[3:])
    for start, stop in ((0, 20_001), (8190, 8200), (16_386, 16_388), (20_000, 20_001), (5, 5)):
        assert np.array_equal(tree.document().tokens(start, stop), tokens[start:stop])


def test_text_is_tokenised(tree: GistTree) -> None:
    assert tree.append("ab") == 2
    assert tree.append("Δ") == 4
    assert tree.document().tokens(0, 4).tolist() == [97, 98, 0xCE, 0x94]
    assert tree.append("") == 4


def test_integers_of_any_kind_are_tokens(tree: GistTree) -> None:
    for n, tokens in enumerate(([1, 2], np.array([3, 4], np.uint16), torch.tensor([5, 6]), range(7, 9)), start=1):
        assert tree.append(tokens) == 2 * n
    assert tree.append([]) == 8
    assert tree.document().tokens(0, 8).tolist() == list(range(1, 9))
    assert tree.append([], "nothing") == 0
    assert tree.documents() == ["main"]


BAD_TOKENS = [
    ([5, 1000], "1000 at 1"),
    ([-1], "-1 at 0"),
    (np.array([2**64 - 1], np.uint64), "18446744073709551615"),
    ([1.5], "float64"),
    ([[1, 2]], "shape"),
    ([True], "bool"),
    ("a\ud800b", "Unicode"),
]


@pytest.mark.parametrize(("tokens", "message"), BAD_TOKENS)
def test_what_is_no_token_is_refused_and_nothing_of_it_kept(tree: GistTree, tokens: object, message: str) -> None:
    tree.append([1, 2, 3])
    version = tree.info().version
    with pytest.raises(DataError, match=message):
        tree.append(tokens)  # type: ignore[arg-type]
    assert tree.info().version == version
    assert tree.append([4]) == 4


@pytest.mark.parametrize("name", ["", "a\ud800", "a\0b", 3])
def test_what_cannot_name_a_document_is_refused(tree: GistTree, name: object) -> None:
    with pytest.raises(DataError, match="document"):
        tree.append([1], name)  # type: ignore[arg-type]


def test_all_documents_are_one_in_the_order_of_their_names(tree: GistTree) -> None:
    texts = {"b": "Two hares ran. ", "a": "A bee sat on the pear tree. ", "c": "The pear was ripe. "}
    for name, text in texts.items():
        tree.append(text, name)
    whole = tree.all_documents()
    together = "".join(texts[name] for name in "abc")
    assert whole.n_tokens == len(together)
    assert bytes(whole.tokens(5, 60).astype(np.uint8)).decode() == together[5:60]
    (first, _), (second, _) = whole.find("pear", 9) or []
    assert {together[of.start : of.stop].strip() for of in (first, second)} == {texts["a"].strip(), texts["c"].strip()}
    assert whole.label(len(texts["a"]) - 3, len(texts["a"]) + 4) == "a 25–28, b 0–4"
    assert not whole.goes_on
    with pytest.raises(DataError, match="no gists"):
        whole.gists(0, 0, 1)


def test_the_only_document_needs_no_name_and_an_empty_one_is_none(tree: GistTree) -> None:
    for names in ([], ["a"], ["a", "b"]):
        for name in names:
            tree.append([1], name)
        for unknown in ("", "c"):
            with pytest.raises(DataError, match=repr(unknown)):
                tree.only_document(unknown)
        if len(names) == 1:
            assert tree.only_document(None).name == "a"
        else:
            with pytest.raises(ConfigError, match=f"{len(names)} documents" if names else "is empty"):
                tree.only_document(None)
    assert tree.only_document("b").name == "b"


def test_what_is_not_there_is_refused(tree: GistTree) -> None:
    tree.append(draw(40))
    document = tree.document()
    for ask in (
        lambda: document.gists(2, 0, 1),
        lambda: document.gists(0, 0, 11),
        lambda: document.tokens(30, 41),
        lambda: document.nodes(-1, [0]),
        lambda: document.nodes(0, [3, 10]),
        lambda: tree.document("other"),
        lambda: tree.add_gists(np.zeros((1, 8)), 5),
    ):
        with pytest.raises(DataError, match="expected one"):
            ask()


def test_a_node_knows_its_place(tree: GistTree, stub: StubEncoder) -> None:
    """Of 40 tokens, 10 gists of level 0 and 2 of level 1: gists 8 and 9 have no parent yet."""
    before = datetime.now(UTC)
    tree.append(draw(40))
    node = tree.document().nodes(1, [1])[0]
    assert (node.start, node.stop, node.parent, node.children) == (16, 32, None, range(4, 8))
    assert (node.document, node.level, node.index, node.gist_version) == ("main", 1, 1, "stub0001")
    assert before - timedelta(seconds=1) <= node.made <= datetime.now(UTC)
    assert np.array_equal(node.vector, tree.document().gists(1, 1, 2)[0])
    below = tree.document().nodes(0, [7, 9, 7, 0])
    assert [(each.index, each.start, each.stop, each.parent) for each in below] == [
        (7, 28, 32, 1),
        (9, 36, 40, None),
        (7, 28, 32, 1),
        (0, 0, 4, 0),
    ]
    assert all(np.array_equal(each.vector, tree.document().gists(0, each.index, each.index + 1)[0]) for each in below)
    assert below[0].children == range(0)


def test_gists_made_elsewhere(tmp_path: Path, stub: StubEncoder) -> None:
    tokens = draw(40)
    level_0 = stub.encode(0, tokens.reshape(10, 4), 0)
    level_1 = stub.encode(1, level_0[:8].reshape(2, 4, 8), 0)
    GistTree.create(tmp_path / "tree", stub).close()
    with GistTree.open(tmp_path / "tree", writable=True) as tree:
        with pytest.raises(ConfigError, match="opened without an encoder"):
            tree.append(tokens)
        with pytest.raises(ConfigError, match="to tokenise a text"):
            tree.append("text", gists=False)
        assert tree.append(tokens[:3]) == 3  # completes nothing
        assert tree.append(tokens[3:], gists=False) == 40
        assert tree.document().levels == 0  # none is complete
        for gists, level, word in (
            (level_0, 1, "0 at most"),
            (stub.encode(0, draw(44).reshape(11, 4), 0), 0, "10 at most"),
            (level_0[:, :7], 0, "shape"),
            (level_0.astype(np.int64), 0, "int64"),
            (np.full((1, 8), 1e6), 0, "finite"),
        ):
            with pytest.raises(DataError, match=word):
                tree.add_gists(gists, level)
        assert tree.add_gists(level_0[:6], 0) == 6
        assert tree.add_gists(level_0[6:], 0) == 10
        assert tree.document().levels == 1
        assert tree.add_gists(level_1, 1) == 2
        assert tree.document().levels == 2
    with GistTree.open(tmp_path / "tree", stub) as reader:
        report = reader.verify()
        assert (report.ok, report.recomputed, report.missing) == (True, 12, 0)


def test_gists_that_are_missing_are_made_at_the_next_opening(tmp_path: Path, stub: StubEncoder) -> None:
    tokens = draw(103)
    with GistTree.create(tmp_path / "tree", stub) as tree:
        tree.append(tokens[:21])
        tree.append(tokens[21:], gists=False)
        tree.append(tokens, "other", gists=False)
        report = tree.verify()
        assert (report.ok, report.missing) == (True, 20 + 5 + 25 + 6)
    with GistTree.open(tmp_path / "tree", stub) as reader:
        assert reader.document("other").levels == 0  # a reader makes nothing
    with GistTree.open(tmp_path / "tree", stub, writable=True) as tree:
        assert tree.document("other").levels == 2
        assert np.array_equal(tree.document().gists(0, 0, 25), stub.encode(0, tokens[:100].reshape(25, 4), 0))
        assert tree.verify().missing == 0


def test_a_batch_is_acknowledged_as_a_whole(tree: GistTree, stub: StubEncoder) -> None:
    tree.append(draw(5))
    version = tree.info().version
    with tree.batch():
        for n in range(20):
            assert tree.append(draw(3, seed=n), f"document {n % 5}") == 3 * (n // 5 + 1)
        tree.append(draw(20), "elsewhere", gists=False)
        tree.add_gists(stub.encode(0, draw(20).reshape(5, 4), 0), 0, "elsewhere")
        assert tree.documents() == ["main"]
        with pytest.raises(DataError, match="token 5000"):
            tree.append([5000])  # was not begun, so the batch can go on
        with pytest.raises(ConfigError, match="inside a batch"):
            tree.compact()
    assert tree.info().version == version + 1
    assert len(tree.documents()) == 7
    assert np.array_equal(tree.document("document 2").tokens(0, 3), draw(3, seed=2))
    report = tree.verify()
    assert (report.ok, report.missing) == (True, 1)  # of level 1 "elsewhere"


def test_a_batch_that_raises_leaves_nothing(tree: GistTree) -> None:
    with pytest.raises(KeyError), tree.batch():
        tree.append([1, 2, 3])
        raise KeyError
    assert tree.documents() == []
    assert tree.append([1]) == 1


def test_an_append_whose_gists_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with GistTree.create(tmp_path / "tree", FailingEncoder()) as tree:
        tree.append([1, 2, 3, 4, 5])
        with pytest.raises(DataError, match="not a finite"):
            tree.append([1, 2, 3, 13, 4, 5, 6])
        assert tree.append([6]) == 6
        with pytest.raises(StorageError, match="batch"), tree.batch():
            tree.append([7])
            with pytest.raises(DataError):
                tree.append([8, 13, 1, 1, 1])
        assert tree.document().tokens(0, 6).tolist() == [1, 2, 3, 4, 5, 6]
        assert tree.verify().ok


def test_info_counts(tree: GistTree, stub: StubEncoder) -> None:
    empty = tree.info()
    assert (empty.documents, empty.tokens, [level.gists for level in empty.levels]) == (0, 0, [0, 0])
    tree.append(draw(40))
    tree.append(draw(19), "other")
    info = tree.info()
    assert (info.documents, info.tokens, [level.gists for level in info.levels]) == (2, 59, [14, 3])
    assert info.token_bytes >= 59 and info.levels[0].bytes >= 14 * 8 * 2
    assert (info.gist_version, info.pending_version, info.teacher) == ("stub0001", None, stub.info.teacher)
    assert (info.branchings, info.dim, info.version) == ((4, 4), 8, empty.version + 2)


def test_encoders_that_do_not_belong_to_the_tree(tmp_path: Path, stub: StubEncoder) -> None:
    GistTree.create(tmp_path / "tree", stub).close()
    other_teacher = StubEncoder(
        1, teacher=stub.info.teacher.model_copy(update={"name": "other", "config_hash": "d" * 16})
    )
    for writable in (False, True):
        with pytest.raises(TeacherError, match="dddddddd"):
            GistTree.open(tmp_path / "tree", other_teacher, writable=writable)
        with pytest.raises(CheckpointError, match="stub0002"):
            GistTree.open(tmp_path / "tree", StubEncoder(2), writable=writable)
    with GistTree.open(tmp_path / "tree", writable=True) as tree, pytest.raises(TeacherError, match="got a GistNet"):
        tree.reencode(other_teacher)
    with GistTree.open(tmp_path / "tree", stub) as reader, pytest.raises(ConfigError, match="opened for reading"):
        reader.append([1])


def test_a_fingerprint_that_cannot_name_tables_is_refused(stub: StubEncoder) -> None:
    with pytest.raises(ValidationError, match="fingerprint"):
        EncoderInfo(**{**dict(stub.info), "fingerprint": "../a"})


def test_a_closed_tree_says_so(tree: GistTree) -> None:
    tree.close()
    with pytest.raises(ConfigError, match="closed"):
        tree.append([1])


def test_importing_gistnet_imports_neither_lance_nor_the_tree_torch() -> None:
    """The tree must open where torch is not wanted, and `import gistnet` must stay cheap."""
    code = (
        "import sys, gistnet; assert 'lance' not in sys.modules; "
        "import gistnet.tree.tree; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
