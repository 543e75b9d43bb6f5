"""Run folders with everything a report shows, made from formulas: no model is run."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gistnet.evaluation.probes.span_map import MappedDocument, MappedSpan, Neighbour, Prediction, SpanMap
from gistnet.evaluation.records import MetricRecord, target_for
from gistnet.run_folder import SPAN_MAP_FILE

SPAN, HORIZON = 32, 32
STAND_INS = ("gist", "drop", "last_token")
OTHERS = ("drop", "last_token", "surprisal_token", "mean", "shuffled")
COST = {"gist": 0.6, "drop": 0.95, "last_token": 0.64, "surprisal_token": 0.84, "mean": 3.1, "shuffled": 0.85}
"""KL of each replacement in nats per token, near to what the real teacher gives."""
WORDS = """
    the a of and in to was that it with as for on by at from had not but they which were been would there river
    lantern bridge stone harbour winter letter window ship road morning evening quiet seven walked carried found
    kept turned waited spoke answered remembered across under beyond between because although until
"""
HOSTILE = (
    "</script><script>window.hacked = 1</script> <img src=x onerror='window.hacked = 2'> \"quoted\" 'single' & "
    "&amp; <!-- --> \u2028\u2029 \x00\x07\x1b[31m \u202eright to left\u202c שלום עולם مرحبا 👩‍👩‍👧‍👦 {{data}} ${1} "
    "\\u003c "
)


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    evaluated: bool = True,
    documents: Sequence[Sequence[str]] = (),
    more: Sequence[MetricRecord] = (),
) -> Path:
    """A run of three stages that has ended, and its evaluation unless `evaluated` is False, with `more` figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(seed), sort_keys=False), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log(seed)), encoding="utf-8")
    if evaluated:
        figures = [record.model_dump(mode="json") for record in (*records(seed), *more)]
        (folder / "results.json").write_text(json.dumps(figures), encoding="utf-8")
        span_map(seed, documents or [prose(seed, n) for n in range(4)]).write(folder / SPAN_MAP_FILE)
    return folder


def configuration(seed: int) -> dict[str, Any]:
    """A configuration with three stages, as a run folder holds it."""
    stages = [
        ("narrative", 32, 0.0, {"narrative": 1.0}, {"delta_nll": {"above": None, "below": 0.5}}),
        ("structured", 64, 0.05, {"code": 0.6, "structured": 0.4}, {"delta_nll": {"above": None, "below": 1.0}}),
        ("mixed", 128, 0.08, {"narrative": 0.6, "code": 0.3, "structured": 0.1}, {}),
    ]
    return {
        "run_folder": "anywhere",
        "seed": seed,
        "teacher": {"name": "tiny-teacher"},
        "gistnet": {"architecture": "bottleneck"},
        "stages": [
            {
                "name": name,
                "train": {
                    "steps": 200,
                    "probabilities": mix,
                    "dropout": 0.1,
                    "optimiser": {"learning_rate": 0.002 / (seed + 1) if name == "narrative" else 0.002},
                },
                "objective": {"positions": "end", "horizon_tokens": horizon, "contrastive_weight": weight},
                "targets": targets,
            }
            for name, horizon, weight, mix, targets in stages
        ],
    }


