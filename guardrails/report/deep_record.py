"""What deep checks found and nobody healed since, and when each thing was last read in full.

Two caches in ``status/``, which may be lost at any time: then nothing is known but what the next deep check finds.
Every report reads the first, so this imports next to nothing.
"""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import DamagedStateError
from guardrails.paths import Paths
from guardrails.state_io import SCHEMA_VERSION, read_json, write_json

# Of one finding; a disk that rots as a whole is one piece of news.
MOST_OF_A_KIND = 500
IDENTITY_LENGTH = 3

# size, mtime_ns and inode of a file. Not its ctime, which a new hard link to it changes.
Identity = list[int]


class Problem(NamedTuple):
    """One thing that was wrong when it was looked at; it is taken for wrong as long as the files stay those."""

    # which check found it: v002, queue, config_lock …
    check: str
    # the finding that it belongs to, and what that is about where there may be several
    finding: str
    subject: str
    words: str
    at: str
    # path -> what lay there; relative to the base dir where it lies in it
    present: dict[str, Identity]
    # where nothing lay
    absent: list[str]


def identify(path: str | os.PathLike[str]) -> Identity | None:
    """What lies at ``path``, told without reading it; None if nothing does."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def is_replaced(paths: Paths, problem: Problem) -> bool:
    """Whether another file lies where the wrong one did, as after a repair, or a missing one came back."""
    if any(os.path.lexists(paths.base / path) for path in problem.absent):
        return True
    return any(_inode(identify(paths.base / path)) != was[2] for path, was in problem.present.items())


def is_touched(paths: Paths, problem: Problem) -> bool:
    """Whether somebody wrote to the wrong file since: it may be good again, which only reading it tells."""
    return any(identify(paths.base / path) != was for path, was in problem.present.items())


def _inode(identity: Identity | None) -> int | None:
    return identity[2] if identity else None


def read_problems(paths: Paths) -> list[Problem]:
    """What is remembered; whatever in the file is no problem as this module writes it is left out."""
    found = _read(paths.deep_check).get("problems")
    made = (_make_problem(one) for one in (found if isinstance(found, list) else []))
    return [problem for problem in made if problem is not None]


def _make_problem(entry: object) -> Problem | None:
    if not isinstance(entry, dict) or entry.keys() != {*Problem._fields}:
        return None
    present, absent = entry["present"], entry["absent"]
    texts = [entry[name] for name in ("check", "finding", "subject", "words", "at")]
    if not isinstance(present, dict) or not isinstance(absent, list):
        return None
    sound = all(map(_is_identity, present.values())) and all(_is_path(path) for path in (*present, *absent))
    return Problem(**entry) if sound and all(isinstance(text, str) for text in texts) else None


def _is_identity(value: object) -> bool:
    return isinstance(value, list) and len(value) == IDENTITY_LENGTH and all(type(number) is int for number in value)


def _is_path(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) or {}
    except DamagedStateError:
        return {}


def read_times(paths: Paths) -> dict[str, str]:
    """When each thing was last read in full, by its name."""
    times = _read(paths.deep_check_times).get("read_at")
    if not isinstance(times, dict):
        return {}
    return {name: at for name, at in times.items() if isinstance(at, str)}


def limit_problems(problems: Iterable[Problem]) -> list[Problem]:
    """The first of each kind: what one run tells, and what later reports know of."""
    counts: dict[str, int] = {}
    kept = []
    for problem in problems:
        counts[problem.finding] = counts.get(problem.finding, 0) + 1
        if counts[problem.finding] <= MOST_OF_A_KIND:
            kept.append(problem)
    return kept


def write_problems(paths: Paths, problems: Iterable[Problem]) -> None:
    """Replace what is remembered."""
    kept = [problem._asdict() for problem in limit_problems(problems)]
    write_json(paths.deep_check, {"schema_version": SCHEMA_VERSION, "problems": kept})


def write_times(paths: Paths, times: dict[str, str]) -> None:
    write_json(paths.deep_check_times, {"schema_version": SCHEMA_VERSION, "read_at": times})


def forget(paths: Paths, subjects: Collection[str]) -> None:
    """What is known to be good again, because it was read just now, is remembered as damaged no longer."""
    problems = read_problems(paths)
    left = [problem for problem in problems if problem.check not in subjects and problem.subject not in subjects]
    if len(left) < len(problems):
        # Nobody's work depends on a cache.
        with suppress(OSError):
            write_problems(paths, left)
