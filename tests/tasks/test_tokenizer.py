"""Tokenizers: round trips, pieces, caches, and what a run keeps of them."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.tasks.task import UNKNOWN
from research.tasks.text import tokenizer
from research.tasks.text.tokenizer import (
    OPEN,
    SENTENCE,
    characters,
    load_tokenizer,
    make_tokenizer,
    open_words,
)
from tests.tasks.test_text import ENGLISH, UNICODE, data, made

__all__ = ["data"]  # a fixture of all tests here, too


def train_bpe(text, vocab_size, cache=None):
    return make_tokenizer("bpe", [text], vocab_size=vocab_size, cache=cache)


def train_sentence_bpe(sentences, vocab_size, cache=None):
    return make_tokenizer("bpe", sentences, SENTENCE, vocab_size=vocab_size, cache=cache)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe((ENGLISH + UNICODE) * 20, 320)


def test_characters_are_numbered_in_code_point_order():
    found = make_tokenizer("char", ["hello"])
    assert found.kind == "char" and found.special == ()
    assert found.encode("hole").tolist() == [1, 3, 2, 0]
    assert found.decode([1, 3, 2, 0]) == "hole"
    assert found.characters.tolist() == [1.0] * 4


def test_an_unseen_character_is_named():
    with pytest.raises(UserError, match=r"never saw: \['z'\]"):
        make_tokenizer("char", ["hello"]).encode("hzl")


@given(st.text(alphabet=sorted(set(ENGLISH + UNICODE))))
def test_character_round_trip(text):
    found = characters("".join(sorted(set(ENGLISH + UNICODE))))
    assert found.decode(found.encode(text).tolist()) == text
    assert found.encode(text).dtype == np.int32
    # The table of characters gives what the library would.
    assert found.encode(text).tolist() == found.library.encode(text).ids


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
        train_bpe("text", 255)


def test_bpe_cache_is_keyed_by_its_inputs(tmp_path):
    first = train_bpe(ENGLISH * 9, 270, tmp_path)
    (path,) = tmp_path.iterdir()
    again = train_bpe(ENGLISH * 9, 270, tmp_path)
    assert again.to_json() == first.to_json() and len(list(tmp_path.iterdir())) == 1
    train_bpe(ENGLISH * 9, 271, tmp_path)
    train_bpe(ENGLISH * 9 + "!", 270, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    # It is read: with another file under that name another tokenizer comes back.
    other = train_bpe(UNICODE * 9, 293)
    assert other.vocab_size == 293
    path.write_text(raw_bpe(other))
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
    assert again.kind == kind and again.to_json() == content
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
    return train_sentence_bpe((ENGLISH + UNICODE).splitlines() * 20, 320)


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


def test_a_tokenizer_of_elsewhere_may_have_its_special_tokens_anywhere():
    """As GPT-2's, whose only one is the last."""
    vocabulary = {c: i for i, c in enumerate("ab")} | {"Ġ": 2}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<|end|>"])
    made = tokenizer.Tokenizer(library)
    assert (made.vocab_size, made.special) == (4, ("<|end|>",))
    assert made.characters.tolist() == [1, 1, 1, 0]
    assert made.encode("ab a").tolist() == [0, 1, 2, 0]
    assert made.pieces([0, 3, 2, 1]) == ["a", "<|end|>", " ", "b"]


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
    assert again.special == SENTENCE and again.to_json() == sentence_bpe.to_json()
    assert again.encode(UNICODE).tolist() == sentence_bpe.encode(UNICODE).tolist()
    with pytest.raises(UserError, match="bpe_vocab_size=258 must be at least 259"):
        train_sentence_bpe(["text"], 258)


