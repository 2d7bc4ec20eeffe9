"""Scores against hand-made examples and against sacreBLEU's own command."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from research.errors import UserError
from research.tasks.text import translation_scores
from research.tasks.text.translation_scores import (
    bleu_tokenizer,
    by_slice,
    chrf,
    corpus_bleu,
    count_words,
    exact_match,
    language_code,
    signature_tokenizer,
    signatures,
)

WORDS = "a man woman dog in on the street red hat , runs sits . two children play ball".split()


def texts(seed, changed, number=120):
    """Returns sentences, and the same with this part of their words replaced."""
    generator = np.random.default_rng(seed)
    lines = [generator.choice(WORDS, generator.integers(4, 15)) for _ in range(number)]
    spoilt = [
        np.where(generator.random(len(line)) < changed, generator.choice(WORDS, len(line)), line)
        for line in lines
    ]
    return [" ".join(line) for line in spoilt], [" ".join(line) for line in lines]


def sacrebleu(tmp_path, references, *hypotheses, options=()):
    """Returns what the command prints as JSON."""
    names = ["references.txt", *(f"{i}.txt" for i in range(len(hypotheses)))]
    for name, lines in zip(names, (references, *hypotheses), strict=True):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    command = [sys.executable, "-m", "sacrebleu", names[0], "-i", *names[1:], *options]
    done = subprocess.run(
        [*command, "-f", "json", "-w", "6"], cwd=tmp_path, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def test_bleu_by_hand():
    # Five of 6 words, 3 of 5 pairs, 2 of 4 triples and 1 of 3 quadruples; not too short.
    score, signature = corpus_bleu(["the cat sat on a mat"], ["the cat sat on the mat"])
    assert score == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert "tok:13a" in signature and "version:" in signature
    # Everything right, but 4 words for 6: the brevity penalty alone.
    score, _ = corpus_bleu(["the cat sat on"], ["the cat sat on the mat"])
    assert score == pytest.approx(100 * math.exp(1 - 6 / 4))
    # Case counts, and a full stop is a word of its own whether or not a space is before it.
    assert corpus_bleu(["The dog is here ."], ["The dog is here."])[0] == pytest.approx(100)
    assert corpus_bleu(["the dog is here."], ["The dog is here."])[0] < 90


def test_bleu_counts_over_the_corpus():
    hypotheses, references = ["a b c d e f", "x"], ["a b c d e f", "g h i j"]
    # 6 of 7 words are right; longer n-grams are only in the first.
    expected = 100 * (6 / 7) ** 0.25 * math.exp(1 - 10 / 7)
    assert corpus_bleu(hypotheses, references)[0] == pytest.approx(expected)


def test_scores_are_those_of_sacrebleus_command(tmp_path):
    hypotheses, references = texts(0, 0.3)
    bleu, letters = sacrebleu(tmp_path, references, hypotheses, options=("-m", "bleu", "chrf"))
    assert corpus_bleu(hypotheses, references).score == pytest.approx(bleu["score"], abs=1e-5)
    assert chrf(hypotheses, references).score == pytest.approx(letters["score"], abs=1e-5)
    assert corpus_bleu(hypotheses, references).signature == bleu["signature"]
    assert chrf(hypotheses, references).signature == letters["signature"]
    assert 20 < bleu["score"] < 80


def test_exact_match_is_to_the_letter():
    assert exact_match(["a b.", "A b", "c ", "d"], ["a b.", "a b", "c", "d"]) == 0.5


def test_slices_are_scored_apart_and_empty_ones_are_no_number():
    hypotheses, references = ["a", "b", "c", "x", "y"], ["a", "b", "x", "y", "y"]
    found = by_slice(exact_match, hypotheses, references, [0, 0, 1, 1, 7], 3)
    assert found[:2] == [1.0, 0.0] and math.isnan(found[2])
    bleu = by_slice(lambda h, r: corpus_bleu(h, r).score, *texts(0, 0.3), np.arange(120) // 60, 2)
    halves = [corpus_bleu(*(side[part] for side in texts(0, 0.3))).score for part in HALVES]
    assert bleu == pytest.approx(halves)
    assert math.isnan(by_slice(lambda h, r: chrf(h, r).score, [], [], [], 1)[0])


HALVES = (slice(0, 60), slice(60, 120))


@pytest.mark.parametrize("measure", [corpus_bleu, chrf, exact_match])
def test_different_numbers_of_lines_are_refused(measure):
    with pytest.raises(UserError, match="2 translations and 1 references"):
        measure(["a", "b"], ["a"])


# What counts as a word.


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        *((name, "zh") for name in ("zh", "zh-CN", "zh_TW", "cmn", "zho", "ZHO_Hans", "yue")),
        *((name, "char") for name in ("th", "tha", "lo", "khm", "my", "bo", "thai.tok")),
        *((name, "13a") for name in ("en", "de", "pt-BR", "xx", "english", "vi", "hi", "ar", "tr")),
    ],
)
def test_what_bleu_takes_for_words_follows_the_language(language, tokenizer):
    assert bleu_tokenizer("auto", language) == tokenizer
    assert bleu_tokenizer("intl", language) == "intl"


@pytest.mark.parametrize("language", ["ja", "jpn", "ja_JP", "ko", "kor", "ko-KR"])
def test_japanese_and_korean_are_by_mecab_where_it_is_there(language, monkeypatch):
    def installed(tokenizer="13a"):
        return tokenizer

    def missing(tokenizer="13a"):
        if "mecab" in tokenizer:
            raise UserError("not installed")

    monkeypatch.setattr(translation_scores, "make_bleu", installed)
    assert bleu_tokenizer("auto", language) == f"{language_code(language)}-mecab"
    monkeypatch.setattr(translation_scores, "make_bleu", missing)
    assert bleu_tokenizer("auto", language) == "char"


def test_a_tokenizer_that_is_not_there_is_one_line(monkeypatch):
    def refuse(**_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(translation_scores, "BLEU", refuse)
    with pytest.raises(UserError, match=r"'ja-mecab' is not .* pip install 'sacrebleu\[ja\]'"):
        bleu_tokenizer("ja-mecab", "ja")
    with pytest.raises(UserError, match="task.bleu_tokenizer='13b' is unknown.*'13a'"):
        bleu_tokenizer("13b", "de")


CHINESE = ["我喜欢这只黑色的小猫。", "今天天气很好，我们去公园。"]
NEAR = ["我喜欢这只白色的小猫。", "今天天气很好，他们去公园。"]
THAI = ["ฉันชอบแมวตัวนี้มาก", "วันนี้อากาศดี"]
NEAR_THAI = ["ฉันชอบหมาตัวนี้มาก", "วันนี้อากาศร้อน"]


@pytest.mark.parametrize(
    ("language", "found", "right"), [("zh", NEAR, CHINESE), ("th", NEAR_THAI, THAI)]
)
def test_bleu_without_spaces_is_that_of_sacrebleu_and_not_zero(language, found, right, tmp_path):
    tokenizer = bleu_tokenizer("auto", language)
    score, signature = corpus_bleu(found, right, tokenizer)
    theirs = sacrebleu(tmp_path, right, found, options=("-tok", tokenizer))
    assert score == pytest.approx(theirs["score"], abs=1e-5) and 40 < score < 95
    assert signature == theirs["signature"] == signatures(tokenizer)["bleu"]
    assert signature_tokenizer(signature) == tokenizer and signature_tokenizer("") == "13a"
    assert corpus_bleu(found, right).score < 1e-3  # a sentence is one word


def test_length_is_in_words_where_there_are_any():
    assert count_words("ein Hund läuft", "de") == 3
    assert count_words(CHINESE[0], "zh_CN") == 11 and count_words(" 我 猫 ", "cmn") == 2
    assert count_words("나는 고양이를", "ko") == 2


def test_the_signature_of_chrf_stands_beside_it():
    assert set(signatures("zh")) == {"bleu", "chrf"} and "nc:6" in signatures("zh")["chrf"]
