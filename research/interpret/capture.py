"""What a model does inside, recorded and changed from outside: no model and no mechanism knows.

Sites of an attention: "weights" (B, H, T, S), "scores" before the normalizer, "values" (B, S, K, D)
that the weights sum, what the heads "read" (B, T, H, D), "visible" (B or 1, T, S), which keys a
query may see, and "gap", how far the mixer's implementation is from the dense form that all this
is computed by. Sites of a layer: "entry" and "exit" (B, T, M), the residual stream in front of it
and behind. And "embeddings" (B, T, M) where looking them up is a module.

Recording computes the dense form beside whatever implementation the model has, all weights of all
layers at once. Everything can be traced: gradients, `vmap` and `jit` go through.
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
from research.attention.mixers.mixer import Look, read_values
from research.attention.parts.masks import Mask
from research.errors import UserError, check_name
from research.models.classifier import Embed, Pool
from research.models.model import Model
from research.models.speech.conformer import ConformerBlock
from research.models.transformer import Block, Cross, Mix
from research.tasks.task import Batch

RECORDED, GIVEN = "captured", "given"
OF_ATTENTION = ("weights", "scores", "values", "read", "visible", "gap")
OF_LAYER = ("entry", "exit")
SITES = (*OF_ATTENTION, *OF_LAYER, "embeddings")
CHANGEABLE = ("weights", "read", *OF_LAYER, "embeddings")

PLACE = "place"
"""Recorded of every layer whatever is asked for, so that layers are counted that lack a site."""

Tree = Mapping[str, Any]
"""Nested like parameters; a leaf to each site, with a leading axis for the layers of a scan."""


class Change(NamedTuple):
    """What takes the place of what a model computes at a site.

    Attributes:
      value: (L, B, ...) for a site that L layers of the same shape have, one entry to each of these
        and none to others, as `stacked` returns them; without L where there is one place.
      where: broadcasts to value; True where it is taken.
    """

    value: Array
    where: Array


class Part(NamedTuple):
    """One attention, or one layer around it.

    Attributes:
      name: "layer 0", "encoder 2", "decoder 0 cross", "pooling"...
      kind: "self", "cross" or "pooling".
      sites: what was recorded, by name.
      stack: of layers that it is in, one of `STACKS`.
      layer: its number there.
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
    changes: Mapping[str, Change] | None = None,
    method: str = "of_batch",
) -> tuple[Any, Tree]:
    """Returns what the model makes of a batch, and what happened at the sites.

    Args:
      model: any model of `MODELS`.
      params: its parameters.
      batch: as `method` takes it.
      sites: names in `SITES`.
      changes: by site; see `Change`. Sites are those of self-attention, in the order of the layers
        from the first of the encoder on, and of pooling.
      method: of the model.

    Raises UserError for an unknown site, or a change of one that the model does not have or has in
    another number of layers.
    """
    for site in sites:
        check_name("sites", site, SITES)
    given: Tree = {}
    if changes:
        for site in changes:
            check_name("changes", site, CHANGEABLE)
        shapes = jax.eval_shape(
            lambda p, b: _run(model, p, b, (*changes,), {}, method)[1], params, batch
        )
        given = _laid_out(shapes, changes)
    return _run(model, params, batch, tuple(sites), given, method)


def parts(recorded: Tree) -> list[Part]:
    """Returns what was recorded as one `Part` to each attention, in the order of the model.

    A layer whose mixer has no weights has the sites of its residual stream alone.
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
    # In a layer the source is read after the sequence itself.
    order = sorted(found, key=lambda key: (key[0], key[2], key[3] == "cross"))
    return [Part(_name(*key[1:]), key[3], found[key], *key[1:3]) for key in order]


def stacked(recorded: Tree, site: str, kind: str = "self") -> Float[Array, "L B ..."]:
    """Returns a site of all parts of a kind, the first layer first.

    Raises UserError if there is none, or if the layers differ in shape.
    """
    found = [p.sites[site] for p in parts(recorded) if p.kind == kind and site in p.sites]
    if not found:
        raise UserError(f"this model has no {site} of {kind}-attention to look at.")
    if len({a.shape for a in found}) > 1:
        shapes = ", ".join(str(a.shape) for a in found)
        raise UserError(f"the layers' {site} differ in shape and cannot be stacked: {shapes}.")
    return jnp.stack(found)


class _Address(NamedTuple):
    """Where a leaf lies: in which stack of layers, in which slot of its pattern, as what."""

    stack: str
    slot: int
    kind: str
    stacked: bool


STACKS = ("", "encoder", "listener", "decoder", "speller", "pool", "embed")


def _addressed(tree: Tree) -> tuple[list[tuple[_Address, str, Array]], dict[str, int]]:
    """All leaves with their address and site, and how many slots each stack's pattern has."""
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


