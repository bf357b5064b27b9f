"""``doctor`` proves each layer of protection and says what switches on one that is off; the report remembers."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from guardrails import doctor
from guardrails.config import load_config, set_config_value
from guardrails.config_lock import fingerprint_base_model, make_lock, write_lock
from guardrails.doctor import Layer, examine, repair_hooks
from guardrails.guard import protections
from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import write_json
from guardrails.store.change import open_store
from guardrails.store.immutable import set_tree
from tests.processes import run_unprivileged
from tests.store import copy_store, make_store, publish

REAL_HOOK = f"{sys.executable} -I -S {CODE_DIR}/guardrails/agent_hook.py"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A base dir with a lock, two versions and their backups."""
    paths = make_store(tmp_path_factory.mktemp("template") / "base", 2, 500, backups=True)
    (paths.base / "base").mkdir()
    (paths.base / "base" / "config.json").write_text("{}")
    fingerprint = fingerprint_base_model(paths, paths.base / "base", remember=False)
    write_lock(paths, make_lock(load_config(paths), fingerprint, "first training"))
    return paths


@pytest.fixture
def paths(template: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A copy of it, and a toolkit's folder of its own in which Claude Code's settings run the real hook."""
    paths = copy_store(template, tmp_path / "base")
    toolkit = tmp_path / "toolkit"
    (toolkit / "guardrails").mkdir(parents=True)
    (toolkit / "guardrails" / "agent_hook.py").touch()
    for module in (protections, doctor):
        monkeypatch.setattr(module, "CODE_DIR", toolkit if module is doctor else str(toolkit))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CLAUDE_CONFIG_DIR", "GUARDRAILS_SANDBOX"):
        monkeypatch.delenv(name, raising=False)
    wire(paths, "claude", f"{REAL_HOOK} --base-dir '{paths.base}'")
    return paths


def settings_of(agent: str) -> Path:
    return next(Path(wiring.path) for wiring in protections.wirings("/") if wiring.agent == agent)


def wire(paths: Paths, agent: str, command: str) -> None:
    events = {"gemini": "BeforeTool", "cursor": "beforeShellExecution"}
    entry: dict[str, Any] = {"command": command}
    if agent != "cursor":
        entry = {"matcher": "*", "hooks": [{"type": "command", **entry}]}
    path = settings_of(agent)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"hooks": {events.get(agent, "PreToolUse"): [entry]}}))


def look(paths: Paths) -> dict[str, Layer]:
    return {layer.id: layer for layer in examine(paths, time.time())}


def findings(paths: Paths) -> dict[str, dict[str, str]]:
    """The report's findings on the guard, as the script gives them."""
    from guardrails.report.document import update_document

    found = {detail["id"]: detail for detail in update_document(paths)["warning_details"]}
    return {name: detail for name, detail in found.items() if name.startswith(("guard-", "config-lock"))}


def test_a_sound_base_dir_has_every_layer_on_that_should_be(paths: Paths) -> None:
    layers = look(paths)
    assert {name for name, layer in layers.items() if layer.state == "off"} == set()
    assert {"claude-hook", "config-lock", "read-only"} <= {n for n, layer in layers.items() if layer.state == "on"}
    assert all(layer.fix is None for layer in layers.values() if layer.state == "on")
    assert findings(paths) == {}


# Hooks


@pytest.mark.parametrize("agent", ["claude", "codex", "gemini", "cursor"])
def test_each_agents_wiring_is_run_as_the_agent_runs_it(paths: Paths, agent: str) -> None:
    wire(paths, agent, f"{REAL_HOOK} --agent {agent} --base-dir '{paths.base}'")
    assert look(paths)[f"{agent}-hook"].state == "on"
    wire(paths, agent, f"{REAL_HOOK} --agent {agent} --base-dir /elsewhere")
    layer = look(paths)[f"{agent}-hook"]
    assert (layer.state, "pass instead of deny" in layer.detail) == ("off", True), layer
    assert "TRAINING_BASE_DIR" in str(layer.fix)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("true # agent_hook.py", "`rm -rf current_model`"),
        ("exit 1 # agent_hook.py", "exit code 1, which agents take for a pass"),
        ("echo broken # agent_hook.py", "which agents take for a pass"),
        ("exit 2 # agent_hook.py", "`ls`"),
        ("no-such-program agent_hook.py", "exit code 127"),
        ("true", "does not run agent_hook.py"),
    ],
)
def test_a_hook_that_does_not_do_its_work_is_off(paths: Paths, command: str, words: str) -> None:
    wire(paths, "claude", command)
    layer = look(paths)["claude-hook"]
    assert (layer.state, words in layer.detail) == ("off", True), layer
    assert layer.fix


