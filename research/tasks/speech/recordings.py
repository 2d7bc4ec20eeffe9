"""Makes the speech task from its config: reads recordings and chooses strings and shapes."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import UserError, check_name
from research.messages import tell
from research.options import option
from research.tasks.bins import word_bins
from research.tasks.buckets import Bounds, Epochs, assign, choose_bounds
from research.tasks.corpora import cache_directory
from research.tasks.options import TaskOptions, check_ascending
from research.tasks.speech.features import SHIFT_SECONDS, load_features, log_mel
from research.tasks.speech.joining import draw_plan, segments, stored
from research.tasks.speech.manifest import SPLITS, file_digests, read_recordings
from research.tasks.speech.recognition import Speech, evaluation_plan
from research.tasks.speech.tones import SPEAKERS, tones
from research.tasks.text.tokenizer import SENTENCE, make_tokenizer

EVALUATION_BUCKETS = 2  # few, because each one is compiled for every split
SAMPLED = 4096  # number of random strings from which a training bucket's frames are estimated
AS_THEY_ARE: Mapping[str, Sequence[Any]] = {"join": ((),)}
LEFT_OUT = 0.005  # fraction of a bucket's longest strings that may not fit


class Recordings(NamedTuple):
    """All recordings, sorted by split and speaker; features are not normalized.

    `files` is {name: sha256} of the files that were read.
    """

    features: list[np.ndarray]
    texts: list[str]
    speakers: list[str]
    splits: list[str]
    files: Mapping[str, str]


def read_all(config: "SpeechOptions") -> Recordings:
    """Reads the recordings of `config.path`. Raises UserError for unusable ones."""
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
        files = file_digests(config.path, utterances)
        spoken = [
            (split, u.speaker, " ".join(u.text.split()))
            for split in SPLITS
            for u in by_split[split]
        ]
    order = sorted(range(len(spoken)), key=lambda i: (SPLITS.index(spoken[i][0]), spoken[i][1]))
    splits, speakers, texts = zip(*(spoken[i] for i in order), strict=True)
    features = [features[i] for i in order]
    return Recordings(features, list(texts), list(speakers), list(splits), files)


def recording_pools(
    recordings: Recordings, speakers: str
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Returns {split: (first recording, number of recordings) of each pool}.

    A pool is one speaker if `speakers` is "one", otherwise all speakers of the split.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    both = zip(recordings.splits, recordings.speakers, strict=True)
    named = [(split, speaker if speakers == "one" else "") for split, speaker in both]
    start = 0
    for (split, _), some in groupby(named):
        number = len(list(some))
        found.setdefault(split, []).append((start, number))
        start += number
    return {split: tuple(pools) for split, pools in found.items()}


class Shapes(NamedTuple):
    """Static properties of a task's batches; see `Speech` for the attributes not listed here.

    Attributes:
      picks: {evaluation split: indices of the recordings in each row}.
      too_long: {split: fraction of rows that do not fit and are ignored}.
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
    config: "SpeechOptions", data: dict[str, Any], pools: dict, pause: tuple[int, int]
) -> Shapes:
    """Returns the shapes for strings of recordings; `data` is the result of `stored`."""
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
    # Estimated from each bucket's strings with the most recordings.
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
    """Returns the recordings of random strings (B, N), and the strings' frames (B,)."""
    plan = draw_plan(keys, number, most, pools, pause)
    return plan.picks, segments(lengths, plan).sum(1)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _tested(lengths: Any, split: str, strings: tuple[int, ...], pools: Any, pause: Any) -> tuple:
    """Returns the recordings (B, N) and frames (B,) of the strings of an evaluation split."""
    rows = jnp.arange(len(strings))
    plan = evaluation_plan(split, np.array(strings), rows, pools, pause)
    return plan.picks, segments(lengths, plan).sum(1)


