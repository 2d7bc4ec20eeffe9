"""Named held-out sets of language modelling: validation shards of other corpora, NAME=PATH each.

A model of one vocabulary can be evaluated on any shards of that vocabulary: on Wikipedia and on
code, however small their part in the training corpus is.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from research.errors import UserError
from research.tasks.digests import SHOWN, content_digest
from research.tasks.tokens.corpus import Corpus, open_validation
from research.tasks.tokens.shards import SPLITS

NAME = re.compile(r"[A-Za-z0-9_.-]+")


def open_held_out(given: Sequence[str], corpus: Corpus, path: str, dtype: str) -> dict[str, Corpus]:
    """Returns {name: corpus} of held-out sets, each with the split "validation" alone.

    Args:
      given: NAME=PATH of each set; PATH is a directory of research.prepare, whose validation
        shards are read, or a file or pattern of shards, which are all read.
      corpus: the corpus that is trained on.
      path: where it is, for messages.
      dtype: type of the tokens of shards that do not say it, see `open_corpus`.

    Raises UserError for names that cannot be used, for shards that are missing, damaged or
    training shards, and for another vocabulary or tokenizer than that of the training corpus.
    """
    found: dict[str, Corpus] = {}
    training = {shard.path.resolve() for shard in corpus.splits["train"].shards}
    for one in given:
        name, equals, place = one.partition("=")
        if not equals or not place or not NAME.fullmatch(name):
            raise UserError(
                f"task.held_out={one!r} must be NAME=PATH, such as wiki=data/wiki_tokens."
            )
        if name in found or name in SPLITS:
            raise UserError(f"task.held_out={one!r}: the name {name!r} is taken; choose another.")
        found[name] = open_validation(f"task.held_out={one!r}", place, dtype, corpus.vocab_size)
        _check_same_vocabulary(one, found[name], corpus, path)
        shards = found[name].splits["validation"].shards
        if both := [str(s.path) for s in shards if s.path.resolve() in training]:
            raise UserError(f"task.held_out={one!r}: {both[0]} is a training shard.")
    return found


def _check_same_vocabulary(one: str, held_out: Corpus, corpus: Corpus, path: str) -> None:
    # The training corpus may have a padded vocabulary.
    if held_out.vocab_size > corpus.vocab_size:
        raise UserError(
            f"task.held_out={one!r} has a vocabulary of {held_out.vocab_size:,} tokens, and "
            f"{path} of {corpus.vocab_size:,}; prepare it with the same tokenizer."
        )
    # Shards without a manifest do not say how they were encoded.
    if not held_out.tokenizer or not corpus.tokenizer:
        return
    theirs, ours = (content_digest(c.tokenizer.encode()) for c in (held_out, corpus))
    if theirs != ours:
        raise UserError(
            f"task.held_out={one!r} was encoded by the tokenizer {theirs[:SHOWN]}, and {path} by "
            f"{ours[:SHOWN]}; prepare it with --tokenizer={Path(path) / 'tokenizer.json'}."
        )


def files_of(held_out: Mapping[str, Corpus]) -> dict[str, str]:
    """Returns {NAME/file: sha256} of the files of held-out sets."""
    return {f"{n}/{file}": d for n, corpus in held_out.items() for file, d in corpus.files.items()}
