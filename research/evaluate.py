"""Evaluates a trained model again, or streams a long text through it.

python -m research.evaluate --workdir=runs/text
python -m research.evaluate --workdir=runs/translation --split=test
python -m research.evaluate --workdir=runs/text --window=64 --sinks=0,1,2,4 --tokens=4096
python -m research.evaluate --workdir=runs/text --input=novel.txt --tokens=20000 --recompute
python -m research.evaluate --workdir=runs/gpt2 --input=novel.txt --stride=512

Without streaming flags it prints the metrics of the best checkpoint, computed with the current code
and data, and says whether they agree with result.json.

Streaming reads a text far longer than the training length through a rolling cache, once for each
number of first tokens ("sinks") that are kept in the cache (Xiao et al. 2023). It prints the loss
at positions where tokens have left the cache, next to the loss with all tokens in the cache, up to
the model's maximum length ("dense"), and, with --recompute, the loss if the latest tokens are
re-encoded for every new token. The loss by position is in WORKDIR/stream.json and stream.png.

With --stride the whole text is read in windows of the model's longest sequence (or --window), each
so many tokens after the one before and predicting what that did not reach, and its perplexity is
printed.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from research.command_line import run
from research.errors import UserError, check_name
from research.messages import progress_of, tell
from research.runs.bucket import named, open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
flags.DEFINE_string("split", "", "Of the run's data. Default: all; of a stream: validation.")
flags.DEFINE_integer("window", 0, "Tokens of the rolling cache. Default: task.length.")
flags.DEFINE_list("sinks", ["0", "1", "2", "4"], "How many of them are the first of the text.")
flags.DEFINE_integer("tokens", 4096, "Tokens of each piece of the text.")
flags.DEFINE_integer("pieces", 8, "Pieces of the text, side by side.", lower_bound=1)
flags.DEFINE_string("input", "", "UTF-8 text file to stream in place of the run's data.")
flags.DEFINE_integer("stride", 0, "Reads the text in windows so far apart; for its perplexity.")
flags.DEFINE_boolean("recompute", False, "Also reads the window anew for each token: slow.")
flags.DEFINE_string("out", "", "Directory of stream.json and stream.png. Default: WORKDIR.")

STREAM = ("window", "sinks", "tokens", "pieces", "input", "recompute", "out")
"""Flags for streaming."""
STRIDED = ("window", "input", "split")
"""Flags that go with --stride."""


def main() -> None:
    """Evaluates the best checkpoint, or streams a long text, and prints the results."""
    options = flags.FLAGS
    workdir = open_workdir(options.workdir)
    strided = options["stride"].present
    streams = strided or any(options[name].present for name in STREAM)
    if streams:
        check(options)
    from research.inspect.inputs import text_splits
    from research.training.runs import load_run_config, open_run

    config = load_run_config(workdir, ("text", "tokens") if streams else ())
    if streams and not options.input:
        check_name("--split", options.split or "validation", text_splits(config))
    sizes = sizes_of(config, options) if streams and not strided else (0, 0)
    opened = open_run(workdir, config)
    tell(f"best step {opened.best['step']:,}")
    if strided:
        whole(opened, options)
    elif streams:
        stream(opened, options, *sizes)
    else:
        again(opened, options.split)


def again(opened: Any, split: str) -> None:
    """Evaluates a run again and prints lines of split, metric and value, separated by tabs."""
    from research.runs.parameters import PARAMETERS
    from research.runs.store import read_result
    from research.training.evaluating import evaluate, metric_changes

    metrics, labels = evaluate(opened, split)
    print("split\tmetric\tvalue")
    for name, of_split in metrics.items():
        for metric, value in of_split.items():
            named = [(metric, value)]
            if isinstance(value, list):
                cut = [f"{metric}[{label}]" for label in labels[metric]]
                named = list(zip(cut, value, strict=True))
            for text, number in named:
                print(f"{name}\t{text}\t{number:.6g}")
    result = read_result(opened.path)
    if result is None:
        trains = not (opened.path / PARAMETERS).is_file()
        why = "training has not finished" if trains else "the run was imported"
        tell(f"{why}: there is no result.json to compare with")
    elif found := metric_changes(metrics, result):
        tell(f"{len(found)} differ from result.json: {'; '.join(found[:5])}")
    else:
        tell("the same as in result.json")


def whole(opened: Any, options: flags.FlagValues) -> None:
    """Prints the perplexity of a text that is read in windows. Raises UserError."""
    import numpy as np

    from research.decoding.perplexity import text_loss
    from research.inspect.inputs import text_of

    text, source = text_of(opened, options.input, options.split)
    length = options.window or opened.model.config.length
    tokens = np.asarray(text[: len(text)], np.int32)
    tell(f"{len(tokens):,} tokens of {source}, windows of {length:,} every {options.stride:,}")
    progress = progress_of(len(tokens), "tokens")
    found = text_loss(opened.model, opened.params, tokens, length, options.stride, progress)
    print(f"tokens\t{found.tokens}\nloss\t{found.nats:.6f}\nperplexity\t{found.perplexity:.4f}")
    if options.input:
        size = Path(options.input).stat().st_size
        print(f"bits_per_byte\t{found.nats * found.tokens / size / np.log(2):.6f}")


def check(options: flags.FlagValues) -> None:
    """Raises UserError for invalid streaming flags, before anything is opened."""
    sinks_of(options)
    if options["stride"].present:
        if other := [f"--{n}" for n in STREAM if n not in STRIDED and options[n].present]:
            raise UserError(
                f"--stride reads a whole text, and {other[0]} is of a stream; leave it."
            )
        if options.stride < 1:
            raise UserError(f"--stride={options.stride} must be at least 1.")
    if options["window"].present and options.window < 1:
        raise UserError(f"--window={options.window} must be at least 1.")
    if options["input"].present and not Path(options.input).is_file():
        raise UserError(f"--input={options.input}: there is no such file.")
    if options.input and options["split"].present:
        raise UserError("--input and --split are both given; give one of them.")
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"--out={options.out} is no directory.")


def sinks_of(options: flags.FlagValues) -> list[int]:
    """Returns the numbers of sinks, ascending. Raises UserError if one is not a number."""
    words = options.sinks
    if not words or not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--sinks={','.join(words)} must be numbers from 0, such as 0,4.")
    return sorted({int(word) for word in words})


def sizes_of(config: ConfigDict, options: flags.FlagValues) -> tuple[int, int]:
    """Returns the window and the model's maximum length, in tokens. Raises UserError."""
    window = options.window or config.task.length
    longest = max((config.task.length, *config.task.get("eval_lengths", ())))
    if options.tokens <= window:
        raise UserError(
            f"--tokens={options.tokens} must be more than the window of {window} tokens."
        )
    if options.recompute and window > longest:
        raise UserError(
            f"--recompute reads --window={window} tokens at once, and the model has room for "
            f"{longest}; give a smaller window."
        )
    return window, longest


