"""Layouts of tensors and keys of config.json: what is written is read back, and the reverse."""

from pathlib import Path

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.models.registry import make_model
from research.pretrained.config_reader import ConfigReader
from research.pretrained.exporting import fitting
from research.pretrained.families.rope import check_length, rope_options, write_rope
from research.pretrained.importing import family_of
from research.pretrained.patterns import kinds_of
from research.pretrained.tensors import Layout
from research.training.runs import LoadedRun
from research.training.schema import resolve
from tests.pretrained import tiny


def options(config, name):
    """Returns our options of a config.json, all keys of which have to be read."""
    read, family = ConfigReader(config), tiny.family(name)
    found = family.options(read)
    family.length(read)
    read.check_all_read()
    return found


def resolved(model):
    return resolve({"task": {"name": "tokens", "length": tiny.LENGTH}, "model": model})


def run_of(model):
    """Returns a run with these options of a model, of which only the embeddings are there."""
    embedding = jax.ShapeDtypeStruct((tiny.VOCABULARY, model["width"]), "float32")
    params = {"embedding": embedding}
    return LoadedRun(Path("run"), resolved(model), None, params, {}, None, (), {})


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_layouts_are_inverted(name):
    """Of random values, and the mixers' parameters are all there, in their shapes."""
    config = resolved(options(tiny.config_json(name), name))
    mixers = make_model(config.model, tiny.VOCABULARY, tiny.LENGTH).config.mixers
    shapes = {
        f"layers/{i}/mixer/{parameter}": one.shape
        for i in range(config.model.num_layers)
        for parameter, one in mixers[i % len(mixers)].parameters().items()
    }
    rng, found, names = np.random.default_rng(0), [], []
    for one in tiny.family(name).tensors(config.model.to_dict()):
        ours = [rng.normal(size=shapes.get(path, (3, 5))) for path in one.ours]
        theirs = one.layout.to_theirs(ours)
        assert theirs.size == sum(array.size for array in ours)
        assert theirs.flags["C_CONTIGUOUS"]
        back = one.layout.to_ours(theirs)
        for before, after in zip(ours, back, strict=True):
            np.testing.assert_array_equal(before, after)
        again = rng.normal(size=theirs.shape)
        np.testing.assert_array_equal(one.layout.to_theirs(one.layout.to_ours(again)), again)
        names.append(one.theirs)
        found += [] if one.repeats else one.ours
    assert len(set(names)) == len(names)
    assert len(set(found)) == len(found)
    assert {path for path in found if "mixer" in path} == shapes.keys()


def test_a_layout_says_which_shape_it_has():
    layout = Layout(((2, 3), 5), (2, 0, 1))
    with pytest.raises(ValueError, match=r"has shape \(6, 4\), not \(6, 5\)"):
        layout.to_ours(np.zeros((6, 4)))
    with pytest.raises(ValueError, match=r"has shape \(6,\), not 5 rows"):
        Layout(sizes=(2, 3)).to_ours(np.zeros(6))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_configs_are_written_and_read_back(name):
    """A family takes the model of its own config.json, and gives it back."""
    config, family = tiny.config_json(name), tiny.family(name)
    model, length = options(config, name), family.length(ConfigReader(config))
    chosen, written = fitting(run_of(model), family.name)
    assert chosen is family
    assert resolved(options(written, name)) == resolved(model)
    assert family.length(ConfigReader(family.config(resolved(model).model, length))) == length


DEFAULT = {"position": "rope", "rope_base": 500.0, "rope_fraction": 1.0}
ORIGINAL = {"rope_factor": 4.0, "rope_original_length": 12}
FACTORS = {"rope_low_freq_factor": 1.0, "rope_high_freq_factor": 3.0}


@pytest.mark.parametrize(
    "ours",
    [
        DEFAULT,
        DEFAULT | {"rope_fraction": 0.5},
        DEFAULT | {"rope_scaling": "linear", "rope_factor": 8.0},
        DEFAULT | ORIGINAL | {"rope_scaling": "yarn"},
        DEFAULT | ORIGINAL | FACTORS | {"rope_scaling": "llama3"},
    ],
)
def test_rope_is_written_and_read_back(ours):
    config = {"max_position_embeddings": tiny.LENGTH, "rope_parameters": write_rope(ours)}
    assert rope_options(ConfigReader(config)) == ours
    # As transformers 4 has it.
    said = config.pop("rope_parameters")
    fraction = said.pop("partial_rotary_factor", 1.0)
    old = config | {"rope_theta": said.pop("rope_theta"), "rope_scaling": said}
    assert rope_options(ConfigReader(old), fraction=fraction) == ours


