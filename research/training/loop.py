"""The training loop: runs steps, evaluates, keeps the best parameters, saves, stops on request."""

import contextlib
import fcntl
import itertools
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from research.configuration import differences
from research.errors import UserError, while_starting
from research.interpret.analyses import analysis_split, run_analyses
from research.interpret.trained import Findings, Trained
from research.parallel.parallelize import to_global_arrays
from research.parallel.processes import fetch, is_first, on_first
from research.runs.bucket import copy_to_bucket, whereabouts
from research.runs.store import (
    COMPLETED,
    CONFIG,
    DATA,
    DIVERGED,
    ENVIRONMENT,
    POPULATION,
    RESULT,
    json_safe,
    read_json,
    read_result,
    write_json,
)
from research.training import profiling
from research.training.budget import measure_budget
from research.training.feeding import feed_steps
from research.training.initial import Initial, start_from, write_initial
from research.training.optimizer import read_optimizer
from research.training.preemption import Preempted, StopRequest
from research.training.profiling import Trace
from research.training.program import (
    Program,
    abstract_state,
    cached_task,
    make_members,
    make_program,
    static_id,
    task_id,
)
from research.training.records.checkpoints import DIRECTORY, Checkpoints, has_saved
from research.training.records.data_record import check_same_data, write_data
from research.training.records.environment import describe_environment
from research.training.records.items import write_items
from research.training.records.metrics import MetricsWriter, mean_metrics, resume_metrics
from research.training.records.progress import ProgressLine
from research.training.schema import record_of_existing, run_record
from research.training.scores import score_decoded
from research.training.step import State
from research.training.utilization import step_utilization


def train_population(
    configs: Sequence[ConfigDict],
    runs: Sequence[Path],
    home: Path,
    title: str = "training",
    profile: range = range(0),
    stop: StopRequest | None = None,
) -> list[dict]:
    """Trains one population to the end, resuming from its latest checkpoint if there is one.

    Args:
      configs: one resolved and checked config per member; they differ in `MEMBER_KEYS` only.
      runs: the members' run directories.
      home: directory that holds the population's checkpoints.
      title: title of the progress line.
      profile: steps to trace, into home/profile; skipped if training resumes after them.
      stop: the stop request of a command that trains several populations; None: makes one for this
        population.

    Returns:
      The members' results, as written to result.json.

    Raises:
      UserError: a run directory is not writable or holds a run of another config or other data, or
        none of its checkpoints can be read; or what `train.init_from` names does not fit.
      OSError: a disk failed during training; the latest checkpoint is intact.
      Preempted: SIGTERM or SIGINT arrived before the end; the state is saved.
    """
    if len({static_id(config) for config in configs}) != 1:
        raise ValueError("members of one population differ in a key that changes the program")
    for config, run in zip(configs, runs, strict=True):
        on_first(lambda config=config, run=run: check_same_config(config, run))
    if finished := on_first(lambda: _finished(runs)):
        on_first(lambda: _check_data_of_finished(configs, runs))
        return finished
    program = make_program(configs[0], len(configs))
    with _alone_in(home), contextlib.nullcontext(stop) if stop else StopRequest() as stop:
        # Check again: another process may have finished the runs before this one got the lock.
        if finished := on_first(lambda: _finished(runs)):
            return finished
        resumes = on_first(lambda: has_saved(home / DIRECTORY))
        initial = start_from(program, configs, runs, resumes)
        with while_starting(home):
            on_first(lambda: _describe(program, configs, runs, home, initial))
            checkpoints = Checkpoints(home / DIRECTORY, configs[0].train.keep_checkpoints)
        with checkpoints as saved:
            trace = Trace(profile, home / profiling.DIRECTORY)
            state, timing = _train(program, configs, runs, saved, stop, title, trace, initial)
        results = _finish(program, configs, runs, state, timing)
        if is_first():
            copy_to_bucket(home)
    return results


def _finished(runs: Sequence[Path]) -> list[dict]:
    """Returns the results of all runs, or [] if any run is unfinished."""
    results = [result for run in runs if (result := read_result(run))]
    return results if len(results) == len(runs) else []


def _check_data_of_finished(configs: Sequence[ConfigDict], runs: Sequence[Path]) -> None:
    """Raises UserError if the data have changed since finished runs recorded them."""
    for config, run in zip(configs, runs, strict=True):
        if (run / DATA).exists():
            check_same_data(cached_task(task_id(config)), run)


@contextlib.contextmanager
def _alone_in(home: Path) -> Generator[None]:
    """Locks a population's directory against other commands; process 0 holds the lock."""
    with contextlib.ExitStack() as held:

        def lock() -> None:
            with while_starting(home):
                home.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(open(home / ".lock", "w"))
            if whereabouts(home) != home:
                print(f"{whereabouts(home)} cannot be locked: start nothing else there.")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is training in {home}.") from None
            except OSError as error:  # a file system without locks
                print(f"{home} cannot be locked ({error.strerror}): start nothing else there.")

        on_first(lock)
        yield


