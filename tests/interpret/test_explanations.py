"""Faithfulness of attention: models whose answer is known, and every number again in a loop."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from research.errors import UserError
from research.interpret import explanations
from research.interpret.explanations import (
    METRICS,
    check_pooling,
    faithfulness,
    kendall_taus,
    mean,
    precision,
)
from research.interpret.faithfulness import FRACTIONS
from research.interpret.trained import Trained, batches
from research.models.model import parameter_shapes
from research.tasks.registry import make_task
from research.tasks.synthetic.rule import FIRST
from research.training.program import model_of
from research.training.step import batch_shapes
from research.training.validation import check_config
from tests import small

EXAMPLES, SEED = 8, 3
CHOICE, EFFECT = 2.0, 3.0


def asked(change=None, members=2, scale=1.0, **deltas):
    """Returns a question to random parameters, or to those that `change` makes of zeros."""
    config = small.rule(**deltas)
    task = make_task(config.task)
    model = model_of(config, task)
    shapes = parameter_shapes(model, batch_shapes(task, 1))
    rng = np.random.default_rng(0)

    def draw(leaf):
        return (scale * rng.normal(size=(members, *leaf.shape))).astype(np.float32)

    population_params = jax.tree.map(draw, shapes)
    if change is not None:
        population_params = change(jax.tree.map(np.zeros_like, population_params))
    params = jax.tree.map(lambda leaf: leaf[0], population_params)
    return Trained(task, model, params, population_params, 0, "test", EXAMPLES, SEED)


def by_keyword(params):
    """Parameters of attention over embeddings whose keyword alone has a score and a class.

    The score of a keyword is `CHOICE`, that of noise 0; the log-odds of the class are `EFFECT`
    times the weight of the keyword.
    """
    params = jax.tree.map(np.copy, params)
    for token in range(4):
        params["embed"]["embedding"][:, FIRST + token, token // 2] = 1.0
    params["pool"]["matrix"][:, :2, 0] = 20.0  # tanh of it is 1
    params["pool"]["vector"][:, 0] = CHOICE
    params["head"][:, 0, 0] = params["head"][:, 1, 1] = EFFECT
    return params


def texts(question):
    """Yields every example alone and without padding: tokens, and which are relevant."""
    for batch in batches(question.task, question.split, question.examples):
        for tokens, length, relevant in zip(
            *(batch[k] for k in ("inputs", "length", "relevant")), strict=True
        ):
            if length >= 2:
                yield tokens[:length], relevant[:length]


@functools.partial(jax.jit, static_argnums=0)
def looked_at(model, params, tokens):
    """Probabilities (C,) and attention (n,) of one text without padding."""
    batch = {"inputs": tokens[None], "length": jnp.array([len(tokens)])}
    logits, weights = (
        model.apply({"params": params}, batch, method=m) for m in ("forward", "weights")
    )
    return jax.nn.softmax(logits[0]), weights[0].reshape(-1)


@functools.partial(jax.jit, static_argnums=0)
def one_hot_slope(model, params, tokens, label):
    """The gradient of the probability of a class in the amounts of the tokens that are there.

    Attention is held fixed: the pooling and the last layer are written out.
    """
    fixed = looked_at(model, params, tokens)[1]

    def probability(amounts):
        x = params["embed"]["embedding"][tokens] * amounts[:, None]
        length = jnp.array([len(tokens)])
        states, _ = model.apply({"params": params}, x[None], length, method="states")
        return jax.nn.softmax(fixed @ states[0] @ params["head"] + params["head_bias"])[label]

    return jax.grad(probability)(jnp.ones(len(tokens)))


def probabilities(question, tokens):
    return np.asarray(looked_at(question.model, question.params, tokens)[0], float)


def attention(question, tokens, member=0):
    params = jax.tree.map(lambda leaf: leaf[member], question.population_params)
    return np.asarray(looked_at(question.model, params, tokens)[1])


def logistic(x):
    return 1 / (1 + np.exp(-x))


def test_where_attention_decides_by_construction_all_agree():
    question = asked(by_keyword, model__body="none", task__min_length=3)
    found = faithfulness(question).metrics
    assert set(METRICS) <= set(found)
    for name in ("attention", "gradient", "integrated_gradients", "leave_one_out"):
        assert found[f"truth_{name}"] == 1, name
    assert found["truth_random"] < 0.9
    removed, kept, permuted = [], [], []
    for tokens, _ in texts(question):
        n = len(tokens)

        def of(number):
            # Of the keyword among this many tokens.
            return logistic(EFFECT * np.exp(CHOICE) / (np.exp(CHOICE) + number - 1))

        whole = of(n)
        counts = [int(np.ceil(f * n - 1e-6)) for f in FRACTIONS]
        removed.append(np.mean([whole - (0.5 if c else whole) for c in counts]))
        kept.append(np.mean([whole - (of(c) if c else 0.5) for c in counts]))
        least = logistic(EFFECT / (np.exp(CHOICE) + n - 1))
        permuted.append(whole - least)
    for name in ("attention", "gradient", "integrated_gradients"):
        assert found[f"comprehensiveness_{name}"] == pytest.approx(np.mean(removed), abs=1e-5)
        assert found[f"sufficiency_{name}"] == pytest.approx(np.mean(kept), abs=1e-5)
    assert found["comprehensiveness_random"] < np.mean(removed)
    # More than half of the permutations move the keyword's weight away where there are 3 or more.
    assert found["permutation_change"] == pytest.approx(np.mean(permuted), abs=1e-5)
    # Another seed has the same attention; an adversary cannot take the weight from the keyword.
    assert found["seed_divergence"] == pytest.approx(0, abs=1e-6)
    assert found["adversarial_divergence"] < 0.25


def test_where_nothing_decides_nothing_changes():
    """The output is the bias: any attention will do."""

    def constant(zeros):
        params = by_keyword(zeros)
        return {**params, "head": np.zeros_like(params["head"])}

    question = asked(constant, model__body="none", task__min_length=3)
    found = faithfulness(question).metrics
    assert found["permutation_change"] == 0
    assert found["comprehensiveness_attention"] == found["sufficiency_attention"] == 0
    assert np.isnan(found["gradient_tau"]) and np.isnan(found["leave_one_out_tau"])
    most = []
    for tokens, _ in texts(question):
        own = attention(question, tokens)
        corners = np.eye(len(tokens))
        most.append(max(scipy.spatial.distance.jensenshannon(c, own) ** 2 for c in corners))
    assert found["adversarial_divergence"] == pytest.approx(np.mean(most), rel=0.05)
    assert found["adversarial_beyond_seeds"] == pytest.approx(
        found["adversarial_divergence"] - found["seed_divergence"], abs=1e-6
    )


def test_rankings_and_seeds_in_a_loop_over_texts_without_padding():
    """A random LSTM, whose texts are read one by one: gradients are those of the probability."""
    question = asked(model__body="lstm", task__min_length=7)
    findings = faithfulness(question)
    found, kinds, labels = {}, ("gradient", "leave_one_out"), []
    of = {kind: [] for kind in kinds}
    seeds, spread = [], []
    for tokens, _ in texts(question):
        whole = probabilities(question, tokens)
        labels.append(int(whole.argmax()))
        own, other = attention(question, tokens), attention(question, tokens, 1)
        slope = np.abs(one_hot_slope(question.model, question.params, tokens, labels[-1]))
        without = [probabilities(question, np.delete(tokens, i)) for i in range(len(tokens))]
        change = np.abs(np.array(without) - whole).sum(-1) / 2
        of["gradient"].append(scipy.stats.kendalltau(own, slope))
        of["leave_one_out"].append(scipy.stats.kendalltau(own, change))
        spread.append(scipy.stats.entropy(own, base=len(tokens)))
        seeds.append(scipy.spatial.distance.jensenshannon(own, other) ** 2)
    for kind in kinds:
        tau = np.array([t.statistic for t in of[kind]])
        found[f"{kind}_tau"] = tau.mean()
        found[f"{kind}_tau_significant"] = np.mean([t.pvalue < 0.05 for t in of[kind]])
        for label in range(2):
            value = findings.slices[f"{kind}_tau_by_class"][label]
            mine = tau[np.array(labels) == label]
            assert value == pytest.approx(mine.mean()) if len(mine) else np.isnan(value)
    found["seed_divergence"] = np.mean(seeds)
    found["attention_entropy"] = np.mean(spread)
    for name, value in found.items():
        assert findings.metrics[name] == pytest.approx(value, abs=1e-4), name
    assert len(findings.labels["gradient_tau_by_class"]) == 2


def test_taus_of_padded_rows_by_counting_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 3, 9)).astype(float)
    real = np.arange(9) < np.array([[9], [6], [4]])
    b[2] = 1.0
    found, p = kendall_taus(a, b, real)
    for row in range(2):
        x, y = a[row][real[row]], b[row][real[row]]
        both = up = right = 0
        for i, j in itertools.combinations(range(len(x)), 2):
            both += np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
            up += x[i] != x[j]
            right += y[i] != y[j]
        assert found[row] == pytest.approx(both / np.sqrt(up * right))
        assert 0 <= p[row] <= 1
    assert np.isnan(found[2]) and np.isnan(p[2])
    assert mean(found) == pytest.approx(found[:2].mean()) and np.isnan(mean(found[2:]))


def test_precision_counts_the_relevant_among_the_first():
    scores = np.array([[0.1, 0.9, 0.5, 0.4, 2.0], [3.0, 1.0, 2.0, 0.0, 9.0]])
    relevant = np.array([[False, True, False, True, False], [True, False, False, False, False]])
    real = np.arange(5) < 4
    real = np.broadcast_to(real, scores.shape)
    np.testing.assert_array_equal(precision(scores, relevant, real), [0.5, 1.0])


def test_a_seed_alone_has_no_divergence_from_others(monkeypatch):
    """What is known of the examples is that of two seeds, which is compiled already."""
    question = asked(by_keyword, model__body="none", task__min_length=3)
    known = explanations._explained(question)
    monkeypatch.setattr(explanations, "_explained", lambda _: known)
    alone = question._replace(
        population_params=jax.tree.map(lambda leaf: leaf[:1], question.population_params)
    )
    both, found = faithfulness(question).metrics, faithfulness(alone).metrics
    assert both.keys() - found.keys() == {"seed_divergence", "adversarial_beyond_seeds"}
    assert found.items() <= both.items()


@pytest.mark.slow
def test_examples_are_explained_by_a_seed_alone():
    question = asked(by_keyword, members=1, model__body="none", task__min_length=3)
    found = faithfulness(question).metrics
    assert "seed_divergence" not in found and found["truth_attention"] == 1


def test_a_whole_split_is_thinned_out(tmp_path):
    task = make_task(small.sentiment(small.labelled(tmp_path)).task)
    everything = task.evaluation_batches("test", 1)
    assert sum(everything) > 6
    found = list(batches(task, "test", 6 * task.batch_size))
    assert len(found) == 6
    # Of all lengths, not of the first bucket alone.
    assert len({batch["inputs"].shape[1] for batch in found}) == len(everything)


def test_models_without_attention_over_tokens_are_refused_before_training():
    with pytest.raises(UserError, match="model.pooling='mean' must be 'attention'"):
        check_config(small.rule(model__pooling="mean", interpret__final=("faithfulness",)))
    with pytest.raises(UserError, match="model.pooling='none'"):
        check_config(small.recall(interpret__final=("faithfulness",)))
    question = asked()
    check_pooling(question.model, batch_shapes(question.task, 1))
