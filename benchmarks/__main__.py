"""All benchmarks: a table for each as it ends, exit code 1 if a limit is missed.

$ .venv/bin/python -m benchmarks [--short]
"""

import sys

from benchmarks import guard, loop, remotes, state_tracker, storage
from benchmarks.figures import parse_short, print_figures


def main() -> int:
    """Measure everything; the short form holds what does not depend on a quiet machine."""
    short = parse_short()
    missed = 0
    if not short:
        missed |= print_figures(state_tracker.measure())
        # What a push sends is counted by tests/test_remotes.py, too.
        missed |= print_figures(remotes.measure())
    missed |= print_figures(loop.measure(short=short))
    missed |= print_figures(storage.measure(short=short))
    missed |= print_figures(guard.measure(short=short))
    return missed


if __name__ == "__main__":
    sys.exit(main())
