"""Findings on daemon, queue, disk and backups: fired by their real causes, cleared by the commands they name."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL
from typing import NamedTuple

import psutil
import pytest

from guardrails.config import load_config
from guardrails.config_lock import fingerprint_base_model, make_lock, write_lock
from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import read_json
from guardrails.store.model_backups import back_up_version
from tests.disks import mounted
from tests.processes import run_python, wait_until
from tests.state.building import Json
from tests.state.fixing import Patient, complete_run, train
from tests.state.verifiable import flip_byte
from tests.store import WEIGHTS, copy_store, make_store
from tests.warm import Warm

HERE = {
    *("daemon-not-running", "daemon-died", "daemon-failed", "daemon-stop-file", "queue-held", "queue-failed"),
    *("clock-moved-back", "queue-file-missing", "queue-record-missing", "queue-data-changed"),
    *("queue-version-mismatch", "disk-low", "disk-getting-low", "state-file-damaged", "state-file-unwritable"),
    *("history-damaged", "history-unwritable", "file-unreadable", "backup-damaged", "backup-missing", "backup-stale"),
    *("backup-same-disk", "backup-folder-missing", "backup-bytes-damaged", "deep-check-incomplete"),
}
# What a base dir without a daemon, on a machine with one disk, always has.
EVERYWHERE = ("daemon-not-running", "backup-same-disk")
DEEP = ("--deep",)
ANOTHER_DISK = "/path/on/another/disk"
# Root whom modes stop like anybody else.
MORTAL = "setpriv --bounding-set=-dac_override,-dac_read_search"
# How far a clock that is ahead has to be before it is told of when it is right again, and some more.
AHEAD_SECONDS = 63


class Machine(Patient):
    """Where a base dir lies: daemons that run on it and disks that come and go, all of which end with the test."""

    def __init__(self, paths: Paths, warm: Warm, stack: ExitStack) -> None:
        super().__init__(paths, warm)
        self.stack = stack
        self.folder = paths.base.parent
        self.daemon: subprocess.Popen[bytes] | None = None
        # A hint names its base dir itself.
        self.environment["TRAINING_BASE_DIR"] = "/nowhere"
        # Any python3 will do; one behind a shim of a version manager takes its time.
        self.environment["PATH"] = f"{sys.base_prefix}/bin:{os.environ['PATH']}"

    def move_to(self, base: Path) -> None:
        """Go on with a copy of the base dir."""
        self.paths = copy_store(self.paths, base)

    def toolkit(self, line: str, code: int = 0) -> str:
        """A command of the toolkit, on this base dir."""
        if line.startswith("python3 backup_manager.py"):
            done = self.warm.run(self.paths, *line.split()[1:])
            assert done.code == code, done
            return done.stdout
        return self.shell(f"{line} --base-dir {self.paths.base}".replace("python3", sys.executable, 1), code)

    def mount(self, options: str, disk: Path, where: Path) -> None:
        """Mount something that the test may unmount, and that is unmounted after it."""
        where.mkdir(exist_ok=True)
        command = ["mount", *options.split(), str(disk), str(where)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        self.stack.callback(lambda: subprocess.run(["umount", "-lq", str(where)], check=False))

    def start(self, line: str) -> None:
        """A daemon, as this line starts it."""
        self.daemon = subprocess.Popen(
            ["sh", "-c", line], cwd=CODE_DIR, env=self.environment, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
        self.stack.callback(kill_tree, self.daemon)

    def said(self) -> Json:
        return read_json(self.paths.daemon_status) or {}


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a process and all that it started, as an operating system out of memory may."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.wait()


# A base dir as two trainings leave it


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Two published versions with backups, and all that a daemon asks for before it trains."""
    paths = make_store(tmp_path_factory.mktemp("template") / "base", versions=0)
    folder = paths.base / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    write_lock(paths, make_lock(load_config(paths), fingerprint_base_model(paths, folder), "first training"))
    for number in (1, 2):
        back_up_version(paths, train(paths, number))
    return paths


@pytest.fixture
def box(template: Paths, tmp_path: Path, warm: Warm) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(copy_store(template, tmp_path / "base"), warm, stack)


# What people and machines do

Act = Callable[[Machine], object]


def script(line: str) -> Act:
    """A line that somebody types in the base dir."""
    return lambda box: box.shell(line, folder=box.paths.base)


def configure(old: str, new: str) -> Act:
    """A setting, changed with an editor."""
    return script(f"grep -q '{old}' config.json && sed -i 's#{old}#{new}#' config.json")


