"""Heads taken out of a model: against what its attentions read, and how many matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.interpret.capture import Change, parts, record
from research.interpret.final import answered, check_final
from research.interpret.heads import attentions, mask_heads, same_heads
from research.interpret.importance import removable
from research.training.loop import train_population, trained
from research.training.program import make_members, make_program
from tests import small
from tests.attention.cases import close
from tests.interpret.test_capture import CASES, problem


@pytest.mark.parametrize("name", CASES)
def test_attentions_with_heads_are_those_that_are_captured(name):
    model, params, batch = problem(name)
    captured = [
        (part.name, part.sites["weights"].shape[1])
        for part in parts(record(model, params, batch, ("weights",))[1])
        if part.kind != "pooling"
    ]
    found = [(a.name, a.heads) for a in attentions(model, params)]
    if name in ("recurrent", "listener, recurrent speller"):
        # One head that reads the states as they are has no matrix of its own.
        assert not found
        with pytest.raises(UserError, match="no heads"):
            same_heads(attentions(model, params))
    else:
        assert found == captured


@pytest.mark.parametrize("name", ["decoder", "class token"])
def test_a_head_that_is_masked_is_a_head_that_reads_nothing(name):
    model, params, batch = problem(name)
    layers, heads = len(attentions(model, params)), 2
    if name == "class token":
        heads = attentions(model, params)[0].heads
    mask = np.ones((layers, heads), np.float32)
    mask[1, 0] = 0
    part = parts(record(model, params, batch, ("read",))[1])[1]
    nothing = jnp.zeros((layers, *part.sites["read"].shape))
    where = jnp.asarray(mask == 0).reshape(layers, 1, 1, heads, 1)
    expected, _ = record(model, params, batch, (), {"read": Change(nothing, where)})
    masked = mask_heads(model, params, jnp.asarray(mask))
    close(model.apply({"params": masked}, batch, method="of_batch"), expected, 1e-5)


def test_cross_attention_that_is_masked_reads_no_source():
    model, params, batch = problem("encoder_decoder")
    found = attentions(model, params)
    mask = np.array([[0.0 if a.kind == "cross" else 1.0] * a.heads for a in found])
    masked = mask_heads(model, params, jnp.asarray(mask))

    def outputs(source):
        return model.apply({"params": masked}, batch | {"source": source}, method="of_batch")

    close(outputs(batch["source"]), outputs(batch["source"][:, ::-1]), 1e-6)


def test_removable_counts_heads_up_to_a_hundredth():
    assert removable([0.90, 0.895, 0.892, 0.5], higher=True) == 2
    assert removable([0.90, 0.5, 0.9, 0.9], higher=True) == 0
    assert removable([2.0, 2.01, 2.02, 2.03], higher=False) == 2
    assert removable([1.0, 1.0, 1.0], higher=True) == 2


def test_a_run_answers_and_its_result_has_it(tmp_path):
    config = small.recall(
        interpret__final=("head_importance",),
        interpret__examples=8,
        train__steps=8,
        model__num_layers=1,
    )
    (result,) = train_population([config], [tmp_path / "a"], tmp_path)
    found = result["best"]["test"]
    assert "removable_heads" not in result["best"]["validation"]
    assert 0 <= found["significant_heads"] <= 1 and 0 <= found["removable_heads"] <= 1
    assert result["slices"]["importance_by_head"] == ["layer 0.0", "layer 0.1"]
    assert len(found["quality_by_heads_gone"]) == 3
    # With none gone, quality is that of the model on these examples.
    program = make_program(config)
    params = program.init(make_members([config])).params
    zeros = jax.tree.map(jnp.zeros_like, params)
    asked = trained(program, config, zeros, 0)
    nothing = answered(("head_importance",), asked)
    assert nothing.metrics["significant_heads"] == 0
    assert nothing.metrics["removable_heads"] == 1


def test_importance_is_the_rise_of_the_loss_without_the_head():
    config = small.recall(interpret__final=("head_importance",), interpret__examples=8)
    program = make_program(config)
    params = program.init(make_members([config])).params
    params = jax.tree.map(lambda p: 8 * p, params)
    found = answered(("head_importance",), trained(program, config, params, 0))
    one = jax.tree.map(lambda p: p[0], params)
    without = jax.tree.map(lambda p: p, one)
    out = without["layers"]["0"]["mixer"]["out"]
    without["layers"]["0"]["mixer"]["out"] = out.at[1, 0].set(0)

    def loss(params):
        task, sums = program.task, []
        for index in range(2):  # two batches of 4
            batch = task.evaluation(program.data, "test", jnp.int32(index), 2)
            logits = program.model.apply({"params": params}, batch, method="of_batch")
            each = -jax.nn.log_softmax(logits)
            there = batch["targets"] >= 0
            nats = jnp.take_along_axis(each, jnp.maximum(batch["targets"], 0)[..., None], -1)
            nats = jnp.where(there, nats[..., 0], 0)
            sums += (nats.sum(1) / there.sum(1)).tolist()
        return np.mean(sums)

    index = found.labels["importance_by_head"].index("layer 1.0")
    rise = loss(without) - loss(one)
    assert found.slices["importance_by_head"][index] == pytest.approx(rise, rel=1e-3, abs=1e-5)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="interpret.final='head_importnce'"):
        check_final(("head_importnce",), 10)
    with pytest.raises(UserError, match="interpret.examples=0"):
        check_final((), 0)
    model, params, _ = problem("hybrid")
    assert len(attentions(model, params)) == 2  # the recurrent layers have none
