"""Which windows a release brings: those of the documents that the evaluation takes, with room for every level."""

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gistnet.data.config import DataConfig
from gistnet.data.dataset import PreparedDataset
from gistnet.data.prepare import prepare
from gistnet.data.sampling import SpanLayout, fixed_windows
from gistnet.errors import DataError
from gistnet.evaluation.config import EvaluationConfig
from gistnet.release.make import choose_windows, write_held_out
from tests.data.byte_tokenizer import ByteTokenizer
from tests.gistnets import SPAN, woken_gistnet
from tests.teachers import tiny_teacher

HORIZON, SINK = 12, 4
ROOM = {level: SINK + SPAN ** (level + 1) + HORIZON for level in (0, 1)}  # 24 and 80 tokens


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Thirty documents of 25 to 250 bytes, of two kinds, in windows of 24 to 96 with BOS."""
    draw = random.Random(1)
    sources = []
    for domain in ("narrative", "code"):
        paths = [tmp_path / "texts" / f"{domain}-{n}.txt" for n in range(15)]
        paths[0].parent.mkdir(exist_ok=True)
        for path in paths:
            path.write_text("".join(draw.choices("abcdefgh ", k=draw.randint(25, 250))), encoding="utf-8")
        sources.append({"kind": "files", "name": domain, "domain": domain, "paths": [str(path) for path in paths]})
    return DataConfig.model_validate(
        {
            "sources": sources,
            "folder": tmp_path / "prepared",
            "window_tokens": 96,
            "min_tokens": ROOM[0],
            "held_out_fraction": 0.99,
            "deduplicate": False,
        }
    )


def test_documents_are_the_evaluations_and_windows_have_room_for_the_highest_level(
    config: DataConfig, tmp_path: Path
) -> None:
    def rank(name: str) -> tuple[bool, bytes]:
        key = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:32]
        for_validation = hashlib.sha256(f"order:{key}".encode()).digest()[0] >= 128  # the half that comes last
        return for_validation, hashlib.sha256(f"3:{key}".encode()).digest()[:8]

    dataset = prepare(config, ByteTokenizer())
    evaluation = EvaluationConfig(documents=8, horizons=(4, HORIZON), seed=3)
    chosen = choose_windows(dataset, woken_gistnet(tiny_teacher("llama"), levels=2), evaluation)
    infos = [dataset.describe(window) for window in chosen]
    lengths: dict[str, list[int]] = {}
    for window in range(len(dataset)):
        info = dataset.describe(window)
        if info.split == "held_out":
            lengths.setdefault(info.document_id, []).append(info.length)
    for domain in ("narrative", "code"):
        ranked = sorted(
            (name for name in lengths if f"{domain}-" in name),
            key=rank,
        )
        assert {info.document_id for info in infos if info.domain == domain} == set(ranked[:8])
    assert len(infos) == 16
    for info in infos:
        assert (info.length >= ROOM[1]) == (max(lengths[info.document_id]) >= ROOM[1])
    assert {info.length >= ROOM[1] for info in infos} == {True, False}


def test_a_corpus_without_training_documents_is_not_halved(config: DataConfig, tmp_path: Path) -> None:
    """Figures of a release's first documents come again: all of its documents are from the same order."""
    dataset = prepare(config, ByteTokenizer())
    write_held_out(tmp_path / "held-out", dataset, dataset.window_indices("held_out", "code").tolist(), config)
    small = PreparedDataset.open(tmp_path / "held-out")
    assert dataset.domains("train")

    def chosen(of: PreparedDataset, *, for_validation: bool) -> list[str]:
        layout = SpanLayout((8,), horizon_tokens=4)
        size: dict[str, Any] = {"documents": 2, "segments_per_window": 1, "seed": 3, "domains": ["code"]}
        samples = fixed_windows(of, layout, **size, for_validation=for_validation)
        return [of.describe(sample.window).key for sample in samples]

    assert chosen(small, for_validation=True) == chosen(small, for_validation=False)
    assert chosen(dataset, for_validation=True) != chosen(dataset, for_validation=False)


def test_the_small_corpus_holds_those_windows_alone(config: DataConfig, tmp_path: Path) -> None:
    dataset = prepare(config, ByteTokenizer())
    windows = [int(dataset.window_indices("held_out", domain)[-1]) for domain in ("narrative", "code")]
    write_held_out(tmp_path / "held-out", dataset, windows, config)
    small = PreparedDataset.open(tmp_path / "held-out")
    assert len(small) == 2
    for number, window in enumerate(windows):
        assert np.array_equal(small.read(number), dataset.read(window))
        assert small.read(number)[0] == 256  # BOS
        got, expected = small.describe(number), dataset.describe(window)
        assert (got.document_id, got.source, got.domain) == (expected.document_id, expected.source, expected.domain)
        assert (got.split, got.offset, got.length) == ("held_out", 0, expected.length)
    bytes_of_text = sum(dataset.describe(window).length - 1 for window in windows)
    assert (small.folder / "tokens.bin").stat().st_size == 2 * bytes_of_text
    assert sum(entry.tokens for entry in small.statistics) == bytes_of_text
    assert small.description.fingerprint != dataset.description.fingerprint
    write_held_out(tmp_path / "other", dataset, windows[:1], config)
    assert PreparedDataset.open(tmp_path / "other").description.fingerprint != small.description.fingerprint


def test_a_kind_of_text_without_room_is_refused(config: DataConfig) -> None:
    dataset = prepare(config, ByteTokenizer())
    gistnet = woken_gistnet(tiny_teacher("llama"), levels=2)
    with pytest.raises(DataError, match="a horizon of 90"):
        choose_windows(dataset, gistnet, EvaluationConfig(documents=8, horizons=(90,)))
    # Level 1 is left out where no window has room for it, as the evaluation does.
    assert len(choose_windows(dataset, gistnet, EvaluationConfig(documents=8, horizons=(60,)))) == 16
