"""What is shown is what the model computes: probabilities, weights, measures, what is left out."""

import functools

import jax
import numpy as np
import pytest
import scipy.special

from research.configuration import apply_deltas
from research.errors import UserError
from research.inspect.inputs import example_subject, text_subject
from research.inspect.inspecting import Selection, inspect
from research.interpret.capture import attention_records
from research.training.runs import load_run_config, open_run
from tests import small
from tests.interpret.test_capture import applied, looked
from tests.random_runs import write_run

TEXT = "ROMEO: a rose by any other name would smell sweet.\n" * 40


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def opened(run, config):
    write_run(run, config)
    return open_run(run, load_run_config(run))


def config_of_text(home, **deltas):
    path = home / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return small.text(path, model__implementation="dense", **deltas)


@pytest.fixture(scope="module")
def language(home):
    return opened(home / "text", config_of_text(home))


@functools.partial(jax.jit, static_argnums=0)
def step_by_step(model, params, batch):
    """Logits (T, V) and weights (T, H, S) of the only row of a batch, each token fed alone."""
    variables = {"params": params}
    memory = model.apply(variables, batch["source"], batch["source_length"], method="encode")
    state = model.apply(variables, memory, 16, method="init_state")

    def step(state, token):
        logits, state, weights = model.apply(variables, memory, state, token, method="step")
        return state, (logits[0], weights[0])

    return jax.lax.scan(step, state, batch["inputs"][0][:, None])[1]


def by_name(inspection):
    return {one.name: one for one in inspection.maps}


def test_a_token_has_the_probability_that_those_before_give_it(language):
    text = "a rose by any n."
    shown = inspect(language, text_subject(language, text))
    assert list(shown.tokens.input) == list(text)
    tokens = language.tokenizer.encode(text)
    own, entropy = (shown.tokens.input_numbers[n] for n in ("log-probability", "entropy"))
    assert np.isnan(own[0]) and np.isnan(entropy[0])
    for t in (1, 9, len(text) - 1):
        before = {"inputs": np.resize(tokens[:t], len(text)).astype(np.int32)[None]}
        logits = np.asarray(applied(language.model, language.params, before), np.float64)
        p = scipy.special.softmax(logits[0, t - 1])
        assert own[t] == pytest.approx(np.log(p[tokens[t]]), abs=1e-4)
        assert entropy[t] == pytest.approx(scipy.special.entr(p).sum(), abs=1e-4)


def test_maps_are_what_was_recorded_and_rollout_their_product(language):
    shown = inspect(language, text_subject(language, "any other name"))
    batch = {"inputs": np.asarray(language.tokenizer.encode("any other name"))[None]}
    found = attention_records(looked(language.model, language.params, batch, ("weights",))[1])
    maps = by_name(shown)
    assert list(maps) == ["layer 0", "layer 1", "rollout"]
    through = np.eye(14)
    for part in found:
        weights = part.sites["weights"][0]
        np.testing.assert_allclose(maps[part.name].weights, weights, atol=1e-6)
        previous = [np.diagonal(head, -1).mean() for head in weights]
        measures = maps[part.name].measures
        np.testing.assert_allclose(measures["previous token"], previous, atol=1e-5)
        through = (0.5 * weights.mean(0) + 0.5 * np.eye(14)) @ through
    np.testing.assert_allclose(maps["rollout"].weights[0], through, atol=1e-5)


def test_another_implementation_shows_the_same(home, language):
    deltas = {"model.implementation": "blockwise", "model.block_size": 4}
    other = opened(home / "blocks", apply_deltas(config_of_text(home), deltas))
    jax.tree.map(np.testing.assert_array_equal, other.params, language.params)
    text = "any other name"
    mine, theirs = (inspect(run, text_subject(run, text)) for run in (language, other))
    assert theirs.facts["implementation"] == "blockwise"
    for a, b in zip(mine.maps, theirs.maps, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-5)
        for name, values in a.measures.items():
            np.testing.assert_allclose(values, b.measures[name], atol=1e-4)
    for name, values in mine.tokens.input_numbers.items():
        np.testing.assert_allclose(values, theirs.tokens.input_numbers[name], atol=1e-4)


def test_only_what_is_asked_for_is_kept(language):
    subject = text_subject(language, "any other name")
    shown = inspect(language, subject, Selection(layers=(1,), heads=(1,)))
    (one,) = shown.maps
    whole = by_name(inspect(language, subject))["layer 1"]
    assert one.name == "layer 1" and one.numbers == [1] and "heads 1 of 2" in one.note
    np.testing.assert_array_equal(one.weights, whole.weights[1:])
    np.testing.assert_array_equal(one.measures["sink"], whole.measures["sink"][1:])
    for chosen, message in [
        (Selection(layers=(2,)), "--layers=2 has no weights; layers that have some: 0, 1"),
        (Selection(heads=(2,)), "--heads=2 does not exist: the last one is 1"),
        (Selection(kinds=("cross",)), "--kinds='cross'"),
    ]:
        with pytest.raises(UserError, match=message):
            inspect(language, subject, chosen)


