"""Evaluation at lengths that training never shows."""

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.models.registry import make_model
from research.tasks.registry import make_task
from research.tasks.synthetic.recall import EVALUATION_SEED
from research.training.loop import train_population
from research.training.program import make_program
from research.training.validation import check_config
from tests import small
from tests.compiled import compiled
from tests.random_runs import random_params

TEXT = "".join(chr(0x4E00 + i) for i in range(1500))
LENGTHS = (16, 24, 64)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def config_of(path, position, lengths):
    return small.text(path, model__position=position, task__eval_lengths=lengths, train__steps=8)


def batches(task, split, total):
    evaluation = compiled(task.evaluation, 1, 3, 4)
    return [
        [evaluation(task.data, split, i, number, bucket) for i in range(number)]
        for bucket, number in enumerate(task.evaluation_batches(split, total))
    ]


def test_windows_of_every_length_are_spread_over_the_text(path):
    task = make_task(small.text(path, task__eval_lengths=LENGTHS).task)
    assert task.longest == 64 and task.length == 16 and task.tokens == 4 * 16
    found = batches(task, "validation", 8)
    assert [len(of) for of in found] == [8, 8, 5, 2]
    for bucket, of in enumerate(found):
        length = (16, *LENGTHS)[bucket]
        starts = np.concatenate([b["inputs"][:, 0] for b in of]) - 1350
        assert starts.min() == 0 and starts.max() == 150 - length - 1
        for batch in of:
            assert batch["inputs"].shape == (4, length)
            np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
            assert batch["eval_length"].tolist() == [bucket - 1] * 4
    assert "eval_length" not in jax.eval_shape(task.batch, task.data, jax.random.key(0))


def test_sequences_of_recall_at_every_length():
    task = make_task(small.recall(task__eval_lengths=(12, 40)).task)
    found = batches(task, "test", 8)
    assert [len(of) for of in found] == [8, 10, 3]
    gaps = []
    for bucket, of in enumerate(found):
        assert {b["inputs"].shape for b in of} == {(4, (16, 12, 40)[bucket])}
        gaps.append(max(int(b["gaps"].max()) for b in of))
        for batch in of:
            n = np.array(task.num_pairs)[batch["pairs"]]
            assert ((batch["targets"] >= 0).sum(1) == n).all()
    assert gaps[1] < 12 and gaps[2] > 16, "gaps reach as far as the sequence does"
    # The length of training is evaluated on the same sequences as without other lengths.
    plain = make_task(small.recall().task)
    alone = compiled(plain.evaluation, 1, 3)((), "test", 1, 8)
    for name, array in alone.items():
        np.testing.assert_array_equal(array, found[0][1][name])
    seen = [b["inputs"][:, :12].tobytes() for of in found for b in of]
    assert len(set(seen)) == len(seen), list(EVALUATION_SEED)


def test_metrics_by_length_by_hand(path):
    """Uniform over 4, 8 and 16 tokens at the three lengths: log 4, log 8, log 16 nats."""
    task = make_task(small.text(path, task__eval_lengths=(16, 32)).task)
    total, measured = {}, compiled(task.metrics)
    for (batch, *_), tokens in zip(batches(task, "validation", 2), (4, 8, 16), strict=True):
        inputs = batch["inputs"]
        logits = np.full((*inputs.shape, task.vocab_size), -1e4, np.float32)
        for i in range(tokens):
            np.put_along_axis(logits, (inputs[..., None] + 1 + i) % task.vocab_size, 0.0, axis=2)
        sums = measured(logits, batch)
        total = jax.tree.map(np.add, total, sums) if total else sums
    mean = {k: s.total / s.count for k, s in total.items()}
    np.testing.assert_allclose(mean["loss"], np.log(4), rtol=1e-5)
    np.testing.assert_allclose(mean["bits_per_character"], 2, rtol=1e-5)
    np.testing.assert_allclose(mean["loss_by_length"], np.log([8, 16]), rtol=1e-5)
    np.testing.assert_allclose(mean["loss_longest"], np.log(16), rtol=1e-5)
    # Windows of all lengths have a first position, one has a last.
    assert task.slices["loss_by_position"] == ["1", "2-3", "4-7", "8-15", "16-31", "32"]
    np.testing.assert_allclose(mean["loss_by_position"][0], np.log([4, 8, 16]).mean(), rtol=1e-5)
    np.testing.assert_allclose(mean["loss_by_position"][-1], np.log(16), rtol=1e-5)


