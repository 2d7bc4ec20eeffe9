"""Attention and recurrences over split sequences, on eight devices: see tests/eight_devices.py."""

import collections
import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.attention.implementations.attend import attend, choose_implementation
from research.attention.parts import biases, masks, normalizers, relative_biases, scores
from research.attention.parts.contextual_positions import ContextualPosition
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.multi_token import KeyQueryConvolution
from research.attention.parts.segments import segments
from research.attention.parts.selective import Selection
from research.attention.parts.sparse_masks import Global, Local
from research.attention.parts.stick_breaking import StickBreaking
from research.attention.spec import make_mixer, mixer_spec
from tests.attention import cases
from tests.attention.cases import close, qkv, weighted

HEADS, LENGTH = 4, 32
CAUSAL = Mechanism(mask=masks.causal())
SPARSE = Mechanism(normalizer=normalizers.Sparsemax())
AXES = ("member", "data", "context", "model")
MESHES = {
    "context8": (1, 1, 8, 1),
    "data2-context4": (1, 2, 4, 1),
    "member2-context2-model2": (2, 1, 2, 2),
}
# Half the time to compile. What is compiled runs once, on little.
QUICK = {"xla_backend_optimization_level": 0}

SEGMENTS = jnp.asarray([[0] * 7 + [1] * 16 + [2] * 9, [5] * 10 + [0] * 22])
SINK = jnp.asarray([0.5, -1.0, 2.0, 0.0])
TABLE = jnp.sin(jnp.arange(5.0 * HEADS)).reshape(5, HEADS)
# The length, the number of key heads, what is static, and what is differentiated.
CASES = {
    "causal": (LENGTH, 4, {"mask": masks.causal()}, {}),
    "window, grouped heads, sink": (
        LENGTH,
        2,
        {"mask": masks.window(5)},
        {"normalizer": normalizers.SinkSoftmax(sharpening=2.0, sink=SINK)},
    ),
    "segments, alibi, softpick": (
        LENGTH,
        4,
        {"mask": masks.causal() & segments(SEGMENTS, SEGMENTS)},
        {"biases": (biases.alibi(HEADS),), "normalizer": normalizers.Softpick()},
    ),
    "prefix, one key head, cosine": (
        LENGTH,
        1,
        {"mask": masks.prefix(9)},
        {"score": scores.Cosine(0.5 + SINK**2), "normalizer": normalizers.Smoothed()},
    ),
    # No multiple of any number of devices.
    "longformer, sigmoid, t5": (
        29,
        2,
        {"mask": Local(3) | Global(2)},
        {
            "biases": (relative_biases.T5(TABLE, (1, 2, 4, 8), bidirectional=False),),
            "normalizer": normalizers.Sigmoid(SINK),
        },
    ),
}
# Three kinds of decay and a matrix; the others are special cases of them.
MIXERS = (
    "gated_linear",
    "gated_delta",
    "state_space",
    "retention",
    "delta",
    "linear",
    "kimi_delta",
    "delta_product",
    "rwkv7",
    "levels of state_space",
    "levels of gated_delta",
)
PARTED = ("gated_linear", "gated_delta", "linear", "kimi_delta", "delta_product", "rwkv7")
PARTED += ("levels of state_space", "levels of gated_delta")


@contextlib.contextmanager
def on(shape: tuple[int, ...]) -> Iterator[None]:
    """The first devices as the active mesh."""
    devices = jax.devices()[: int(np.prod(shape))]
    types = (AxisType.Auto,) * len(AXES)
    with jax.set_mesh(jax.make_mesh(shape, AXES, axis_types=types, devices=devices)):
        yield


def with_gradients(function, *arguments):
    """The output and its gradients, for members that are split over their axis."""

    def loss(*arguments):
        out = function(*arguments)
        return weighted(out), out

    every = tuple(range(len(arguments)))
    run = jax.vmap(
        jax.grad(loss, argnums=every, has_aux=True, allow_int=True), spmd_axis_name="member"
    )
    grads, out = jax.jit(run, compiler_options=QUICK)(*arguments)
    return out, [g for g in jax.tree.leaves(grads) if g.dtype != jax.dtypes.float0]