def single_shapes(config: "SpeechOptions", data: dict[str, Any], pools: dict) -> Shapes:
    """Returns the shapes for single recordings."""
    bounds, order, picks, too_long = {}, {}, {}, {}
    epochs, mean = None, 0.0
    for split, ((start, number),) in pools.items():
        # Round before choosing buckets, so that no two buckets round to the same shape.
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
    """Rounds up to a multiple of 8, a number of frames that can be halved three times."""
    return -(-int(np.ceil(frames)) // 8) * 8


def _filled(rows: np.ndarray, multiple: int) -> np.ndarray:
    """Returns positions, padded with -1 to a multiple of `multiple`."""
    return np.append(rows, np.full(-len(rows) % multiple, -1)).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class SpeechOptions(TaskOptions):
    """Recordings into words, as they are or joined to strings of them."""

    task = Speech
    decodes = True
    path: str = option(
        "fsdd", "fsdd, tones (generated), or a tab-separated file of paths and transcripts"
    )
    tokenizer: str = option(
        "word", "tokens: characters, words or byte-level BPE", allowed=("char", "word", "bpe")
    )
    bpe_vocab_size: int = option(
        1024,
        "vocabulary size of the BPE, which is trained on the training split",
        when={"tokenizer": ("bpe",)},
    )
    buckets: int = option(
        6, "number of batch shapes; more shapes mean less padding and more compilation", least=1
    )
    sample_rate: int = option(8000, "sample rate in Hz; other recordings are resampled to it")
    num_mels: int = option(
        40, "number of bands of the log-mel features, which have one frame per 10 ms"
    )
    max_seconds: float = option(30.0, "maximum duration of a recording", above=0)
    held_out_speaker: str = option(
        "",
        "speaker whose recordings are all used for the test and none for training; empty: nobody",
    )
    join: tuple[int, ...] = option(
        (1, 2, 3, 4, 5),
        "numbers of recordings that are joined to a training string; (): single recordings, "
        "in training and in the test",
        least=1,
    )
    test_lengths: tuple[int, ...] = option(
        (1, 2, 3, 4, 5), "numbers of recordings in a test string", unless=AS_THEY_ARE, least=1
    )
    test_sequences: int = option(
        100, "number of test strings of each length in test_lengths", unless=AS_THEY_ARE, least=1
    )
    gap: tuple[float, ...] = option(
        (0.0, 0.2),
        "shortest and longest pause before, between and after the recordings of a "
        "string, in seconds",
        unless=AS_THEY_ARE,
        least=0,
    )
    speakers: str = option(
        "one",
        "whether the recordings of a string are by one speaker or by any",
        unless=AS_THEY_ARE,
        allowed=("one", "mixed"),
    )
    time_masks: int = option(0, "number of time masks of SpecAugment (Park 2019); 0: none", least=0)
    time_mask: int = option(
        10, "maximum number of frames in a time mask", unless={"time_masks": (0,)}, least=1
    )
    band_masks: int = option(0, "number of band masks of SpecAugment (Park 2019); 0: none", least=0)
    band_mask: int = option(
        8, "maximum number of bands in a band mask", unless={"band_masks": (0,)}, least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ascending("join", self.join)
        if self.join and not self.test_lengths:
            raise UserError("task.test_lengths=(): give one or more positive numbers.")
        check_ascending("test_lengths", self.test_lengths)
        if len(self.gap) != 2 or self.gap[0] > self.gap[1]:
            raise UserError(
                f"task.gap={self.gap}: give the shortest and the longest pause in seconds."
            )

    def make(self) -> Speech:
        """Returns the task, and summarizes its data on stderr.

        Raises UserError for inconsistent options and unusable recordings.
        """
        recordings = read_all(self)
        texts = list(zip(recordings.texts, recordings.splits, strict=True))
        tokenizer = make_tokenizer(
            self.tokenizer,
            [text for text, split in texts if split == "train"],
            SENTENCE,
            others=[text for text, split in texts if split != "train"],
            vocab_size=self.bpe_vocab_size,
            cache=cache_directory() / "tokenizers",
        )
        data: dict[str, Any] = stored(recordings.features, tokenizer.encode_all(recordings.texts))
        data["words"] = np.array([len(t.split()) for t in recordings.texts], np.int32)
        pools = recording_pools(recordings, self.speakers if self.join else "mixed")
        pause = (round(self.gap[0] / SHIFT_SECONDS), round(self.gap[1] / SHIFT_SECONDS))
        if self.join:
            shapes = joined_shapes(self, data, pools, pause)
        else:
            shapes = single_shapes(self, data, pools)
        known = _known(self, recordings, data, shapes)
        tell(_describe(known))
        references = {
            split: [" ".join(recordings.texts[i] for i in row) for row in rows]
            for split, rows in shapes.picks.items()
        }
        words = [np.array([len(text.split()) for text in texts]) for texts in references.values()]
        bins = word_bins(words)
        if self.join and (data["words"] == 1).all():
            bins = [(int(n), int(n)) for n in np.unique(np.concatenate(words))]
        splits = tuple(references)
        return Speech(
            length=self.length,
            batch_size=self.batch_size,
            vocab_size=tokenizer.vocab_size,
            data=jax.device_put({**data, "order": shapes.order}),
            splits=splits,
            decoded=splits,
            tokenizer=tokenizer,
            pools=pools,
            pause=pause,
            time_masks=(self.time_masks, self.time_mask),
            band_masks=(self.band_masks, self.band_mask),
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
    config: "SpeechOptions", recordings: Recordings, data: dict[str, Any], shapes: Shapes
) -> dict[str, Any]:
    """Returns the content of corpus.json."""
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
    """Returns a one-line summary of what `_known` returns."""
    parts = [
        f"{number:,} for {split} ({known['seconds'][split] / 60:,.1f} min, "
        f"{len(known['speakers'][split])} speakers)"
        for split, number in known["recordings"].items()
    ]
    shapes = ", ".join(f"{b['frames']:,}" for b in known["buckets"])
    out = [f"{part:.1%} of {split}" for split, part in known["too_long"].items() if part]
    left = f"; too long, so that they count for nothing: {', '.join(out)}" if out else ""
    return f"{known['path']}: recordings: {', '.join(parts)}; buckets of {shapes} frames{left}"
