"""Heads taken out of a model: against what its attentions read, and how many matter."""

import functools

import jax
import numpy as np
import pytest
import scipy.special

from research.errors import UserError
from research.interpret.analyses import run_analyses
from research.interpret.capture import Intervention
from research.interpret.head_metrics import record_shapes
from research.interpret.heads.head_masking import attention_layers, common_num_heads, mask_heads
from research.interpret.heads.importance import num_prunable
from research.interpret.trained import batches
from research.training.loop import member_for_analysis
from research.training.program import make_program
from research.training.schema import resolve
from tests import small
from tests.attention.cases import close
from tests.interpret.test_capture import CASES, applied, looked, problem
from tests.random_runs import random_params

RUN = small.recall(interpret__final=("head_importance",), interpret__examples=8, train__steps=8)
masked_heads = functools.partial(jax.jit, static_argnums=0)(mask_heads)


@pytest.mark.parametrize("name", CASES)
def test_attentions_with_heads_are_those_that_are_captured(name):
    model, params, batch = problem(name)
    captured = [
        (part.name, part.sites["weights"].shape[1])
        for part in record_shapes(model, batch, ("weights",))
        if part.kind != "pooling"
    ]
    found = [(a.name, a.heads) for a in attention_layers(model, params)]
    if name in ("recurrent", "listener, recurrent speller"):
        # One head that reads the states as they are has no matrix of its own.
        assert not found
        with pytest.raises(UserError, match="no heads"):
            common_num_heads(attention_layers(model, params))
    else:
        assert found == captured


@pytest.mark.parametrize("name", ["decoder", "class token"])
def test_a_head_that_is_masked_is_a_head_that_reads_nothing(name):
    model, params, batch = problem(name)
    layers, heads = len(attention_layers(model, params)), 2
    if name == "class token":
        heads = attention_layers(model, params)[0].heads
    mask = np.ones((layers, heads), np.float32)
    mask[1, 0] = 0
    part = record_shapes(model, batch, ("read",))[1]
    nothing = np.zeros((layers, *part.sites["read"].shape), np.float32)
    where = (mask == 0).reshape(layers, 1, 1, heads, 1)
    expected, _ = looked(model, params, batch, (), {"read": Intervention(nothing, where)})
    close(applied(model, masked_heads(model, params, mask), batch), expected, 1e-5)


def test_cross_attention_that_is_masked_reads_no_source():
    model, params, batch = problem("encoder_decoder")
    found = attention_layers(model, params)
    mask = np.array([[0.0 if a.kind == "cross" else 1.0] * a.heads for a in found], np.float32)
    masked, other = masked_heads(model, params, mask), batch | {"source": batch["source"][:, ::-1]}
    close(applied(model, masked, batch), applied(model, masked, other), 1e-6)


def test_removable_counts_heads_up_to_a_hundredth():
    assert num_prunable([0.90, 0.895, 0.892, 0.5], higher=True) == 2
    assert num_prunable([0.90, 0.5, 0.9, 0.9], higher=True) == 0
    assert num_prunable([2.0, 2.01, 2.02, 2.03], higher=False) == 2
    assert num_prunable([1.0, 1.0, 1.0], higher=True) == 2


def test_importance_is_the_rise_of_the_loss_without_the_head():
    program = make_program(RUN)
    params = random_params(program, 0.5)
    found = run_analyses(("head_importance",), member_for_analysis(program, RUN, params, 0))
    one = jax.tree.map(lambda p: p[0], params)
    without = jax.tree.map(np.copy, one)
    without["layers"]["0"]["mixer"]["out"][1, 0] = 0

    def loss(params):
        sums = []
        for batch in batches(program.task, "test", 8):  # two of 4
            logits = np.asarray(applied(program.model, params, batch))
            each = -scipy.special.log_softmax(logits, axis=-1)
            there = batch["targets"] >= 0
            nats = np.take_along_axis(each, np.maximum(batch["targets"], 0)[..., None], -1)
            sums += ((nats[..., 0] * there).sum(1) / there.sum(1)).tolist()
        assert len(sums) == 8
        return np.mean(sums)

    index = found.labels["importance_by_head"].index("layer 1.0")
    rise = loss(without) - loss(one)
    assert found.slices["importance_by_head"][index] == pytest.approx(rise, rel=1e-3, abs=1e-5)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="interpret.final='head_importnce'"):
        resolve(small.recall(interpret__final=("head_importnce",)))
    with pytest.raises(UserError, match="interpret.examples=0 must be at least 1"):
        resolve(small.recall(interpret__examples=0))
    model, params, _ = problem("hybrid")
    assert len(attention_layers(model, params)) == 2  # the recurrent layers have none
