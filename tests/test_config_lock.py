"""The config lock: a person approves one change at a time, each is on record, and nothing else changes it."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrails.agents import find_program
from guardrails.config import load_config, set_config_value
from guardrails.config_lock import fingerprint_base_model, make_lock, move_lock, read_approvals, write_lock
from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import append_lines, read_json
from guardrails.store.change import change_config, finish_pending, open_store
from tests import processes
from tests.box import Box
from tests.store import make_store, publish

CONTROLLER = [sys.executable, str(CODE_DIR / "training_controller.py")]


def make_base_model(paths: Paths, name: str) -> None:
    folder = paths.base / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"name": name}))


def lock(paths: Paths, model: str = "base") -> None:
    fingerprint = fingerprint_base_model(paths, paths.base / model, remember=False)
    write_lock(paths, make_lock(load_config(paths), fingerprint, "first training"))


@pytest.fixture
def locked(tmp_path: Path) -> Box:
    """A base dir whose first training has locked 64 tokens, and whose daemon would start a worker if it were let."""
    box = Box(tmp_path / "base", Path("base"), max_length=64)
    make_base_model(box.paths, "base")
    make_base_model(box.paths, "other")
    lock(box.paths)
    return box


def type_at_terminal(box: Box, text: str, *arguments: str) -> tuple[int, str]:
    return processes.type_at_terminal([*CONTROLLER, *arguments], text, box.environment())


def locked_value(box: Box, key: str) -> object:
    return (read_json(box.paths.config_lock) or {})["locked"][key]


def approved(paths: Paths) -> list[tuple[object, ...]]:
    """What is on record, without the taking of the lock."""
    return [(r["key"], r["old"], r["new"], r["how"]) for r in read_approvals(paths) if r["how"] != "first training"]


# A person approves


def test_an_approval_is_of_one_old_and_one_new_value_and_good_for_once(locked: Box) -> None:
    set_code, approve = ("config", "set", "max_length"), ("config", "approve")
    assert type_at_terminal(locked, "max_length", *set_code, "48")[0] == 0
    # Another value, the same value after it was set back, and setting it back: each is asked about anew.
    for value in ("32", "64"):
        code, shown = type_at_terminal(locked, "yes", *set_code, value)
        assert (code, locked_value(locked, "max_length")) == (11, 48), shown
    assert type_at_terminal(locked, "max_length", *set_code, "64")[0] == 0
    set_config_value(locked.paths, "max_length", 48)
    code, shown = type_at_terminal(locked, "max_length", *approve)
    assert (code, "old: 64" in shown, "new: 48" in shown) == (0, True, True), shown
    # A second approve finds nothing that an old approval could be used for.
    assert "nothing differs" in type_at_terminal(locked, "", *approve)[1]
    set_config_value(locked.paths, "max_length", 32)
    assert type_at_terminal(locked, "no", *approve)[0] == 11
    by_set, by_approve = "a person, by config set", "a person, by config approve"
    expected = [("max_length", 64, 48, by_set), ("max_length", 48, 64, by_set), ("max_length", 64, 48, by_approve)]
    assert approved(locked.paths) == expected


def test_what_was_shown_is_what_is_approved(locked: Box) -> None:
    """While the question stands, somebody changes the value again: neither is taken."""
    set_config_value(locked.paths, "max_length", 48)
    code = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv.pop(1))
        import training_controller
        from guardrails.config import set_config_value
        from guardrails.paths import Paths, find_base_dir
        def answer(*question):
            set_config_value(Paths(find_base_dir(None)), "max_length", 4096)
        training_controller.confirm_by_name = answer
        training_controller.run(training_controller.main)
    """)
    command = [sys.executable, "-c", code, str(CODE_DIR), "config", "approve"]
    done = subprocess.run(command, env=locked.environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "changed meanwhile" in done.stderr) == (1, True), done
    assert (locked_value(locked, "max_length"), approved(locked.paths)) == (64, [])


def test_each_of_two_changed_keys_is_asked_about_and_recorded_with_who_and_where(locked: Box) -> None:
    for key, value in (("max_length", 48), ("model_name", "n"), ("base_model", "other")):
        set_config_value(locked.paths, key, value)
    assert type_at_terminal(locked, "max_length\nbase_model\nbase_model", "config", "approve")[0] == 11
    assert approved(locked.paths) == []
    assert type_at_terminal(locked, "max_length\nbase_model\nmodel_name", "config", "approve")[0] == 0
    records = locked.json("training_controller.py", "config", "check")["approvals"][-3:]
    assert [(r["key"], r["old"], r["new"]) for r in records] == [
        ("max_length", 64, 48),
        ("base_model", "base", "other"),
        ("model_name", "tiny", "n"),
    ]
    assert {r["uid"] for r in records} == {os.getuid()}
    assert all(r["tty"].startswith("/dev/pts/") and r["user"] and r["at"].endswith("Z") for r in records)
    assert records[1]["old_fingerprint"] != records[1]["new_fingerprint"]
    # The lock itself says so, too, and people can read it.
    assert (read_json(locked.paths.config_lock) or {})["approval"]["changes"][0]["old"] == 64
    assert "max_length: 64 -> 48" in locked.run("training_controller.py", "config", "check").stdout


