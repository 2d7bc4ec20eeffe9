"""Whole encoder-decoders against the transformers library's, of random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.registry import make_model
from tests import small
from tests.models import families
from tests.parity import compare, of

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, S, T, V, M, L, E, H, D, F, LENGTH = 2, 11, 9, 61, 48, 3, 2, 4, 8, 80, 32
LENGTHS = np.array([S, 7])
OURS = {
    "name": "encoder_decoder",
    "width": M,
    "num_layers": L,
    "encoder_layers": E,
    "feedforward": F,
    "num_heads": H,
}
T5 = OURS | {
    "head_width": D,
    "score": "dot",
    "position": "t5",
    "num_buckets": 8,
    "max_distance": 20,
    "norm_epsilon": 1e-6,
    "activation": "relu",
    "output_scale": M**-0.5,
}
BART = OURS | {
    "norm": "layernorm",
    "norm_placement": "post",
    "use_bias": True,
    "position": "learned",
    "activation": "gelu",
    "embedding_norm": True,
    "output_bias": True,
}
MARIAN = BART | {"activation": "silu", "embedding_norm": False, "embedding_scale": M**0.5}


def t5(**changes):
    return transformers.T5Config(
        vocab_size=V, d_model=M, d_kv=D, d_ff=F, num_layers=E, num_decoder_layers=L,
        num_heads=H, relative_attention_num_buckets=8, relative_attention_max_distance=20,
        attn_implementation="eager", **changes,
    )  # fmt: skip


def bart(config, **changes):
    return config(
        vocab_size=V, d_model=M, encoder_layers=E, decoder_layers=L, encoder_ffn_dim=F,
        decoder_ffn_dim=F, encoder_attention_heads=H, decoder_attention_heads=H,
        max_position_embeddings=LENGTH, attn_implementation="eager", **changes,
    )  # fmt: skip


FAMILIES = {
    "t5": (t5, T5, families.of_t5, "T5: position=t5, score=dot"),
    "t5, 1.1": (
        lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        T5 | {"activation": "geglu", "tie_embeddings": False, "output_scale": 1.0},
        families.of_t5,
        "T5 1.1: position=t5, score=dot, activation=geglu",
    ),
    "bart": (
        lambda: bart(transformers.BartConfig),
        BART,
        families.of_bart,
        "BART: norm_placement=post, embedding_norm=true, position=learned, output_bias=true",
    ),
    "marian": (
        lambda: bart(
            transformers.MarianConfig, activation_function="swish", scale_embedding=True,
            decoder_vocab_size=V, pad_token_id=0,
        ),
        MARIAN,
        families.of_bart,
        "Marian: norm_placement=post, embedding_scale=6.9, activation=silu, output_bias=true",
    ),
}  # fmt: skip


def test_t5_has_our_buckets():
    bucket = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    model = make_model(small.model(**T5 | {"num_buckets": 32, "max_distance": 128}), V, LENGTH)
    c = model.config
    q, k = np.arange(300)[:, None], np.arange(300)[None]
    for stack, ahead in ((c.encoder, True), (c.decoder, False)):
        (ours,) = stack.mixers[0].mechanism.biases
        theirs = bucket(torch.tensor(k - q), ahead, 32, 128)
        np.testing.assert_array_equal(ours.bucket(q, k), theirs.numpy())


def random(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    if not getattr(config, "scale_decoder_outputs", True):
        # The configuration ties what checkpoints of T5 1.1 have apart.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


def summed(gradient, like):
    """Gradients of arrays that are copies of one of theirs: the sum of those of the copies."""
    found = dict(gradient)
    if "source_embedding" in found:
        both = found["embedding"] + found["source_embedding"]
        found |= {"embedding": both, "source_embedding": both}

    def over_layers(path, ours, theirs):
        if path[-1].key != "biases_0_table":
            return ours
        return jnp.broadcast_to(ours.sum(0), theirs.shape)

    return jax.tree_util.tree_map_with_path(over_layers, found, like)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_gradients_and_decoding(family):
    """Logits after sources of two lengths, gradients of all parameters, and logits step by step."""
    config, own, by_our_names, row = FAMILIES[family]
    theirs = random(config())
    rng = np.random.default_rng(0)
    source, inputs = rng.integers(4, V, (B, S)), rng.integers(4, V, (B, T))
    valid = np.arange(S) < LENGTHS[:, None]
    expected = theirs(
        input_ids=torch.tensor(source),
        attention_mask=torch.tensor(valid, dtype=torch.long),
        decoder_input_ids=torch.tensor(inputs),
    ).logits

    model = make_model(small.model(**own), V, LENGTH)
    width = own.get("head_width", M // H)
    params = by_our_names(theirs, width)
    batch = {"source": source, "source_length": LENGTHS, "inputs": inputs}
    batch = {n: jnp.asarray(a, jnp.int32) for n, a in batch.items()}
    init = lambda k: model.init(k, batch, method="forward")["params"]  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0))
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, shapes)

    def logits(params):
        return model.apply({"params": params}, batch, method="forward")

    found, pull = jax.vjp(jax.jit(logits), params)
    assert jnp.abs(found).max() > 1
    row = row, of(transformers, type(theirs).__name__)
    compare(*row, outputs=(found, expected))

    out_gradient = torch.randn(B, T, V)
    expected.backward(out_gradient)
    (gradient,) = pull(families.array(out_gradient))
    with torch.no_grad():
        fixed = [p for p in theirs.parameters() if p.grad is None]
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    wanted = by_our_names(theirs, width)
    # A softmax ignores what a bias of the keys adds to all scores; the rest is no parameter there.
    skipped = ("key_bias", "head_bias", *(("position", "source_position") if fixed else ()))
    pairs = jax.tree.map(lambda *both: both, summed(gradient, wanted), wanted)
    gradients = {
        jax.tree_util.keystr(path, simple=True, separator="/"): pair
        for path, pair in jax.tree_util.tree_leaves_with_path(
            pairs, is_leaf=lambda x: isinstance(x, tuple)
        )
        if path[-1].key not in skipped
    }
    compare(*row, gradients=gradients, tolerance=3e-5)

    def run(method, *arguments):
        return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))(
            params, *arguments
        )

    memory = run("encode", batch["source"], batch["source_length"])
    state = model.apply({"params": params}, memory, T, method="init_state")
    step = jax.jit(lambda p, *a: model.apply({"params": p}, *a, method="step"))
    decoded = []
    for t in range(T):
        y, state, _ = step(params, memory, state, batch["inputs"][:, t])
        decoded.append(y)
    compare(*row, decoded=(jnp.stack(decoded, 1), expected))
