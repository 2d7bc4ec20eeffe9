"""Lists the attention heads of a model, and masks some of them.

A head contributes to the residual stream through its rows of the output projection, so zeroing
these rows removes the head without support from the model or the mixer. Every mixer with heads has
this matrix, "out" (H, D, M).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from research.errors import UserError
from research.interpret.capture import STACKS
from research.models.model import Model


class AttentionLayer(NamedTuple):
    """One attention, of one layer, whose heads can be masked.

    Attributes:
      name: the name that `capture.parts` gives it.
      kind: "self" or "cross".
      path: path of its output matrix in the parameters.
      index: index of its layer in the stacked matrix; None if layers are not stacked.
      heads: H.
    """

    name: str
    kind: str
    path: tuple[str, ...]
    index: int | None
    heads: int


def attention_layers(model: Model, params: PyTree) -> list[AttentionLayer]:
    """Returns every attention that has heads, in the order of the model.

    Args:
      model: any model.
      params: parameters of one member, or their shapes.
    """
    axes = dict(_leaves(model.parameter_axes(params)))
    shapes = {path: leaf.shape for path, leaf in _leaves(params)}
    outs = [path for path in shapes if path[-1] == "out" and "heads" in axes[path].names]
    # Slots of a pattern that have no attention count, too.
    slots = {path: _slot(path) for path in shapes}
    found = []
    for path in outs:
        stack, slot, kind = slots[path]
        each = 1 + max(s for other, s, k in slots.values() if (other, k) == (stack, kind))
        if "layers" not in axes[path].names:
            key = (STACKS.index(stack), 0, kind == "cross")
            found.append((key, _attention(path, stack, 0, kind, None, shapes[path][0])))
            continue
        for row in range(shapes[path][0]):
            layer = row * each + slot
            key = (STACKS.index(stack), layer, kind == "cross")
            found.append((key, _attention(path, stack, layer, kind, row, shapes[path][1])))
    return [attention for _, attention in sorted(found, key=lambda pair: pair[0])]


def common_num_heads(found: list[AttentionLayer]) -> int:
    """Returns H, the number of heads that all attentions have.

    Raises UserError if there is no attention, or if their numbers of heads differ.
    """
    numbers = {attention.heads for attention in found}
    if len(numbers) == 1:
        return numbers.pop()
    if not found:
        raise UserError("this model has no heads that can be ablated.")
    each = ", ".join(f"{a.name}: {a.heads}" for a in found)
    raise UserError(f"layers with different numbers of heads cannot be compared ({each}).")


def mask_heads(model: Model, params: PyTree, mask: Float[Array, "L H"]) -> PyTree:
    """Returns parameters in which the output of each head is multiplied by its mask entry.

    Michel et al. 2019, "Are Sixteen Heads Really Better than One?", equation 2. An output bias
    belongs to no head and stays. Traceable in params and mask.

    Args:
      model: any model.
      params: parameters of one member.
      mask: rows in the order of `attention_layers`, each of which has H heads.

    Raises UserError if the attentions have different numbers of heads, or if there is none.
    """
    found = attention_layers(model, params)
    common_num_heads(found)
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, attention in enumerate(found):
        rows.setdefault(attention.path, []).append(row)

    def masked(path: tuple, leaf: Array) -> Array:
        own = rows.get(_names(path))
        if own is None:
            return leaf
        factor = mask[jnp.array(own)] if leaf.ndim == 4 else mask[own[0]]
        return leaf * factor[..., None, None]

    return jax.tree_util.tree_map_with_path(masked, params)


def _attention(
    path: tuple[str, ...], stack: str, layer: int, kind: str, row: int | None, heads: int
) -> AttentionLayer:
    name = f"{stack or 'layer'} {layer}" + (" cross" if kind == "cross" else "")
    return AttentionLayer(name, kind, path, row, heads)


def _slot(path: tuple[str, ...]) -> tuple[str, int, str]:
    """Returns the stack, the slot in its pattern and the kind of an output matrix's attention."""
    cross = "cross" in path or path[:2] == ("decoder", "attention")
    stack = path[0] if path[0] in STACKS else ""
    # An encoder-decoder stores the cross-attention of all layers beside the decoder, not in it.
    stack = "decoder" if path[0] == "cross" else stack
    digits = [int(name) for name in path if name.isdigit()]
    return stack, digits[0] if digits and not cross else 0, "cross" if cross else "self"


def _leaves(tree: PyTree, is_leaf: Any = None) -> list[tuple[tuple[str, ...], Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return [(_names(path), leaf) for path, leaf in leaves]


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(key.key for key in path)
