"""All benchmarks: one table, exit code 1 if a limit is missed.

$ .venv/bin/python -m benchmarks [--short]
"""

import sys

from benchmarks import guard, loop, remotes, state_tracker, storage
from benchmarks.figures import parse_short, print_figures


def main() -> int:
    """Measure everything; the short form holds what does not depend on a quiet machine."""
    short = parse_short()
    # What a push sends is counted by tests/test_remotes.py, too.
    figures = [] if short else state_tracker.measure() + remotes.measure()
    figures += loop.measure(short=short) + storage.measure(short=short) + guard.measure(short=short)
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
