"""What all benchmarks share: a figure beside its limit, the CPU time of a command, the command line."""

import argparse
import math
import os
import statistics
import sys
from typing import NamedTuple

from guardrails.cli import print_table
from guardrails.paths import CODE_DIR

VENV_PYTHON = str(CODE_DIR / ".venv/bin/python")


class Figure(NamedTuple):
    """One measured number beside its limit (None: none is set); ``interval`` is the 95 % one of a median."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    interval: tuple[float, float] | None = None

    def is_missed(self) -> bool:
        return self.limit is not None and self.value > self.limit

    def row(self) -> list[str]:
        interval = "[{:.2f}, {:.2f}]".format(*self.interval) if self.interval else ""
        limit = "" if self.limit is None else f"{self.limit:.2f}"
        verdict = "" if self.limit is None else "MISSED" if self.is_missed() else "ok"
        return [self.name, f"{self.value:.2f}", interval, limit, self.unit, verdict]


def print_figures(figures: list[Figure]) -> int:
    """The table; 1 if a limit was missed."""
    columns = ["FIGURE", "VALUE", "95 % INTERVAL", "LIMIT", "UNIT", "VERDICT"]
    print_table(columns, [figure.row() for figure in figures], right=["VALUE", "LIMIT"])
    return int(any(figure.is_missed() for figure in figures))


def median_figure(name: str, values: list[float], unit: str, limit: float | None = None) -> Figure:
    median, low, high = median_interval(values)
    return Figure(name, median, unit, limit, (low, high))


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one command, its children that it waited for included."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{command} failed")
    return usage.ru_utime + usage.ru_stime


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval, without assuming a distribution."""
    ordered = sorted(values)
    spread = 1.96 * math.sqrt(len(ordered)) / 2
    low = max(0, math.floor(len(ordered) / 2 - spread))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + spread))
    return statistics.median(ordered), ordered[low], ordered[high]


def say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def parse_short() -> bool:
    """Whether the command line asks for the short form."""
    parser = argparse.ArgumentParser(description="Measure what the toolkit costs; exit code 1 if a limit is missed.")
    parser.add_argument("--short", action="store_true", help="only what holds on a busy machine, in seconds")
    return bool(parser.parse_args().short)
