"""Compiled beam search against the same search as a Python loop over the model's step.

    python -m benchmarks.decoding [--model recurrent] [--width 256] [--beam 5] [--rounds 3]

The loops keep the beams in NumPy, as decoders outside of a compiled program do, and end when ours
ends; "jitted step" compiles encode and step (with the reordering of the states), "eager step"
nothing. Weights are random, so that every sentence runs to the limit. Each round runs all of them,
one after the other; ratios are medians of the ratios within a round. The hypotheses must agree.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from research.configuration import apply_deltas
from research.decoding.beams import batch_axes, take_rows
from research.decoding.search import Search
from research.decoding.translation import decode
from research.models.encoder_decoder import make_encoder_decoder
from research.models.recurrent import make_recurrent
from research.tasks.task import BOS, EOS, PAD

RESULTS = Path(__file__).parent / "results"
MODELS = {"recurrent": make_recurrent, "encoder_decoder": make_encoder_decoder}


def make(args: argparse.Namespace):
    """A model with random weights, and a batch of sources."""
    model = {"width": args.width, "num_layers": args.layers, "feedforward": 4 * args.width}
    # Else all tokens are about as probable, and rounding decides what is found.
    model |= {"init_stddev": 0.1, "embedding_stddev": 0.3}
    model |= {"num_heads": 1 if args.model == "recurrent" else args.width // 64}
    deltas = {f"model.{key}": value for key, value in model.items()}
    made = MODELS[args.model](
        apply_deltas(base.get_config(), deltas).model, args.vocab, args.length
    )
    random = np.random.default_rng(0)
    source = random.integers(3, args.vocab, (args.batch, args.source)).astype(np.int32)
    source[:, -1] = EOS
    lengths = np.full(args.batch, args.source, np.int32)
    tokens = jnp.ones((1, 2), jnp.int32)
    batch = {"source": tokens, "source_length": jnp.array([2]), "inputs": tokens, "targets": tokens}

    def init(key):
        return made.init(key, batch, method="of_batch")["params"]

    return made, jax.jit(init)(jax.random.key(0)), source, lengths


def python_loop(model, params, source, lengths, beam: int, limit: int, jit: bool):
    """The loop, as a function without arguments that returns best tokens and scores."""
    compiled = jax.jit if jit else lambda f: f
    variables = {"params": params}

    def start(params, source, lengths):
        memory = model.apply({"params": params}, source, lengths, method="encode")
        return memory, model.apply({"params": params}, memory, limit, method="init_state")

    def shapes(size):
        row = jnp.zeros((size, source.shape[1]), jnp.int32)
        return start(params, row, jnp.ones(size, jnp.int32))

    axes = batch_axes(shapes)[1]

    def step(params, memory, state, parents, tokens):
        state = take_rows(state, axes, parents)
        logits, state, _ = model.apply({"params": params}, memory, state, tokens, method="step")
        return jax.nn.log_softmax(logits), state

    start, step = compiled(start), compiled(step)
    copies = np.repeat(np.arange(len(source)), beam)

    def run():
        memory, state = start(variables["params"], source[copies], lengths[copies])
        size = len(source)
        tokens = np.full((size, beam, limit), PAD, np.int32)
        scores = np.where(np.arange(beam) == 0, np.zeros((size, beam), np.float32), -np.inf)
        best = [(-np.inf, [])] * size
        count, done = np.zeros(size, int), np.zeros(size, bool)
        parents, last = np.arange(size * beam), np.full(size * beam, BOS, np.int32)
        for t in range(limit):
            log_probs, state = step(params, memory, state, parents, last)
            log_probs = np.array(log_probs).reshape(size, beam, -1)
            log_probs[..., [PAD, BOS]] = -np.inf
            if t == limit - 1:
                log_probs[..., EOS + 1 :] = -np.inf
            total = (scores[..., None] + log_probs).reshape(size, -1)
            chosen = np.argpartition(-total, 2 * beam, axis=1)[:, : 2 * beam]
            order = np.take_along_axis(total, chosen, 1).argsort(1, kind="stable")[:, ::-1]
            chosen = np.take_along_axis(chosen, order, 1)
            parent, token = np.divmod(chosen, log_probs.shape[-1])
            new = tokens[np.arange(size)[:, None], parent]
            new[:, :, t] = token
            value = np.take_along_axis(total, chosen, 1)
            for row in np.flatnonzero(~done):
                for i in np.flatnonzero(token[row, :beam] == EOS):
                    count[row] += 1
                    if value[row, i] > best[row][0]:
                        best[row] = (value[row, i], new[row, i].tolist())
            value = np.where(token == EOS, -np.inf, value)
            kept = (-value).argsort(1, kind="stable")[:, :beam]
            scores = np.take_along_axis(value, kept, 1)
            tokens = np.take_along_axis(new, kept[..., None], 1)
            parents = np.take_along_axis(parent, kept, 1) + np.arange(size)[:, None] * beam
            parents, last = parents.reshape(-1), tokens[:, :, t].reshape(-1)
            done |= (count >= beam) | (scores[:, 0] <= [score for score, _ in best])
            if done.all():
                break
        return np.array([w for _, w in best]), np.array([s for s, _ in best])

    return run


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Prints a row to each way and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="recurrent", choices=MODELS)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--source", type=int, default=16, help="tokens of a source")
    parser.add_argument("--length", type=int, default=32, help="most tokens of a hypothesis")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--no-eager", dest="eager", action="store_false", help="minutes, if scanned"
    )
    args = parser.parse_args()
    model, params, source, lengths = make(args)
    search = Search(beam=args.beam)

    def ours():
        found = decode(model, params, source, lengths, search)
        return np.asarray(found.tokens[:, 0]), np.asarray(found.scores[:, 0])

    def greedy():
        return np.asarray(decode(model, params, source, lengths, Search()).tokens)

    ways = {"compiled": ours, "greedy, compiled": greedy}
    loops = {"jitted step": True} | ({"eager step": False} if args.eager else {})
    for name, jit in loops.items():
        ways[name] = python_loop(model, params, source, lengths, args.beam, args.length, jit)
    first = {name: seconds(run) for name, run in ways.items()}
    tokens, scores = ours()
    others, values = ways["jitted step"]()
    np.testing.assert_allclose(scores, values, rtol=1e-4)
    agree = float((tokens == others).all(1).mean())
    rounds = [{name: seconds(run) for name, run in ways.items()} for _ in range(args.rounds)]
    produced = int((tokens != PAD).sum())
    rows = {}
    print(f"{produced:,} tokens of {args.batch} sentences; {agree:.0%} of them are the same")
    print(f"{'':18}{'first call':>12}{'later':>10}{'tokens/s':>11}{'ratio':>8}")
    for name in ways:
        time_s = statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r[name] / r["compiled"] for r in rounds)
        rows[name] = {"first_s": first[name], "s": time_s, "ratio": ratio}
        if name != "greedy, compiled":
            rows[name]["tokens_per_s"] = produced / time_s
        rate = f"{produced / time_s:11,.0f}" if "tokens_per_s" in rows[name] else " " * 11
        print(f"{name:18}{first[name]:11.2f}s{time_s:9.3f}s{rate}{ratio:8.2f}", flush=True)
    device = jax.devices()[0]
    result = {
        "device": {"platform": device.platform, "kind": device.device_kind},
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "arguments": vars(args),
        "same_hypotheses": agree,
        "decoding": rows,
    }
    path = RESULTS / f"decoding-{args.model}-{device.platform}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
