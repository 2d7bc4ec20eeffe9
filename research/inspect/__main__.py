"""Writes a page that shows what a trained model does inside with one sequence.

python -m research.inspect --workdir=runs/translation --text="Ein Hund läuft im Schnee."
python -m research.inspect --workdir=runs/recall --index=3 --split=test
python -m research.inspect --workdir=runs/speech --input=recording.wav --out=recording.html
python -m research.inspect --workdir=runs/text --text="ROMEO:" --layers=1 --heads=2 --png=head.png

The page, WORKDIR/inspect.html unless --out says otherwise, has the attention weights of all heads
of all layers, measures of each, what the model makes of every token, and what the run is. It is one
file that needs no network. --png draws the heads for a paper; without --out it is all that is
written. The path of what was written goes to stdout, everything else to stderr.
"""

from pathlib import Path

from absl import flags

from research.command_line import run
from research.errors import UserError, check_output
from research.messages import tell
from research.runs.bucket import named, open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
flags.DEFINE_string("text", "", "Text for the model to read.")
flags.DEFINE_integer("index", None, "Number of the sequence of the run's data to read, from 0.")
flags.DEFINE_string("input", "", "Recording for the model to read: a WAV or FLAC file.")
flags.DEFINE_string("split", "validation", "Split of the run's data that --index counts in.")
flags.DEFINE_string("target", "", "Target text, in place of the model's own output.")
flags.DEFINE_boolean("reference", False, "Uses the reference of --index as the target.")
flags.DEFINE_list("layers", [], "Layers to show, such as 0,2; none: all.")
flags.DEFINE_list("heads", [], "Heads to show, such as 1,3; none: all.")
flags.DEFINE_list("kinds", [], "Kinds of attention to show: self, cross, pooling; none: all.")
flags.DEFINE_string("out", "", "File of the page. Default: WORKDIR/inspect.html.")
flags.DEFINE_string("png", "", "File of a picture: of all heads, or of one head with its tokens.")
flags.DEFINE_integer("budget", 16, "Most MB of attention weights in the page.", lower_bound=1)
flags.DEFINE_string("base", "configs/base.py", "Config that the run's config is compared with.")


def main() -> None:
    """Inspects the model on one sequence and writes the page or picture."""
    options = flags.FLAGS
    workdir = open_workdir(options.workdir)
    check(options)
    from research.inspect.inspecting import Selection, inspect
    from research.training.runs import load_run_config, open_run

    opened = open_run(workdir, load_run_config(workdir))
    tell(f"best step {opened.best['step']:,}")
    subject = select_subject(opened, options)
    chosen = Selection(numbers("layers", options), numbers("heads", options), tuple(options.kinds))
    inspection = inspect(opened, subject, chosen, options.base)
    for line in inspection.lines:
        tell(line)
    write(inspection, workdir, options)
    heads = sum(len(one.weights) for one in inspection.maps)
    tell(f"{heads} heads in {len(inspection.maps)} maps: {inspection.title}")


def check(options: flags.FlagValues) -> None:
    """Raises UserError for invalid or conflicting options, before anything is opened."""
    given = [f"--{name}" for name in ("text", "index", "input") if options[name].present]
    if not given:
        raise UserError(
            "nothing to inspect; give --text, --index=N (a sequence of the run's data) or "
            "--input=FILE.wav (a recording)."
        )
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are given; give one of them.")
    for name, what in (("text", "at least one word"), ("input", "a WAV or FLAC file")):
        if options[name].present and not getattr(options, name).strip():
            raise UserError(f"--{name} is empty; give {what}.")
    if options["split"].present and options.index is None:
        raise UserError(f"--split={options.split} is for --index; give --index=N.")
    if options.reference and options.index is None:
        raise UserError("--reference needs --index, whose reference is known; or give --target.")
    if options.reference and options.target:
        raise UserError("--reference and --target are both given; give one of them.")
    for name in ("text", "target"):
        if any("\ud800" <= character <= "\udfff" for character in getattr(options, name)):
            raise UserError(f"--{name} is not UTF-8.")
    for name in ("layers", "heads"):
        numbers(name, options)
    for name, ending in (("out", ".html"), ("png", ".png")):
        check_output(name, getattr(options, name), ending)


def numbers(flag: str, options: flags.FlagValues) -> tuple[int, ...]:
    """Returns the indices listed in a flag, sorted. Raises UserError for anything else."""
    words = getattr(options, flag)
    if not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--{flag}={','.join(words)} must be numbers from 0, such as 0,2.")
    return tuple(sorted({int(word) for word in words}))


def select_subject(opened, options: flags.FlagValues):
    """Returns the sequence that the options select. Raises UserError if it does not exist."""
    from research.inspect.inputs import example_subject, recording_subject, text_subject

    if options.input:
        return recording_subject(opened, Path(options.input), options.target)
    if options.text:
        return text_subject(opened, options.text, options.target)
    return example_subject(opened, options.split, options.index, options.target, options.reference)


def write(inspection, workdir: Path, options: flags.FlagValues) -> None:
    """Writes the requested files and prints their paths."""
    if options.png:
        from research.inspect.picture import write_picture

        write_picture(inspection, Path(options.png))
        print(options.png)
    if options.out or not options.png:
        from research.inspect.page import write_page

        path = Path(options.out) if options.out else workdir / "inspect.html"
        write_page(inspection, path, options.budget << 20)
        print(named(path), flush=True)


if __name__ == "__main__":
    run(main)
