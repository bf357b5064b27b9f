"""What a state report costs: CPU time against ``python -c 'import click, json'``, measured side by side.

Pairs are interleaved, so that whatever else the machine does meets both sides alike. The figure is the median of the
ratios of user plus system time, with its 95 % interval by order statistics.
"""

import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

from guardrails.paths import CODE_DIR
from tests.state.building import SCRIPT, healthy

REPEATS = 30
VERSIONS = 30
VENV_PYTHON = str(CODE_DIR / ".venv/bin/python")
SYSTEM_PYTHON = "/usr/bin/python3"
BASELINE = [VENV_PYTHON, "-c", "import click, json"]
LIMITS = {"--json": 2.0, "--check": 3.0, "more through the system's python3": 0.4}


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


def measure(base: Path) -> dict[str, list[float]]:
    """The ratios of ``REPEATS`` rounds, by the name of their limit."""

    def tracker(python: str, form: str) -> list[str]:
        return [python, str(SCRIPT), form, "--base-dir", str(base)]

    has_system_python = os.access(SYSTEM_PYTHON, os.X_OK)
    ratios: dict[str, list[float]] = {name: [] for name in LIMITS}
    for _ in range(REPEATS):
        for form in ("--json", "--check"):
            ratios[form].append(cpu_seconds(tracker(VENV_PYTHON, form)) / cpu_seconds(BASELINE))
        if has_system_python:
            more = cpu_seconds(tracker(SYSTEM_PYTHON, "--json")) - cpu_seconds(tracker(VENV_PYTHON, "--json"))
            ratios["more through the system's python3"].append(more / cpu_seconds(BASELINE))
    return {name: values for name, values in ratios.items() if values}


def main() -> int:
    """Print the figures; 1 if one is over its limit."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        healthy(base, VERSIONS)
        cpu_seconds([VENV_PYTHON, str(SCRIPT), "--base-dir", str(base)])
        ratios = measure(base)
    missed = False
    print(f"state_tracker.py with {VERSIONS} versions and backups, CPU against import click, json ({REPEATS} pairs):")
    for name, values in ratios.items():
        median, low, high = median_interval(values)
        missed |= median > LIMITS[name]
        print(f"  {name}: {median:.2f} [{low:.2f}, {high:.2f}], limit {LIMITS[name]:.1f}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
