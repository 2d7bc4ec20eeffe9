"""Beam search as `research.translate` runs it, against the same search as a loop in Python.

    python -m benchmarks.decoding [--model recurrent] [--width 256] [--beam 5] [--rounds 5]
    python -m benchmarks.decoding --workdir=runs/translation [--sentences 64]

With --workdir it is a trained run on sentences spread over its validation split, searched as its
config says, and BLEU of greedy and of beam search on the whole split is printed. Otherwise weights
and sentences of mixed lengths are random, and every hypothesis runs to the limit.

    compiled       ours: the whole search of a batch is one program
    by sentence    a loop over sentences and tokens, hypotheses are the rows of a compiled step
    batched        the same loop with all sentences of a batch at once
    eager          `by sentence` with nothing compiled, on the first --eager sentences, in one round

The loops keep hypotheses in NumPy. They read a source once, stop each search as early as ours, and
get sources padded to the same few lengths, so that nothing is compiled anew. In each round every
way runs once, one after the other; ratios are medians of the ratios within a round. That of `eager`
is per token that was found; all others are of the same work. The hypotheses must be the same.
Scans inside the model are compiled even then, anew at every step, so that layers cost a lot.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from research.configuration import apply_deltas
from research.decoding.beam_search import SHARED, batch_axes, take_rows
from research.decoding.decode import decode_all, static_lengths
from research.decoding.search import Search, length_divisor
from research.models.registry import make_model
from research.runs.store import write_json
from research.tasks.registry import make_task
from research.tasks.task import BOS, EOS, PAD, Task
from research.training.runs import load_best_params, load_run_config
from research.training.scores import read_search

RESULTS = Path(__file__).parent / "results"
MODELS = ("recurrent", "encoder_decoder")
Found = list[tuple[list[int], float]]
"""The best hypothesis of each sentence, without the end token, and its score."""


class Case(NamedTuple):
    """What is decoded; `source` is (N, S) and `source_length` (N,), int32; `name`: the model's."""

    name: str
    model: Any
    params: Any
    source: np.ndarray
    source_length: np.ndarray
    search: Search
    task: Task | None


