"""What the queue and its intake promise: no file lost, none in two states, order kept, whatever is killed."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from guardrails import intake, queue
from guardrails.errors import BusyError, DamagedStateError, OperationError
from guardrails.filesystem import move_file
from guardrails.locks import FileLock
from guardrails.manifest import hash_file
from guardrails.paths import PRIORITIES, QUEUE_STATES, Paths
from guardrails.queue_records import (
    MAX_NAME_BYTES,
    Duplicate,
    all_records,
    counts,
    find_duplicate,
    find_states,
    next_file,
    processing,
    read_record,
    records,
)
from tests.processes import (
    CHANGING_CALLS,
    RENAMING_CALLS,
    count_calls,
    run_killed,
    run_python,
    run_unprivileged,
    strace,
)

RUN = "20261121T100003Z-5f3a91c2"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Base:
    """A base dir whose intake sees time pass between two looks."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder)
        for path in self.paths.folders():
            path.mkdir(parents=True, exist_ok=True)
        self.clock = Clock()
        self.watch = intake.Watch(self.clock)
        self.trained: dict[str, str] = {}

    def drop(self, name: str, content: str = "", folder: str = "inbox") -> Path:
        path = self.paths.base / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content or f'{{"text": "{name}"}}\n', encoding="utf-8")
        return path

    def look(self) -> intake.Intake:
        return intake.look(self.paths, self.watch, self.trained.get)

    def take(self) -> intake.Intake:
        """Look, let files rest, look again; what both took."""
        first = self.look()
        self.clock.seconds += 1
        second = self.look()
        second.queued[:0], second.skipped[:0] = first.queued, first.skipped
        return second

    def listing(self) -> dict[str, str]:
        """The state of every data file by name; fails where one name is in two states."""
        found: dict[str, str] = {}
        for state in QUEUE_STATES:
            for name in os.listdir(self.paths.queue_folder(state)):
                assert name not in found, f"{name} is in {found[name]} and in {state}"
                found[name] = state
        return found


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base(tmp_path / "base dir")


# Intake


def test_a_file_is_taken_from_the_inbox_with_its_hash_and_size(base: Base) -> None:
    content = hash_file(base.drop("math.jsonl"))
    taken = base.take()
    assert [record.name for record in taken.queued] == ["math.jsonl"]
    record = read_record(base.paths, "math.jsonl")
    assert record is not None
    assert (record.blake3, record.size, record.priority, record.state) == (content, 23, "normal", "normal")
    assert base.listing() == {"math.jsonl": "normal"}
    assert os.listdir(base.paths.inbox) == []


def test_files_in_subfolders_are_found(base: Base) -> None:
    base.drop("a/b/c/deep.jsonl")
    base.drop("high/no.jsonl")
    base.take()
    assert base.listing() == {"deep.jsonl": "normal", "no.jsonl": "normal"}


def test_a_file_waits_until_its_size_rests(base: Base) -> None:
    path = base.drop("a.jsonl")
    for _ in range(3):
        assert base.look().resting == 1
        base.clock.seconds += 1
        with open(path, "a", encoding="utf-8") as file:
            file.write("more\n")
    assert base.look().queued == []
    base.clock.seconds += intake.REST_SECONDS / 2
    assert base.look().queued == []
    base.clock.seconds += intake.REST_SECONDS / 2
    assert len(base.look().queued) == 1


def test_a_file_rewritten_within_its_size_waits_again(base: Base) -> None:
    path = base.drop("a.jsonl", "aaaa")
    base.look()
    base.clock.seconds += 1
    before = path.stat()
    path.write_text("bbbb")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert base.look().queued == []


def test_a_file_that_somebody_has_open_for_writing_waits(base: Base) -> None:
    with open(base.drop("a.jsonl"), "a", encoding="utf-8"):
        assert [left.why for left in base.take().left] == ["is still being written"]
    assert len(base.take().queued) == 1