def test_other_bytes_of_the_base_model_are_approved_with_their_fingerprints(locked: Box) -> None:
    old = fingerprint_base_model(locked.paths, locked.paths.base / "base", remember=False)["blake3"]
    (locked.paths.base / "base" / "config.json").write_text("{}")
    code, shown = type_at_terminal(locked, "base_model", "config", "approve")
    assert (code, "config.json has other bytes" in shown) == (0, True), shown
    record = read_approvals(locked.paths)[-1]
    assert (record["key"], record["old"], record["new"], record["old_fingerprint"]) == (
        "base_model",
        "base",
        "base",
        old,
    )
    locked.run("training_controller.py", "config", "check")


# Not an agent, as far as can be known


def run_as(box: Box, names: str, script: str, **environment: str) -> tuple[int, str]:
    """``config set max_length 48`` on a pseudo-terminal, started by a program of the given name."""
    program = box.paths.base / names
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    marks = [f"{name}={value}" for name, value in environment.items()]
    command = ["env", *marks, str(program), *CONTROLLER, "config", "set", "max_length", "48"]
    return processes.type_at_terminal(command, "max_length", box.environment())


@pytest.mark.parametrize(
    ("names", "script", "environment", "word"),
    [
        ("bin/shell", 'exec "$@"', {"CLAUDECODE": "1"}, "CLAUDECODE is set"),
        ("bin/shell", 'exec "$@"', {"CODEX_SANDBOX": "seatbelt"}, "CODEX_SANDBOX is set"),
        ("bin/shell", 'exec "$@"', {"GUARDRAILS_AGENT": "1"}, "GUARDRAILS_AGENT is set"),
        ("bin/shell", 'env -u GEMINI_CLI "$@"; exit $?', {"GEMINI_CLI": "1"}, "GEMINI_CLI is set for process"),
        ("bin/claude", '"$@"; exit $?', {}, "is claude"),
    ],
)
def test_under_an_agent_a_pseudo_terminal_is_no_terminal(
    locked: Box, names: str, script: str, environment: dict[str, str], word: str
) -> None:
    code, shown = run_as(locked, names, script, **environment)
    assert (code, locked_value(locked, "max_length")) == (11, 64), shown
    assert word in shown
    assert "hint: as a person, open a terminal of your own" in shown
    assert approved(locked.paths) == []


def test_a_pseudo_terminal_of_script_does_not_hide_the_agent(locked: Box) -> None:
    if not shutil.which("script"):
        pytest.skip("needs script")
    typed = f"printf 'max_length\\n' | script -qec '{' '.join(CONTROLLER)} config set max_length 48' /dev/null"
    environment = {**locked.environment(), "CLAUDECODE": "1"}
    done = subprocess.run(["sh", "-c", typed], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "CLAUDECODE is set" in done.stdout) == (11, True), done
    assert locked_value(locked, "max_length") == 64


def test_what_was_cut_loose_from_the_agent_is_not_recognized(locked: Box) -> None:
    """The stated limit: no mark, no ancestor. The hook, not the lock, has to stop the command that does this."""
    claude = locked.paths.base / "claude"
    claude.write_text(f"#!/bin/sh\nsh -c '{processes.LOOSE}' sh \"$@\"\n")
    claude.chmod(0o755)
    code = locked.paths.base / "code"
    command = [str(claude), str(code), *CONTROLLER, "config", "set", "max_length", "48"]
    processes.type_at_terminal(command, "max_length", locked.environment())
    assert (int(code.read_text()), locked_value(locked, "max_length")) == (0, 48)


def test_agents_are_known_by_program_or_script_and_files_of_their_name_are_none() -> None:
    assert find_program(["/usr/bin/node", "/opt/gemini.js", "-p"]) == "gemini"
    assert find_program(["claude"]) == "claude"
    assert find_program(["python3", "/home/u/.local/bin/aider"]) == "aider"
    for command in (["vim", "claude"], ["bash", "-l"], ["tmux"], [""], []):
        assert find_program(command) is None


# What moves the lock by itself


def test_rollback_and_restore_move_the_lock_along_and_say_so(tmp_path: Path) -> None:
    paths = make_store(tmp_path, 1)
    make_base_model(paths, "base")
    make_base_model(paths, "other")
    other = fingerprint_base_model(paths, tmp_path / "other", remember=False)
    set_config_value(paths, "base_model", "other")
    lock(paths, "other")
    publish(paths, 2, config={"base_model": "other", "max_length": 64}, base_model_files=other)
    box = Box.__new__(Box)
    box.paths = paths
    for command, model in ((["rollback"], "base"), (["restore", "v002"], "other"), (["restore", "v001"], "base")):
        box.run("model_versioner.py", *command)
        assert (locked_value(box, "base_model"), load_config(paths).base_model) == (model, model)
    assert approved(paths) == [
        ("base_model", "other", "base", "rollback to v001"),
        ("base_model", "base", "other", "restore to v002"),
        ("base_model", "other", "base", "restore to v001"),
    ]
    assert read_approvals(paths)[-1]["tty"] is None


