"""Masking: rates within binomial bounds, and a fate that depends on seed, epoch, document and position alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from recipe.data.masking import Masker, RateSchedule, _uniform
from recipe.data.words import Words

VOCABULARY, MASK_ID, SPECIALS = 30_522, 103, [0, 100, 101, 102, 103]
ORDINARY = np.setdiff1d(np.arange(VOCABULARY), SPECIALS)
SIGMAS = 5  # a fair draw is outside once in 1.7 million times; the draws are fixed by the seed


def a_stream(documents: int, seed: int = 3) -> dict[str, np.ndarray]:
    """Documents of 2 to 128 tokens between [CLS] and [SEP], ids and document numbers scattered."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(2, 129, documents)
    lengths[:4] = 2, 128, 2, 3
    ends = lengths.cumsum()
    special = np.zeros(ends[-1], dtype=bool)
    special[ends - lengths] = special[ends - 1] = True
    ids = draw.choice(ORDINARY, len(special))
    ids[ends - lengths], ids[ends - 1] = 101, 102
    numbers = draw.permutation(10 * documents)[:documents]
    positions = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)
    return {"input_ids": ids, "special": special, "documents": np.repeat(numbers, lengths), "positions": positions}


def within_binomial(count: int, trials: int, share: float) -> bool:
    return abs(count - trials * share) <= SIGMAS * math.sqrt(trials * share * (1 - share))


def a_masker(rate: float = 0.3, seed: int = 17) -> Masker:
    return Masker(rate, MASK_ID, ORDINARY, seed)


@pytest.mark.parametrize("rate", [0.15, 0.30, 0.01, 0.99])
@pytest.mark.parametrize("seed", [0, 17, 2**63])
def test_rate_and_shares(rate, seed):
    stream = a_stream(8_000)
    masked, chosen, labels = a_masker(rate, seed)(**stream, epoch=5)
    assert within_binomial(len(chosen), int((~stream["special"]).sum()), rate)
    assert (np.diff(chosen) > 0).all()
    assert not stream["special"][chosen].any()
    np.testing.assert_array_equal(labels, stream["input_ids"][chosen])
    untouched = np.setdiff1d(np.arange(len(masked)), chosen)
    np.testing.assert_array_equal(masked[untouched], stream["input_ids"][untouched])
    now = masked[chosen]
    as_mask, kept = int((now == MASK_ID).sum()), int((now == labels).sum())
    assert within_binomial(as_mask, len(chosen), 0.8)
    # a random token is, once in a vocabulary, the one that stood there
    assert within_binomial(kept, len(chosen), 0.1 + 0.1 / len(ORDINARY))
    assert not np.isin(now[now != MASK_ID], SPECIALS).any()


def test_the_rate_does_not_depend_on_the_position():
    """Each place of a document is chosen at the same rate, the first and the last ones too."""
    length, documents = 128, 20_000
    positions = np.tile(np.arange(length), documents)
    numbers = np.repeat(np.arange(documents), length)
    special = np.isin(positions, [0, length - 1])
    _, chosen, _ = a_masker(0.3)(np.full(len(positions), 5_000), special, numbers, positions, epoch=0)
    counts = np.bincount(positions[chosen], minlength=length)[1:-1]
    deviation = (counts - documents * 0.3) / math.sqrt(documents * 0.3 * 0.7)
    assert np.abs(deviation).max() < SIGMAS
    assert stats.chi2.sf((deviation**2).sum(), len(deviation)) > 1e-4
    # neighbours are chosen independently: the share of chosen pairs is the square of the rate
    is_chosen = np.zeros(len(positions), dtype=bool)
    is_chosen[chosen] = True
    of_documents = is_chosen.reshape(documents, length)[:, 1:-1]
    pairs = of_documents[:, 1:] & of_documents[:, :-1]
    # a pair shares a token with the next one, which widens the binomial bound less than twofold
    assert abs(pairs.mean() - 0.09) < 2 * SIGMAS * math.sqrt(0.09 * 0.91 / pairs.size)


def test_random_replacements_are_uniform():
    """Over a vocabulary of few ordinary tokens, each is drawn as often as any other, to the last one."""
    ordinary = np.array([7, 11, 12, 40, 63])
    stream = a_stream(8_000)
    stream["input_ids"] = np.full_like(stream["input_ids"], 50)
    masked, chosen, _ = Masker(0.5, 1, ordinary, seed=1)(**stream, epoch=0)
    replaced = masked[chosen][~np.isin(masked[chosen], [1, 50])]
    assert stats.chisquare(np.bincount(np.searchsorted(ordinary, replaced), minlength=5)).pvalue > 1e-4
    assert set(replaced) == set(ordinary)


