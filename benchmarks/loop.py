"""What the loop costs: the idle daemon, the take-up of a dropped file, and the training step.

$ .venv/bin/python -m benchmarks.loop [--short]

The daemon is a real one in a base dir of its own. It idles in an empty one first; then it trains a file and idles again
beside 1,000 completed files and 30 versions, where files are dropped too. CPU time is what the scheduler counted for
the process (/proc/PID/schedstat, in nanoseconds), memory what the kernel says of it. A file is taken up when it lies in
``queue/processing/``; the clock starts when its drop is complete: at the rename, or when a slow copy ends. Drops come
at random moments of the poll interval. For the training step see ``benchmarks.step``.

The short form leaves out what only a quiet machine can tell.
"""

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from benchmarks import step
from benchmarks.figures import VENV_PYTHON, Figure, median_figure, parse_short, print_figures, say
from guardrails.paths import CODE_DIR, Paths
from guardrails.queue_records import read_record, write_record
from guardrails.settings import Config
from guardrails.state_io import read_json, write_json
from guardrails.store.head import read_head
from tests.box import Box, make_rows

IDLE_SECONDS = 30.0
# Folders count as settled two seconds after their last change; one poll after that is the first idle one.
SETTLE_SECONDS = 5.0
COMPLETED_FILES = 1000
VERSIONS = 30
DROPS = 10
COPY_SECONDS = 3.0
PAIRS = 20
MOST_MEGABYTES = 60.0
MOST_CPU_PERCENT = 0.5
TAKE_UP_SPARE_SECONDS = 1.0
STEP_SPARE_SECONDS = 0.001
STEP_SPARE_SHARE = 0.02
HEAVY_LIBRARIES = ("torch", "transformers", "peft", "numpy", "safetensors", "tokenizers", "rich")

# The short form: what noise allows.
SHORT_IDLE_SECONDS = 6.0
SHORT_PAIRS = 5
SHORT_BLOCK_STEPS = 10
SHORT_CPU_PERCENT = 5.0
SHORT_STEP_SPARE_SECONDS = 0.005


def measure(*, short: bool = False) -> list[Figure]:
    """All figures of this module; a line on stderr before each part."""
    step.prepare_process()
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as trainers,
    ):
        folder = Path(name)
        model = folder / "tiny"
        say("making a tiny model")
        subprocess.run(
            [sys.executable, "-m", "guardrails.training.tiny_model", str(model)],
            cwd=CODE_DIR,
            check=True,
            capture_output=True,
        )
        poll_seconds = Config().poll_interval
        box = Box(folder / "base", model, poll_interval=poll_seconds)
        figures = [*measure_start(box), *measure_idle_daemon(box, short=short)]
        if not short:
            figures += measure_take_up(box, poll_seconds)
        figures += measure_step(trainers, folder, short=short)
    return figures


# The daemon


def measure_start(box: Box) -> list[Figure]:
    """What a start costs, and a look at an empty queue."""
    say("starting the daemon")
    once = [VENV_PYTHON, str(CODE_DIR / "training_daemon.py"), "--base-dir", str(box.paths.base), "--once"]
    # The first start hashes the base model, and compiles what was not compiled yet.
    children_seconds(once)
    seconds = [children_seconds(once) for _ in range(5)]
    began = time.monotonic()
    with running(box) as pid:
        started = time.monotonic() - began
        cpu = run_time(pid).seconds
    return [
        median_figure("--once with an empty queue, CPU", [value * 1000 for value in seconds], "ms"),
        Figure("daemon's start until it says so, by the clock", started * 1000, "ms"),
        Figure("daemon's start, CPU", cpu * 1000, "ms"),
    ]


def children_seconds(command: list[str]) -> float:
    """CPU time of one command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_idle_daemon(box: Box, *, short: bool) -> list[Figure]:
    """Memory and CPU of a daemon that waits, in an empty base dir, and after a run in a full one."""
    say("idle daemon")
    if short:
        with running(box) as pid:
            return idle_figures(pid, "idle daemon", SHORT_IDLE_SECONDS, SHORT_CPU_PERCENT)
    with running(box) as pid:
        figures = idle_figures(pid, "idle daemon", IDLE_SECONDS, MOST_CPU_PERCENT)
    say("idle daemon in a full base dir")
    with running(box) as pid:
        box.drop("first.jsonl")
        box.wait(
            lambda: box.names("completed") == ["first.jsonl"] and box.state()["state"] == "idle", "the first version"
        )
        fill(box.paths)
        figures += idle_figures(pid, "the same after a run, in a full base dir", IDLE_SECONDS, MOST_CPU_PERCENT)
    return figures


def idle_figures(pid: int, name: str, seconds: float, most_percent: float) -> list[Figure]:
    time.sleep(SETTLE_SECONDS)
    before = run_time(pid)
    began = time.monotonic()
    time.sleep(seconds)
    after = run_time(pid)
    elapsed = time.monotonic() - began
    used, wakes = after.seconds - before.seconds, after.turns - before.turns
    heavy = loaded_libraries(pid)
    if heavy:
        raise RuntimeError(f"the daemon loaded {', '.join(heavy)}")
    return [
        Figure(f"{name}, VmRSS", memory(pid, "status", "VmRSS"), "MB", MOST_MEGABYTES),
        Figure(f"{name}, Pss", memory(pid, "smaps_rollup", "Pss"), "MB"),
        Figure(f"{name}, CPU", used / elapsed * 100, "%", most_percent),
        Figure(f"{name}, a wake-up ({wakes / elapsed:.1f} a second)", used / max(wakes, 1) * 1000, "ms"),
    ]


class RunTime(NamedTuple):
    """CPU time of a process, and how often it was given the CPU."""

    seconds: float
    turns: int


def run_time(pid: int) -> RunTime:
    """Of all threads together; children are not counted."""
    threads = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return RunTime(sum(int(line[0]) for line in threads) / 1e9, sum(int(line[2]) for line in threads))


def memory(pid: int, file: str, key: str) -> float:
    """A value of /proc/PID/``file`` in MB of 1,000,000 bytes."""
    line = next(line for line in Path(f"/proc/{pid}/{file}").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024 / 1e6


def loaded_libraries(pid: int) -> list[str]:
    """Which of the heavy libraries have compiled parts in the process. Those without any are seen by their import."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [name for name in HEAVY_LIBRARIES if f"/site-packages/{name}/" in maps]


