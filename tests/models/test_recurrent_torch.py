"""Recurrent sequence-to-sequence models against PyTorch's cells."""

import jax
import numpy as np
import pytest

from tests.models.test_recurrent import LENGTHS, VARIANTS, B, built, called, parameters, some_batch
from tests.parity import compare, of


def torch_cell(torch, cell, params, inputs, hidden):
    """torch's cell with copies of our weights; its gates are rows, in our order."""
    network = {"gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}[cell](inputs, hidden)
    p = {name: np.asarray(a) for name, a in params.items()}
    recurrent_bias = np.zeros_like(p["bias"])
    if cell == "gru":
        recurrent_bias[2] = p["candidate_bias"]
    copies = {
        "weight_ih": p["input"].reshape(inputs, -1).T,
        "weight_hh": p["recurrent"].reshape(hidden, -1).T,
        "bias_ih": p["bias"].ravel(),
        "bias_hh": recurrent_bias.ravel(),
    }
    network.load_state_dict({k: torch.tensor(a) for k, a in copies.items()})
    return network


def torch_logits(torch, model, params, batch, row):
    """One row, token by token, as the papers have it; Luong's general score where it attends."""
    c, p = model.config, jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params)
    tokens = np.asarray(batch["source"])[row, : LENGTHS[row]]
    words = [p["embedding"][int(t)][None] for t in tokens]
    half, lstm, last = c.width // 2, c.cell == "lstm", []
    for layer in range(c.num_layers):
        inputs = words[0].shape[1]
        both, ends = [], []
        for direction in ("forward", "backward"):
            weights = params["encoder"][str(layer)][direction]
            cell = torch_cell(torch, c.cell, weights, inputs, half)
            state, out = None, []
            for x in words if direction == "forward" else words[::-1]:
                state = cell(x, state)
                out.append(state[0] if lstm else state)
            both.append(out if direction == "forward" else out[::-1])
            ends.append(state if lstm else (state,))
        words = [torch.cat(pair, 1) for pair in zip(*both, strict=True)]
        last.append([torch.cat(pair, 1) for pair in zip(*ends, strict=True)])
    d, names = p["decoder"], ("h", "c") if lstm else ("h",)
    bridge = d["bridge"]
    states = [
        [
            torch.tanh(v @ bridge[n][i] + bridge[f"{n}_bias"][i])
            for n, v in zip(names, ends, strict=True)
        ]
        for i, ends in enumerate(last)
    ]
    cells = [
        torch_cell(torch, c.cell, params["decoder"][str(i)], d[str(i)]["input"].shape[0], c.width)
        for i in range(c.num_layers)
    ]
    source, fed, logits = torch.cat(words), torch.zeros(1, c.width), []
    for token in np.asarray(batch["inputs"])[row]:
        x = p["embedding"][int(token)][None]
        if c.attention == "fixed_every_step":
            x = torch.cat([x, last[-1][0]], 1)
        elif c.sizes.input_feeding:
            x = torch.cat([x, fed], 1)
        for i, cell in enumerate(cells):
            new = cell(x, tuple(states[i]) if lstm else states[i][0])
            states[i] = list(new) if lstm else [new]
            x = states[i][0]
        if c.attention == "general":
            score = x @ d["attention"]["alignment_score_weight"][0] @ source.T
            context = torch.softmax(score, 1) @ source
            x = fed = torch.tanh(torch.cat([context, x], 1) @ d["combine"])
        elif c.attention == "fixed_every_step":
            x = torch.tanh(torch.cat([last[-1][0], x], 1) @ d["combine"])
        logits.append(x @ p["head"])
    return torch.cat(logits)


PEERS = {
    "gru": VARIANTS["fixed for two layers of gru"],
    "lstm": VARIANTS["fixed_initial"],
    "luong": VARIANTS["two layers"],
    "luong without input feeding": built("general", cell="gru", input_feeding=False),
}
NAMES = {name: f"Recurrent encoder and decoder: {name}" for name in PEERS}


@pytest.mark.parametrize("name", PEERS)
def test_logits_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    model, batch = PEERS[name], some_batch()
    params = parameters(model)
    logits, _ = called(model, params, batch)
    with torch.no_grad():
        for row in range(B):
            theirs = torch_logits(torch, model, params, batch, row).numpy()
            outputs = logits[row], theirs
            compare(NAMES[name], of(torch, "GRUCell and LSTMCell"), outputs=outputs)
