"""Configs of runs that take a second: shared by the tests, so that they share compiled programs."""

import random
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from research.configuration import apply_deltas, load_config

BASE = str(Path(__file__).parent.parent / "configs" / "base.py")

RECALL = {
    "task.length": 16,
    "task.batch_size": 4,
    "task.vocab_size": 16,
    "task.num_pairs": (2, 3),
    "model.width": 8,
    "model.num_layers": 2,
    "model.feedforward": 16,
    "model.num_heads": 2,
    "optimizer.warmup_steps": 4,
    "optimizer.learning_rate": 1e-2,
    "train.steps": 24,
    "train.log_every": 5,
    "train.eval_every": 8,
    "train.eval_batches": 2,
    "train.checkpoint_every": 6,
}

# What only transformers read.
TRANSFORMER = {"model.feedforward": 16, "model.position": "none"}
# What takes a source to a target. Plain gradient descent, so that a test can do a step by hand.
PAIRS = {key: value for key, value in RECALL.items() if key not in TRANSFORMER} | {
    "task.length": 16,
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.init_stddev": 0.0,
    "model.embedding_stddev": 0.5,
    "optimizer.name": "sgd",
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.learning_rate": 0.5,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 0.0,
    "train.steps": 40,
    "train.log_every": 15,
    "train.eval_every": 20,
    "train.checkpoint_every": 20,
}
TRANSDUCTION = PAIRS | {
    "task.name": "transduction",
    "task.kind": "reverse",
    "task.train_length": 4,
    "task.test_lengths": (3, 6),
    "task.test_sequences": 5,
    "model.name": "recurrent",
}
TRANSLATION = (
    PAIRS
    | TRANSFORMER
    | {
        "task.name": "translation",
        "task.bpe_vocab_size": 300,
        "task.buckets": 3,
        "model.name": "encoder_decoder",
    }
)
SPEECH = PAIRS | {
    "task.name": "speech",
    "task.path": "tones",
    "task.tokenizer": "word",
    "task.sample_rate": 4000,
    "task.num_mels": 8,
    "task.join": (1, 2),
    "task.buckets": 2,
    "task.test_lengths": (1, 3),
    "task.test_sequences": 3,
    "model.name": "speech",
    "model.ctc_weight": 0.5,
}
RULE = {key: value for key, value in PAIRS.items() if key != "model.feedforward"} | {
    "task.name": "rule",
    "task.kind": "keyword",
    "task.length": 8,
    "task.num_keywords": 2,
    "model.name": "classifier",
    "model.body": "bilstm",
    "model.pooling": "attention",
}
SENTIMENT = RULE | {
    "task.name": "sentiment",
    "task.kind": "substitute",
    "task.length": 16,
    "task.num_keywords": 4,
    "task.tokenizer": "word",
    "task.buckets": 3,
}
WORDS = {"de": ("hund", "rot", "läuft", "ein"), "en": ("dog", "red", "runs", "a")}
SENTENCES = {"train": 90, "val": 26, "test": 22}


def recall(**deltas: Any) -> ConfigDict:
    """Returns a tiny recall run; recall(model__width=4) changes model.width."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    return apply_deltas(load_config(BASE), RECALL | changes)


def text(path: Path, **deltas: Any) -> ConfigDict:
    """Returns a tiny language modelling run on the file at `path`."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    mine = {"task.name": "text", "task.path": str(path)}
    return apply_deltas(load_config(BASE), RECALL | mine | changes)


def transduction(**deltas: Any) -> ConfigDict:
    """Returns a tiny run on reversed strings."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    return apply_deltas(load_config(BASE), TRANSDUCTION | changes)


def translation(path: str, **deltas: Any) -> ConfigDict:
    """Returns a tiny translation run on a `corpus`."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    return apply_deltas(load_config(BASE), TRANSLATION | {"task.path": path} | changes)


def speech(**deltas: Any) -> ConfigDict:
    """Returns a tiny run on strings of tones."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    return apply_deltas(load_config(BASE), SPEECH | changes)


def corpus(folder: Path) -> str:
    """Writes sentences of one to six words, and backwards in the other language: `task.path`."""
    generator = random.Random(0)
    for split, number in SENTENCES.items():
        rows = [generator.choices(range(4), k=generator.randint(1, 6)) for _ in range(number)]
        for language, words in WORDS.items():
            ordered = rows if language == "de" else [row[::-1] for row in rows]
            lines = [" ".join(words[i] for i in row) + "\n" for row in ordered]
            (folder / f"{split}.{language}").write_text("".join(lines), encoding="utf-8")
    return str(folder / "{split}.{language}")


def rule(**deltas: Any) -> ConfigDict:
    """Returns a tiny run on sequences whose class a keyword decides."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    return apply_deltas(load_config(BASE), RULE | changes)


def sentiment(path: str, **deltas: Any) -> ConfigDict:
    """Returns a tiny run on `labelled` texts."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    return apply_deltas(load_config(BASE), SENTIMENT | {"task.path": path} | changes)


def labelled(folder: Path) -> str:
    """Writes texts of one to ten words, of which one decides the label: `task.path`."""
    generator = random.Random(0)
    for split, number in (("train", 90), ("dev", 46), ("test", 42)):
        lines = []
        for _ in range(number):
            words = generator.choices(("the", "film", "a", "plot"), k=generator.randint(0, 9))
            good = generator.random() < 0.5
            word = generator.choice(("fine", "lovely") if good else ("awful", "dull"))
            words.insert(generator.randint(0, len(words)), word)
            lines.append(f"{' '.join(words)}\t{'good' if good else 'bad'}\n")
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return str(folder / "{split}.tsv")


def as_flags(deltas: dict[str, Any]) -> list[str]:
    """Returns the deltas as options of research.train."""
    return [f"--config.{key}={value}" for key, value in deltas.items()]