def stream(opened: Any, options: flags.FlagValues, window: int, longest: int) -> None:
    """Streams a text, prints a table, and writes the curves and a figure. Raises UserError.

    Args:
      opened: the run.
      options: flags of the command.
      window: size of the rolling cache, in tokens.
      longest: maximum number of tokens that the model can read at once.
    """
    from research.decoding.stream_curves import stream_models, summaries, text_pieces
    from research.inspect.inputs import text_of

    models = stream_models(opened.model, window, sinks_of(options))
    text, source = text_of(opened, options.input, options.split)
    tokens = text_pieces(text, options.tokens, options.pieces)
    tell(f"{len(tokens)} pieces of {options.tokens:,} tokens of {source}, window {window:,}")
    curves = curves_of(opened, models, tokens, window, longest, options.recompute)
    found = summaries(curves, window)
    show(curves, found)
    write(opened, curves, found, tokens, window, source, Path(options.out or opened.path))


def curves_of(
    opened: Any, models: list, tokens: Any, window: int, longest: int, recompute: bool
) -> list[Any]:
    """Returns one loss curve for each way to read the text; shows progress on stderr."""
    from research.decoding.stream_curves import (
        Curve,
        full_attention_losses,
        recomputed_window_losses,
        streaming_losses,
    )
    from research.models.registry import make_model

    config, params, number = opened.config, opened.params, tokens.shape[1] - 1
    curves = []
    for name, sinks, model in models:
        tell(f"{name}:")
        progress = progress_of(number, "tokens")
        curves.append(Curve(name, sinks, streaming_losses(model, params, tokens, progress)))
    model: Any = make_model(config.model, opened.model.config.vocab_size, longest)
    if recompute:
        tell("recomputed:")
        progress = progress_of(number, "tokens")
        losses = recomputed_window_losses(model, params, tokens, window, progress)
        curves.append(Curve("recomputed", -1, losses))
    room = min(longest, number)
    losses = full_attention_losses(model, params, tokens[:, : room + 1])
    curves.append(Curve("dense", -1, losses))
    return curves


def show(curves: list[Any], found: list[Any]) -> None:
    """Prints a table of loss and perplexity, one row per curve."""
    width = max(len(curve.name) for curve in curves)
    print(f"{'':{width}}  {'positions':>13}  {'loss':>7}  {'perplexity':>10}  {'ratio':>6}")
    for curve, one in zip(curves, found, strict=True):
        positions = f"{one.first:,}-{one.last:,}"
        ratio = "" if one.ratio != one.ratio else f"{one.ratio:.3f}"
        numbers = f"{one.loss:7.4f}  {one.perplexity:10.3f}  {ratio:>6}"
        print(f"{curve.name:{width}}  {positions:>13}  {numbers}".rstrip())


def write(
    opened: Any,
    curves: list[Any],
    found: list[Any],
    tokens: Any,
    window: int,
    source: str,
    folder: Path,
) -> None:
    """Writes the curves to stream.json and draws them in stream.png."""
    from research.configuration import to_plain
    from research.decoding.stream_curves import bin_means, position_bins
    from research.decoding.stream_picture import write_stream_picture
    from research.runs.store import write_json
    from research.training.records.environment import describe_environment

    bins = position_bins(tokens.shape[1] - 1)
    rows = [
        {"name": curve.name, "sinks": curve.sinks, **one._asdict()}
        | {"loss_by_position": bin_means(curve.losses, bins)}
        for curve, one in zip(curves, found, strict=True)
    ]
    content = {
        "text": source,
        "pieces": len(tokens),
        "tokens": tokens.shape[1] - 1,
        "window": window,
        "best_step": opened.best["step"],
        "positions": bins,
        "curves": rows,
        "config": to_plain(opened.config),
        "environment": describe_environment(),
    }
    write_json(folder / "stream.json", content)
    title = f"{opened.path.name}: {len(tokens)} x {tokens.shape[1] - 1:,} tokens of {source}"
    write_stream_picture(curves, window, title, folder / "stream.png")
    tell(named(f"{folder / 'stream.json'}, {folder / 'stream.png'}"))


if __name__ == "__main__":
    run(main)