def log(seed: int, steps: int = 600, stages: int = 3) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`: training every 5 steps, validation every 40, two stage changes."""
    draw, lines, each = random.Random(seed), [], steps // stages
    for step in range(0, steps + 1, 5):
        stage = min(stages, max(1, math.ceil(step / each)))
        place = {"step": step, "stage": stage, "stage_step": step - (stage - 1) * each, "spans_seen": step * 28}
        kl = 0.62 + 0.1 * seed + 0.1 * stage - 0.08 * (1 - math.exp(-step / 200))
        if step:
            weight = (0.0, 0.05, 0.08)[stage - 1]
            noisy = kl + draw.gauss(0, 0.05)
            rate = 1e-6 + 1e-3 * (1 + math.cos(math.pi * place["stage_step"] / each))
            values = {"loss": noisy, "kl": noisy, "delta_nll": noisy - 0.02, "gist_norm": 2.7 + step / 900}
            lines.append(place | values | {"contrastive_weight": weight, "learning_rate": rate})
        if step % 40 == 0:
            lines.append(place | {"validation": _validation(kl, step)})
        if step and step % each == 0:
            met = [{"name": "delta_nll", "value": kl - 0.01, "above": None, "below": 0.5, "met": False}]
            end = {
                "name": ("narrative", "structured", "mixed")[stage - 1],
                "reason": "stabilised",
                "best_step": step,
                "best_value": kl,
            }
            lines.append({"step": step, "stage": stage, "stage_end": end | {"targets": met if stage < 3 else []}})
    raised = {"step": 300, "stage": 2, "contrastive_weight_raised": {"from": 0.05, "to": 0.075}}
    alarm = {"step": 320, "stage": 2, "alarm": "Gists are 0.21 apart on average, expected 0.3: they may be collapsing."}
    return sorted([*lines, raised, alarm], key=lambda line: line["step"])


def _validation(kl: float, step: int) -> dict[str, float | None]:
    values: dict[str, float | None] = {"kl": kl, "kl_drop": 0.95, "kl_last_token": 0.64, "recovered_kl": 1 - kl / 0.95}
    values |= {"recovered_kl_1_8": 1.1 - kl, "recovered_kl_9_32": 0.7 - kl, "delta_nll": kl - 0.01}
    values |= {"delta_nll_drop": 0.92, "delta_nll_last_token": 0.63, "kl/narrative": kl - 0.1, "kl/code": kl + 0.2}
    diversity = 0.5 - step / 3000
    values |= {"gist_diversity": diversity, "adjacent_distance": diversity - 0.1, "contrastive_gap": 0.1}
    return values | {
        "gist_norm": None if step == 80 else 2.8,
        "substitutability_rate": 0.8,
        "moving_average": kl + 0.02,
    }


def records(seed: int) -> list[MetricRecord]:
    """Figures of every name, for two kinds of text and two position policies."""
    return [
        record
        for positions in ("center", "end")
        for n, domain in enumerate(("narrative", "code"))
        for record in _of_domain(domain, positions, 1 + 0.2 * n + 0.05 * seed + 0.03 * (positions == "center"))
    ] + [_pairs(kind, 0.71 - 0.05 * n) for n, kind in enumerate(("", "number", "name", "negation"))]


def _of_domain(domain: str, positions: str, scale: float) -> list[MetricRecord]:
    place = {"domain": domain, "positions": positions, "n_spans": 192, "n_documents": 48}

    def record(name: str, value: float, width: float = 0.03, **more: Any) -> MetricRecord:
        target = (
            None
            if more.keys() & {"kind", "index"}
            else target_for(name, domain=domain, horizon=more.get("horizon"), offsets=more.get("offsets"))
        )
        return MetricRecord(
            name=name, value=value, interval=(value - width, value + width), target=target, **place, **more
        )

    def each(statistic: Any) -> dict[str, float]:
        return {name: statistic(scale * COST[name]) for name in OTHERS}

    found = []
    for first, last, share in ((1, 32, 1.0), (1, 8, 1.9), (9, 32, 0.6)):
        where = {"horizon": HORIZON, "offsets": (first, last)}
        kl = share * scale * COST["gist"]
        found += [
            record("kl", kl, baselines=each(lambda cost, share=share: share * cost), **where),
            record("delta_nll", kl - 0.01, baselines=each(lambda cost, share=share: share * cost), **where),
            record(
                "recovered_kl",
                1 - COST["gist"] / COST["drop"],
                baselines=each(lambda cost: 1 - cost / (scale * COST["drop"])),
                **where,
            ),
        ]
    whole = {"horizon": HORIZON, "offsets": (1, HORIZON)}
    found += [
        record("substitutability_rate", 0.833, baselines=each(lambda cost: math.exp(-cost)), **whole),
        record("perplexity_ratio", math.exp(0.6 * scale), baselines=each(math.exp), **whole),
        record("kl_below_last_token", 0.04 * scale, 0.008, **whole),
        record("gist_diversity", 0.62),
        record("adjacent_distance", 0.41),
        record("contrastive_gap", 0.21),
        record("gist_variance", 0.37),
        record("gist_norm", 2.84),
        record("attention_entropy", 3.4),
        record("reconstruction_ce", 6.1, baselines={"last_token": 6.6}),
        record("reconstruction_accuracy", 0.12, baselines={"last_token": 0.08}),
        record("reconstruction_mse", 0.018),
        record("oracle_kl", 0.2 * scale, baselines={name: scale * COST[name] for name in STAND_INS}, **whole),
        record("oracle_recovered_kl", 0.78, baselines={"gist": 0.36, "drop": 0.0, "last_token": 0.32}, **whole),
        record("share_of_oracle", 0.46, baselines={"last_token": 0.41}, **whole),
    ]
    for offset in range(1, HORIZON + 1):
        fading = scale * (0.25 + 2.4 / (1 + offset))
        beside = {name: fading * COST[name] for name in OTHERS}
        where = {"horizon": HORIZON, "offsets": (offset, offset)}
        found.append(record("delta_nll_by_offset", fading * COST["gist"], 0.05, baselines=beside, **where))
    for n, kind in enumerate(("numbers", "names", "punctuation", "common words", "other words")):
        for name in ("delta_nll_by_kind", "kl_by_kind"):
            beside = {role: COST[role] * (1.6 - 0.25 * n) for role in ("drop", "last_token")}
            found.append(record(name, COST["gist"] * (1.6 - 0.25 * n), kind=kind, baselines=beside, **whole))
    for slot in (1, 2):
        found += [
            record("attention_entropy", 2 + slot * head / 5, kind=f"slot {slot}", index=head) for head in range(1, 5)
        ]
    accuracies = [(token, 0.02 + 0.9 * (token / SPAN) ** 8) for token in range(1, SPAN + 1)]
    return found + [record("reconstruction_accuracy", value, index=token) for token, value in accuracies]


def long_context_records() -> list[MetricRecord]:
    """Contexts of equal budgets under two policies, of which nothing is recovered at 1/2; retrieval and questions."""
    found = []
    for n, budget in enumerate((2, 4, 8, 16, 32)):
        for shift, positions in enumerate(("center", "end")):
            place = {
                "domain": "narrative",
                "positions": positions,
                "n_spans": 8192,
                "n_documents": 16,
                "tokens_per_vector": budget,
            }
            place |= {"horizon": 512, "offsets": (1, 512), "level": int(budget == 32)}

            def record(name: str, value: float, kind: str = "", place: Any = place, **more: Any) -> MetricRecord:
                interval = (value - 0.02, value + 0.02)
                return MetricRecord(name=name, kind=kind, value=value, interval=interval, **place, **more)

            truncated, full = 3.0 + 0.04 * n, 2.95
            nll = truncated - 0.005 * n - 0.003 * shift
            beside = {"full": full, "truncated": truncated, "shuffled": truncated + 0.03, "mean": truncated + 0.4}
            found.append(record("long_context_nll", nll, baselines=beside))
            if n:
                shares = {name: (truncated - value) / (truncated - full) for name, value in beside.items()}
                found.append(record("long_context_recovered", (truncated - nll) / (truncated - full), baselines=shares))
            for extra, kind in enumerate(("", "names", "repeated")):
                found.append(record("long_context_below_truncated", truncated - nll + 0.01 * extra, kind))
            asked = {"positions": positions, "n_spans": 24, "n_documents": 24, "tokens_per_vector": budget}
            answers = {"full": 0.96, "truncated": 0.25, "chance": 0.25}
            found.append(
                MetricRecord(
                    name="retrieval_accuracy", domain="synthetic", value=0.3 + 0.01 * shift, baselines=answers, **asked
                )
            )
    questions = {"positions": "end", "n_spans": 40, "n_documents": 8, "tokens_per_vector": 8}
    beside = {"full": 0.31, "no_context": 0.24, "chance": 0.25}
    return [
        *found,
        MetricRecord(
            name="multiple_choice_accuracy", domain="multiple choice", value=0.275, baselines=beside, **questions
        ),
    ]


def _pairs(kind: str, value: float) -> MetricRecord:
    return MetricRecord(
        name="pair_accuracy",
        domain="adversarial",
        positions="end",
        kind=kind,
        value=value,
        interval=(value - 0.06, value + 0.06),
        n_spans=64,
        n_documents=32,
        baselines={"full": 0.97, "drop": 0.5, "last_token": 0.58},
    )


def prose(seed: int, document: int, spans: int = 9) -> list[str]:
    """Tokens of a document of random words, with a few more than its spans need."""
    draw = random.Random(100 * seed + document)
    return [f" {word}" for word in draw.choices(WORDS.split(), k=SPAN * spans + 14)]


def predictions(draw: random.Random) -> list[Prediction]:
    """Three next tokens, likeliest first."""
    words = draw.sample(WORDS.split(), 3)
    return [Prediction(text=f" {word}", probability=0.6 / 3**n) for n, word in enumerate(words)]


def span_map(seed: int, documents: Sequence[Sequence[str]]) -> SpanMap:
    """A span map of documents given as tokens: the first four tokens and the last few are in no span."""
    draw = random.Random(seed)
    sizes = [(len(tokens) - 4) // SPAN for tokens in documents]
    everywhere = [(d, s) for d, size in enumerate(sizes) for s in range(size)]
    mapped = [
        MappedDocument(
            id=f"library/document-{d}",
            source="fixture",
            domain=("narrative", "code")[d % 2],
            tokens=list(tokens),
            spans=[_span(draw, s, [place for place in everywhere if place != (d, s)][:40]) for s in range(size)],
        )
        for d, (tokens, size) in enumerate(zip(documents, sizes, strict=True))
    ]
    distribution: dict[str, dict[str, list[float]]] = {}
    for document in mapped:
        of_domain = distribution.setdefault(document.domain, {name: [] for name in STAND_INS})
        for span in document.spans:
            for name in STAND_INS:
                of_domain[name].append(span.delta_nll[name])
    return SpanMap(positions="end", horizon=HORIZON, span_tokens=SPAN, documents=mapped, distribution=distribution)


def _span(draw: random.Random, index: int, others: Sequence[tuple[int, int]]) -> MappedSpan:
    hardness = draw.lognormvariate(-0.2, 0.7)
    by_offset = {
        name: [hardness * COST[name] * 6 / (3 + n) + draw.gauss(-0.25, 0.5) for n in range(HORIZON)]
        for name in STAND_INS
    }
    mean = {name: sum(values) / HORIZON for name, values in by_offset.items()}
    attention = [[draw.expovariate(1) ** power for _ in range(SPAN)] for power in (1, 3)]
    near = sorted(draw.sample(others, min(4, len(others))), key=lambda _: draw.random())
    return MappedSpan(
        start=4 + index * SPAN,
        kl={name: abs(value) + 0.05 for name, value in mean.items()},
        delta_nll=mean,
        delta_nll_by_offset=by_offset,
        next_tokens={name: predictions(draw) for name in ("full", "gist", "drop")},
        attention=tuple([share / sum(shares) for share in shares] for shares in attention),
        gist_norm=draw.uniform(2.4, 3.2),
        nearest=[Neighbour(document=d, span=s, cosine=0.9 - 0.1 * n) for n, (d, s) in enumerate(near)],
    )
