"""Translates text with a trained model.

python -m research.translate --workdir=runs/translation --text="Ein Hund läuft." --beam=5
python -m research.translate --workdir=runs/translation < source.de > translations.en
python -m research.translate --workdir=runs/translation --input=test.de --reference=test.en

The translations go to stdout, everything else to stderr. On a terminal it answers line by line.
"""

import dataclasses
import os
import secrets
import sys
import time
from pathlib import Path

from absl import flags

from research.command_line import run
from research.errors import UserError, check_output
from research.messages import progress_of, tell
from research.runs.bucket import open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run of a translation task.", required=True)
flags.DEFINE_string("text", "", "One sentence to translate.")
flags.DEFINE_string("input", "", "File of one sentence per line; neither: stdin.")
flags.DEFINE_string("reference", "", "File of right translations: prints BLEU and chrF.")
flags.DEFINE_integer("beam", None, "Hypotheses followed; 1: greedy. Default: that of the run.")
flags.DEFINE_integer("nbest", 1, "Translations of each line; above 1: 'i ||| text ||| score'.")
flags.DEFINE_float("length_penalty", None, "More favours longer ones. Default: that of the run.")
flags.DEFINE_float("coverage_penalty", None, "More favours reading all. Default: the run's.")
flags.DEFINE_integer("max_length", None, "Tokens of a translation. Default: that of the run.")
flags.DEFINE_float("temperature", 0.0, "Above 0 translations are drawn; divides the logits.")
flags.DEFINE_integer("top_k", 0, "Draws among the k most probable tokens; 0: all.")
flags.DEFINE_float("top_p", 1.0, "Draws among the most probable tokens of this total probability.")
flags.DEFINE_integer("seed", -1, "Random seed of drawing; -1 draws one and says which.")
flags.DEFINE_integer("batch_size", 64, "Sentences decoded together.", lower_bound=1)
flags.DEFINE_string("alignment", "", "Draws what was read of one sentence into this PNG file.")
flags.DEFINE_string("alignment_head", "mean", "The head that is drawn, LAYER.HEAD, or mean.")


def main() -> None:
    """Translates the lines and prints the translations."""
    options = flags.FLAGS
    lines = lines_of(options)
    references = file_lines("reference", options.reference) if options.reference else None
    check(options, lines, references)
    translator, config = open_translator(open_workdir(options.workdir), options)
    if lines is None:
        return converse(translator, options.nbest)
    from research.decoding.translation import as_lines, translate
    from research.tasks.text.translation_scores import bleu_tokenizer

    words_of_bleu = bleu_tokenizer(config.task.bleu_tokenizer, config.task.target_language)
    began = time.perf_counter()
    progress = progress_of(len(lines), "lines") if len(lines) > translator.batch_size else None
    drawn = bool(options.alignment)
    results, cut = translate(translator, lines, with_weights=drawn, progress=progress)
    print("\n".join(as_lines(results, options.nbest)), end="\n" if results else "", flush=True)
    if cut:
        tell_cut(cut, translator.model.config.length)
    tell(f"{len(lines):,} lines in {time.perf_counter() - began:.1f} s")
    if references is not None:
        tell_scores([row[0].text for row in results], references, words_of_bleu)
    if drawn:
        draw(translator, results, options)


def lines_of(options: flags.FlagValues) -> list[str] | None:
    """Returns the lines to translate, or None if they will be typed. Raises UserError."""
    from research.decoding.translation import read_lines

    if options.text and options.input:
        raise UserError("--text and --input are both given; give one of them.")
    if options["text"].present and not options.text.strip():
        raise UserError("--text is empty; give a sentence.")
    if options.text:
        return read_lines(os.fsencode(" ".join(options.text.split())), "--text")
    if options.input:
        return file_lines("input", options.input)
    return None if sys.stdin.isatty() else read_lines(sys.stdin.buffer.read(), "stdin")


def file_lines(flag: str, name: str) -> list[str]:
    """Returns the lines of the file named by a flag. Raises UserError."""
    from research.decoding.translation import read_lines

    if not Path(name).is_file():
        raise UserError(f"--{flag}={name}: there is no such file.")
    return read_lines(Path(name).read_bytes(), name)