def test_a_text_that_is_too_long_is_cut_and_says_so(language):
    shown = inspect(language, text_subject(language, "a" * 20))
    assert len(shown.tokens.input) == language.config.task.length == 16
    assert any("20 tokens; cut to the 16" in line for line in shown.lines)


def test_answers_are_asked_where_the_task_asks(home):
    run = opened(home / "recall", small.recall())
    subject = example_subject(run, "test", 5)
    shown = inspect(run, subject)
    numbers, task_row = shown.tokens.input_numbers["log-probability of the answer"], subject.batch
    targets = np.asarray(task_row["targets"][0])
    np.testing.assert_array_equal(np.isfinite(numbers), targets >= 0)
    logits = applied(run.model, run.params, task_row)[0]
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    asked = targets >= 0
    np.testing.assert_allclose(numbers[asked], log_p[asked, targets[asked]], atol=1e-4)
    assert f"of {asked.sum()} answers are right" in shown.lines[0]


def test_layers_without_weights_are_named(home):
    pattern = ("mixer=gated_delta, position=none", "mixer=gru, position=none")
    run = opened(home / "hybrid", small.recall(model__pattern=pattern))
    shown = inspect(run, example_subject(run, "validation", 0))
    assert [one.name for one in shown.maps] == ["layer 0"]
    assert any(line.endswith("no sum over positions: layer 1.") for line in shown.lines)
    with pytest.raises(UserError, match="--layers=1 has no weights"):
        inspect(run, example_subject(run, "validation", 0), Selection(layers=(1,)))


def test_what_is_written_has_the_probabilities_of_decoding_step_by_step(home):
    run = opened(home / "pairs", small.transduction(model__num_layers=2))
    subject = example_subject(run, "test", 3, reference=True)
    given = inspect(run, subject)
    assert given.tokens.output[-1] == "</s>" and "<pad>" not in given.tokens.output
    own = given.tokens.output_numbers["log-probability"]
    cross = by_name(given)["decoder 0 cross"]
    assert cross.rows == "output" and cross.columns == "input"
    logits, weights = jax.device_get(step_by_step(run.model, run.params, subject.batch))
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    for t, target in enumerate(subject.batch["targets"][0]):
        assert own[t] == pytest.approx(log_p[t, target], abs=1e-4)
        np.testing.assert_allclose(cross.weights[:, t], weights[t], atol=1e-5)
    assert example_subject(run, "test", 3).lines[1].startswith("The model writes: ")


def test_a_model_without_attention_still_shows_its_tokens(home):
    run = opened(home / "fixed", small.transduction(model__attention="fixed_initial"))
    shown = inspect(run, example_subject(run, "validation", 1))
    assert shown.maps == [] and len(shown.tokens.output_numbers["entropy"])
    assert any("no attention" in line for line in shown.lines)


@pytest.mark.parametrize("pooling", ["class_token", "attention"])
def test_classes_and_the_token_in_front(home, pooling):
    deltas = {"model__body": "transformer", "model__pooling": pooling, "model__feedforward": 8}
    run = opened(home / pooling, small.rule(**deltas))
    subject = example_subject(run, "test", 2)
    shown = inspect(run, subject)
    inputs, length = subject.batch["inputs"], subject.batch["length"]
    assert inputs.shape[1] == int(length[0])
    logits = np.asarray(applied(run.model, run.params, subject.batch), np.float64)[0]
    p = scipy.special.softmax(logits)
    labels = {label: float(v) for label, v in shown.predictions}
    assert labels == pytest.approx({"first": p[0], "second": p[1]}, abs=1e-5)
    texts, extra = list(shown.tokens.input), int(pooling == "class_token")
    assert texts == ["[class]"] * extra + [str(t) for t in inputs[0]]
    best = int(p.argmax())
    odds = np.log(p[best] / p[1 - best])
    found = shown.tokens.input_numbers["leave one out"]
    assert np.isnan(found[:extra]).all()
    without = dict(subject.batch, inputs=inputs.copy())
    without["inputs"][0, 1] = 1
    q = np.asarray(applied(run.model, run.params, without))[0]
    assert found[1 + extra] == pytest.approx(odds - float(q[best] - q[1 - best]), abs=1e-3)
    assert ("pooling" in by_name(shown)) == (pooling == "attention")
    assert set(shown.tokens.input_numbers) == {
        "leave one out",
        "gradient times input",
        "integrated gradients",
    }