def test_the_same_sentences_make_the_same_tokenizer(sentence_bpe, tmp_path):
    lines = (ENGLISH + UNICODE).splitlines() * 20
    again = train_sentence_bpe(lines, 320, tmp_path)
    cached = train_sentence_bpe(lines, 320, tmp_path)
    assert again.to_json() == sentence_bpe.to_json() == cached.to_json()
    # No other tokenizer is taken from the cache: not that of a text with the same lines.
    train_bpe("\n".join(" " + line for line in lines), 317, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_pieces_of_the_other_tokenizers(bpe):
    assert characters("abc").pieces([2, 0]) == ["c", "a"]
    for text in (ENGLISH, UNICODE):
        assert "".join(bpe.pieces(bpe.encode(text).tolist())) == text
    # A character that is spread over tokens is shown once, at the last of them.
    tokens = bpe.encode("🀄").tolist()
    assert bpe.pieces(tokens) == [""] * (len(tokens) - 1) + ["🀄"]


@pytest.mark.parametrize("kind", ["char", "word"])
def test_tokens_of_joined_sentences_are_those_of_the_sentences(kind, tmp_path):
    made = make_tokenizer(kind, ["one two", "three"], SENTENCE, others=["four"])
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
    made = make_tokenizer("word", HINDI, OPEN)
    assert made.vocab_size == 2 + 5 and made.split(HINDI[0]) == HINDI[0].split()
    again = opened(tmp_path, made.to_json())
    assert again.to_json() == made.to_json()
    np.testing.assert_array_equal(again.encode(HINDI[0]), made.encode(HINDI[0]))


def test_words_of_lower_case_are_those_of_python():
    text = "The FILM isn’t ΣΑΣ, Σ or İstanbul"
    made = make_tokenizer("word", [text], OPEN)
    words = ["the", "film", "is", "n't", "σας", ",", "σ", "or", "i̇stanbul"]
    assert made.encode(text).tolist() == [2 + sorted(words).index(word) for word in words]
    assert made.split(text) == ["The", "FILM", "is", "n’t", "ΣΑΣ", ",", "Σ", "or", "İstanbul"]
    assert made.encode("film <unknown> <pad>").tolist().count(UNKNOWN) == 6


# Files of before, which kept only what goes into a preset.


def raw_bpe(made):
    """The JSON of a BPE of the library without special tokens, as it is trained."""
    content, first = json.loads(made.to_json()), len(made.special)
    vocab = content["model"]["vocab"].items()
    content["model"]["vocab"] = {token: i - first for token, i in vocab if i >= first}
    return json.dumps(content | {"added_tokens": [], "normalizer": None})


@pytest.mark.parametrize(
    ("kind", "special"),
    [
        ("char", ()),
        ("bpe", ()),
        ("char", SENTENCE),
        ("word", SENTENCE),
        ("bpe", SENTENCE),
        ("word", OPEN),
        ("bpe", OPEN),
    ],
)
def test_a_file_of_before_is_read(kind, special, tmp_path):
    made = make_tokenizer(kind, ENGLISH.lower().splitlines(), special, vocab_size=280)
    use = {(): "", SENTENCE: "sentence_", OPEN: "open_"}[special]
    tokens = made.pieces(range(len(special), made.vocab_size))
    content = {
        "char": {"alphabet": "".join(tokens)},
        "word": {"words": [token[1:] for token in tokens]},
        "bpe": {"tokenizer": json.loads(raw_bpe(made))},
    }[kind]
    assert opened(tmp_path, json.dumps({"kind": use + kind} | content)).to_json() == made.to_json()


def test_a_vocabulary_of_before_that_was_cut_at_marks(tmp_path):
    words = ["ह", "ि", "न", "्", "द", "ी"]
    old = {"kind": "open_word", "words": sorted(set(words))}
    assert opened(tmp_path, json.dumps(old)).split("हिन्दी") == words
    again = opened(tmp_path, opened(tmp_path, json.dumps(old)).to_json())
    assert UNKNOWN not in again.encode("हिन्दी").tolist()
    whole = opened(tmp_path, json.dumps(old | {"marks_in_words": True}))
    assert whole.to_json() == open_words(old["words"]).to_json()