@pytest.mark.parametrize("place", ["toolkit/.claude/settings.local.json", "home/.claude/settings.json"])
def test_hooks_that_are_switched_off_anywhere_are_off_and_switched_on_again(paths: Paths, place: str) -> None:
    assert look(paths)["claude-hook"].state == "on"
    switch = paths.base.parent / place
    switch.parent.mkdir(parents=True, exist_ok=True)
    switch.write_text('{"disableAllHooks": true, "model": "x"}')
    layer = look(paths)["claude-hook"]
    assert (layer.state, str(switch) in layer.detail) == ("off", True), layer
    finding = findings(paths)["guard-layer-off:claude-hook"]
    assert (finding["severity"], finding["category"], str(switch) in finding["message"]) == ("warning", "config", True)
    assert "doctor --repair" in finding["hint"]
    assert repair_hooks(paths) == [f"took the switch out of {switch}"]
    assert json.loads(switch.read_text()) == {"model": "x"}
    assert (look(paths)["claude-hook"].state, findings(paths)) == ("on", {})


def test_a_removed_wiring_is_put_back_as_it_was(paths: Paths) -> None:
    look(paths)
    settings = settings_of("claude")
    was = settings.read_text()
    settings.unlink()
    assert look(paths)["claude-hook"].state == "off"
    assert "guard-layer-off:claude-hook" in findings(paths)
    assert len(repair_hooks(paths)) == 1
    assert (settings.read_text(), findings(paths)) == (was, {})
    # What is meant to go is forgotten with what is remembered.
    settings.unlink()
    paths.protections.unlink()
    assert findings(paths) == {}
    # Claude Code's is shipped, so doctor misses it all the same.
    assert look(paths)["claude-hook"].state == "off"


def test_the_switches_of_other_agents_are_known(paths: Paths) -> None:
    for agent, place, text in (
        ("gemini", "toolkit/.gemini/settings.json", None),
        ("codex", "toolkit/.codex/config.toml", "[features]\nhooks = false\n"),
    ):
        wire(paths, agent, f"{REAL_HOOK} --agent {agent} --base-dir '{paths.base}'")
        assert look(paths)[f"{agent}-hook"].state == "on"
        path = paths.base.parent / place
        wired = json.loads(path.read_text()) if text is None else {}
        path.write_text(text or json.dumps({**wired, "hooksConfig": {"enabled": False}}))
        assert look(paths)[f"{agent}-hook"].state == "off", agent


# Config lock


def test_the_lock_is_on_only_while_it_holds(paths: Paths) -> None:
    assert "max_length, base_model, model_name is refused" in look(paths)["config-lock"].detail
    set_config_value(paths, "max_length", 48)
    layer = look(paths)["config-lock"]
    assert (layer.state, "was 64 and is now 48" in layer.detail) == ("off", True)
    set_config_value(paths, "max_length", 64)
    paths.config_lock.unlink()
    # The head version was trained with another base model, as far as this store knows.
    assert look(paths)["config-lock"].state == "off"
    fingerprint = fingerprint_base_model(paths, paths.base / "base", remember=False)
    publish(paths, 3, config=load_config(paths).model_dump(), base_model_files=fingerprint)
    paths.config_lock.unlink()
    layer = look(paths)["config-lock"]
    assert (layer.state, "is missing" in layer.detail) == ("off", True)
    assert findings(paths)["config-lock-missing"]["hint"].startswith(f"python3 {layer.fix}")


