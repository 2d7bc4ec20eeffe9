"""Pretrained models with an encoder against the transformers library: in, used, and back out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from research.decoding.decode import decode_all
from research.decoding.search import Search
from research.pretrained.exporting import export_model
from research.pretrained.importing import import_model
from research.pretrained.registry import FAMILIES
from tests.commands import run_commands
from tests.pretrained import tiny, tiny_encoders

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
LENGTHS = np.array([11, 7, 1])
WRITERS = [name for name in tiny_encoders.CONFIGS if name != "bert"]
LINES = ["a small dog runs", "two of them", "x"]


def checkpoint(name, directory):
    """Writes a random model of transformers with its tokenizer, and returns it in float32."""
    kind, values = tiny_encoders.CONFIGS[name]
    config = getattr(transformers, kind)(**values, attn_implementation="eager")
    torch.manual_seed(0)
    kind = "SequenceClassification" if name == "bert" else "Seq2SeqLM"
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()
    if name == "t5_v1_1":
        # The configuration ties what checkpoints of T5 1.1 have apart.
        model.lm_head.weight = torch.nn.Parameter(0.1 * model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:  # Marian's sines are a parameter there
                parameter.add_(spread(name, key) * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(std=0.3)
    if name == "bart":
        model.generation_config.forced_bos_token_id = 0
    model.save_pretrained(directory)
    tiny_encoders.tokenizer(name).save(str(directory / "tokenizer.json"))
    return model


def spread(name, key):
    """The standard deviation of a parameter, for which models do not write one token for ever."""
    if any(part in key for part in ("fc1.weight", "fc2.weight", "embed_positions")):
        return 1.0
    scale = {"bart": 0.1, "marian": 0.1}.get(name, 0.2)
    return 0.3 if "shared" in key and name in ("bart", "marian") else scale


@pytest.fixture(scope="module", params=tiny_encoders.CONFIGS)
def imported(request, tmp_path_factory):
    """Returns the name, their model, our run, and the directories of both."""
    home = tmp_path_factory.mktemp(request.param)
    theirs = checkpoint(request.param, home / "there")
    return request.param, theirs, tiny.imported(home / "there", home / "run"), home


def test_every_family_is_tested():
    names = {
        getattr(transformers, kind)(**values).model_type
        for kind, values in tiny_encoders.CONFIGS.values()
    }
    assert names == {name for name, family in FAMILIES.items() if family.task != "tokens"}


def batches(name, targets=9):
    """Returns sources of three lengths with padding in arbitrary rows, by our names and theirs."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, tiny.VOCABULARY - 1, (3, LENGTHS.max()))
    valid = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    theirs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(valid).long()}
    if name == "bert":
        return {"inputs": tokens, "length": LENGTHS}, theirs
    inputs = rng.integers(4, tiny.VOCABULARY - 1, (3, targets))
    ours = {"source": tokens, "source_length": LENGTHS, "inputs": inputs}
    return ours, theirs | {"decoder_input_ids": torch.tensor(inputs)}


def outputs(run, batch):
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    forward = jax.jit(lambda p, b: run.model.apply({"params": p}, b, method="forward"))
    return np.asarray(forward(run.params, batch))


def test_logits_of_ragged_lengths(imported):
    name, theirs, run, _ = imported
    for targets in (1, 9):
        batch, given = batches(name, targets)
        with torch.no_grad():
            expected = theirs(**given).logits.numpy()
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(outputs(run, batch), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_round_trip_is_equal_bit_by_bit(imported):
    name, theirs, run, home = imported
    assert export_model(run, home / "back") == theirs.config.model_type
    before, after = (load_file(home / d / "model.safetensors") for d in ("there", "back"))
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype
        np.testing.assert_array_equal(before[key], after[key])
    files = [(home / d / "tokenizer.json").read_text() for d in ("there", "back")]
    assert files[0] == files[1]
    again = type(theirs).from_pretrained(home / "back", attn_implementation="eager").eval()
    _, given = batches(name)
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, theirs(**given).logits, atol=0, rtol=0)
    for key in ("decoder_start_token_id", "forced_bos_token_id", "eos_token_id"):
        if name != "bert":
            assert getattr(again.generation_config, key) == getattr(theirs.generation_config, key)


