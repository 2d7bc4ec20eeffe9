"""Records and patches activations of any model with Flax interceptors; models need no changes.

Sites of an attention: "weights" (B, H, T, S); "scores", before the normalizer; "values"
(B, S, K, D), which the weights average; "read" (B, T, H, D), the output of each head; "visible"
(B or 1, T, S), the keys that each query may attend to; and "gap", the relative difference between
the output of the mixer's implementation and that of the dense form, from which all sites are
computed. Sites of a layer: "entry" and "exit" (B, T, M), the residual stream before and after it,
and "mixed" (B, T, M), what its mixer gets. "embeddings" (B, T, M) is a site where the lookup is a
module.

Recording computes the dense form in addition to the model's own implementation, and holds the
weights of all layers in memory at once. Everything is traceable by `jax.grad`, `vmap` and `jit`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from research.attention.errors import Unsupported
from research.attention.mixers.across_layers import AcrossLayers
from research.attention.mixers.mixer import AttentionTrace, weighted_values
from research.attention.parts.masks import Mask
from research.errors import UserError, check_name
from research.models.block import Block, Cross
from research.models.classifier import Embed
from research.models.mixer_layer import MixerLayer
from research.models.model import Model
from research.models.pooling import Pool
from research.models.speech.conformer import ConformerBlock
from research.tasks.task import Batch

RECORDED, GIVEN = "captured", "given"
OF_ATTENTION = ("weights", "scores", "values", "read", "visible", "gap")
OF_LAYER = ("entry", "exit")
SITES = (*OF_ATTENTION, *OF_LAYER, "mixed", "embeddings")
INTERVENTION_SITES = ("weights", "read", *OF_LAYER, "embeddings")

PLACE = "place"
"""Recorded for every layer whatever was requested, so that layers without a site are counted."""

Tree = Mapping[str, Any]
"""Nested like parameters; one leaf per site, with a leading axis for the layers of a scan."""


class Intervention(NamedTuple):
    """A value that replaces a model's activations at a site.

    Attributes:
      value: (L, B, ...) for a site that L layers of the same shape have, one entry for each of
        these layers, as `stacked` returns them; without L if the site occurs only once.
      where: broadcasts to value; True where value replaces the model's own.
    """

    value: Array
    where: Array


class AttentionRecord(NamedTuple):
    """One attention, or one layer around it.

    Attributes:
      name: "layer 0", "encoder 2", "decoder 0 cross", "pooling"...
      kind: "self", "cross" or "pooling".
      sites: recorded arrays by the name of the site.
      stack: the stack of layers that the part belongs to, one of `STACKS`.
      layer: index of the layer within the stack.
    """

    name: str
    kind: str
    sites: dict[str, Array]
    stack: str = ""
    layer: int = 0


def record(
    model: Model,
    params: PyTree,
    batch: Batch,
    sites: Sequence[str],
    interventions: Mapping[str, Intervention] | None = None,
    method: str = "forward",
) -> tuple[Any, Tree]:
    """Returns the model's outputs on a batch and the activations recorded at the sites.

    Args:
      model: any model of `MODELS`.
      params: parameters of the model.
      batch: the argument of `method`.
      sites: names in `SITES`.
      interventions: replacements by site, see `Intervention`. They apply to self-attention, in the
        order of the layers starting with the first of the encoder, and to pooling.
      method: name of the model's method to call.

    Raises UserError for an unknown site, and for a change at a site that the model does not have or
    has in a different number of layers.
    """
    for site in sites:
        check_name("sites", site, SITES)
    given: Tree = {}
    if interventions:
        for site in interventions:
            check_name("interventions", site, INTERVENTION_SITES)
        # An abstract run finds where the sites are, which determines their layout.
        shapes = jax.eval_shape(
            lambda p, b: _run(model, p, b, (*interventions,), {}, method)[1], params, batch
        )
        given = _laid_out(shapes, interventions)
    return _run(model, params, batch, tuple(sites), given, method)


def attention_records(recorded: Tree) -> list[AttentionRecord]:
    """Returns the recorded arrays as one `AttentionRecord` per attention, in the model's order.

    A layer whose mixer has no attention weights has only the sites of its residual stream.
    """
    leaves, slots = _addressed(recorded)
    found: dict[tuple[int, str, int, str], dict[str, Array]] = {}
    for at, site, leaf in leaves:
        if at.kind == "embeddings" or site == PLACE:
            continue
        repeats = leaf if at.stacked else leaf[None]
        for repeat, value in enumerate(repeats):
            layer = repeat * slots[at.stack] + at.slot
            key = (STACKS.index(at.stack), at.stack, layer, at.kind)
            found.setdefault(key, {})[site] = value
    # Within a layer, cross-attention comes after self-attention.
    order = sorted(found, key=lambda key: (key[0], key[2], key[3] == "cross"))
    return [AttentionRecord(_name(*key[1:]), key[3], found[key], *key[1:3]) for key in order]


def stacked(recorded: Tree, site: str, kind: str = "self") -> Float[Array, "L B ..."]:
    """Returns one site of all parts of a kind, stacked from the first layer to the last.

    Raises UserError if no part has the site, or if its shape differs between layers.
    """
    found = [
        p.sites[site] for p in attention_records(recorded) if p.kind == kind and site in p.sites
    ]
    if not found:
        raise UserError(f"this model has no {site} of {kind}-attention to record.")
    if len({a.shape for a in found}) > 1:
        shapes = ", ".join(str(a.shape) for a in found)
        raise UserError(f"the layers' {site} differ in shape and cannot be stacked: {shapes}.")
    return jnp.stack(found)


class _Address(NamedTuple):
    """Position of a leaf: its stack of layers, the slot in the layer pattern, and its kind."""

    stack: str
    slot: int
    kind: str
    stacked: bool


STACKS = ("", "encoder", "listener", "decoder", "speller", "pool", "embed")


def _addressed(tree: Tree) -> tuple[list[tuple[_Address, str, Array]], dict[str, int]]:
    """Returns (address, site, leaf) of every leaf, and the length of each stack's pattern."""
    leaves, slots = [], {}
    for path, leaf in flatten_dict(dict(tree)).items():
        at = _address(path)
        leaves.append((at, path[-1], leaf))
        slots[at.stack] = max(slots.get(at.stack, 1), at.slot + 1)
    return leaves, slots