def members(tree, count=2):
    """As many members, each with numbers of its own."""

    def stacked(x):
        x = np.asarray(x)
        return np.stack([x * 0.5**i for i in range(count)]).astype(x.dtype)

    return jax.tree.map(stacked, tree)


@functools.cache
def expected(case: str):
    return attention("dense", case)


def attention(implementation: str, case: str):
    length, kv_heads, static, parts = CASES[case]
    arrays = qkv(length, length, HEADS, kv_heads)

    def run(q, k, v, parts):
        options = {"implementation": implementation, "block_size": 3}
        return attend(q, k, v, Mechanism(**static, **parts), **options)

    return with_gradients(run, *members((*arrays, parts)))


def equals_dense(implementation: str, case: str, mesh: str) -> None:
    """Values and gradients of queries, keys, values and all that is learned."""
    with on(MESHES[mesh]):
        found = attention(implementation, case)
    close(found, expected(case), 1e-4)


def of_mixer(name: str) -> dict:
    """The options that a name of ``MIXERS`` stands for."""
    levels = {"log_levels": 64} if name.startswith("levels") else {}
    return {"mixer": name.removeprefix("levels of "), **levels}


def mixer_run(name: str, implementation: str):
    options = {"width": 16, "num_heads": 4, "max_length": 29, "block_size": 3} | of_mixer(name)
    if name not in ("retention", "rwkv7"):
        options["short_convolution"] = 3
    if name in ("gated_linear", "gated_delta"):
        options["value_width"] = 6
    mixer = make_mixer(**options, implementation=implementation)

    def run(params, x):
        # Segments start within the parts of devices and between them.
        mask = segments(SEGMENTS[:, :29], SEGMENTS[:, :29]) if name in PARTED else None
        return mixer(params, x, mask=mask)

    return with_gradients(run, *members((numbers(mixer), sequence(29))))


def numbers(mixer):
    """Parameters in float32, as numpy."""
    return jax.tree.map(np.float32, cases.numbers(mixer))


def sequence(length):
    """An input of width 16."""
    return np.random.default_rng(2).normal(size=(2, length, 16)).astype(np.float32)


def mixer_equals_one_device(name: str, mesh: str) -> None:
    """A form for split sequences, with short convolutions that the compiler splits."""
    with on(MESHES[mesh]):
        sizes = {"width": 8, "num_heads": 1, "max_length": 8}
        assert mixer_spec(**sizes, **of_mixer(name)).implementation == "ring"
        found = mixer_run(name, "ring")
    close(found, mixer_run(name, "chunkwise"), 1e-4)


def gather_computes_what_ring_lacks() -> None:
    """What needs whole rows of scores, keys in their order, or sums over earlier queries."""
    arrays = members(qkv(LENGTH, LENGTH, HEADS, 2))
    kernel = jnp.cos(jnp.arange(6.0 * HEADS)).reshape(HEADS, 2, 3)
    counting = ContextualPosition(jnp.sin(jnp.arange(40.0)).reshape(5, 8))
    looking_back = counting, KeyQueryConvolution(kernel), Selection()
    for mechanism in (
        Mechanism(scores.Score(), masks.causal(), (), normalizers.Sparsemax()),
        Mechanism(scores.ScaledDot(), masks.causal(), looking_back, StickBreaking()),
    ):
        run = functools.partial(attend, mechanism=mechanism)
        with on(MESHES["data2-context4"]):
            assert choose_implementation(4096, mechanism) == "gather"
            found = with_gradients(functools.partial(run, implementation="gather"), *arrays)
        close(found, with_gradients(run, *arrays), 1e-4)


@jax.tree_util.register_dataclass
class Counted(biases.Bias):
    """Leaves scores as they are and counts the blocks that it is called on, by device."""

    seen = collections.Counter()

    def __call__(self, score, head, q_index, kv_index):
        jax.debug.callback(lambda i: self.seen.update([int(i)]), jax.lax.axis_index("context"))
        return score


def compiled(**options):
    """``attend`` with these options, without gradients."""
    return jax.jit(functools.partial(attend, **options), compiler_options=QUICK)


