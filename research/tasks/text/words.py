"""Cutting text into words, in any script that puts spaces or punctuation between them."""

import re
import unicodedata

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

# Letters with their combining marks, digits and "_" (in this engine, unlike Python's, \w has
# marks), with joiners inside; English contractions as in the Penn Treebank; else one character.
_LETTER, _INSIDE = r"[\w\p{N}]", r"[\w\p{N}\x{200c}\x{200d}]"
_WORDS = Split(
    Regex(
        rf"(?i){_LETTER}{_INSIDE}*(?=n['’]t\b)|n['’]t\b|['’](?:s|m|d|ll|re|ve)\b"
        rf"|{_LETTER}{_INSIDE}*|[^\w\p{{N}}\s]\p{{M}}*"
    ),
    behavior="removed",
    invert=True,
)

_OF_BEFORE = re.compile(
    r"\w+(?=n['’]t\b)|n['’]t\b|['’](?:s|m|d|ll|re|ve)\b|\w+|[^\w\s]", re.IGNORECASE
)


def split_words(text: str) -> list[str]:
    """Returns the words of a text as they stand there; other characters are words of their own.

    A combining mark belongs to the character before it: words of Hindi, Tamil or pointed Arabic
    stay whole. Where a script has no spaces (Chinese, Thai), a word is what stands between spaces
    or punctuation.
    """
    return [word for word, _ in _WORDS.pre_tokenize_str(text)]


def split_at_marks(text: str) -> list[str]:
    """Returns the same as it was before combining marks were letters: for vocabularies of then."""
    return _OF_BEFORE.findall(text)


def has_marks(text: str) -> bool:
    """Whether a text has a combining mark."""
    return any(unicodedata.category(character)[0] == "M" for character in text)