def check(options: flags.FlagValues, lines: list | None, references: list | None) -> None:
    """Raises UserError for flags that do not fit the lines, before anything is computed."""
    if references is not None and (lines is None or len(references) != len(lines)):
        there = "typed lines" if lines is None else f"{len(lines):,} lines to translate"
        raise UserError(
            f"--reference={options.reference} has {len(references):,} lines, for {there}; it must "
            "have one for each."
        )
    if options.alignment and (lines is None or len([x for x in lines if x.strip()]) != 1):
        raise UserError("--alignment draws one sentence; give one with --text.")
    check_output("alignment", options.alignment, ".png")
    drawing = [name for name in ("top_k", "top_p", "seed") if options[name].present]
    if drawing and not options.temperature:
        raise UserError(f"--{drawing[0]} is for drawing; give --temperature, for example 0.8.")


def open_translator(workdir: Path, options: flags.FlagValues):
    """Returns the translator of a run, and its config. Raises UserError."""
    from research.decoding.translation import Translator
    from research.training.runs import load_run_config, open_run

    config = load_run_config(workdir, ("translation",))
    search = search_of(options, config.decoding.to_dict())
    search.limit(config.task.length)
    run = open_run(workdir, config)
    if run.tokenizer is None:
        raise UserError(f"{workdir} has no tokenizer.json: the model was imported without one.")
    # In a recurrent decoder, only the top layer attends to the source.
    layers = config.model.num_layers if config.model.name == "encoder_decoder" else 1
    seed = options.seed if options.seed >= 0 else secrets.randbelow(2**31)
    tell(f"best step {run.best['step']:,}" + (f", seed {seed}" if search.sampling else ""))
    search = dataclasses.replace(search, special=run.special)
    translator = Translator(
        run.model, run.params, run.tokenizer, search, layers, options.batch_size, seed
    )
    return translator, config


def search_of(options: flags.FlagValues, run_search: dict):
    """Returns the run's search settings, overridden by the flags. Raises UserError."""
    from research.decoding.sampling import Sampling
    from research.decoding.search import Search

    given = {key: options[key].value for key in run_search if key in options}
    values = run_search | {key: value for key, value in given.items() if value is not None}
    sampling = None
    if options.temperature:
        sampling = Sampling(options.temperature, options.top_k, options.top_p)
        values["beam"] = 1 if options.beam is None else options.beam
    return Search(**values, nbest=options.nbest, sampling=sampling)


def converse(translator, nbest: int) -> None:
    """Translates typed lines one by one until the end of input."""
    from research.decoding.translation import as_lines, read_lines, translate

    translate(translator, ["."], one_shape=True)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        try:
            content = sys.stdin.buffer.readline()
        except KeyboardInterrupt:
            content = b""
        if not content:
            return print(file=sys.stderr)
        try:
            results, cut = translate(translator, read_lines(content, "stdin"), one_shape=True)
        except UserError as error:
            tell(f"error: {error}")
            continue
        if cut:
            tell_cut(cut, translator.model.config.length)
        print("\n".join(as_lines(results, nbest)), flush=True)


def tell_cut(cut: list[int], length: int) -> None:
    """Reports on stderr which translations were cut at the maximum length."""
    first = ", ".join(f"{i + 1:,}" for i in cut[:10]) + (", ..." if len(cut) > 10 else "")
    tell(f"cut to task.length = {length:,} tokens: {len(cut):,} lines ({first})")


def tell_scores(translations: list[str], references: list[str], words_of_bleu: str) -> None:
    """Prints BLEU and chrF with their signatures."""
    from research.tasks.text.translation_scores import chrf, corpus_bleu

    bleu = corpus_bleu(translations, references, words_of_bleu)
    for name, (score, signature) in {"BLEU": bleu, "chrF2": chrf(translations, references)}.items():
        tell(f"{name} {score:.2f} ({signature})")


def draw(translator, results: list, options: flags.FlagValues) -> None:
    """Writes the alignment figure of the one translated sentence."""
    from research.inspect.alignment_picture import select_head, word_weights, write_alignment

    (best,) = (row[0] for row in results if row[0].source)
    weights = select_head(best.weights, options.alignment_head, translator.layers)
    write_alignment(*word_weights(weights, best.source, best.target), Path(options.alignment))
    tell(f"wrote {options.alignment}")


if __name__ == "__main__":
    run(main)