def test_a_kill_between_record_and_lock_leaves_one_record(locked: Box) -> None:
    paths = locked.paths
    document = read_json(paths.config_lock) or {}
    moved = move_lock(document, {"max_length": 48}, document["base_model_fingerprint"], "test")
    with open_store(paths, "test"):
        change_config(paths, {"max_length": 48}, moved)
        write_lock(paths, moved)  # as the next command does when the first was killed after the record
        finish_pending(paths)
    assert approved(paths) == [("max_length", 64, 48, "test")]


def test_a_torn_record_hides_no_other(locked: Box) -> None:
    with locked.paths.approvals.open("a") as file:
        file.write('{"key": "max_le')
    append_lines(locked.paths.approvals, '{"key": "max_length", "old": 1, "new": 2, "how": "test"}\n')
    assert approved(locked.paths) == [("max_length", 1, 2, "test")]


# What anybody else changes is refused, shown and put back


def by_sed(config: Path) -> None:
    subprocess.run(["sed", "-i", 's/"max_length": 64/"max_length": 32/', config], check=True)


def by_git(config: Path) -> None:
    """The base dir is a repository whose first commit is older than the lock."""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", config.parent, *identity, *arguments], check=True, capture_output=True)

    now = config.read_text()
    config.write_text(now.replace('"max_length": 64', '"max_length": 32'))
    git("init", "-q")
    git("add", "config.json")
    git("commit", "-qm", "old")
    config.write_text(now)
    git("commit", "-qam", "new")
    git("checkout", "HEAD~1", "--", "config.json")


def by_editor(config: Path) -> None:
    """As vim and most editors save: another file takes the name."""
    beside = config.with_name(".config.json.swp")
    beside.write_text(json.dumps({**json.loads(config.read_text()), "max_length": 32}))
    beside.rename(config)


def by_tool(config: Path) -> None:
    """As an agent's tool or a script saves: into the very file."""
    changed = json.dumps({**json.loads(config.read_text()), "max_length": 32})
    with config.open("r+") as file:
        file.write(changed)
        file.truncate()


@pytest.mark.parametrize("change", [by_sed, by_git, by_editor, by_tool])
def test_a_value_changed_behind_the_lock_is_refused_shown_and_put_back(
    locked: Box, change: Callable[[Path], None]
) -> None:
    locked.drop("one.jsonl")
    change(locked.paths.config)
    assert load_config(locked.paths).max_length == 32
    refused = locked.once(code=11)
    assert "error: locked max_length was 64 and is now 32" in refused.stderr
    assert "config set max_length 64" in refused.stderr
    assert "config approve" in refused.stderr
    assert (locked.versions(), list(locked.paths.runs.iterdir()), locked_value(locked, "max_length")) == ([], [], 64)

    document = locked.json("state_tracker.py")
    finding = next(d for d in document["warning_details"] if d["id"] == "config-lock-changed:max_length")
    for shown in (
        locked.run("state_tracker.py", "--warnings").stdout,
        locked.run("state_tracker.py", "--check").stdout,
        document["config"]["warning"],
        finding["message"],
    ):
        assert "locked max_length was changed from 64 to 32" in shown
        assert f"training_controller.py config approve --base-dir {locked.paths.base}" in shown
    assert f"Fix: {finding['hint']}" in locked.run("state_tracker.py", "--check").stdout
    subprocess.run(["sh", "-c", finding["hint"]], cwd=CODE_DIR, check=True, capture_output=True)
    ids = {d["id"] for d in locked.json("state_tracker.py")["warning_details"]}
    assert not {identifier for identifier in ids if identifier.startswith("config-lock")}
    locked.run("training_controller.py", "config", "check")


def test_a_removed_lock_holds_still_is_shown_and_put_back(tmp_path: Path) -> None:
    paths = make_store(tmp_path, 0)
    make_base_model(paths, "base")
    fingerprint = fingerprint_base_model(paths, tmp_path / "base", remember=False)
    publish(paths, 1, config={**load_config(paths).model_dump()}, base_model_files=fingerprint)
    lock(paths)
    paths.config_lock.unlink()
    set_config_value(paths, "max_length", 32)
    box = Box.__new__(Box)
    box.paths = paths
    assert "locked max_length was 64" in box.run("training_controller.py", "config", "check", code=11).stderr
    found: dict[str, Any] = {d["id"]: d for d in box.json("state_tracker.py")["warning_details"]}
    assert {"config-lock-missing", "config-lock-changed:max_length"} <= found.keys()
    for identifier in ("config-lock-changed:max_length", "config-lock-missing"):
        subprocess.run(["sh", "-c", found[identifier]["hint"]], cwd=CODE_DIR, check=True, capture_output=True)
    assert (locked_value(box, "max_length"), load_config(paths).max_length) == (64, 64)
    assert not {d["id"] for d in box.json("state_tracker.py")["warning_details"] if d["id"].startswith("config-lock")}