def test_a_run_reports_every_length(path, tmp_path):
    config = config_of(path, "rope", (24, 40))
    (result,) = train_population([config], [tmp_path / "run"], tmp_path / "run")
    assert result["slices"]["loss_by_length"] == ["24", "40"]
    found = result["final"]["validation"]
    assert found["loss_longest"] == found["loss_by_length"][1]
    assert len(set(found["loss_by_length"])) == 2


@pytest.mark.parametrize(
    ("position", "lengths"), [("rope", (24, 40)), ("alibi", (40,)), ("sinusoidal", (40,))]
)
def test_values_are_those_of_a_model_made_for_the_length(path, position, lengths):
    config = config_of(path, position, lengths)
    program = make_program(config)
    plain = make_program(config_of(path, position, ()))
    assert program.state == plain.state, "the parameters do not depend on it"
    params = random_params(program, 0.3)
    sums = jax.device_get(program.evaluate["validation"](params, program.data).sums)
    task = program.task
    one = jax.tree.map(lambda a: a[0], params)
    total = count = 0.0
    model = make_model(config.model, task.vocab_size, 40)
    applied = compiled(lambda params, tokens: model.apply({"params": params}, tokens)[0])
    for batch in batches(task, "validation", config.train.eval_batches)[-1]:
        logits = applied(one, batch["inputs"]).astype(np.float64)
        log_z = np.log(np.exp(logits).sum(-1))
        right = np.take_along_axis(logits, batch["targets"][..., None], 2)[..., 0]
        total, count = total + (log_z - right).sum(), count + right.size
    by_length = sums["loss_by_length"]
    np.testing.assert_allclose(by_length.total[0, -1], total, rtol=1e-5)
    assert by_length.count[0, -1] == count


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"task__eval_lengths": (8, 8)}, "task.eval_lengths=(8, 8): give positive numbers"),
        ({"task__eval_lengths": (0,)}, "task.eval_lengths=(0,)"),
        ({"task__eval_lengths": (13,)}, "task.eval_lengths=13 must be even"),
        ({"task__eval_lengths": (10,)}, "task.eval_lengths=10 is too short for 3 pairs"),
    ],
)
def test_lengths_that_do_not_fit_are_named(deltas, message):
    with pytest.raises(UserError) as error:
        make_task(small.recall(**deltas).task)
    assert message in str(error.value)


def test_what_cannot_be_longer_is_named(path):
    with pytest.raises(UserError, match="'transduction' does not read it, recall, text, tokens do"):
        check_config(small.transduction(task__eval_lengths=(4,)))
    with pytest.raises(UserError, match="eval_lengths=200 is too long: the validation split"):
        make_task(small.text(path, task__eval_lengths=(200,)).task)
    longer = {"task__eval_lengths": (24,)}
    with pytest.raises(UserError, match="has parameters for task.length=16 tokens only"):
        check_config(small.text(path, model__position="learned", **longer))
    yarn = {"model__position": "rope", "model__rope_scaling": "yarn", "model__rope_factor": 2.0}
    with pytest.raises(UserError, match="needs model.rope_original_length"):
        check_config(small.text(path, **yarn, **longer))
    llama3 = yarn | {"model__rope_scaling": "llama3"}
    with pytest.raises(UserError, match="'llama3' needs model.rope_original_length"):
        check_config(small.text(path, **llama3, **longer))
    check_config(small.text(path, model__position="learned", task__eval_lengths=(8,)))
