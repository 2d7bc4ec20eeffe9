"""The encoder-decoder and its gradients against PyTorch's."""

import jax
import numpy as np
import pytest

from tests.models.test_encoder_decoder import (
    LENGTHS,
    S,
    T,
    apply,
    config_of,
    model_of,
    parameters,
    some_batch,
)
from tests.parity import compare, of

TORCH = {
    "norm": "layernorm",
    "use_bias": True,
    "activation": "relu",
    "position": "none",
    "num_layers": 2,
    "encoder_layers": 3,
    "tie_embeddings": False,
}


def torch_layer(torch, p, i, layer, cross=None):
    """Fills a layer of `torch.nn.Transformer` with the stacked parameters of our layer i."""
    take = lambda a: torch.tensor(np.asarray(a[i]))  # noqa: E731

    def attention(module, own):
        names = ("query", "key", "value")
        width = own["query"].shape[1]
        module.in_proj_weight.copy_(torch.cat([take(own[n]).reshape(width, -1).T for n in names]))
        module.in_proj_bias.copy_(torch.cat([take(own[f"{n}_bias"]).flatten() for n in names]))
        module.out_proj.weight.copy_(take(own["out"]).reshape(-1, width).T)
        module.out_proj.bias.copy_(take(own["out_bias"]))

    norms = ["norm1", "norm2"] if cross is None else ["norm1", "norm_cross", "norm2"]
    attention(layer.self_attn, p["mixer"])
    if cross is not None:
        attention(layer.multihead_attn, cross)
    for ours, theirs in zip(norms, ("norm1", "norm2", "norm3"), strict=False):
        getattr(layer, theirs).weight.copy_(take(p[ours]["scale"]))
        getattr(layer, theirs).bias.copy_(take(p[ours]["bias"]))
    for ours, theirs in (("in", layer.linear1), ("out", layer.linear2)):
        theirs.weight.copy_(take(p["feedforward"][ours]).T)
        theirs.bias.copy_(take(p["feedforward"][f"{ours}_bias"]))


def torch_model(torch, params):
    """Returns `torch.nn.Transformer` with our parameters, but for the tables."""
    c = config_of(**TORCH)
    reference = torch.nn.Transformer(
        c.width,
        c.num_heads,
        c.encoder_layers,
        c.num_layers,
        c.feedforward,
        dropout=0.0,
        batch_first=True,
        norm_first=True,
    )
    with torch.no_grad():
        for i, layer in enumerate(reference.encoder.layers):
            torch_layer(torch, params["encoder"]["layers"]["0"], i, layer)
        for i, layer in enumerate(reference.decoder.layers):
            own = params["decoder"]["layers"]["0"], i, layer, params["cross"]["layers"]
            torch_layer(torch, *own)
        for name in ("encoder", "decoder"):
            norm = getattr(reference, name).norm
            norm.weight.copy_(torch.tensor(np.asarray(params[name]["norm"]["scale"])))
            norm.bias.copy_(torch.tensor(np.asarray(params[name]["norm"]["bias"])))
    return reference


def test_equals_torch():
    torch = pytest.importorskip("torch")
    model, batch = model_of(**TORCH), some_batch()
    params, c = parameters(model), config_of(**TORCH)
    reference = torch_model(torch, params)
    tables = ("source_embedding", "embedding", "head")
    leaves = {n: torch.tensor(np.asarray(params[n]), requires_grad=True) for n in tables}
    source, inputs = (torch.tensor(np.asarray(batch[n])) for n in ("source", "inputs"))
    padded = torch.tensor(np.arange(S) >= LENGTHS[:, None])
    ahead = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    expected = (
        reference(
            leaves["source_embedding"][source],
            leaves["embedding"][inputs],
            tgt_mask=ahead,
            src_key_padding_mask=padded,
            memory_key_padding_mask=padded,
        )
        @ leaves["head"]
    )
    ramp = np.cos(np.arange(expected.numel())).reshape(expected.shape).astype(np.float32)
    (expected * torch.tensor(ramp)).sum().backward()

    def loss(params):
        logits = apply(model, params, batch)
        return (logits * ramp).sum(), logits

    found, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    gradients = {}

    for name in tables:
        gradients[name] = found[name], leaves[name].grad
    width, decoder = c.width, reference.decoder.layers
    for i, layer in enumerate(decoder):
        inner = layer.multihead_attn.in_proj_weight.grad.chunk(3)
        for name, grad in zip(("query", "key", "value"), inner, strict=True):
            ours = found["cross"]["layers"][name][i].reshape(width, -1)
            gradients[f"cross {name} {i}"] = ours, grad.T
        ours = found["decoder"]["layers"]["0"]["feedforward"]["in"]
        gradients[f"decoder {i}"] = ours[i], layer.linear1.weight.grad.T
    for i, layer in enumerate(reference.encoder.layers):
        ours = found["encoder"]["layers"]["0"]["mixer"]["out"]
        grad = layer.self_attn.out_proj.weight.grad.T
        gradients[f"encoder {i}"] = ours[i].reshape(-1, width), grad
    assert all(grad.abs().max() > 1e-3 for _, grad in gradients.values())
    row = "Transformer, encoder and decoder", of(torch, "Transformer")
    compare(*row, outputs=(logits, expected), gradients=gradients, tolerance=2e-5)
