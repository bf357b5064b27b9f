"""What is printed for cron and written for systemd works as it stands, for any base dir."""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails import schedule
from guardrails.alerts.addresses import ALERT_VARIABLE, HEARTBEAT_VARIABLE
from guardrails.config import starting_config
from guardrails.errors import OperationError
from guardrails.paths import CODE_DIR
from guardrails.schedule import crontab_lines
from guardrails.state_io import write_json
from guardrails.units import FINAL_CODES, WATCHDOG_SECONDS, quote_word, write_units
from guardrails.worker_process import GRACE_SECONDS, HANG_SECONDS
from tests.box import Box
from tests.disks import as_root
from tests.processes import wait_until
from tests.receivers import Webhook
from tests.state.building import BaseDir, healthy, run_tracker
from tests.store import make_store

# All that shells, cron and systemd take for something else.
ODD = "größe 模型 %h 50%% $HOME `x` 'a' \"b\" \\n;&#"
TIMES = re.compile(r"(?:[\d*/,-]+ ){5}|@reboot ")


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    yield webhook
    webhook.close()


@pytest.fixture
def base(tmp_path: Path) -> BaseDir:
    return healthy(tmp_path / ODD)


def write_secrets(base: Path, text: str) -> None:
    path = base / ".alerts.env"
    path.write_text(text)
    path.chmod(0o600)


def find_jobs(lines: list[str]) -> tuple[list[str], list[str]]:
    """The commands of a crontab and those that are commented out, as cron hands them to the shell."""
    ready: list[str] = []
    not_yet: list[str] = []
    for line in lines:
        rest = line.removeprefix("# ")
        match = TIMES.match(rest)
        if match is None:
            assert not line or line.startswith("#"), line
            continue
        command = re.split(r"(?<!\\)%", rest[match.end() :])
        assert len(command) == 1, "to cron the rest were input"
        (ready if rest == line else not_yet).append(command[0].replace(r"\%", "%"))
    return ready, not_yet


def run_as_cron(command: str) -> subprocess.CompletedProcess[str]:
    """With nothing in the environment, in another folder; what is printed would be mailed."""
    return subprocess.run(
        ["env", "-i", "/bin/sh", "-c", command], capture_output=True, text=True, cwd="/", timeout=120, check=False
    )