def check_same_config(config: ConfigDict, run: Path) -> None:
    """Raises UserError if `run` holds a run of another config, and lists the differences."""
    there = read_json(run / CONFIG)
    if there is None:
        return
    # The layout over devices does not change what a run computes, so it may differ.
    before, now = (
        one | {"parallel": {}} for one in (record_of_existing(there), run_record(config))
    )
    if before != now:
        changed = differences(before, now)
        raise UserError(
            f"{run} holds a run of another config: {'; '.join(changed[:5])}. "
            "Choose another --workdir, or delete that one."
        )


def _describe(
    program: Program,
    configs: Sequence[ConfigDict],
    runs: Sequence[Path],
    home: Path,
    initial: Initial | None,
) -> None:
    """Writes the files that describe runs before training starts.

    config.json comes last, because its presence marks the directory as a run. Raises UserError if a
    run is resumed with different data.
    """
    for run in runs:
        check_same_data(program.task, run)
    environment = describe_environment()
    if initial is not None:
        write_initial(initial, runs)
    for index, (config, run) in enumerate(zip(configs, runs, strict=True)):
        run.mkdir(parents=True, exist_ok=True)
        write_data(program.task, run)
        checkpoints = os.path.relpath(home / DIRECTORY, run)
        write_json(run / POPULATION, {"checkpoints": checkpoints, "member": index})
        write_json(run / ENVIRONMENT, environment)
        write_json(run / CONFIG, run_record(config))
    copy_to_bucket(home)


def _train(
    program: Program,
    configs: Sequence[ConfigDict],
    runs: Sequence[Path],
    saved: Checkpoints,
    stop: StopRequest,
    title: str,
    trace: Trace,
    initial: Initial | None = None,
) -> tuple[State, dict[str, float]]:
    """Trains to the last step; returns the final state and timings {"train_seconds", ...}."""
    config, host = configs[0].train, make_members(configs)
    members = to_global_arrays(host, program.members)
    metric, seeds = program.task.select, np.asarray(host.seed)
    rate = read_optimizer(configs[0]).fraction(config.steps)
    per_step = _per_step(program, configs)
    first, state = _begin(program, configs, runs, saved, initial)
    step = first
    began = time.perf_counter()
    if step < config.steps:
        # Run zero steps to compile, so that the rates below measure training only.
        data = program.training_data(seeds, step, step)
        state, _ = program.train(state, members, data, np.int32(step), np.int32(step))
    compiled = time.perf_counter()

    writer = MetricsWriter(runs if is_first() else (), step, per_step)
    shown = ("train/loss", f"validation/{metric}")
    line = ProgressLine(title, step, config.steps, shown, quiet=not is_first())
    targets = list(_targets(step, config, trace.boundaries))
    feed = feed_steps(program, seeds, itertools.pairwise([step, *targets]))
    try:
        if initial is not None:  # it may be the best, and is where learning curves begin
            columns, state = _validate(program, state, step)
            writer.add(step, columns)
            # What was taught would be lost with a process that is stopped before the next save.
            if not config.steps or any("transfer" in one for one in initial.records):
                writer.sync()
                saved.save(step, state)
        for target, data in zip(targets, feed, strict=True):
            trace.reached(step, state)
            state, sums = program.train(state, members, data, np.int32(step), np.int32(target))
            step = target
            rates = host.learning_rate * rate(jnp.float32(step - 1))
            columns: dict[str, Any] = {"train": sums, "learning_rate": rates}
            if step % config.eval_every == 0 or step == config.steps:
                found, state = _validate(program, state, step)
                columns |= found
            writer.add(step, columns)
            line.update(step, writer.latest)
            stopping = stop.agreed()
            saved.check()
            if step % config.checkpoint_every == 0 or step == config.steps or stopping:
                writer.sync()
                saved.save(step, state)
            if stopping and step < config.steps:
                raise Preempted(f"saved at step {step:,}")
        trace.reached(step, state)
        writer.flush()
        line.update(step, writer.latest)
    finally:
        feed.close()
        trace.close()
        line.close()
        writer.close()
    timing = {"members": len(configs), "compile_seconds": compiled - began}
    return state, timing | _speed(step - first, time.perf_counter() - compiled, per_step)


def _validate(program: Program, state: State, step: int) -> tuple[dict[str, Any], State]:
    """Returns the columns of a row of metrics, and the state with the best parameters so far."""
    sums = program.evaluate["validation"](state.params, program.data).sums
    value = sums[program.task.select]
    state = program.keep_best(state, value.total / value.count, np.int32(step))
    return {"validation": sums}, state


def _speed(steps: int, seconds: float, per_step: Mapping[str, float]) -> dict[str, float]:
    """Returns timings of so many steps, with the amounts of `_per_step` per second."""
    rate = steps / seconds if steps else 0.0
    timing = {"train_seconds": seconds, "steps_per_second": rate}
    return timing | {name: amount * rate for name, amount in per_step.items()}


