"""A BERT that classifies against the transformers library's, of random weights."""

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

B, T, V, M, L, H, F, C, LENGTH = 3, 11, 61, 48, 2, 4, 80, 5, 16
LENGTHS = np.array([T, 7, 1])
BERT = {
    "name": "classifier",
    "body": "transformer",
    "width": M,
    "num_layers": L,
    "num_heads": H,
    "feedforward": F,
    "activation": "gelu",
    "norm": "layernorm",
    "norm_epsilon": 1e-12,
    "norm_placement": "post",
    "use_bias": True,
    "position": "learned",
    "embedding_norm": True,
    "token_types": 2,
    "pooling": "first",
    "pooler": True,
}


@pytest.mark.parametrize("pairs", [False, True], ids=["one sentence", "two"])
def test_logits_and_gradients(pairs):
    """Of texts of three lengths, the gradients of all parameters."""
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=M, num_hidden_layers=L, num_attention_heads=H,
        intermediate_size=F, max_position_embeddings=LENGTH, num_labels=C,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    tokens = np.random.default_rng(0).integers(4, V, (B, T))
    batch = {"inputs": tokens, "length": LENGTHS}
    if pairs:
        batch["token_types"] = (np.arange(T) > 4) + 0 * tokens
    batch = {n: jnp.asarray(a, jnp.int32) for n, a in batch.items()}
    given = {"token_type_ids": torch.tensor((np.arange(T) > 4) + 0 * tokens)} if pairs else {}
    valid = torch.tensor(np.arange(T) < LENGTHS[:, None], dtype=torch.long)
    expected = theirs(torch.tensor(tokens), attention_mask=valid, **given).logits

    model = make_model(small.model(**BERT), V, LENGTH, classes=C)
    params = families.of_bert(theirs, M // H)
    init = lambda k: model.init(k, batch, method="forward")["params"]  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0))
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, shapes)

    def logits(params):
        return model.apply({"params": params}, batch, method="forward")

    found, pull = jax.vjp(jax.jit(logits), params)
    assert jnp.abs(found).max() > 0.5
    row = "BERT: norm_placement=post, embedding_norm=true, pooling=first, pooler=true"
    row = row, of(transformers, type(theirs).__name__)
    compare(*row, outputs=(found, expected))

    out_gradient = torch.randn(B, C)
    expected.backward(out_gradient)
    (gradient,) = pull(families.array(out_gradient))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    pairs = jax.tree.map(lambda *both: both, gradient, families.of_bert(theirs, M // H))
    gradients = {
        jax.tree_util.keystr(path, simple=True, separator="/"): pair
        for path, pair in jax.tree_util.tree_leaves_with_path(
            pairs, is_leaf=lambda x: isinstance(x, tuple)
        )
        # A softmax ignores what a bias of the keys adds to all scores.
        if path[-1].key != "key_bias"
    }
    compare(*row, gradients=gradients, tolerance=3e-5)
