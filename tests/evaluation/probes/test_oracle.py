"""The optimised vector: sampled from the right context, blind to the truth, and better than where it began."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gistnet.config import load_config
from gistnet.data.sampling import SpanLayout, WindowSample, fixed_windows
from gistnet.errors import DataError, StorageError
from gistnet.evaluation import baselines
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.probes.oracle import (
    Search,
    choose_spans,
    context_of,
    find_vectors,
    optimised_vector,
    oracle_records,
    read_vectors,
    sample_continuations,
    span_generator,
)
from gistnet.objective.branches import SegmentBatch, gist_replacements
from gistnet.objective.losses import token_losses
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden
from gistnet.session import open_run
from tests.teachers import FAMILIES, tiny_teacher

LAYOUT = SpanLayout((8,), horizon_tokens=6)
SEARCH = Search(samples=16, samples_to_judge=8, samples_per_step=8, steps=40, learning_rate=0.05, judge_every_steps=8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context(length: int = 30) -> torch.Tensor:
    return torch.randint(3, 97, (length,), generator=seeded(9))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_continuations_are_drawn_from_plain_forwards_of_the_whole_context(family):
    teacher = tiny_teacher(family)
    tokens, hidden = sample_continuations(teacher, context(), 3, 5, seeded(1))
    expected, draw = context().expand(3, -1), seeded(1)
    for _ in range(5):
        p = teacher.model(expected, use_cache=False).logits[:, -1].softmax(-1)
        expected = torch.cat([expected, torch.multinomial(p.float(), 1, generator=draw)], dim=1)
    assert torch.equal(tokens, expected[:, 30:])
    plain = teacher.model(expected, use_cache=False).logits[:, 29:-1]
    torch.testing.assert_close(teacher.logits(hidden), plain)


def written_out_kl(teacher, vector, tokens) -> float:
    """KL on continuations of the context, `[samples, H]`, by two plain forwards each."""
    total = 0.0
    for sample in tokens:
        window = torch.cat([context(), sample])[None]
        segments = SegmentBatch(window, torch.tensor([0]), torch.tensor([22]), span_tokens=8, n_spans=1, horizon=6)
        replacements = gist_replacements(segments, vector.view(1, 1, -1), "center")
        log_p = teacher.logits(reference_original_hidden(teacher, segments, 0)).log_softmax(-1)
        log_q = teacher.logits(reference_replaced_hidden(teacher, segments, replacements, 0)).log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return total / len(tokens)


@torch.no_grad()
def test_the_vector_is_better_than_the_last_token_on_continuations_it_never_saw():
    teacher = tiny_teacher("llama")
    search = SEARCH._replace(samples=64, samples_to_judge=32, samples_per_step=16, steps=60)
    with torch.enable_grad():
        vector = optimised_vector(teacher, context(), LAYOUT, search, positions="center", generator=seeded(2))
    fresh, _ = sample_continuations(teacher, context(), 48, 6, seeded(77))
    last = teacher.embed(context()[-1])
    assert written_out_kl(teacher, vector, fresh) < 0.9 * written_out_kl(teacher, last, fresh)


def test_steps_that_lead_astray_are_not_kept():
    teacher = tiny_teacher("llama")
    search = SEARCH._replace(learning_rate=1e4, steps=6)
    vector = optimised_vector(teacher, context(), LAYOUT, search, positions="end", generator=seeded(2))
    assert torch.equal(vector, teacher.embed(context()[-1]))


def test_continuations_that_no_step_saw_choose_the_vector(monkeypatch):
    """Continuations made up: those to optimise on follow from the last token's embedding, those to judge by from its
    state. On the former the embedding is perfect, and steps away from the state are better; the state is kept.
    """
    teacher = tiny_teacher("llama")
    states = teacher.prefill(context()[None], hidden_state_layer=teacher.late_layers).states
    embedding, state = teacher.embed(context()[-1]), states[0, -1]

    def made_up(teacher, context, count, length, generator):
        tokens = torch.randint(3, 97, (count, length), generator=generator)
        rows = torch.arange(count)
        window = torch.cat([context.expand(count, -1), tokens], dim=1)
        segments = SegmentBatch(window, rows, torch.full((count,), 22), span_tokens=8, n_spans=1, horizon=length)
        vectors = torch.where((rows < SEARCH.samples)[:, None], embedding, state)[:, None]
        replacements = gist_replacements(segments, vectors, "end")
        return tokens, torch.stack([reference_replaced_hidden(teacher, segments, replacements, row) for row in rows])

    monkeypatch.setattr("gistnet.evaluation.probes.oracle.sample_continuations", made_up)
    vector = optimised_vector(teacher, context(), LAYOUT, SEARCH, positions="end", generator=seeded(2))
    assert torch.equal(vector, state)


def test_steps_read_the_continuations_in_turn_and_become_smaller(monkeypatch):
    """Two steps for all of sixteen, and a third that begins again; cos of 0, π/3 and 2π/3."""
    read, rates = [], []

    def reading(teacher, original, hidden, targets):
        if torch.is_grad_enabled():
            read.append(targets)
        return token_losses(teacher, original, hidden, targets)

    class Adam(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr("gistnet.evaluation.probes.oracle.token_losses", reading)
    monkeypatch.setattr("torch.optim.Adam", Adam)
    teacher, search = tiny_teacher("llama"), SEARCH._replace(steps=3)
    optimised_vector(teacher, context(), LAYOUT, search, positions="end", generator=seeded(2))
    tokens, _ = sample_continuations(teacher, context(), 24, 6, seeded(2))
    assert torch.equal(torch.cat(read), tokens[[*range(16), *range(8)]])
    assert [rate / rates[0] for rate in rates] == pytest.approx([1, 0.75, 0.25])


@pytest.fixture
def run(config_file):
    return open_run(load_config(config_file, ["teacher.precision=float64"]))


def samples_of(run) -> list[WindowSample]:
    return fixed_windows(run.dataset, run.stages[0].layout, documents=4, segments_per_window=2, seed=0)


def test_the_true_continuation_changes_nothing_in_the_vector(run):
    held_out = HeldOut(
        run.teacher, run.dataset, choose_spans(run.dataset, samples_of(run), 2), run.stages[0].layout, cache_gigabytes=0
    )
    window = held_out.windows[0]

    def vector() -> torch.Tensor:
        generator = span_generator(window, seed=0)
        return optimised_vector(
            run.teacher, context_of(window), run.stages[0].layout, SEARCH, positions="center", generator=generator
        )

    first = vector()
    end = int(window.segments.starts[0] + window.segments.replaced_tokens[0])
    assert torch.equal(context_of(window)[-8:], window.segments.replaced[0])
    window.segments.tokens[0, end:] = 7
    assert torch.equal(vector(), first)
    window.segments.tokens[0, end - 1] = 7
    assert not torch.equal(vector(), first)


def test_the_records_hold_oracle_gist_and_baselines_of_the_same_spans(run):
    torch.nn.init.normal_(run.gistnet.w_out.weight, generator=seeded(0))
    records = oracle_records(
        run.teacher,
        run.gistnet,
        run.dataset,
        samples_of(run),
        run.stages[0].layout,
        spans=3,
        search=SEARCH,
        positions="center",
        resamples=100,
    )
    assert [(r.name, r.offsets) for r in records] == [
        (name, offsets)
        for offsets in ((1, 12), (1, 8), (9, 12))
        for name in ("oracle_kl", "oracle_recovered_kl", "share_of_oracle")
    ]
    chosen = HeldOut(
        run.teacher, run.dataset, choose_spans(run.dataset, samples_of(run), 3), run.stages[0].layout, cache_gigabytes=0
    )
    drop = chosen.measure({"drop": (baselines.drop, "end")})["drop"].kl
    for kl, recovered, share in zip(records[::3], records[1::3], records[2::3], strict=True):
        assert (kl.n_spans, kl.n_documents, kl.positions) == (3, 3, "center")
        assert kl.baselines.keys() == recovered.baselines.keys() == {"gist", "drop", "last_token"}
        assert recovered.value == pytest.approx(1 - kl.value / kl.baselines["drop"])
        assert recovered.baselines["gist"] == pytest.approx(1 - kl.baselines["gist"] / kl.baselines["drop"])
        assert share.value == pytest.approx(recovered.baselines["gist"] / recovered.value)
        assert share.baselines == {"last_token": pytest.approx(recovered.baselines["last_token"] / recovered.value)}
        assert share.interval[0] <= share.value <= share.interval[1]
        first, last = kl.offsets
        assert kl.baselines["drop"] == pytest.approx(drop[:, first - 1 : last].mean())
        assert kl.interval[0] <= kl.value <= kl.interval[1]
    assert records[0].value < records[0].baselines["last_token"]


def test_vectors_that_were_found_are_kept_and_not_looked_for_again(run, tmp_path, monkeypatch):
    search, file = SEARCH._replace(steps=3), tmp_path / "made" / "vectors.safetensors"
    layout = run.stages[0].layout
    windows = HeldOut(
        run.teacher, run.dataset, choose_spans(run.dataset, samples_of(run), 3), layout, cache_gigabytes=0
    ).windows
    looked_for = []

    def find(teacher, context, *arguments, **options):
        if len(looked_for) == 2:
            raise KeyboardInterrupt  # as if the third were never found
        looked_for.append(context)
        return optimised_vector(teacher, context, *arguments, **options)

    monkeypatch.setattr("gistnet.evaluation.probes.oracle.optimised_vector", find)
    with pytest.raises(KeyboardInterrupt):
        find_vectors(run.teacher, windows, layout, file, search, positions="end")
    looked_for.clear()
    found = find_vectors(run.teacher, windows, layout, file, search, positions="end")
    assert len(looked_for) == 1
    assert torch.equal(looked_for[0], context_of(windows[2]))
    again = find_vectors(run.teacher, windows[::-1], layout, file, search, positions="end")
    assert torch.equal(again, found.flip(0))
    assert len(looked_for) == 1
    monkeypatch.setattr("gistnet.evaluation.probes.oracle.optimised_vector", optimised_vector)
    assert torch.equal(find_vectors(run.teacher, windows, layout, None, search, positions="end"), found)
    assert not torch.equal(
        find_vectors(run.teacher, windows, layout, file, SEARCH._replace(steps=20), positions="end"), found
    )


def test_a_file_that_holds_no_such_vectors_is_refused(tmp_path):
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(DataError, match=r"vectors\.safetensors is no file of oracle vectors .*expected one in safet"):
        read_vectors(path, 32)
    save_file({"one": torch.zeros(16)}, path)
    with pytest.raises(DataError, match="holds"):
        read_vectors(path, 32)
    with pytest.raises(StorageError, match="Could not read"):
        read_vectors(tmp_path, 32)


class TwoDomains:
    """Windows 0 and 1 are prose, 2 is code."""

    def describe(self, window: int):
        return type("Info", (), {"domain": "code" if window == 2 else "prose"})


def test_spans_are_taken_from_domains_and_windows_in_turn():
    starts, compact = np.array([10, 20, 30]), np.zeros(3, dtype=bool)
    samples = [WindowSample(n, n, 0, starts, np.full(3, 2), compact) for n in range(3)]

    def chosen(count: int) -> list[tuple[int, int]]:
        return [(sample.window, *sample.starts.tolist()) for sample in choose_spans(TwoDomains(), samples, count)]

    assert chosen(2) == [(2, 10), (0, 10)]
    assert chosen(4) == [(2, 10), (0, 10), (1, 20), (2, 20)]
    assert sorted(chosen(99)) == [(window, start) for window in range(3) for start in (10, 20, 30)]
    with pytest.raises(DataError, match="no held-out spans"):
        choose_spans(TwoDomains(), [], 1)
