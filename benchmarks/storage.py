"""What versions cost, beside the tools that people keep versions with; what they survive is in ``benchmarks.safety``.

$ .venv/bin/python -m benchmarks.storage [--short] [--folder DIR] [--gb 2]

The model is a tree of 2 GB of which 0.9 GB changes, random bytes in valid safetensors files. Each time is one run of
the command line, process start and a ``sync`` after it included; the source lies in the page cache. The toolkit and a
peer take turns, and the figure is the median of the ratios of the rounds. Versions are made by the real commands, but
thousands of them by copying metadata and linking files.

Peers (rsync, restic and borgbackup of the distribution, dvc of the package index) are found on the PATH; one that is
missing is named. The folder should be on a real disk; 20 times the tree has to be free.

The short form has a small tree and leaves out what only a quiet machine can tell, and the peers.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from benchmarks import safety
from benchmarks.figures import VENV_PYTHON, Figure, cpu_seconds, median_figure, print_figures, say
from benchmarks.peers import PEERS, WEIGHTS, Borg, Dvc, Restic, Rsync, Toolkit, is_installed
from guardrails.filesystem import free_bytes, remove_tree
from guardrails.manifest import hash_file
from guardrails.paths import Paths
from guardrails.state_io import dump_json, read_json, write_json
from guardrails.store.head import read_head
from guardrails.store.versions import FOLDER_MODE
from tests.store import make_store, safetensors

GIGABYTE = 1_000_000_000
ROUNDS = 5
PEER_ROUNDS = 3
# Of what is short, or as noisy as the disk.
MORE_ROUNDS = 11
CHANGING_SHARE = 0.45
LARGER = 4
FREE_SHARE = 20
MANY, FEW = 8000, 10
BLOCK_BYTES = 8 << 20

FIRST_LIMIT = CHANGED_LIMIT = RESTORE_LIMIT = 1.2
UNCHANGED_SECONDS = 0.4
GROWTH_LIMIT = 1.01
LINE_SECONDS = 0.5
LARGER_LIMIT = 1.2
OF_FASTEST_PEER = 1 / 5
VERIFY_LIMIT = 2.0
MOST_MEGABYTES = 150.0
# Of the same with a few versions: factor and seconds more.
MANY_LIMITS = {
    "list": (1.5, 0.2, "s CPU"),
    "list --json": (1.5, 0.2, "s CPU"),
    "create": (1.5, 0.2, "s CPU"),
    "rollback": (1.2, 0.05, "s"),
}
# Time stamps of files that rested this long are trusted.
REST_SECONDS = 0.2

SHORT_GIGABYTES = 0.06
SHORT_MANY = 1000
SHORT_PAIRS = 1

# What hashing every file once takes at least, with the same library.
BARE_BLAKE3 = """
import sys
from blake3 import blake3
buffer = memoryview(bytearray(8 << 20))
for path in sys.argv[1:]:
    hasher = blake3(max_threads=blake3.AUTO)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
"""


def measure(*, short: bool = False, folder: Path | None = None, gigabytes: float = 2.0) -> list[Figure]:
    """All figures of this module; the safety table is printed, with a line on stderr before each part."""
    size = int((SHORT_GIGABYTES if short else gigabytes) * GIGABYTE)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        if free_bytes(scratch) < FREE_SHARE * size:
            raise SystemExit(f"error: {scratch} has no {FREE_SHARE * size / GIGABYTE:.0f} GB free\nhint: --folder DIR")
        if short:
            return [
                *measure_growth_and_memory(scratch, size),
                *measure_many_versions(scratch, SHORT_MANY, SHORT_PAIRS, rollbacks=0),
                *safety.measure(scratch / "safety", ()),
            ]
        figures = measure_saving(scratch, size)
        of_peers, fastest = measure_peers(scratch, size)
        figures += of_peers
        figures += measure_going_back(scratch, size, fastest)
        figures += measure_many_versions(scratch, MANY, MORE_ROUNDS, rollbacks=MORE_ROUNDS)
        return figures + safety.measure(scratch / "safety", PEERS)


# Models


def write_model(folder: Path, size: int, seed: int) -> None:
    """A tree of ``size`` bytes; only its weights depend on ``seed``."""
    folder.mkdir()
    write_weights(folder, size, seed)
    rest = size - int(size * CHANGING_SHARE)
    write_random(folder / "embeddings.safetensors", rest * 9 // 10, 0)
    write_random(folder / "optimizer.safetensors", rest // 10, 0)
    (folder / "adapter_config.json").write_text('{"r": 16}')


def write_weights(folder: Path, size: int, seed: int) -> None:
    """New weights under a new inode, as a careful trainer writes them; at rest when it returns."""
    write_random(folder / "new", int(size * CHANGING_SHARE), seed)
    (folder / "new").rename(folder / WEIGHTS)
    time.sleep(REST_SECONDS)


def write_random(path: Path, size: int, seed: int) -> None:
    """A valid safetensors file of about ``size`` bytes that nothing compresses."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    source = blake3(seed.to_bytes(8, "big"))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, size, BLOCK_BYTES):
            file.write(source.digest(length=min(BLOCK_BYTES, size - start), seek=start))


