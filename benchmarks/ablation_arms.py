"""What the ablations compare: arms by the question they answer, each a change from the default arm.

To add an arm, add a line: its name, and the settings of the command line that make it. One that turns out to be the
default under another name, or another arm, is trained once and shown under both names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gistnet.errors import ConfigError

DEFAULT = "default"
"""The arm without any change, which all others are compared with."""

TOKEN = ["gistnet.anchor=token", "gistnet.gist_scale=1"]
"""What an architecture that has none of the teacher's layers begins with: the span's last token."""
FULL = ["gistnet.architecture=full", *TOKEN]
BOTTLENECK = ["gistnet.architecture=bottleneck", *TOKEN]
LORA = "gistnet.architecture=teacher_lora"
LAYERS, TOKEN_LAYERS = "gistnet.teacher_layers", "gistnet.token_layers"
LEARNING_RATE = "train.optimiser.learning_rate"
MUON = "train.optimiser.kind=muon"
RUNS = "train.runs.lengths"


@dataclass(frozen=True)
class Group:
    """Arms that answer one question.

    Attributes:
        question: what a reader wants to know.
        arms: name → settings that differ from the default.
    """

    question: str
    arms: dict[str, list[str]]


GROUPS = {
    "architecture": Group(
        "Which architecture, and how much of the teacher in it?",
        {
            "full": FULL,
            "bottleneck": BOTTLENECK,
            **{f"lora-{n}-layers": [LORA, f"{LAYERS}={n}", f"{TOKEN_LAYERS}={n}"] for n in (2, 4, 5, 6, 12, 20)},
            **{f"lora-4-then-{n}": [LORA, f"{LAYERS}={n}", f"{TOKEN_LAYERS}=4"] for n in (8, 12, 20)},
            "lora-2-then-16": [LORA, f"{LAYERS}=16", f"{TOKEN_LAYERS}=2"],
            "lora-both-ways": [LORA, "gistnet.attention=bidirectional"],
            "lora-rank-4": [LORA, "gistnet.lora_rank=4"],
            "lora-rank-8": [LORA, "gistnet.lora_rank=8"],
            "lora-rank-16": [LORA, "gistnet.lora_rank=16"],
        },
    ),
    "input": Group(
        "Should a gist be made of its span alone, or of what the teacher made of it where it stands?",
        {f"context-{n}": [LORA, "gistnet.reads=context", f"{LAYERS}={n}"] for n in (16, 20, 24)},
    ),
    "anchor": Group(
        "What should a gist be before training, and how long?",
        {
            "token-1": [f"{LAYERS}=4", *TOKEN],
            "token-10": [f"{LAYERS}=4", "gistnet.anchor=token", "gistnet.gist_scale=10"],
            "state-10": ["gistnet.gist_scale=10"],
            "state-30": ["gistnet.gist_scale=30"],
            "state-300": ["gistnet.gist_scale=300"],
        },
    ),
    "states": Group(
        "Should the gist also resemble the original state of its span's last token, and behind which layer?",
        {
            "states-0": ["objective.state_weight=0"],
            "states-0.3": ["objective.state_weight=0.3"],
            "states-1": ["objective.state_weight=1"],
            "states-1-16-layers": ["objective.state_weight=1", "objective.state_layers=16"],
        },
    ),
    "width": Group(
        "How wide must a narrow network be?",
        {
            "width-64": [*BOTTLENECK, "gistnet.width=64"],
            "width-96": [*BOTTLENECK, "gistnet.width=96"],
            "width-192": [*BOTTLENECK, "gistnet.width=192"],
            "width-384": [*BOTTLENECK, "gistnet.width=384"],
        },
    ),
    "depth": Group(
        "How many self-attention blocks in each of the two stages?",
        {
            "1-block": [*FULL, "gistnet.blocks_per_stage=1"],
            "2-blocks": [*FULL, "gistnet.blocks_per_stage=2"],
            "3-blocks": [*FULL, "gistnet.blocks_per_stage=3"],
        },
    ),
    "learning-rate": Group(
        "How large a step? (The spec has 1e-4.)",
        {
            "lr-1e-4": [f"{LEARNING_RATE}=1.0e-4"],
            "lr-3e-4": [f"{LEARNING_RATE}=3.0e-4"],
            "lr-6e-4": [f"{LEARNING_RATE}=6.0e-4"],
            "lr-1e-3": [f"{LEARNING_RATE}=1.0e-3"],
            "lr-3e-3": [f"{LEARNING_RATE}=3.0e-3"],
        },
    ),
    "optimiser": Group(
        "AdamW, or Muon for the matrices?",
        {
            "muon": [MUON],
            "muon-lr-1e-3": [MUON, f"{LEARNING_RATE}=1.0e-3"],
            "muon-lr-6e-3": [MUON, f"{LEARNING_RATE}=6.0e-3"],
        },
    ),
    "batch": Group(
        "How many spans in a step, 8 from each window?",
        {
            f"batch-{8 * windows}": [
                f"train.windows_per_batch={windows}",
                "train.accumulation_steps=1",
                "train.spans_per_window=8",
            ]
            for windows in (2, 4, 8, 16)
        },
    ),
    "schedule": Group(
        "Does the rate need a warm-up (of 5 % of the steps), and must it come down?",
        {
            "no-warm-up": ["train.optimiser.warmup_steps=0"],
            "constant-rate": ["train.optimiser.final_learning_rate=2.0e-3"],
        },
    ),
    "loss": Group(
        "What should the gist be good for: the teacher's distribution, the true token, repeating the span, or above "
        "all the tokens that the span matters for?",
        {
            "kl": ["objective.loss=kl"],
            "delta-nll": ["objective.loss=delta_nll"],
            "mixed": ["objective.loss=mixed"],
            "drop-weight-0.5": ["objective.drop_weight=0.5"],
            "drop-weight-1": ["objective.drop_weight=1"],
            "reconstruction-0": ["objective.reconstruction_weight=0"],
            "reconstruction-0.1": ["objective.reconstruction_weight=0.1"],
            "reconstruction-0.2": ["objective.reconstruction_weight=0.2"],
        },
    ),
    "horizon": Group(
        "How far ahead should training look? All are judged at 32 tokens.",
        {f"horizon-{tokens}": [f"objective.horizon_tokens={tokens}"] for tokens in (16, 32, 64)},
    ),
    "runs": Group(
        "Does it help, or harm, to replace several spans in a row? All are judged with one.",
        {
            "runs-1": [f"{RUNS}={{1: 1.0}}"],
            "runs-1-2-4": [f"{RUNS}={{1: 0.75, 2: 0.15, 4: 0.1}}"],
            "runs-1-2-4-even": [f"{RUNS}={{1: 0.34, 2: 0.33, 4: 0.33}}"],
        },
    ),
    "positions": Group(
        "Where among the positions of the context should the gist stand?",
        {policy: [f"objective.positions={policy}"] for policy in ("center", "end", "compact")},
    ),
    "span": Group(
        "What does it cost to let one vector stand for more tokens?",
        {f"k-{tokens}": [f"gistnet.span_tokens={tokens}"] for tokens in (8, 16, 32, 64)},
    ),
}


def all_arms() -> dict[str, list[str]]:
    """Every arm's settings by its name, the default first."""
    return {DEFAULT: []} | {name: settings for group in GROUPS.values() for name, settings in group.arms.items()}


def chosen_arms(groups: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """The default, the arms of some groups, and some arms by name; all there are where nothing is asked for.

    Raises:
        ConfigError: there is no such group or arm.
    """
    if unknown := [name for name in groups if name not in GROUPS]:
        raise ConfigError(f"Got the group '{unknown[0]}', expected one of {', '.join(GROUPS)}.")
    known = all_arms()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"Got the arm '{unknown[0]}', expected one of {', '.join(known)}.")
    wanted = {DEFAULT, *names, *(name for group in groups for name in GROUPS[group].arms)}
    return {name: settings for name, settings in known.items() if name in wanted or not (groups or names)}
