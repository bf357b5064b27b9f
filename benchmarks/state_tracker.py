"""What a state report costs, and whether that grows.

$ .venv/bin/python -m benchmarks.state_tracker

CPU is user plus system time of a command. Each figure compares two commands that were run in turns, so that whatever
else the machine does meets both alike: it is the median of the ratios, with its 95 % interval by order statistics.
Peers are compared by the clock, since some of theirs is waiting.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.figures import VENV_PYTHON, Figure, cpu_seconds, median_figure, print_figures, say
from benchmarks.peers import WEIGHTS, Dvc, Restic, Tool, is_installed
from tests.state.building import SCRIPT, BaseDir, healthy

PAIRS = 30
PEER_ROUNDS = 10
VERSIONS = 30
MANY_VERSIONS = 8000
COMPLETED_FILES = 100_000
GIGABYTE = 10**9
SMALL_GB, LARGE_GB = 1, 50
SYSTEM_PYTHON = "/usr/bin/python3"
BASELINE = [VENV_PYTHON, "-c", "import click, json"]
UNIT = "x import click, json"
MOST_GROWTH = 1.2
# The share of the fastest peer's time.
MOST_OF_PEERS = 1 / 3

PEERS: tuple[tuple[type[Tool], list[str]], ...] = (
    (Restic, ["restic", "-r", "repository", "snapshots"]),
    (Dvc, ["dvc", "status"]),
)


def measure() -> list[Figure]:
    """All figures; a line on stderr before each part."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        say(f"state report on {VERSIONS} versions")
        few = healthy(folder / "few", VERSIONS).base
        figures = [
            against_baseline("state_tracker.py --json, CPU", report(few, "--json"), 2.0),
            against_baseline("state_tracker.py --check, CPU", report(few, "--check"), 3.0),
        ]
        if os.access(SYSTEM_PYTHON, os.X_OK):
            figures.append(more_through_system_python(few))
        say(f"state report on {MANY_VERSIONS} versions")
        many = healthy(folder / "many", MANY_VERSIONS).base
        name = f"state_tracker.py --json with {MANY_VERSIONS} versions, CPU"
        figures.append(against_baseline(name, report(many, "--json"), 3.0))
        figures += [measure_bytes(folder), measure_completed(folder), *measure_peers(folder, few)]
    return figures


def report(base: Path, form: str, python: str = VENV_PYTHON) -> list[str]:
    """The command of a report, which one has been made before."""
    command = [python, str(SCRIPT), form, "--base-dir", str(base)]
    cpu_seconds(command)
    return command


def ratios(command: list[str], other: list[str]) -> list[float]:
    return [cpu_seconds(command) / cpu_seconds(other) for _ in range(PAIRS)]


def against_baseline(name: str, command: list[str], limit: float) -> Figure:
    return median_figure(name, ratios(command, BASELINE), UNIT, limit)


def more_through_system_python(base: Path) -> Figure:
    """What it costs that a script first finds its venv."""
    direct, found = report(base, "--json"), report(base, "--json", SYSTEM_PYTHON)
    values = [(cpu_seconds(found) - cpu_seconds(direct)) / cpu_seconds(BASELINE) for _ in range(PAIRS)]
    return median_figure("  more through the system's python3", values, UNIT, 0.4)


def measure_bytes(folder: Path) -> Figure:
    say(f"state report on models of {SMALL_GB} and {LARGE_GB} GB")
    small, large = (make_large(folder / f"{size} GB", size * GIGABYTE) for size in (SMALL_GB, LARGE_GB))
    values = ratios(report(large, "--json"), report(small, "--json"))
    return median_figure(f"a model of {LARGE_GB} GB, of {SMALL_GB} GB", values, "x CPU", MOST_GROWTH)


def make_large(folder: Path, size: int) -> Path:
    """A healthy base dir whose model, newest version and newest backup have weights of ``size`` bytes, all holes."""
    made = healthy(folder, VERSIONS)
    newest = f"v{VERSIONS:03d}"
    for tree in (made.paths.version(newest), made.paths.backups / f"b{VERSIONS:03d}"):
        os.truncate(tree / "model" / WEIGHTS, size)
        record = tree / "metadata.json"
        metadata = json.loads(record.read_text())
        for entry in metadata["files"]:
            if entry["path"] == WEIGHTS:
                entry["size"] = size
        record.write_text(json.dumps(metadata))
    os.truncate(made.paths.current_model / WEIGHTS, size)
    made.head(newest)
    return folder


def measure_completed(folder: Path) -> Figure:
    say(f"state report on {COMPLETED_FILES} completed files")
    few, many = (healthy(folder / name, VERSIONS) for name in ("few completed", "many completed"))
    completed = many.paths.queue_folder("completed")
    for number in range(COMPLETED_FILES):
        (completed / f"{number}.jsonl").touch()
    settle(completed)
    values = ratios(report(many.base, "--json"), report(few.base, "--json"))
    return median_figure(f"with {COMPLETED_FILES} completed files, of {VERSIONS}", values, "x CPU", MOST_GROWTH)


def settle(folder: Path) -> None:
    """A folder that changed just now is not remembered: wait until it counts."""
    time.sleep(max(0.0, folder.stat().st_mtime + 3 - time.time()))


def measure_peers(folder: Path, base: Path) -> list[Figure]:
    """What a report takes, of the time of the fastest peer that says what it has."""
    saved = BaseDir(base)
    tools: dict[str, Callable[[], object]] = {}
    for kind, command in PEERS:
        if not is_installed(kind):
            continue
        say(f"{' '.join(command)} on {VERSIONS} versions")
        tool = kind(folder / kind.name)
        for number in range(1, VERSIONS + 1):
            tool.live.mkdir(exist_ok=True)
            (tool.live / WEIGHTS).write_bytes((saved.paths.version(f"v{number:03d}") / "model" / WEIGHTS).read_bytes())
            tool.save()
        tools[f"{kind.name} {command[-1]}"] = partial(tool.call, *command)
    if not tools:
        return []
    own_command = report(base, "--check")
    tools["state_tracker.py --check"] = partial(subprocess.run, own_command, stdout=subprocess.DEVNULL, check=True)
    times: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(PEER_ROUNDS):
        for name, run in tools.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    own = times.pop("state_tracker.py --check")
    fastest = min(times, key=lambda name: statistics.median(times[name]))
    values = [one / other for one, other in zip(own, times[fastest], strict=True)]
    return [
        *(median_figure(name, seconds, "s") for name, seconds in times.items()),
        median_figure(f"state_tracker.py --check, of {fastest}", values, "x", MOST_OF_PEERS),
    ]


if __name__ == "__main__":
    sys.exit(print_figures(measure()))
