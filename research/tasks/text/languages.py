"""What has to be known of a language to score it: how its words are told apart."""

import re

_NAMES = {
    # Codes of ISO 639-1, -2 and -3 (Chinese has several), and what files are called.
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
"""Languages that put no space between words."""


def code_of(language: str) -> str:
    """Returns the ISO 639-1 code of a language known here, else what comes before its region.

    "zh-CN", "zho_Hans", "cmn" and "Chinese" are "zh", "pt_BR" is "pt".
    """
    first = re.split(r"[-_.]", language.lower(), maxsplit=1)[0]
    return _CODES.get(first, first)


def words_in(text: str, language: str) -> int:
    """Returns the number of words, or of characters where the language puts no space between words.

    Args:
      text: a sentence.
      language: any name that `code_of` knows.
    """
    words = text.split()
    return sum(map(len, words)) if code_of(language) in UNSPACED else len(words)
