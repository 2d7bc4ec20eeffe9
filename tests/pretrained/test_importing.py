"""Import, export and mistakes, with a checkpoint that the test writes itself."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.models.model import parameter_shapes
from research.models.registry import make_model
from research.pretrained.exporting import export_model
from research.pretrained.importing import IMPORTED, import_model
from research.runs.parameters import PARAMETERS
from research.training.runs import load_run_config, open_run
from tests.checkpoints import ALPHABET, CONFIG, write_gpt2

MODEL = {
    "name": "decoder",
    "width": 16,
    "num_layers": 3,
    "num_heads": 2,
    "feedforward": 64,
    "activation": "gelu_tanh",
    "norm": "layernorm",
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "position": "learned",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Returns a directory with a model "there" and the run "run" that it became."""
    home = tmp_path_factory.mktemp("imported")
    write_gpt2(home / "there")
    import_model(home / "there", home / "run")
    return home


def opened(run):
    return open_run(run, load_run_config(run))


def by_hand(arrays, tokens):
    """Returns the logits of a GPT-2, written out in NumPy from its description."""

    def norm(x, name):
        y = x - x.mean(-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
        return y * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    def dense(x, name):
        return x @ arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    x = arrays["transformer.wte.weight"][tokens] + arrays["transformer.wpe.weight"][: len(tokens)]
    for i in range(3):
        h = f"transformer.h.{i}"
        q, k, v = np.split(dense(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn"), 3, -1)
        heads = []
        for one in (slice(0, 8), slice(8, 16)):
            scores = np.tril(np.exp(q[:, one] @ k[:, one].T / 8**0.5))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, one])
        x = x + dense(np.concatenate(heads, -1), f"{h}.attn.c_proj")
        y = dense(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh((2 / np.pi) ** 0.5 * (y + 0.044715 * y**3)))
        x = x + dense(y, f"{h}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ arrays["transformer.wte.weight"].T


def test_logits_are_those_of_the_checkpoint(home):
    run, tokens = opened(home / "run"), np.arange(11) % len(ALPHABET)
    arrays = load_file(home / "there" / "model.safetensors")
    found = run.model.apply({"params": run.params}, jnp.asarray(tokens)[None])[0][0]
    np.testing.assert_allclose(found, by_hand(arrays, tokens), atol=2e-5)


def test_round_trip_is_equal_bit_by_bit(home, tmp_path):
    run = opened(home / "run")
    assert export_model(run, tmp_path / "back") == "gpt2"
    before, after = (
        load_file(folder / "model.safetensors") for folder in (home / "there", tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == CONFIG
    import_model(tmp_path / "back", tmp_path / "again")
    first, second = (d / PARAMETERS for d in (home / "run", tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()
    assert run.tokenizer.decode(run.tokenizer.encode("abc jam")) == "abc jam"


def test_a_model_of_here_goes_out_and_comes_back(home, tmp_path):
    """With no config.json to give back, the family is found by what the model is made of."""
    run = opened(home / "run")
    model = make_model(MODEL, len(ALPHABET), 24)
    shapes = parameter_shapes(model, {"inputs": jax.ShapeDtypeStruct((1, 2), jnp.int32)})
    keys = iter(jax.random.split(jax.random.key(0), 99))
    params = jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape), shapes)
    mine = run._replace(path=tmp_path, params=params, model=model)
    assert export_model(mine, tmp_path / "out") == "gpt2"
    import_model(tmp_path / "out", tmp_path / "run")
    back = opened(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, back.params, params)
    assert back.config.model == run.config.model


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.norm": "rmsnorm", "model.use_bias": False}, "no family has all that"),
        ({"model.activation": "relu", "model.norm": "rmsnorm"}, "gpt2: model.norm='rmsnorm'"),
    ],
)
def test_a_model_that_no_family_has(home, tmp_path, changes, says):
    run = opened(home / "run")
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=says):
        export_model(run._replace(path=tmp_path, config=config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def drop(name):
    return lambda tensors: tensors.pop(f"transformer.{name}")


def add(name, array):
    return lambda tensors: tensors.update({name: array})


SMALL = np.zeros((2, 2), np.float32)
EMBEDDING = "transformer.wte.weight"
MISTAKES = {
    "unknown family": ({"model_type": "rwkv9"}, None, "model_type='rwkv9'"),
    "other architecture": ({"architectures": ["GPT2ForTokens"]}, None, "GPT2LMHeadModel can be"),
    "unread key": ({"scale_attn_by_inverse_layer_idx": True}, None, "inverse_layer_idx=True"),
    "unknown key": ({"mixture": 8}, None, "--ignore=mixture"),
    "activation": ({"activation_function": "tanh"}, None, "activation_function='tanh'"),
    "missing key": ({"n_embd": None}, None, "no 'n_embd'"),
    "missing tensor": ({}, drop("h.1.ln_1.bias"), "no tensor 'transformer.h.1.ln_1.bias'"),
    "more tensors": ({}, add("extra.weight", SMALL), "a tensor 'extra.weight'"),
    "shape": ({}, add(EMBEDDING, SMALL), r"wte.weight has shape \(2, 2\).*it has \(15, 16\)"),
    "more layers": ({"n_layer": 4}, None, "no tensor 'transformer.h.3.*and 9 others"),
    "head": ({}, add("lm_head.weight", np.ones((15, 16), np.float32)), "lm_head.weight differs"),
    "integers": ({}, add(EMBEDDING, np.zeros((15, 16), np.int8)), "dequantized"),
    "vocabulary": ({"vocab_size": 9}, add(EMBEDDING, np.ones((9, 16), np.float32)), "15 tokens"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(name, tmp_path):
    changes, change, says = MISTAKES[name]
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    write_gpt2(tmp_path / "there", config, change or (lambda tensors: None))
    with pytest.raises(UserError, match=says) as raised:
        import_model(tmp_path / "there", tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_directories_that_are_no_models(tmp_path):
    with pytest.raises(UserError, match="is no directory"):
        import_model(tmp_path / "nowhere", tmp_path / "run")
    write_gpt2(tmp_path / "there")
    weights = tmp_path / "there" / "model.safetensors"
    weights.rename(tmp_path / "there" / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickles are not read"):
        import_model(tmp_path / "there", tmp_path / "run")
    (tmp_path / "there" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="has no model.safetensors"):
        import_model(tmp_path / "there", tmp_path / "run")
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    with pytest.raises(UserError, match="is damaged"):
        import_model(tmp_path / "there", tmp_path / "run")
    (tmp_path / "there" / "config.json").unlink()
    with pytest.raises(UserError, match="has no config.json"):
        import_model(tmp_path / "there", tmp_path / "run")


def test_shards_of_an_index(home, tmp_path):
    arrays = load_file(home / "there" / "model.safetensors")
    names = sorted(arrays)
    listed = {}
    for number, some in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: arrays[name] for name in some}, tmp_path / file)
        listed |= dict.fromkeys(some, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    shutil.copy(home / "there" / "config.json", tmp_path)
    import_model(tmp_path, tmp_path / "run")
    whole = (home / "run" / PARAMETERS).read_bytes()
    assert (tmp_path / "run" / PARAMETERS).read_bytes() == whole
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        import_model(tmp_path, tmp_path / "other")


def test_a_run_is_not_overwritten_by_another_model(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    import_model(home / "there", tmp_path / "run")  # the same again
    write_gpt2(tmp_path / "there", change=lambda tensors: tensors[EMBEDDING].fill(0))
    with pytest.raises(UserError, match="holds another run"):
        import_model(tmp_path / "there", tmp_path / "run")
    record = json.loads((tmp_path / "run" / IMPORTED).read_text())
    assert record["family"] == "gpt2" and record["config"] == CONFIG


def test_lengths(home, tmp_path):
    with pytest.raises(UserError, match="--length=12: the model has a table of 24"):
        import_model(home / "there", tmp_path / "run", length=12)
