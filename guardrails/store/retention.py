"""Which versions a retention policy keeps: restic's words and rules, in UTC.

Source: restic's documentation of ``forget``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

DURATION = re.compile(r"(?:([0-9]+)y)?(?:([0-9]+)m)?(?:([0-9]+)d)?(?:([0-9]+)h)?")
# A hundred years: what is taken from today stays a date.
MOST_DAYS = 36500
# A period's versions share a key; of each period the newest is kept.
PERIODS: Mapping[str, Callable[[datetime], object]] = {
    "hourly": lambda at: (at.date(), at.hour),
    "daily": lambda at: at.date(),
    "weekly": lambda at: at.isocalendar()[:2],
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: at.year,
}


class Policy(NamedTuple):
    """How many to keep of each kind, -1 for all; ``within`` is a duration such as ``1y5m7d2h``."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: str | None = None

    def keeps_nothing(self) -> bool:
        """Whether it says nothing, or ``0d``.

        Raises:
            ValueError: ``within`` is no duration.
        """
        return not any(self[:-1]) and not (self.within and parse_duration(self.within))


def parse_duration(text: str) -> timedelta:
    """The length of ``1y5m7d2h``; a year is 365 days, a month 30.

    Raises:
        ValueError: it is none.
    """
    match = DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"{text!r} is no duration; write it like 1y5m7d2h")
    try:
        years, months, days, hours = (int(part or 0) for part in match.groups())
        return timedelta(days=365 * years + 30 * months + days, hours=hours)
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is too long a time") from None


def choose(made: Sequence[tuple[str, datetime]], policy: Policy) -> dict[str, list[str]]:
    """Why each item that ``policy`` keeps is kept, by its id; ``made`` are ids with their times, in any order."""
    newest_first = sorted(made, key=lambda item: (item[1], item[0]), reverse=True)
    reasons: dict[str, list[str]] = {}
    for index, (name, _) in enumerate(newest_first):
        if policy.last < 0 or index < policy.last:
            reasons.setdefault(name, []).append("last")
    for period, key_of in PERIODS.items():
        left, previous = getattr(policy, period), object()
        for name, at in newest_first:
            if left == 0:
                break
            if (key := key_of(at)) != previous:
                reasons.setdefault(name, []).append(period)
                previous, left = key, left - 1
    if policy.within and newest_first:
        # As in restic, counted back from the newest and not from now.
        within = parse_duration(policy.within)
        for name, at in newest_first:
            if newest_first[0][1] - at < within:
                reasons.setdefault(name, []).append("within")
    return reasons


def parse_time(text: str) -> datetime:
    """A time as the toolkit writes it."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