def _laid_out(shapes: Tree, changes: Mapping[str, Change]) -> Tree:
    """The changes as a collection of variables, laid out as what was recorded is."""
    leaves, _ = _addressed(shapes)
    paths = list(flatten_dict(dict(shapes)))
    found: dict[tuple[str, ...], Array] = {}
    for site, change in changes.items():
        mine = [
            (at, path, leaf)
            for (at, name, leaf), path in zip(leaves, paths, strict=True)
            if name == site and at.kind != "cross"
        ]
        if not mine:
            raise UserError(f"changes={site!r}: this model has no such place.")
        ranks = _ranks([(at, leaf.shape[0]) for at, _, leaf in mine if at.stacked])
        layers = sum(len(rank) for rank in ranks.values())
        for at, path, _ in mine:
            value, where = (jnp.asarray(a) for a in change)
            if at.stacked:
                if len(value) != layers:
                    raise UserError(
                        f"changes={site!r} are of {len(value)} layers, and {layers} have such a "
                        "place; give one to each."
                    )
                rank = ranks[at.stack, at.slot]
                where = jnp.broadcast_to(where, (layers, *where.shape[1:]))
                value, where = value[rank], where[rank]
            found[path], found[(*path[:-1], f"{site}{WHERE}")] = value, where
    return unflatten_dict(found)


def _ranks(places: Sequence[tuple[_Address, int]]) -> dict[tuple[str, int], np.ndarray]:
    """Returns {(stack, slot): which of all layers with a site each repeat of the slot is}.

    In a pattern of which not every slot has the site, that is not the number of the layer.
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
        # A decoder that is recurrent reads the source one query after the other.
        weights = model.apply({"params": params}, batch, method="weights")
        if weights.shape[1]:
            recorded["decoder"] = {"layers": {"cross": {"weights": weights[None]}}}
    return outputs, recorded


def _reads_source(recorded: Tree) -> bool:
    return any(at.kind == "cross" for at, _, _ in _addressed(recorded)[0])


def _keep(module: nn.Module, sites: tuple[str, ...], **found: Any) -> None:
    # A model that decodes in passing applies itself again, where nothing is recorded.
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
    look: Look,
    merge: Callable[[Array], Array],
    visible: Array,
) -> Array:
    """Records an attention whose output is y; returns its output after changes."""
    weights = _changed(module, "weights", look.weights)
    own = read_values(weights, look.values)
    read = _changed(module, "read", own)
    _keep(module, sites, weights=weights, scores=look.scores, values=look.values, read=read)
    _keep(module, sites, visible=visible)
    if "gap" in sites:
        again = merge(read_values(look.weights, look.values)).astype(jnp.float32)
        most = jnp.maximum(jnp.abs(y).max(), 1e-30)
        _keep(module, sites, gap=jnp.abs(y.astype(jnp.float32) - again).max() / most)
    return merge(read) if _touched(module) else y


def _touched(module: nn.Module) -> bool:
    """Whether an attention's output is changed."""
    return any(module.has_variable(GIVEN, site) for site in ("weights", "read"))


def _looks(module: nn.Module, sites: tuple[str, ...]) -> bool:
    return bool(set(OF_ATTENTION) & set(sites)) or _touched(module)


def _of_mix(module: Mix, following: Callable, args: tuple, kwargs: dict, sites: tuple) -> Any:
    y, state = following(*args, **kwargs)
    x, old, *rest = args
    mask = rest[0] if rest else None
    if old is not None or not _looks(module, sites):
        return y, state
    params = {name: module.get_variable("params", name) for name in module.mixer.parameters()}
    try:
        look = module.mixer.look(params, x, mask=mask)
    except Unsupported:
        return y, state
    mechanism = getattr(module.mixer, "mechanism", None)
    visible = _visible(mechanism and mechanism.mask, mask, x.shape[1], x.shape[1])
    return (
        _attention(
            module, sites, y, look, lambda read: module.mixer.merge(params, x, read), visible
        ),
        state,
    )


def _of_cross(module: Cross, following: Callable, args: tuple, kwargs: dict, sites: tuple) -> Any:
    y = following(*args, **kwargs)
    if not _looks(module, sites):
        return y
    x, params, kept, mask, q_index = args
    look = module.cross.look(params, x, kept, mask=mask, q_index=q_index)
    visible = _visible(module.cross.mechanism.mask, mask, x.shape[1], kept["v"].shape[1])
    return _attention(
        module, sites, y, look, lambda read: module.cross.merge(params, x, read), visible
    )


def _visible(own: Mask | None, mask: Mask | None, queries: int, keys: int) -> Array:
    """(B or 1, T, S). What has no mask of its own is causal."""
    t, s = jnp.arange(queries)[:, None], jnp.arange(keys)[None, :]
    seen = (s <= t) if own is None else jnp.asarray(own(t, s))
    if mask is not None:
        seen = seen & mask(t, s)
    # Masks with arrays, such as padding, have a batch and an axis for the heads.
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
    (Mix, "__call__", _of_mix),
    (Cross, "__call__", _of_cross),
    ((Block, ConformerBlock), "__call__", _of_block),
    (Pool, "weights", _of_pool),
    (Embed, "__call__", _of_embed),
)
"""What is recorded of which modules: (class, method, handler)."""
