"""Facts about languages that scoring needs: whether spaces separate words."""

import re

_NAMES = {
    # Codes of ISO 639-1, -2 and -3 (Chinese has several), and names common in file names.
    "zh": "zho chi cmn yue wuu hak nan gan hsn lzh cn chinese mandarin cantonese",
    "ja": "jpn jp japanese",
    "ko": "kor korean",
    "th": "tha thai",
    "lo": "lao",
    "km": "khm khmer",
    "my": "mya bur burmese",
    "bo": "bod tib tibetan",
    "dz": "dzo dzongkha",
}
_CODES = {name: code for code, names in _NAMES.items() for name in (code, *names.split())}

UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "bo", "dz")
"""Languages written without spaces between words."""


def code_of(language: str) -> str:
    """Returns the ISO 639-1 code of a language in the table, else the name without its region.

    "zh-CN", "zho_Hans", "cmn" and "Chinese" are "zh", "pt_BR" is "pt".
    """
    first = re.split(r"[-_.]", language.lower(), maxsplit=1)[0]
    return _CODES.get(first, first)


def words_in(text: str, language: str) -> int:
    """Returns the number of words, or of characters for languages without spaces between words.

    Args:
      text: a sentence.
      language: name or code; see `code_of`.
    """
    words = text.split()
    return sum(map(len, words)) if code_of(language) in UNSPACED else len(words)
