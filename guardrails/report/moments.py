"""Points in time as people name them: ages such as ``2h`` and ``7d``, dates, ISO times."""

import re
from datetime import UTC, datetime

from guardrails.errors import UsageError
from guardrails.state_io import format_utc

AGE = re.compile(r"(?:\d{1,9}[smhdw])+", re.ASCII)
AGE_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
# Of all that fromisoformat takes, what is written as people write a date.
DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].*)?", re.ASCII)
HOW_TO_SAY = "2h, 7d, 2026-11-01 or 2026-11-01T10:00:00Z"


def parse_time(text: str, now: float) -> float | None:
    """Seconds since the epoch of an age or a time, UTC unless it says otherwise; None if it is neither."""
    if AGE.fullmatch(text):
        return now - sum(int(number) * AGE_SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhdw])", text))
    if not DATE.fullmatch(text):
        return None
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def parse_since(text: str, now: float) -> float:
    """Where a listing begins, in seconds since the epoch.

    Raises:
        UsageError: it is no time, or one that has not come yet.
    """
    since = parse_time(text, now)
    if since is None:
        raise UsageError(f"--since {text!r} is no time", f"say it as {HOW_TO_SAY}")
    if since > now:
        raise UsageError(f"--since {text!r} is in the future", f"it is {format_utc(now)}; times are UTC")
    return since
