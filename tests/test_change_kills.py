"""A kill at any system call of a change: one whole model, no version lost, and the next command finishes it."""

import random
from pathlib import Path

import pytest

from guardrails.backups import list_backup_ids, verify_backup
from guardrails.change import open_store, say_nothing
from guardrails.head import read_head
from guardrails.live_model import publish_run, restore
from guardrails.manifest import find_damage
from guardrails.paths import Paths
from guardrails.queue_records import processing
from guardrails.versions import list_version_ids, read_metadata
from tests.processes import count_calls, run_killed
from tests.store import WEIGHTS, make_run, make_store, weights_of

CALLS = (
    "rename",
    "renameat2",
    "link",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "fsync",
    "syncfs",
    "write",
    "fchmodat",
    "chmod",
)
SAMPLE = 8
HEADER = "import sys; from pathlib import Path; from guardrails.paths import Paths; paths = Paths(Path(sys.argv[1]));"
QUIET = "say = lambda line: None;"
COMMANDS = {
    "rollback": "from guardrails.live_model import rollback; rollback(paths, say)",
    "restore": "from guardrails.live_model import restore; restore(paths, 'v001', say)",
    "publish": (
        "from guardrails.live_model import publish_run; from guardrails.queue_records import processing;"
        "publish_run(paths, processing(paths), say)"
    ),
    "by hand": "from guardrails.live_model import rollback; rollback(paths, say)",
    "backup": "from guardrails.model_backups import back_up_version; back_up_version(paths, 'v003')",
}


def prepare(base: Path, command: str) -> Paths:
    """A store in which the command has work to do."""
    paths = make_store(base, versions=3)
    if command == "by hand":
        (paths.current_model / "notes").write_text("by hand")
    if command == "publish":
        make_run(paths, 4)
    return paths


def assert_nothing_lost(paths: Paths, command: str) -> None:
    """``current_model/`` is one whole model; after the next command all is in order again."""
    live = weights_of(paths.current_model) if paths.current_model.exists() else b""
    known = {weights_of(paths.version(version) / "model") for version in list_version_ids(paths)}
    # Only between the two steps of a first start can it be missing; here it never is.
    assert live in known, command
    if command == "publish":
        record = processing(paths)
        assert record is not None
        publish_run(paths, record, say_nothing)
        assert list_version_ids(paths) == ["v001", "v002", "v003", "v004"]
        assert read_head(paths)["version"] == "v004"
    else:
        with open_store(paths, "next"):
            pass
    assert not paths.intent.exists()
    for version in list_version_ids(paths):
        assert find_damage(paths.version(version) / "model", read_metadata(paths, version)["files"]) == []
    for backup in list_backup_ids(paths.backups):
        assert verify_backup(paths.backups, backup) == []
    assert not [path for path in paths.models.rglob("*") if path.name.startswith(".stage-") or ".tmp-" in path.name]
    if command == "by hand":
        kept = [*paths.versions.glob("*/model/notes"), paths.current_model / "notes"]
        assert any(path.exists() for path in kept)
    restore(paths, "v002", say_nothing)
    assert find_damage(paths.current_model, read_metadata(paths, "v002")["files"]) == []


def points(tmp_path: Path, command: str) -> list[tuple[str, int]]:
    """Every changing system call that the command makes."""
    paths = prepare(tmp_path / "counting", command)
    code = HEADER + QUIET + COMMANDS[command]
    counts = count_calls(code, paths.base, calls=CALLS, log=tmp_path / "calls")
    assert counts["fsync"] > 3
    return [(call, number) for call, count in counts.items() for number in range(1, count + 1)]


def kill_at(tmp_path: Path, command: str, chosen: list[tuple[str, int]]) -> None:
    for index, (call, number) in enumerate(chosen):
        paths = prepare(tmp_path / str(index), command)
        run_killed(HEADER + QUIET + COMMANDS[command], paths.base, call=call, number=number)
        try:
            assert_nothing_lost(paths, command)
        except BaseException as error:
            error.add_note(f"{command} was killed at its {number}. {call}")
            raise


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_at_some_system_calls_loses_nothing(tmp_path: Path, command: str) -> None:
    every = points(tmp_path, command)
    # The renames are where most can go wrong; of the rest a sample.
    renames = [point for point in every if point[0].startswith("rename")]
    rest = [point for point in every if point not in renames]
    source = random.Random(command)
    kill_at(
        tmp_path, command, source.sample(renames, min(SAMPLE // 2, len(renames))) + source.sample(rest, SAMPLE // 2)
    )


@pytest.mark.faults
@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_at_every_system_call_loses_nothing(tmp_path: Path, command: str) -> None:
    every = points(tmp_path, command)
    assert len(every) >= 15
    kill_at(tmp_path, command, every)


def test_the_weights_differ_between_versions(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base")
    assert len({(paths.version(v) / "model" / WEIGHTS).read_bytes() for v in list_version_ids(paths)}) == 3
