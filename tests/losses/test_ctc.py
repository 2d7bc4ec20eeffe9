"""CTC against the enumeration of all paths, a search with dictionaries, and Optax's loss."""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from research.decoding import ctc_prefix
from research.decoding.beam_search import batch_axes, take_rows
from research.errors import UserError
from research.losses import ctc
from research.tasks.task import BOS, EOS, PAD


@functools.partial(jax.jit, static_argnums=(2, 3))
def compiled_beam(log_probs, lengths, beam, blank):
    return ctc.prefix_beam(log_probs, lengths, beam, blank)


def prefix_beam(log_probs, lengths, beam, blank=PAD):
    return jax.device_get(compiled_beam(log_probs, lengths, beam, blank))


def greedy(log_probs, lengths, blank=PAD):
    return jax.device_get(jax.jit(ctc.greedy, static_argnums=2)(log_probs, lengths, blank))


given_prefixes = jax.jit(ctc_prefix.conditional_log_probs)
optax_loss = jax.jit(optax.ctc_loss, static_argnames="blank_id")


def frames(seed, size, number, vocab, scale=1.5):
    """Random log probabilities (B, S, V)."""
    logits = np.random.default_rng(seed).normal(0, scale, (size, number, vocab))
    return scipy.special.log_softmax(logits.astype(np.float32), axis=-1)


def spelled(path, blank):
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def by_paths(log_probs, blank):
    """{labelling: probability}, summed over every path."""
    found = collections.defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        p = math.exp(sum(float(log_probs[t, label]) for t, label in enumerate(path)))
        found[spelled(path, blank)] += p
    return found


def textbook(log_probs, width, blank):
    """Prefix beam search with a dictionary of [p ending in blank, p ending in a label]."""
    beam = {(): (1.0, 0.0)}
    for frame in np.exp(log_probs.astype(np.float64)):
        new = collections.defaultdict(lambda: [0.0, 0.0])
        for prefix, (in_blank, in_label) in beam.items():
            for label, p in enumerate(frame):
                if label == blank:
                    new[prefix][0] += p * (in_blank + in_label)
                elif prefix and label == prefix[-1]:
                    new[prefix][1] += p * in_label
                    new[(*prefix, label)][1] += p * in_blank
                else:
                    new[(*prefix, label)][1] += p * (in_blank + in_label)
        beam = dict(sorted(new.items(), key=lambda item: -sum(item[1]))[:width])
    return {prefix: sum(p) for prefix, p in beam.items()}


def as_dict(found, row, blank):
    """{labelling: probability} of a row, which must be sorted, distinct and well padded."""
    log_probs = found.log_probs[row]
    assert (log_probs[:-1] >= log_probs[1:]).all()
    items = {}
    for tokens, n, log_prob in zip(found.tokens[row], found.lengths[row], log_probs, strict=True):
        assert (tokens[n:] == blank).all() and (tokens[:n] != blank).all()
        if math.isfinite(log_prob):
            items[tuple(tokens[:n].tolist())] = math.exp(log_prob)
        else:
            assert n == 0
    assert len(items) == np.isfinite(log_probs).sum(), "a labelling was found twice"
    return items


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for labelling, p in wanted.items():
        assert found[labelling] == pytest.approx(p, rel=1e-4), labelling


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_collapses_the_best_path(blank):
    number = 12
    log_probs, lengths = frames(0, 16, number, 3), np.resize([number, 1, 7, 0], 16)
    found = greedy(log_probs, lengths, blank)
    seen = set()
    for row, n in enumerate(lengths):
        path = log_probs[row, :n].argmax(-1).tolist()
        wanted = spelled(path, blank)
        assert found.tokens[row].tolist() == [*wanted, *[blank] * (number - len(wanted))]
        assert found.lengths[row] == len(wanted)
        np.testing.assert_allclose(found.log_probs[row], log_probs[row, :n].max(-1).sum(), 1e-5)
        seen |= {pair for pair in itertools.pairwise(wanted) if pair[0] == pair[1]}
    assert seen, "no label was repeated after a blank"


