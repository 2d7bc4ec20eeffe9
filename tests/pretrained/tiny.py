"""Small configurations of every decoder family of transformers, and what becomes of one."""

from research.pretrained.importing import import_model
from research.pretrained.registry import FAMILIES
from research.training.runs import load_run_config, open_run

VOCABULARY, LENGTH = 61, 48
SPREAD = 0.1
"""Standard deviation of what is added to initial parameters, so that none is 0 or 1."""
WIDTH, HEADS, GROUPS, HEAD, HIDDEN, WINDOW = 48, 4, 2, 12, 80, 5

LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": LENGTH,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 12,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 12,
}
NEOX = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": LENGTH,
}
NEOX_ROPE = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 3, "n_head": HEADS}
GEMMA = LLAMA | {"sliding_window": WINDOW, "query_pre_attn_scalar": 31}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
}
MAMBA2 = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_heads": 8,
    "head_dim": HEAD,
    "state_size": 7,
    "n_groups": 1,
    "chunk_size": 8,
}
QWEN3_NEXT = LLAMA | {
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "mlp_only_layers": [0, 1, 2, 3],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "rope_parameters": NEOX_ROPE,
}
MPT = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "n_layers": 3,
    "n_heads": HEADS,
    "max_seq_len": LENGTH,
}
CONFIGS: dict[str, tuple[str, dict]] = {
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_positions": LENGTH,
            "n_embd": WIDTH,
            "n_layer": 3,
            "n_head": HEADS,
        },
    ),
    "llama": ("LlamaConfig", LLAMA),
    "llama3": ("LlamaConfig", LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": WINDOW}),
    "qwen2": (
        "Qwen2Config",
        LLAMA | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", LLAMA | {"rope_parameters": YARN}),
    "gpt_neox": ("GPTNeoXConfig", NEOX | {"rope_parameters": NEOX_ROPE}),
    "gpt_neox, one by one": (
        "GPTNeoXConfig",
        NEOX
        | {
            "rope_parameters": NEOX_ROPE | {"partial_rotary_factor": 1.0},
            "use_parallel_residual": False,
        },
    ),
    "bloom": ("BloomConfig", BLOOM),
    "bloom, 6 heads": ("BloomConfig", BLOOM | {"n_head": 6}),
    "gemma2": (
        "Gemma2Config",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2, no caps": (
        "Gemma2Config",
        GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
    # 5 layers of which every third is full: no pattern repeats itself.
    "gemma3_text, 5 layers": (
        "Gemma3TextConfig",
        GEMMA | {"num_hidden_layers": 5, "sliding_window_pattern": 3},
    ),
    "mamba2": ("Mamba2Config", MAMBA2),
    "mamba2, grouped": ("Mamba2Config", MAMBA2 | {"n_groups": 2, "use_conv_bias": False}),
    "qwen3_next": ("Qwen3NextConfig", QWEN3_NEXT),
    "mpt": ("MptConfig", MPT),
    "mpt, 12 heads": ("MptConfig", MPT | {"n_heads": 12, "attn_config": {"softmax_scale": 0.3}}),
}
"""{name: (class, values)}; a family may be there more than once."""


def config(transformers, name):
    """Returns the config of a name, an object of the transformers library."""
    kind, values = CONFIGS[name]
    return getattr(transformers, kind)(**values, attn_implementation="eager")


def counts_by_itself(model):
    """Returns whether a model takes no position_ids: it counts positions from the mask, or none."""
    return model.config.model_type in ("bloom", "mpt", "mamba2")


def family(name):
    """Returns the family of a name."""
    kind = CONFIGS[name][0].removesuffix("Config").lower()
    return next(one for one in FAMILIES.values() if one.name.replace("_", "") == kind)


def config_json(name, **more):
    """Returns config.json of a name, as far as a family reads it."""
    return {"model_type": family(name).name, "vocab_size": VOCABULARY} | CONFIGS[name][1] | more


def imported(directory, run):
    """Imports a model, and returns the run as commands open it."""
    import_model(directory, run)
    return open_run(run, load_run_config(run))