def test_an_unprivileged_user_takes_files_of_others(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs a second user")
    with tempfile.TemporaryDirectory() as name:
        base = Base(Path(name) / "base")
        base.drop("a.jsonl")
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o644 if path.is_file() else 0o777)
        code = """
import sys
from pathlib import Path
from guardrails.intake import process_inbox
from guardrails.paths import Paths
taken = process_inbox(Paths(Path(sys.argv[1])), lambda content: None)
assert [record.name for record in taken.queued] == ["a.jsonl"], taken
"""
        run_unprivileged(code, base.paths.base)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".hidden.jsonl", "is hidden"),
        (".rsync/a.jsonl", "is hidden"),
        ("a.jsonl.part", "looks like an unfinished download"),
        ("a.jsonl.crdownload", "looks like an unfinished download"),
        ("a.jsonl~", "looks like an unfinished download"),
        ("a.jsonl.TMP", "looks like an unfinished download"),
        ("notes.txt", "is not a .jsonl file"),
    ],
)
def test_what_is_no_finished_data_file_is_left_and_told_of(base: Base, name: str, why: str) -> None:
    path = base.drop(name)
    assert [left.why for left in base.take().left] == [why]
    assert [left.why for left in intake.inspect_inbox(base.paths)] == [why]
    assert path.exists()


def test_links_and_special_files_are_left_and_told_of(base: Base, tmp_path: Path) -> None:
    (tmp_path / "outside.jsonl").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inside.jsonl").write_text("x")
    (base.paths.inbox / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    (base.paths.inbox / "folder").symlink_to(tmp_path / "folder")
    (base.paths.inbox / "broken.jsonl").symlink_to("nowhere")
    os.mkfifo(base.paths.inbox / "pipe.jsonl")
    assert len(base.take().left) == 4
    assert base.listing() == {}


STRANGE_NAMES = [
    "with space.jsonl",
    "quo'te\".jsonl",
    "new\nline.jsonl",
    "💾.jsonl",
    "-rf.jsonl",
    "*.jsonl",
    "$(x).jsonl",
]


@pytest.mark.parametrize("name", [*STRANGE_NAMES, "UPPER.JSONL", "ä" * 97 + ".jsonl"])
def test_any_valid_name_is_kept(base: Base, name: str) -> None:
    base.drop(name)
    base.take()
    assert base.listing() == {name: "normal"}
    queue.claim(base.paths, name, RUN)
    queue.finish(base.paths, name, "completed", version="v001")
    assert base.listing() == {name: "completed"}


@pytest.mark.parametrize("folder", [b"inbox", b"queue/high"])
def test_names_too_long_or_undecodable_are_changed_and_nothing_is_lost(base: Base, folder: bytes) -> None:
    for number, name in enumerate([b"\xff\xfe.jsonl", "ä".encode() * 124 + b".jsonl", b"x" * 249 + b".jsonl"]):
        Path(os.fsdecode(os.path.join(os.fsencode(base.paths.base), folder, name))).write_text(str(number))
    base.take()
    listing = base.listing()
    assert len(listing) == 3
    assert "__.jsonl" in listing
    assert all(len(name.encode()) <= MAX_NAME_BYTES for name in listing)
    for record in all_records(base.paths):
        record.original_name.encode()


def test_a_taken_name_gets_a_suffix_and_nothing_is_overwritten(base: Base) -> None:
    for number in range(3):
        base.drop("a.jsonl", f"content {number}")
        base.take()
    assert base.listing() == {"a.jsonl": "normal", "a-2.jsonl": "normal", "a-3.jsonl": "normal"}
    queue.claim(base.paths, "a.jsonl", RUN)
    queue.finish(base.paths, "a.jsonl", "completed", version="v001")
    os.unlink(base.paths.queue_folder("completed") / "a.jsonl")
    base.drop("a.jsonl", "content 4")
    base.take()
    assert base.listing().keys() == {"a-2.jsonl", "a-3.jsonl", "a-4.jsonl"}


def test_the_order_is_that_of_arrival_and_not_of_names(base: Base) -> None:
    for name in ("c.jsonl", "a.jsonl", "b.jsonl"):
        path = base.drop(name)
        # A copy that keeps the file's own old date arrives when it arrives.
        os.utime(path, (0, ord(name[0])))
        time.sleep(0.02)
    base.take()
    assert [record.name for record in records(base.paths, "normal")] == ["c.jsonl", "a.jsonl", "b.jsonl"]


def test_an_unreadable_folder_does_not_keep_others_waiting(base: Base) -> None:
    code = """
import sys
from pathlib import Path
from guardrails.intake import process_inbox
from guardrails.paths import Paths
paths = Paths(Path(sys.argv[1]) / "base")
for folder in paths.folders():
    folder.mkdir(parents=True)
(paths.inbox / "closed").mkdir(mode=0)
(paths.inbox / "a.jsonl").write_text("a")
(paths.inbox / "b.jsonl").write_text("b")
(paths.inbox / "b.jsonl").chmod(0)
taken = process_inbox(paths, lambda content: None)
assert [record.name for record in taken.queued] == ["a.jsonl"], taken
assert len(taken.left) == 2 and all("Permission denied" in left.why for left in taken.left), taken
"""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        run_unprivileged(code, name)


def test_a_file_from_another_disk_is_verified_before_it_leaves_the_inbox(base: Base) -> None:
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == base.paths.base.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        base.paths.inbox.rmdir()
        base.paths.inbox.symlink_to(other)
        base.drop("a.jsonl", "a")
        base.drop("sub/a.jsonl", "b")
        assert len(base.take().queued) == 2
        assert [name for _, _, names in os.walk(other) for name in names] == []
    assert base.listing() == {"a.jsonl": "normal", "a-2.jsonl": "normal"}


def test_an_intake_that_changed_nothing_writes_nothing(base: Base) -> None:
    base.drop("a.jsonl")
    base.drop("b.jsonl", folder="queue/high")
    base.take()
    folders = [base.paths.queue, base.paths.queue_records, *map(base.paths.queue_folder, QUEUE_STATES)]
    before = [folder.stat().st_mtime_ns for folder in folders]
    assert base.take() == intake.Intake()
    assert [folder.stat().st_mtime_ns for folder in folders] == before


def test_a_look_with_no_time_left_takes_one_file_and_the_next_look_goes_on(base: Base) -> None:
    for name in "abc":
        base.drop(f"{name}.jsonl")
    base.look()
    base.clock.seconds += 1
    taken = [intake.look(base.paths, base.watch, base.trained.get, budget_seconds=-1) for _ in range(3)]
    assert [len(one.queued) for one in taken] == [1, 1, 1]
    assert [one.resting for one in taken] == [2, 1, 0]


def test_two_intakes_at_once_take_each_file_once(base: Base) -> None:
    for number in range(30):
        base.drop(f"{number}.jsonl")
    code = """
import sys
from pathlib import Path
from guardrails.intake import process_inbox
from guardrails.paths import Paths
process_inbox(Paths(Path(sys.argv[1])), lambda content: None)
"""
    command = [sys.executable, "-c", code, str(base.paths.base)]
    both = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()}) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert len(base.listing()) == 30
    arrivals = [record.arrival for record in records(base.paths, "normal")]
    assert len(set(arrivals)) == 30