def test_before_the_first_training_nothing_has_to_be_locked(tmp_path: Path) -> None:
    paths = make_store(tmp_path, 0)
    layers = look(paths)
    assert {name: layers[name].state for name in ("config-lock", "read-only", "second-copy", "remote")} == {
        "config-lock": "unused",
        "read-only": "unused",
        "second-copy": "unused",
        "remote": "unused",
    }


# Modes and flags


@pytest.mark.parametrize("name", ["models/versions/v002", "models/backups/b002"])
def test_a_saved_tree_that_can_be_written_to_is_off_and_locked_again(paths: Paths, name: str) -> None:
    look(paths)
    subprocess.run(["chmod", "-R", "u+w", paths.base / name], check=True)
    layer = look(paths)["read-only"]
    assert (layer.state, name in layer.detail) == ("off", True)
    finding = findings(paths)["guard-layer-off:read-only"]
    assert (finding["severity"], finding["hint"].split()[1:3]) == ("warning", ["model_versioner.py", "repair"])
    subprocess.run(["sh", "-c", finding["hint"]], cwd=CODE_DIR, check=True, capture_output=True)
    assert (look(paths)["read-only"].state, findings(paths)) == ("on", {})


def test_somebody_who_is_not_root_proves_the_modes_by_opening_a_file(shared_folder: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from guardrails import doctor
from guardrails.paths import Paths
from tests.store import make_store
paths = make_store(Path(sys.argv[1]) / "base", 1, 500, backups=True)
layer = doctor._read_only(paths)
assert (layer.state, "opening one for writing fails" in layer.detail) == ("on", True), layer
# Modes that lie, as on some network file systems.
doctor._opens = lambda file: True
layer = doctor._read_only(paths)
assert (layer.state, "can be opened for writing" in layer.detail) == ("off", True), layer
"""
    run_unprivileged(code, shared_folder)


def test_the_immutable_flag_is_asked_for_only_where_it_is_wanted(paths: Paths) -> None:
    assert look(paths)["immutable"].state == "unused"
    set_config_value(paths, "immutable_versions", True)
    assert (look(paths)["immutable"].state, "needs root" in look(paths)["immutable"].detail) == ("off", True)
    try:
        with open_store(paths, "test"):
            pass
        layer = look(paths)["immutable"]
        if layer.state == "off":
            pytest.skip("no file can be made immutable here")
        assert "not even root writes to v002 and b002" in layer.detail
    finally:
        set_tree(paths.models, False)


# Copies


def test_a_second_copy_counts_on_another_disk_only(paths: Paths) -> None:
    assert look(paths)["second-copy"].state == "unused"
    elsewhere = paths.base.parent / "elsewhere"
    shutil.copytree(paths.backups, elsewhere)
    set_config_value(paths, "backup_dir", str(elsewhere))
    layer = look(paths)["second-copy"]
    assert (layer.state, "same disk" in layer.detail) == ("off", True)
    subprocess.run(["rm", "-rf", elsewhere], check=True)
    assert "is not there" in look(paths)["second-copy"].detail
    for disk in (Path("/dev/shm"), Path("/tmp")):
        if disk.is_dir() and disk.stat().st_dev != paths.base.stat().st_dev:
            break
    else:
        pytest.skip("needs another file system")
    other = disk / f"guardrails-doctor-{os.getpid()}"
    shutil.copytree(paths.backups, other)
    try:
        set_config_value(paths, "backup_dir", str(other))
        assert look(paths)["second-copy"].state == "on"
    finally:
        subprocess.run(["rm", "-rf", other], check=True)


def test_of_remotes_only_what_is_known_here_is_said(paths: Paths) -> None:
    record = {"pushed_at": "2026-11-21T10:00:00Z", "versions": ["v001"]}
    write_json(paths.remotes, {"schema_version": 1, "remotes": {"s3://bucket/box": record}})
    layer = look(paths)["remote"]
    assert (layer.state, layer.fix) == ("on", None)
    for words in (
        "1 versions at s3://bucket/box",
        "get-object-lock-configuration --bucket bucket",
        "is not asked here",
    ):
        assert words in layer.detail
    paths.remotes.write_text("{")
    assert look(paths)["remote"].state == "off"


# Sandboxes


def test_bubblewrap_is_proven_by_starting_a_sandbox(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = look(paths)["bubblewrap"]
    if layer.state != "on":
        pytest.skip(layer.detail)
    # A sandbox in which the store can be written to is none.
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "mount_options", lambda paths: ["--dev-bind", "/", "/"])
        assert "can be written to in the sandbox" in look(paths)["bubblewrap"].detail
    known = protections.read_layers(str(paths.base))
    known["bubblewrap"]["program"] = "/no/such/bwrap"
    write_json(paths.protections, {"schema_version": 1, "layers": known})
    assert "/no/such/bwrap is gone" in findings(paths)["guard-layer-off:bubblewrap"]["message"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor._bubblewrap(paths).state == "off"
    paths.protections.unlink()
    assert doctor._bubblewrap(paths).state == "unused"


def test_claude_codes_sandbox_counts_when_it_is_on_and_closes_all(paths: Paths) -> None:
    assert look(paths)["claude-sandbox"].state == "unused"
    settings = json.loads(settings_of("claude").read_text())
    closed = [f"{paths.base}/{name}" for name in (*doctor.TREES, ".config_lock.json")]
    local = settings_of("claude").with_name("settings.local.json")
    local.write_text('{"sandbox": {"enabled": true}}')
    for entries, state in ((closed, "on"), (closed[1:], "off"), ([str(paths.base)], "on")):
        settings["sandbox"] = {"filesystem": {"denyWrite": entries}}
        settings_of("claude").write_text(json.dumps(settings))
        assert look(paths)["claude-sandbox"].state == state
    local.unlink()
    assert "no settings switch" in findings(paths)["guard-layer-off:claude-sandbox"]["message"]


# The command


def command(paths: Paths, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(CODE_DIR / "training_controller.py"), "doctor", *arguments]
    environment = {**os.environ, "TRAINING_BASE_DIR": str(paths.base)}
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def test_the_command_shows_proves_and_fails_as_it_should(template: Paths, tmp_path: Path) -> None:
    """With the wiring that is shipped, as a person runs it in a new checkout."""
    paths = copy_store(template, tmp_path / "base")
    done = command(paths)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done
    assert f"on: claude-hook: {CODE_DIR}/.claude/settings.json stops `rm -rf current_model` and lets `ls` pass" in lines
    for agent in ("codex", "gemini", "cursor"):
        if (CODE_DIR / protections.WIRING[agent]).exists():
            assert any(line.startswith(f"on: {agent}-hook: ") for line in lines)
    subprocess.run(["chmod", "u+w", paths.version("v002") / "model"], check=True)
    done = command(paths, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    off = {layer["id"]: layer for layer in report["layers"] if layer["state"] == "off"}
    assert list(off) == ["read-only"]
    subprocess.run(["sh", "-c", off["read-only"]["fix"]], cwd=CODE_DIR, check=True, capture_output=True)
    assert command(paths, "--repair").returncode == 0


def test_on_a_terminal_it_is_a_table(paths: Paths) -> None:
    if not shutil.which("script"):
        pytest.skip("needs script")
    line = f"{sys.executable} {CODE_DIR}/training_controller.py doctor --base-dir {paths.base}"
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"], capture_output=True, text=True, check=False, timeout=60
    )
    assert "│ config-lock" in done.stdout
