"""How clean a release's held-out documents are: measured against the training documents of its run, and said."""

import json
from pathlib import Path

import numpy as np

from gistnet.data.config import DataConfig, InstallationSource
from gistnet.data.dataset import DocumentLabels, PreparedDataset, SplitStatistics
from gistnet.data.prepare import DatasetWriter
from gistnet.release.contents import DomainOverlap
from gistnet.release.make import measure_overlap

WORDS = [f"w{n}" for n in range(1000)]


def corpus(folder: Path, documents: list[tuple[str, str, str]]) -> PreparedDataset:
    """A prepared corpus of (domain, split, text), in bytes."""
    folder.mkdir()
    with DatasetWriter(folder, "uint16") as writer:
        for number, (domain, split, text) in enumerate(documents):
            tokens = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
            labels = DocumentLabels(str(number), str(number), domain, domain, split)  # type: ignore[arg-type]
            writer.add(labels, tokens, np.array([[0, len(tokens)]]))
        statistics = [
            SplitStatistics(source=domain, domain=domain, split=split, kept=1, windows=1)  # type: ignore[arg-type]
            for domain, split in dict.fromkeys((domain, split) for domain, split, _ in documents)
        ]
        writer.finish(
            fingerprint="0",
            window_prefix=(),
            config=DataConfig(sources=(InstallationSource(name="none", domain="code"),)),
            statistics=statistics,
        )
    return PreparedDataset.open(folder)


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode()


def test_shares_are_counted_by_hand(tmp_path: Path) -> None:
    training = [("code", "train", ",".join(WORDS[:300])), ("code", "held_out", " ".join(WORDS[300:]))]
    # 100 words have 91 10-grams; 31 of the second document's lie in its first 40 words, and none of the third's.
    held_out = [
        ("narrative", "held_out", " ".join(WORDS[100:200])),
        ("narrative", "held_out", " ".join(WORDS[:40] + WORDS[500:560])),
        ("code", "held_out", " ".join(WORDS[:9] + WORDS[300:391])),
    ]
    found = measure_overlap(corpus(tmp_path / "held-out", held_out), corpus(tmp_path / "run", training), decode)
    assert found == {
        "narrative": DomainOverlap(documents=2, above_a_tenth=2, largest=1.0),
        "code": DomainOverlap(documents=1, above_a_tenth=0, largest=0.0),
    }
    del held_out[0]
    found = measure_overlap(corpus(tmp_path / "less", held_out), corpus(tmp_path / "again", training), decode)
    assert found["narrative"] == DomainOverlap(documents=1, above_a_tenth=1, largest=round(31 / 91, 3))


def test_a_release_states_it_and_its_card_says_it(release: Path) -> None:
    (stated,) = json.loads((release / "release.json").read_bytes())["overlap"].items()
    assert stated[0] == "narrative"
    assert stated[1]["documents"] == 4
    card = (release / "README.md").read_text(encoding="utf-8")
    assert f"{stated[1]['above_a_tenth']} of 4 narrative documents (at most {stated[1]['largest']:.1%})" in card