def test_a_look_beside_another_intake_waits_for_nobody_and_says_to_look_again(base: Base) -> None:
    base.drop("a.jsonl")
    other = FileLock(base.paths.locks / "intake.lock")
    other.acquire("adding a large file")
    assert base.take() == intake.Intake(resting=1)
    other.release()
    assert len(base.take().queued) == 1


# Duplicates


def test_content_that_waits_or_is_trained_is_skipped_and_names_the_other(base: Base) -> None:
    base.drop("a.jsonl", "same")
    base.take()
    base.drop("b.jsonl", "same")
    assert [record.name for record in base.take().skipped] == ["b.jsonl"]
    queue.claim(base.paths, "a.jsonl", RUN)
    base.drop("c.jsonl", "same")
    base.take()
    queue.finish(base.paths, "a.jsonl", "completed", version="v002")
    base.trained[records(base.paths, "completed")[0].blake3] = "v002"
    base.drop("d.jsonl", "same")
    base.take()
    reasons = {record.name: record.reason for record in records(base.paths, "skipped")}
    assert reasons == {
        "b.jsonl": "same content as a.jsonl, which is in the queue",
        "c.jsonl": "same content as a.jsonl, which is in the queue",
        "d.jsonl": "same content was already trained into v002",
    }


def test_duplicates_within_one_look_are_found_too(base: Base) -> None:
    for name in "ab":
        base.drop(f"{name}.jsonl", "same")
    taken = base.take()
    assert (len(taken.queued), len(taken.skipped)) == (1, 1)


