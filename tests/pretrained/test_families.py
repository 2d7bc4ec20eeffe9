"""Pretrained models against the transformers library: in, through every use, and back out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from research.decoding.continuation import continuation
from research.decoding.sampling import Sampling
from research.pretrained.exporting import export_model
from research.pretrained.registry import FAMILIES
from tests.pretrained import tiny

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4


def checkpoint(name, directory, **more):
    """Writes a random model of transformers, and returns it in float32."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny.config(transformers, name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(tiny.SPREAD * torch.randn_like(parameter))
    model.to(more.pop("dtype", torch.float32)).save_pretrained(directory, **more)
    return model.float()


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def imported(request, tmp_path_factory):
    """Returns the name, their model, our run, and the directories of both."""
    home = tmp_path_factory.mktemp(request.param)
    theirs = checkpoint(request.param, home / "there")
    return request.param, theirs, tiny.imported(home / "there", home / "run"), home


def test_every_family_is_tested():
    names = {tiny.config(transformers, name).model_type for name in tiny.CONFIGS}
    assert names == {name for name, family in FAMILIES.items() if family.task == "tokens"}


def ours(run, tokens, **more):
    return jax.jit(lambda p, t: run.model.apply({"params": p}, t, **more)[0])(run.params, tokens)


def test_logits_of_ragged_lengths(imported):
    _, theirs, run, _ = imported
    rng = np.random.default_rng(0)
    for length in (1, 2, 7, tiny.LENGTH):
        tokens = rng.integers(0, tiny.VOCABULARY, (2, length))
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens)).logits.numpy()
        found = np.asarray(ours(run, tokens))
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_logits_of_left_padded_rows(imported):
    _, theirs, run, _ = imported
    tokens = np.random.default_rng(1).integers(0, tiny.VOCABULARY, (3, 12))
    mask = np.arange(12) >= np.array([[0], [3], [9]])
    places = np.maximum(np.cumsum(mask, 1) - 1, 0)
    extra = {} if tiny.counts_by_itself(theirs) else {"position_ids": torch.tensor(places)}
    with torch.no_grad():
        attention = torch.tensor(mask.astype(np.int64))
        expected = theirs(torch.tensor(tokens), attention_mask=attention, **extra).logits.numpy()
    # What lies left of the text is a segment of its own, and positions count from the text.
    found = np.asarray(
        ours(run, tokens, segments=jnp.asarray(mask, jnp.int32), positions=jnp.asarray(places))
    )
    np.testing.assert_allclose(found[mask], expected[mask], atol=TOLERANCE, rtol=TOLERANCE)


def test_greedy_decoding_with_a_cache(imported):
    _, theirs, run, _ = imported
    prompt = np.random.default_rng(2).integers(0, tiny.VOCABULARY, (4, 5))
    with torch.no_grad():
        generated = theirs.generate(
            torch.tensor(prompt), do_sample=False, max_new_tokens=32, eos_token_id=None,
            pad_token_id=0, attention_mask=torch.ones(prompt.shape, dtype=torch.long),
        ).numpy()[:, 5:]  # fmt: skip
    greedy = Sampling(0.0, 0, 1.0)
    chunks = list(continuation(run.model, run.params, prompt, 32, greedy, jax.random.key(0)))
    found = np.concatenate([chunk.tokens for chunk in chunks], 1)
    assert found.tolist() == generated.tolist()
    # Random models come to repeat a token, so it takes several rows to see more than that.
    assert len(set(found.flat)) > 3


def test_round_trip_is_equal_bit_by_bit(imported):
    name, theirs, run, home = imported
    assert export_model(run, home / "back") == theirs.config.model_type
    before, after = (load_file(home / d / "model.safetensors") for d in ("there", "back"))
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype
        np.testing.assert_array_equal(before[key], after[key])
    tokens = torch.arange(11)[None]
    again = transformers.AutoModelForCausalLM.from_pretrained(home / "back").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            again(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-5
        )


def test_config_is_written_anew(imported):
    """A run that was trained here has no config.json to give back: it is made from the options."""
    _, theirs, run, home = imported
    made = FAMILIES[theirs.config.model_type].config(run.config.model.to_dict(), tiny.LENGTH)
    directory = home / "made"
    directory.mkdir(exist_ok=True)
    made |= {"model_type": theirs.config.model_type, "vocab_size": tiny.VOCABULARY}
    (directory / "config.json").write_text(json.dumps(made))
    weights = (home / "there" / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(weights)
    class_of = type(theirs)
    again = class_of.from_pretrained(directory).eval()
    tokens = torch.arange(13)[None]
    with torch.no_grad():
        difference = (again(tokens).logits - theirs(tokens).logits).abs().max()
    assert difference < TOLERANCE


def test_shards_in_bfloat16(tmp_path):
    checkpoint("llama", tmp_path / "a", dtype=torch.bfloat16, max_shard_size="20KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    run = tiny.imported(tmp_path / "a", tmp_path / "run")
    tokens, load = np.arange(12)[None], transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path / "a", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours(run, tokens)), expected, atol=TOLERANCE)
    assert {a.dtype for a in jax.tree.leaves(run.params)} == {jnp.dtype("float32")}
    export_model(run, tmp_path / "back")
    back, whole = (load(tmp_path / d, dtype="auto").state_dict() for d in ("back", "a"))
    assert {value.dtype for value in back.values()} == {torch.bfloat16}
    assert all(torch.equal(whole[key], value) for key, value in back.items())


def test_a_rope_that_grows_with_the_length_is_plain_up_to_the_trained_one(tmp_path):
    checkpoint("llama", tmp_path / "a")
    file = tmp_path / "a" / "config.json"
    config = json.loads(file.read_text())
    base = (config.pop("rope_parameters", None) or config)["rope_theta"]
    said = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": base}
    file.write_text(json.dumps(config | {"rope_parameters": said}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert theirs.config.rope_parameters["rope_type"] == "dynamic"
    run = tiny.imported(tmp_path / "a", tmp_path / "run")
    tokens = np.random.default_rng(0).integers(0, tiny.VOCABULARY, (2, tiny.LENGTH))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    found = np.asarray(ours(run, tokens))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
