"""Retrieval of a fact: where it stands, a circuit that finds it, and random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from research.decoding.needle import (
    Needle,
    context,
    needle_cells,
    needles,
    repeated,
    summary,
    table,
)
from research.errors import UserError
from research.interpret.heads.head_masking import mask_heads
from research.models.registry import make_model
from research.tasks.text.tokenizer import Tokenizer, characters
from tests import small
from tests.commands import run_cases
from tests.compiled import compiled
from tests.interpret.test_known_circuit import circuit
from tests.random_runs import write_run

TEXT = "The pass key is 0123456789. Remember it.\nA rose by any other name would smell as sweet.\n"
ALPHABET = "".join(sorted(set(TEXT)))
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return characters(ALPHABET)


def random_decoder(length):
    model = make_model(small.recall().model, len(ALPHABET), length)
    params = compiled(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, jax.tree.map(lambda a: jnp.asarray(3 * a), params)


def test_a_needle_is_what_it_says(tokenizer):
    found = needles(tokenizer, 30, seed=1)
    for one in found:
        fact, other, question, answer = map(tokenizer.decode, one)
        assert fact == f"\nThe pass key is{answer}. Remember it.\n"
        assert question == "\nThe pass key is" and 10_000 <= int(answer) < 100_000
        assert other != fact and len(other) == len(fact)
    assert len({tuple(one.answer) for one in found}) > 25
    names = needles(tokenizer, 9, "key {answer}.", "key", ["rose", "name"])
    assert {tokenizer.decode(one.answer) for one in names} == {" rose", " name"}


@pytest.mark.parametrize("depth", DEPTHS)
def test_it_stands_at_its_depth(depth):
    filler = np.arange(100, 117)
    text = context(filler, np.array([1, 2, 3]), np.array([7]), depth).tolist()
    place = round(depth * 17)
    assert text == [*filler[:place], 1, 2, 3, *filler[place:], 7]


@pytest.mark.parametrize("length", [70, 97])
def test_cells_equal_a_loop(tokenizer, length):
    """Each text is written out by hand, has exactly the length, and is read by itself."""
    model, params = random_decoder(96)
    drawn = needles(tokenizer, 3)
    drawn[1] = drawn[1]._replace(other=drawn[1].other[:-4])  # the sizes of facts may differ
    rng = np.random.default_rng(5)
    text = rng.integers(0, len(ALPHABET), 120).astype(np.int32)
    start = [4, 2]
    cells = needle_cells(model, params, text, drawn, [length, 66], DEPTHS, start, seed=3)
    begins = np.random.default_rng(3).integers(0, 120 - length + 1, 3)
    assert [(c.length, c.depth) for c in cells] == [(n, d) for n in (length, 66) for d in DEPTHS]

    @compiled
    def log_p_of(whole):
        return jax.nn.log_softmax(model.apply({"params": params}, whole[None, :-1])[0][0])

    for cell in cells[:5]:
        for i, one in enumerate(drawn):
            for fact, log_prob in ((one.fact, cell.log_prob[i]), (one.other, None)):
                room = length - 2 - len(fact) - len(one.question) - len(one.answer)
                filler = text[begins[i] : begins[i] + room].tolist()
                place = round(cell.depth * room)
                whole = [*start, *filler[:place], *fact, *filler[place:], *one.question]
                whole = np.array([*whole, *one.answer])
                assert len(whole) == length
                log_p = log_p_of(whole)[-len(one.answer) :]
                own = log_p[np.arange(len(one.answer)), one.answer].sum()
                expected = cell.other_log_prob[i] if log_prob is None else log_prob
                assert own == pytest.approx(expected, rel=1e-4)
                if log_prob is not None:
                    assert cell.found[i] == (log_p.argmax(-1) == one.answer).all()


def planted():
    """Facts for a circuit that copies what followed a token before: 5 and an answer."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        answer, other = rng.choice(np.arange(6, 12), 2, replace=False)
        facts = np.array([5, answer]), np.array([5, other])
        yield Needle(*facts, np.array([5]), np.array([answer]))


