"""A deep check finds damage that no report sees, changes nothing, and what it found is said until it is healed."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guardrails.locks import FileLock
from guardrails.paths import CODE_DIR, Paths
from guardrails.report import deep_check, deep_ledgers
from guardrails.report.deep_check import check_deeply
from guardrails.report.deep_findings import KINDS
from guardrails.report.deep_record import (
    MOST_OF_A_KIND,
    Problem,
    read_problems,
    read_times,
    write_problems,
    write_times,
)
from guardrails.report.deep_trees import Reader
from guardrails.report.document import update_document
from guardrails.signature import take_signature
from tests.processes import run_unprivileged
from tests.state.building import SCRIPT, BaseDir, Json, run_tracker
from tests.state.verifiable import (
    MODULE,
    RANK,
    WIDTH,
    Verifiable,
    flip_byte,
    floats,
    make_verifiable,
    write_safetensors,
)
from tests.store_commands import CASES, make_template
from tests.warm import Warm

WEIGHTS = "model/adapter_model.safetensors"
LOCK = (".config_lock.json", ".config_approvals.jsonl")
CACHES = {"status/deep_check.json", "status/deep_check_times.json", ".locks/deep_check.lock"}


@pytest.fixture(autouse=True)
def no_long_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_ledgers, "SETTLE_SECONDS", 0.01)


@pytest.fixture
def box(tmp_path: Path) -> Verifiable:
    return make_verifiable(tmp_path / "base")


def deep_findings(box: BaseDir) -> dict[str, Json]:
    """What a deep check finds, by id."""
    return of_deep_checks(update_document(box.paths, problems=check_deeply(box.paths).problems))


def of_deep_checks(document: Json) -> dict[str, Json]:
    return {one["id"]: one for one in document["warning_details"] if one["id"].partition(":")[0] in KINDS}


def later_findings(box: BaseDir) -> dict[str, Json]:
    """What a later, cheap report says of it."""
    return of_deep_checks(box.report())


def resign(box: BaseDir) -> None:
    """Let the head vouch for ``current_model/`` as it is, as it does where a disk rots."""
    box.head("v002")


def nan_in_the_model(box: Verifiable) -> None:
    """An adapter that somebody made by hand and that holds NaN."""
    path = box.paths.current_model / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"
    path.write_bytes(content)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def lock_and_config(box: Verifiable) -> None:
    lock = box.lock()
    lock["locked"]["max_length"] = 4096
    box.write(".config_lock.json", lock)
    box.config(max_length=4096)


def fingerprint(box: Verifiable) -> None:
    lock = box.lock()
    lock["base_model_fingerprint"]["blake3"] = "00"
    box.write(".config_lock.json", lock)
    box.approve()


def rot_the_model(box: Verifiable) -> None:
    flip_byte(box.paths.current_model / "adapter_model.safetensors")
    resign(box)


def trained_and_failed(box: Verifiable) -> None:
    name = "file 1.jsonl"
    record = json.loads((box.paths.queue_records / f"{name}.json").read_text())
    (box.paths.queue_folder("completed") / name).rename(box.paths.queue_folder("failed") / name)
    box.record(name, "failed", blake3=record["blake3"])


def waiting_file_gone(box: Verifiable) -> None:
    box.record("next.jsonl", "normal")


def index_row(box: Verifiable) -> None:
    from guardrails.store import version_records

    row = {"id": "v001", "trained_on": [], "stat": version_records._stat(str(box.paths.versions), "v001")}
    text = json.dumps(row).encode()
    with box.paths.version_index.open("ab") as file:
        file.write(b"%b %b\n" % (version_records._checksum(text), text))


def file(*parts: str) -> Callable[[Verifiable], Path]:
    return lambda box: box.base.joinpath(*parts)


def version(number: int, name: str = WEIGHTS) -> str:
    return f"models/versions/v{number:03d}/{name}"


# what is done -> the finding, its severity, what its message names
DAMAGE: list[tuple[str, Callable[[Verifiable], object], str, str, str]] = [
    (
        "a byte of an old version",
        lambda b: flip_byte(b.base / version(1)),
        "version-bytes-damaged:v001",
        "critical",
        f"{WEIGHTS} has other bytes than were saved",
    ),
    (
        "a version's metadata of a wrong shape",
        lambda b: edit(b.base / version(1, "metadata.json"), size=-1),
        "version-bytes-damaged:v001",
        "critical",
        "metadata.json is damaged: size is wrong",
    ),
    (
        "a byte of a backup",
        lambda b: flip_byte(b.base / "models/backups/b002" / WEIGHTS),
        "backup-bytes-damaged:b002",
        "warning",
        f"{WEIGHTS} has other bytes",
    ),
    (
        "a whole version and its folder",
        lambda b: shutil.rmtree(b.paths.version("v001")),
        "version-gone:v001",
        "critical",
        "backup b001 holds it",
    ),
    (
        "a byte of the live model, under stamps that vouch for it",
        rot_the_model,
        "model-bytes-damaged",
        "critical",
        "not those of v002",
    ),
    ("NaN in the live model", nan_in_the_model, "model-adapter-broken", "critical", "lora_B.weight holds NaN"),
    (
        "a byte of the base model",
        lambda b: flip_byte(b.base / "base_models/tiny/model.safetensors"),
        "base-model-bytes-changed",
        "critical",
        "model.safetensors in",
    ),
    ("config and lock, edited together", lock_and_config, "config-lock-unapproved", "critical", "on record is 2048"),
    ("the lock's fingerprint", fingerprint, "config-lock-unapproved", "critical", "not that of its files"),
    (
        "a record whose file is gone",
        lambda b: (b.paths.queue_folder("completed") / "file 1.jsonl").unlink(),
        "queue-file-missing",
        "info",
        "file 1.jsonl of queue/completed/",
    ),
    ("a waiting file that is gone", waiting_file_gone, "queue-file-missing", "warning", "next.jsonl of queue/normal/"),
    (
        "a file without a record",
        lambda b: (b.paths.queue_folder("failed") / "odd.jsonl").write_text("{}\n"),
        "queue-record-missing",
        "warning",
        "odd.jsonl in queue/failed/",
    ),
    (
        "a damaged record",
        lambda b: (b.paths.queue_records / "file 1.jsonl.json").write_text("{"),
        "queue-record-missing",
        "warning",
        "file 1.jsonl.json is damaged",
    ),
    (
        "a byte of a trained data file",
        lambda b: flip_byte(b.paths.queue_folder("completed") / "file 2.jsonl", 3),
        "queue-data-changed",
        "warning",
        "file 2.jsonl",
    ),
    (
        "a record of another version",
        lambda b: edit(b.paths.queue_records / "file 1.jsonl.json", version="v002"),
        "queue-version-mismatch",
        "warning",
        "file 1.jsonl is completed as v002, which was trained on file 2.jsonl",
    ),
    (
        "a file that failed, and that the model was trained on",
        trained_and_failed,
        "queue-version-mismatch",
        "warning",
        "file 1.jsonl is in queue/failed/, and v001 was trained on it",
    ),
    ("a line of the index", index_row, "version-index-wrong", "warning", "v001"),
]


def test_a_sound_base_dir_is_read_in_full_and_nothing_is_found(box: Verifiable) -> None:
    outcome = check_deeply(box.paths)
    assert outcome.problems == []
    assert outcome.read == {"model": 1, "version": 2, "backup": 2, "base model": 1, "data file": 2}
    files = [
        path
        for root in ("models/versions", "models/backups", "base_models", "current_model", "queue/completed")
        for path in (box.base / root).rglob("*")
        if path.is_file() and path.name != "metadata.json"
    ]
    assert outcome.read_bytes == sum(path.stat().st_size for path in files)
    assert later_findings(box) == {}


def test_nothing_but_its_own_caches_is_changed(box: Verifiable) -> None:
    flip_byte(box.base / version(1))
    before = take_signature(box.base)
    check_deeply(box.paths)
    after = take_signature(box.base)
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == CACHES


@pytest.mark.parametrize(
    ("do", "identifier", "severity", "words"),
    [(do, identifier, severity, words) for _, do, identifier, severity, words in DAMAGE],
    ids=[name for name, *_ in DAMAGE],
)
def test_damage_is_found_and_stays_reported_until_it_is_looked_at_again(
    box: Verifiable, do: Callable[[Verifiable], object], identifier: str, severity: str, words: str
) -> None:
    copy = box.base.with_name("as it was")
    subprocess.run(["cp", "-a", box.base, copy], check=True)
    do(box)
    assert identifier not in box.findings(), "no report sees it by itself"
    found = deep_findings(box)
    assert found.keys() == {identifier}, found
    assert found[identifier]["severity"] == severity
    assert words in found[identifier]["message"]
    # Cheap reports go on saying so, with the same since.
    assert later_findings(box) == found
    # What is put right, and read again, is said no more.
    for name in ("models", "current_model", "base_models", "queue", "config.json", *LOCK):
        subprocess.run(["rsync", "-a", "--delete", "--checksum", f"{copy}/{name}", f"{box.base}/"], check=True)
    assert deep_findings(box) == {}
    assert later_findings(box) == {}


@pytest.mark.parametrize(
    ("do", "identifier"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), "version-damaged:v001"),
        (Path.unlink, "version-damaged:v001"),
    ],
    ids=["truncated", "missing"],
)
def test_what_every_report_sees_is_not_said_twice(
    box: Verifiable, do: Callable[[Path], object], identifier: str
) -> None:
    do(box.base / version(1))
    problems = check_deeply(box.paths).problems
    document = update_document(box.paths, problems=problems)
    said = [one["id"] for one in document["warning_details"] if "v001" in one["id"]]
    assert said == [identifier]


@pytest.mark.parametrize("name", ["v001", "b001"])
def test_the_command_that_is_shown_heals_a_version_or_backup_and_the_finding_goes(box: Verifiable, name: str) -> None:
    folder = box.paths.version(name) if name == "v001" else box.paths.backups / name
    flip_byte(folder / WEIGHTS)
    (found,) = deep_findings(box).values()
    done = subprocess.run(["bash", "-c", found["hint"]], cwd=CODE_DIR, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert later_findings(box) == {}
    assert deep_findings(box) == {}


def test_the_command_that_is_shown_makes_a_version_again_that_is_gone(box: Verifiable) -> None:
    shutil.rmtree(box.paths.version("v001"))
    (found,) = deep_findings(box).values()
    subprocess.run(["bash", "-c", found["hint"]], cwd=CODE_DIR, capture_output=True, check=True)
    assert (box.base / version(1)).is_file()
    assert later_findings(box) == {}


def test_the_command_that_is_shown_puts_a_rotten_live_model_right(box: Verifiable) -> None:
    good = (box.base / version(2)).read_bytes()
    flip_byte(box.paths.current_model / "adapter_model.safetensors")
    resign(box)
    edit(box.paths.head, signed_at_ns=2**62, last_number=2)
    (found,) = deep_findings(box).values()
    done = subprocess.run(["bash", "-c", found["hint"]], cwd=CODE_DIR, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (box.paths.current_model / "adapter_model.safetensors").read_bytes() == good
    assert later_findings(box) == {}


def test_a_repair_that_finds_all_good_ends_the_finding(box: Verifiable) -> None:
    """As where the memory or a cable was bad, and not the disk."""
    flip_byte(box.base / version(1))
    assert "version-bytes-damaged:v001" in deep_findings(box)
    flip_byte(box.base / version(1))
    assert "version-bytes-damaged:v001" in later_findings(box)
    command = [sys.executable, str(CODE_DIR / "model_versioner.py"), "repair", "v001", "--base-dir", str(box.base)]
    subprocess.run(command, capture_output=True, check=True)
    assert later_findings(box) == {}


def test_a_damaged_file_that_was_written_to_stays_reported_until_it_is_read(box: Verifiable) -> None:
    path = box.base / version(1)
    flip_byte(path)
    before = deep_findings(box)["version-bytes-damaged:v001"]
    os.utime(path)
    after = later_findings(box)["version-bytes-damaged:v001"]
    assert (after["message"], after["severity"]) == (before["message"], "critical")
    assert "repair v001" in before["hint"]
    assert after["hint"] == f"python3 state_tracker.py --deep --base-dir {box.base}"
    flip_byte(path)
    assert deep_findings(box) == {}


def test_a_file_that_another_took_the_place_of_is_not_called_damaged(box: Verifiable) -> None:
    path = box.base / version(1)
    shutil.copy2(path, box.base / "good")
    flip_byte(path)
    assert "version-bytes-damaged:v001" in deep_findings(box)
    os.replace(box.base / "good", path)
    assert later_findings(box) == {}


def test_damage_is_known_to_other_reports_before_the_check_has_ended(
    box: Verifiable, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_byte(box.base / version(2))
    monkeypatch.setattr(deep_check, "NEWS_SECONDS", -1.0)
    read = Reader.__call__
    known: list[str] = []

    def look(reader: Reader, path: Path) -> str:
        known.extend(problem.subject for problem in read_problems(box.paths) if "v001" in str(path))
        return read(reader, path)

    monkeypatch.setattr(Reader, "__call__", look)
    check_deeply(box.paths)
    assert set(known) == {"v002"}


def test_a_new_link_to_a_damaged_file_does_not_hide_it(box: Verifiable) -> None:
    path = box.base / version(1)
    flip_byte(path)
    check_deeply(box.paths)
    os.link(path, box.base / "another name")
    assert "repair v001" in later_findings(box)["version-bytes-damaged:v001"]["hint"]


def test_versions_that_share_a_damaged_file_are_all_named_and_it_is_read_once(box: Verifiable) -> None:
    shared = box.base / version(1)
    size = shared.stat().st_size
    box.train(3)
    (box.base / version(3)).unlink()
    os.link(shared, box.base / version(3))
    metadata = [json.loads((box.base / version(n, "metadata.json")).read_text()) for n in (1, 3)]
    edit(box.base / version(3, "metadata.json"), files=metadata[0]["files"])
    whole = check_deeply(box.paths).read_bytes
    os.unlink(box.base / version(3))
    shutil.copy(shared, box.base / version(3))
    assert check_deeply(box.paths).read_bytes == whole + size
    os.unlink(box.base / version(3))
    os.link(shared, box.base / version(3))
    flip_byte(shared)
    assert {"version-bytes-damaged:v001", "version-bytes-damaged:v003"} <= deep_findings(box).keys()


def test_a_version_that_was_removed_by_a_command_is_not_gone(box: Verifiable) -> None:
    edit(box.base / version(1, "metadata.json"), removed_at="2026-11-21T10:00:00Z")
    shutil.rmtree(box.paths.version("v001") / "model")
    flip_byte(box.base / "models/backups/b001" / WEIGHTS)
    assert deep_findings(box).keys() == {"backup-bytes-damaged:b001"}


def test_a_shared_backup_folder_makes_nothing_gone_of_another_base_dir(box: Verifiable, tmp_path: Path) -> None:
    shared = tmp_path / "backups"
    box.paths.backups.rename(shared)
    box.paths.backups.mkdir()
    box.config(backup_dir=str(shared))
    other = json.loads((shared / "b001/metadata.json").read_text())
    shutil.copytree(shared / "b001", shared / "b003")
    other |= {"id": "b003", "version": "v007", "version_metadata": {**other["version_metadata"], "id": "v007"}}
    (shared / "b003/metadata.json").write_text(json.dumps(other))
    assert deep_findings(box) == {}


# An adapter made by hand, and what is wrong with it.
@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        ({}, {}, "holds no LoRA weights"),
        ({"A": [RANK, WIDTH]}, {}, "has lora_A alone"),
        ({"A": [3, WIDTH], "B": [WIDTH, 3]}, {}, "has rank 3 and 3"),
        ({"A": [RANK, 5], "B": [WIDTH, RANK]}, {}, "made for a layer of 4 x 5, the base model's has 4 x 4"),
        ({"A": [RANK, WIDTH], "B": [WIDTH, RANK]}, {"r": 0}, "r is 0"),
        ({"A": [RANK, WIDTH], "B": [WIDTH, RANK]}, {"target_modules": []}, "target_modules is []"),
        ({"A": [RANK, WIDTH], "B": [WIDTH, RANK]}, {"peft_type": "IA3"}, "peft_type is"),
        ({"A": [RANK, WIDTH], "B": [WIDTH, RANK]}, {}, None),
        ({"A": [3, WIDTH], "B": [WIDTH, 3]}, {"rank_pattern": {"q_proj": 3}}, None),
    ],
)
def test_an_adapter_that_peft_could_not_load_is_told(
    box: Verifiable, tensors: dict[str, list[int]], settings: Json, words: str | None
) -> None:
    folder = box.paths.current_model
    edit(folder / "adapter_config.json", **settings)
    made = {
        f"base_model.model.{MODULE}.lora_{part}.weight": ("F32", shape, floats(b"x", shape[0] * shape[1]))
        for part, shape in tensors.items()
    }
    write_safetensors(folder / "adapter_model.safetensors", made)
    found = deep_findings(box)
    assert found.keys() == ({"model-adapter-broken"} if words else set()), found
    assert words is None or words in found["model-adapter-broken"]["message"]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 7, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b'\x05\0\0\0\0\0\0\0{"a":']
)
def test_weights_that_are_no_safetensors_file_are_told(box: Verifiable, content: bytes) -> None:
    (box.paths.current_model / "adapter_model.safetensors").write_bytes(content)
    assert "adapter_model.safetensors is damaged" in deep_findings(box)["model-adapter-broken"]["message"]


def test_what_was_not_read_for_longest_comes_first(box: Verifiable, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"v002": "2026-01-03T00:00:00Z", "b001": "2026-01-01T00:00:00Z", "v001": "2026-01-02T00:00:00Z"}
    write_times(box.paths, times)
    order: list[str] = []
    plan = deep_check._plan
    monkeypatch.setattr(deep_check, "_plan", lambda *given: [c for c in plan(*given) if not order.append(c.name)])  # type: ignore[func-returns-value]
    check_deeply(box.paths)
    assert order[:4] == ["queue", "versions", "version_index", "config_lock"]
    assert order[-3:] == ["b001", "v001", "v002"]
    assert min(read_times(box.paths).values()) > "2026-01-04"


def test_ended_early_it_keeps_what_it_read_and_goes_on_with_the_rest(
    box: Verifiable, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_byte(box.base / version(2))
    read = Reader.__call__

    def interrupt(reader: Reader, path: Path) -> str:
        if "v001" in str(path):
            raise KeyboardInterrupt
        return read(reader, path)

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            check_deeply(box.paths)
    assert "v002" in read_times(box.paths)
    assert "v001" not in read_times(box.paths)
    assert later_findings(box).keys() == {"version-bytes-damaged:v002"}
    assert deep_findings(box).keys() == {"version-bytes-damaged:v002"}
    assert "v001" in read_times(box.paths)


def test_two_at_once_are_refused_and_the_first_is_named(box: Verifiable) -> None:
    with FileLock(box.paths.locks / "deep_check.lock").hold("deep check"):
        done = run_tracker(box.base, "--deep")
    assert (done.returncode, done.stdout) == (20, "")
    assert f"process {os.getpid()} does a deep check" in done.stderr


def test_the_forms_of_a_report_take_it_along(box: Verifiable) -> None:
    flip_byte(box.base / version(1))
    alone = run_tracker(box.base, "--deep")
    assert (alone.returncode, alone.stderr) == (0, "")
    lines = alone.stdout.splitlines()
    assert lines[0].startswith("read in full: 1 model, 2 versions, 2 backups, 1 base model, 2 data files (")
    assert lines[1].startswith("[backup] bytes of version v001 are damaged")
    assert lines[2] == f"   Fix: python3 model_versioner.py repair v001 --base-dir {box.base}"
    assert lines[-1].startswith("updated .system_state.json: verdict critical")
    assert run_tracker(box.base, "--deep", "--exit-code").returncode == 3
    document = json.loads(run_tracker(box.base, "--deep", "--json").stdout)
    assert "version-bytes-damaged:v001" in {one["id"] for one in document["warning_details"]}
    assert "bytes of version v001" in run_tracker(box.base, "--deep", "--warnings").stdout
    assert run_tracker(box.base, "--nagios").returncode == 2
    flip_byte(box.base / version(1))
    assert "all is as it was saved\n" in run_tracker(box.base, "--deep").stdout


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"problems": 7}', '{"problems": [7, {"check": "v001"}]}', '{"read_at": [1]}']
)
def test_caches_of_no_use_are_made_anew(box: Verifiable, content: str) -> None:
    flip_byte(box.base / version(1))
    check_deeply(box.paths)
    for path in (box.paths.deep_check, box.paths.deep_check_times):
        path.write_text(content)
    assert later_findings(box) == {}
    assert deep_findings(box).keys() == {"version-bytes-damaged:v001"}
    assert later_findings(box).keys() == {"version-bytes-damaged:v001"}


def test_problems_of_odd_values_in_the_cache_do_no_harm(box: Verifiable) -> None:
    odd = [
        {**dict.fromkeys(Problem._fields, "x"), "present": {"\0": [1, 2, 3]}, "absent": []},
        {**dict.fromkeys(Problem._fields, "x"), "present": {"x": [1, "2", 3]}, "absent": []},
        {**dict.fromkeys(Problem._fields, "x"), "present": {}, "absent": [7]},
        {**dict.fromkeys(Problem._fields, "\ud800"), "finding": "version-gone", "present": {}, "absent": ["\ud800"]},
    ]
    box.write("status/deep_check.json", {"schema_version": 1, "problems": odd})
    assert later_findings(box).keys() == {"version-gone:\\ud800"}


def test_where_nothing_can_be_remembered_it_is_told_all_the_same(box: Verifiable) -> None:
    flip_byte(box.base / version(1))
    shutil.rmtree(box.paths.status)
    assert deep_findings(box).keys() == {"version-bytes-damaged:v001"}
    assert later_findings(box) == {}


def test_a_folder_that_is_no_base_dir_stays_empty(tmp_path: Path) -> None:
    check_deeply(Paths(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_closed_to_the_user_is_not_called_damaged(shared_folder: Path) -> None:
    box = make_verifiable(shared_folder / "base")
    subprocess.run(["chmod", "-R", "a+rwX", shared_folder / "base"], check=True)
    (box.base / version(1)).chmod(0o000)
    code = (
        "import sys, pathlib\n"
        "from guardrails.report.deep_check import check_deeply\n"
        "from guardrails.paths import Paths\n"
        "from guardrails.report.document import update_document\n"
        "paths = Paths(pathlib.Path(sys.argv[1]))\n"
        "document = update_document(paths, problems=check_deeply(paths).problems)\n"
        "found = {one['id']: one for one in document['warning_details']}\n"
        "assert 'v001: Permission denied' in found['deep-check-incomplete']['message'], found\n"
        "assert found['deep-check-incomplete']['severity'] == 'info'\n"
        "assert not [name for name in found if 'damaged' in name], found\n"
    )
    run_unprivileged(code, box.base)
    assert "deep-check-incomplete" in later_findings(box)
    (box.base / version(1)).chmod(0o644)
    assert deep_findings(box) == {}


def test_a_model_that_is_exchanged_meanwhile_is_not_called_damaged(box: Verifiable) -> None:
    done = threading.Event()

    def publish() -> None:
        while not done.is_set():
            for name in ("v001", "v002"):
                box.publish_by_exchange(name)

    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish)
        try:
            for _ in range(20):
                assert check_deeply(box.paths).problems == []
        finally:
            done.set()
        publishing.result()


QUICK_CASES = ("publish", "rollback of a change by hand", "restore of a damaged version", "prune", "repair of versions")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.faults] * (n not in QUICK_CASES)) for n in CASES])
def test_no_command_of_the_store_leaves_anything_to_find(warm: Warm, tmp_path: Path, name: str) -> None:
    paths = make_template(name, tmp_path / "base")
    done = warm.run(paths, *CASES[name].command)
    assert done.code == 0, done
    # The weights of these stores are no LoRA weights.
    found = {problem.words for problem in check_deeply(paths).problems if problem.finding != "model-adapter-broken"}
    assert found == set()


def test_only_so_many_of_a_kind_are_remembered(box: Verifiable) -> None:
    one = Problem("queue", "queue-file-missing", "", "", "2026-11-21T10:00:00Z", {}, [])
    write_problems(box.paths, [one._replace(words=f"{n}.jsonl of queue/completed/") for n in range(600)])
    assert len(read_problems(box.paths)) == MOST_OF_A_KIND
    assert f"(and {MOST_OF_A_KIND - 1} more)" in later_findings(box)["queue-file-missing"]["message"]


@pytest.mark.parametrize("options", [["--json"], ["--check"]])
def test_a_report_does_not_pay_for_it(box: Verifiable, options: list[str]) -> None:
    check_deeply(box.paths)
    command = [sys.executable, "-X", "importtime", str(SCRIPT), *options, "--base-dir", str(box.base)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "guardrails.report.facts" in done.stderr
    for name in ("deep_", "adapter_check", "state_watch", "state_screen", "state_look", "blake3", "rich"):
        assert name not in done.stderr, name