def toolkit(line: str, code: int = 0) -> Act:
    """A command of the toolkit, on this base dir."""
    return lambda box: box.toolkit(f"python3 {line.format(box=box)}", code)


def all_of(*acts: Act) -> Act:
    return lambda box: [act(box) for act in acts]


def explained(finding: str, number: int, name: str = "", meant: str = "", before: str = "") -> Act:
    """The command of this number that the explanation names; its example ``name`` is what is ``meant`` here."""

    def act(box: Machine) -> None:
        command = box.explain(finding)[number]
        assert name in command, command
        box.carry_out(before + command.replace(name, meant))

    return act


def with_sqlite(act: Act) -> Act:
    return lambda box: act(box) if shutil.which("sqlite3") else pytest.skip("no sqlite3 shell here")


def nothing(_: Machine) -> None:
    pass


def starts_daemon(box: Machine, hint: str) -> None:
    box.start(hint)


def is_not_run(_: Machine, __: str) -> None:
    """There is another way, and it is the person's."""


def finds_no_copy(box: Machine, hint: str) -> None:
    box.shell(hint, 31)


def daemon_idle(box: Machine) -> None:
    box.start(f"python3 training_daemon.py --base-dir {box.paths.base}")
    wait_until(lambda: box.said().get("state") == "idle")


def kill_daemon(box: Machine) -> None:
    assert box.daemon is not None
    kill_tree(box.daemon)


def lose_backup_disk(box: Machine) -> None:
    """The daemon has trained a file and finds no place for its backup."""
    configure('"backup_dir": null', '"backup_dir": "../disk"')(box)
    complete_run(box.paths, 3)
    box.start(f"python3 training_daemon.py --base-dir {box.paths.base}")
    wait_until(lambda: box.said().get("state") == "held")


def lose_worker(box: Machine) -> None:
    """The worker of the only attempt is killed, as where the system is out of memory."""
    configure('"max_attempts": 3', '"max_attempts": 1')(box)
    MORE(box)
    box.start(f"exec python3 training_daemon.py --once --base-dir {box.paths.base}")
    assert box.daemon is not None
    daemon = psutil.Process(box.daemon.pid)
    wait_until(lambda: box.said().get("state") == "training" and daemon.children())
    for worker in daemon.children():
        worker.kill()
    assert box.daemon.wait(20) == 40


def ahead(code: str) -> Act:
    """Python whose clock is some time ahead, and right again after it."""
    lines = (
        f"import pathlib, sys, time; real = time.time; time.time = lambda: real() + {AHEAD_SECONDS}",
        "from tests.state.test_state_fixes_daemon import *; from guardrails.report.document import update_document",
        "paths = Paths(pathlib.Path(sys.argv[1]))",
        code,
    )
    return lambda box: run_python("\n".join(lines), box.paths.base).check_returncode()


def caught_up(box: Machine) -> None:
    wait_until(lambda: "clock-moved-back" not in box.report())


def small_disk(size: str) -> Act:
    def act(box: Machine) -> None:
        box.move_to(box.stack.enter_context(mounted("tmpfs", box.folder, size)) / "base")

    return act


def another_disk(box: Machine) -> None:
    """A disk with a folder for backups, mounted at ``mnt``."""
    disk = box.stack.enter_context(mounted("tmpfs", box.folder))
    (disk / "backups").mkdir()
    box.mount("--bind", disk, box.folder / "mnt")


def back_up_there(box: Machine) -> None:
    configure('"backup_dir": null', '"backup_dir": "../mnt/backups"')(box)
    toolkit("backup_manager.py backup current_model/")(box)


def readonly(name: str) -> Act:
    """A folder on a disk that goes read-only after an error, until it is mounted again."""

    def act(box: Machine) -> None:
        folder = box.paths.base / name
        box.mount("--bind", folder, folder)
        box.mount("-o remount,ro,bind", folder, folder)

    return act