@pytest.mark.parametrize(("number", "blank"), [(1, 0), (4, 2), (5, 0)])
def test_a_beam_that_holds_every_prefix_is_exact(number, blank):
    log_probs = frames(number, 4, number, 3)
    # 2 words: 1 + 2 + ... + 2^5 = 63 prefixes.
    found = prefix_beam(log_probs, np.full(4, number), 63, blank)
    for row in range(4):
        assert_same(as_dict(found, row, blank), by_paths(log_probs[row], blank))


@pytest.mark.parametrize("width", [1, 2, 3, 6])
@pytest.mark.parametrize(("vocab", "blank"), [(3, 0), (6, 5)])
def test_a_narrow_beam_is_the_textbooks(width, vocab, blank):
    number = 25
    log_probs, lengths = frames(vocab, 32, number, vocab), np.resize([number, 11, 20], 32)
    found = prefix_beam(log_probs, lengths, width, blank)
    for row, n in enumerate(lengths):
        wanted = textbook(log_probs[row, :n], width, blank)
        assert_same(as_dict(found, row, blank), wanted)


def test_a_prefix_that_left_the_beam_and_came_back_is_merged_with_its_descendants():
    # What "a" gives to "ab" belongs to the "ab" that lived on without it.
    size, number, width = 64, 14, 6
    log_probs = frames(8, size, number, 3)
    found = prefix_beam(log_probs, np.full(size, number), width)
    returns = 0
    for row in range(size):
        beams = [set(textbook(log_probs[row, :n], width, 0)) for n in range(number + 1)]
        for t in range(2, number + 1):
            back = (beams[t] - beams[t - 1]) & set().union(*beams[: t - 1])
            returns += sum(child[:-1] in back for child in beams[t])
        assert_same(as_dict(found, row, 0), textbook(log_probs[row], width, 0))
    assert returns > 10, "no parent came back while its child lived"


def test_labels_without_probability_and_empty_rows():
    log_probs = frames(3, 3, 5, 4)
    log_probs[:, :, 2] = -np.inf
    log_probs[1, 2] = [-np.inf, 0.0, -np.inf, -np.inf]
    found = prefix_beam(log_probs, np.array([5, 5, 0]), 40)
    for row in range(2):
        wanted = {k: p for k, p in by_paths(log_probs[row], 0).items() if p}
        assert_same(as_dict(found, row, 0), wanted)
    assert as_dict(found, 2, 0) == {(): 1.0}


def test_search_in_a_population():
    log_probs, lengths = frames(5, 6, 8, 4), np.array([8, 3, 8, 5, 8, 1])
    whole = prefix_beam(log_probs, lengths, 4)
    search = jax.jit(jax.vmap(functools.partial(ctc.prefix_beam, beam=4)))
    split = search(log_probs.reshape(2, 3, 8, 4), lengths.reshape(2, 3))
    for one, two in zip(whole, split, strict=True):
        np.testing.assert_allclose(np.reshape(two, one.shape), one, rtol=1e-6)


VOCAB = 5
WORDS = (3, 4)


def without_specials(seed, size, number):
    """Frames that give BOS and EOS no probability."""
    log_probs = frames(seed, size, number, VOCAB)
    log_probs[:, :, [BOS, EOS]] = -np.inf
    return scipy.special.log_softmax(log_probs, axis=-1)


def spell(log_probs, lengths, tokens, blank=PAD):
    """The prefixes and scores after each token (N, T), the empty prefix first."""
    found = jax.device_get(compiled_spell(log_probs, lengths, tokens, blank))
    return [jax.tree.map(lambda leaf, t=t: leaf[t], found) for t in range(tokens.shape[1] + 1)]


@functools.partial(jax.jit, static_argnums=3)
def compiled_spell(log_probs, lengths, tokens, blank):

    def step(prefixes, token):
        scores = ctc_prefix.extend(prefixes, log_probs, lengths, blank)
        new = ctc_prefix.advance(prefixes, log_probs, lengths, token, blank)
        return new, (prefixes, scores)

    # A blank adds nothing to the last prefix.
    tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=blank)
    first = ctc_prefix.init(log_probs, lengths, blank)
    return jax.lax.scan(step, first, tokens.T)[1]


