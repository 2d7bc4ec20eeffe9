"""Builds the sequence to inspect a model on: from text, from a recording or from the run's data."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from research.decoding.continuation import CHUNK
from research.decoding.decode import decode_all, static_lengths
from research.decoding.search import check_model, ctc_share, read_search
from research.decoding.transcription import frame_lengths, read_features
from research.errors import UserError, check_name
from research.tasks.corpora import read_file
from research.tasks.speech.features import SHIFT_SECONDS
from research.tasks.task import EOS, Batch
from research.tasks.text.tokenizer import OPEN, SENTENCE
from research.training.runs import LoadedRun, load_run_task

SPEECH = "speech"
SPLITS = ("train", "validation", "test")
"""Splits of a text; the last one if the run has it."""
SHOWN = 60
"""Maximum number of characters of a text in a title."""


class Subject(NamedTuple):
    """One sequence to run a model on.

    Attributes:
      title: title of the page.
      batch: input of the model, one row without padding. For a language model it has "targets" only
        if the task predicts something other than the next token.
      input: text of each input token; empty for sound.
      output: text of each output token, EOS included; empty for models without output tokens.
      lines: lines of text about the sequence.
    """

    title: str
    batch: Batch
    input: Sequence[str]
    output: Sequence[str] = ()
    lines: Sequence[str] = ()


def text_subject(run: LoadedRun, text: str, target: str = "") -> Subject:
    """Returns the subject for a text.

    A text with more tokens than the model's maximum length is cut, and `lines` say so.

    Args:
      run: an opened run of a task with text.
      text: the input.
      target: the output, for a model that generates one; "": the model's own output.

    Raises UserError for a task without texts, a text without tokens, and characters that the model
    does not know.
    """
    name = run.config.task.name
    if name == SPEECH:
        raise UserError("--text: this model reads sound; give --input=FILE.wav or --index=N.")
    if run.tokenizer is None:
        raise UserError(
            f"--text: the tokens of task.name={name!r} are numbers; give --index=N, which sequence "
            "of its data."
        )
    title = f"{name}: {_brief(text)}"
    tokens = run.tokenizer.encode(text)
    if not len(tokens):
        raise UserError("--text has no token; give at least one word.")
    room = run.special.room(run.config.task.length)
    cut, lines = _cut(run, tokens, room, "text")
    tokens = np.array(run.special.around(cut.tolist(), run.config.task.length), np.int32)
    if _writes(run):
        return _with_output(run, title, tokens, _target_of(run, target), lines)
    _check_writes(run, target)
    if run.tokenizer.special == OPEN:
        pieces = run.tokenizer.split(text)[: len(tokens)]
    else:
        pieces = token_texts(run, tokens)
    return Subject(title, _read_alone(run, tokens), pieces, (), lines)


def text_of(run: LoadedRun, path: str = "", split: str = "") -> tuple[Any, str]:
    """Returns the tokens of a text, and its description; they are read where they are sliced.

    Args:
      run: an opened run of a language model.
      path: UTF-8 text file; "": a split of the run's data.
      split: name of the split, or of a held-out set; "": validation.

    Raises UserError for a run without a tokenizer or without data, and an unknown split.
    """
    if path:
        if run.tokenizer is None:
            raise UserError(
                f"--input={path} needs a tokenizer, and the shards that {run.path} was trained on "
                "came without one; give --split."
            )
        return run.tokenizer.encode_start(read_file(Path(path))), path
    split = split or "validation"
    check_name("--split", split, text_splits(run.config))
    task: Any = load_run_task(run)
    named = f"the {split} split" if split in SPLITS else f"the held-out set {split}"
    return task.text(split), named


def text_splits(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the texts that a run of a language model has, held-out sets included."""
    splits = SPLITS if config.task.get("test_fraction") else SPLITS[:-1]
    return (*splits, *(one.partition("=")[0] for one in config.task.get("held_out", ())))


def generation_subject(run: LoadedRun, prompt: Sequence[int], written: Sequence[int]) -> Subject:
    """Returns the subject for text that a language model generated, including its prompt.

    Only the last tokens are kept if there are more than the model's maximum length. If generation
    may have restarted in between (see `research.decoding.continuation`), `lines` say so.

    Args:
      run: an opened run of a text task.
      prompt, written: tokens.
    """
    tokens, room = np.array([*prompt, *written], np.int32), run.config.task.length
    restarts = len(tokens) > room - CHUNK
    tokens = tokens[-room:]
    lines = [f"Written: the last {min(len(written), len(tokens)):,} tokens."]
    if restarts:
        lines.append(
            f"Writing begins again from the last half of the text where the model has no more room "
            f"(task.length={room}); here the last {len(tokens):,} tokens are one sequence."
        )
    title = f"{run.config.task.name}: {_brief(run.tokenizer.decode(tokens.tolist()))}"
    return Subject(title, _read_alone(run, tokens), token_texts(run, tokens), (), lines)


def recording_subject(run: LoadedRun, path: Path, target: str = "") -> Subject:
    """Returns the subject for a WAV or FLAC file; `target` is as in `text_subject`.

    Raises UserError for a file that cannot be read, and for a run of a task without speech.
    """
    if run.config.task.name != SPEECH:
        raise UserError(
            f"--input={path}: task.name={run.config.task.name!r} has no sound; give --text or "
            "--index=N."
        )
    frames, lines = read_features(path, run.config.task), []
    longest = run.corpus.get("longest_frames")
    if longest and len(frames) > longest:
        lines.append(
            f"The recording has {len(frames) * SHIFT_SECONDS:.2f} s, more than anything in "
            f"training ({longest * SHIFT_SECONDS:.2f} s)."
        )
    title = f"{run.config.task.name}: {_brief(path.name)}"
    return _with_output(run, title, frames, _target_of(run, target), lines)


