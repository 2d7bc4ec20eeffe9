"""Continues a prompt with a trained language model, or prints the log-probability of a text.

python -m research.generate --workdir=runs/text --prompt="ROMEO:" --tokens=500 --temperature=0.8
python -m research.generate --workdir=runs/text --prompt="ROMEO:" --attention=runs/romeo.html
python -m research.generate --workdir=runs/text --tokens=5000 --window=64 --sinks=4
python -m research.generate --workdir=runs/text --score="O Romeo, Romeo!" --logprobs=tsv
"""

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from research.command_line import run
from research.errors import UserError, check_output
from research.messages import tell
from research.runs.bucket import open_workdir

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
flags.DEFINE_string("attention", "", "Page of the attention with which it is written, a .html.")


def main() -> None:
    """Prints a continuation of the prompt, or scores a text."""
    import jax
    import numpy as np

    from research.decoding.continuation import continuation
    from research.decoding.sampling import Sampling
    from research.inspect.inputs import generation_subject
    from research.inspect.token_probabilities import open_streaming, show_lines, show_scores

    options = flags.FLAGS
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    workdir = open_workdir(options.workdir)
    check(options)
    run, model = open_streaming(workdir, options.window, options.sinks)
    if options.score:
        show_scores(run.tokenizer, model, run.params, options)
        return
    prompt = np.tile(run.tokenizer.encode_start(options.prompt), (options.samples, 1))
    seed = options.seed if options.seed >= 0 else secrets.randbelow(2**31)
    tell(f"best step {run.best['step']:,}, seed {seed}")
    key, streams = jax.random.key(seed), bool(options.window)
    chunks = continuation(model, run.params, prompt, options.tokens, sampling, key, streams)
    written: list[int] = []
    if options.attention:
        chunks = kept(chunks, written)
    if options.logprobs:
        show_lines(run.tokenizer, chunks, options.logprobs)
    else:
        tokens = (chunk.tokens for chunk in chunks)
        show(options.prompt, texts(run.tokenizer, tokens, options.samples), options.samples)
    if options.attention:
        from research.inspect.inspecting import inspect
        from research.inspect.page import write_page

        subject = generation_subject(run, prompt[0].tolist(), written)
        write_page(inspect(run, subject), Path(options.attention))
        tell(options.attention)


def check(options: flags.FlagValues) -> None:
    """Raises UserError for incompatible flags, before anything is opened."""
    if not options.prompt:
        raise UserError("--prompt is empty; give at least one character.")
    check_output("attention", options.attention, ".html")
    if options.attention and options.score:
        raise UserError(
            "--score writes nothing; `research.inspect --text` shows how a given text is read."
        )
    if options.attention and options.samples > 1:
        raise UserError(f"--attention shows one sample, not {options.samples}; give --samples=1.")
    if options.attention and options.window:
        raise UserError(
            "--attention reads all tokens at once, which a rolling cache (--window) does not."
        )


def kept(chunks: Iterator, written: list[int]) -> Iterator:
    """Passes on the chunks of a single sample, appending their tokens to `written`."""
    for chunk in chunks:
        written += chunk.tokens[0].tolist()
        yield chunk


def texts(tokenizer, chunks: Iterator, samples: int) -> Iterator[list[str]]:
    """Yields the text of every sample so far, after each chunk."""
    tokens: list[list[int]] = [[] for _ in range(samples)]
    for chunk in chunks:
        for row, new in zip(tokens, chunk.tolist(), strict=True):
            row += new
        yield [tokenizer.decode(row) for row in tokens]


def show(prompt: str, states: Iterator[list[str]], samples: int) -> None:
    """Prints one sample as it is generated; several as live panels, or in turn into a file."""
    if samples == 1:
        print(prompt, end="", flush=True)
        shown = ""
        for (text,) in states:
            # The last character may still lack bytes, and printed output cannot be taken back.
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
