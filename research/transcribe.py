"""Transcribes recordings with a trained model of speech.

python -m research.transcribe --workdir=runs/speech recordings/*.wav
python -m research.transcribe --workdir=runs/speech --beam=8 --ctc_weight=0.3 a.flac b.wav
python -m research.transcribe --workdir=runs/speech --alignment=a.png a.wav

Files are WAV or FLAC. For each file, in the given order, one line goes to stdout: path, transcript
and confidence, separated by tabs; with --nbest, one line per transcript, best first. Everything
else goes to stderr. The confidence, between 0 and 1, is exp of the mean log probability of a token
under the search's score. A file that cannot be read gets one line on stderr; the other files are
still transcribed, and the exit code is 2.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from research.command_line import run
from research.errors import UserError, check_output
from research.messages import tell
from research.runs.bucket import open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run of the speech task.", required=True)
flags.DEFINE_integer("beam", None, "Hypotheses followed; 1: greedy. Default: that of the run.")
flags.DEFINE_integer("nbest", 1, "Transcripts of each file, at most the beam.")
flags.DEFINE_float("length_penalty", None, "More favours longer ones. Default: that of the run.")
flags.DEFINE_float("ctc_weight", None, "Of CTC in the score, 0 to 1. Default: that of the run.")
flags.DEFINE_integer("batch_size", 16, "Recordings decoded together.", lower_bound=1)
flags.DEFINE_string("alignment", "", "Draws what was read of one file's frames into this PNG file.")

FROM_RUN = ("beam", "length_penalty", "ctc_weight")
TOGETHER = 256
"""Number of files held in memory at once; their transcripts appear together."""


def main(*files: str) -> int:
    """Transcribes the files and prints the transcripts; returns the exit code."""
    options = flags.FLAGS
    check(options, files)
    from research.tasks.speech.features import SHIFT_SECONDS

    transcriber, config, longest = open_transcriber(open_workdir(options.workdir), options)
    began, seconds, failed = time.perf_counter(), 0.0, 0
    for start in range(0, len(files), TOGETHER):
        features = read(files[start : start + TOGETHER], config.task, longest)
        show(transcriber, features, options)
        failed += len(files[start : start + TOGETHER]) - len(features)
        seconds += sum(len(frames) for _, frames in features) * SHIFT_SECONDS
    passed = time.perf_counter() - began
    tell(f"{len(files) - failed:,} files, {seconds:,.1f} s of audio, in {passed:.1f} s")
    if failed:
        tell(f"error: {failed:,} of {len(files):,} files could not be read")
    return 2 if failed else 0


def check(options: flags.FlagValues, files: tuple[str, ...]) -> None:
    """Raises UserError for flags that do not fit the files, before anything is computed."""
    if not files:
        raise UserError("no files; give one or more: research.transcribe --workdir=DIR FILE.wav")
    picture = options.alignment
    if picture and len(files) != 1:
        raise UserError(f"--alignment draws one file, not {len(files):,}; give one.")
    check_output("alignment", picture, ".png")


def open_transcriber(workdir: Path, options: flags.FlagValues):
    """Returns the transcriber of a run, its config, and the frames of its longest training source.

    Raises UserError if the run or the flags do not allow transcription.
    """
    from research.decoding.search import Search, check_model
    from research.decoding.transcription import Transcriber
    from research.training.runs import load_run_config, open_run

    config = load_run_config(workdir, ("speech",))
    given = {key: options[key].value for key in FROM_RUN if options[key].value is not None}
    search = Search(**(config.decoding.to_dict() | given), nbest=options.nbest)
    search.limit(config.task.length)
    run = open_run(workdir, config)
    check_model(search, run.model.config)
    tell(f"best step {run.best['step']:,}")
    transcriber = Transcriber(run.model, run.params, run.tokenizer, search, options.batch_size)
    return transcriber, config, run.corpus.get("longest_frames")


def read(files: tuple[str, ...], task, longest: int | None) -> list[tuple[str, Any]]:
    """Returns path and features of every readable file; reports the unreadable ones on stderr."""
    from research.decoding.transcription import read_features
    from research.tasks.speech.features import SHIFT_SECONDS

    found = []
    for path in files:
        try:
            frames = read_features(Path(path), task)
        except UserError as error:
            tell(f"error: {error}")
            continue
        if longest and len(frames) > longest:
            tell(
                f"{path}: {len(frames) * SHIFT_SECONDS:.2f} s, longer than anything in training "
                f"({longest * SHIFT_SECONDS:.2f} s)"
            )
        found.append((path, frames))
    return found


def show(transcriber, features: list, options: flags.FlagValues) -> None:
    """Transcribes files, prints their lines, and draws the alignment of a file if requested."""
    from research.decoding.search import ctc_share
    from research.decoding.transcription import transcribe

    alone = ctc_share(transcriber.model.config) == 1
    drawn = bool(options.alignment)
    results = transcribe(transcriber, [f for _, f in features], drawn and not alone)
    for (path, _), transcripts in zip(features, results, strict=True):
        for t in transcripts:
            line = f"{path}\t{t.text}\t{t.confidence:.4f}\n"
            sys.stdout.buffer.write(os.fsencode(line))  # a path need not be UTF-8
        if not transcripts[0].complete:
            limit = transcriber.search.limit(transcriber.model.config.length)
            tell(f"{path}: the transcript has {limit:,} tokens, the most there may be")
    sys.stdout.buffer.flush()
    if drawn and features:
        draw(transcriber, features[0][1], results[0][0], Path(options.alignment), alone)


def draw(transcriber, frames, transcript, path: Path, alone: bool) -> None:
    """Writes a figure of a file's attention, or of its CTC labels if CTC decodes alone."""
    from research.decoding.transcription import label_posteriors
    from research.inspect.speech_picture import write_speech_alignment, write_speech_labels

    if alone:
        posteriors = label_posteriors(transcriber, frames)
        pieces = transcriber.tokenizer.pieces(list(range(posteriors.shape[1])))
        write_speech_labels(frames, posteriors, pieces, path)
    else:
        write_speech_alignment(frames, transcript.weights, transcript.pieces, path)
    tell(f"wrote {path}")


if __name__ == "__main__":
    run(main)