def test_each_line_of_the_crontab_runs_with_an_empty_environment_and_prints_nothing(
    webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_store(tmp_path / ODD, 2, backups=True)
    write_secrets(paths.base, f"{ALERT_VARIABLE}={webhook.url()}\n{HEARTBEAT_VARIABLE}={webhook.heartbeat()}\n")
    settings = {"after_checks": 1, "min_severity": "critical"}
    paths.config.write_text(starting_config(base_model="missing", alerts=settings))
    remote, metrics = tmp_path / "remote", tmp_path / "node exporter"
    remote.mkdir()
    metrics.mkdir()
    pushed = {
        "schema_version": 1,
        "remotes": {f"file://{remote}": {"pushed_at": "2026-11-21T10:00:00Z", "versions": []}},
    }
    write_json(paths.remotes, pushed)
    monkeypatch.setattr(schedule, "METRICS_FOLDERS", (str(tmp_path / "none"), str(metrics)))
    ready, not_yet = find_jobs(list(crontab_lines(paths)))
    said = [run_as_cron(command) for command in ready]
    assert [(done.returncode, done.stdout, done.stderr) for done in said] == [(0, "", "")] * 5
    assert (len(webhook.posts), webhook.gets) == (1, ["/ping"])
    (file,) = metrics.iterdir()
    assert file.name.endswith(".prom")
    assert "training_verdict" in file.read_text()
    assert sorted(path.name for path in (remote / "versions").iterdir()) == ["v001.json", "v002.json"]
    assert [command.split(" --base-dir")[0] for command in not_yet] == [
        f"{sys.executable} {CODE_DIR / 'training_daemon.py'}"
    ]
    # What goes wrong is what cron mails.
    webhook.status = 500
    (paths.version("v001") / "metadata.json").unlink()
    failed = [run_as_cron(command) for command in ready[:3]]
    assert [(done.returncode, done.stdout) for done in failed] == [(1, ""), (0, ""), (31, "")]
    assert all(done.stderr.startswith("error: ") for done in (failed[0], failed[2]))


def test_lines_that_could_not_work_yet_are_comments(base: BaseDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "METRICS_FOLDERS", ("/no/such/folder",))
    lines = list(crontab_lines(base.paths))
    ready, not_yet = find_jobs(lines)
    assert [command.split()[1].rpartition("/")[2] for command in ready] == ["model_versioner.py", "backup_manager.py"]
    assert [
        word
        for command in not_yet
        for word in ("--alert", "--prometheus", "push", "training_daemon.py")
        if word in command
    ] == [
        "--alert",
        "--prometheus",
        "push",
        "training_daemon.py",
    ]
    assert any(f"first write an address into {base.base}/.alerts.env" in line for line in lines)
    assert "# MAILTO=you@example.org" in lines


def test_the_command_prints_the_crontab_and_writes_nothing(base: BaseDir) -> None:
    done = run_tracker(base.base, "--cron-example", env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == list(crontab_lines(base.paths))
    assert not base.paths.system_state.exists()


@pytest.mark.parametrize("name", ["line\nbreak", "es\x1bcape", "no text \udcff"])
def test_a_name_that_no_line_can_have_is_refused(tmp_path: Path, name: str) -> None:
    base = BaseDir(tmp_path / name)
    with pytest.raises(OperationError, match="has a line break or the like in its name"):
        list(crontab_lines(base.paths))
    with pytest.raises(OperationError):
        write_units(base.paths, tmp_path / "units")
    assert not (tmp_path / "units").exists()


# systemd


def verify(units: list[Path], *options: str) -> None:
    """systemd finds nothing to say about the units."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    # Short: units of other packages put the address of a socket there, which has at most 107 bytes.
    with tempfile.TemporaryDirectory() as runtime_dir:
        done = subprocess.run(
            [program, "verify", *options, *map(str, units)],
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": runtime_dir},
            check=False,
        )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def read_unit(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        key, is_assignment, value = line.partition("=")
        if is_assignment and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("folder", ["system", "user"])
def test_systemd_has_nothing_to_say_about_the_units(
    base: BaseDir, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "METRICS_FOLDERS", (str(tmp_path),))
    base.config(base_model=str(tmp_path / "a model"), backup_dir="/srv")
    units = write_units(base.paths, tmp_path / "systemd" / folder)
    assert [unit.suffix for unit in units] == [".service", ".service", ".timer"]
    assert all(re.fullmatch(r"training-(daemon|report)-[A-Za-z0-9_.-]+\.(service|timer)", unit.name) for unit in units)
    verify(units, *(["--user"] if folder == "user" else []))
    daemon, report, timer = map(read_unit, units)
    assert daemon["WantedBy"] == ["default.target" if folder == "user" else "multi-user.target"]
    assert ("User" in daemon, "ProtectSystem" in daemon) == (folder != "user",) * 2
    assert [line[:2] for line in report["ExecStart"]] == [f":{sys.executable[0]}", "-:"]
    assert timer["OnCalendar"] == ["*:0/5"]


def test_the_daemon_has_the_time_that_it_needs(base: BaseDir, tmp_path: Path) -> None:
    daemon = read_unit(write_units(base.paths, tmp_path / "units")[0])
    assert daemon["Type"] == ["notify"]
    assert daemon["Restart"] == ["on-failure"]
    assert daemon["RestartPreventExitStatus"] == [FINAL_CODES]
    assert int(daemon["WatchdogSec"][0]) == WATCHDOG_SECONDS > HANG_SECONDS, "first it ends a hung worker by itself"
    assert "gets nowhere for 32 minutes" in (CODE_DIR / "docs/STATE_TRACKER_GUIDE.md").read_text()
    assert WATCHDOG_SECONDS == 32 * 60
    assert int(daemon["TimeoutStopSec"][0]) > GRACE_SECONDS, "first it ends a silent worker by itself"
    assert (daemon["KillMode"], daemon["OOMPolicy"]) == (["control-group"], ["continue"]), (
        "a worker's end is its matter"
    )
    assert daemon["ConditionPathExists"][0].endswith("/.stop")


@as_root
def test_units_run_as_who_owns_the_base_dir(base: BaseDir, tmp_path: Path) -> None:
    os.chown(base.base, pwd.getpwnam("games").pw_uid, -1)
    daemon, report, _ = map(read_unit, write_units(base.paths, tmp_path / "units"))
    assert (daemon["User"], report["User"]) == (["games"], ["games"])
    os.chown(base.base, 43210, -1)
    assert read_unit(write_units(base.paths, tmp_path / "units")[0])["User"] == ["43210"]


def test_a_base_dir_among_the_systems_folders_can_be_written_to(base: BaseDir, tmp_path: Path) -> None:
    base.config(backup_dir="/usr/local/backups")
    assert "ProtectSystem" not in read_unit(write_units(base.paths, tmp_path / "units")[0])


def test_units_are_written_over_their_older_selves_and_nothing_else(tmp_path: Path) -> None:
    one, other = BaseDir(tmp_path / "a b"), BaseDir(tmp_path / "a-b")
    units = write_units(one.paths, tmp_path / "units")
    text = units[0].read_text()
    units[0].write_text(text + "# old\n")
    assert write_units(one.paths, tmp_path / "units") == units
    assert units[0].read_text() == text
    with pytest.raises(OperationError, match="is there already and not of this base dir; nothing was written"):
        write_units(other.paths, tmp_path / "units")
    assert units[0].read_text() == text
    assert units[0].stat().st_mode & 0o777 == 0o644


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    base = BaseDir(tmp_path / "llm")
    done = run_tracker(base.base, "--systemd", "units", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    name = str(base.base).strip("/").replace("/", "-")
    assert done.stdout.splitlines() == [
        f"wrote {tmp_path}/units/training-daemon-{name}.service",
        f"wrote {tmp_path}/units/training-report-{name}.service",
        f"wrote {tmp_path}/units/training-report-{name}.timer",
        "next: systemctl daemon-reload",
        f"next: systemctl enable --now training-daemon-{name}.service training-report-{name}.timer",
    ]
    done = run_tracker(base.base, "--systemd", "user", "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert [Path(path).exists() for path in said["written"]] == [True] * 3
    assert said["next"][0] == "systemctl --user daemon-reload"
    assert said["next"][-1] == "loginctl enable-linger"
    assert not base.paths.system_state.exists()
    assert run_tracker(base.base, "--systemd", "x", "--check").returncode == 2


def test_no_word_of_a_unit_means_anything_but_itself() -> None:
    assert quote_word("/opt/llm/a-b_c.py") == "/opt/llm/a-b_c.py"
    assert quote_word("") == '""'
    assert quote_word('a b%h\\n"c$d') == '"a b%%h\\\\n\\"c$d"'


# Of a hybrid system, and of one with the second version alone.
CGROUP_TREES = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
# A manager in namespaces and a cgroup of its own; what runs below it ends with it.
MANAGER = """
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system /run/user || exit 77
for folder in $2; do echo $$ >"$folder/cgroup.procs" || exit 77; done
export XDG_RUNTIME_DIR=/run/user XDG_CONFIG_HOME="$1" HOME="$1"
/lib/systemd/systemd --user --unit=basic.target >"$1/log" 2>&1 &
for _ in $(seq 100); do
    systemctl --user is-active -q basic.target && exec sh -eu "$3" "$4" "$5" "$6"
    sleep 0.1
done
exit 77
"""
# Arguments: daemon, report and timer.
SERVE = """
show() { systemctl --user show "$@"; }
systemctl --user start "$1"
echo started; show "$1" -p ActiveState -p StatusText -p NRestarts
kill -STOP "$(show -P MainPID "$1")"
until [ "$(show -P NRestarts "$1")" = 1 ] && systemctl --user is-active -q "$1"; do sleep 0.1; done
echo restarted; show "$1" -p ActiveState -p StatusText
systemctl --user start "$2" "$3"
echo reported; show "$2" -p Result -p ExecMainStatus
echo waiting; show "$3" -p ActiveState
systemctl --user stop "$1"
echo stopped; show "$1" -p ActiveState -p Result -p ExecMainStatus
touch "$STOP_FILE"
systemctl --user start "$1"
echo held; show "$1" -p ActiveState -p ConditionResult
"""


def run_in_manager(folder: Path, script: str, units: list[Path], **environment: str) -> str:
    """What a shell script prints whose ``systemctl --user`` knows the units in ``folder/systemd/user``."""
    if not (Path("/lib/systemd/systemd").exists() and shutil.which("unshare")):
        pytest.skip("systemd is not installed")
    trees = [tree for tree in map(Path, CGROUP_TREES) if (tree / "cgroup.procs").exists()]
    cgroups = [tree / f"guardrails-{os.getpid()}" for tree in trees]
    try:
        for cgroup in cgroups:
            cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroups here: {error.strerror}")
    (folder / "manager").write_text(MANAGER)
    (folder / "script").write_text(script)
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", str(folder / "manager")]
    arguments = [str(folder), " ".join(map(str, cgroups)), str(folder / "script"), *(unit.name for unit in units)]
    try:
        values = {**os.environ, **environment}
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=values, timeout=120, check=False
        )
    finally:
        for cgroup in cgroups:
            remove_cgroup(cgroup)
    log = folder / "log"
    if done.returncode == 77:
        pytest.skip(f"no manager can be started here: {done.stderr}{log.read_text() if log.exists() else ''}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def remove_cgroup(cgroup: Path) -> None:
    """It can go, and what is below it, when the last process in it is gone."""
    for folder, _, _ in os.walk(cgroup, topdown=False):

        def is_gone(folder: str = folder) -> bool:
            try:
                os.rmdir(folder)
            except OSError:
                return False
            return True

        wait_until(is_gone)


# Arguments as above; the files that tell how far the run is, and what there was before a restart.
TRAIN = """
show() { systemctl --user show "$@"; }
trained() {
    until grep -q '"phase": "training"' "$STATUS" && grep -q '"run_step": [1-9]' "$STATUS"; do sleep 0.1; done
}
systemctl --user start "$1"
trained
kill -KILL "$(show -P MainPID "$1")"
until [ "$(show -P NRestarts "$1")" = 1 ] && systemctl --user is-active -q "$1"; do sleep 0.1; done
until grep -q "from step" "$LOGS"/daemon_*; do sleep 0.1; done
trained
systemctl --user stop "$1"
echo stopped; show "$1" -p ActiveState -p Result -p ExecMainStatus
"""


@as_root
@pytest.mark.faults
@pytest.mark.training
def test_under_systemd_a_killed_daemon_and_a_stop_cost_no_step(tmp_path: Path, tiny_model: Path) -> None:
    box = Box(tmp_path / "base", tiny_model, save_minutes=60)
    box.drop("math.jsonl", rows=8000)
    units = write_units(box.paths, tmp_path / "home/systemd/user")
    status, logs = str(box.paths.training_status), str(box.paths.logs)
    said = run_in_manager(tmp_path / "home", TRAIN, units, STATUS=status, LOGS=logs, OMP_NUM_THREADS="1")
    assert said.splitlines()[0] == "stopped"
    assert set(said.splitlines()[1:]) == {"ActiveState=inactive", "Result=success", "ExecMainStatus=0"}
    log = "".join(path.read_text() for path in box.paths.logs.iterdir())
    assert re.search(r"attempt 1, from step [1-9]", log), log
    assert re.search(r"at rest, goes on from step [1-9]", log), log
    assert box.names("processing") == ["math.jsonl"]


@as_root
def test_a_real_systemd_starts_watches_restarts_and_stops_the_daemon(tmp_path: Path, tiny_model: Path) -> None:
    box = Box(tmp_path / ODD, tiny_model)
    units = write_units(box.paths, tmp_path / "home/systemd/user")
    quicker = Path(f"{units[0]}.d")
    quicker.mkdir()
    (quicker / "quicker.conf").write_text("[Service]\nWatchdogSec=2\nRestartSec=0\n")
    lines = run_in_manager(tmp_path / "home", SERVE, units, STOP_FILE=str(box.paths.emergency_stop)).splitlines()
    said: dict[str, dict[str, str]] = {}
    section = ""
    for line in lines:
        key, is_property, value = line.partition("=")
        if is_property:
            said[section][key] = value
        else:
            section = key
            said[section] = {}
    active = {"ActiveState": "active", "StatusText": "idle"}
    assert said == {
        "started": {**active, "NRestarts": "0"},
        "restarted": active,
        "reported": {"Result": "success", "ExecMainStatus": "0"},
        "waiting": {"ActiveState": "active"},
        "stopped": {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"},
        "held": {"ActiveState": "inactive", "ConditionResult": "no"},
    }
    assert (box.state()["state"], box.state()["exit_code"]) == ("stopped", 0)
    assert box.paths.system_state.exists()