def test_a_rope_without_the_type_of_a_layer_is_refused():
    read = ConfigReader({"rope_parameters": {"rope_theta": 1.0}})
    with pytest.raises(UserError, match="lacks 'full_attention'"):
        rope_options(read, "full_attention")


def test_a_rope_that_grows_with_the_length_is_read_up_to_the_trained_one():
    said = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    for config in ({"rope_parameters": said}, old, {"rope_parameters": {"full_attention": said}}):
        config = config | {"max_position_embeddings": 48}
        layers = "full_attention" if "full_attention" in str(config) else ""
        assert rope_options(ConfigReader(config), layers) == DEFAULT
        check_length(config, 48)
        with pytest.raises(UserError, match="--length=49: RoPE of type 'dynamic' changes all"):
            check_length(config, 49)
    check_length({"rope_scaling": None, "max_position_embeddings": 48}, 49)


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


ROPE3 = tiny.GEMMA3_ROPE["full_attention"]
OLD = {
    # Gemma 3 of 1B, 4B...: every sixth layer is full, here every second.
    "gemma3_text": (
        ("layer_types", "rope_parameters"),
        {
            "sliding_window_pattern": 2, "rope_theta": ROPE3["rope_theta"],
            "rope_local_base_freq": 100.0, "rope_scaling": without(ROPE3, "rope_theta"),
            "cache_implementation": "hybrid",
        },
    ),
    "gemma2": ((), {"rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh"}),
    "gpt_neox": (("rope_parameters",), {"rotary_pct": 0.5, "rotary_emb_base": 500.0}),
    "bloom": (
        ("hidden_size", "n_head"),
        {
            "n_embed": tiny.WIDTH, "num_attention_heads": tiny.HEADS, "seq_length": 2048,
            "offset_alibi": 100, "masked_softmax_fusion": True,
        },
    ),
    "mpt": (
        (),
        {
            "attn_config": {
                "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0,
                "clip_qkv": None, "prefix_lm": False, "softmax_scale": None,
            },
            "init_config": {"name": "kaiming_normal_"}, "learned_pos_emb": True,
        },
    ),
    "mamba2": ((), {"time_step_limit": [0.0, {"__float__": "Infinity"}]}),
    "mamba2, grouped": ((), {"time_step_limit": [0.0, float("inf")], "time_step_rank": 3}),
    "qwen3_next": (
        ("layer_types", "rope_parameters", "mlp_only_layers"),
        {
            "full_attention_interval": 4, "num_experts": 0, "rope_theta": 500.0,
            "partial_rotary_factor": 0.5, "rope_scaling": None,
        },
    ),
}  # fmt: skip
"""{name: (keys of its config.json that are left out, those that say the same)}."""


@pytest.mark.parametrize("name", OLD)
def test_older_forms_of_config_json(name):
    gone, more = OLD[name]
    config = tiny.config_json(name)
    assert options(without(config, *gone) | more, name) == options(config, name)


def test_the_class_in_config_json():
    """MosaicML's own is MPTForCausalLM, which has the same tensors."""
    assert family_of({"model_type": "mpt", "architectures": ["MPTForCausalLM"]}).name == "mpt"
    with pytest.raises(UserError, match="architectures=.*MptForQuestionAnswering.*MptForCausalLM"):
        family_of({"model_type": "mpt", "architectures": ["MptForQuestionAnswering"]})


def test_null_turns_windows_off_that_are_there_by_default():
    config = without(tiny.config_json("mistral"), "sliding_window")
    assert options(config, "mistral")["window"] == 4096
    assert "mask" not in options(config | {"sliding_window": None}, "mistral")


def test_null_turns_caps_off_that_are_there_by_default():
    config = without(tiny.config_json("gemma2"), "attn_logit_softcapping")
    assert options(config, "gemma2")["softcap"] == 50.0
    assert options(config | {"attn_logit_softcapping": None}, "gemma2")["softcap"] == 0.0


