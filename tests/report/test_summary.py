"""The few lines with which an evaluation ends: what they say, and that they fit a terminal."""

from gistnet.evaluation.records import MetricRecord
from gistnet.report.summary import evaluation_summary, training_summary, verdict
from gistnet.settings import Target
from tests.report.test_tables import BASELINES, record


def recovered(value: float, offsets: tuple[int, int] = (1, 32), **changes: object) -> MetricRecord:
    beside = {"drop": 0.0, "last_token": 0.412, "shuffled": -0.052}
    fields = {"horizon": 32, "offsets": offsets, "baselines": beside, "interval": (value - 0.02, value + 0.02)}
    return record("recovered_kl", value, **fields | changes)


def test_a_share_is_said_in_per_cent_beside_its_interval_and_the_last_token():
    assert verdict(recovered(0.65), 32).startswith("One gist keeps 65 % (63–67) of what its 32 tokens")
    assert "41 %" in verdict(recovered(0.65), 32)
    assert "4 gists in a row keep" in verdict(recovered(0.65, spans_per_segment=4), 32)
    assert "128 tokens" in verdict(recovered(0.65, spans_per_segment=4), 32)


def test_the_summary_has_ranges_levels_and_targets_in_few_short_lines():
    losses = {"horizon": 32, "offsets": (1, 32), "baselines": BASELINES}
    records = [
        recovered(0.65),
        recovered(0.75, (1, 8)),
        recovered(0.33, (9, 32)),
        recovered(0.11, positions="compact"),
        recovered(0.47, level=1),
        *(record("delta_nll", 0.8, domain=f"domain{n}", target=Target(below=0.5), **losses) for n in range(9)),
        record("perplexity_ratio", 1.2, target=Target(below=1.5), **losses),
    ]
    lines = evaluation_summary(records, 32)
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["1–32", "65"],
        ["1–8", "75"],
        ["9–32", "33"],
        ["1–32,", "level"],
    ]
    assert "1 of 10 met" in lines[8]


def test_several_kinds_of_text_have_a_row_each_unless_there_is_their_mean():
    kinds = [recovered(0.6, domain="code"), recovered(0.7, domain="narrative")]
    lines = evaluation_summary(kinds, 32)
    assert [line.split()[-4] for line in lines[2:4]] == ["60", "70"]
    mixed = evaluation_summary([*kinds, recovered(0.65, domain="mixed")], 32)
    assert [line.split()[1] for line in mixed if line.startswith("  1–32")] == ["65"]


def test_spans_that_nobody_needs_give_no_share():
    lines = evaluation_summary([record("kl", 0.01, horizon=12, offsets=(1, 12), baselines=BASELINES)], 32)
    assert "nothing" in lines[0]
    assert max(map(len, lines)) <= 80


def test_training_ends_with_the_best_validation_of_the_last_stage_beside_the_last_token():
    def validated(stage: int, step: int, recovered_kl: float) -> dict:
        kl = {"kl": 2 * (1 - recovered_kl), "kl_drop": 2.0, "kl_last_token": 1.5, "recovered_kl": recovered_kl}
        return {"stage": stage, "step": step, "spans_seen": 12 * step, "validation": kl}

    log = [validated(1, 3, 0.9), *(validated(2, step, share) for step, share in ((3, 0.1), (6, 0.47), (9, 0.4)))]
    log += [{"stage": 2, "step": 9, "stage_end": {"best_step": 6}}]
    lines = training_summary(log, 3725)
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    assert [w for w in ("step 6:", " 47 %", " 25 %", "9 steps", "108 spans", "1:02:05") if w not in text] == []
