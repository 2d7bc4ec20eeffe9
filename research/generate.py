"""Continues a prompt with a trained language model, or says how probable a text is to it.

python -m research.generate --workdir=runs/text --prompt="ROMEO:" --tokens=500 --temperature=0.8
python -m research.generate --workdir=runs/text --tokens=5000 --window=64 --sinks=4
python -m research.generate --workdir=runs/text --score="O Romeo, Romeo!" --logprobs=tsv
"""

import json
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from research.configuration import run
from research.errors import UserError

flags.DEFINE_string("workdir", None, "Directory of a run of a text task.", required=True)
flags.DEFINE_string("prompt", "\n", "Text to continue.")
flags.DEFINE_integer("tokens", 500, "Tokens to generate.", lower_bound=1)
flags.DEFINE_integer("samples", 1, "Continuations, generated side by side.", lower_bound=1)
flags.DEFINE_float("temperature", 0.8, "Divides the logits; 0 takes the most probable token.")
flags.DEFINE_integer("top_k", 0, "Draws among the k most probable tokens; 0: all.")
flags.DEFINE_float("top_p", 1.0, "Draws among the most probable tokens of this total probability.")
flags.DEFINE_integer("seed", -1, "Random seed; -1 draws one and says which.")
flags.DEFINE_integer("window", 0, "Tokens of a rolling cache; 0: starts again when it is full.")
flags.DEFINE_integer("sinks", 0, "How many of the window are the first of the text.")
flags.DEFINE_string("score", "", "Says how probable each token of this text is; writes nothing.")
flags.DEFINE_enum(
    "logprobs", "", ["", "tsv", "json"], "Prints a line for each token in place of the text."
)

COLUMNS = ("sample", "token", "log_prob", "entropy", "rank")
"""Of --logprobs: from 1, JSON text, nats, nats, tokens that were more probable. log_prob and
entropy are the model's own, before temperature, top_k and top_p."""


def main() -> None:
    """Continues the prompt and prints it, or scores a text."""
    import jax
    import numpy as np

    from research.decoding.continuation import continuation
    from research.decoding.sampling import Sampling

    options = flags.FLAGS
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    workdir = Path(options.workdir)
    if not options.prompt:
        raise UserError("--prompt is empty; give at least one character.")
    run, model = opened(workdir, options.window, options.sinks)
    if options.score:
        show_scores(run.tokenizer, model, run.params, options)
        return
    prompt = np.tile(run.tokenizer.encode(options.prompt), (options.samples, 1))
    seed = options.seed if options.seed >= 0 else secrets.randbelow(2**31)
    print(f"best step {run.best['step']:,}, seed {seed}", file=sys.stderr)
    key, streams = jax.random.key(seed), bool(options.window)
    chunks = continuation(model, run.params, prompt, options.tokens, sampling, key, streams)
    if options.logprobs:
        show_lines(run.tokenizer, chunks, options.logprobs)
    else:
        written = (chunk.tokens for chunk in chunks)
        show(options.prompt, texts(run.tokenizer, written, options.samples), options.samples)


def opened(workdir: Path, window: int, sinks: int) -> tuple[Any, Any]:
    """Returns a run, and its model with a rolling cache if there is to be one.

    Args:
      workdir: of the run.
      window: tokens of the cache; 0: no such cache.
      sinks: how many of them are the first of the text.

    Raises UserError for what is no run of a text task, or cannot stream.
    """
    from research.decoding.streaming import streaming
    from research.training.runs import load_config_of, open_run

    config = load_config_of(workdir, ("text",))
    if sinks and not window:
        raise UserError(f"--sinks={sinks} are of a rolling cache; give its size with --window.")
    run = open_run(workdir, config)
    return run, streaming(run.model, window, sinks) if window else run.model


def show_scores(tokenizer: Any, model: Any, params: Any, options: Any) -> None:
    """Prints a line for each token of --score but the first, and the mean in nats to stderr."""
    import jax.numpy as jnp
    import numpy as np

    from research.decoding.streaming import stream_scores

    tokens = tokenizer.encode(options.score)
    if len(tokens) < 2:
        raise UserError("--score takes at least two tokens: the first one is only read.")
    if len(tokens) - 1 > model.config.length and not options.window:
        raise UserError(
            f"--score has {len(tokens):,} tokens, the model has room for "
            f"{model.config.length + 1:,}; a rolling cache takes them all: "
            f"--window={model.config.length} --sinks=4."
        )
    tokens = np.asarray(tokens, np.int32)[None]
    scores = stream_scores(model, params, jnp.asarray(tokens))
    written = tokens[:, 1:], *(np.asarray(a) for a in scores)
    print_lines(tokenizer, [written], options.logprobs or "tsv")
    nats = -float(np.mean(scores.log_prob))
    print(f"{nats:.4f} nats per token, perplexity {np.exp(nats):.3f}", file=sys.stderr)


def show_lines(tokenizer: Any, chunks: Iterable[Any], form: str) -> None:
    """Prints a line for each generated token, as they come."""
    print_lines(tokenizer, ((chunk.tokens, *chunk.scores) for chunk in chunks), form)


def print_lines(tokenizer: Any, chunks: Iterable[tuple], form: str) -> None:
    """Prints lines of `COLUMNS`, of chunks (tokens, log_prob, entropy, rank), each (B, n)."""
    if form == "tsv":
        print("\t".join(COLUMNS))
    for chunk in chunks:
        for sample, row in enumerate(zip(*chunk, strict=True), 1):
            for token, log_prob, entropy, rank in zip(*row, strict=True):
                text = tokenizer.decode([int(token)])
                values = (sample, text, float(log_prob), float(entropy), int(rank))
                if form == "json":
                    print(json.dumps(dict(zip(COLUMNS, values, strict=True))))
                else:
                    # Quoted and escaped, so that a tab or a line break is no column and no line.
                    print(
                        f"{sample}\t{json.dumps(text)}\t{log_prob:.6f}\t{entropy:.6f}\t{int(rank)}"
                    )
        sys.stdout.flush()


def texts(tokenizer, chunks: Iterator, samples: int) -> Iterator[list[str]]:
    """Yields what each sample has become so far."""
    tokens: list[list[int]] = [[] for _ in range(samples)]
    for chunk in chunks:
        for row, new in zip(tokens, chunk.tolist(), strict=True):
            row += new
        yield [tokenizer.decode(row) for row in tokens]


def show(prompt: str, states: Iterator[list[str]], samples: int) -> None:
    """Prints one sample as it comes; several as panels, or one after the other into a file."""
    if samples == 1:
        print(prompt, end="", flush=True)
        shown = ""
        for (text,) in states:
            # A character may still lack bytes; what was printed cannot be taken back.
            ready = text.rstrip("\ufffd")
            if ready.startswith(shown):
                print(ready[len(shown) :], end="", flush=True)
                shown = ready
        print()
        return
    if not sys.stdout.isatty():
        *_, last = states
        for number, text in enumerate(last, 1):
            print(f"--- sample {number}\n{prompt}{text}")
        return
    from rich.columns import Columns
    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    with Live(refresh_per_second=8) as live:
        for now in states:
            panels = [Panel(Text(prompt + t), title=str(i)) for i, t in enumerate(now, 1)]
            live.update(Columns(panels))


if __name__ == "__main__":
    run(main)
