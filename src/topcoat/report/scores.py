"""What a run's figures say: a share of right answers with its 95 % interval, base against adapter.

Wilson 1927: with p = k / n and z = 1.96, the interval is (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
Unlike p +- z sqrt(p(1-p)/n) it stays inside [0, 1] and is honest for few rows and for shares near 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The interval, as shares of one, that holds the true share in 95 of 100 cases. With no rows it is (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)  # exact ends, free of rounding


@dataclass(frozen=True)
class ExactMatch:
    """Answers equal to their reference: how many of how many, for the base and for the adapter."""

    base: int | None
    adapter: int
    rows: int

    @property
    def verdict(self) -> str:
        """One sentence that says what the rows prove and what they do not."""
        if self.base is None:
            return f"The adapter answers {self.adapter} of {self.rows} held-out rows exactly."
        said = f"The adapter answers {self.adapter} of {self.rows} held-out rows exactly, the base answers {self.base}."
        base, adapter = wilson(self.base, self.rows), wilson(self.adapter, self.rows)
        if base[0] <= adapter[1] and adapter[0] <= base[1]:
            return f"{said} The two 95 % intervals overlap, so these rows alone do not settle which is better."
        return f"{said} The two 95 % intervals are apart."


def exact_match(results: Mapping[str, Any]) -> ExactMatch | None:
    """The exact match in a results.json, or None where it was not measured."""
    rows, adapter = results.get("rows"), (results.get("adapter") or {}).get("exact_match")
    base = (results.get("base") or {}).get("exact_match")
    if not isinstance(rows, int) or adapter is None:
        return None
    return ExactMatch(None if base is None else round(base * rows), round(adapter * rows), rows)


def show_share(successes: int, rows: int) -> str:
    """As "94.2 %"; "-" with no rows."""
    return f"{100 * successes / rows:.1f} %" if rows else "-"


def show_interval(successes: int, rows: int) -> str:
    """As "88.4 to 97.1 %"."""
    low, high = wilson(successes, rows)
    return f"{100 * low:.1f} to {100 * high:.1f} %"
