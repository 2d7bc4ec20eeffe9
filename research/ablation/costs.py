"""Measured costs of a training step, which a report shows beside the outcome.

`research.ablation.timing` measures them; here is what both sides need, without jax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research.runs.store import read_json, write_json

FILE = "costs.json"


@dataclass(frozen=True)
class Cost:
    """Cost of a training step of one run of an arm at a point.

    Attributes:
      arm, point: the arm, and the axis point.
      tokens: positions that a step computes, batch times length.
      memory_bytes: memory that the compiled step needs on a device, by the compiler's analysis:
        state, data and temporary buffers; None where the backend gives none.
      seconds: seconds per step, one value per round.
    """

    arm: str
    point: Mapping[str, Any]
    tokens: int
    memory_bytes: int | None
    seconds: tuple[float, ...]


def write_costs(costs: Sequence[Cost], environment: Mapping[str, Any], workdir: Path) -> None:
    """Writes costs.json with the environment in which the costs were measured."""
    rows = [asdict(cost) for cost in costs]
    write_json(workdir / FILE, {"environment": dict(environment), "costs": rows})


def read_costs(workdir: Path) -> list[Cost]:
    """Returns the costs that costs.json in a directory holds; [] if there is none."""
    there = read_json(workdir / FILE)
    return [cost_from_json(row) for row in there["costs"]] if there else []


def cost_from_json(row: Mapping[str, Any]) -> Cost:
    """Inverse of `dataclasses.asdict`."""
    seconds = tuple(row["seconds"])
    return Cost(row["arm"], row["point"], row["tokens"], row["memory_bytes"], seconds)
