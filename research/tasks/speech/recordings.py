"""Making the task of speech from its config: which recordings, strings and shapes there are."""

import functools
import hashlib
from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from research.errors import UserError, check_name
from research.messages import tell
from research.tasks.buckets import Bounds, Epochs, assign, choose_bounds
from research.tasks.corpora import cache_directory
from research.tasks.speech.features import SHIFT_SECONDS, load_features, log_mel
from research.tasks.speech.joining import draw_plan, segments, stored
from research.tasks.speech.manifest import SPLITS, files_of, read_recordings
from research.tasks.speech.recognition import Speech, evaluation_plan
from research.tasks.speech.tones import SPEAKERS, tones
from research.tasks.task import word_bins
from research.tasks.text.tokenizer import make_sentence_tokenizer

EVALUATION_BUCKETS = 2  # each is compiled for every split
SAMPLED = 4096  # strings by which the frames of a training bucket are chosen
LEFT_OUT = 0.005  # the part of the longest strings that may not fit


class Recordings(NamedTuple):
    """All recordings, by split and speaker; features are not normalized.

    `files` are {name: sha256} of what was read.
    """

    features: list[np.ndarray]
    texts: list[str]
    speakers: list[str]
    splits: list[str]
    files: Mapping[str, str]


def read_all(config: ConfigDict) -> Recordings:
    """Returns the recordings of `config.path`. Raises UserError for unusable ones."""
    rate, mels = config.sample_rate, config.num_mels
    if config.path == "tones":
        found = tones(rate)
        held_out = config.held_out_speaker
        if held_out:
            check_name("task.held_out_speaker", held_out, SPEAKERS)
            found = [t for t in found if t.speaker == held_out or t.split != "test"]
            found = [t._replace(split="test") if t.speaker == held_out else t for t in found]
        features, files = [log_mel(t.samples, rate, mels) for t in found], {}
        spoken = [(t.split, t.speaker, " ".join(t.text.split())) for t in found]
    else:
        by_split = read_recordings(config.path, config.held_out_speaker)
        utterances = [u for split in SPLITS for u in by_split[split]]
        features = load_features(utterances, rate, mels, config.max_seconds)
        files = files_of(config.path, utterances)
        spoken = [
            (split, u.speaker, " ".join(u.text.split()))
            for split in SPLITS
            for u in by_split[split]
        ]
    order = sorted(range(len(spoken)), key=lambda i: (SPLITS.index(spoken[i][0]), spoken[i][1]))
    splits, speakers, texts = zip(*(spoken[i] for i in order), strict=True)
    features = [features[i] for i in order]
    return Recordings(features, list(texts), list(speakers), list(splits), files)


