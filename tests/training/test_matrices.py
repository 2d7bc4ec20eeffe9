"""What is a matrix: the initial scale and weight decay reach the declared ones and no others."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import registry
from research.attention.parts.positions import MODEL_POSITIONS
from research.attention.parts.tables import TABLES
from research.configuration import apply_deltas
from research.models.model import parameter_shapes
from research.models.recurrent.attention import ATTENTIONS
from research.models.registry import MODELS, make_model
from research.tasks.task import Sums
from research.training.step import Member, make_init, make_step
from tests import small
from tests.attention.cases import VARIANTS, needed

V, LENGTH = 9, 12

# By the end of a parameter's path; all others are matrices. Written by hand, so that what a mixer
# or a model declares is compared with something.
NO_MATRICES = (
    "bias",  # of projections, norms, gates, energies, time steps, heads
    "scale",  # of norms and monotonic energies
    "log_rate",
    "skip",
    "offset",
    "lambda",
    "window_gain",
    "value_mix",
    *(f"shift_{name}" for name in ("query", "key", "value", "decay", "rate", "gate")),  # of RWKV-7
    "norm_shift",
    "removal",
    "key_rate",
    "bonus",
    "class_token",
    "pool/vector",
    "biases_0_table",  # of t5: a number per bucket and head
    "biases_0_raw_r1",
    "biases_0_raw_r2",
    "biases_0_c",
    "biases_0_multiplier",
    "biases_0_hidden",  # of fire: from one number
    "score_content",  # of Transformer-XL: what is added to all queries
    "score_place",
    "score_log_scale",
    "normalizer_sink",
    "normalizer_bias",
)

# Matrices that are no linear map from hidden vectors to hidden vectors.
NOT_HIDDEN = (
    "embedding",
    "head",
    "ctc",
    "listener/input",
    "convolution_0",
    "position",
    "score_table",
    "taps",
    "filter",
    "filters",
    "depthwise",
    "vector",  # of additive scores and predicted windows: a hidden vector is compared with it
    "coverage",
    "biases_0_kernel",  # of scores
    "hidden_taps",
    "token_type",
)
# (end of the path, dimensions of a matrix, or of those that make one): its roles where the first
# dimension is not the only input and all others are outputs.
OTHER_ROLES = {
    ("/out", 3): "iio",
    ("/input", 3): "iso",
    ("/recurrent", 3): "iso",
    ("_mixture", 2): "oi",
    ("convolution_1", 4): "iiio",
    ("compress_in", 3): "iio",
}


def is_matrix(where: str) -> bool:
    return not where.endswith(NO_MATRICES)


def every_mechanism(causal):
    """A layer to each registered mixer and part, and to the variants of mixers."""
    found = []
    for name, entry in registry.MIXERS.items():
        if entry.causal == causal:
            found += [{"mixer": name, **extra} for extra in ({}, *VARIANTS.get(name, []))]
    if causal:
        for field in ("score", "position", "normalizer"):
            for name, part in TABLES[field].items():
                if name not in MODEL_POSITIONS or name == "none":
                    found.append({field: name, **needed(part)})
        found += [{"talking_heads": True}, {"output_gate": True}, {"predicted_window": 2}]
    return found


def layer(values):
    plain = {"position": "none"} | values
    return ", ".join(
        f"{k}={v}" for k, v in plain.items() if k not in ("max_length", "implementation")
    )


def pattern(causal):
    chosen = [layer(values) for values in every_mechanism(causal) if "use_bias" not in values]
    return {"pattern": tuple(dict.fromkeys(chosen)), "num_layers": len(dict.fromkeys(chosen))}


def cases():
    """Every registered model, and every option that gives it parameters of another name."""
    learned = {"position": "learned", "tie_embeddings": False, "use_bias": True}
    learned |= {"embedding_norm": True, "output_bias": True}
    found = {
        "decoder of everything causal": {"name": "decoder", **pattern(True)},
        "decoder of everything else": {"name": "decoder", "mask": "full", **pattern(False)},
        "decoder, learned": {"name": "decoder", **learned, "norm": "layernorm"},
        "decoder, gated": {"name": "decoder", "use_bias": True, "activation": "swiglu"},
        "encoder_decoder": {"name": "encoder_decoder", **learned},
    }
    for cross in ("score=learned_cosine", "score=additive", "normalizer=softmax_sink"):
        found[f"encoder_decoder {cross}"] = {
            "name": "encoder_decoder",
            "cross": f"mask=full, position=none, {cross}",
        }
    for attention in ATTENTIONS:
        found[f"recurrent {attention}"] = {"name": "recurrent", "attention": attention}
    found["recurrent gru"] = {"name": "recurrent", "cell": "gru", "tie_embeddings": False}
    for body, pooling in (
        ("transformer", "class_token"),
        ("transformer", "attention"),
        ("lstm", "attention"),
        ("none", "mean"),
    ):
        found[f"classifier {body} {pooling}"] = {
            "name": "classifier",
            "body": body,
            "pooling": pooling,
        }
    found["classifier transformer class_token"] |= {"token_types": 2, "pooler": True}
    for listener, speller in (
        ("bilstm", "recurrent"),
        ("transformer", "recurrent"),
        ("conformer", "transformer"),
    ):
        found[f"speech {listener} {speller}"] = {
            "name": "speech",
            "listener": listener,
            "speller": speller,
            "use_bias": listener == "conformer",
        }
    return found


CASES = cases()
CONFIGS = {
    "classifier": small.rule,
    "decoder": small.recall,
    "encoder_decoder": small.recall,
    "recurrent": small.transduction,
    "speech": small.speech,
}
BATCH = {
    "inputs": jnp.zeros((1, LENGTH), jnp.int32),
    "targets": jnp.zeros((1, LENGTH), jnp.int32),
    "length": jnp.ones(1, jnp.int32),
    "source_length": jnp.full(1, 8, jnp.int32),
}


@functools.cache
def built(case):
    changes = {f"model.{key}": value for key, value in CASES[case].items()}
    name = CASES[case]["name"]
    config = apply_deltas(CONFIGS[name](), changes).model
    model = make_model(config, V, LENGTH, classes=3 if name == "classifier" else 0)
    source = jnp.zeros((1, 8, 5)) if name == "speech" else jnp.zeros((1, 8), jnp.int32)
    batch = BATCH | {"source": source}
    return model, batch, parameter_shapes(model, batch)


def ones(shapes):
    """One number with as many axes, so that few programs are compiled."""
    return jax.tree.map(lambda p: jnp.ones((1,) * p.ndim), shapes)


def by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def test_every_model_is_here():
    assert CONFIGS.keys() == MODELS.keys()


@pytest.mark.parametrize("case", CASES)
def test_initial_scale_and_decay_are_of_the_matrices(case):
    model, batch, shapes = built(case)
    expected = {name: is_matrix(name) for name in by_name(shapes)}
    axes = by_name(model.parameter_axes(shapes))
    assert {name: one.matrix for name, one in axes.items()} == expected
    # The same parameters, all one at first, in a model that reads none: all gradients are zero.
    flat = types.SimpleNamespace(
        init=lambda *args, **kwargs: {"params": ones(shapes)},
        apply=lambda *args, **kwargs: (jnp.float32(1), {}),
        parameter_axes=model.parameter_axes,
    )
    task = types.SimpleNamespace(
        select="loss",
        select_higher=False,
        data_shapes=lambda: None,
        batch=lambda *args: batch,
        metrics=lambda outputs, _: {"loss": Sums(outputs, jnp.float32(1))},
    )
    config = small.recall(
        optimizer__name="sgd", optimizer__schedule="constant", optimizer__warmup_steps=0
    )
    member = Member(jnp.uint32(0), jnp.float32(0.5), jnp.float32(0.25), jnp.float32(0.5))
    first = make_init(config, task, flat)(member)
    after = by_name(make_step(config, task, flat)(first, member, None, jnp.int32(0))[0].params)
    for name, p in by_name(first.params).items():
        scale, decayed = (0.5, 1 - 0.5 * 0.25) if expected[name] else (1.0, 1.0)
        np.testing.assert_array_equal(p, scale, err_msg=name)
        np.testing.assert_array_equal(after[name], scale * decayed, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_what_an_optimizer_is_told_of_matrices(case):
    model, _, shapes = built(case)
    ndim = {name: leaf.ndim for name, leaf in by_name(shapes).items()}
    for name, axes in by_name(model.parameter_axes(shapes)).items():
        assert len(axes.roles) == len(axes.names) == ndim[name], name
        assert axes.hidden == (is_matrix(name) and not name.endswith(NOT_HIDDEN)), name
        assert axes.roles.startswith("s") or "layers" not in name.split("/"), name
        if axes.hidden:
            roles = axes.roles.lstrip("s")
            known = (
                r for (end, n), r in OTHER_ROLES.items() if name.endswith(end) and n == len(roles)
            )
            assert roles == next(known, "i" + "o" * (len(roles) - 1)), name