def test_content_of_an_undone_run_is_held_back_until_retry(base: Base) -> None:
    base.drop("a.jsonl", "same")
    base.take()
    queue.claim(base.paths, "a.jsonl", RUN)
    queue.finish(base.paths, "a.jsonl", "skipped", reason="rolled back", held_back=True)
    base.drop("b.jsonl", "same")
    base.take()
    skipped = records(base.paths, "skipped")[1]
    assert skipped.name == "b.jsonl"
    assert RUN in (skipped.reason or "")
    content = skipped.blake3
    assert find_duplicate(base.paths, content, base.trained.get) == Duplicate("undone", RUN, skipped.reason or "")
    record = queue.retry(base.paths, "a.jsonl")
    assert (record.force, record.held_back, record.run_id, record.reason) == (True, False, None, None)
    assert find_duplicate(base.paths, content, base.trained.get, own_name="a.jsonl") is None


def test_completing_a_held_back_file_again_frees_its_content(base: Base) -> None:
    base.drop("a.jsonl", "same")
    base.take()
    queue.finish(base.paths, "a.jsonl", "skipped", reason="rolled back", held_back=True)
    queue.finish(base.paths, "a.jsonl", "completed", version="v003")
    record = read_record(base.paths, "a.jsonl")
    assert record is not None
    assert (record.version, record.held_back, record.reason) == ("v003", False, None)