def example_subject(
    run: LoadedRun, split: str, index: int, target: str = "", reference: bool = False
) -> Subject:
    """Returns the subject for a sequence of the run's data.

    Args:
      run: any opened run.
      split: the evaluation split.
      index: index of the sequence in the split, from 0.
      target: as in `text_subject`.
      reference: whether to use the reference target as the output.

    Raises UserError for a split or sequence that does not exist, and for data that changed.
    """
    task, total = load_run_task(run), run.config.train.eval_batches
    check_name("--split", split, task.splits)
    number = task.examples(split, total)
    if not 0 <= index < number:
        raise UserError(
            f"--index={index}: the {split} split has {number:,} sequences, 0 to {number - 1}."
        )
    row = {name: np.asarray(array) for name, array in task.example(split, index, total).items()}
    title = f"{run.config.task.name}: sequence {index} of {split}"
    if _writes(run):
        source = row["source"][0, : int(row["source_length"][0])]
        right = row["targets"][0][row["targets"][0] >= 0].tolist()
        lines = [f"The right output: {_text_of(run, right)}"]
        given = right if reference else _target_of(run, target)
        return _with_output(run, title, source, given, lines)
    _check_writes(run, target or reference)
    if run.config.model.name == "classifier":
        tokens = row["inputs"][0, : int(row["length"][0])]
        lines = [f"The right label: {run.labels[int(row['label'][0])]}"]
        return Subject(title, _read_alone(run, tokens), token_texts(run, tokens), (), lines)
    tokens = row["inputs"][0]
    batch: dict[str, Any] = dict(_read_alone(run, tokens))
    if run.tokenizer is None:
        batch["targets"] = row["targets"]
    return Subject(title, batch, token_texts(run, tokens))


def token_texts(run: LoadedRun, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """Returns the text of each token, or its number if the run has no tokenizer."""
    tokens = [int(t) for t in tokens]
    if run.tokenizer is None:
        ends = EOS if _writes(run) else -1
        return [SENTENCE[t] if t == ends else str(t) for t in tokens]
    pieces = run.tokenizer.pieces(tokens)
    if run.tokenizer.kind == "word":
        # Every word has a space in front, which carries no information.
        pieces = [piece.removeprefix(" ") for piece in pieces]
    return pieces


def _writes(run: LoadedRun) -> bool:
    """Returns whether the model generates a target from a source."""
    return run.config.model.name not in ("decoder", "classifier")


def _check_writes(run: LoadedRun, target: str | bool) -> None:
    if target:
        raise UserError(
            f"--target and --reference: model.name={run.config.model.name!r} has no target."
        )


def _read_alone(run: LoadedRun, tokens: np.ndarray) -> Batch:
    batch: dict[str, Any] = {"inputs": np.asarray(tokens, np.int32)[None]}
    if run.config.model.name == "classifier":
        batch["length"] = np.array([len(tokens)], np.int32)
    return batch


def _cut(run: LoadedRun, tokens: np.ndarray, room: int, what: str) -> tuple[np.ndarray, list[str]]:
    if len(tokens) <= room:
        return tokens, []
    said = (
        f"The {what} has {len(tokens):,} tokens; cut to the {room:,} that the model is made for "
        f"(task.length={run.config.task.length})."
    )
    return tokens[:room], [said]


def _target_of(run: LoadedRun, target: str) -> list[int]:
    """Returns the tokens of a target with EOS; empty for an empty target."""
    if not target:
        return []
    if run.tokenizer is None:
        raise UserError(
            f"--target: the tokens of task.name={run.config.task.name!r} are numbers; --reference "
            "takes those of the reference."
        )
    tokens, room = run.tokenizer.encode(target).tolist(), run.config.task.length - 1
    if len(tokens) > room:
        raise UserError(
            f"--target has {len(tokens):,} tokens; the model is made for {room:,} "
            f"(task.length={run.config.task.length})."
        )
    return [*tokens, run.special.end]


def _with_output(
    run: LoadedRun, title: str, source: np.ndarray, target: list[int], lines: list[str]
) -> Subject:
    """Returns the subject for a source and its target, generated by the model if not given."""
    if target:
        lines = [*lines, f"The output was given: {_text_of(run, target)}"]
    else:
        target = _written(run, source)
        lines = [*lines, f"The model writes: {_text_of(run, target) or '(nothing)'}"]
    sound = source.ndim == 2
    batch: dict[str, Any] = {
        "source": source[None],
        "source_length": np.array([len(source)], np.int32),
        "inputs": np.array([[run.special.start, *target[:-1]]], np.int32),
        "targets": np.array([target], np.int32),
    }
    read = () if sound else token_texts(run, source)
    return Subject(title, batch, read, token_texts(run, target), lines)


def _written(run: LoadedRun, source: np.ndarray) -> list[int]:
    """Returns the best hypothesis under the run's own search settings, with EOS."""
    search = replace(read_search(run.config), special=run.special)
    check_model(search, run.model.config, "decoding.")
    length = np.array([len(source)], np.int32)
    room = frame_lengths if source.ndim == 2 else static_lengths
    found = decode_all(
        run.model, run.params, source[None], length, search, lengths=room(len(source))
    )
    return [*found[0][0].tokens, run.special.end]


def _text_of(run: LoadedRun, tokens: Sequence[int]) -> str:
    words = [t for t in tokens if t != run.special.end]
    if run.tokenizer is None:
        return " ".join(map(str, words))
    return " ".join(run.tokenizer.decode(words, text_only=True).split())


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def predicts_tokens(run: LoadedRun) -> bool:
    """Returns whether the model gives p(token | tokens before) for each output token."""
    return _writes(run) and ctc_share(run.model.config) < 1
