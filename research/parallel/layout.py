"""Resolves `config.parallel` into a layout of the computation over the available devices.

A layout never changes results beyond float tolerance, so it is not part of a run's id: a run that
was started on one device can resume on eight.
"""

from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from research.errors import UserError, check_name, read_part
from research.options import Part, option
from research.parallel.xla_flags import PROFILES

AXES = ("member", "data", "context", "model")
"""Axes of a mesh, outermost first: devices adjacent on the last axis communicate most.

member: runs of a population. data: the batch, and parameters under fsdp. context: positions of a
sequence. model: heads, feed-forward channels and vocabulary.
"""

BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class Parallel(Part):
    """Which devices do what: `config.parallel`. It changes no result.

    A count is a number of devices along that axis of the mesh; 0: as many as fit.
    """

    how: str = option(
        "jit",
        "how the step is parallelized; pmap splits only the batch or the members",
        allowed=("jit", "pmap"),
    )
    member: int = option(0, "devices that the runs of a population are split over", least=0)
    data: int = option(0, "devices that the sequences of a batch are split over", least=0)
    context: int = option(1, "devices that the positions of a sequence are split over", least=0)
    model: int = option(
        1, "devices that heads, feed-forward channels and vocabulary are split over", least=0
    )
    fsdp: bool = option(False, "whether parameters and optimizer state are split over data too")
    slice: str = option("", "suggested TPU slice, such as v5e:4x4, or 2*v5e:16x16 for two")
    xla_flags: str = option(
        "",
        "profile of compiler flags, in effect from the start of a command; empty: the defaults",
        allowed=("", *PROFILES),
    )


