"""Training on pairs: buckets in one program, what is minimised, what is decoded at the end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu

from research.ablation.sweep import prepare
from research.cloud.data import planned_data
from research.configuration import apply_deltas
from research.decoding.decode import decode_all
from research.decoding.search import Search
from research.errors import UserError
from research.interpret.head_metrics import with_head_measures
from research.parallel.layout import resolve_layout
from research.runs.store import read_result
from research.tasks.task import BOS, EOS, PAD
from research.train import members_of
from research.training.budget import measure_budget, training_flops
from research.training.loop import train_population
from research.training.preemption import Preempted
from research.training.program import make_members, make_program
from research.training.records.metrics import mean_metrics
from research.training.runs import load_best_params
from research.training.scores import SPEED, score_names
from research.training.step import random_stream
from research.training.validation import check_config
from tests import small
from tests.runs import best_of, signal_at, without_time

SMOOTHING = 0.2
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def config(path):
    deltas = {"task__label_smoothing": SMOOTHING, "task__buckets": 2}
    return small.translation(path, members=len(SEEDS), **deltas)


@pytest.fixture(scope="module")
def program(config):
    return make_program(config, len(SEEDS))


@pytest.fixture(scope="module")
def start(config, program):
    """Initial parameters of both members, on the host."""
    return jax.device_get(program.init(make_members(members_of(config))).params)


def train(config, home):
    configs = members_of(config)
    runs = [home / str(c.seed) for c in configs]
    train_population(configs, runs, home)
    return runs


@pytest.fixture(scope="module")
def translated(config, tmp_path_factory):
    """Runs of both members that nothing disturbed."""
    return train(config, tmp_path_factory.mktemp("translated"))


@pytest.fixture(scope="module")
def transduced(tmp_path_factory):
    """A run of a model that reads the source."""
    return train(small.transduction(), tmp_path_factory.mktemp("transduced"))[0]


def smoothed(logits, targets):
    """Returns what the objective sums, with its targets written out as distributions."""
    tokens = logits.shape[-1]
    wanted = (1 - SMOOTHING) * jax.nn.one_hot(targets, tokens) + SMOOTHING / tokens
    return -(wanted * jax.nn.log_softmax(logits)).sum(-1) * (targets >= 0)


def step_by_hand(model, rate):
    """Returns (params, batch) -> (params, sums): plain gradient descent on the mean objective."""

    def mean(params, batch):
        logits = model.apply({"params": params}, batch, method="forward")
        targets = batch["targets"]
        real = targets >= 0
        right = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.where(real, targets, 0)[..., None], axis=-1
        )[..., 0]
        total = smoothed(logits, targets).sum()
        found = {
            "objective": total,
            "loss": -(right * real).sum(),
            "accuracy": ((logits.argmax(-1) == targets) & real).sum(),
            "targets": real.sum(),
        }
        return total / real.sum(), found

    @jax.jit
    def step(params, batch):
        grads, found = jax.grad(mean, has_aux=True)(params, batch)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), found

    return step


def buckets(task, steps):
    """Returns the bucket of each of the first steps."""
    return np.asarray(jax.jit(jax.vmap(task.bucket))(jnp.arange(steps))).tolist()


def test_steps_of_several_shapes_in_one_program_are_those_done_by_hand(config, program, start):
    steps, task, members = 12, program.task, make_members(members_of(config))
    numbers = buckets(task, steps)
    assert set(numbers) == {0, 1}, "else a bucket is not tested"
    state, sums = program.train(
        program.init(members), members, program.data, np.int32(0), np.int32(steps)
    )
    state, sums = jax.device_get((state, sums))
    step = step_by_hand(program.model, config.optimizer.learning_rate)
    draw = jax.jit(task.batch, static_argnums=3)
    batches = []
    for lane, seed in enumerate(SEEDS):
        params, total = jax.tree.map(lambda a, lane=lane: a[lane], start), {}
        for i, number in enumerate(numbers):
            batch = draw(task.data, random_stream(jnp.uint32(seed), 1), i, number)
            assert batch["source"].shape == (config.task.batch_size, task.bounds[number][0])
            batches.append(np.asarray(batch["source"]))
            params, found = step(params, batch)
            total = {name: total.get(name, 0.0) + float(v) for name, v in found.items()}
        for name in ("objective", "loss", "accuracy"):
            assert sums[name].count[lane] == total["targets"]
            np.testing.assert_allclose(sums[name].total[lane], total[name], rtol=1e-4)
        params = jax.device_get(params)
        jax.tree.map(
            lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, rtol=1e-3, atol=1e-5),
            state.params,
            params,
        )
        moved = jax.tree.map(lambda a, b, lane=lane: abs(a[lane] - b).max(), start, params)
        assert max(jax.tree.leaves(moved)) > 0.05
    # The smoothed objective is another number, and the members drew other rows of one shape.
    assert (abs(sums["objective"].total - sums["loss"].total) > 1).all()
    assert all((a != b).any() for a, b in zip(batches[:steps], batches[steps:], strict=True))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_in_buckets_is_that_of_one_padded_batch(program, start, split):
    task, encoded = program.task, program.task.encoded[split]
    target = encoded["target"]
    before = np.concatenate([np.full_like(target[:, :1], BOS), target[:, :-1]], axis=1)
    batch = {
        "source": encoded["source"],
        "source_length": encoded["source_length"],
        "inputs": np.where(before == EOS, PAD, before),
    }
    found = program.evaluate[split](start, program.data).sums
    run = jax.jit(lambda p: program.model.apply({"params": p}, batch, method="forward"))
    assert len(task.evaluation_batches(split, 1)) > 1
    for lane in range(len(SEEDS)):
        logits = np.asarray(run(jax.tree.map(lambda a, lane=lane: a[lane], start)), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        real = target != PAD
        loss = -np.take_along_axis(log_p, target[..., None], axis=-1)[..., 0][real].mean()
        mine = mean_metrics(found, lane)
        assert found["loss"].count[lane] == real.sum()
        np.testing.assert_allclose(mine["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(
            mine["accuracy"], (logits.argmax(-1) == target)[real].mean(), rtol=1e-5
        )


def without_clock(run):
    """As `without_time`, without the speed of decoding; and the files that decoding leaves."""
    result, rows = without_time(run)
    for metrics in result["best"].values():
        assert metrics.pop(SPEED) > 0
    return result, rows, {p.name: p.read_text() for p in run.glob("*.txt")}


@pytest.mark.slow  # runs of one bucket are stopped in test_loop, of speech in test_speech_runs
def test_a_stopped_run_ends_as_if_nothing_had_happened(config, translated, tmp_path, monkeypatch):
    signal_at(monkeypatch, [30])
    with pytest.raises(Preempted, match="saved at step 30"):
        train(config, tmp_path)
    kept = next(tmp_path.rglob("corpus.json"))
    before = kept.read_text()
    kept.write_text(before.replace("validation", "other"))
    with pytest.raises(
        UserError, match=r"the data changed since the run began \(corpus.json differs"
    ):
        train(config, tmp_path)
    kept.write_text(before)
    for run, undisturbed in zip(train(config, tmp_path), translated, strict=True):
        assert without_clock(run) == without_clock(undisturbed)
        jax.tree.map(np.testing.assert_array_equal, best_of(run)[0], best_of(undisturbed)[0])


def test_a_translation_run_keeps_what_it_decoded(translated, program, path):
    """What is recorded is what anyone gets who scores the files that the run keeps."""
    scores = []
    for run in translated:
        for split, name in (("validation", "val"), ("test", "test")):
            metrics = read_result(run)["best"][split]
            found = (run / f"{split}.hypotheses.txt").read_text().split("\n")[:-1]
            wanted = (run / f"{split}.references.txt").read_text().split("\n")[:-1]
            given = path.replace("{split}", name).replace("{language}", "en")
            with open(given, encoding="utf-8") as file:
                assert wanted == file.read().split("\n")[:-1]
            bleu = sacrebleu.corpus_bleu(found, [wanted])
            chrf = sacrebleu.corpus_chrf(found, [wanted])
            assert metrics["bleu"] == pytest.approx(bleu.score)
            assert metrics["chrf"] == pytest.approx(chrf.score)
            exact = np.mean([a == b for a, b in zip(found, wanted, strict=True)])
            assert metrics["exact_match"] == pytest.approx(exact)
            assert metrics[SPEED] > 0 and "alignment_error" not in metrics
            scores.append((bleu.score, chrf.score))
        signatures = json.loads((run / "sacrebleu.json").read_text())
        assert set(signatures) == {"bleu", "chrf"}
        result = read_result(run)
        assert result["signatures"] == signatures
        assert "bleu" not in result["final"]["test"]
        assert set(result["slices"]) >= {"bleu_by_source_length", "accuracy_by_source_length"}
    assert np.max(scores, axis=0).min() > 0, "else nothing was decoded that could be scored"


def test_a_transduction_run_is_scored(transduced, caplog):
    result = read_result(transduced)
    test, validation = result["best"]["test"], result["best"]["validation"]
    names = {"exact_match", "token_accuracy", "exact_match_training_lengths"}
    assert names | {SPEED, "alignment_error", "diagonality", "entropy"} <= test.keys()
    assert test[SPEED] > 0 and 0 < test["alignment_error"] <= 1
    assert not names & validation.keys() and "alignment_error" in validation
    assert result["slices"].keys() == {
        f"{name}_by_length" for name in ("accuracy", "exact_match", "token_accuracy")
    }
    for name, labels in result["slices"].items():
        assert labels == ["3", "6"] and len(test[name]) == 2
    # Against decoding it again, and the rule of the task.
    config = small.transduction()
    task, model = make_program(config).task, make_program(config).model
    params, _ = load_best_params(transduced)
    assert not caplog.records, "what is left in the checkpoint is nothing to warn of"
    sources = task.sources("test")
    found = decode_all(model, params, sources["source"], sources["source_length"], Search())
    right = words = 0
    for row, length, hypotheses in zip(
        sources["source"], sources["source_length"] - 1, found, strict=True
    ):
        wanted = row[:length][::-1].tolist()
        right += sum(a == b for a, b in zip(hypotheses[0].tokens, wanted, strict=False))
        words += length
    assert 0 < right and test["token_accuracy"] == pytest.approx(right / words)


def test_a_batch_of_what_reads_nothing_has_no_alignment():
    program = make_program(small.transduction(model__attention="fixed_initial"))
    task, measure = program.task, with_head_measures(program.task, program.model, program.measures)

    @jax.jit
    def run(key):
        batch = task.evaluation(task.data, "validation", 0, 1)
        params = program.model.init(key, batch, method="forward")["params"]
        return jax.tree.map(lambda a: a[None], measure(params, batch)[1])

    found = mean_metrics(run(jax.random.key(0)), 0)
    assert "loss" in found and not {"alignment_error", "diagonality", "entropy"} & found.keys()


@pytest.mark.slow
def test_what_reads_nothing_has_no_alignment(tmp_path):
    (run,) = train(small.transduction(model__attention="fixed_initial"), tmp_path)
    result = read_result(run)
    for metrics in result["best"].values():
        assert not {"alignment_error", "diagonality", "entropy"} & metrics.keys()
    assert 0 <= result["best"]["test"]["exact_match"] <= 1


def test_flops_are_those_of_the_steps_that_are_done(config, program):
    task = program.task
    counts, real = {}, 0.0
    epoch = sum(task.epochs.batches)
    draw = jax.jit(task.batch, static_argnums=3)
    for step, number in enumerate(buckets(task, epoch)):
        batch = draw(task.data, random_stream(jnp.uint32(0), 1), step, number)
        shape = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
        counts.setdefault(str(shape), []).append(shape)
        real += int(batch["source_length"].sum() + (batch["targets"] >= 0).sum())
    flops = sum(len(s) * training_flops(program.model, s[0]) for s in counts.values())
    budget = measure_budget(config)
    assert len(counts) == 2
    # What is left over from full batches differs from epoch to epoch.
    assert budget["tokens"] == pytest.approx(real / epoch * config.train.steps, rel=0.02)
    assert budget["flops_per_token"] * task.tokens == pytest.approx(flops / epoch)


@pytest.mark.parametrize(
    ("deltas", "parts"),
    [
        ({"decoding.beam": 0}, ["decoding.beam=0", "at least 1"]),
        ({"decoding.max_length": 17}, ["decoding.max_length=17", "task.length = 16"]),
        ({"decoding.length_penalty": -1.0}, ["decoding.length_penalty=-1.0"]),
        (
            {"decoding.coverage_penalty": 0.2, "model.attention": "fixed_initial"},
            ["decoding.coverage_penalty=0.2", "model.attention='fixed_initial'"],
        ),
        ({"model.name": "decoder"}, ["model.name='decoder'", "'transduction'", "recurrent can"]),
    ],
)
def test_what_cannot_be_decoded_is_refused_before_training(deltas, parts):
    with pytest.raises(UserError) as error:
        check_config(apply_deltas(small.transduction(), deltas))
    assert "\n" not in str(error.value) and "--" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_attention_may_be_asked_to_cover_the_source():
    check_config(small.transduction(decoding__coverage_penalty=0.2))


@pytest.mark.parametrize("model", ["recurrent", "encoder_decoder"])
def test_positions_of_pairs_are_not_split(model):
    config = small.transduction(model__name=model, parallel__context=2)
    with pytest.raises(UserError, match="parallel.context=2 splits .*'decoder' only"):
        resolve_layout(config, 1, 8)


def test_a_plan_of_pairs_is_refused(config):
    with pytest.raises(UserError, match="model.name='encoder_decoder' cannot be planned for"):
        planned_data(config)


EXPERIMENT = """
from research.ablation.experiment import Experiment, Outcome
experiment = Experiment(
    question="?", base={base!r}, common={common!r}, arms={{"a": {{}}, "b": {{"model.width": 16}}}},
    seeds=(0,), outcome=Outcome({metric!r}, split="test", at={at!r}),
)
"""


@pytest.mark.parametrize(
    ("metric", "at", "message"),
    [
        ("bleu", "best", ""),
        ("exact_match", "best", ""),
        ("loss", "final", ""),
        ("blue", "best", "outcome.metric='blue'.* Did you mean 'bleu'"),
        ("bleu", "final", "outcome.metric='bleu'"),
        ("bleu_by_source_length", "best", "outcome.metric='bleu_by_source_length'"),
        ("alignment_error", "best", "outcome.metric='alignment_error'"),
    ],
)
def test_outcomes_that_are_decoded(metric, at, message, path, tmp_path):
    common = small.TRANSLATION | {"task.path": path}
    file = tmp_path / "experiment.py"
    file.write_text(
        EXPERIMENT.format(base=small.BASE, common=common, metric=metric, at=at), encoding="utf-8"
    )
    if not message:
        assert prepare(str(file), tmp_path / "sweep").outcome.metric == metric
        return
    with pytest.raises(UserError, match=message) as error:
        prepare(str(file), tmp_path / "sweep")
    assert "\n" not in str(error.value)


def test_scores_are_numbers(program):
    task = make_program(small.transduction()).task
    assert not set(score_names(task, "test")) & set(task.slices)
    assert score_names(program.task, "test") == ("bleu", "chrf", "exact_match", SPEED)