def _targets(step: int, config: ConfigDict, others: Sequence[int]) -> Iterator[int]:
    """Yields the steps after `step` at which something is logged, evaluated, saved or traced."""
    intervals = (config.log_every, config.eval_every, config.checkpoint_every)
    while step < config.steps:
        ends = [(step // every + 1) * every for every in intervals]
        step = min(config.steps, *ends, *(other for other in others if other > step))
        yield step


def _begin(
    program: Program,
    configs: Sequence[ConfigDict],
    runs: Sequence[Path],
    saved: Checkpoints,
    initial: Initial | None,
) -> tuple[int, State]:
    """Returns the initial or restored step and state, and drops metrics rows after that step."""
    restored = saved.restore(abstract_state(program, len(configs)))
    if restored is not None:
        step, state = restored
        on_first(lambda: resume_metrics(runs, step, _logged(step, configs[0].train)))
        return step, state
    on_first(lambda: resume_metrics(runs, -1, []))
    if initial is None:
        return 0, program.init(to_global_arrays(make_members(configs), program.members))
    lies = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
    return 0, program.begin(to_global_arrays(initial.params, lies))


def _logged(step: int, config: ConfigDict) -> list[int]:
    """Returns the steps up to `step` for which every run has a row, wherever it was interrupted."""
    start = [0] if config.init_from else []
    return start + [target for target in _targets(0, config, ()) if target <= step]


def _per_step(program: Program, configs: Sequence[ConfigDict]) -> dict[str, float]:
    """Returns what one step a second makes: tokens of all members, without padding, and MFU.

    There is no MFU (`utilization`) for devices whose peak is not known.
    """
    budget = measure_budget(configs[0])
    tokens = program.task.tokens * len(configs)
    rates = {"tokens_per_second": tokens}
    used = step_utilization(budget["flops_per_token"] * tokens, program.layout.devices)
    return rates if used is None else rates | {"model_flops_utilization": used}


def _finish(
    program: Program,
    configs: Sequence[ConfigDict],
    runs: Sequence[Path],
    state: State,
    timing: dict[str, float],
) -> list[dict]:
    """Evaluates the best and the final parameters on every split and writes result.json."""
    task, seeds = program.task, make_members(configs).seed
    found = {
        which: {split: run(params, program.data, seeds) for split, run in program.evaluate.items()}
        for which, params in (("best", state.best.params), ("final", state.params))
    }
    diverged_at, best_step = fetch(state.diverged_at), fetch(state.best.step)
    asked = configs[0].interpret.final
    wanted = task.decoded or task.aligned or task.stream or asked
    best = jax.tree.map(fetch, state.best.params) if wanted else {}
    results = []
    for member, (config, run) in enumerate(zip(configs, runs, strict=True)):
        diverged = int(diverged_at[member])
        result: dict[str, Any] = {
            "status": COMPLETED if diverged < 0 else DIVERGED,
            "diverged_at": diverged,
            "seed": config.seed,
            "steps": config.train.steps,
            "best_step": int(best_step[member]),
            **{
                which: {split: mean_metrics(e.sums, member) for split, e in by_split.items()}
                for which, by_split in found.items()
            },
            "slices": dict(program.slices),
            "budget": measure_budget(config),
            "implementation": program.implementation,
            "layout": str(program.layout),
            "timing": timing,
        }
        for split, scores in _scores(program, config, best, member, run).items():
            result["best"][split] |= scores
        if asked:
            answers = _answers(program, config, best, member)
            result["best"][analysis_split(task)] |= answers.metrics | answers.slices
            result["slices"] |= answers.labels
        if task.signatures:
            result["signatures"] = dict(task.signatures)
        if is_first():
            write_items(run, {w: by_split.get("test") for w, by_split in found.items()}, member)
            write_json(run / RESULT, result)
        results.append(json_safe(result))
    return results


def member_for_analysis(program: Program, config: ConfigDict, best: Any, member: int) -> Trained:
    """Returns one member for analysis, given the best parameters of all members (host arrays)."""
    return Trained(
        task=program.task,
        model=program.model,
        params=jax.tree.map(lambda leaf: leaf[member], best),
        population_params=best,
        member=member,
        split=analysis_split(program.task),
        examples=config.interpret.examples,
        seed=config.seed,
    )


def _answers(program: Program, config: ConfigDict, best: Any, member: int) -> Findings:
    """Computes the analyses that `interpret.final` requests for one member."""
    asked = member_for_analysis(program, config, best, member)
    return on_first(lambda: run_analyses(config.interpret.final, asked))


def _scores(program: Program, config: ConfigDict, best: Any, member: int, run: Path) -> dict:
    """Returns {split: {metric: value}} of the scores that need decoding, for one member."""
    if not best:
        return {}
    params = jax.tree.map(lambda leaf: leaf[member], best)
    return on_first(lambda: score_decoded(program, config, params, run))
