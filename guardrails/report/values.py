"""Values out of documents that anybody may have written to, as a report can show them."""

import math
import re
from typing import Any

Json = dict[str, Any]

GIB = 1 << 30
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def timestamp(value: object) -> str | None:
    """``value`` if it is a time as this toolkit writes it."""
    return value if isinstance(value, str) and TIMESTAMP.fullmatch(value) else None


def integer(value: object) -> int:
    """``value`` if it is a whole number, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def number_or_none(value: object) -> float | None:
    """``value`` if it is a finite number; NaN and infinity have no place in strict JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text(value: object) -> str:
    """``value`` as a string that every JSON reader takes: lone surrogates are escaped, anything else is empty."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else ""


def to_gb(size: float) -> float:
    """Bytes in GiB, to two places."""
    return round(size / GIB, 2)