def causal_work_is_the_same_on_every_device() -> None:
    """Counted as it runs: no block is computed in vain, and all devices compute as many."""
    block, arrays = 4, qkv(64, 64, HEADS, 2)
    mechanism = Mechanism(mask=masks.causal(), biases=(Counted(),))
    options = {"mechanism": mechanism, "block_size": block}
    blocks = 64 // block
    visible = blocks * (blocks + 1) // 2
    for implementation in ("ring", "gather"):
        Counted.seen.clear()
        with on(MESHES["context8"]):
            jax.block_until_ready(compiled(**options, implementation=implementation)(*arrays))
            jax.effects_barrier()
        assert dict(Counted.seen) == dict.fromkeys(range(8), visible // 8), Counted.seen


def executed(jaxpr, name: str) -> int:
    """How often a primitive runs; the body of a scan as often as it is repeated."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            total += 1
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for body in jax.core.jaxprs_in_params(equation.params):
            total += times * executed(body, name)
    return total


def rounds_that_nobody_needs_do_not_take_place() -> None:
    """Counted in the program: how often keys and values move on."""

    def moves(mask):
        run = functools.partial(
            attend, mechanism=Mechanism(mask=mask), implementation="ring", block_size=4
        )
        with on(MESHES["context8"]):
            return executed(jax.make_jaxpr(run)(*qkv(64, 64, 4, 4)).jaxpr, "ppermute")

    # Two arrays, and for the causal mask four that change from natural to zigzag order in halves.
    assert moves(masks.full()) == 2 * 7
    assert moves(masks.causal()) == 2 * 7 + 4 * 2
    assert moves(masks.window(9)) == 2 * 1
    assert moves(masks.window(10)) == 2 * 2
    # Once to begin at the device ahead, and twice on.
    assert moves(Local(8)) == 2 * 3
    assert moves(~masks.full()) == 0


def forbidden_keys_are_never_computed() -> None:
    """What no query of a device may see can be NaN."""
    q, k, v = qkv(64, 64, HEADS, HEADS)
    v = jnp.asarray(np.where(np.arange(64)[:, None, None] < 32, v, np.nan))
    for implementation in ("ring", "gather"):
        with on(MESHES["context8"]):
            options = {"implementation": implementation, "block_size": 4}
            out = compiled(mechanism=CAUSAL, **options)(q, k, v)
        assert np.isfinite(out[:, :32]).all() and np.isnan(out[:, 32:]).all()


def positions_can_be_unknown_or_anything() -> None:
    """A decoder's chunk over keys in any order, as a ring buffer holds them."""
    arrays = qkv(13, 19, HEADS, 2)
    order = np.random.default_rng(0).permutation(19)
    mechanism = Mechanism(mask=masks.window(4), biases=(biases.alibi(HEADS),))
    where = {"q_index": np.arange(6, 19), "kv_index": order}
    reference = compiled(mechanism=mechanism)(*arrays, **where)
    with on(MESHES["data2-context4"]):
        run = compiled(mechanism=mechanism, implementation="ring", block_size=2)
        close(run(*arrays, **where), reference)
        known = compiled(mechanism=mechanism, **where, implementation="ring", block_size=2)
        close(known(*arrays), reference)


def recurrences_exchange_only_states_and_borders() -> None:
    """Read in the compiled program, forwards and backwards: nothing grows with the length."""
    options = {"width": 16, "num_heads": 4, "max_length": 512, "short_convolution": 4}
    mixer = make_mixer(**options, mixer="gated_delta", implementation="ring")
    with on(MESHES["context8"]):
        split = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(None, "context"))
        x = jax.ShapeDtypeStruct((2, 512, 16), jnp.float32, sharding=split)
        grad = jax.jit(jax.grad(lambda p, x: weighted(mixer(p, x)), (0, 1)))
        text = grad.lower(numbers(mixer), x).compile(QUICK).as_text()
    moved = re.findall(r"f32\[([\d,]*)\][^=]* (?:all-gather|collective-permute)\(", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in moved]
    # 8 states of (D, D + D) to a head and row of the batch, or 3 inputs.
    assert sizes and max(sizes) <= 8 * 2 * 4 * 4 * 8
    assert "all-to-all" not in text