def test_windows_of_gemma_in_all_layers_or_in_none():
    config = tiny.config_json("gemma3_text")
    kinds = {kind: [kind] * 4 for kind in ("full_attention", "sliding_attention")}
    full, sliding = (
        options(config | {"layer_types": each}, "gemma3_text") for each in kinds.values()
    )
    assert (full["rope_base"], full["rope_factor"]) == (500.0, 8.0)
    assert (sliding["rope_base"], sliding["window"]) == (100.0, tiny.WINDOW)
    for model in (full, sliding):
        assert {"mask", "pattern"} & model.keys() == ({"mask"} if model is sliding else set())
        _, written = fitting(run_of(model), "gemma3_text")
        assert resolved(options(written, "gemma3_text")) == resolved(model)


def test_patterns_are_compared_by_what_they_mean():
    model = options(tiny.config_json("qwen2"), "qwen2")
    full, window = "mask=causal", f"window={tiny.WINDOW}, mask=window"
    _, written = fitting(run_of(model | {"pattern": (full, full, window, window)}), "")
    assert written["model_type"] == "qwen2"
    assert written["layer_types"] == ["full_attention"] * 2 + ["sliding_attention"] * 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"num_kv_heads": 0, "head_width": 0}),
        ("gemma2", {"score_scale": tiny.HEAD**-0.5}),
        ("mamba2", {"feature_width": 0}),
    ],
)
def test_zeros_that_stand_for_other_options_are_filled_in(name, changes):
    model = options(tiny.config_json(name), name) | changes
    again = options(fitting(run_of(model), name)[1], name)
    assert options(fitting(run_of(again), name)[1], name) == again


def test_the_nearest_family_is_named():
    own = {"name": "decoder", "width": 48, "activation": "swiglu", "tie_embeddings": False}
    model = own | {"talking_heads": True}
    with pytest.raises(UserError) as error:
        fitting(run_of(model), "")
    message = "the nearest is llama: model.talking_heads=True, which is False there. --family=NAME"
    assert message in str(error.value)
    with pytest.raises(UserError, match="--family=gpt2: model.activation='swiglu'; 'gelu_tanh'"):
        fitting(run_of(model), "gpt2")
    linear = {"name": "decoder", "width": 48, "mixer": "linear", "position": "none"}
    with pytest.raises(UserError, match="--family=llama: the model has no model.num_kv_heads, "):
        fitting(run_of(linear), "llama")


def test_layers_of_one_type_that_differ_are_refused():
    model = {"num_layers": 2, "pattern": ("mask=window, window=2", "mask=window, window=3")}
    with pytest.raises(UserError, match="layers that are all window differ in window"):
        kinds_of(model, lambda layer: layer["mask"])


REFUSED = {
    "gpt_neox": [{"attention_bias": False}, {"hidden_act": "quick_gelu"}],
    "bloom": [{"apply_residual_connection_post_layernorm": True}],
    "mpt": [
        {"expansion_ratio": 2}, {"no_bias": False}, {"logit_scale": 0.5}, {"norm_type": "rmsnorm"},
        *({"attn_config": of_attention} for of_attention in (
            {"alibi": False}, {"alibi_bias_max": 4}, {"attn_type": "multiquery_attention"},
            {"clip_qkv": 6.0}, {"prefix_lm": True}, {"qk_ln": True},
        )),
    ],
    "gemma2": [
        {"attention_bias": True}, {"hidden_activation": "gelu"},
        {"use_bidirectional_attention": True},
    ],
    "gemma3_text": [{"attn_logit_softcapping": 50.0}, {"use_bidirectional_attention": True}],
    "mamba2": [{"use_bias": True}, {"hidden_act": "gelu"}, {"time_step_limit": [0.0, 0.1]}],
    "qwen3_next": [
        {"num_experts": 8, "mlp_only_layers": [0, 1]}, {"attention_bias": True},
        {"layer_types": ["full_attention"] * 4}, {"rope_scaling_of_mine": 2.0},
    ],
}  # fmt: skip
"""{name: changes of its config.json, of which the first key or its first key cannot be read}."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_model_needs_and_we_lack_is_refused_by_name(name):
    for changes in REFUSED[name]:
        key, value = next(iter(changes.items()))
        if key == "attn_config":
            key, value = next(iter(value.items()))
        with pytest.raises(UserError) as error:
            options(tiny.config_json(name) | changes, name)
        message = str(error.value)
        assert "\n" not in message
        assert key in message
        assert str(value) in message or str(sorted(set(value))) in message