def _address(path: tuple[str, ...]) -> _Address:
    if "layers" not in path:
        kind = "embeddings" if path[0] == "embed" else "pooling"
        return _Address(path[0], 0, kind, stacked=False)
    stack = path[0] if path[0] in STACKS else ""
    inner = path[path.index("layers") + 1 : -1]
    slot = int(inner[0]) if inner and inner[0].isdigit() else 0
    return _Address(stack, slot, "cross" if inner[-1:] == ("cross",) else "self", stacked=True)


def _name(stack: str, layer: int, kind: str) -> str:
    if kind == "pooling":
        return kind
    return f"{stack or 'layer'} {layer}" + (" cross" if kind == "cross" else "")


def _laid_out(shapes: Tree, interventions: Mapping[str, Intervention]) -> Tree:
    """Returns the interventions as a Flax collection with the structure of the recorded one."""
    leaves, _ = _addressed(shapes)
    paths = list(flatten_dict(dict(shapes)))
    found: dict[tuple[str, ...], Array] = {}
    for site, change in interventions.items():
        mine = [
            (at, path, leaf)
            for (at, name, leaf), path in zip(leaves, paths, strict=True)
            if name == site and at.kind != "cross"
        ]
        if not mine:
            raise UserError(f"interventions={site!r}: this model has no such site.")
        ranks = _ranks([(at, leaf.shape[0]) for at, _, leaf in mine if at.stacked])
        layers = sum(len(rank) for rank in ranks.values())
        for at, path, _ in mine:
            value, where = (jnp.asarray(a) for a in change)
            if at.stacked:
                if len(value) != layers:
                    raise UserError(
                        f"interventions={site!r} are for {len(value)} layers, but {layers} have "
                        "this site; give one for each."
                    )
                rank = ranks[at.stack, at.slot]
                where = jnp.broadcast_to(where, (layers, *where.shape[1:]))
                value, where = value[rank], where[rank]
            found[path], found[(*path[:-1], f"{site}{WHERE}")] = value, where
    return unflatten_dict(found)


