"""Numbers and times as people say them."""

from guardrails.report.moments import parse_time

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400
UNITS = ((YEAR, "y"), (DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (1, "s"))


def say_seconds(seconds: float, units: int = 2) -> str:
    """A length of time in its largest ``units``: ``31 s``, ``2 h 14 min``."""
    left = round(min(max(seconds, 0), 999 * YEAR))
    said: list[str] = []
    for length, name in UNITS:
        if left >= length or said:
            said.append(f"{left // length} {name}" if left >= length else "")
            left %= length
    return " ".join(filter(None, said[:units])) or "0 s"


def say_age(stamp: str, now: float) -> str:
    """How long ago a time was; empty if it is none, or has not come yet."""
    at = parse_time(stamp, now)
    if at is None or at > now:
        return ""
    return f"{say_seconds(now - at, 1)} ago"


def group_digits(number: float) -> str:
    """A number with its thousands apart: ``12,345``."""
    return f"{number:,}"
