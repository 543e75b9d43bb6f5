"""The one vector that best stands for a span: optimised for it alone, on continuations sampled from the teacher."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gistnet.data.sampling import SpanLayout
from gistnet.errors import DataError
from gistnet.evaluation.config import BoundConfig
from gistnet.evaluation.held_out import HeldOutWindow
from gistnet.files import storage_errors, write_bytes
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_losses


def find_vectors(
    teacher: Teacher,
    windows: Sequence[HeldOutWindow],
    layout: SpanLayout,
    config: BoundConfig,
    *,
    positions: Positions,
    seed: int = 0,
) -> Tensor:
    """The optimised vector of the only span of each window, `[windows, dim]`: from `config.vectors`, or found now.

    Raises:
        DataError: `config.vectors` is not a file of such vectors.
        StorageError: it cannot be written.
    """
    kept = {} if config.vectors is None else read_vectors(config.vectors, teacher.hidden_size)
    found = []
    for window in windows:
        name = _vector_name(teacher, window, layout, config, positions, seed)
        if name not in kept:
            generator = span_generator(window, seed)
            vector = optimised_vector(
                teacher, context_of(window), layout, config, positions=positions, generator=generator
            )
            kept[name] = vector.cpu()
            if config.vectors is not None:
                write_bytes(config.vectors, save(kept))
        found.append(kept[name].to(teacher.device))
    return torch.stack(found)


def read_vectors(path: Path, dim: int) -> dict[str, Tensor]:
    """The vectors that a file keeps, `[dim]` each, by the name of what they were found for; none where it is missing.

    Raises:
        DataError: it is no safetensors file, or its vectors are of another size.
        StorageError: it cannot be read.
    """
    with storage_errors("read", path):
        data = path.read_bytes() if path.exists() else save({})
    try:
        vectors = load(data)
    except SafetensorError as error:
        raise DataError(f"{path} is no file of optimised vectors ({error}); expected one in safetensors.") from error
    for vector in vectors.values():
        if vector.shape != (dim,):
            raise DataError(f"{path} holds vectors {list(vector.shape)}, expected [{dim}], as the embeddings.")
    return vectors


def _vector_name(
    teacher: Teacher, window: HeldOutWindow, layout: SpanLayout, config: BoundConfig, positions: Positions, seed: int
) -> str:
    """A digest of all that decides which vector is found."""
    told = [
        teacher.fingerprint.config_hash,
        teacher.fingerprint.weights_hash,
        str(teacher.dtype),
        context_of(window).tolist(),
        layout.span_tokens,
        layout.horizon_tokens,
        positions,
        _place(window, seed),
        config.how(),
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def context_of(window: HeldOutWindow) -> Tensor:
    """The window's tokens up to the end of its only span, `[s + K]`: all that the optimisation may see."""
    segments = window.segments
    return segments.tokens[0, : int(segments.starts[0] + segments.replaced_tokens[0])]


def span_generator(window: HeldOutWindow, seed: int) -> torch.Generator:
    """Random numbers of a span's own, which do not depend on what other spans are chosen."""
    digest = hashlib.sha256(_place(window, seed).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def _place(window: HeldOutWindow, seed: int) -> str:
    return f"{seed}:{window.info.key}:{window.info.offset}:{int(window.segments.starts[0])}"


@torch.no_grad()
def sample_continuations(
    teacher: Teacher, context: Tensor, count: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the teacher says after a context `[n]`, drawn at temperature 1, through transformers' own cache.

    Returns:
        token ids `[count, length]`, and the hidden states that predict them, `[count, length, dim]`.
    """
    output = teacher.model.base_model(input_ids=context[None], use_cache=True)
    cache = output.past_key_values
    cache.batch_repeat_interleave(count)
    states = [output.last_hidden_state[:, -1:].expand(count, -1, -1)]
    tokens: list[Tensor] = []
    while True:
        likely = teacher.logits(states[-1][:, 0]).float().softmax(dim=-1)
        tokens.append(torch.multinomial(likely.cpu(), 1, generator=generator).to(context.device))
        if len(tokens) == length:
            return torch.cat(tokens, dim=1), torch.cat(states, dim=1)
        output = teacher.model.base_model(input_ids=tokens[-1], past_key_values=cache, use_cache=True)
        states.append(output.last_hidden_state)


def optimised_vector(
    teacher: Teacher,
    context: Tensor,
    layout: SpanLayout,
    config: BoundConfig,
    *,
    positions: Positions,
    generator: torch.Generator,
) -> Tensor:
    """The vector, `[dim]`, that best stands for the last K tokens of a context `[n]` in what the teacher says next.

    It begins as the last token's embedding, or as its state behind two thirds of the teacher's layers, whichever is
    better, and the mean KL on sampled continuations is minimised by Adam; a few more continuations, which no step sees,
    choose where to begin and among the vectors on the way.
    """
    count = config.samples + config.samples_to_judge
    tokens, original = sample_continuations(teacher, context, count, layout.horizon_tokens, generator)
    start = len(context) - layout.span_tokens
    states = teacher.prefill(context[None], hidden_state_layer=teacher.late_layers).states
    read = teacher.prefill(context[None, :start])

    def kl(vector: Tensor, rows: Tensor) -> Tensor:
        segments = SegmentBatch(
            tokens=torch.cat([context, tokens[0]])[None],
            windows=torch.zeros_like(rows),
            starts=torch.full_like(rows, start),
            span_tokens=layout.span_tokens,
            gists=1,
            horizon=layout.horizon_tokens,
        )
        replacements = gist_replacements(segments, vector.expand(len(rows), 1, -1), positions)
        hidden = replaced_hidden(teacher, read, segments, replacements, tokens=tokens[rows])
        return token_losses(teacher, original[rows], hidden, tokens[rows]).kl.mean()

    everything = torch.arange(count, device=context.device)
    judges, order = (
        everything[config.samples :],
        everything[: config.samples].repeat(-(-config.steps * config.samples_per_step // config.samples)),
    )

    wide = torch.promote_types(teacher.dtype, torch.float32)
    beginnings = [teacher.embed(context[-1]).to(wide), states[0, -1].to(wide)]  # type: ignore[index]
    with torch.no_grad():
        vector = min(beginnings, key=lambda vector: float(kl(vector, judges))).clone().requires_grad_()
    typical = float(vector.detach().square().mean().sqrt())
    optimiser = torch.optim.Adam([vector], lr=config.learning_rate * typical)
    best, least = vector.detach().clone(), math.inf
    for step in range(config.steps + 1):
        if step % config.judge_every_steps == 0 or step == config.steps:
            with torch.no_grad():
                cost = float(kl(vector, judges))
            if cost < least:
                best, least = vector.detach().clone(), cost
        if step < config.steps:
            decay = (1 + math.cos(math.pi * step / config.steps)) / 2
            optimiser.param_groups[0]["lr"] = config.learning_rate * typical * decay
            optimiser.zero_grad()
            kl(vector, order[step * config.samples_per_step :][: config.samples_per_step]).backward()
            optimiser.step()
    return best