def pools_of(recordings: Recordings, speakers: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """Returns {split: (first recording, number) of each speaker}, or of all of them together."""
    check_name("task.speakers", speakers, ("one", "mixed"))
    found: dict[str, list[tuple[int, int]]] = {}
    both = zip(recordings.splits, recordings.speakers, strict=True)
    named = [(split, speaker if speakers == "one" else "") for split, speaker in both]
    start = 0
    for (split, _), some in groupby(named):
        number = len(list(some))
        found.setdefault(split, []).append((start, number))
        start += number
    return {split: tuple(pools) for split, pools in found.items()}


def check_speech(config: ConfigDict) -> None:
    """Raises UserError for what does not fit in `config.task`."""
    join, pause = tuple(config.join), tuple(config.gap)
    if list(join) != sorted(set(join)) or (join and join[0] < 1):
        raise UserError(f"task.join={join}: give positive numbers, each above the one before.")
    if len(pause) != 2 or not 0 <= pause[0] <= pause[1]:
        raise UserError(f"task.gap={pause}: give the shortest and the longest pause in seconds.")
    tested = tuple(config.test_lengths)
    if join and (not tested or min(tested) < 1 or list(tested) != sorted(set(tested))):
        raise UserError(
            f"task.test_lengths={tested}: give one or more positive numbers, each longer than the "
            "one before."
        )
    for name in ("test_sequences", "buckets", "time_mask", "band_mask"):
        if config[name] < 1:
            raise UserError(f"task.{name}={config[name]} must be at least 1.")
    for name in ("time_masks", "band_masks"):
        if config[name] < 0:
            raise UserError(f"task.{name}={config[name]} must be at least 0 (0: none).")
    if not config.max_seconds > 0:
        raise UserError(f"task.max_seconds={config.max_seconds} must be above 0.")


class Shapes(NamedTuple):
    """What is static about a task's batches; see `Speech`.

    Attributes:
      picks: {evaluation split: the recordings of each of its rows}.
      too_long: {split: part of its rows that do not fit and count for nothing}.
    """

    picks: dict[str, list[np.ndarray]]
    too_long: dict[str, float]
    join: tuple[tuple[int, ...], ...]
    strings: dict[str, np.ndarray]
    bounds: dict[str, tuple[Bounds, ...]]
    order: dict[str, list[np.ndarray]]
    epochs: Epochs | None
    mean_tokens: float


def joined_shapes(
    config: ConfigDict, data: dict[str, Any], pools: dict, pause: tuple[int, int]
) -> Shapes:
    """Returns the shapes of strings of recordings; `data` as `stored` returned it."""
    words = int(data["token_count"].max())
    longest = max(*config.join, *config.test_lengths)
    if longest * words + 1 > config.length:
        raise UserError(
            f"task.length={config.length} is too short for {longest} recordings of up to {words} "
            f"tokens and the end token; at least {longest * words + 1}."
        )
    groups = np.array_split(np.array(config.join), min(config.buckets, len(config.join)))
    join = tuple(tuple(int(n) for n in group) for group in groups)
    most = np.repeat([group[-1] for group in join], SAMPLED)
    keys = jax.random.split(jax.random.key(0), len(most))
    lengths = data["length"]
    total = _drawn(lengths, keys, most, int(most.max()), pools["train"], pause)[1]
    total = np.asarray(total).reshape(-1, SAMPLED)
    frames = [_rounded(n) for n in np.quantile(total, 1.0 - LEFT_OUT, axis=1)]
    of_train = [(n, group[-1] * words + 1) for n, group in zip(frames, join, strict=True)]
    # Of the strings with most recordings of each bucket.
    too_long = {"train": float((total > np.array(frames)[:, None]).mean())}
    bounds, strings, order, picks = {"train": tuple(of_train)}, {}, {}, {}
    tested = {"validation": config.join, "test": config.test_lengths}
    for split in [split for split in tested if split in pools]:
        numbers = np.array(tested[split])
        strings[split] = np.repeat(numbers, config.test_sequences)
        rows = np.arange(len(strings[split]))
        found = _tested(lengths, split, tuple(strings[split].tolist()), pools[split], pause)
        found, total = (np.asarray(a) for a in found)
        picks[split] = [row[:n] for row, n in zip(found, strings[split], strict=True)]
        groups = np.array_split(numbers, min(EVALUATION_BUCKETS, len(numbers)))
        mine = [np.isin(strings[split], group) for group in groups]
        bounds[split] = tuple(
            (_rounded(total[m].max()), int(group[-1]) * words + 1)
            for m, group in zip(mine, groups, strict=True)
        )
        order[split] = [_filled(rows[m], config.batch_size) for m in mine]
    train = slice(0, sum(number for _, number in pools["train"]))
    one = data["length"][train].mean() + data["token_count"][train].mean()
    mean = one * np.mean(config.join) + sum(pause) / 2 * (np.mean(config.join) + 1) + 1
    return Shapes(picks, too_long, join, strings, bounds, order, None, float(mean))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _drawn(lengths: Any, keys: Any, number: Any, most: int, pools: Any, pause: Any) -> tuple:
    """Returns the recordings of random strings (B, N), and their frames (B,)."""
    plan = draw_plan(keys, number, most, pools, pause)
    return plan.picks, segments(lengths, plan).sum(1)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _tested(lengths: Any, split: str, strings: tuple[int, ...], pools: Any, pause: Any) -> tuple:
    """Returns the same of the strings of an evaluation split."""
    rows = jnp.arange(len(strings))
    plan = evaluation_plan(split, np.array(strings), rows, pools, pause)
    return plan.picks, segments(lengths, plan).sum(1)


def whole(config: ConfigDict, data: dict[str, Any], pools: dict) -> Shapes:
    """Returns the shapes of recordings as they are."""
    bounds, order, picks, too_long = {}, {}, {}, {}
    epochs, mean = None, 0.0
    for split, ((start, number),) in pools.items():
        # Rounded here, so that no two buckets have the same shape.
        frames = (data["length"][start : start + number].astype(int) + 7) // 8 * 8
        tokens = data["token_count"][start : start + number].astype(int) + 1
        rows = np.arange(number)
        too_long[split] = float((tokens > config.length).mean())
        if split == "validation" and too_long[split] == 1.0:
            raise UserError(
                f"task.length={config.length}: no transcript for validation is that short; the "
                f"shortest has {tokens.min()} tokens with its end."
            )
        if split == "train":
            rows = rows[tokens <= config.length]
            if len(rows) < config.batch_size:
                raise UserError(
                    f"task.batch_size={config.batch_size} is too large: {config.path} has "
                    f"{len(rows):,} recordings of at most task.length={config.length} tokens to "
                    "train on."
                )
            mean = float((data["length"][start + rows] + tokens[rows]).mean())
        tokens = np.minimum(tokens, config.length)
        buckets = config.buckets if split == "train" else EVALUATION_BUCKETS
        found = choose_bounds(frames[rows], tokens[rows], buckets, config.batch_size)
        bucket = assign(frames[rows], tokens[rows], found)
        order[split] = [rows[bucket == i] for i in range(len(found))]
        bounds[split] = tuple(found)
        if split == "train":
            epochs = Epochs(tuple(len(o) for o in order[split]), config.batch_size)
        else:
            order[split] = [_filled(o, config.batch_size) for o in order[split]]
            picks[split] = [np.array([start + row]) for row in rows]
    return Shapes(picks, too_long, (), {}, bounds, order, epochs, mean)


def _rounded(frames: float) -> int:
    """Returns a number of frames that can be halved three times."""
    return -(-int(np.ceil(frames)) // 8) * 8


def _filled(rows: np.ndarray, multiple: int) -> np.ndarray:
    """Returns positions, with -1 up to a multiple."""
    return np.append(rows, np.full(-len(rows) % multiple, -1)).astype(np.int32)


def make_speech(config: ConfigDict) -> Speech:
    """Returns the task of `config.task`, and says on stderr what it is made of.

    Raises UserError for what does not fit, and for unusable recordings.
    """
    check_speech(config)
    recordings = read_all(config)
    of_train = [split == "train" for split in recordings.splits]
    tokenizer = make_sentence_tokenizer(
        config.tokenizer,
        [text for text, mine in zip(recordings.texts, of_train, strict=True) if mine],
        [text for text, mine in zip(recordings.texts, of_train, strict=True) if not mine],
        config.bpe_vocab_size,
        cache_directory() / "tokenizers",
    )
    data: dict[str, Any] = stored(recordings.features, tokenizer.encode_all(recordings.texts))
    data["words"] = np.array([len(t.split()) for t in recordings.texts], np.int32)
    pools = pools_of(recordings, config.speakers if config.join else "mixed")
    pause = (round(config.gap[0] / SHIFT_SECONDS), round(config.gap[1] / SHIFT_SECONDS))
    if config.join:
        shapes = joined_shapes(config, data, pools, pause)
    else:
        shapes = whole(config, data, pools)
    known = _known(config, recordings, data, shapes)
    tell(_describe(known))
    references = {
        split: [" ".join(recordings.texts[i] for i in row) for row in rows]
        for split, rows in shapes.picks.items()
    }
    words = [np.array([len(text.split()) for text in texts]) for texts in references.values()]
    bins = word_bins(words)
    if config.join and (data["words"] == 1).all():
        bins = [(int(n), int(n)) for n in np.unique(np.concatenate(words))]
    splits = tuple(references)
    return Speech(
        length=config.length,
        batch_size=config.batch_size,
        vocab_size=tokenizer.vocab_size,
        data=jax.device_put({**data, "order": shapes.order}),
        splits=splits,
        decoded=splits,
        tokenizer=tokenizer,
        pools=pools,
        pause=pause,
        time_masks=(config.time_masks, config.time_mask),
        band_masks=(config.band_masks, config.band_mask),
        references=references,
        word_bins=bins,
        corpus=known,
        files=recordings.files,
        join=shapes.join,
        strings=shapes.strings,
        bounds=shapes.bounds,
        epochs=shapes.epochs,
        mean_tokens=shapes.mean_tokens,
    )


def _known(
    config: ConfigDict, recordings: Recordings, data: dict[str, Any], shapes: Shapes
) -> dict[str, Any]:
    """Returns what is known of the data."""
    split = np.array(recordings.splits)
    return {
        "path": config.path,
        "recordings": {name: int((split == name).sum()) for name in SPLITS},
        "speakers": {
            name: sorted({p for p, s in zip(recordings.speakers, split, strict=True) if s == name})
            for name in SPLITS
        },
        "seconds": {
            name: round(float(data["length"][split == name].sum()) * SHIFT_SECONDS, 2)
            for name in SPLITS
        },
        "too_long": shapes.too_long,
        "buckets": [{"frames": f, "tokens": t} for f, t in shapes.bounds["train"]],
        "longest_frames": max(f for f, _ in shapes.bounds["train"]),
        "sha256": hashlib.sha256(data["frames"].tobytes()).hexdigest(),
    }


def _describe(known: dict[str, Any]) -> str:
    """Returns one line on what `_known` returns."""
    parts = [
        f"{number:,} for {split} ({known['seconds'][split] / 60:,.1f} min, "
        f"{len(known['speakers'][split])} speakers)"
        for split, number in known["recordings"].items()
    ]
    shapes = ", ".join(f"{b['frames']:,}" for b in known["buckets"])
    out = [f"{part:.1%} of {split}" for split, part in known["too_long"].items() if part]
    left = f"; too long, so that they count for nothing: {', '.join(out)}" if out else ""
    return f"{known['path']}: recordings: {', '.join(parts)}; buckets of {shapes} frames{left}"
