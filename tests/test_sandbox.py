"""An agent in the sandbox changes neither models nor guards, sees the model change, and rolls back by asking."""

import json
import os
import pty
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails.errors import OperationError
from guardrails.locks import read_holder
from guardrails.paths import CODE_DIR, SANDBOX, Paths
from guardrails.sandbox import check_start, find_bubblewrap, plan_mounts
from guardrails.state_io import write_json
from guardrails.store.change import open_store, say_nothing
from guardrails.store.live_model import restore, rollback, save_version
from guardrails.store.model_backups import back_up
from tests.box import DEADLINE_SECONDS, Box
from tests.processes import run_unprivileged
from tests.store import WEIGHTS, flip, hurt, publish, safetensors, weights_of
from tests.store_commands import read_tree, take_holdings

CONTROLLER = [sys.executable, str(CODE_DIR / "training_controller.py")]


@pytest.fixture(autouse=True)
def bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SANDBOX, raising=False)
    try:
        check_start([find_bubblewrap(), "--dev-bind", "/", "/"])
    except OperationError as error:
        pytest.skip(error.message)


class Agent:
    """A shell in the sandbox of a box, which runs one line after the other."""

    def __init__(self, box: Box) -> None:
        self.process = subprocess.Popen(
            [*CONTROLLER, "agent", "--", "sh"],
            env=box.environment(),
            cwd=box.paths.base,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, line: str, code: int | None = 0) -> str:
        """What a line prints; ``code`` is the exit code that it must have (None: any but 0)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"( {line}\n) 2>&1 </dev/null; printf '\\nended with %s\\n' $?\n")
        self.process.stdin.flush()
        shown = ""
        while not (last := self.process.stdout.readline()).startswith("ended with "):
            assert last, shown
            shown += last
        ended = int(last.rpartition(" ")[2])
        assert ended == code if code is not None else ended != 0, (line, ended, shown)
        return shown.removesuffix("\n")

    def script(self, name: str, *arguments: str, code: int | None = 0) -> str:
        return self.run(" ".join([sys.executable, str(CODE_DIR / name), *arguments]), code)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.communicate(timeout=DEADLINE_SECONDS)


@pytest.fixture
def trained(tmp_path: Path, tiny_model: Path) -> Iterator[Box]:
    """A box with three versions, and base model and backups outside the base dir."""
    model = tmp_path / "base model"
    shutil.copytree(tiny_model, model)
    (tmp_path / "backups").mkdir()
    box = Box(tmp_path / "base", model, backup_dir=str(tmp_path / "backups"))
    for number in (1, 2, 3):
        put_model(box.paths, number)
        with open_store(box.paths, "test"):
            save_version(box.paths, f"model {number}", "manual")
    back_up(box.paths, box.paths.current_model, "manual", None)
    yield box
    box.close()


def put_model(paths: Paths, number: int) -> None:
    """A model of the shape that the config asks for, whose weights are ``number`` all over."""
    settings = json.loads(paths.config.read_text())
    keys = {"r": "lora_r", "lora_alpha": "lora_alpha", "target_modules": "lora_target_modules"}
    paths.current_model.mkdir(exist_ok=True)
    adapter = {name: settings[key] for name, key in keys.items()}
    (paths.current_model / "adapter_config.json").write_text(json.dumps(adapter))
    (paths.current_model / WEIGHTS).write_bytes(safetensors(bytes([number]) * 5000))


@pytest.fixture
def agent(trained: Box) -> Iterator[Agent]:
    agent = Agent(trained)
    yield agent
    agent.close()


DESTRUCTION = (
    "rm -rf current_model",
    "mv current_model gone",
    "echo x > current_model/adapter_model.safetensors",
    "rm -rf models",
    "rm -rf models/versions/v001",
    "mv models/versions/v001 inbox",
    "echo x >> models/head.json",
    "rm -rf consolidated_models",
    "rm -rf '../base model'",
    "mv '../base model' ../elsewhere",
    "echo x > '../base model/config.json'",
    "rm -rf ../backups/b001",
    "echo '{}' > config.json",
    "rm .config_lock.json",
    "touch .claude/settings.json",
    "mkdir .gemini",
    "touch new",
    # Nothing is written, should it not be stopped.
    f": >> {CODE_DIR}/guardrails/errors.py",
    f": >> {CODE_DIR}/training_controller.py",
    f": >> {CODE_DIR}/.venv/pyvenv.cfg",
)


def test_models_and_guards_stay_as_they_are(trained: Box, agent: Agent) -> None:
    paths = trained.paths
    write_json(paths.config_lock, {"locked": {}})
    (paths.base / ".claude").mkdir()
    folders = (paths.base / "../base model", paths.base / "../backups", paths.consolidated_models)
    before, others = take_holdings(paths), [read_tree(folder.resolve()) for folder in folders]
    files = [file.read_bytes() for file in (paths.config, paths.config_lock, paths.head)]
    for command in DESTRUCTION:
        assert "Read-only" in agent.run(command, code=None) or "busy" in agent.run(command, code=None), command
    assert take_holdings(paths) == before
    assert [read_tree(folder.resolve()) for folder in folders] == others
    assert [file.read_bytes() for file in (paths.config, paths.config_lock, paths.head)] == files


def test_the_rest_is_as_it_is_outside(trained: Box) -> None:
    (trained.paths.base / "notes").mkdir()
    agent = Agent(trained)
    agent.run("echo 1 > notes/a; mkdir notes/b; mv notes/a notes/b/; rm -r notes/b")
    agent.run("echo 1 > ../beside")
    rows = '{\\"text\\": \\"one two three\\"}'
    agent.run(f'for n in 1 2 3 4 5 6 7 8; do echo "{rows}"; done > inbox/dropped.jsonl')
    agent.script("training_queue.py", "add", "inbox/dropped.jsonl")
    assert trained.names("normal") == ["dropped.jsonl"]
    report = json.loads(agent.script("state_tracker.py", "--json"))
    (finding,) = (one for one in report["warning_details"] if one["id"] == "state-file-unwritable")
    assert finding["severity"] == "info"
    agent.close()


def test_the_model_is_always_the_one_that_has_the_name(trained: Box, agent: Agent) -> None:
    paths = trained.paths
    look = f"cat current_model/{WEIGHTS} | sha256sum"
    shown = [agent.run(look)]
    publish(paths, 4)
    shown.append(agent.run(look))
    rollback(paths, say_nothing)
    shown.append(agent.run(look))
    restore(paths, "v001", say_nothing)
    shown.append(agent.run(look))
    assert weights_of(paths.current_model) == weights_of(paths.version("v001") / "model")
    assert shown[2] == shown[0]
    assert len(set(shown)) == 3
    assert "v004" in agent.run("ls models/versions")
    agent.run("rm -rf current_model", code=None)
    assert trained.head() == "v001"


def run_agent(box: Box, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CONTROLLER, "agent", *command],
        env={**box.environment(), "KEPT": "as it is"},
        cwd=box.paths.inbox,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def test_terminal_input_environment_folder_and_exit_code_are_the_commands_own(trained: Box) -> None:
    done = run_agent(trained, "--", "sh", "-c", f'cat; pwd; echo "$KEPT ${SANDBOX}"; exit 41', stdin="typed\n")
    assert (done.returncode, done.stdout) == (41, f"typed\n{trained.paths.inbox}\nas it is 1\n"), done
    assert run_agent(trained, "sh", "-c", "kill -9 $$").returncode == 137
    assert run_agent(trained, "echo", "--json", "--base-dir").stdout == "--json --base-dir\n"
    assert run_agent(trained, "--", "no-such-command").stderr.startswith("error: there is no command 'no-such-command'")


def test_the_terminal_is_the_agents_and_so_is_ctrl_c(trained: Box) -> None:
    script = 'tty; trap "echo caught; exit 7" INT; echo ready; while :; do sleep 0.05; done'
    pid, leader = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*CONTROLLER, "agent", "--", "sh", "-c", script], trained.environment())
    shown = b""
    while b"ready" not in shown:
        shown += os.read(leader, 4096)
    assert b"/dev/pts/" in shown
    os.write(leader, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    os.close(leader)


def test_without_bubblewrap_or_namespaces_one_line_says_what_helps(trained: Box) -> None:
    environment = {**trained.environment(), "PATH": str(Path(sys.executable).parent)}
    command = [*CONTROLLER, "agent", "--", sys.executable, "-V"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: bubblewrap is not installed\nhint: apt install bubblewrap\n",
    )
    closed = [find_bubblewrap(), "--unshare-user", "--uid", "1000", "--disable-userns", "--dev-bind", "/", "/", "--"]
    done = subprocess.run([*closed, *command], env=trained.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: bubblewrap cannot make a sandbox here: ")
    assert "sysctl kernel.unprivileged_userns_clone=1" in hint


def test_in_a_sandbox_there_is_no_second_one(agent: Agent) -> None:
    assert "this is a sandbox already" in agent.script("training_controller.py", "agent", "true", code=1)


def test_rollback_restore_and_create_are_done_by_the_daemon(trained: Box) -> None:
    trained.start_daemon()
    agent = Agent(trained)
    trained.wait(lambda: trained.state()["state"] == "idle", "idle")
    shown = agent.script("model_versioner.py", "rollback")
    assert "current_model/ is v002\nwent back from v003 to v002\nundo: python3 model_versioner.py restore v003" in shown
    assert trained.head() == "v002"
    shown = agent.script("model_versioner.py", "restore", "v001", "--json", "2>/dev/null")
    assert json.loads(shown)["version"] == "v001"
    assert trained.head() == "v001"
    (trained.paths.current_model / "by-hand").write_text("x")
    assert "created v004" in agent.script("model_versioner.py", "create", "--description", "'--json --help \"'")
    assert trained.versions()[3]["description"] == '--json --help "'
    (trained.paths.current_model / "by-hand").write_text("y")
    assert "undid the change by hand" in agent.script("model_versioner.py", "rollback", "--by-hand")
    assert "hint: " in agent.script("model_versioner.py", "restore", "v009", code=1)
    for arguments in (("delete", "v002", "--confirm"), ("restore", "v001", "--target", "/tmp/copy")):
        assert "is read-only in this sandbox" in agent.script("model_versioner.py", *arguments, code=1)
    assert not list((trained.paths.control / "requests").iterdir())
    assert "asked from a sandbox: rollback" in trained.output()
    agent.close()


def test_the_exit_code_is_that_of_the_command_outside(trained: Box, agent: Agent) -> None:
    hurt(trained.paths.version("v001") / "model" / WEIGHTS, flip)
    trained.start_daemon()
    outside = trained.run("model_versioner.py", "restore", "v001", code=31)
    assert outside.stderr in agent.script("model_versioner.py", "restore", "v001", code=31)


def test_without_a_daemon_a_person_has_to_do_it(trained: Box, agent: Agent) -> None:
    shown = agent.script("model_versioner.py", "rollback", code=1)
    assert f"error: no daemon runs for {trained.paths.base}" in shown
    assert "hint: run this command outside of it" in shown
    assert trained.head() == "v003"
    assert not list(trained.paths.control.glob("requests/*"))
    for command in (("training_daemon.py", "--once"), ("training_controller.py", "config", "set", "log_steps", "3")):
        assert "is read-only in this sandbox" in agent.script(*command, code=1)


def test_stop_and_rollback_in_two_lines_work_inside_too(trained: Box, agent: Agent) -> None:
    trained.start_daemon()
    trained.wait(lambda: trained.state()["state"] == "idle", "idle")
    agent.script("training_controller.py", "stop", "--wait", "30")
    assert read_holder(trained.paths.locks / "daemon.lock") is None
    assert "went back from v003 to v002" in agent.script("model_versioner.py", "rollback")
    agent.close()
    trained.wait_for_end()


@pytest.mark.training
def test_a_run_is_only_dropped_when_it_was_asked_to_end(trained: Box, agent: Agent) -> None:
    trained.drop("one.jsonl")
    trained.start_daemon()
    trained.wait_for_phase("importing")
    assert "error: the daemon trains on one.jsonl" in agent.script("model_versioner.py", "rollback", code=20)
    stop, back = (
        f"{sys.executable} {CODE_DIR / line}" for line in ("training_controller.py stop", "model_versioner.py rollback")
    )
    assert "dropped the run on one.jsonl" in agent.run(f"{stop}\n{back}")
    agent.close()
    trained.wait_for_end()
    assert (trained.names("skipped"), trained.head()) == (["one.jsonl"], "v003")


def test_what_is_old_or_no_request_is_not_carried_out(trained: Box) -> None:
    requests = trained.paths.control / "requests"
    requests.mkdir()
    document = {"verb": "rollback", "argument": None, "as_json": False}
    write_json(requests / f"{1:020d}-00000000.json", document)
    trained.start_daemon()
    trained.wait(lambda: trained.state()["state"] == "idle" and not list(requests.iterdir()), "an empty folder")
    assert "removed a request of before the daemon's start" in trained.output()
    wrong: list[dict[str, object]] = [
        {**document, "verb": "delete", "argument": "v001"},
        {**document, "argument": "--base-dir=/"},
        {**document, "verb": "restore", "argument": "../v001"},
        {**document, "verb": "restore", "argument": "v001", "as_json": "--target=/tmp/x"},
        {**document, "verb": "create", "argument": "\ud800"},
        {"verb": "rollback"},
    ]
    for number, content in enumerate(wrong, start=2):
        write_json(requests / f"{number:020d}-00000000.json", content)
    (requests / f"{9:020d}-00000000.json").write_text("{")
    (requests / "rollback.json").symlink_to(trained.paths.head)
    os.mkfifo(requests / f"{10:020d}-00000000.json")
    trained.wait(lambda: len(list(requests.glob("*.damaged"))) == len(wrong) + 1, "all set aside")
    assert [version["id"] for version in trained.versions()] == ["v001", "v002", "v003"]
    assert trained.head() == "v003"
    assert not list(requests.glob("*.out"))


def test_nobody_inside_gains_more_rights(trained: Box, agent: Agent) -> None:
    assert "NoNewPrivs:\t1" in agent.run("cat /proc/self/status")
    agent.run("mount -o remount,rw,bind .", code=None)
    agent.run("umount .", code=None)
    held = int(agent.run("sed -n 's/^CapEff:\t//p' /proc/self/status"), 16)
    # CAP_LINUX_IMMUTABLE and CAP_SYS_ADMIN of linux/capability.h
    assert not held & (1 << 9 | 1 << 21)
    if os.getuid() == 0:
        agent.run("bwrap --dev-bind / / true", code=None)
    (trained.paths.base / "later").mkdir()
    agent.run("touch later/x", code=None)


def test_a_request_that_cannot_be_carried_out_ends_in_an_error(trained: Box, agent: Agent) -> None:
    trained.start_daemon()
    trained.wait(lambda: trained.state()["state"] == "idle", "idle")
    assert trained.daemon is not None
    # No file of the daemon may grow: what a full disk does.
    resource.prlimit(trained.daemon.pid, resource.RLIMIT_FSIZE, (0, 0))
    assert "error: the daemon ended, or failed, over what it was asked to do" in agent.script(
        "model_versioner.py", "rollback", code=1
    )
    assert trained.head() == "v003"


def test_the_sandbox_is_no_prison(trained: Box, agent: Agent, tmp_path: Path) -> None:
    """The limits that docs/design.md states."""
    trained.start_daemon()
    assert trained.daemon is not None
    (tmp_path / "secret").write_text("read all the same")
    assert "read all the same" in agent.run(f"cat {tmp_path}/secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        agent.run(f"{sys.executable} -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))'")
    agent.run(f"kill -0 {trained.daemon.pid}")
    agent.run("rm -rf queue/completed/1.jsonl")
    assert not (trained.paths.queue_folder("completed") / "1.jsonl").exists()
    beside = tmp_path.with_name(f"{tmp_path.name}-moved")
    agent.run(f"mv {tmp_path} {beside}")
    agent.run(f"mv {beside} {tmp_path}")
    assert trained.head() == "v003"
    # Through a process outside, as whoever may look at it can.
    agent.run(f"touch /proc/{trained.daemon.pid}/root{trained.paths.models}/through")
    assert (trained.paths.models / "through").exists()


UNPRIVILEGED = """
import os, subprocess, sys
from pathlib import Path
from guardrails.sandbox import run_agent
from tests.store import make_store

