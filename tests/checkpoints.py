"""A checkpoint of GPT-2 as Hugging Face has it, written without its libraries."""

import json

import numpy as np
from safetensors.numpy import save_file

from research.tasks.text.tokenizer import characters

ALPHABET = "abcdefghijklm \n"
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": len(ALPHABET),
    "n_positions": 24,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "resid_pdrop": 0.1,
}


def write_gpt2(directory, config=CONFIG, change=lambda tensors: None, tokenizer=None):
    """Writes a GPT-2 of random numbers, by the names and shapes of its documentation."""
    rng, m = np.random.default_rng(0), 16
    tensors = {"wte.weight": (config["vocab_size"], m), "wpe.weight": (24, m)}
    tensors |= {"ln_f.weight": (m,), "ln_f.bias": (m,)}
    for i in range(3):
        for name, shape in {"attn.c_attn": (m, 3 * m), "attn.c_proj": (m, m)}.items() | {
            "mlp.c_fc": (m, 4 * m), "mlp.c_proj": (4 * m, m), "ln_1": (m,), "ln_2": (m,),
        }.items():  # fmt: skip
            tensors |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[-1:]}
    arrays = {
        f"transformer.{name}": rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in tensors.items()
    }
    change(arrays)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(arrays, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    text = (tokenizer or characters(ALPHABET)).to_json()
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    return arrays