def _ranks(places: Sequence[tuple[_Address, int]]) -> dict[tuple[str, int], np.ndarray]:
    """Returns {(stack, slot): for each repeat, its index among all layers that have the site}.

    This differs from the layer's own index when some slots of the pattern lack the site.
    """
    layers = [
        (STACKS.index(at.stack), repeat, at.slot)
        for at, repeats in places
        for repeat in range(repeats)
    ]
    order = {layer: rank for rank, layer in enumerate(sorted(layers))}
    return {
        (at.stack, at.slot): np.array(
            [order[STACKS.index(at.stack), repeat, at.slot] for repeat in range(repeats)]
        )
        for at, repeats in places
    }


WHERE = "_where"


def _run(
    model: Model, params: PyTree, batch: Batch, sites: tuple[str, ...], given: Tree, method: str
) -> tuple[Any, Tree]:
    def intercept(following: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        for kinds, name, handle in HANDLERS:
            if isinstance(context.module, kinds) and context.method_name == name:
                return handle(context.module, following, args, kwargs, sites)
        return following(*args, **kwargs)

    variables = {"params": params} | ({GIVEN: given} if given else {})
    with nn.intercept_methods(intercept):
        outputs, new = model.apply(variables, batch, method=method, mutable=[RECORDED])
    recorded = dict(new.get(RECORDED, {}))
    if "weights" in sites and "source" in batch and not _reads_source(recorded):
        # A recurrent decoder attends to the source step by step, outside the modules of HANDLERS.
        weights = model.apply({"params": params}, batch, method="weights")
        if weights.shape[1]:
            recorded["decoder"] = {"layers": {"cross": {"weights": weights[None]}}}
    return outputs, recorded


def _reads_source(recorded: Tree) -> bool:
    return any(at.kind == "cross" for at, _, _ in _addressed(recorded)[0])


def _keep(module: nn.Module, sites: tuple[str, ...], **found: Any) -> None:
    # A model that decodes inside its forward pass calls itself again with immutable collections.
    if not module.is_mutable_collection(RECORDED):
        return
    for site, value in found.items():
        if site in sites and value is not None:
            module.put_variable(RECORDED, site, value)


def _changed(module: nn.Module, site: str, value: Array) -> Array:
    if not module.has_variable(GIVEN, site):
        return value
    where = module.get_variable(GIVEN, f"{site}{WHERE}")
    return jnp.where(where, module.get_variable(GIVEN, site).astype(value.dtype), value)


def _attention(
    module: nn.Module,
    sites: tuple[str, ...],
    y: Array,
    trace: AttentionTrace,
    merge: Callable[[Array], Array],
    visible: Array,
) -> Array:
    """Records an attention whose output is y, and returns that output with changes applied."""
    weights = _changed(module, "weights", trace.weights)
    own = weighted_values(weights, trace.values)
    read = _changed(module, "read", own)
    _keep(module, sites, weights=weights, scores=trace.scores, values=trace.values, read=read)
    _keep(module, sites, visible=visible)
    if "gap" in sites:
        # In float32 and relative to the largest output; the floor avoids 0 / 0.
        again = merge(weighted_values(trace.weights, trace.values)).astype(jnp.float32)
        most = jnp.maximum(jnp.abs(y).max(), 1e-30)
        _keep(module, sites, gap=jnp.abs(y.astype(jnp.float32) - again).max() / most)
    return merge(read) if _touched(module) else y


def _touched(module: nn.Module) -> bool:
    """Returns whether a change applies to the weights or head outputs of this attention."""
    return any(module.has_variable(GIVEN, site) for site in ("weights", "read"))


def _needs_trace(module: nn.Module, sites: tuple[str, ...]) -> bool:
    return bool(set(OF_ATTENTION) & set(sites)) or _touched(module)


def _of_mix(
    module: MixerLayer, following: Callable, args: tuple, kwargs: dict, sites: tuple
) -> Any:
    y, *others = following(*args, **kwargs)
    x, old, *rest = args
    mask, earlier = (*rest, None, None)[:2]
    if old is None:
        _keep(module, sites, mixed=x)
    if old is not None or not _needs_trace(module, sites):
        return y, *others
    at: dict[str, Any] = {"mask": mask}
    if isinstance(module.mixer, AcrossLayers):
        at["earlier"] = earlier
    params = {name: module.get_variable("params", name) for name in module.mixer.parameters()}
    try:
        trace = module.mixer.attention_trace(params, x, **at)
    except Unsupported:
        return y, *others
    mechanism = getattr(module.mixer, "mechanism", None)
    visible = _visible(mechanism and mechanism.mask, mask, x.shape[1], x.shape[1])
    return (
        _attention(
            module, sites, y, trace, lambda read: module.mixer.merge(params, x, read), visible
        ),
        *others,
    )


def _of_cross(module: Cross, following: Callable, args: tuple, kwargs: dict, sites: tuple) -> Any:
    y = following(*args, **kwargs)
    if not _needs_trace(module, sites):
        return y
    x, params, kept, mask, q_index = args
    trace = module.cross.attention_trace(params, x, kept, mask=mask, q_index=q_index)
    visible = _visible(module.cross.mechanism.mask, mask, x.shape[1], kept["v"].shape[1])
    return _attention(
        module, sites, y, trace, lambda read: module.cross.merge(params, x, read), visible
    )


def _visible(own: Mask | None, mask: Mask | None, queries: int, keys: int) -> Array:
    """Returns which keys each query may attend to; mixers without a mask of their own are causal.

    Shape (B or 1, T, S).
    """
    t, s = jnp.arange(queries)[:, None], jnp.arange(keys)[None, :]
    seen = (s <= t) if own is None else jnp.asarray(own(t, s))
    if mask is not None:
        seen = seen & mask(t, s)
    # Masks that hold arrays, such as padding, add axes for the batch and the heads.
    seen = seen[:, 0] if seen.ndim == 4 else seen[None]
    return jnp.broadcast_to(seen, (len(seen), queries, keys))


def _of_block(
    module: nn.Module, following: Callable, args: tuple, kwargs: dict, sites: tuple
) -> Any:
    x = _changed(module, "entry", args[0])
    y, rest = following(x, *args[1:], **kwargs)
    y = _changed(module, "exit", y)
    _keep(module, (*sites, PLACE), entry=x, exit=y, place=jnp.zeros(()))
    return y, rest


def _of_pool(module: Pool, following: Callable, args: tuple, kwargs: dict, sites: tuple) -> Array:
    weights = _changed(module, "weights", following(*args, **kwargs)[:, None, None])
    _keep(module, sites, weights=weights, values=args[0][:, :, None], visible=args[1][:, None])
    return weights[:, 0, 0]


def _of_embed(module: Embed, following: Callable, args: tuple, kwargs: dict, sites: tuple) -> Array:
    x = _changed(module, "embeddings", following(*args, **kwargs))
    _keep(module, sites, embeddings=x)
    return x


HANDLERS: tuple[tuple[Any, str, Callable], ...] = (
    (MixerLayer, "__call__", _of_mix),
    (Cross, "__call__", _of_cross),
    ((Block, ConformerBlock), "__call__", _of_block),
    (Pool, "weights", _of_pool),
    (Embed, "__call__", _of_embed),
)
"""Intercepted methods and the handlers that record them: (class, method, handler)."""
