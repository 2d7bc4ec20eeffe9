"""Scores every attention head of a trained language model: induction, previous token and others.

python -m research.heads --workdir=runs/gpt2
python -m research.heads --workdir=runs/gpt2 --input=novel.txt --length=256

Random tokens that come twice show induction (Olsson et al. 2022); a text, what heads do otherwise.
Prints a table, a line for each head, and writes WORKDIR/heads.tsv, heads.png and heads.html, a page
that needs no network.
"""

from pathlib import Path

from absl import flags

from research.command_line import run
from research.errors import UserError
from research.messages import tell
from research.runs.bucket import named, open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run of a text task.", required=True)
flags.DEFINE_string("input", "", "UTF-8 text file to measure heads on, too.")
flags.DEFINE_integer("length", 0, "Tokens of a sequence; 0: the model's longest, 256 at most.")
flags.DEFINE_integer("sequences", 16, "Sequences, of each kind.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of the random tokens.", lower_bound=0)
flags.DEFINE_string("out", "", "Directory of the files. Default: WORKDIR.")

LONGEST = 256


def main() -> None:
    """Prints and writes the scores."""
    options = flags.FLAGS
    workdir = open_workdir(options.workdir)
    if options.input and not Path(options.input).is_file():
        raise UserError(f"--input={options.input}: there is no such file.")
    from research.decoding.stream_curves import text_pieces
    from research.inspect.head_scores import (
        ON_REPEATED,
        ON_TEXT,
        HeadScores,
        head_scores,
        repeated_tokens,
        table,
        write_heads,
    )
    from research.inspect.inputs import text_of
    from research.training.runs import load_run_config, open_run

    opened = open_run(workdir, load_run_config(workdir, ("text", "tokens")))
    model, longest = opened.model, opened.model.config.length
    length = options.length or min(longest, LONGEST)
    if not 4 <= length <= longest:
        raise UserError(f"--length={length} must be from 4 to the model's longest, {longest}.")
    tell(f"best step {opened.best['step']:,}")
    size = opened.tokenizer.vocab_size if opened.tokenizer else model.config.vocab_size
    repeated = repeated_tokens(size, length, options.sequences, options.seed)
    scores = head_scores(model, opened.params, repeated, ON_REPEATED, "repeated")
    if options.input:
        text = text_of(opened, options.input)[0]
        pieces = text_pieces(text, length - 1, options.sequences)
        of_text = head_scores(model, opened.params, pieces, ON_TEXT, "text")
        scores = HeadScores(scores.heads, (*scores.columns, *of_text.columns))
    print(table(scores), end="")
    folder = Path(options.out) if options.out else workdir
    title = f"{opened.path.name}: {len(scores.heads)} heads"
    tell(", ".join(named(path) for path in write_heads(scores, title, folder)))


if __name__ == "__main__":
    run(main)
