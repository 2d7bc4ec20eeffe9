"""Attention transfer: what it trains, towards what, and what it leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.stacks import by_layer
from research.runs.store import read_json, read_metrics
from research.training.initial import INITIAL, load_initial
from research.training.preemption import Preempted
from research.training.program import make_program
from research.training.step import data_key
from tests import small
from tests.runs import best_of, signal_at, train, without_time

recall = functools.partial(small.recall, model__num_layers=2, model__position="rope")
TAUGHT = {"model__mixer": "hedgehog", "train__transfer_steps": 12}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    (run,) = train(recall(train__steps=16), tmp_path_factory.mktemp("taught"))
    return run


@pytest.fixture(scope="module")
def taught(source, tmp_path_factory):
    """A run that was taught and not trained."""
    config = recall(**TAUGHT, train__init_from=str(source), train__steps=0)
    (run,) = train(config, tmp_path_factory.mktemp("student"))
    return run


def test_only_the_feature_maps_learn_and_every_layer_comes_nearer(source, taught):
    there, here = (by_layer(best_of(run)[0]) for run in (source, taught))
    for path, value in there.items():
        np.testing.assert_array_equal(here[path], value)
    own = {path: value for path, value in here.items() if path not in there}
    assert {path[-1] for path in own} == {"query_map", "key_map"}
    for value in own.values():
        assert 0.01 < np.abs(value - np.eye(*value.shape[-2:])).max() < 1
    told = read_json(taught / INITIAL)["transfer"]
    assert told["steps"] == 12
    assert all(after < before for before, after in zip(told["before"], told["after"], strict=True))


def test_what_is_told_is_the_difference_of_the_heads_outputs(source, taught):
    """By the weights of softmax attention and of phi, on the inputs of the trained layers."""
    config, told = recall(train__steps=16), read_json(taught / INITIAL)["transfer"]
    program, (params, _) = make_program(config), best_of(source)
    batch = program.task.batch(program.data, data_key(jnp.uint32(0)), 12)
    mixer, x = program.model.config.mixers[0], params["embedding"][batch["inputs"]]
    first = {n: a[0] for n, a in params["layers"]["0"]["mixer"].items()}
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + program.model.config.norm_epsilon)
    x = x * params["layers"]["0"]["norm1"]["scale"][0]
    trace = mixer.attention_trace(first, x)
    q, k = (jnp.einsum("btm,mhd->bthd", x, first[n]) for n in ("query", "key"))
    q, k = (mixer.rotary(a, np.arange(x.shape[1])) for a in (q, k))
    phi = [jnp.concatenate([jax.nn.softmax(a), jax.nn.softmax(-a)], -1) for a in (q, k)]
    weights = jnp.tril(jnp.einsum("bthf,bshf->bhts", *phi))
    weights = weights / weights.sum(-1, keepdims=True)
    apart = jnp.einsum("bhts,bshd->bthd", trace.weights - weights, trace.values)
    np.testing.assert_allclose(told["before"][0], jnp.square(apart).mean(), rtol=1e-4)


def test_a_window_over_everything_has_nothing_to_learn_in_any_pattern(source):
    """Softmax layers of the pattern are not taught; members of one program have their own."""
    pattern = ("mixer=softmax", "mixer=hedgehog, window=64")
    config = recall(
        train__init_from=str(source),
        train__steps=0,
        train__transfer_steps=2,
        model__pattern=pattern,
    )
    initial = load_initial(make_program(config), [config])
    told = initial.records[0]["transfer"]
    assert len(told["before"]) == 1 and max(told["before"] + told["after"]) < 1e-12


@pytest.mark.slow
def test_a_stopped_run_is_not_taught_again(source, tmp_path, monkeypatch):
    config = recall(**TAUGHT, train__init_from=str(source), train__steps=8)
    (whole,) = train(config, tmp_path / "whole")
    signal_at(monkeypatch, [5])
    with pytest.raises(Preempted):
        train(config, tmp_path / "stopped")
    monkeypatch.setattr("research.training.initial.make_transfer", None)
    (stopped,) = train(config, tmp_path / "stopped")
    assert without_time(stopped) == without_time(whole)
    assert [row["step"] for row in read_metrics(stopped)][0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__mixer": "linear", "model__position": "none"}, "nothing to teach; model.mixer="),
        ({}, "train.transfer_steps=12: no attention of the model has parameters that the trained"),
    ],
    ids=str,
)
def test_where_there_is_nothing_to_teach_that_is_one_line(source, changes, message):
    config = recall(**TAUGHT | {"model__mixer": "softmax"} | changes, train__init_from=str(source))
    with pytest.raises(UserError, match=message):
        load_initial(make_program(config), [config])