def test_config_is_written_anew(imported):
    """As for a run that was trained here, which has no config.json to give back."""
    name, theirs, run, home = imported
    trained = run._replace(path=home / "trained")
    assert export_model(trained, home / "made") == theirs.config.model_type
    again = type(theirs).from_pretrained(home / "made", attn_implementation="eager").eval()
    _, given = batches(name)
    with torch.no_grad():
        difference = (again(**given).logits - theirs(**given).logits).abs().max()
    assert difference < TOLERANCE
    made = json.loads((home / "made" / "config.json").read_text())
    if name == "bert":
        assert again.config.id2label == theirs.config.id2label
    else:
        assert made["eos_token_id"] == theirs.config.eos_token_id
        assert made["decoder_start_token_id"] == theirs.config.decoder_start_token_id


def test_positions_of_a_marian_that_was_trained_on(imported):
    """Positions that are no longer sines are written, and transformers reads them."""
    name, theirs, run, home = imported
    if name != "marian":
        pytest.skip("its positions are learned, or none")
    moved = {key: run.params[key] + 0.5 for key in ("position", "source_position")}
    trained = run._replace(path=home / "trained", params=run.params | moved)
    assert export_model(trained, home / "on") == "marian"
    again = type(theirs).from_pretrained(home / "on", attn_implementation="eager").eval()
    batch, given = batches(name)
    with torch.no_grad():
        expected = again(**given).logits.numpy()
        assert np.abs(expected - theirs(**given).logits.numpy()).max() > 0.01
    np.testing.assert_allclose(outputs(trained, batch), expected, atol=TOLERANCE, rtol=TOLERANCE)
    import_model(home / "on", home / "again")
    assert (home / "again" / "config.json").is_file()


def generated(theirs, given, number):
    """Returns greedy tokens of transformers after the first, cut at the end, as lists."""
    end, pad = theirs.config.eos_token_id, theirs.config.pad_token_id
    with torch.no_grad():
        found = theirs.generate(
            **given, do_sample=False, num_beams=1, max_new_tokens=number, use_cache=True,
            bad_words_ids=[[pad]], forced_eos_token_id=None,
        ).numpy()[:, 1:]  # fmt: skip
    rows = [row.tolist() for row in found]
    return [row[: row.index(end)] if end in row else row for row in rows]


def test_greedy_decoding_with_a_cache(imported):
    name, theirs, run, _ = imported
    if name == "bert":
        pytest.skip("it writes nothing")
    batch, given = batches(name)
    del given["decoder_input_ids"]
    expected = generated(theirs, given, 32)
    # The last token that there is room for is the end.
    search = Search(max_length=33, special=run.special)
    rows = decode_all(run.model, run.params, batch["source"], LENGTHS, search)
    assert [row[0].tokens for row in rows] == expected
    assert max(map(len, expected)) == 32 and len(set(map(tuple, expected))) == 3
    assert max(len(set(row)) for row in expected) > 3
    # Beams of one are greedy too: both ways to decode read the ids of the run.
    wide = Search(beam=2, max_length=33, special=run.special)
    found = decode_all(run.model, run.params, batch["source"], LENGTHS, wide)
    pad = theirs.config.pad_token_id
    assert all(pad not in row[0].tokens for row in found)
    if name == "bart":
        assert {row[0].tokens[0] for row in found} == {0}


def test_translate_command(imported):
    name, theirs, run, home = imported
    if name == "bert":
        pytest.skip("it writes nothing")
    (home / "lines.txt").write_text("\n".join(LINES) + "\n")
    command = [f"--workdir={home / 'run'}", f"--input={home / 'lines.txt'}", "--max_length=20"]
    (outcome,) = run_commands([("research.translate", command)])
    assert outcome.code == 0, outcome.err
    library = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(home / "there" / "tokenizer.json"), pad_token="<pad>"
    )
    given = library(LINES, return_tensors="pt", padding=True)
    given.pop("token_type_ids", None)
    texts = [
        " ".join(library.decode(row, skip_special_tokens=True).splitlines())
        for row in generated(theirs, given, 19)
    ]
    assert outcome.out.splitlines() == texts
    assert any(text.strip() for text in texts)


def test_classify_command(imported):
    name, theirs, run, home = imported
    if name != "bert":
        pytest.skip("it has no classes")
    (outcome,) = run_commands([("research.classify", [f"--workdir={home / 'run'}", *LINES])])
    assert outcome.code == 0, outcome.err
    library = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(home / "there" / "tokenizer.json"), pad_token="[PAD]"
    )
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    for text, (label, probability, shown, words) in zip(LINES, rows, strict=True):
        with torch.no_grad():
            logits = theirs(**library(text, return_tensors="pt")).logits[0]
        best = int(logits.argmax())
        assert (label, shown) == (theirs.config.id2label[best], text)
        assert abs(float(probability) - float(logits.softmax(0)[best])) < 1e-3
        assert words.startswith("[CLS]:") and " [SEP]:" in words