def gradients_of_gathered_keys_are_scattered() -> None:
    """None of the devices ever adds up the gradients of all keys."""
    with on(MESHES["context8"]):

        def loss(q, k, v):
            return weighted(attend(q, k, v, CAUSAL, implementation="gather"))

        jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*qkv(64, 64, 4, 4)).jaxpr
    assert executed(jaxpr, "reduce_scatter") == 2
    assert executed(jaxpr, "psum") == executed(jaxpr, "psum_invariant") == 0


def layers_of_a_population_on_every_axis() -> None:
    """Scanned, rematerialized layers of attention and of a recurrence, members apart."""

    def run(attention, recurrence):
        options = {"width": 16, "num_heads": 4, "max_length": 24, "block_size": 3}
        first = mixer_spec(**options, position="rope", num_kv_heads=2, implementation=attention)
        second = mixer_spec(**options, mixer="state_space", implementation=recurrence)
        mixers = [o.make() for o in (first, second)]
        # Small, for rounding not to grow from layer to layer.
        params = [jax.tree.map(lambda p: 0.3 * np.stack([p, -p]), numbers(m)) for m in mixers]

        def forward(params, x):
            @jax.checkpoint
            def layer(x, params):
                for mixer, p in zip(mixers, params, strict=True):
                    x = x + mixer(p, x / (1 + jnp.abs(x)))
                return x, None

            return jax.lax.scan(layer, x, params)[0]

        return with_gradients(forward, *members((params, sequence(24))))

    with on(MESHES["member2-context2-model2"]):
        found = run("auto", "auto")
    close(found, run("dense", "recurrent"), 1e-4)


def what_suits_a_split_sequence_is_chosen_and_named() -> None:
    assert choose_implementation(4096, CAUSAL) == "blockwise"
    with on(MESHES["data2-context4"]):
        assert (
            choose_implementation(64, CAUSAL, backend="tpu", dtype="bfloat16", head_width=64)
            == "ring"
        )
        q, k, v = qkv(8, 8, HEADS, HEADS)
        refused(r"lacks normalizer 'sparsemax'; gather has it", q, k, v, "ring")
    with on((2, 2, 1, 2)):
        assert choose_implementation(4096, CAUSAL) == "blockwise"


def refused(message, q, k, v, implementation):
    try:
        attend(q, k, v, SPARSE, implementation=implementation)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError("it was not refused")


STRUCTURE = (
    gather_computes_what_ring_lacks,
    causal_work_is_the_same_on_every_device,
    rounds_that_nobody_needs_do_not_take_place,
    forbidden_keys_are_never_computed,
    positions_can_be_unknown_or_anything,
    recurrences_exchange_only_states_and_borders,
    gradients_of_gathered_keys_are_scattered,
    layers_of_a_population_on_every_axis,
    what_suits_a_split_sequence_is_chosen_and_named,
)


def all_checks() -> tuple[dict[str, Callable[[], None]], dict[str, Callable[[], None]]]:
    """The fast ones and the slow ones, by name.

    Fast is each case and two mixers on one mesh, in turn; slow the rest of their combinations. A
    third mixer is in the layers on every axis.
    """
    fast = {check.__name__: check for check in STRUCTURE}
    slow = {}
    for i, case in enumerate(CASES):
        for j, implementation in enumerate(("ring", "gather")):
            for n, mesh in enumerate(MESHES):
                chosen = fast if (i + n) % 3 == 0 and (i + j) % 5 < 4 else slow
                check = functools.partial(equals_dense, implementation, case, mesh)
                chosen[f"{implementation}: {case}, {mesh}"] = check
    for i, name in enumerate(MIXERS):
        for n, mesh in enumerate(MESHES):
            chosen = fast if i < 2 and i == n else slow
            chosen[f"{name}, {mesh}"] = functools.partial(mixer_equals_one_device, name, mesh)
    return fast, slow


CHECKS, SLOW = all_checks()
