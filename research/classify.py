"""Classifies texts with a trained model, and shows the words that mattered.

python -m research.classify --workdir=runs/sentiment "a lovely film" "not my kind of plot"
python -m research.classify --workdir=runs/sentiment --input=reviews.txt > reviews.tsv
python -m research.classify --workdir=runs/sentiment --by=integrated_gradients < reviews.txt

On a terminal, each text is shown with its label, the label's probability and its words in color:
green words speak for the label, red words against it. Otherwise, each text is one line of four
fields separated by tabs: label, probability, text, and all words as word:attribution, separated by
spaces. Invisible characters are escaped as in Python (\\x1b). Everything else goes to stderr.

The attribution of a word is the drop in the log-odds of the label (nats) when the word is replaced
by the unknown word; --by=integrated_gradients and gradient_times_input have the same unit, and
--by=attention gives the weights of the model's own pooling, which have no sign.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from research.command_line import run
from research.errors import UserError
from research.messages import progress_of, tell
from research.runs.bucket import open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run of the sentiment task.", required=True)
flags.DEFINE_string("input", "", "File of one text per line; neither this nor texts: stdin.")
flags.DEFINE_string(
    "by",
    "leave_one_out",
    "How words get their attributions: leave_one_out, integrated_gradients, gradient_times_input "
    "or attention.",
)

PROGRESS_FROM = 100
"""Number of texts from which progress is shown, if the results do not go to a terminal."""


def main(*texts: str) -> None:
    """Classifies the texts and prints the results."""
    options = flags.FLAGS
    lines = texts_of(texts, options.input)
    classifier = open_classifier(open_workdir(options.workdir), options.by)
    from research.inspect.classified_lines import show, tab_separated
    from research.interpret.classification import classify

    live = sys.stdout.isatty()
    progress = progress_of(len(lines), "texts") if len(lines) >= PROGRESS_FROM else None
    cut = []
    for number, text in enumerate(lines, 1):
        found = classify(classifier, text)
        if live:
            show(found, options.by)
        else:
            print(tab_separated(found, text), flush=number == len(lines))
        if found.num_truncated:
            cut.append(number)
        if progress and not live:
            progress(number)
    if cut:
        first = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
        longest = classifier.model.config.length
        tell(f"cut to task.length = {longest} tokens: {len(cut):,} texts ({first})")


def texts_of(texts: Sequence[str], file: str) -> list[str]:
    """Returns the texts to classify. Raises UserError if there are none or one is empty."""
    from research.decoding.translation import read_lines

    if texts and file:
        raise UserError("--input and texts are both given; give one of them.")
    if texts:
        found = [
            line
            for number, text in enumerate(texts, 1)
            for line in read_lines(os.fsencode(" ".join(text.split())), f"text {number}") or [""]
        ]
        name = "text"
    elif file:
        if not Path(file).is_file():
            raise UserError(f"--input={file}: there is no such file.")
        found, name = read_lines(Path(file).read_bytes(), file), f"{file}, line"
    elif sys.stdin.isatty():
        raise UserError('no text; give one or more: research.classify --workdir=DIR "A TEXT".')
    else:
        found, name = read_lines(sys.stdin.buffer.read(), "stdin"), "stdin, line"
    if not found:
        raise UserError(f"{file or 'stdin'} is empty; it must have one text per line.")
    for number, text in enumerate(found, 1):
        if not text.strip():
            raise UserError(f"{name} {number} is empty; give at least one word.")
    return found


def open_classifier(workdir: Path, method: str):
    """Returns the classifier of a run. Raises UserError for an unsuitable run or method."""
    from research.interpret.classification import TextClassifier, check_method
    from research.tasks.text.tokenizer import FILE, OPEN
    from research.training.runs import load_run_config, open_run

    run = open_run(workdir, load_run_config(workdir, ("sentiment",)))
    if run.tokenizer is None:
        raise UserError(f"{workdir} has no {FILE}: the model was imported without one.")
    if run.tokenizer.special != OPEN and "special" not in run.corpus:
        raise UserError(f"{workdir}/{FILE} is not the tokenizer of a sentiment task.")
    check_method(method, run.model)
    tell(f"best step {run.best['step']:,}")
    return TextClassifier(run.model, run.params, run.tokenizer, run.labels, method, run.special)


if __name__ == "__main__":
    run(main)
