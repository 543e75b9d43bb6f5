"""A tiny teacher on disk, a small corpus, and configurations that train on them in seconds."""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

if not torch.cuda.is_available():
    # The GPU kernels run in Triton's interpreter; read when Triton is first imported, which transformers does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gistnet.cli import main

torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))

WORDS = ("the", "river", "stone", "walked", "seven", "quiet", "lantern", "over", "a", "bridge", "and", "never")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers over bytes, saved as safetensors with a tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["LlamaForCausalLM"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of random words, 200 to 500 bytes each."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "stories.jsonl"
    lines = [
        json.dumps({"id": f"story-{n}", "text": " ".join(draw.choices(WORDS, k=draw.randint(40, 80)))})
        for n in range(40)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tiny_config(tmp_path: Path, teacher_folder: Path, corpus_file: Path) -> dict[str, Any]:
    """A configuration, as YAML values, of a run of six steps; the network is float32 and all of it tiny."""
    return tiny_values(tmp_path, teacher_folder, corpus_file)


def tiny_values(folder: Path, teacher_folder: Path, corpus_file: Path) -> dict[str, Any]:
    """`tiny_config`, for a run in `folder`."""
    return {
        "run_folder": str(folder / "run"),
        "device": "cpu",
        "teacher": {"name": str(teacher_folder), "precision": "float32"},
        "data": {
            "folder": str(folder / "prepared"),
            "window_tokens": 96,
            "min_tokens": 64,
            "held_out_fraction": 0.3,
            "sources": [{"kind": "files", "name": "stories", "domain": "narrative", "paths": [str(corpus_file)]}],
        },
        "gistnet": {"architecture": "bottleneck", "width": 16, "heads": 2},
        "levels": [8],
        "objective": {"horizon_tokens": 12, "positions": "center"},
        "train": {
            "steps": 6,
            "windows_per_batch": 2,
            "accumulation_steps": 2,
            "segments_per_window": 3,
            "dropout": 0.1,
            "log_every_steps": 1,
            "checkpoint_every_steps": 2,
            "optimiser": {"learning_rate": 0.01, "warmup_steps": 2},
            "validation": {"every_steps": 3, "documents": 4, "segments_per_window": 2},
        },
        "evaluation": {
            "documents": 4,
            "segments_per_window": 2,
            "horizons": [12],
            "resamples": 100,
            "minimal_pairs": 0,
        },
    }


@pytest.fixture
def config_file(tmp_path: Path, tiny_config: dict[str, Any]) -> Path:
    """`tiny_config` as a file."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config), encoding="utf-8")
    return path


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def gistnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `gistnet …` in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["gistnet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Outcome(int(ended.value.code or 0), *capsys.readouterr())

    return run