def test_add_force_queues_a_duplicate_and_leaves_the_original(base: Base, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("a")
    states = [intake.add_file(base.paths, source, "low", base.trained.get).state for _ in range(2)]
    forced = intake.add_file(base.paths, source, "high", base.trained.get, force=True)
    assert states == ["low", "skipped"]
    assert (forced.state, forced.force, forced.name) == ("high", True, "a-3.jsonl")
    assert source.read_text() == "a"
    source.write_text("changed")
    assert (base.paths.queue_folder("low") / "a.jsonl").read_text() == "a"


@pytest.mark.parametrize("name", ["a.txt", ".a.jsonl", "folder.jsonl", "none.jsonl"])
def test_add_refuses_what_is_no_data_file(base: Base, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / ".a.jsonl").touch()
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(OperationError, match=name):
        intake.add_file(base.paths, tmp_path / name, "normal", base.trained.get)
    assert base.listing() == {}


def test_add_refuses_a_file_that_is_being_written(base: Base, tmp_path: Path) -> None:
    with open(tmp_path / "a.jsonl", "w", encoding="utf-8"), pytest.raises(OperationError, match="written"):
        intake.add_file(base.paths, tmp_path / "a.jsonl", "normal", base.trained.get)


# What people do by hand


def test_a_file_put_into_the_queue_by_hand_gets_its_record_on_the_next_look(base: Base) -> None:
    base.drop("a.jsonl", folder="queue/high")
    base.drop("b.jsonl", folder="queue/processing")
    assert next_file(base.paths) is None
    assert [record.arrival for record in records(base.paths, "high")] == [None]
    base.take()
    assert base.listing() == {"a.jsonl": "high", "b.jsonl": "normal"}
    first = next_file(base.paths)
    assert first is not None
    assert (first.name, first.priority) == ("a.jsonl", "high")


def test_a_file_moved_by_hand_is_where_it_lies(base: Base) -> None:
    for name in "abcd":
        base.drop(f"{name}.jsonl")
    base.take()
    folder = base.paths.queue_folder
    queue.finish(base.paths, "c.jsonl", "failed", reason="bad rows")
    move_file(folder("normal") / "b.jsonl", folder("high") / "b.jsonl")
    move_file(folder("failed") / "c.jsonl", folder("low") / "c.jsonl")
    move_file(folder("normal") / "d.jsonl", folder("skipped") / "d.jsonl")
    first = next_file(base.paths)
    assert first is not None
    assert (first.name, first.priority) == ("b.jsonl", "high")
    base.take()
    again, dropped = read_record(base.paths, "c.jsonl"), read_record(base.paths, "d.jsonl")
    assert again is not None
    assert (again.state, again.force, again.attempts, again.reason) == ("low", True, 0, None)
    assert again.arrival == 5
    # Nobody waits for a skipped file, so its record is only brought in line when it is next needed.
    assert dropped is not None
    assert records(base.paths, "skipped")[0].reason == "moved here by hand from normal"


@pytest.mark.parametrize("other", ["low", "processing", "completed", "failed", "skipped"])
def test_the_same_name_put_into_two_folders_loses_nothing(base: Base, other: str) -> None:
    base.drop("a.jsonl", "first", folder="queue/high")
    base.drop("a.jsonl", "second", folder=f"queue/{other}")
    base.take()
    base.take()
    listing = base.listing()
    assert set(listing) == {"a.jsonl", "a-2.jsonl"}
    contents = {(base.paths.queue_folder(state) / name).read_text() for name, state in listing.items()}
    assert contents == {"first", "second"}


def test_a_new_file_beside_a_completed_one_of_its_name_gets_another(base: Base) -> None:
    base.drop("a.jsonl", "old")
    base.take()
    queue.claim(base.paths, "a.jsonl", RUN)
    queue.finish(base.paths, "a.jsonl", "completed", version="v001", rows=1)
    base.drop("a.jsonl", "new", folder="queue/low")
    base.take()
    assert base.listing() == {"a.jsonl": "completed", "a-2.jsonl": "low"}
    record = read_record(base.paths, "a.jsonl")
    assert record is not None
    assert (record.version, record.rows) == ("v001", 1)


def test_changed_content_of_a_waiting_file_is_noticed_before_it_is_trained(base: Base) -> None:
    base.drop("a.jsonl", "old")
    base.take()
    content = hash_file(base.drop("a.jsonl", "newer", folder="queue/normal"))
    record = queue.refresh(base.paths, "a.jsonl")
    assert (record.blake3, record.size) == (content, 5)
    assert queue.refresh(base.paths, "a.jsonl") == record


def test_a_file_deleted_by_hand_harms_nobody(base: Base) -> None:
    base.drop("a.jsonl")
    base.take()
    queue.claim(base.paths, "a.jsonl", RUN)
    os.unlink(base.paths.queue_folder("processing") / "a.jsonl")
    assert processing(base.paths) is None
    assert queue.finish(base.paths, "a.jsonl", "completed", version="v001").version == "v001"
    with pytest.raises(OperationError, match="there is no data file"):
        queue.retry(base.paths, "a.jsonl")


# Runs


def test_a_claimed_file_is_the_open_run_and_only_one_is_open(base: Base) -> None:
    for name in "ab":
        base.drop(f"{name}.jsonl")
    base.take()
    queue.claim(base.paths, "a.jsonl", RUN)
    record = processing(base.paths)
    assert record is not None
    assert (record.name, record.run_id) == ("a.jsonl", RUN)
    with pytest.raises(OperationError):
        queue.claim(base.paths, "b.jsonl", "another")
    with pytest.raises(OperationError):
        queue.claim(base.paths, "a.jsonl", "another")


def test_a_file_in_training_cannot_be_moved_and_the_hint_says_what_can(base: Base) -> None:
    base.drop("a.jsonl")
    base.take()
    queue.claim(base.paths, "a.jsonl", RUN)
    for action in (queue.remove, queue.retry, functools.partial(queue.set_priority, priority="high")):
        with pytest.raises(BusyError) as caught:
            action(base.paths, "a.jsonl")
        assert caught.value.hint == "training_controller.py skip"
    assert base.listing() == {"a.jsonl": "processing"}


def test_finishing_twice_is_as_finishing_once(base: Base) -> None:
    base.drop("a.jsonl")
    base.take()
    queue.claim(base.paths, "a.jsonl", RUN)
    once = queue.finish(base.paths, "a.jsonl", "completed", version="v001", rows=6)
    assert queue.finish(base.paths, "a.jsonl", "completed", version="v001", rows=6) == once
    assert base.listing() == {"a.jsonl": "completed"}


def test_requeued_files_keep_their_place_and_retried_ones_come_last(base: Base) -> None:
    for name in "abc":
        base.drop(f"{name}.jsonl")
        base.take()
    queue.claim(base.paths, "a.jsonl", RUN)
    queue.requeue(base.paths, "a.jsonl")
    assert [record.name[0] for record in records(base.paths, "normal")] == ["a", "b", "c"]
    queue.claim(base.paths, "a.jsonl", RUN)
    queue.finish(base.paths, "a.jsonl", "failed", reason="error")
    queue.retry(base.paths, "a.jsonl")
    queue.set_priority(base.paths, "c.jsonl", "high")
    queue.set_priority(base.paths, "b.jsonl", "high")
    assert [record.name[0] for record in records(base.paths, "high")] == ["b", "c"]
    assert [record.name[0] for record in records(base.paths, "normal")] == ["a"]


def test_attempts_are_counted_anew_when_a_run_gets_further_or_is_retried(base: Base) -> None:
    base.drop("a.jsonl")
    base.take()
    queue.claim(base.paths, "a.jsonl", RUN)
    assert [queue.count_attempt(base.paths, "a.jsonl", step) for step in (0, 0, 5, 5)] == [1, 2, 1, 2]
    queue.finish(base.paths, "a.jsonl", "failed", reason="error")
    queue.retry(base.paths, "a.jsonl")
    queue.claim(base.paths, "a.jsonl", "another")
    assert [queue.count_attempt(base.paths, "a.jsonl", step) for step in (0, 5)] == [1, 1]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema_version": 2}', '{"arrival": "x"}', '{"arrival": 1, "state": 1}']
)
def test_a_damaged_record_is_an_error_and_left_untouched(base: Base, content: str) -> None:
    base.drop("a.jsonl")
    base.take()
    path = base.paths.queue_records / "a.jsonl.json"
    path.write_text(content)
    with pytest.raises(DamagedStateError):
        next_file(base.paths)
    with pytest.raises(DamagedStateError):
        queue.remove(base.paths, "a.jsonl")
    assert path.read_text() == content
    assert base.listing() == {"a.jsonl": "normal"}


