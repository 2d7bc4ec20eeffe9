"""Splits text into words, for scripts with spaces or punctuation between words."""

import re
import unicodedata

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

# Runs of letters with combining marks, digits and "_" (\w includes marks in this engine, unlike in
# Python's), with zero-width joiners inside; English contractions as in the Penn Treebank; any other
# single character.
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
    """Returns the words of a text, unchanged; any other character is a separate word.

    A combining mark belongs to the character before it, so words in Hindi, Tamil or pointed Arabic
    stay whole. In a script without spaces (Chinese, Thai), a word is everything between spaces or
    punctuation.
    """
    return [word for word, _ in _WORDS.pre_tokenize_str(text)]


def split_at_marks(text: str) -> list[str]:
    """Splits text as older versions did, at combining marks; for vocabularies made with them."""
    return _OF_BEFORE.findall(text)


def has_marks(text: str) -> bool:
    """Returns whether a text contains a combining mark."""
    return any(unicodedata.category(character)[0] == "M" for character in text)
