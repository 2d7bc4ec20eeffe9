"""Results of each test item: they add up to those of the split, and are kept with a run."""

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.runs.store import ITEMS, read_arrays, read_result
from research.tasks.items import fingerprints
from research.training.program import make_program
from research.training.runs import load_best_params
from tests import small
from tests.random_runs import random_params
from tests.runs import train


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return small.labelled(tmp_path_factory.mktemp("texts"))


def text(folder):
    path = folder / "text.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 20)
    return str(path)


MAKE = {
    # Buckets of lengths, of which a metric counts some.
    "recall": lambda folder: small.recall(
        task__num_pairs=(2, 4), task__eval_lengths=(24, 40), model__position="none"
    ),
    # Rows that only fill up the last batch.
    "transduction": lambda folder: small.transduction(),
    "sentiment": lambda folder: small.sentiment(small.labelled(folder), model__body="none"),
    "text": lambda folder: small.text(text(folder), task__test_fraction=0.05),
    # Outputs that are no single array of logits.
    "speech": lambda folder: small.speech(),
}
TEXTS = 42


@pytest.mark.parametrize("name", MAKE)
def test_the_results_of_items_add_up_to_those_of_the_split(name, tmp_path):
    program = make_program(MAKE[name](tmp_path))
    params = random_params(program, 0.3)
    found = jax.device_get(program.evaluate["test"](params, program.data))
    scalar = {k: s for k, s in found.sums.items() if s.total.ndim == 1}
    assert found.items.keys() == scalar.keys() and found.ids.dtype == np.uint32
    for metric, (total, count) in scalar.items():
        items = found.items[metric]
        assert items.total.shape == items.count.shape == found.ids.shape
        np.testing.assert_allclose(items.count.sum(1), count, rtol=1e-6, err_msg=metric)
        np.testing.assert_allclose(items.total.sum(1), total, rtol=1e-4, err_msg=metric)
    loss = found.items["loss"].count[0]
    assert len(np.unique(found.ids[0][loss > 0])) > (loss > 0).sum() / 2 > 1
    validation = jax.device_get(program.evaluate["validation"](params, program.data))
    assert validation.items == {} and validation.ids is None


def test_padding_does_not_change_what_an_item_is():
    short = {"inputs": np.array([[3, 4, 0]]), "targets": np.array([[4, 2, -1]])}
    wide = {
        name: np.pad(a, ((0, 0), (0, 2)), constant_values=a[0, -1]) for name, a in short.items()
    }
    assert fingerprints(short) == fingerprints(wide)
    for name, other in (("inputs", [[4, 3, 0]]), ("targets", [[4, 3, -1]])):
        assert fingerprints(short) != fingerprints(short | {name: np.array(other)})


@pytest.fixture(scope="module")
def runs(labelled, tmp_path_factory):
    """Two seeds of one config, and one with batches of another size."""
    few = {"train__steps": 4, "train__eval_every": 2, "model__body": "none", "members": 2}
    return {
        size: train(
            small.sentiment(labelled, task__batch_size=size, **few),
            tmp_path_factory.mktemp(str(size)),
        )
        for size in (4, 6)
    }


def test_a_run_keeps_its_items(runs):
    for run in (run for some in runs.values() for run in some):
        items, result = read_arrays(run / ITEMS), read_result(run)
        assert len(items["id"]) == TEXTS and (np.diff(items["id"].astype(np.int64)) >= 0).all()
        for which in ("best", "final"):
            for metric in ("loss", "accuracy"):
                total, count = (items[f"{which}.{metric}.{part}"] for part in ("total", "count"))
                assert (count == 1).all()
                assert total.mean() == pytest.approx(result[which]["test"][metric], rel=1e-5)


def test_items_do_not_depend_on_the_batches(runs):
    one, other = (read_arrays(run[0] / ITEMS)["id"] for run in runs.values())
    np.testing.assert_array_equal(one, other)


def test_results_are_those_of_the_items_with_their_ids(labelled, runs):
    """Text after text, by the model itself."""
    run = runs[4][1]
    items, params = read_arrays(run / ITEMS), load_best_params(run)[0]
    program = make_program(small.sentiment(labelled, model__body="none"))
    apply = jax.jit(lambda p, b: program.model.apply({"params": p}, b, method="forward"))
    for index in range(5):
        batch = program.task.example("test", index, 1)
        row = np.zeros((1, program.task.length), np.int32)
        row[0, : batch["inputs"].shape[1]] = batch["inputs"][0]
        right = apply(params, {**batch, "inputs": row}).argmax(-1) == batch["label"]
        (places,) = np.nonzero(items["id"] == fingerprints(batch))
        assert len(places) and (items["best.accuracy.total"][places] == right).all()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / ITEMS).write_bytes(b"PK no archive")
    with pytest.raises(UserError, match="items.npz cannot be read"):
        read_arrays(tmp_path / ITEMS)
    assert read_arrays(tmp_path / "nowhere.npz") == {}