@contextmanager
def running(box: Box) -> Iterator[int]:
    """The pid of a daemon that has started; it is ended with the block."""
    process = box.start_daemon()
    try:
        yield process.pid
        process.terminate()
        box.wait_for_end()
    finally:
        box.close()


def fill(paths: Paths) -> None:
    """As if the one version and completed file had been many: copies of what the daemon left of them."""
    first = read_record(paths, "first.jsonl")
    metadata = read_json(paths.version("v001") / "metadata.json")
    assert first is not None
    assert metadata is not None
    for number in range(2, COMPLETED_FILES + 1):
        name = f"file {number}.jsonl"
        (paths.queue_folder("completed") / name).write_text("{}\n")
        write_record(paths, replace(first, name=name, original_name=name, arrival=number, blake3=f"{number:064x}"))
    for number in range(2, VERSIONS + 1):
        folder = paths.version(f"v{number:03d}")
        shutil.copytree(paths.version("v001"), folder)
        (folder / "metadata.json").unlink()
        write_json(folder / "metadata.json", {**metadata, "id": folder.name, "parent": f"v{number - 1:03d}"})
    newest = f"v{VERSIONS:03d}"
    write_json(paths.head, {**read_head(paths), "version": newest, "last_number": VERSIONS})


# Take-up


def measure_take_up(box: Box, poll_seconds: float) -> list[Figure]:
    """From a complete drop to processing; each run is skipped as soon as it is one."""
    say("dropping files")
    limit = poll_seconds + TAKE_UP_SPARE_SECONDS
    source = random.Random(5)
    figures = []
    with running(box):
        for name, drop in (("rename", drop_by_rename), ("slow copy", drop_by_slow_copy)):
            seconds = []
            for number in range(DROPS):
                time.sleep(source.uniform(0, poll_seconds))
                path = drop(box, f"{name} {number}.jsonl", source.randrange(1 << 30))
                began = time.monotonic()
                box.wait(lambda name=path.name: box.names("processing") == [name], "take-up")  # type: ignore[misc]
                seconds.append(time.monotonic() - began)
                box.wait(lambda: box.state()["run_id"], "a run")
                (box.paths.control / ".skip").touch()
                box.wait(lambda: not box.names("processing") and box.state()["state"] == "idle", "the skip")
            figures.append(Figure(f"take-up after a {name}, longest of {DROPS}", max(seconds), "s", limit))
            figures.append(median_figure(f"take-up after a {name}, median", seconds, "s"))
    return figures


def drop_by_rename(box: Box, name: str, seed: int) -> Path:
    return box.drop(name, seed=seed)


def drop_by_slow_copy(box: Box, name: str, seed: int) -> Path:
    """Row by row, as a slow network would; the file is open all the while."""
    path = box.paths.inbox / name
    rows = make_rows(20, seed)
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
            time.sleep(COPY_SECONDS / len(rows))
    return path


# The training step


def measure_step(trainers: Executor, folder: Path, *, short: bool) -> list[Figure]:
    """What the guarded loop adds to a step, in a process of its own; beside it, what two equal loops differ by."""
    if short:
        size = step.SMALL._replace(block_steps=SHORT_BLOCK_STEPS)
        return step_figures(trainers, folder, size, SHORT_PAIRS, SHORT_STEP_SPARE_SECONDS)
    figures = []
    for size in (step.SMALL, step.LARGE):
        figures += step_figures(trainers, folder, size, PAIRS, STEP_SPARE_SECONDS)
    say("the bare loop against itself")
    pairs = trainers.submit(step.measure_pairs, folder, step.SMALL, PAIRS, guarded=False).result()
    return [*figures, median_figure("two equal bare loops differ by", [value * 1000 for value in pairs.added], "ms")]


def step_figures(trainers: Executor, folder: Path, size: step.Size, count: int, spare: float) -> list[Figure]:
    say(f"{count} pairs of {size.block_steps} training steps of about {size.seconds * 1000:.0f} ms")
    pairs = trainers.submit(step.measure_pairs, folder, size, count).result()
    bare = pairs.step_seconds()
    added = median_figure(
        f"added to a step of {bare * 1000:.0f} ms, CPU ({count} pairs of {size.block_steps})",
        [value * 1000 for value in pairs.added],
        "ms",
        max(spare, STEP_SPARE_SHARE * bare) * 1000,
    )
    return [added, Figure("  the same, of the bare step", added.value / bare / 10, "%")]


if __name__ == "__main__":
    sys.exit(print_figures(measure(short=parse_short())))