@pytest.mark.parametrize("content", [None, "{", '{"schema_version": 1, "last": "x"}'])
def test_a_lost_counter_never_hands_out_a_number_again(base: Base, content: str | None) -> None:
    for name in "ab":
        base.drop(f"{name}.jsonl")
    base.take()
    counter = base.paths.queue_records / ".arrival.json"
    counter.unlink()
    if content is not None:
        counter.write_text(content)
    base.drop("c.jsonl")
    base.take()
    assert [record.arrival for record in records(base.paths, "normal")] == [1, 2, 3]


def test_reading_a_base_dir_without_folders_finds_nothing_and_makes_nothing(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert set(counts(paths).values()) == {0}
    assert (next_file(paths), processing(paths), all_records(paths), intake.inspect_inbox(paths)) == (
        None,
        None,
        [],
        [],
    )
    assert list(tmp_path.iterdir()) == []


# Kills

TAKE = """
import itertools, sys
from pathlib import Path
from guardrails import intake
from guardrails.paths import Paths
seconds = itertools.count()
paths, watch = Paths(Path(sys.argv[1])), intake.Watch(lambda: float(next(seconds)))
for _ in range(2):
    intake.look(paths, watch, lambda content: None)
"""

WORK = """
import sys
from pathlib import Path
from guardrails import intake, queue
from guardrails.paths import Paths
paths = Paths(Path(sys.argv[1]))
queue.claim(paths, "a.jsonl", "run-a")
queue.finish(paths, "a.jsonl", "completed", version="v001")
queue.claim(paths, "b.jsonl", "run-b")
queue.requeue(paths, "b.jsonl")
queue.set_priority(paths, "b.jsonl", "high")
queue.remove(paths, "b.jsonl")
queue.retry(paths, "b.jsonl")
intake.add_file(paths, Path(sys.argv[2]), "low", lambda content: None)
"""


at_each_call = pytest.mark.parametrize(
    "calls",
    [RENAMING_CALLS, pytest.param(CHANGING_CALLS, marks=pytest.mark.faults)],
    ids=["renames", "all"],
)


def data_files(paths: Paths) -> Counter[str]:
    """How often each content lies in the inbox and the queue, hidden files left out."""
    found: Counter[str] = Counter()
    for root in (os.path.realpath(paths.inbox), paths.queue):
        for folder, _, names in os.walk(root):
            found.update(Path(folder, n).read_text() for n in names if n[0] != "." and n.endswith(".jsonl"))
    return found


def points(calls: dict[str, int]) -> Iterator[tuple[str, int]]:
    for call, count in calls.items():
        for number in range(1, count + 1):
            yield call, number


@pytest.fixture
def template(tmp_path: Path) -> Base:
    """Two files of the same and one of other content in the inbox, and one put into the queue by hand."""
    base = Base(tmp_path / "template")
    for name, content in (("a.jsonl", "a"), ("sub/a.jsonl", "b"), ("same.jsonl", "a")):
        base.drop(name, content)
    base.drop("hand.jsonl", "c", folder="queue/high")
    return base


def copy_of(template: Base, folder: Path) -> Base:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(template.paths.base, folder, symlinks=True)
    return Base(folder)


@at_each_call
def test_an_intake_killed_at_any_call_loses_nothing_and_is_finished_by_the_next(
    template: Base, tmp_path: Path, calls: tuple[str, ...]
) -> None:
    before = data_files(template.paths)
    counted = copy_of(template, tmp_path / "count")
    for call, number in points(count_calls(TAKE, counted.paths.base, calls=calls, log=tmp_path / "log")):
        base = copy_of(template, tmp_path / "killed")
        run_killed(TAKE, base.paths.base, call=call, number=number)
        assert data_files(base.paths) == before, (call, number)
        base.take()
        assert data_files(base.paths) == before, (call, number)
        listing = base.listing()
        assert Counter(listing.values()) == {"high": 1, "normal": 2, "skipped": 1}, (call, number, listing)
        assert {name for name in listing if listing[name] != "skipped"} <= {
            "hand.jsonl",
            "a.jsonl",
            "a-2.jsonl",
            "same.jsonl",
        }
        for name, state in listing.items():
            record = read_record(base.paths, name)
            assert record is not None
            assert (record.state, record.blake3) == (state, hash_file(base.paths.queue_folder(state) / name))
        assert not list(base.paths.queue.rglob("*.tmp-*")), (call, number)


@at_each_call
def test_an_intake_from_another_disk_killed_at_any_call_loses_nothing(tmp_path: Path, calls: tuple[str, ...]) -> None:
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        template = Base(tmp_path / "template")
        template.paths.inbox.rmdir()
        template.paths.inbox.symlink_to(other)
        template.drop("a.jsonl", "a")
        counted = copy_of(template, tmp_path / "count")
        for call, number in points(count_calls(TAKE, counted.paths.base, calls=calls, log=tmp_path / "log")):
            base = copy_of(template, tmp_path / "killed")
            for name in os.listdir(other):
                os.unlink(Path(other, name))
            base.drop("a.jsonl", "a")
            run_killed(TAKE, base.paths.base, call=call, number=number)
            base.take()
            queued = records(base.paths, "normal")
            assert [(record.size, record.name) for record in queued] == [(1, "a.jsonl")], (call, number)
            # A kill before the original goes leaves it to the next intake, as a duplicate.
            assert data_files(base.paths)["a"] in (1, 2)
            assert {record.state for record in records(base.paths, "skipped")} <= {"skipped"}
            left = [path.name for path in base.paths.queue.rglob(".staged-*")]
            assert left == [] or base.take() == intake.Intake(), (call, number)


@at_each_call
def test_queue_changes_killed_at_any_call_leave_every_file_in_one_state(tmp_path: Path, calls: tuple[str, ...]) -> None:
    template = Base(tmp_path / "template")
    for name in "ab":
        template.drop(f"{name}.jsonl")
    template.take()
    added = tmp_path / "added.jsonl"
    added.write_text("added")
    before = data_files(template.paths)
    counted = copy_of(template, tmp_path / "count")
    for call, number in points(count_calls(WORK, counted.paths.base, added, calls=calls, log=tmp_path / "log")):
        base = copy_of(template, tmp_path / "killed")
        run_killed(WORK, base.paths.base, added, call=call, number=number)
        after = data_files(base.paths)
        assert after - Counter({"added": 1}) == before, (call, number)
        listing = base.listing()
        open_run = processing(base.paths)
        assert [name for name, state in listing.items() if state == "processing"] == (
            [open_run.name] if open_run else []
        ), (call, number)
        if open_run is not None:
            queue.finish(base.paths, open_run.name, "completed", version="v001")
        base.take()
        for name, state in listing.items():
            if not name.startswith("."):
                record = queue.synchronize(base.paths, name)
                assert record is not None, (call, number, name, state)
                assert record.state == base.listing()[name]
        assert data_files(base.paths) == after
        intake.add_file(base.paths, added, "low", base.trained.get)
        assert not list(base.paths.queue.rglob(".staged-*"))


def test_a_full_disk_during_intake_loses_nothing(template: Base, tmp_path: Path) -> None:
    before = data_files(template.paths)
    for call in ("fsync", "rename", "renameat2"):
        base = copy_of(template, tmp_path / "full")
        under = strace("-o", "/dev/null", "-e", f"inject={call}:error=ENOSPC:when=3+")
        run_python(TAKE, base.paths.base, under=under)
        assert data_files(base.paths) == before
        base.take()
        assert data_files(base.paths) == before
        assert Counter(base.listing().values()) == {"high": 1, "normal": 2, "skipped": 1}


# Any sequence of what people, the daemon and chance do


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # In memory where that is possible: thousands of syncs are not what is tested here.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="queue-machine-", dir=memory))
        self.base = Base(self.folder)
        self.files: Counter[str] = Counter()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(["a", "b", "ü ü"]), content=st.sampled_from("123456"), place=st.sampled_from("xyz"))
    def drop_into_the_inbox(self, name: str, content: str, place: str) -> None:
        path = self.base.paths.inbox / place / f"{name}.jsonl"
        if not path.exists():
            self.base.drop(f"{place}/{name}.jsonl", content)
            self.files[content] += 1

    @rule(name=st.sampled_from(["a", "c"]), content=st.sampled_from("123456"), state=st.sampled_from(QUEUE_STATES))
    def put_into_the_queue_by_hand(self, name: str, content: str, state: str) -> None:
        if not (self.base.paths.queue_folder(state) / f"{name}.jsonl").exists():
            self.base.drop(f"{name}.jsonl", content, folder=f"queue/{state}")
            self.files[content] += 1

    @rule(data=st.data(), state=st.sampled_from(QUEUE_STATES))
    def move_by_hand(self, data: st.DataObject, state: str) -> None:
        listed = self.list_all()
        if listed:
            source = data.draw(st.sampled_from(listed))
            target = self.base.paths.queue_folder(state) / source.name
            if not target.exists():
                source.rename(target)

    @rule()
    def look(self) -> None:
        taken = self.base.take()
        numbers = [record.arrival for record in (*taken.queued, *taken.skipped)]
        assert len(numbers) == len(set(numbers))
        assert all(record.run_id for record in records(self.base.paths, "processing"))
        for state in PRIORITIES:
            for record in records(self.base.paths, state):
                assert record.arrival is not None
                assert read_record(self.base.paths, record.name) == record
                assert find_states(self.base.paths, record.name) == [state]
        assert list(self.base.paths.inbox.rglob("*.jsonl")) == []

    @rule()
    def claim(self) -> None:
        self.look()
        record = next_file(self.base.paths)
        if record is None or processing(self.base.paths):
            return
        waiting = [record for state in PRIORITIES for record in records(self.base.paths, state)]
        assert record == min(waiting, key=lambda r: (PRIORITIES.index(r.priority), r.arrival))
        claimed = queue.claim(self.base.paths, record.name, f"run-{record.name}")
        assert processing(self.base.paths) == claimed

    @rule(state=st.sampled_from(["completed", "failed", "skipped"]), held_back=st.booleans())
    def finish(self, state: str, held_back: bool) -> None:
        record = processing(self.base.paths)
        if record is not None:
            queue.finish(self.base.paths, record.name, state, reason="because", held_back=held_back)

    @rule(data=st.data(), action=st.sampled_from(["requeue", "retry", "remove", "high", "low"]))
    def act(self, data: st.DataObject, action: str) -> None:
        listed = self.list_all()
        if not listed:
            return
        name = data.draw(st.sampled_from(listed)).name
        try:
            if action in PRIORITIES:
                queue.set_priority(self.base.paths, name, action)
            else:
                getattr(queue, action)(self.base.paths, name)
        except (OperationError, BusyError):
            pass

    def list_all(self) -> list[Path]:
        folders = [self.base.paths.queue_folder(state) for state in QUEUE_STATES]
        return sorted(path for folder in folders for path in folder.iterdir())

    @invariant()
    def no_file_is_lost_or_doubled(self) -> None:
        assert data_files(self.base.paths) == self.files


QueueMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnySequence = QueueMachine.TestCase