@dataclass(frozen=True)
class Layout:
    """A resolved layout: the number of devices along each axis of the mesh.

    Attributes:
      how: "jit" (global arrays, the compiler partitions) or "pmap" (one program per device).
      member, data, context, model: sizes of the mesh axes.
      fsdp: parameters and optimizer state are split over `data` too (Rajbhandari 2020, ZeRO-3).
    """

    how: str = "jit"
    member: int = 1
    data: int = 1
    context: int = 1
    model: int = 1
    fsdp: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of devices along each of `AXES`."""
        return self.member, self.data, self.context, self.model

    @property
    def devices(self) -> int:
        """Total number of devices."""
        return self.member * self.data * self.context * self.model

    def __str__(self) -> str:
        used = [f"{name}={size}" for name, size in zip(AXES, self.shape, strict=True) if size > 1]
        parts = [" x ".join(used) or "one device", self.how, "fsdp" if self.fsdp else ""]
        return ", ".join(part for part in parts if part)


ONE_DEVICE = Layout()


def parse_layout(text: str, parallel: ConfigDict) -> dict[str, Any]:
    """Parses "data=4,model=2,fsdp=true" into config deltas, {"parallel.data": 4, ...}.

    Args:
      text: comma-separated KEY=VALUE pairs with keys of `config.parallel`; "": no deltas.
      parallel: `config.parallel`, which determines the types.

    Raises UserError for an unknown key and for a value of the wrong type.
    """
    deltas: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.strip().partition("=")
        check_name("--parallel", key, tuple(parallel))
        kind = type(parallel[key])
        try:
            deltas[f"parallel.{key}"] = BOOLEANS[value] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise UserError(
                f"--parallel: {key}={value!r} takes {kind.__name__}; for example "
                "--parallel=data=4,model=2,fsdp=true."
            ) from None
    return deltas


def resolve_layout(config: ConfigDict, members: int = 1, devices: int | None = None) -> Layout:
    """Returns the layout of `config.parallel` for a population.

    Axes `member` and `data` are chosen automatically if they are 0: members are split as far as
    they divide evenly, then the batch. Devices that neither can use stay idle.

    Args:
      config: the whole config.
      members: P, number of runs to train together.
      devices: number of devices; None: all devices of this process and its peers.

    Raises UserError for a layout whose axes do not divide the sizes they split, or that needs more
    devices than there are.
    """
    parallel = read_part("parallel", Parallel, config.parallel.to_dict())
    devices = jax.device_count() if devices is None else devices
    batch = config.task.batch_size // config.optimizer.accumulate
    context, model = parallel.context or 1, parallel.model or 1
    left = devices // (context * model * max(parallel.member, 1) * max(parallel.data, 1))
    pmap = parallel.how == "pmap"
    # pmap splits a single axis. Members need no communication, so prefer them unless data is set.
    batch_only = pmap and parallel.data > 1
    member = parallel.member or (1 if batch_only else _largest(members, left))
    most = 1 if pmap and member > 1 else left // (1 if parallel.member else member)
    data = parallel.data or _largest_up_to(batch, most)
    layout = Layout(parallel.how, member, data, context, model, parallel.fsdp)
    if layout.devices > devices:
        counts = {f"parallel.{axis}": getattr(parallel, axis) for axis in AXES}
        asked = ", ".join(f"{key}={count}" for key, count in counts.items() if count > 1)
        raise UserError(f"{asked} takes {layout.devices} devices; there are {devices}.")
    _check(layout, config, members, batch)
    return layout


def _largest(number: int, most: int) -> int:
    """Returns the largest common divisor of `number` and `most`, or 1 if `most` is 0."""
    return max((d for d in range(1, most + 1) if number % d == 0 and most % d == 0), default=1)


def _largest_up_to(number: int, most: int) -> int:
    """Returns the largest divisor of `number` that is at most `most`, or 1."""
    return max((d for d in range(1, most + 1) if number % d == 0), default=1)


def _check(layout: Layout, config: ConfigDict, members: int, batch: int) -> None:
    """Raises UserError if an axis does not divide the size it splits, or cannot be used."""
    accumulate = config.optimizer.accumulate
    batch_name = f"task.batch_size={config.task.batch_size}"
    if accumulate > 1:
        batch_name += f" / optimizer.accumulate={accumulate}"
    split = {
        "member": (f"a population of {members}", members),
        "data": (batch_name, batch),
        "context": (f"task.length={config.task.length}", config.task.length),
    }
    for axis, (name, size) in split.items():
        if size % getattr(layout, axis):
            raise UserError(
                f"parallel.{axis}={getattr(layout, axis)} does not divide {name}; "
                f"{_divisors(size)} do."
            )
    if layout.context > 1 and config.model.name != "decoder":
        raise UserError(
            f"parallel.context={layout.context} splits the positions of model.name='decoder' only, "
            f"not of {config.model.name!r}; split the batch (parallel.data)."
        )
    if layout.model > 1 and not _has_heads(config.model):
        raise UserError(
            f"parallel.model={layout.model} splits the heads of transformers only; "
            f"split the batch of model.name={config.model.name!r} (parallel.data)."
        )
    if layout.model > 1:
        for key in ("num_heads", "feedforward"):
            if (size := config.model.get(key, 0)) % layout.model:
                raise UserError(
                    f"parallel.model={layout.model} does not divide model.{key}={size}; "
                    f"{_divisors(size)} do."
                )
    if layout.how == "pmap":
        if jax.process_count() > 1:
            raise UserError("parallel.how='pmap' is for one process; 'jit' is for any number.")
        if layout.fsdp or layout.context > 1 or layout.model > 1:
            raise UserError(
                "parallel.how='pmap' splits the batch or the members only; use 'jit' for fsdp, "
                "context and model."
            )
        if layout.member > 1 and layout.data > 1:
            raise UserError(
                f"parallel.how='pmap' splits either the batch or the members, not both "
                f"(parallel.data={layout.data}, parallel.member={layout.member}); 'jit' does."
            )


def _has_heads(model: ConfigDict) -> bool:
    """Returns whether a model is a transformer, or may contain one."""
    if model.name == "classifier":
        return model.body == "transformer"
    return model.name != "recurrent"


def _divisors(number: int) -> str:
    found = [str(d) for d in range(1, number + 1) if number % d == 0]
    return ", ".join(found if len(found) <= 12 else [*found[:10], "..."])
