"""Whatever becomes of a report, there is a whole document: the last one or the new one."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guardrails.paths import CODE_DIR, Paths
from guardrails.report.schema import SystemState
from tests.state.building import healthy
from tests.warm import Done, Warm

RENAMES = ("rename", "renameat", "renameat2")
WRITES = ("openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "ftruncate", "mkdir", "chmod", "fchmod")
CALLS = (*RENAMES, *WRITES, "link", "linkat", "unlink", "unlinkat", "utimensat", "fallocate")
KILL, FULL, BAD = "signal=KILL", "error=ENOSPC", "error=EIO"
# Of each base dir and failure, in the quick suite.
SAMPLED = 4
COMMAND = ("state_tracker.py", "--json")
WRITER = """
import sys
from pathlib import Path
from guardrails.paths import Paths
from guardrails.report.document import update_document
for number in range(1000):
    update_document(Paths(Path(sys.argv[1])))
"""


def make_base(folder: Path, kind: str, warm: Warm) -> Path:
    """A base dir whose next report writes all that reports write: the first one, or one after which much changed."""
    box = healthy(folder, 3)
    if kind == "later":
        assert warm.run(box.paths, *COMMAND).code == 0
        box.version(4)
        box.paths.emergency_stop.touch()
    return folder


def assert_whole(done: Done, versions: int) -> None:
    """A command that printed a document, of that many versions, in which nothing was damaged."""
    assert done.code == 0, done
    document = SystemState.model_validate_json(done.stdout)
    damaged = [detail.id for detail in document.warning_details if "damaged" in detail.id or "unreadable" in detail.id]
    assert (len(document.versions), damaged) == (versions, [])


def fail(folder: Path, warm: Warm, kind: str, failure: str, sample: int | None) -> None:
    base = make_base(folder / "base", kind, warm)
    paths = Paths(base)
    old = paths.system_state.read_bytes() if kind == "later" else None
    versions = 4 if kind == "later" else 3
    counted = Paths(Path(shutil.copytree(base, folder / "counted")))
    points = warm.list_points(counted, *COMMAND, calls=CALLS, log=folder / "log")
    assert len(points) > 10
    for point in random.Random(f"{kind} {failure}").sample(points, sample or len(points)):
        there = Paths(Path(shutil.copytree(base, folder / "failed")))
        done = warm.run_failed(there, *COMMAND, point=point, failure=failure)
        try:
            if failure == KILL:
                assert done.code == 137, done
                assert done.stdout == "" or SystemState.model_validate_json(done.stdout)
            else:
                assert_whole(done, versions)
                assert "Traceback" not in done.stderr, done
            left = there.system_state.read_bytes() if there.system_state.exists() else None
            assert left == old or SystemState.model_validate_json(left or b"")
            assert_whole(warm.run(there, *COMMAND), versions)
            SystemState.model_validate_json(there.system_state.read_bytes())
        except BaseException as error:
            error.add_note(f"{failure} at the {point.number}. {point.call}({point.arguments})")
            raise
        shutil.rmtree(there.base)


@pytest.mark.parametrize("kind", ["first", "later"])
@pytest.mark.parametrize("failure", [KILL, FULL, BAD])
def test_a_fault_at_some_system_calls_leaves_a_whole_document(
    tmp_path: Path, warm: Warm, kind: str, failure: str
) -> None:
    fail(tmp_path, warm, kind, failure, SAMPLED)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["first", "later"])
@pytest.mark.parametrize("failure", [KILL, FULL, BAD])
def test_a_fault_at_every_system_call_leaves_a_whole_document(
    tmp_path: Path, warm: Warm, kind: str, failure: str
) -> None:
    fail(tmp_path, warm, kind, failure, None)


def test_readers_during_a_thousand_writes_see_a_whole_document_each_time(tmp_path: Path) -> None:
    path = healthy(tmp_path, 3).paths.system_state
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=CODE_DIR)
    keys, seen = set(SystemState.model_fields), set()
    while writer.poll() is None:
        if path.exists():
            content = path.read_bytes()
            assert json.loads(content).keys() == keys
            seen.add(path.stat().st_mtime_ns)
    assert writer.returncode == 0
    assert len(seen) > 100
