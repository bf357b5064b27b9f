"""All benchmarks: one table, exit code 1 if a limit is missed.

$ .venv/bin/python -m benchmarks [--short]
"""

import sys
import tempfile
from pathlib import Path

from benchmarks import guard, loop, remotes, state_tracker, storage
from tests.state.building import SCRIPT, healthy


def measure_state_tracker() -> list[loop.Figure]:
    """The state report beside ``import click, json``."""
    loop.say("state report")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        healthy(base, state_tracker.VERSIONS)
        state_tracker.cpu_seconds([state_tracker.VENV_PYTHON, str(SCRIPT), "--base-dir", str(base)])
        ratios = state_tracker.measure(base)
    return [
        loop.median_figure(f"state_tracker.py {name}, CPU", values, "x import click, json", state_tracker.LIMITS[name])
        for name, values in ratios.items()
    ]


def main() -> int:
    """Measure everything; the short form holds what does not depend on a quiet machine."""
    short = loop.parse_short()
    # What a push sends is counted by tests/test_remotes.py, too.
    figures = [] if short else measure_state_tracker() + remotes.measure()
    figures += loop.measure(short=short) + storage.measure(short=short) + guard.measure(short=short)
    return loop.print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
