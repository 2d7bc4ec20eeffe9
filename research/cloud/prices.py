"""Prices of TPU chips: loads prices.json beside this file, a table that users keep up to date.

    {"rows": [{"generation": "v5e", "region": "us-central1", "on_demand": 1.2, "spot": 0.245,
               "date": "2026-11-22", "sure": "high", "source": "..."}]}

Prices are in US dollars per chip and hour; null if there is no such offer. Prices change, spot
prices every month; `--prices=FILE` loads another table.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from research.errors import UserError

PRICES = Path(__file__).with_name("prices.json")


@dataclass(frozen=True)
class Price:
    """A row of the table.

    Attributes:
      generation: TPU generation.
      region: cloud region.
      on_demand, spot: US dollars per chip and hour; None if there is no such offer.
      date: date of the lookup.
      sure: confidence in the price, "high" or "low".
      source: where the price was found.
    """

    generation: str
    region: str
    on_demand: float | None
    spot: float | None
    date: str
    sure: str
    source: str


def load_prices(path: str | Path = PRICES) -> dict[str, Price]:
    """Returns {generation: price}. Raises UserError if the file is not a valid price table."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
        prices = [Price(**row) for row in rows]
    except OSError as error:
        raise UserError(f"--prices={str(path)!r}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--prices={str(path)!r} is not a valid price table: {error}.") from None
    for price in prices:
        for name in ("on_demand", "spot"):
            value = getattr(price, name)
            if value is not None and (not isinstance(value, int | float) or not value >= 0):
                raise UserError(
                    f"--prices={str(path)!r}: {name}={value!r} of {price.generation} must be a "
                    "number of dollars or null."
                )
    return {price.generation: price for price in prices}