def disk_bytes(folder: Path) -> int:
    """Blocks that a tree takes on the disk, each inode once."""
    stats = [path.lstat() for path in (folder, *folder.rglob("*"))]
    return sum({status.st_ino: status.st_blocks * 512 for status in stats}.values())


# Clocks


def clock(action: Callable[[], object]) -> float:
    """Seconds until all that it wrote is on the disk; what was written before is there already."""
    os.sync()
    began = time.monotonic()
    action()
    os.sync()
    return time.monotonic() - began


def clock_both(turn: int, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Both, one after the other; every second turn the other one first."""
    if turn % 2:
        second = clock(theirs)
        return clock(ours), second
    return clock(ours), clock(theirs)


def ratio_figure(name: str, pairs: list[tuple[float, float]], unit: str, limit: float) -> Figure:
    """The first of each pair against the second, pair by pair."""
    seconds = statistics.median(ours for ours, _ in pairs)
    return median_figure(f"{name} ({seconds:.2f} s)", [ours / theirs for ours, theirs in pairs], unit, limit)


def peak_megabytes(command: list[str]) -> float:
    """The most memory that a command held at once; this process's own counts at least."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command} failed")
    return usage.ru_maxrss * 1024 / 1e6


class Rollback(NamedTuple):
    """Seconds from the start of the process to what it says, to what others see, and to its end with a sync."""

    line: float
    exchange: float
    end: float


def clock_rollback(toolkit: Toolkit) -> Rollback:
    """One ``rollback``, watched from outside for the moment when ``current_model/`` becomes another folder."""
    inode = toolkit.live.stat().st_ino
    said: list[float] = []
    seen: list[float] = []
    os.sync()
    began = time.monotonic()

    def watch() -> None:
        while toolkit.live.stat().st_ino == inode and process.poll() is None:
            time.sleep(0.002)
        seen.append(time.monotonic() - began)

    with subprocess.Popen(toolkit.versioner("rollback"), stdout=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stdout is not None
        said.extend(time.monotonic() - began for line in process.stdout if line.startswith("current_model/ is v"))
        watcher.join()
    os.sync()
    if process.returncode != 0 or not said:
        raise RuntimeError(f"rollback in {toolkit.folder} failed")
    return Rollback(said[0], seen[0], time.monotonic() - began)


def drop_caches(files: list[Path]) -> None:
    """So that they are read from the disk next: all caches where this user may, else those of the files."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# Saving


def measure_saving(scratch: Path, size: int) -> list[Figure]:
    """``create``: of a first model, of changed weights, and of nothing changed."""
    first, changed, growth, unchanged = [], [], [], []
    has_rsync = is_installed(Rsync)
    for turn in range(ROUNDS):
        say(f"saving versions, round {turn + 1} of {ROUNDS}")
        toolkit, copies = Toolkit(scratch / "base"), scratch / "copies"
        create, live = partial(toolkit.version, "create"), toolkit.live
        copies.mkdir()
        write_model(live, size, turn)
        first.append(clock_both(turn, create, partial(toolkit.call, "cp", "-a", live, copies / "1")))
        write_weights(live, size, turn + ROUNDS)
        before = disk_bytes(toolkit.paths.versions)
        if has_rsync:
            rsync = partial(toolkit.call, "rsync", "-a", f"--link-dest={copies}/1", f"{live}/", copies / "2")
            changed.append(clock_both(turn, create, rsync))
        else:
            create()
        growth.append((disk_bytes(toolkit.paths.versions) - before) / weight_bytes(toolkit))
        unchanged += [clock(create) for _ in range(3)]
        shutil.rmtree(toolkit.folder)
        shutil.rmtree(copies)
    return [
        ratio_figure("create, first version", first, "x cp -a", FIRST_LIMIT),
        *([ratio_figure("create, changed", changed, "x rsync", CHANGED_LIMIT)] if has_rsync else []),
        median_figure("create, unchanged", unchanged, "s", UNCHANGED_SECONDS),
        Figure("growth of models/versions/", max(growth), "x changed", GROWTH_LIMIT),
    ]


def weight_bytes(toolkit: Toolkit) -> int:
    return (toolkit.live / WEIGHTS).stat().st_size


def measure_growth_and_memory(scratch: Path, size: int) -> list[Figure]:
    """What a busy machine can tell of saving, going back and verifying."""
    say("saving a small model")
    toolkit = Toolkit(scratch / "small")
    write_model(toolkit.live, size, 1)
    toolkit.version("create")
    write_weights(toolkit.live, size, 2)
    before = disk_bytes(toolkit.paths.versions)
    create = peak_megabytes(toolkit.versioner("create"))
    growth = (disk_bytes(toolkit.paths.versions) - before) / weight_bytes(toolkit)
    return [
        Figure("growth of models/versions/", growth, "x changed", GROWTH_LIMIT),
        Figure("create, memory", create, "MB", MOST_MEGABYTES),
        Figure("restore, memory", peak_megabytes(toolkit.versioner("restore", "v001")), "MB", MOST_MEGABYTES),
        *measure_verify(toolkit, rounds=0),
    ]


# Going back


def start_with_two_versions(folder: Path, size: int) -> Toolkit:
    """As after a training: v002 is current, and v001, which it came from, is the retired tree."""
    toolkit = Toolkit(folder)
    write_model(toolkit.live, size, 1)
    toolkit.version("create")
    write_weights(toolkit.live, size, 2)
    toolkit.version("create")
    toolkit.version("restore", "v001")
    toolkit.version("rollback")
    return toolkit


def measure_going_back(scratch: Path, size: int, fastest_peer: float | None) -> list[Figure]:
    """``rollback`` at two sizes, ``restore`` of what has to be copied, and ``verify``."""
    say("making models to roll back")
    toolkit = start_with_two_versions(scratch / "base", size)
    larger = start_with_two_versions(scratch / "larger", LARGER * size)
    pairs = []
    for turn in range(MORE_ROUNDS):
        say(f"rolling back, round {turn + 1} of {MORE_ROUNDS}")
        pairs.append((clock_rollback(toolkit), clock_rollback(larger)))
        toolkit.version("restore", "v002")
        larger.version("restore", "v002")
    shutil.rmtree(larger.folder)
    name = f"rollback at {size / GIGABYTE:g} GB"
    ends = [small.end for small, _ in pairs]
    figures = [
        median_figure(f"{name}, until it says so", [small.line for small, _ in pairs], "s", LINE_SECONDS),
        median_figure(f"{name}, until others see it", [small.exchange for small, _ in pairs], "s", LINE_SECONDS),
        median_figure(
            f"the same at {LARGER} times the size",
            [large.line / small.line for small, large in pairs],
            "x",
            LARGER_LIMIT,
        ),
        median_figure(f"{name}, to the end", ends, "s"),
    ]
    if fastest_peer is not None:
        of_peer = statistics.median(ends) / fastest_peer
        figures.append(Figure(f"{name}, to the end", of_peer, "x fastest checking peer", OF_FASTEST_PEER))
    figures += measure_restore(toolkit, size)
    figures += measure_verify(toolkit, ROUNDS)
    shutil.rmtree(toolkit.folder)
    return figures


def measure_restore(toolkit: Toolkit, size: int) -> list[Figure]:
    """``restore`` of a version that is not the retired tree, in place and to a folder, beside ``cp -a``."""
    write_weights(toolkit.live, size, 3)
    toolkit.version("create")
    there = toolkit.folder / "there"
    return [
        ratio_figure(name, clock_restores(toolkit, name, there, *options), "x cp -a", RESTORE_LIMIT)
        for name, options in (("restore of an older version", []), ("restore --target", ["--target", str(there)]))
    ]


def clock_restores(toolkit: Toolkit, name: str, there: Path, *options: str) -> list[tuple[float, float]]:
    copied = toolkit.folder / "copied"
    pairs = []
    for turn in range(MORE_ROUNDS):
        say(f"{name}, round {turn + 1} of {MORE_ROUNDS}")
        # Never the one that was current before.
        version = f"v{(1 - turn) % 3 + 1:03d}"
        model = toolkit.paths.version(version) / "model"
        # Both find it in the page cache, whoever comes first.
        for path in model.iterdir():
            hash_file(path)
        ours = partial(toolkit.version, "restore", version, *options)
        pairs.append(clock_both(turn, ours, partial(toolkit.call, "cp", "-a", model, copied)))
        # Both at once: a disk may write much faster where it has just freed something.
        for path in (there, copied):
            remove_tree(path)
    return pairs


def measure_verify(toolkit: Toolkit, rounds: int) -> list[Figure]:
    """``verify --all`` beside bare BLAKE3 over the same files, both from the disk."""
    verify = toolkit.versioner("verify", "--all")
    files = list({path.stat().st_ino: path for path in toolkit.paths.versions.glob("*/model/*")}.values())
    bare = [VENV_PYTHON, "-c", BARE_BLAKE3, *map(str, files)]
    pairs = []
    for turn in range(rounds):
        say(f"verifying, round {turn + 1} of {rounds}")
        drop_caches(files)
        ours = clock(partial(toolkit.call, *verify))
        drop_caches(files)
        pairs.append((ours, clock(partial(toolkit.call, *bare))))
    figures = [ratio_figure("verify --all", pairs, "x BLAKE3", VERIFY_LIMIT)] if pairs else []
    return [*figures, Figure("verify --all, memory", peak_megabytes(verify), "MB", MOST_MEGABYTES)]


def measure_peers(scratch: Path, size: int) -> tuple[list[Figure], float | None]:
    """What saving and going back takes with tools that keep a store; the shortest way back that checks the bytes."""
    figures, checked = [], []
    for peer in filter(is_installed, (Restic, Borg, Dvc)):
        say(f"{peer.name}")
        tool = peer(scratch / "peer")
        write_model(tool.live, size, 1)
        first = clock(tool.save)
        write_weights(tool.live, size, 2)
        changed = clock(tool.save)
        back = []
        for turn in range(PEER_ROUNDS):
            back.append(clock(tool.restore))
            write_weights(tool.live, size, 3 + turn)
        figures += [
            Figure(f"  {peer.name}, first save", first, "s"),
            Figure(f"  {peer.name}, changed", changed, "s"),
            median_figure(f"  {peer.name}, back to the first", back, "s"),
        ]
        if peer is not Dvc:
            checked.append(statistics.median(back))
        shutil.rmtree(tool.folder)
    return figures, min(checked, default=None)


# Thousands of versions


def measure_many_versions(scratch: Path, many: int, pairs: int, rollbacks: int) -> list[Figure]:
    """``list``, ``create`` and ``rollback`` with thousands of versions beside the same with a few."""
    say(f"making {many} versions")
    tools = [Toolkit(scratch / name) for name in ("few", "many")]
    for tool in tools:
        make_store(tool.folder, FEW)
    multiply_versions(tools[1].paths, many)
    # An index of versions may be made by the first command that writes, once the stamps are old enough to be trusted.
    time.sleep(REST_SECONDS)
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in ("list", "list --json", "create", "rollback")}
    for turn in range(-1, pairs):
        say(f"listing and creating, round {turn + 1} of {pairs}")
        for name in ("create", "list", "list --json"):
            for tool, values in zip(tools, seconds[name], strict=True):
                (tool.live / WEIGHTS).write_bytes(safetensors(f"{turn}".encode() * 5000))
                value = cpu_seconds(tool.versioner(*name.split()))
                if turn >= 0:
                    values.append(value)
    for tool in tools:
        if rollbacks:
            tool.version("rollback")
    for _ in range(rollbacks):
        for tool, values in zip(tools, seconds["rollback"], strict=True):
            version = read_head(tool.paths)["version"]
            values.append(clock_rollback(tool).line)
            tool.version("restore", version)
    figures = []
    for name, (few, more) in seconds.items():
        if few:
            factor, spare, unit = MANY_LIMITS[name]
            limit = factor * statistics.median(few) + spare
            figures.append(median_figure(f"{name} with {many} versions", more, unit, limit))
    for tool in tools:
        shutil.rmtree(tool.folder)
    return figures


def multiply_versions(paths: Paths, count: int) -> None:
    """As if training had gone on: the newest version's metadata under later ids, its files by hard link."""
    newest = read_head(paths)["version"]
    metadata = read_json(paths.version(newest) / "metadata.json")
    assert metadata is not None
    for number in range(int(newest[1:]) + 1, count + 1):
        folder = paths.version(f"v{number:03d}")
        (folder / "model").mkdir(parents=True)
        for entry in metadata["files"]:
            os.link(paths.version(newest) / "model" / entry["path"], folder / "model" / entry["path"])
        (folder / "model").chmod(FOLDER_MODE)
        data = [{**metadata["data"][0], "name": f"{number}.jsonl", "blake3": f"{number:064x}"}]
        parent = f"v{number - 1:03d}"
        own = {"id": folder.name, "parent": parent, "run_id": f"{metadata['run_id']}-{number}", "data": data}
        (folder / "metadata.json").write_text(dump_json({**metadata, **own}) + "\n")
    write_json(paths.head, {**read_head(paths), "version": f"v{count:03d}", "last_number": count})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what versions cost; exit code 1 if a limit is missed.")
    parser.add_argument("--short", action="store_true", help="only what holds on a busy machine, in seconds")
    parser.add_argument("--folder", type=Path, help="where to work, on a real disk; else the temporary folder")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the model (2)")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(print_figures(measure(short=arguments.short, folder=arguments.folder, gigabytes=arguments.gb)))
