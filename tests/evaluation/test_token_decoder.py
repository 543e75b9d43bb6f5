"""The decoder on cases whose answers are known, and its estimate of a large softmax."""

import math

import pytest
import torch

from gistnet.evaluation.token_decoder import (
    DecoderConfig,
    TokenDecoder,
    candidates,
    decode,
    log_frequencies,
    train_decoder,
)

CONFIG = DecoderConfig(width=16, heads=2, steps=200, spans_per_step=32, learning_rate=1e-2, judge_every_steps=20)
VOCABULARY, PLACES = 11, 2


@pytest.fixture
def told():
    """Vectors that spell out two tokens, which are independent and all alike frequent; and embeddings."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (600, PLACES), generator=draw)
    vectors = torch.nn.functional.one_hot(tokens, VOCABULARY).flatten(1).float()
    table = torch.randn(VOCABULARY, PLACES * VOCABULARY, generator=draw)
    return vectors, tokens, table, torch.arange(600) % 10 == 0


def test_tokens_that_are_spelled_out_are_told_without_error(told):
    vectors, tokens, table, set_aside = told
    decoded = decode(train_decoder(vectors, tokens, set_aside, table, CONFIG, seed=0), vectors, tokens)
    assert decoded.correct.min() == 1
    assert decoded.cross_entropy.mean() < 0.02
    assert decoded.squared_error.mean() < 0.01
    assert decoded.correct.shape == (600, PLACES)


def test_vectors_of_other_spans_tell_no_more_than_chance(told):
    """Tokens are uniform: one in eleven is right, ln 11 nats are missing, and the best guess is the mean embedding."""
    vectors, tokens, table, set_aside = told
    others = vectors[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    decoder = train_decoder(others, tokens, set_aside, table, CONFIG, seed=0)
    fresh = torch.randint(VOCABULARY, (4000, PLACES), generator=torch.Generator().manual_seed(2))
    decoded = decode(decoder, vectors[torch.arange(4000) % 600], fresh)
    assert float(decoded.correct.mean()) == pytest.approx(1 / 11, abs=0.02)
    assert float(decoded.cross_entropy.mean()) == pytest.approx(math.log(11), abs=0.05)
    variance = float((table - table.mean(0)).square().mean())
    assert float(decoded.squared_error.mean()) == pytest.approx(variance, rel=0.05)


def test_training_is_the_same_every_time(told):
    vectors, tokens, table, set_aside = told
    config = CONFIG.model_copy(update={"steps": 5, "drawn_tokens": 3})
    first, second = (train_decoder(vectors, tokens, set_aside, table, config, seed=4) for _ in range(2))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_the_spans_set_aside_keep_a_training_that_makes_it_worse_from_counting(told):
    """Where what is trained on is the opposite of what is set aside, the untrained decoder is the best one."""
    vectors, tokens, table, set_aside = told
    tokens = torch.where(set_aside[:, None], tokens, (tokens + 1) % VOCABULARY)
    decoder = train_decoder(vectors, tokens, set_aside, table, CONFIG, seed=0)
    assert torch.equal(decoder(vectors), torch.zeros(600, PLACES, PLACES * VOCABULARY))


def test_an_untrained_decoder_gives_frequencies_and_their_mean_embedding():
    """Two tokens in equal number at (0, 0) and (2, 0): ln 2 nats, and (1, 0) is 1 off in one of two dimensions."""
    table = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    prior = torch.tensor([0.5, 0.5]).log()
    decoder = TokenDecoder(torch.randn(4, 2), table, prior, places=2, config=CONFIG)
    decoded = decode(decoder, torch.randn(5, 2), torch.tensor([[0, 1]] * 5))
    torch.testing.assert_close(decoded.cross_entropy, torch.full((5, 2), math.log(2)))
    torch.testing.assert_close(decoded.squared_error, torch.full((5, 2), 0.5))


def test_tokens_that_were_not_seen_share_what_those_seen_once_have():
    """Counts 3, 1, 1, 0: two seen once, so half a count for each of the four; 7 in all."""
    frequencies = log_frequencies(torch.tensor([[0, 0, 0], [1, 2, 0]])[:, :3].flatten()[:5], 4).exp()
    assert (frequencies * 7).tolist() == pytest.approx([3.5, 1.5, 1.5, 0.5])


def test_the_sum_over_candidates_is_right_in_expectation():
    draw = torch.Generator().manual_seed(3)
    prior, logits = torch.randn(50, generator=draw).log_softmax(0), torch.randn(50, generator=draw)
    targets = torch.tensor([[7, 9], [9, 20]])
    sums = []
    for _ in range(3000):
        tokens, correction, places = candidates(targets, prior, 10, draw)
        assert torch.equal(tokens[places], targets) and len(tokens) == 13
        sums.append(float((logits[tokens] + correction).exp().sum()))
    error = torch.tensor(sums).std() / len(sums) ** 0.5
    assert float(torch.tensor(sums).mean()) == pytest.approx(float(logits.exp().sum()), abs=4 * float(error))


def test_a_small_vocabulary_is_taken_whole():
    tokens, correction, places = candidates(torch.tensor([[2, 4]]), torch.zeros(6), 4, torch.Generator())
    assert (tokens.tolist(), correction.tolist(), places.tolist()) == ([0, 1, 2, 3, 4, 5], [0.0] * 6, [[2, 4]])