def test_input_is_not_written_to():
    stream = a_stream(50)
    before = {name: values.copy() for name, values in stream.items()}
    for values in stream.values():
        values.flags.writeable = False
    masked, _, _ = a_masker()(**stream, epoch=0)
    assert not np.shares_memory(masked, stream["input_ids"])
    for name, values in stream.items():
        np.testing.assert_array_equal(values, before[name])


def test_order_of_the_batch_does_not_matter():
    stream = a_stream(300)
    starts = np.flatnonzero(stream["positions"] == 0)
    rows = np.split(np.arange(len(stream["positions"])), starts[1:])
    order = np.concatenate([rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    masked, chosen, labels = a_masker()(**stream, epoch=2)
    masked_2, chosen_2, labels_2 = a_masker()(**{name: values[order] for name, values in stream.items()}, epoch=2)
    np.testing.assert_array_equal(masked[order], masked_2)
    back = order[chosen_2]
    np.testing.assert_array_equal(np.sort(back), chosen)
    np.testing.assert_array_equal(labels_2[np.argsort(back)], labels)


def test_a_document_alone_has_the_mask_that_it_has_in_company():
    stream = a_stream(40)
    masked, _, _ = a_masker()(**stream, epoch=1)
    for number in np.unique(stream["documents"]):
        own = stream["documents"] == number
        alone, _, _ = a_masker()(**{name: values[own] for name, values in stream.items()}, epoch=1)
        np.testing.assert_array_equal(alone, masked[own])


def test_what_stands_there_does_not_decide_what_is_chosen():
    stream = a_stream(100)
    _, chosen, _ = a_masker()(**stream, epoch=0)
    stream["input_ids"] = stream["input_ids"][::-1].copy()
    _, chosen_2, _ = a_masker()(**stream, epoch=0)
    np.testing.assert_array_equal(chosen, chosen_2)


@pytest.mark.parametrize(
    ("first", "second"),
    [((17, 0), (17, 1)), ((17, 0), (18, 0)), ((0, 1), (1, 0)), ((3, 2), (2, 3)), ((17, 0), (2**40 + 17, 0))],
    ids=["epoch", "seed", "swapped", "swapped again", "high bits of the seed"],
)
def test_other_seeds_and_epochs_are_independent(first, second):
    stream = a_stream(4_000)
    ordinary = int((~stream["special"]).sum())
    (_, chosen, _), (_, chosen_2, _) = (a_masker(0.3, seed)(**stream, epoch=epoch) for seed, epoch in (first, second))
    assert within_binomial(len(np.intersect1d(chosen, chosen_2)), ordinary, 0.09)
    _, again, _ = a_masker(0.3, first[0])(**stream, epoch=first[1])
    np.testing.assert_array_equal(chosen, again)


@pytest.mark.parametrize("shape", [(0,), (1,), (2,)])
def test_nothing_to_mask(shape):
    """An empty stream, or one of special tokens alone."""
    zeros = np.zeros(shape, dtype=np.int64)
    masked, chosen, labels = a_masker(0.999)(zeros, np.ones(shape, dtype=bool), zeros, zeros, 0)
    np.testing.assert_array_equal(masked, zeros)
    assert len(chosen) == len(labels) == 0


def test_no_warnings_of_overflow():
    stream = a_stream(10)
    with np.errstate(all="raise"):
        a_masker(seed=2**64 - 1)(**stream, epoch=2**31)


@pytest.mark.parametrize("start", [0, 2**63 - 50_000, 2**40])
def test_counters_become_uniform_numbers(start):
    """Consecutive counters, the hash's hardest input: each lane is uniform, bit for bit, and lanes are uncorrelated."""
    key = np.arange(200_000, dtype=np.uint64) + np.uint64(start)
    lanes = [_uniform(key, lane) for lane in (1, 2, 3)]
    for values in lanes:
        assert values.dtype == np.float64 and values.min() >= 0 and values.max() < 1
        assert stats.chisquare(np.bincount((values * 256).astype(int), minlength=256)).pvalue > 1e-4
        low_bits = (values * 2.0**53).astype(np.uint64) & np.uint64(255)
        assert stats.chisquare(np.bincount(low_bits.astype(int), minlength=256)).pvalue > 1e-4
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < SIGMAS / math.sqrt(len(key))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(lanes[a], lanes[b])[0, 1]) < SIGMAS / math.sqrt(len(key))
        cells = np.bincount((lanes[a] * 16).astype(int) * 16 + (lanes[b] * 16).astype(int), minlength=256)
        assert stats.chisquare(cells).pvalue > 1e-4


def words_of(stream: dict[str, np.ndarray]) -> tuple[Words, np.ndarray]:
    """Of ids that continue a word from 20,000 on, and the number of the word that each token belongs to."""
    continues = np.zeros(2**16, dtype=bool)
    continues[20_000:] = True
    begins = stream["special"] | ~continues[stream["input_ids"]]
    first = continues.astype(np.uint8)  # two kinds: what begins a word wherever it stands, and what never does
    return Words(first, np.zeros_like(first), np.array([[True, False]])), np.cumsum(begins)


@pytest.mark.parametrize("rate", [0.15, 0.30, 0.6])
def test_words_are_masked_whole(rate):
    stream = a_stream(8_000)
    words, word = words_of(stream)
    masker = Masker(rate, MASK_ID, ORDINARY, 17, "word", words)
    _, chosen, labels = masker(**stream, epoch=0)
    np.testing.assert_array_equal(labels, stream["input_ids"][chosen])
    assert not stream["special"][chosen].any()
    ordinary = ~stream["special"]
    picked, all_of = (
        np.bincount(word[chosen], minlength=word[-1] + 1),
        np.bincount(word[ordinary], minlength=word[-1] + 1),
    )
    assert set(np.unique(picked[picked > 0] == all_of[picked > 0])) == {True}, "a word was masked in part"
    assert within_binomial(int((picked > 0).sum()), int((all_of > 0).sum()), rate)
    assert abs(len(chosen) / ordinary.sum() - rate) < 0.01


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.30, 0.5])
def test_spans_reach_their_rate_at_every_position(rate):
    length, documents = 64, 20_000
    positions, numbers = np.tile(np.arange(length), documents), np.repeat(np.arange(documents), length)
    special = np.isin(positions, [0, length - 1])
    _, chosen, _ = Masker(rate, MASK_ID, ORDINARY, 17, "span")(
        np.full(len(positions), 5_000), special, numbers, positions, 0
    )
    counts = np.bincount(positions[chosen], minlength=length)[1:-1]
    assert np.abs(counts - documents * rate).max() < SIGMAS * math.sqrt(documents * rate * (1 - rate))
    is_chosen = np.zeros(len(positions), dtype=bool)
    is_chosen[chosen] = True
    rows = is_chosen.reshape(documents, length)[:, 1:-1]
    after_chosen = (rows[:, 1:] & rows[:, :-1]).sum() / rows[:, :-1].sum()
    assert after_chosen > rate + 0.3, "no runs"