def every(count):
    return np.array(list(itertools.product(WORDS, repeat=count)), np.int32)


def test_prefix_probabilities_are_the_sums_over_all_continuations():
    number, size = 5, 4
    log_probs = without_specials(0, size, number)
    # Two words of five labels: the paths of three labels are enumerated.
    small = log_probs[:, :, [PAD, *WORDS]]
    for row, n in enumerate([5, 5, 3, 1]):
        truth = by_paths(small[row, :n], 0)
        tokens = every(4)
        repeated = np.tile(log_probs[row], (len(tokens), 1, 1))
        found = spell(repeated, np.full(len(tokens), n), tokens)
        for t, (prefixes, scores) in enumerate(found):
            for i, words in enumerate(tokens[:, :t]):
                here = tuple(int(w) - WORDS[0] + 1 for w in words)
                begun = sum(p for other, p in truth.items() if other[:t] == here)
                got = np.exp(np.asarray(scores[i], np.float64))
                np.testing.assert_allclose(np.exp(prefixes.log_prob[i]), begun, 1e-4, 1e-12)
                np.testing.assert_allclose(got[EOS], truth.get(here, 0.0), 1e-4, 1e-12)
                for v in WORDS:
                    longer = (*here, v - WORDS[0] + 1)
                    wanted = sum(p for k, p in truth.items() if k[: t + 1] == longer)
                    np.testing.assert_allclose(got[v], wanted, 1e-4, 1e-12)
                assert got[PAD] == 0 and got[BOS] == 0


def test_whole_sequences_are_what_the_loss_says():
    size, number, blank = 32, 40, 6
    random = np.random.default_rng(1)
    log_probs = frames(1, size, number, 7)
    lengths = random.integers(20, number + 1, size)
    tokens = random.integers(3, 6, (size, 8)).astype(np.int32)
    assert (tokens[:, 1:] == tokens[:, :-1]).any()
    for count, (_, found) in enumerate(spell(log_probs, lengths, tokens, blank)):
        absent = np.arange(8) >= count
        loss = optax_loss(
            log_probs,
            np.arange(number) >= lengths[:, None],
            tokens,
            np.tile(absent, (size, 1)),
            blank_id=blank,
        )
        np.testing.assert_allclose(found[:, EOS], -np.asarray(loss), rtol=1e-4, atol=1e-3)


def test_prefixes_share_their_probability_among_what_follows():
    size, number, steps = 8, 60, 12
    log_probs, lengths = without_specials(2, size, number), np.resize([60, 30, 23], size)
    tokens = np.random.default_rng(2).choice(WORDS, (size, steps)).astype(np.int32)
    before = np.zeros(size)
    for t, (prefixes, scores) in enumerate(spell(log_probs, lengths, tokens)):
        total = scipy.special.logsumexp(scores, axis=-1)
        np.testing.assert_allclose(total, prefixes.log_prob, rtol=1e-4, atol=1e-4)
        assert (prefixes.log_prob <= before + 1e-5).all()
        assert not t or (prefixes.log_prob < before).all()
        before = np.asarray(prefixes.log_prob)
        given = np.asarray(given_prefixes(prefixes, scores))
        np.testing.assert_allclose(np.exp(given).sum(-1), 1.0, rtol=1e-3)


