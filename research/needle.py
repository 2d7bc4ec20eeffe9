"""Asks a trained language model for a fact that stands somewhere in a long text.

python -m research.needle --workdir=runs/gpt2 --input=novel.txt --lengths=256,512
python -m research.needle --workdir=runs/gpt2 --lengths=512,1024 --depths=0,0.1,0.5,0.9,1 --draws=32
python -m research.needle --workdir=runs/text --split=validation --answers=Romeo,Juliet,Paris \
    --fact="My name is {answer}." --question="My name is" --lengths=65
python -m research.needle --workdir=runs/llama --lengths=8192 --window=1024 --sinks=4

A sentence with a random fact is put at each depth of a text, which ends with the question, so that
text, question and answer have exactly the length in tokens (Mohtashami and Jaggi 2023; Kamradt
2023). Prints, for each length and depth, the fraction of facts that greedy decoding answers with
("found"), the log-probability of the answer in nats, the same if another fact stands in the text
("other_log_prob"), and the difference ("gain") with its standard error; writes them to
WORKDIR/needle.json and needle.png.
"""

from pathlib import Path
from typing import Any

from absl import flags

from research.command_line import run
from research.errors import UserError
from research.messages import progress_of, tell
from research.runs.bucket import named, open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run of a text task.", required=True)
flags.DEFINE_string("input", "", "UTF-8 text file that the fact is put into.")
flags.DEFINE_string("split", "", "Puts the fact into a split of the run's data instead.")
flags.DEFINE_string("filler", "", "Sentences to repeat instead. Default: about grass and sky.")
flags.DEFINE_list("lengths", [], "Tokens of text and answer. Default: the model's longest, half.")
flags.DEFINE_list("depths", ["0", "0.25", "0.5", "0.75", "1"], "Of the text, before the fact.")
flags.DEFINE_integer("draws", 16, "Facts at each length and depth.", lower_bound=1)
flags.DEFINE_string("fact", "", "Sentence with {answer} in it. Default: about a pass key.")
flags.DEFINE_string("question", "", "What comes before the answer. Default: about a pass key.")
flags.DEFINE_list("answers", [], "Drawn from these. Default: numbers of five digits.")
flags.DEFINE_integer("seed", 0, "Seed of the answers and of where texts begin.", lower_bound=0)
flags.DEFINE_integer("window", 0, "Tokens of a rolling cache, for any length; 0: reads all.")
flags.DEFINE_integer("sinks", 0, "How many of the window are the first of the text.")
flags.DEFINE_string("out", "", "Directory of needle.json and needle.png. Default: WORKDIR.")


def main() -> None:
    """Prints and writes the scores."""
    options = flags.FLAGS
    workdir = open_workdir(options.workdir)
    check(options)
    lengths = numbers("lengths", options.lengths, int)
    depths = numbers("depths", options.depths, float)
    from research.decoding.needle import (
        FACT,
        QUESTION,
        needle_cells,
        needles,
        table,
    )
    from research.inspect.token_probabilities import open_streaming

    opened, model = open_streaming(workdir, options.window, options.sinks)
    longest = model.config.length + 1
    lengths = lengths or sorted({longest // 2, longest})
    tell(f"best step {opened.best['step']:,}")
    drawn = needles(
        opened.tokenizer,
        options.draws,
        options.fact or FACT,
        options.question or QUESTION,
        options.answers,
        options.seed,
    )
    text, source = filler_of(opened, options, max(lengths))
    total = 2 * len(drawn) * len(lengths) * len(depths)
    cells = needle_cells(
        model,
        opened.params,
        text,
        drawn,
        lengths,
        depths,
        opened.tokenizer.around[0],
        bool(options.window),
        options.seed,
        progress_of(total, "texts"),
    )
    print(table(cells), end="")
    write(opened, cells, source, options)


def check(options: flags.FlagValues) -> None:
    """Raises UserError for incompatible flags, before anything is opened."""
    given = [f"--{name}" for name in ("input", "split", "filler") if options[name].present]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are both given; give one of them.")
    if options.input and not Path(options.input).is_file():
        raise UserError(f"--input={options.input}: there is no such file.")
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"--out={options.out} is no directory.")


def numbers(name: str, words: list[str], kind: type) -> list[Any]:
    """Returns the numbers of a flag, ascending. Raises UserError if one is not a number."""
    try:
        return sorted({kind(word) for word in words})
    except ValueError:
        example = "256,512" if kind is int else "0,0.5,1"
        raise UserError(f"--{name}={','.join(words)} must be numbers, such as {example}.") from None


def filler_of(opened: Any, options: flags.FlagValues, length: int) -> tuple[Any, str]:
    """Returns the tokens of the filler, at least `length` if it can be, and its description."""
    import numpy as np

    from research.decoding.needle import FILLER, repeated
    from research.inspect.inputs import text_of

    if options.input or options.split:
        text, source = text_of(opened, options.input, options.split)
        return np.asarray(text[: len(text)], np.int32), source
    sentences = options.filler or FILLER
    return repeated(opened.tokenizer.encode(sentences), length), "repeated sentences"


def write(opened: Any, cells: list[Any], source: str, options: flags.FlagValues) -> None:
    """Writes the scores of every fact to needle.json and draws the means in needle.png."""
    from research.configuration import to_plain
    from research.decoding.needle import FACT, QUESTION, summary
    from research.decoding.needle_picture import write_needle_picture
    from research.runs.store import write_json
    from research.training.records.environment import describe_environment

    rows = [
        summary(cell)
        | {
            "found_by_draw": cell.found.tolist(),
            "log_prob_by_draw": cell.log_prob.tolist(),
            "other_log_prob_by_draw": cell.other_log_prob.tolist(),
        }
        for cell in cells
    ]
    content = {
        "filler": source,
        "fact": options.fact or FACT,
        "question": options.question or QUESTION,
        "answers": options.answers,
        "draws": options.draws,
        "seed": options.seed,
        "window": options.window,
        "sinks": options.sinks,
        "best_step": opened.best["step"],
        "cells": rows,
        "config": to_plain(opened.config),
        "environment": describe_environment(),
    }
    folder = Path(options.out) if options.out else opened.path
    write_json(folder / "needle.json", content)
    title = f"{opened.path.name}: {options.draws} facts in {source}"
    write_needle_picture(cells, title, folder / "needle.png")
    tell(named(f"{folder / 'needle.json'}, {folder / 'needle.png'}"))


if __name__ == "__main__":
    run(main)
