"""What the loop and the versions cost, as far as a busy machine can tell; ``make bench`` measures the rest."""

import subprocess
import sys

import pytest

from benchmarks.loop import HEAVY_LIBRARIES
from benchmarks.step import LARGE, WARM_UP_STEPS, compare
from guardrails.paths import CODE_DIR

LIMITED = (
    "idle daemon, VmRSS",
    "idle daemon, CPU",
    "added to a step",
    "growth of models/versions/",
    "create, memory",
    "restore, memory",
    "verify --all, memory",
    "list with",
    "list --json with",
    "create with",
    "safety: cells of this toolkit that are not whole",
    "guard: destructive calls that pass",
    "guard: harmless calls that are stopped",
    "guard: a call, CPU",
    "guard: a read-only command, CPU",
    "guard: sh with a script",
    "guard: python3 with a script",
)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=CODE_DIR, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("module", ["guardrails.daemon", "training_daemon"])
def test_the_daemon_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(name for name in {HEAVY_LIBRARIES} if name in sys.modules))"
    result = run_python("-c", code)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result


@pytest.mark.training
def test_the_short_benchmarks_hold_their_limits() -> None:
    result = run_python("-m", "benchmarks", "--short")
    assert result.returncode == 0, result
    lines = result.stdout.splitlines()
    verdicts = {name: [line.split()[-1] for line in lines if line.startswith(name)] for name in LIMITED}
    assert verdicts == {name: ["ok"] for name in LIMITED}, result.stdout


def test_pairs_compare_means_of_blocks_after_the_warm_up() -> None:
    warm_up, bare, other = [9.0] * WARM_UP_STEPS, [1.0, 3.0, 5.0, 5.0], [2.0, 4.0, 5.0, 6.0]
    pairs = compare(warm_up + bare, warm_up + other, block_steps=2)
    assert pairs.bare == [2.0, 5.0]
    assert pairs.added == [1.0, 0.5]
    assert pairs.step_seconds() == 3.5
    # A block holds a log, or its cost would not show.
    assert LARGE.block_steps >= 10