def test_a_prefix_longer_than_the_frames_has_no_probability():
    log_probs = without_specials(4, 2, 3)
    found = spell(log_probs, np.array([2, 3]), np.array([[3, 4, 3, 3]] * 2, np.int32))
    assert [bool(np.isfinite(p.log_prob[0])) for p, _ in found] == [True, True, True, False, False]
    for prefixes, scores in found[3:]:
        given = np.asarray(given_prefixes(prefixes, scores))
        assert not np.isnan(given).any() and (given[0] == -np.inf).all()


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_joint_steps_add_up_to_the_mean_of_both_log_probabilities(weight):
    rows, number = 7, 6
    table = frames(7, 1, VOCAB * 4, VOCAB)[0].reshape(4, VOCAB, VOCAB)

    def attention(place, tokens):
        return jnp.asarray(table)[place[0], tokens], place + 1, jnp.zeros((rows, 0, number))

    log_probs, lengths = without_specials(6, rows, number), np.full(rows, number)
    words = np.array([[*w, EOS] for w in ([3, 3, 3], [3, 3, 4], [3, 4, 4], [4, 3, 3])])
    words = np.concatenate([words, [[3, EOS, 0, 0], [4, EOS, 0, 0], [EOS, 0, 0, 0]]])
    step = jax.jit(ctc_prefix.joint_step(attention, log_probs, lengths, weight))
    state = (np.zeros(rows, np.int32), jax.jit(ctc_prefix.init)(log_probs, lengths))
    total, before = np.zeros(rows), np.full(rows, BOS)
    for token in words.T:
        scores, state, _ = step(state, before)
        alive = token != PAD
        total[alive] += np.asarray(scores)[np.arange(rows), token][alive]
        before = token
    for row, tokens in enumerate(words):
        tokens = tokens[tokens != PAD].tolist()
        by_attention = sum(table[t, [BOS, *tokens][t], v] for t, v in enumerate(tokens))
        small = log_probs[row][:, [PAD, *WORDS]]
        by_ctc = by_paths(small, 0)[tuple(v - WORDS[0] + 1 for v in tokens[:-1])]
        wanted = (1 - weight) * by_attention + weight * math.log(by_ctc)
        assert total[row] == pytest.approx(wanted, rel=1e-4)


def test_rows_stay_where_the_token_is_the_blank_and_can_be_reordered():
    log_probs, lengths = without_specials(5, 1, 9).repeat(3, axis=0), np.full(3, 7)
    advance = jax.jit(ctc_prefix.advance)
    first = jax.device_get(jax.jit(ctc_prefix.init)(log_probs, lengths))
    axes = batch_axes(
        lambda size: ctc_prefix.init(jnp.zeros((size, 9, VOCAB)), jnp.full((size,), 9))
    )
    assert set(jax.tree.leaves(axes)) == {0}
    one = jax.device_get(advance(first, log_probs, lengths, np.array([3, PAD, 4])))
    for new, old in zip(one, first, strict=True):
        np.testing.assert_array_equal(new[1], old[1])
        assert not np.array_equal(new[0], old[0])
    # Rows 2, 0, 0 of what was "3", "", "4", followed by 3, 3, 4.
    moved = jax.jit(lambda tree, rows: take_rows(tree, axes, rows))(one, np.array([2, 0, 0]))
    two = advance(moved, log_probs, lengths, np.array([3, 3, 4]))
    straight = spell(log_probs, lengths, np.array([[4, 3], [3, 3], [3, 4]], np.int32))[-1][0]
    for a, b in zip(two, straight, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_weak_end_does_not_underflow():
    # Probabilities far below the least float32, 1e-45.
    log_probs = np.full((1, 300, VOCAB), -np.inf, np.float32)
    log_probs[:, :, PAD], log_probs[:, :, 3:] = -1.0, [-2.0, -30.0]
    tokens = np.array([[4, 4, 4, 4, 4]], np.int32)
    scores = spell(log_probs, np.array([300]), tokens)[-1][1]
    ways = math.comb(300, 5)
    # Single 4s among blanks are nearly all there is: two in a row cost a blank more than they give.
    separate = math.comb(300 - 4, 5) / ways
    least = math.log(ways * separate) - 5 * 30.0 - 295.0
    assert float(scores[0, EOS]) == pytest.approx(least, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, n: prefix_beam(x, n, 0), "--beam=0"),
        (lambda x, n: prefix_beam(x, n, 2, blank=VOCAB), f"blank={VOCAB}"),
        (lambda x, n: greedy(x, n, blank=-1), "blank=-1"),
        (lambda x, n: ctc_prefix.init(x, n, VOCAB), f"blank={VOCAB}"),
        (lambda x, n: ctc_prefix.extend(ctc_prefix.init(x, n), x, n, eos=PAD), f"eos={PAD}"),
    ],
)
def test_bad_numbers_are_named(call, named):
    with pytest.raises(UserError, match=named):
        call(frames(0, 1, 2, VOCAB), np.array([2]))