def check_as_others(box: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs two users")
    box.toolkit(f"{MORTAL} python3 state_tracker.py --deep")


def follow(finding: str) -> Act:
    """A finding that the step brought in, and its hint."""
    return lambda box: box.shell(box.need(finding)["hint"])


class Case(NamedTuple):
    """A finding, its cause, what a person does ``before`` and ``after`` its fix command, and how that is run."""

    id: str
    cause: Act
    before: Act = nothing
    after: Act = nothing
    run: Callable[[Machine, str], object] = Machine.shell
    options: tuple[str, ...] = ()
    severity: str | None = None


BACKUP_FILE = f"models/backups/b002/model/{WEIGHTS}"
RECORD = "queue/.records/1.jsonl.json"
FILL = "mount -o remount,size=2m ..; dd if=/dev/zero of=filler bs=64k status=none || true"
GROW = "mount -o remount,size=60g .."
MORE = all_of(script("echo more > ../more.jsonl"), toolkit("training_queue.py add {box.folder}/more.jsonl"))
FROM_THE_INBOX = all_of(script("mv queue/completed/1.jsonl inbox/"), toolkit("training_queue.py process-inbox"))
CASES = [
    Case("daemon-not-running", all_of(daemon_idle, kill_daemon), run=starts_daemon),
    Case("daemon-died", all_of(lose_backup_disk, kill_daemon), script("mkdir ../disk"), run=starts_daemon),
    Case(
        "daemon-failed",
        all_of(script("mv base away"), toolkit("training_daemon.py", 10)),
        script("mv away base"),
        run=starts_daemon,
    ),
    Case("daemon-stop-file", script("touch .stop")),
    Case("queue-held", lose_backup_disk, script("mkdir ../disk")),
    Case(
        "queue-failed",
        lose_worker,
        after=all_of(
            explained("queue-failed", 1, "NAME", "more.jsonl", "python3 training_queue.py "),
            lambda box: box.assert_gone("queue-failed"),
            explained("queue-failed", 2, "NAME", "more.jsonl", "python3 training_queue.py "),
        ),
    ),
    Case(
        "queue-file-missing",
        all_of(MORE, script("rm queue/normal/*")),
        after=script("cp ../more.jsonl queue/normal/"),
        options=DEEP,
    ),
    Case(
        "queue-file-missing",
        all_of(MORE, script("rm queue/normal/*")),
        after=explained("queue-file-missing", 0, "NAME", "more.jsonl"),
        options=DEEP,
    ),
    Case(
        "queue-file-missing",
        script("rm queue/completed/1.jsonl"),
        after=explained("queue-file-missing", 0, "NAME", "1.jsonl"),
        options=DEEP,
        severity="info",
    ),
    Case("queue-record-missing", script(f"rm {RECORD}"), after=FROM_THE_INBOX, options=DEEP),
    Case("queue-record-missing", script(f"truncate -s -9 {RECORD}"), after=FROM_THE_INBOX, options=DEEP),
    Case(
        "queue-data-changed",
        script("cp queue/completed/1.jsonl ..; sed -i s/1/one/ queue/completed/1.jsonl"),
        after=script("cp ../1.jsonl queue/completed/"),
        options=DEEP,
    ),
    Case(
        "queue-version-mismatch",
        script(f"sed -i s/v001/v002/ {RECORD}"),
        after=all_of(
            explained("queue-version-mismatch", 0, "NAME", "1.jsonl"),
            explained("queue-version-mismatch", 1, "lineage V", "lineage v001"),
            script(f"sed -i s/v002/v001/ {RECORD}"),
        ),
        options=DEEP,
    ),
    Case("disk-low", small_disk("9g"), after=script(GROW)),
    Case("disk-getting-low", small_disk("40g"), after=script(GROW)),
    Case("state-file-damaged", script("truncate -s -100 .system_state.json")),
    Case("state-file-unwritable", all_of(small_disk("60g"), script(FILL)), after=script(GROW)),
    Case(
        "state-file-unwritable",
        all_of(small_disk("60g"), script(f"rm .system_state.json; {FILL}")),
        after=script(GROW),
    ),
    Case("state-file-unwritable", readonly("."), after=script("cd ..; umount base")),
    Case(
        "history-damaged",
        script("dd if=/dev/urandom of=status/state_history.db bs=64 count=1 conv=notrunc status=none"),
        with_sqlite(explained("history-damaged", 0)),
    ),
    Case(
        "history-unwritable", all_of(readonly("status"), script("touch .stop")), after=script("rm .stop; umount status")
    ),
    Case(
        "history-unwritable",
        all_of(script("rm status/*.db*"), readonly("status"), script("touch .stop")),
        after=script("rm .stop; umount status"),
    ),
    Case(
        "history-unwritable",
        with_sqlite(script("sqlite3 status/state_history.db 'PRAGMA user_version = 9'")),
        after=script("sqlite3 status/state_history.db 'PRAGMA user_version = 1'"),
    ),
    *(
        Case(f"file-unreadable:{file}", script(f"truncate -s -5 {file}"), after=follow(next_finding))
        for file, next_finding in ((".config_lock.json", "config-lock-missing"), ("models/head.json", "model-unsaved"))
    ),
    Case("file-unreadable:status/daemon.json", script("echo '{' > status/daemon.json")),
    Case("file-unreadable:models/intent.json", script("echo '{' > models/intent.json")),
    Case(
        "file-unreadable:models/head.json",
        script('sed -i \'s/"schema_version": 1/"schema_version": 2/\' models/head.json'),
        after=script('sed -i \'s/"schema_version": 2/"schema_version": 1/\' models/head.json'),
    ),
    Case(
        "file-unreadable:queue/failed",
        script("rmdir queue/failed; touch queue/failed"),
        after=script("rm queue/failed; mkdir queue/failed"),
    ),
    Case("backup-damaged:b002", script(f"rm {BACKUP_FILE}")),
    Case("backup-damaged:b002", script("truncate -s -9 models/backups/b002/metadata.json")),
    Case(
        "backup-damaged:b003",
        all_of(toolkit("backup_manager.py backup {box.paths.config}"), script("rm models/backups/b003/model/*")),
        after=explained("backup-damaged", 1, "bNNN", "b003"),
        run=finds_no_copy,
    ),
    Case("backup-missing", script("rm -rf models/backups/b00*")),
    Case(
        "backup-missing",
        all_of(configure("after_each", "off"), script("rm -rf models/backups/b00*")),
        severity="info",
    ),
    Case("backup-stale", lambda box: train(box.paths, 3)),
    Case("backup-same-disk", another_disk, after=follow("backup-missing"), severity="info"),
    Case(
        "backup-same-disk",
        all_of(
            another_disk,
            script("mkdir near"),
            configure('"backup_dir": null', '"backup_dir": "near"'),
            toolkit("backup_manager.py backup current_model/"),
        ),
        after=follow("backup-missing"),
        severity="warning",
    ),
    Case(
        "backup-folder-missing",
        all_of(another_disk, back_up_there, script("umount ../mnt")),
        after=script("mount --bind ../disk ../mnt"),
        run=is_not_run,
    ),
    Case(
        "backup-folder-missing",
        all_of(another_disk, back_up_there, script("umount ../mnt")),
        after=follow("backup-missing"),
    ),
    Case("backup-bytes-damaged:b002", lambda box: flip_byte(box.paths.base / BACKUP_FILE), options=DEEP),
    Case("clock-moved-back", ahead("back_up_version(paths, train(paths, 3))"), after=caught_up),
    Case("clock-moved-back", ahead("update_document(paths)")),
    Case("deep-check-incomplete", all_of(script("chmod 000 models/versions/v001/model/*"), check_as_others)),
]


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_what_the_finding_says_that_helps_clears_it(box: Machine, case: Case) -> None:
    before = box.report(*case.options).keys()
    assert case.id not in before or case.id in EVERYWHERE
    case.cause(box)
    found = box.need(case.id, *case.options)
    assert case.severity in (None, found["severity"])
    case.before(box)
    case.run(box, found["hint"].replace(ANOTHER_DISK, f"{box.folder}/mnt"))
    case.after(box)
    if box.daemon is not None:
        wait_until(lambda: case.id not in box.report())
    if case.after is not nothing and (standing := box.report().get(case.id)):
        box.shell(standing["hint"])
    for options in {(), case.options}:
        left = box.report(*options)
        assert left.keys() <= before, left
        assert case.id not in left, left
    if box.daemon is not None and box.daemon.poll() is None:
        os.kill(box.said()["pid"], signal.SIGTERM)
        assert box.daemon.wait(20) == 0


def test_a_backup_is_of_this_base_dir_where_the_toolkit_has_a_model_of_its_own(box: Machine) -> None:
    toolkit_folder = box.folder / "toolkit"
    (toolkit_folder / "current_model").mkdir(parents=True)
    (toolkit_folder / "current_model" / WEIGHTS).write_bytes(b"another model")
    (toolkit_folder / "backup_manager.py").symlink_to(CODE_DIR / "backup_manager.py")
    script("rm -rf models/backups/b00*")(box)
    box.shell(box.need("backup-missing")["hint"], folder=toolkit_folder)
    box.assert_gone("backup-missing")


def test_every_family_of_this_file_has_its_causes() -> None:
    assert {case.id.partition(":")[0] for case in CASES} == HERE
