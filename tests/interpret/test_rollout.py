"""Raw weights, rollout and flow of trained classifiers: again, in loops over texts."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from research.errors import UserError
from research.interpret.capture import attention_records
from research.interpret.rollout import METRICS, rollout_agreement
from research.tasks.task import UNKNOWN
from research.training.validation import check_config
from tests import small
from tests.interpret.test_capture import looked
from tests.interpret.test_explanations import asked, texts

LAYERS = 2
DEEP = {
    "model__body": "transformer",
    "model__num_layers": LAYERS,
    "model__num_heads": 2,
    "model__feedforward": 8,
    # Without positions a word that comes twice is read twice alike, and rounding ranks the two.
    "model__position": "rope",
    "task__min_length": 7,
}


def spearman(a, b):
    a, b = (scipy.stats.rankdata(x) for x in (a, b))
    return np.corrcoef(a, b)[0, 1]


def read(question, tokens):
    """Weights of each layer for a text, and probabilities of it and with each word made unknown."""
    blanked = np.where(np.eye(len(tokens), dtype=bool), UNKNOWN, tokens)
    versions = np.concatenate([tokens[None], blanked])
    batch = {"inputs": versions, "length": np.full(len(versions), len(tokens))}
    logits, recorded = looked(question.model, question.params, batch, ("weights",))
    layers = [p.sites["weights"][0] for p in attention_records(recorded) if p.kind == "self"]
    return layers, scipy.special.softmax(logits.astype(np.float64), axis=-1)


def expected(question, tokens, pooling):
    """Raw weights and rollout (L, n) as the classified vector sees the words, and blank-out."""
    layers, (whole, *blanked) = read(question, tokens)
    size = len(layers[0][0])
    rows = np.eye(size)[0] if pooling == "class_token" else np.full(size, 1 / size)
    rolled, raw, through = [], [], np.eye(size)
    for heads in layers:
        one = heads.mean(0)
        through = (0.5 * one + 0.5 * np.eye(size)) @ through
        raw.append((rows @ one)[-len(tokens) :])
        rolled.append((rows @ through)[-len(tokens) :])
    return raw, rolled, np.abs(np.array(blanked) - whole).sum(-1) / 2


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_correlations_in_a_loop_over_texts_without_padding(pooling):
    # Not so sure that changes of its output drown in rounding.
    question = asked(scale=0.5, model__pooling=pooling, **DEEP)
    found = rollout_agreement(question)
    assert set(METRICS) <= set(found.metrics)
    correlations, right = {"raw": [], "rollout": []}, {"raw": [], "rollout": []}
    for tokens, relevant in texts(question):
        raw, rolled, change = expected(question, tokens, pooling)
        for name, ways in (("raw", raw), ("rollout", rolled)):
            correlations[name].append([spearman(way, change) for way in ways])
            right[name].append([relevant[np.argmax(way)] for way in ways])
    for name, values in correlations.items():
        by_layer = np.mean(values, axis=0)
        np.testing.assert_allclose(
            found.slices[f"{name}_correlation_by_layer"], by_layer, atol=1e-4
        )
        assert found.metrics[f"{name}_correlation"] == pytest.approx(by_layer[-1], abs=1e-4)
        truth = np.mean(right[name], axis=0)
        np.testing.assert_allclose(found.slices[f"truth_{name}_by_layer"], truth, atol=1e-6)
    beyond = found.metrics["rollout_correlation"] - found.metrics["raw_correlation"]
    assert found.metrics["rollout_beyond_raw"] == pytest.approx(beyond, abs=1e-6)
    assert found.labels["flow_correlation_by_layer"] == ["1", "2"]
    if pooling == "class_token":
        # Through one layer there is one way from each word.
        flow, rolled = (found.slices[f"{w}_correlation_by_layer"][0] for w in ("flow", "rollout"))
        assert flow == pytest.approx(rolled, abs=1e-4)


def test_models_that_cannot_be_followed_are_refused_before_training():
    with pytest.raises(UserError, match="model.body='bilstm' must be 'transformer'"):
        check_config(small.rule(interpret__final=("rollout",)))
    with pytest.raises(UserError, match="model.body='none'"):
        check_config(small.recall(interpret__final=("rollout",)))
    recurrent = "mixer=gru"
    with pytest.raises(UserError, match="the mixer does not have"):
        check_config(
            small.rule(
                model__pooling="mean",
                model__encoder=recurrent,
                interpret__final=("rollout",),
                **{k: v for k, v in DEEP.items() if k != "model__position"},
            )
        )
