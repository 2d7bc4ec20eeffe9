"""What a slice costs: a table that its user keeps, in prices.json beside this file.

    {"rows": [{"generation": "v5e", "region": "us-central1", "on_demand": 1.2, "spot": 0.245,
               "date": "2026-11-22", "sure": "high", "source": "..."}]}

Prices are in US dollars per chip and hour; null where there is none. They change, spot prices every
month: `--prices=FILE` takes another table.
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
      generation: of TPU.
      region: that it is for.
      on_demand, spot: dollars per chip and hour; None where there is no such offer.
      date: when it was looked up.
      sure: "high" or "low".
      source: where.
    """

    generation: str
    region: str
    on_demand: float | None
    spot: float | None
    date: str
    sure: str
    source: str


def load_prices(path: str | Path = PRICES) -> dict[str, Price]:
    """Returns {generation: price}. Raises UserError for a file that is no such table."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
        prices = [Price(**row) for row in rows]
    except OSError as error:
        raise UserError(f"--prices={str(path)!r}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--prices={str(path)!r} is no table of prices: {error}.") from None
    for price in prices:
        for name in ("on_demand", "spot"):
            value = getattr(price, name)
            if value is not None and (not isinstance(value, int | float) or not value >= 0):
                raise UserError(
                    f"--prices={str(path)!r}: {name}={value!r} of {price.generation} must be a "
                    "number of dollars or null."
                )
    return {price.generation: price for price in prices}