def test_a_circuit_that_copies_finds_all_and_without_its_head_nothing():
    model, params = circuit()
    text = repeated(np.arange(5), 11)
    cells = needle_cells(model, params, text, list(planted()), [7, 11], DEPTHS, [0])
    assert len(cells) == 10
    for cell in cells:
        assert cell.found.all() and (cell.gain > 5).all()
    without = mask_heads(model, params, np.array([[1], [0]], np.float32))
    for cell in needle_cells(model, without, text, list(planted()), [11], DEPTHS, [0]):
        assert not cell.found.any()
        np.testing.assert_allclose(cell.gain, 0, atol=1e-4)


def test_special_tokens_of_a_tokenizer_come_first(tokenizer):
    assert tokenizer.around == ((), ())
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.add_special_tokens(["<s>"])
    number = library.token_to_id("<s>")
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", number)]
    )
    assert Tokenizer(library).around == ((number,), ())


def test_the_table_has_means(tokenizer):
    model, params = random_decoder(80)
    text = repeated(tokenizer.encode(TEXT), 80)
    (cell,) = needle_cells(model, params, text, needles(tokenizer, 5), [80], [0.5])
    header, row = (line.split("\t") for line in table([cell]).splitlines())
    values = dict(zip(header, row, strict=True))
    assert values["length"] == "80" and values["depth"] == "0.5"
    gain = cell.log_prob - cell.other_log_prob
    assert float(values["gain"]) == pytest.approx(gain.mean(), abs=1e-4)
    assert summary(cell)["gain_error"] == pytest.approx(gain.std(ddof=1) / 5**0.5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fact": "The key."}, r"must have \{answer\} in it"),
        ({"answers": ["rose"]}, "at least two that differ"),
        ({"answers": ["", "rose"], "number": 9}, "has no tokens of its own"),
    ],
)
def test_facts_that_cannot_be_asked_for(tokenizer, given, says):
    with pytest.raises(UserError, match=says):
        needles(tokenizer, **{"number": 2} | given)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("needle")
    (home / "text.txt").write_text(TEXT * 40)
    write_run(home / "run", small.text(home / "text.txt", task__length=80, model__num_layers=1))
    return home


@pytest.mark.parametrize(
    ("lengths", "depths", "says"),
    [
        ([82], [0], "--lengths=82 must be at most 81"),
        ([58], [0], "--lengths=58: fact, question and answer alone have 59"),
        ([81], [0], "--lengths=81: the filler has only 80 tokens"),
        ([70], [2], "--depths=2 must be from 0"),
    ],
)
def test_sizes_out_of_range(tokenizer, lengths, depths, says):
    text = np.zeros(80, np.int32)
    with pytest.raises(UserError, match=says):
        needle_cells(*random_decoder(80), text, needles(tokenizer, 2), lengths, depths)


WRONG = {
    "no numbers": (["--lengths=a"], "--lengths=a must be numbers"),
    "two fillers": (["--split=validation", "--filler=a"], "--split and --filler are both"),
    "split": (["--split=tset", "--lengths=80"], "--split='tset' is unknown"),
}


def test_the_command(home):
    filled = ["--filler=A rose.", "--draws=3", f"--out={home}/out"]
    cases = [
        ["--lengths=70,81", "--depths=0,1", "--split=validation", "--draws=3"],
        ["--lengths=200", "--depths=0.5", "--window=20", "--sinks=2", *filled],
        *(given for given, _ in WRONG.values()),
    ]
    outcomes = run_cases("research.needle", [[f"--workdir={home}/run", *case] for case in cases])
    for outcome in outcomes[:2]:
        assert outcome.code == 0, outcome.err
    rows = [line.split("\t") for line in outcomes[0].out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [["70", "0"], ["70", "1"], ["81", "0"], ["81", "1"]]
    content = json.loads((home / "run" / "needle.json").read_text())
    assert content["filler"] == "the validation split" and len(content["cells"]) == 4
    assert len(content["cells"][0]["log_prob_by_draw"]) == 3
    assert (home / "run" / "needle.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((home / "out" / "needle.json").read_text())["cells"][0]["length"] == 200
    for (_, says), outcome in zip(WRONG.values(), outcomes[2:], strict=True):
        assert outcome.code == 2 and says in outcome.err, outcome.err
        assert outcome.err.strip().splitlines()[-1].startswith("error: ")
