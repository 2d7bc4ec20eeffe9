"""Tokenizers: round trips, pieces, caches, and what a run keeps of them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.tasks.task import UNKNOWN
from research.tasks.text import tokenizer
from research.tasks.text.tokenizer import (
    CharTokenizer,
    load_tokenizer,
    make_open_tokenizer,
    make_sentence_tokenizer,
    make_tokenizer,
    train_bpe,
    train_sentence_bpe,
)
from research.tasks.text.words import split_at_marks
from tests.tasks.test_text import ENGLISH, UNICODE, data, made

__all__ = ["data"]  # a fixture of all tests here, too


@pytest.fixture(scope="module")
def bpe():
    return train_bpe((ENGLISH + UNICODE) * 20, 320, None)


def test_characters_are_numbered_in_code_point_order():
    found = make_tokenizer("char", "hello", 0, None)
    assert isinstance(found, CharTokenizer)
    assert found.alphabet == "ehlo"
    assert found.encode("hole").tolist() == [1, 3, 2, 0]
    assert found.decode([1, 3, 2, 0]) == "hole"
    assert found.characters.tolist() == [1.0] * 4


def test_an_unseen_character_is_named():
    with pytest.raises(UserError, match=r"never saw: \['z'\]"):
        make_tokenizer("char", "hello", 0, None).encode("hzl")


@given(st.text(alphabet=sorted(set(ENGLISH + UNICODE))))
def test_character_round_trip(text):
    found = CharTokenizer("".join(sorted(set(ENGLISH + UNICODE))))
    assert found.decode(found.encode(text).tolist()) == text
    assert found.encode(text).dtype == np.int32


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_round_trip_and_character_count(bpe, text):
    tokens = bpe.encode(text)
    assert bpe.decode(tokens.tolist()) == text
    # However a character's bytes fall into tokens, it is counted once.
    assert bpe.characters[tokens].sum() == len(text)


def test_bpe_splits_characters_and_joins_them(bpe):
    # Without both kinds the count above would be no test.
    assert len(bpe.encode("語")) < 4 or len(bpe.encode("🀄")) > 1
    assert len(bpe.encode("🀄")) > 1 and bpe.characters[bpe.encode("🀄")].sum() == 1
    assert bpe.characters.max() > 1
    assert bpe.vocab_size == 320


def test_bpe_smaller_than_the_bytes_is_refused():
    with pytest.raises(UserError, match="bpe_vocab_size=255 must be at least 256"):
        train_bpe("text", 255, None)


def test_bpe_cache_is_keyed_by_its_inputs(tmp_path):
    first = train_bpe(ENGLISH * 9, 270, tmp_path)
    (path,) = tmp_path.iterdir()
    again = train_bpe(ENGLISH * 9, 270, tmp_path)
    assert again.to_json() == first.to_json() and len(list(tmp_path.iterdir())) == 1
    train_bpe(ENGLISH * 9, 271, tmp_path)
    train_bpe(ENGLISH * 9 + "!", 270, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    # It is read: with another file under that name another tokenizer comes back.
    other = train_bpe(UNICODE * 9, 293, None)
    assert other.vocab_size == 293
    path.write_text(other.bpe.to_str())
    assert train_bpe(ENGLISH * 9, 270, tmp_path).vocab_size == 293


def test_bpe_works_where_the_data_directory_cannot_be_written(tmp_path):
    # A file in the place of the folder refuses root as well.
    (tmp_path / "tokenizers").write_text("")
    assert train_bpe(ENGLISH * 9, 270, tmp_path / "tokenizers").vocab_size == 270


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_run_keeps_its_tokenizer(tmp_path, kind):
    task = made(tmp_path, (ENGLISH + UNICODE) * 9, task__tokenizer=kind, task__bpe_vocab_size=300)
    ((name, content),) = task.artifacts().items()
    (tmp_path / name).write_text(content, encoding="utf-8")
    again = load_tokenizer(tmp_path)
    assert type(again) is type(task.tokenizer)
    assert again.vocab_size == task.vocab_size
    text = ENGLISH + UNICODE
    assert again.encode(text).tolist() == task.tokenizer.encode(text).tolist()
    assert again.decode(again.encode(text).tolist()) == text
    np.testing.assert_array_equal(again.characters, task.tokenizer.characters)


def test_a_run_without_tokenizer_says_so(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path)


# Sentences.


@pytest.fixture(scope="module")
def sentence_bpe():
    return train_sentence_bpe((ENGLISH + UNICODE).splitlines() * 20, 320, None)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_sentences_round_trip_in_pieces_too(sentence_bpe, text):
    tokens = sentence_bpe.encode(text)
    assert tokens.dtype == np.int32 and (tokens >= 3).all()
    assert sentence_bpe.decode(tokens.tolist()) == text
    assert sentence_bpe.decode([1, *tokens.tolist(), 2, 0]) == text
    pieces = sentence_bpe.pieces([*tokens.tolist(), 2])
    assert "".join(pieces) == " " + text + "</s>" and len(pieces) == len(tokens) + 1
    assert sentence_bpe.characters[tokens].sum() == len(text) + 1


@pytest.mark.parametrize("text", ["</s>", "a <pad> b<s>", " ", "", "  two  spaces "])
def test_no_text_is_a_special_token(sentence_bpe, text):
    tokens = sentence_bpe.encode(text).tolist()
    assert min(tokens) >= 3 and sentence_bpe.decode(tokens) == text


def test_a_word_has_the_same_tokens_wherever_it_stands(sentence_bpe):
    first = sentence_bpe.encode("question").tolist()
    assert sentence_bpe.encode("the question").tolist()[-len(first) :] == first
    assert sentence_bpe.pieces(sentence_bpe.encode("the")) == [" the"]


def test_punctuation_is_no_part_of_a_word(sentence_bpe):
    word = sentence_bpe.encode("question").tolist()
    assert sentence_bpe.encode("question.").tolist()[: len(word)] == word
    assert sentence_bpe.pieces(sentence_bpe.encode("question."))[-1] == "."


def test_many_sentences_are_encoded_as_each(sentence_bpe):
    texts = (ENGLISH + UNICODE).splitlines() + ["", "</s>"]
    for text, tokens in zip(texts, sentence_bpe.encode_all(texts), strict=True):
        assert tokens.tolist() == sentence_bpe.encode(text).tolist()


def test_the_sentence_tokenizer_has_the_size_asked_for_and_comes_back(sentence_bpe, tmp_path):
    assert sentence_bpe.vocab_size == len(sentence_bpe.characters) == 320
    (tmp_path / tokenizer.FILE).write_text(sentence_bpe.to_json(), encoding="utf-8")
    again = load_tokenizer(tmp_path)
    assert type(again) is type(sentence_bpe) and again.to_json() == sentence_bpe.to_json()
    assert again.encode(UNICODE).tolist() == sentence_bpe.encode(UNICODE).tolist()
    with pytest.raises(UserError, match="bpe_vocab_size=258 must be at least 259"):
        train_sentence_bpe(["text"], 258, None)


def test_the_same_sentences_make_the_same_tokenizer(sentence_bpe, tmp_path):
    lines = (ENGLISH + UNICODE).splitlines() * 20
    again = train_sentence_bpe(lines, 320, tmp_path)
    cached = train_sentence_bpe(lines, 320, tmp_path)
    assert again.to_json() == sentence_bpe.to_json() == cached.to_json()
    # No other tokenizer is taken from the cache: not that of a text with the same lines.
    train_bpe("\n".join(" " + line for line in lines), 317, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_pieces_of_the_other_tokenizers(bpe):
    assert CharTokenizer("abc").pieces([2, 0]) == ["c", "a"]
    for text in (ENGLISH, UNICODE):
        assert "".join(bpe.pieces(bpe.encode(text).tolist())) == text
    # A character that is spread over tokens is shown once, at the last of them.
    tokens = bpe.encode("🀄").tolist()
    assert bpe.pieces(tokens) == [""] * (len(tokens) - 1) + ["🀄"]


@pytest.mark.parametrize("kind", ["char", "word"])
def test_tokens_of_joined_sentences_are_those_of_the_sentences(kind, tmp_path):
    made = make_sentence_tokenizer(kind, ["one two", "three"], ["four"], 0, None)
    sentences = ["two one", "four", "three"]
    parts = [made.encode(sentence) for sentence in sentences]
    np.testing.assert_array_equal(made.encode(" ".join(sentences)), np.concatenate(parts))
    assert made.decode(np.concatenate(parts).tolist()) == " ".join(sentences)
    assert "".join(made.pieces(parts[0].tolist())) == " two one"
    (tmp_path / tokenizer.FILE).write_text(made.to_json(), encoding="utf-8")
    again = load_tokenizer(tmp_path)
    assert again.encode("four one").tolist() == made.encode("four one").tolist()
    assert again.vocab_size == made.vocab_size
    with pytest.raises(UserError, match="never saw"):
        made.encode("fivé")


HINDI = ["मुझे हिन्दी किताबें पढ़ना पसंद", "हिन्दी किताबें"]


def opened(folder, content):
    (folder / tokenizer.FILE).write_text(content, encoding="utf-8")
    return load_tokenizer(folder)


def test_words_with_marks_are_whole_and_come_back(tmp_path):
    made = make_open_tokenizer("word", HINDI, 1, 0, None)
    assert made.vocab_size == 2 + 5 and made.split(HINDI[0]) == HINDI[0].split()
    again = opened(tmp_path, made.to_json())
    assert again.to_json() == made.to_json()
    np.testing.assert_array_equal(again.encode(HINDI[0]), made.encode(HINDI[0]))


def test_a_vocabulary_of_before_is_read_as_it_was_made(tmp_path):
    # Cut at its marks, as it was: words of one letter or mark.
    words = sorted(set(split_at_marks(HINDI[0])))
    old = opened(tmp_path, json.dumps({"kind": "open_word", "words": words}))
    assert old.split("हिन्दी") == ["ह", "ि", "न", "्", "द", "ी"]
    assert UNKNOWN not in old.encode(HINDI[0]).tolist()
    assert json.loads(old.to_json()) == {"kind": "open_word", "words": words}


def test_what_has_no_marks_is_written_as_before(tmp_path):
    made = make_open_tokenizer("word", ["It isn't naïve"], 1, 0, None)
    words = ["is", "it", "n't", "naïve"]
    assert json.loads(made.to_json()) == {"kind": "open_word", "words": words}
    assert opened(tmp_path, made.to_json()).split("हिन्दी") == ["हिन्दी"]