def random_case(args: argparse.Namespace) -> Case:
    """Random weights and sentences; lengths are spread evenly from 4 tokens to --source."""
    model = {"name": args.model, "width": args.width, "num_layers": args.layers, "num_heads": 1}
    if args.model == "encoder_decoder":
        model |= {"feedforward": 4 * args.width, "num_heads": args.width // 64}
    # Else all tokens are about as probable, and rounding decides what is found.
    model |= {"init_stddev": 0.1, "embedding_stddev": 0.3}
    config = apply_deltas(base.get_config(), {f"model.{key}": v for key, v in model.items()})
    made = make_model(config.model, args.vocab, args.length)
    random = np.random.default_rng(0)
    lengths = np.linspace(4, args.source, args.sentences).round().astype(np.int32)
    random.shuffle(lengths)
    source = random.integers(3, args.vocab, (args.sentences, args.source)).astype(np.int32)
    at = np.arange(args.source)
    source = np.where(at < lengths[:, None] - 1, source, PAD)
    source = np.where(at == lengths[:, None] - 1, EOS, source).astype(np.int32)
    row = jnp.ones((1, 2), jnp.int32)
    batch = {"source": row, "source_length": jnp.array([2]), "inputs": row, "targets": row}
    init = jax.jit(lambda key: made.init(key, batch, method="forward")["params"])
    search = Search(beam=args.beam or 5)
    return Case(args.model, made, init(jax.random.key(0)), source, lengths, search, None)


def trained_case(args: argparse.Namespace) -> Case:
    """A trained run, on sentences spread evenly over its validation split."""
    config = load_run_config(args.workdir)
    task = make_task(config.task)
    model = make_model(config.model, task.vocab_size, task.length)
    search = read_search(config)
    # The loops know no coverage penalty.
    search = Search(beam=args.beam or search.beam, length_penalty=search.length_penalty)
    whole = task.sources("validation")
    source, lengths = (np.asarray(whole[name]) for name in ("source", "source_length"))
    rows = np.linspace(0, len(source) - 1, min(args.sentences, len(source))).round().astype(int)
    params, _ = load_best_params(args.workdir)
    return Case(config.model.name, model, params, source[rows], lengths[rows], search, task)


def loop_functions(case: Case, jit: bool) -> tuple[Callable, Callable]:
    """Reading sources for K hypotheses each, and one step of the model after taking rows."""
    model, limit = case.model, case.search.limit(case.model.config.length)

    def read(params, source, lengths):
        return model.apply({"params": params}, source, lengths, method="encode")

    def empty(params, memory):
        return model.apply({"params": params}, memory, limit, method="init_state")

    def both(size):
        row = jnp.full((size, case.source.shape[1]), EOS)
        memory = read(case.params, row, jnp.ones(size, jnp.int32))
        return memory, empty(case.params, memory)

    memory_axes, state_axes = batch_axes(both)
    assert SHARED not in jax.tree.leaves(memory_axes)

    def start(params, source, lengths):
        rows = jnp.repeat(jnp.arange(len(source)), case.search.beam)
        memory = take_rows(read(params, source, lengths), memory_axes, rows)
        return memory, empty(params, memory)

    def step(params, memory, state, parents, tokens):
        state = take_rows(state, state_axes, parents)
        logits, state, _ = model.apply({"params": params}, memory, state, tokens, method="step")
        return jax.nn.log_softmax(logits), state

    return (jax.jit(start), jax.jit(step)) if jit else (start, step)


def loop_search(start, step, case: Case, source: np.ndarray, lengths: np.ndarray) -> Found:
    """The search of research/decoding/beam_search.py on (B, S) sources, hypotheses in NumPy."""
    params, beam = case.params, case.search.beam
    limit = case.search.limit(case.model.config.length)
    size = len(source)
    memory, state = start(params, source, lengths)
    tokens = np.full((size, beam, limit), PAD, np.int32)
    scores = np.where(np.arange(beam) == 0, np.zeros((size, beam), np.float32), -np.inf)
    best: list = [([], -np.inf)] * size
    count, done = np.zeros(size, int), np.zeros(size, bool)
    parents, last = np.arange(size * beam), np.full(size * beam, BOS, np.int32)
    for t in range(limit):
        log_probs, state = step(params, memory, state, parents, last)
        log_probs = np.array(log_probs).reshape(size, beam, -1)
        log_probs[..., [PAD, BOS]] = -np.inf
        if t == limit - 1:
            log_probs[..., EOS + 1 :] = -np.inf
        value, parent, token = candidates(scores[..., None] + log_probs, 2 * beam)
        grown = tokens[np.arange(size)[:, None], parent]
        grown[:, :, t] = token
        for row, i in zip(*np.nonzero((token[:, :beam] == EOS) & ~done[:, None]), strict=True):
            count[row] += 1
            score = float(value[row, i] / length_divisor(t + 1, case.search))
            if score > best[row][1]:
                best[row] = (grown[row, i, :t].tolist(), score)
        value = np.where(token == EOS, -np.inf, value)
        kept = (-value).argsort(1, kind="stable")[:, :beam]
        scores = np.take_along_axis(value, kept, 1)
        tokens = np.take_along_axis(grown, kept[..., None], 1)
        parents = (np.take_along_axis(parent, kept, 1) + np.arange(size)[:, None] * beam).ravel()
        last = tokens[:, :, t].ravel()
        reachable = scores[:, 0] / length_divisor(limit, case.search)
        done |= (count >= beam) | (reachable <= [score for _, score in best])
        if done.all():
            break
    return best


def candidates(total: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, hypothesis and token of the `number` best of (B, K, V), best first."""
    size, _, vocab = total.shape
    flat = total.reshape(size, -1)
    chosen = np.argpartition(-flat, number, axis=1)[:, :number]
    order = (-np.take_along_axis(flat, chosen, 1)).argsort(1, kind="stable")
    chosen = np.take_along_axis(chosen, order, 1)
    return np.take_along_axis(flat, chosen, 1), *np.divmod(chosen, vocab)


def one_by_one(functions, case: Case, number: int) -> Found:
    """The loop over the first `number` sentences."""
    found = []
    for row in range(number):
        found += in_batches(functions, case, np.array([row]), 1)
    return found


def in_batches(functions, case: Case, rows: np.ndarray, batch_size: int) -> Found:
    """The loop over batches of sentences of about the same length, as `decode_all` makes them."""
    order = rows[np.argsort(case.source_length[rows], kind="stable")]
    found: dict[int, tuple] = {}
    for at in range(0, len(order), batch_size):
        some = order[at : at + batch_size]
        longest = case.source_length[some].max()
        room = static_lengths(case.model.config.length)
        columns = next((n for n in room if n >= longest), longest)
        source = np.full((len(some), columns), PAD, np.int32)
        width = min(columns, case.source.shape[1])
        source[:, :width] = case.source[some, :width]
        best = loop_search(*functions, case, source, case.source_length[some])
        found |= dict(zip(some.tolist(), best, strict=True))
    return [found[row] for row in rows.tolist()]


def compiled(case: Case, search: Search, batch_size: int) -> Found:
    """What `research.translate` runs."""
    found = decode_all(case.model, case.params, case.source, case.source_length, search, batch_size)
    return [(ranked[0].tokens, ranked[0].score) for ranked in found]


def ways_of(case: Case, args: argparse.Namespace) -> dict[str, Callable[[], Found]]:
    """Every way to decode, as a function without arguments; the first is ours."""
    number, batch = len(case.source), args.batch
    jitted = loop_functions(case, jit=True)
    ways = {
        "compiled": lambda: compiled(case, case.search, batch),
        "greedy, compiled": lambda: compiled(case, Search(), batch),
        "by sentence": lambda: one_by_one(jitted, case, number),
        "batched": lambda: in_batches(jitted, case, np.arange(number), batch),
    }
    if args.eager:
        plain = loop_functions(case, jit=False)
        ways["eager"] = lambda: one_by_one(plain, case, min(args.eager, number))
    return ways


def same(found: Found, others: Found, name: str) -> None:
    """Raises AssertionError where two ways found different hypotheses."""
    for row, ((tokens, score), (other, value)) in enumerate(zip(found, others, strict=False)):
        assert np.isclose(score, value, rtol=1e-4), (name, row, score, value)
        assert tokens == other, (name, row, tokens, other)


def timed(run: Callable[[], Found]) -> tuple[float, Found]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def tokens_of(found: Found) -> int:
    """Tokens of the best hypotheses, end tokens counted."""
    return sum(len(tokens) + 1 for tokens, _ in found)


def measure(case: Case, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """A row of figures to each way."""
    ways = ways_of(case, args)
    first = {name: timed(run) for name, run in ways.items()}
    for name in [name for name in ways if not name.startswith("greedy")]:
        same(first["compiled"][1], first[name][1], name)
    rounds = [
        {name: timed(run)[0] for name, run in ways.items() if name != "eager" or number == 0}
        for number in range(args.rounds)
    ]
    rows = {}
    for name, (seconds, found) in first.items():
        # The subset stands for all sentences by the number of its tokens.
        times = tokens_of(first["compiled"][1]) / tokens_of(found) if name == "eager" else 1.0
        measured = [r for r in rounds if name in r]
        ratios = [times * r[name] / r["compiled"] for r in measured]
        median = statistics.median(r[name] for r in measured)
        rows[name] = {
            "sentences": len(found),
            "first_s": seconds,
            "s": median,
            "tokens_per_s": tokens_of(found) / median,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    return rows


def bleu(case: Case, task: Task, batch_size: int) -> dict[str, float]:
    """BLEU of greedy and of beam search on the whole validation split."""
    whole = task.sources("validation")
    source, lengths = (np.asarray(whole[name]) for name in ("source", "source_length"))
    case = case._replace(source=source, source_length=lengths)
    searches = {"greedy": Search(), f"beam {case.search.beam}": case.search}
    found = {
        name: [tokens for tokens, _ in compiled(case, search, batch_size)]
        for name, search in searches.items()
    }
    return {name: task.score("validation", h).metrics["bleu"] for name, h in found.items()}


def report(case: Case, rows: dict[str, dict[str, Any]]) -> None:
    """Prints a row to each way."""
    lengths = case.source_length
    print(
        f"{len(lengths)} sentences of {lengths.min()} to {lengths.max()} tokens, beam "
        f"{case.search.beam}; all found the same hypotheses"
    )
    print(f"{'':18}{'sentences':>10}{'first call':>12}{'later':>10}{'tokens/s':>10}{'ratio':>8}")
    for name, row in rows.items():
        each = " per token" if name == "eager" else ""
        print(
            f"{name:18}{row['sentences']:10}{row['first_s']:11.2f}s{row['s']:9.3f}s"
            f"{row['tokens_per_s']:10,.0f}{row['ratio']:8.2f}{each}"
        )


def main() -> None:
    """Prints a row to each way and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="a trained run; else weights are random")
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="sentences decoded together")
    parser.add_argument("--beam", type=int, default=0, help="0: that of the run, or 5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", type=int, default=1, help="sentences of the eager loop; 0: none")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/decoding-....json")
    weights = parser.add_argument_group("random weights")
    weights.add_argument("--model", default="recurrent", choices=MODELS)
    weights.add_argument("--width", type=int, default=256)
    weights.add_argument("--layers", type=int, default=1)
    weights.add_argument("--vocab", type=int, default=8000)
    weights.add_argument("--source", type=int, default=32, help="tokens of the longest sentence")
    weights.add_argument("--length", type=int, default=32, help="most tokens of a hypothesis")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    case = trained_case(args) if args.workdir else random_case(args)
    rows = measure(case, args)
    report(case, rows)
    device = jax.devices()[0]
    result = {
        "device": {"platform": device.platform, "kind": device.device_kind},
        "cores": os.cpu_count(),
        "load_before": load,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "model": {
            "name": case.name,
            "weights": "trained" if args.workdir else "random",
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(case.params)),
            "vocabulary": case.params["embedding"].shape[0],
        },
        "batch": args.batch,
        "search": {"beam": case.search.beam, "length_penalty": case.search.length_penalty},
        "source_lengths": sorted(case.source_length.tolist()),
        "decoding": rows,
    }
    if case.task is not None:
        result["bleu_validation"] = bleu(case, case.task, args.batch)
        print(json.dumps(result["bleu_validation"]))
    kind = f"trained-{case.name}" if args.workdir else case.name
    path = args.json or RESULTS / f"decoding-{kind}-{device.platform}.json"
    write_json(path, result)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
