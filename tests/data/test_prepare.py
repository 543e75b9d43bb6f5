import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gistnet.data.config import DataConfig
from gistnet.data.dataset import PreparedDataset
from gistnet.data.prepare import dataset_fingerprint, prepare, split_of
from gistnet.data.sampling import SpanLayout, fixed_windows
from gistnet.errors import ConfigError, DataError, StorageError
from tests.data.byte_tokenizer import ByteTokenizer
from tests.tokenizers import END, TURN, merging


def text_of(name: str, length: int) -> str:
    """`length` ASCII characters that depend on the name, in words that no other name shares."""
    blocks = (hashlib.sha256(f"{name}:{place}".encode()).hexdigest()[:9] for place in range(length // 10 + 1))
    return " ".join(blocks)[:length]


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    lines = (json.dumps({"id": name, "text": text}) for name, text in texts.items())
    (folder / "tales.jsonl").write_text("\n".join(lines))


def write_lengths(folder: Path, lengths: Mapping[str, int]) -> dict[str, str]:
    texts = {name: text_of(name, length) for name, length in lengths.items()}
    write_texts(folder, texts)
    return texts


def prepared(folder: Path, texts: Mapping[str, str], **fields: Any) -> PreparedDataset:
    write_texts(folder, texts)
    return prepare(config_for(folder, **fields), ByteTokenizer())


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def config_for(folder: Path, **fields: Any) -> DataConfig:
    sources = [{"kind": "files", "name": "tales", "domain": "narrative", "paths": [str(folder / "tales.jsonl")]}]
    return DataConfig(
        **{"sources": sources, "folder": folder / "prepared", "window_tokens": 100, "min_tokens": 40, **fields}
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_window_is_the_prefix_and_its_part_of_the_text(tmp_path: Path) -> None:
    lengths = {f"d{place}": 39 + 37 * place for place in range(20)}
    texts = write_lengths(tmp_path, lengths)
    dataset = prepare(config_for(tmp_path), ByteTokenizer())
    rebuilt: dict[str, bytes] = {}
    for window in range(len(dataset)):
        info, tokens = dataset.describe(window), dataset.read(window)
        assert tokens.dtype == np.int64
        assert tokens[0] == 256
        assert len(tokens) == info.length == dataset.lengths[window] <= 100
        assert info.offset == len(rebuilt.get(info.document_id, b""))
        assert (info.source, info.domain) == ("tales", "narrative")
        assert info.split == split_of(key_of(texts[info.document_id]), 0.1)
        rebuilt[info.document_id] = rebuilt.get(info.document_id, b"") + bytes(tokens[1:].tolist())
    # A window holds BOS and 99 bytes; a rest below 39 bytes (40 tokens with BOS) is in no window.
    for name, text in texts.items():
        rest = len(text) % 99
        assert rebuilt[name] == text[: len(text) - (rest if rest < 39 else 0)].encode()


def test_statistics_by_hand(tmp_path: Path) -> None:
    lengths = {"a": 38, "b": 39, "c": 99, "d": 110, "e": 300}
    texts = {name: text_of(name, length) for name, length in lengths.items()} | {"copy": text_of("e", 300)}
    dataset = prepared(tmp_path, texts, held_out_fraction=0)
    train, held_out = dataset.statistics
    # a is too short; b, c and d give a window each; e gives three.
    expected = {"read": 6, "too_short": 1, "near_duplicates": 1, "kept": 4, "tokens": 548, "windows": 6}
    assert train.model_dump() == {
        "source": "tales",
        "domain": "narrative",
        "split": "train",
        **expected,
        "overlapping": 0,
    }
    assert (held_out.read, held_out.split) == (0, "held_out")
    assert len(dataset) == 6
    assert prepared(tmp_path, texts, held_out_fraction=0, deduplicate=False).statistics[0].kept == 5


def test_second_preparation_does_no_work(tmp_path: Path) -> None:
    write_lengths(tmp_path, {"a": 200})
    config = config_for(tmp_path)
    first = prepare(config, ByteTokenizer())
    idle = ByteTokenizer()
    second = prepare(config, idle)
    assert idle.batches == []
    assert second.description == first.description
    assert second.description.fingerprint == first.folder.name == dataset_fingerprint(config, idle)


def test_content_has_the_same_fingerprint_under_other_names_and_another_one_otherwise(tmp_path: Path) -> None:
    def make(names: dict[str, str], source: str = "tales", **fields: Any) -> PreparedDataset:
        paths = [str(tmp_path / "tales.jsonl")]
        sources = [{"kind": "files", "name": source, "domain": "narrative", "paths": paths}]
        texts = {name: text_of(text, 130) for name, text in names.items()}
        return prepared(tmp_path, texts, sources=sources, **fields)

    first, again = make({"a": "x", "b": "y"}), make({"c": "x", "d": "y"}, source="stories")
    assert again.description.fingerprint != first.description.fingerprint
    assert again.content_fingerprint == first.content_fingerprint
    others = [
        make({"a": "y", "b": "x"}),
        make({"a": "x", "b": "z"}),
        make({"a": "x", "b": "y"}, window_tokens=80),
        make({"a": "x", "b": "y"}, held_out_fraction=0.99),
    ]
    assert len({first.content_fingerprint, *(other.content_fingerprint for other in others)}) == 5


def test_split_and_orders_do_not_depend_on_names(tmp_path: Path) -> None:
    one, other = (
        prepared(tmp_path, {f"{name}-{n:02}": text_of(str(n), 120) for n in range(40)}, held_out_fraction=0.3)
        for name in ("one", "two")
    )
    for split in ("train", "held_out"):
        texts = [[tokens.tobytes() for _, tokens in dataset.whole_documents(split)] for dataset in (one, other)]
        assert texts[0] == texts[1] != sorted(texts[0])
    layout = SpanLayout((8,), horizon_tokens=8)
    chosen = [
        [
            dataset.read(sample.window).tobytes()
            for sample in fixed_windows(dataset, layout, documents=5, segments_per_window=1, seed=1)
        ]
        for dataset in (one, other)
    ]
    assert chosen[0] == chosen[1]
    assert one.content_fingerprint == other.content_fingerprint


def halves(fraction: float) -> tuple[list[str], list[str]]:
    """Names whose texts are trained on, and held out, at that fraction."""
    names = [f"n{place}" for place in range(400)]
    held_out = [name for name in names if split_of(key_of(text_of(name, 600)), fraction) == "held_out"]
    return [name for name in names if name not in held_out], held_out


@pytest.mark.parametrize("first", ["train", "held_out"])
def test_near_duplicates_are_dropped_across_the_split(tmp_path: Path, first: str) -> None:
    """The second of two texts that differ in one word, though the hash of it is for the other split."""
    pair = next(
        (text_of(name, 600), other)
        for name in halves(0.5)[first == "held_out"]
        if split_of(key_of(other := text_of(name, 600).replace(" ", " the ", 1)), 0.5) != first
    )
    dataset = prepared(tmp_path, dict(zip("ab", pair, strict=True)), held_out_fraction=0.5)
    by_split = {entry.split: entry for entry in dataset.statistics}
    second = "train" if first == "held_out" else "held_out"
    assert (by_split[first].kept, by_split[second].kept, by_split[second].near_duplicates) == (1, 0, 1)


def test_held_out_documents_of_which_training_documents_have_a_tenth_are_dropped(tmp_path: Path) -> None:
    """Whatever the format; they are no near-duplicates as wholes, and training documents may come later."""
    training, held_out = halves(0.5)
    table = [text_of(f"row {n}", 50).split() for n in range(40)]
    book = " ".join(text_of(name, 600) for name in training[:10])

    def until(split: str, text: Callable[[str], str]) -> str:
        """The first variant whose hash is for the split."""
        return next(made for name in held_out if split_of(key_of(made := text(name)), 0.5) == split)

    csv = until("held_out", lambda name: "\n".join(",".join(row) for row in table) + f"\n{name}")
    markdown = "\n".join(f"| {' | '.join(row)} |" for row in table)
    texts = {
        "csv": csv,
        "markdown in a book": until("train", lambda name: f"{book}\n{name}\n{markdown}"),
        "clean": text_of(held_out[0], 600),
        "a fifth": until("held_out", lambda name: text_of(f"{name}.", 2400) + " " + book[:600]),
        "a twentieth": until("held_out", lambda name: text_of(f"{name}!", 5600) + " " + book[:300]),
    }
    dataset = prepared(tmp_path, texts, held_out_fraction=0.5)
    assert {name for name, _ in dataset.whole_documents("held_out")} == {"clean", "a twentieth"}
    assert {name for name, _ in dataset.whole_documents("train")} == {"markdown in a book"}
    by_split = {entry.split: entry for entry in dataset.statistics}
    assert (by_split["held_out"].read, by_split["held_out"].overlapping, by_split["held_out"].kept) == (4, 2, 2)
    kept = prepared(tmp_path, texts, held_out_fraction=0.5, deduplicate=False)
    assert len(list(kept.whole_documents("held_out"))) == 4


def test_fingerprint_depends_on_content_and_settings_and_not_on_weight_folder_or_place(tmp_path: Path) -> None:
    file = tmp_path / "here" / "tales.jsonl"
    file.parent.mkdir()
    write_lengths(file.parent, {"a": 200})

    def fingerprint(path: Path = file, tokenizer: ByteTokenizer | None = None, **fields: Any) -> str:
        weight = fields.pop("weight", 1.0)
        sources = [{"kind": "files", "name": "t", "domain": "code", "paths": [str(path)], "weight": weight}]
        return dataset_fingerprint(DataConfig(sources=sources, **fields), tokenizer or ByteTokenizer())

    same = fingerprint()
    assert fingerprint(weight=3, folder=Path("elsewhere")) == same
    moved = tmp_path / "there" / "here" / "tales.jsonl"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(file.read_bytes())
    assert fingerprint(moved) == same
    os.utime(file, (1, 1))
    assert fingerprint() == same
    others = [
        fingerprint(window_tokens=512),
        fingerprint(min_tokens=512),
        fingerprint(held_out_fraction=0.2),
        fingerprint(deduplicate=False),
        fingerprint(tokenizer=ByteTokenizer(fingerprint="other")),
        fingerprint(tokenizer=ByteTokenizer(window_prefix=())),
    ]
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"a", b"b"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    others.append(fingerprint())
    assert len({same, *others}) == 1 + len(others)


@pytest.mark.parametrize("where", ["data_files", "path"])
def test_local_files_of_a_hub_source_are_refused(tmp_path: Path, where: str) -> None:
    """They would be read, and changes to them go unnoticed."""
    file = tmp_path / "set" / "a.jsonl"
    file.parent.mkdir()
    file.write_text('{"text": "one"}')
    fields = {"path": "json", "data_files": str(file)} if where == "data_files" else {"path": str(file.parent)}
    config = DataConfig(sources=[{"kind": "hub", "name": "h", "domain": "code", **fields}])
    with pytest.raises(DataError, match="'files'"):
        dataset_fingerprint(config, ByteTokenizer())


def test_split_is_a_hash_of_the_key_near_the_fraction() -> None:
    ids = [f"document {place}" for place in range(10_000)]
    held_out = {name for name in ids if split_of(name, 0.1) == "held_out"}
    assert len(held_out) == pytest.approx(1000, abs=5 * (10_000 * 0.1 * 0.9) ** 0.5)
    assert held_out < {name for name in ids if split_of(name, 0.2) == "held_out"}
    assert split_of("anything", 0.0) == "train"


def test_unusable_corpus_says_what_is_wrong(tmp_path: Path) -> None:
    write_lengths(tmp_path, {"a": 20, "b": 30})
    with pytest.raises(DataError, match="the longest has 31"):
        prepare(config_for(tmp_path), ByteTokenizer())
    (tmp_path / "tales.jsonl").write_text("\n")
    with pytest.raises(DataError, match="'tales'"):
        prepare(config_for(tmp_path), ByteTokenizer())
    with pytest.raises(ConfigError, match="window_tokens"):
        prepare(config_for(tmp_path), ByteTokenizer(window_prefix=(256,) * 100))
    assert list((tmp_path / "prepared").iterdir()) == []


def test_empty_document_is_too_short_whatever_the_minimum(tmp_path: Path) -> None:
    found = prepared(tmp_path, {"empty": "", "one": "1"}, min_tokens=1, held_out_fraction=0).statistics[0]
    assert (found.too_short, found.kept, found.windows) == (1, 1, 1)


def test_control_tokens_are_text_unless_a_source_says_that_it_has_them(tmp_path: Path) -> None:
    """And a corpus made by one rule is not taken for one made by the other."""
    tokenizer = merging()
    text = f"{TURN}user\na bee{END}\n" * 20
    (tmp_path / "tales.jsonl").write_text(json.dumps({"id": "a", "text": text}) + "\n")
    control = {tokenizer.inner.convert_tokens_to_ids(name) for name in (TURN, END)}
    tokens, fingerprints = {}, set()
    for rule in ("text", "control"):
        source = {"kind": "files", "name": "tales", "domain": "narrative", "paths": [str(tmp_path / "tales.jsonl")]}
        dataset = prepare(config_for(tmp_path, sources=[source | {"special_tokens": rule}]), tokenizer)
        ((_, tokens[rule]),) = [*dataset.whole_documents("train"), *dataset.whole_documents("held_out")]
        assert tokenizer.decode(tokens[rule].tolist()) == text
        fingerprints.add(dataset.description.fingerprint)
    assert not control & set(tokens["text"].tolist())
    assert sum(token in control for token in tokens["control"].tolist()) == 40
    assert len(fingerprints) == 2
    assert dataset_fingerprint(config_for(tmp_path), tokenizer) in fingerprints


def test_source_names_must_differ() -> None:
    source = {"kind": "installation", "name": "same", "domain": "code"}
    with pytest.raises(ValidationError, match="names"):
        DataConfig(sources=[source, source])


@pytest.mark.parametrize(("vocabulary", "bytes_per_token"), [(65536, 2), (65537, 4)])
def test_tokens_take_two_bytes_up_to_a_vocabulary_of_65536(
    tmp_path: Path, vocabulary: int, bytes_per_token: int
) -> None:
    class LargeTokenizer(ByteTokenizer):
        vocabulary_size = vocabulary

        def encode_batch(self, texts: list[str], **options: bool) -> list[list[int]]:
            return [[vocabulary - 1 - byte for byte in text.encode()] for text in texts]

    texts = write_lengths(tmp_path, {"a": 150})
    dataset = prepare(config_for(tmp_path), LargeTokenizer(window_prefix=()))
    assert (dataset.folder / "tokens.bin").stat().st_size == 150 * bytes_per_token
    assert dataset.read(0).tolist() == [vocabulary - 1 - byte for byte in texts["a"][:100].encode()]


KILLED = """
import sys, time
from pathlib import Path
from gistnet.data.prepare import prepare
from tests.data.byte_tokenizer import ByteTokenizer
from tests.data.test_prepare import config_for

class SlowTokenizer(ByteTokenizer):
    def encode_batch(self, texts, **options):
        if sum(len(text) for batch in self.batches for text in batch) > 2_000_000:
            print("halfway", flush=True)
            time.sleep(600)
        return super().encode_batch(texts, **options)

prepare(config_for(Path(sys.argv[1])), SlowTokenizer())
"""


def test_killed_preparation_leaves_nothing_and_the_next_one_equals_an_undisturbed_one(tmp_path: Path) -> None:
    write_lengths(tmp_path, {f"d{place}": 500_000 for place in range(5)})
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    assert line == b"halfway\n", process.stderr.read().decode()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()

    config = config_for(tmp_path)
    folder = config.folder / dataset_fingerprint(config, ByteTokenizer())
    assert not folder.exists()
    (leftover,) = config.folder.iterdir()
    assert (leftover / folder.name / "tokens.bin").stat().st_size > 0, "it was killed in the midst of writing"

    dataset = prepare(config, ByteTokenizer())
    assert [entry.name for entry in config.folder.iterdir()] == [folder.name]
    undisturbed = prepare(config.model_copy(update={"folder": tmp_path / "again"}), ByteTokenizer())
    ours, theirs = files_of(dataset.folder), files_of(undisturbed.folder)
    for name in ("tokens.bin", "windows.npy", "documents.parquet"):
        assert ours[name] == theirs[name]
    assert dataset.statistics == undisturbed.statistics


def test_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    write_lengths(tmp_path, {f"d{place}": 500_000 for place in range(3)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # three million bytes are to be written
    try:
        with pytest.raises(StorageError, match="prepared"):
            prepare(config_for(tmp_path), ByteTokenizer())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "prepared").iterdir()) == []


def test_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    write_lengths(tmp_path, {"a": 500})
    folder = prepare(config_for(tmp_path), ByteTokenizer()).folder
    tokens = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(tokens[:-2])
    with pytest.raises(DataError, match=r"tokens\.bin.* 998 .* 1000"):
        prepare(config_for(tmp_path), ByteTokenizer())
    (folder / "tokens.bin").write_bytes(tokens)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "format_version": 99}))
    with pytest.raises(DataError, match="99"):
        PreparedDataset.open(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        PreparedDataset.open(folder)
    with pytest.raises(DataError, match="no prepared"):
        PreparedDataset.open(tmp_path)


def test_a_message_is_logged_every_million_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lengths(tmp_path, {f"d{n}": 600_000 for n in range(4)})
    caplog.set_level("INFO", "gistnet")
    prepare(config_for(tmp_path), ByteTokenizer())
    assert [count in message for count, message in zip(("1,200,000", "2,400,000"), caplog.messages, strict=True)]


def test_whole_documents_are_read_uncut_and_in_an_order_of_their_own(tmp_path: Path) -> None:
    texts = write_lengths(tmp_path, {f"d{n}": 60 + 40 * n for n in range(40)})
    dataset = prepare(config_for(tmp_path, held_out_fraction=0.5), ByteTokenizer())
    found = dict(dataset.whole_documents("held_out", "narrative", min_tokens=300))
    assert {name: bytes(tokens.tolist()).decode() for name, tokens in found.items()} == {
        name: text for name, text in texts.items() if split_of(key_of(text), 0.5) == "held_out" and len(text) >= 300
    }
    assert list(found) != list(texts)
    assert list(found) == [name for name, _ in dataset.whole_documents("held_out") if name in found]
    backwards = [name for name, _ in dataset.whole_documents("held_out", for_validation=True)]
    assert backwards == [name for name, _ in dataset.whole_documents("held_out")][::-1]
    assert not list(dataset.whole_documents("train", "code"))