@pytest.mark.parametrize("kind", ["token", "word", "span"])
def test_a_lower_rate_chooses_a_part_of_what_a_higher_one_does(kind):
    stream = a_stream(500)
    masker = Masker(0.3, MASK_ID, ORDINARY, 17, kind, words_of(stream)[0])
    chosen, fewer = masker(**stream, epoch=1)[1], masker(**stream, epoch=1, rate=0.15)[1]
    assert 0.4 * len(chosen) < len(fewer) < 0.6 * len(chosen)
    assert np.isin(fewer, chosen).all()
    for number in np.unique(stream["documents"])[:20]:  # company changes nothing
        own = stream["documents"] == number
        alone = masker(**{name: values[own] for name, values in stream.items()}, epoch=1)[1]
        np.testing.assert_array_equal(np.flatnonzero(own)[alone], chosen[np.isin(chosen, np.flatnonzero(own))])


def test_a_schedule_is_linear_and_then_constant():
    schedule = RateSchedule(0.3, 0.15, documents=1_000)
    assert [round(schedule(seen), 4) for seen in (0, 500, 1_000, 2_000)] == [0.3, 0.225, 0.15, 0.15]
    late = RateSchedule(0.3, 0.15, documents=1_000, fallen=lambda progress: max(0.0, 2 * progress - 1))
    assert [round(late(seen), 4) for seen in (0, 500, 750, 1_000, 2_000)] == [0.3, 0.3, 0.225, 0.15, 0.15]