paths = make_store(Path(sys.argv[1]) / "base", versions=2)
lines = "rm -rf models current_model; mv current_model gone; chmod -R 700 models; touch inbox/x; sudo -n true"
if os.fork() == 0:
    os.chdir(paths.base)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
    run_agent(paths, ["sh", "-c", lines])
os.wait()
assert sorted(path.name for path in paths.versions.iterdir()) == ["v001", "v002"]
assert (paths.current_model / "adapter_config.json").exists()
assert (paths.inbox / "x").exists()
"""


def test_it_needs_no_root(shared_folder: Path) -> None:
    run_unprivileged(UNPRIVILEGED, shared_folder)


def test_no_mount_pins_what_is_exchanged(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "base")
    cache, model, backups = tmp_path / "cache", tmp_path / "hub" / "model", paths.base / "data" / "backups"
    for folder in (*paths.folders(), paths.current_model, cache, model, backups):
        folder.mkdir(parents=True, exist_ok=True)
    (cache / "weights").touch()
    (model / "model.safetensors").symlink_to(cache / "weights")
    paths.config.write_text(json.dumps({"base_model": str(model), "backup_dir": "data/backups"}))
    write_json(paths.config_lock, {"locked": {"base_model": "no/such"}})
    plan = dict(plan_mounts(paths))
    assert plan.keys().isdisjoint({paths.current_model, paths.models, paths.control / "requests"})
    assert [plan[path] for path in (paths.base, paths.inbox, paths.control, paths.base / "data")] == [
        False,
        True,
        True,
        True,
    ]
    assert [plan[path] for path in (backups, model, cache, CODE_DIR)] == [False] * 4
    assert CODE_DIR / "guardrails" not in plan
