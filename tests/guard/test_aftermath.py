"""What a tool call damaged, whatever way it took, is put right after it, and said; nothing else is touched."""

import base64
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrails.config import load_config, set_config_value
from guardrails.config_lock import fingerprint_base_model, make_lock, write_lock
from guardrails.guard import look as look_module
from guardrails.guard import protections
from guardrails.guard.aftermath import look_after
from guardrails.guard.look import is_held, take_look
from guardrails.guard.mark import mark_start
from guardrails.locks import FileLock
from guardrails.manifest import KnownHashes
from guardrails.paths import CODE_DIR, Paths
from guardrails.settings import Config
from guardrails.state_io import read_json
from guardrails.store.change import open_store, say_nothing
from guardrails.store.copies import Copies
from guardrails.store.live_model import restore, rollback
from guardrails.store.removal import clean_up_backups, delete_version, set_pinned
from guardrails.store.repair import find_backup_damage, verify_version
from tests.processes import wait_until
from tests.store import WEIGHTS, copy_store, make_run, make_store, publish, weights_of

HOOK = {"hooks": {"PreToolUse": [{"matcher": "*", "hooks": [{"type": "command", "command": "python3 agent_hook.py"}]}]}}
START: dict[str, object] = {"hook_event_name": "SessionStart"}
CALL: dict[str, object] = {"hook_event_name": "PostToolUse", "tool_name": "Bash", "session_id": "s1"}
NOTHING_WRONG = None


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Three versions with their backups, a lock, and an agent's settings in the base dir."""
    paths = make_store(tmp_path_factory.mktemp("template") / "base", 3, 500, backups=True)
    (paths.base / "base").mkdir()
    (paths.base / "base" / "config.json").write_text("{}")
    fingerprint = fingerprint_base_model(paths, paths.base / "base", remember=False)
    write_lock(paths, make_lock(load_config(paths), fingerprint, "first training"))
    (paths.base / ".claude").mkdir()
    (paths.base / ".claude" / "settings.json").write_text(json.dumps(HOOK))
    return paths


@pytest.fixture
def paths(template: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A copy of it in which an agent's session has begun."""
    # Whoever works on the guard while its tests run is not meant.
    monkeypatch.setattr(look_module, "_look_at_code", dict)
    toolkit = tmp_path / "toolkit"
    (toolkit / "guardrails").mkdir(parents=True)
    (toolkit / "guardrails" / "agent_hook.py").touch()
    monkeypatch.setattr(protections, "CODE_DIR", str(toolkit))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    paths = copy_store(template, tmp_path / "base")
    assert after(paths, START) is None
    return paths


def after(paths: Paths, event: dict[str, object] = CALL) -> str | None:
    return look_after(str(paths.base), event)


def carry_out(paths: Paths, script: str) -> None:
    """As an agent's shell does: a process of its own in the base dir."""
    mark_start(str(paths.base))
    subprocess.run(["bash", "-ec", script], cwd=paths.base, check=True, capture_output=True)


def assert_whole(paths: Paths) -> None:
    """Everything that is protected is there, good, and as the lock has it."""
    lock = read_json(paths.config_lock) or {}
    config = load_config(paths).model_dump()
    assert {key: config[key] for key in lock["locked"]} == lock["locked"]
    for number in (1, 2, 3):
        assert verify_version(paths, f"v{number:03d}", KnownHashes()) == []
    backups = [read_json(folder / "metadata.json") or {} for folder in paths.backups.glob("b*")]
    assert {"v001", "v002", "v003"} <= {backup["version"] for backup in backups}
    assert [find_backup_damage(paths.backups, backup["id"]) for backup in backups] == [[]] * len(backups)
    assert weights_of(paths.current_model) == weights_of(paths.version("v003") / "model")


def undo_in(message: str) -> list[str]:
    """The command after ``Undo:`` in a message."""
    return message.split("Undo: ")[1].splitlines()[0].split()


# What the hook before the call cannot see


def by_hidden_script(command: str) -> str:
    """A script that decodes what it runs, so that no text of the call names it."""
    payload = base64.b64encode(command.encode()).decode()
    return f"python3 -c \"import base64,os; os.system(base64.b64decode('{payload}').decode())\""


def by_script_file(command: str) -> str:
    return f"printf '%s\\n' {json.dumps(command)} > /tmp/$$.sh; sh /tmp/$$.sh; rm /tmp/$$.sh"


@pytest.mark.parametrize(
    ("way", "command", "words"),
    [
        (by_hidden_script, "rm -rf current_model", ["current_model/ was removed", "current_model/ is v003 again"]),
        (by_script_file, "sed -i s/64/4096/ config.json", ["max_length", "was 64 and became 4096", "put back to 64"]),
        (by_hidden_script, "rm .config_lock.json", [".config_lock.json was removed", "put back as it was"]),
        (by_script_file, "rm -rf models/versions/v002", ["v002 removed", "healed v002"]),
        (by_hidden_script, "rm -rf models/backups/b002", ["models/backups/b002 was removed", "made b004 in its place"]),
        (by_hidden_script, "rm -rf models/versions/v003/model", ["files of v003 changed", "healed v003"]),
        (by_script_file, "rm config.json", ["config.json was removed", "put back as it was"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_only_shows_afterwards_is_healed_and_said(
    paths: Paths, way: Callable[[str], str], command: str, words: list[str]
) -> None:
    carry_out(paths, way(command))
    message = after(paths)
    assert message is not None
    for word in words:
        assert word in message
    assert_whole(paths)
    assert after(paths) is None
    record = json.loads((paths.logs / "guard.jsonl").read_text().splitlines()[-1])
    assert (record["tool"], record["session"]) == ("Bash", "s1")
    assert record["what"] in message


def test_an_older_config_checked_out_by_git_keeps_what_is_locked(paths: Paths) -> None:
    now = paths.config.read_text()
    paths.config.write_text(now.replace('"max_length": 64', '"max_length": 32').replace('"seed": 42', '"seed": 7'))
    git = "git -c user.name=t -c user.email=t@example.org"
    carry_out(paths, f"git init -q && git add config.json && {git} commit -qm old")
    paths.config.write_text(now)
    assert after(paths) is None
    carry_out(paths, "git checkout -q -- config.json")
    message = after(paths)
    assert message is not None
    assert "was 64 and became 32" in message
    # What is not locked is left as the call made it.
    assert (load_config(paths).max_length, load_config(paths).seed) == (64, 7)


def test_a_background_process_is_caught_by_the_next_look(paths: Paths) -> None:
    carry_out(paths, "(sleep 0.2; rm -rf current_model; sed -i s/64/4096/ config.json) >/dev/null 2>&1 &")
    assert after(paths) is None
    wait_until(lambda: "4096" in paths.config.read_text())
    mark_start(str(paths.base))
    message = after(paths)
    assert message is not None
    assert "current_model/ was removed" in message
    assert "became 4096" in message
    assert_whole(paths)


def test_a_changed_model_goes_back_and_the_change_is_kept(paths: Paths) -> None:
    changed = b"changed by the call"
    carry_out(paths, f"printf '{changed.decode()}' > current_model/{WEIGHTS}")
    message = after(paths)
    assert message is not None
    assert "undid the change by hand; current_model/ is v003 again" in message
    assert_whole(paths)
    # It can be undone as it says.
    subprocess.run([sys.executable, *undo_in(message)[1:]], cwd=CODE_DIR, check=True, capture_output=True)
    assert weights_of(paths.current_model) == changed
    assert after(paths) is None


def test_a_model_that_was_only_touched_is_left_alone(paths: Paths) -> None:
    before = read_json(paths.head)
    carry_out(paths, f"touch current_model/{WEIGHTS}; chmod 600 current_model/{WEIGHTS}")
    assert after(paths) is None
    assert (read_json(paths.head) or {})["version"] == (before or {})["version"] == "v003"


def test_an_open_run_survives_the_healing_of_the_model(paths: Paths) -> None:
    """A plain rollback would drop the run that waits for the daemon's next start."""
    record = make_run(paths, 4)
    (paths.run(str(record.run_id)) / "outcome.json").unlink()
    assert after(paths) is None
    carry_out(paths, "rm -rf current_model")
    assert "current_model/ is v003 again" in str(after(paths))
    assert [path.name for path in paths.queue_folder("processing").iterdir()] == [record.name]


def test_damage_in_a_version_or_backup_is_healed_from_the_other(paths: Paths) -> None:
    carry_out(
        paths,
        f"""
        chmod -R u+w models/versions/v003 models/backups/b001
        printf x >> models/versions/v003/model/{WEIGHTS}
        rm models/backups/b001/model/adapter_config.json
        echo '{{' > models/versions/v002/metadata.json
        """,
    )
    message = after(paths)
    assert message is not None
    assert "healed v002, v003, b001 from second copies" in message
    assert_whole(paths)
    modes = {path.stat().st_mode & 0o222 for path in (paths.version("v003") / "model").rglob("*")}
    assert modes == {0}


def test_a_lock_changed_together_with_the_config_does_not_pass(paths: Paths) -> None:
    carry_out(paths, "sed -i s/64/4096/ config.json .config_lock.json")
    message = after(paths)
    assert message is not None
    assert ".config_lock.json was changed by hand" in message
    assert_whole(paths)
    assert load_config(paths).max_length == 64


def test_many_lost_at_once_are_made_again_or_named(paths: Paths) -> None:
    carry_out(paths, "rm -rf models/versions")
    message = after(paths)
    assert message is not None
    assert "v001, v002, v003 removed" in message
    assert_whole(paths)
    carry_out(paths, "rm -rf models current_model")
    message = after(paths)
    assert message is not None
    assert "could not be put right" in message
    # Said once.
    assert after(paths) is None


def run_json(paths: Paths, script: str, *arguments: str) -> Any:
    command = [sys.executable, str(CODE_DIR / script), *arguments, "--json", "--base-dir", str(paths.base)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# The guard itself


def test_hooks_that_a_call_switched_off_are_on_again(paths: Paths) -> None:
    settings = paths.base / ".claude" / "settings.json"
    was = json.loads(settings.read_text())
    for command in (
        "rm -r .claude",
        "echo '{}' > .claude/settings.json",
        "echo '{\"disableAllHooks\": true}' > .claude/settings.local.json",
        'mkdir -p ~/.claude; echo \'{"disableAllHooks": true, "model": "x"}\' > ~/.claude/settings.json',
    ):
        carry_out(paths, command)
        message = after(paths)
        assert message is not None, command
        assert "the hook claude-hook-of-base-dir was switched off" in message
        assert json.loads(settings.read_text()) == was
        assert after(paths) is None, command
    # Whatever else stood there is left.
    assert json.loads((Path(os.environ["HOME"]) / ".claude" / "settings.json").read_text()) == {"model": "x"}
    assert len(list((paths.status / "guard" / "replaced").iterdir())) == 3


def test_a_hook_without_a_kept_copy_comes_back_from_git(paths: Paths) -> None:
    git = "git -c user.name=t -c user.email=t@example.org"
    carry_out(paths, f"git init -q && git add .claude && {git} commit -qm hooks")
    shutil.rmtree(paths.status / "guard")
    carry_out(paths, "rm -r .claude")
    assert "put" in str(after(paths))
    assert json.loads((paths.base / ".claude" / "settings.json").read_text()) == HOOK


def test_changes_of_the_guards_own_code_are_told(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    for before, now, words in (
        ({"guard/judge.py": [1, 2, 3]}, {"guard/judge.py": [1, 9, 3]}, "of the guard itself guard/judge.py changed"),
        ({"guard/judge.py": [1, 2, 3]}, {"guard/judge.py": None}, "of the guard itself guard/judge.py removed"),
    ):
        monkeypatch.setattr(look_module, "_look_at_code", lambda before=before: before)
        after(paths, START)
        monkeypatch.setattr(look_module, "_look_at_code", lambda now=now: now)
        message = after(paths)
        assert message is not None
        assert words in message
        assert "git -C" in message


# What is no damage


def test_what_the_toolkit_does_itself_is_left_alone(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def pin() -> None:
        with open_store(paths, "test"):
            set_pinned(paths, "v002", True)

    def clean_up() -> None:
        with open_store(paths, "test"):
            clean_up_backups(paths, 0, execute=True)

    def delete() -> None:
        with open_store(paths, "test"):
            delete_version(paths, "v001", Copies(paths, strict=True), "test")

    for work in (
        lambda: publish(paths, 4),
        lambda: rollback(paths, say_nothing),
        lambda: restore(paths, "v001", say_nothing),
        lambda: restore(paths, "v003", say_nothing),
        lambda: set_config_value(paths, "seed", 7),
        pin,
        delete,
        clean_up,
    ):
        mark_start(str(paths.base))
        work()
        ran: list[object] = []
        monkeypatch.setattr("guardrails.guard.aftermath._heal", lambda *_, ran=ran: ran.append(1))
        assert after(paths) is None
        # Pinning and the like do not make it read a model either.
        assert ran == [], work


def test_while_a_command_works_nothing_is_judged(paths: Paths) -> None:
    lock = FileLock(paths.locks / "store.lock")
    with lock.hold("test"):
        assert is_held(str(lock.path))
        carry_out(paths, "mv current_model models/.stage-x")
        assert after(paths) is None
    assert not is_held(str(lock.path))
    paths.intent.write_text("{}")
    assert after(paths) is None
    paths.intent.unlink()
    carry_out(paths, "mv models/.stage-x current_model")
    assert after(paths) is None


def test_a_model_that_a_person_changed_between_two_calls_is_said_and_left(paths: Paths) -> None:
    """The stated limit of healing: what was changed before the call began was not changed by it."""
    (paths.current_model / WEIGHTS).write_bytes(b"by a person")
    time.sleep(0.05)
    carry_out(paths, "true")
    message = after(paths)
    assert message is not None
    assert "changed or touched before this call, perhaps by a person" in message
    assert "rollback --by-hand" in message
    assert weights_of(paths.current_model) == b"by a person"
    assert after(paths) is None


def test_a_locked_value_that_a_person_edited_is_put_back_and_the_person_is_told(paths: Paths) -> None:
    set_config_value(paths, "max_length", 48)
    carry_out(paths, "true")
    message = after(paths)
    assert message is not None
    assert "Undo: a person, on a terminal: python3" in message
    assert load_config(paths).max_length == 64
    record = json.loads((paths.logs / "guard.jsonl").read_text())
    assert "was 64 and became 48" in record["what"]
    found = {detail["id"]: detail for detail in run_json(paths, "state_tracker.py")["warning_details"]}
    assert "became 48" in found["guard-healed"]["message"]
    assert found["guard-healed"]["severity"] == "info"


def test_what_was_so_before_the_session_is_said_and_left(paths: Paths) -> None:
    set_config_value(paths, "max_length", 48)
    shutil.rmtree(paths.version("v001"))
    message = after(paths, START)
    assert message is not None
    assert "not healed" in message
    assert "config set max_length 64" in message
    assert "repair v001" in message
    assert after(paths) is None
    assert load_config(paths).max_length == 48


def test_inside_older_versions_only_the_report_and_verify_look(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stated limit of a look that costs the same at any number of versions."""
    monkeypatch.setattr(look_module, "RECENT", 2)
    after(paths)
    carry_out(paths, "rm -rf models/versions/v001/model")
    assert after(paths) is None
    carry_out(paths, "rm -rf models/versions/v001")
    assert "healed v001" in str(after(paths))
    assert_whole(paths)


def test_without_a_last_look_damage_is_said_and_left(paths: Paths) -> None:
    (paths.status / "guard.json").unlink()
    carry_out(paths, "rm -rf current_model; sed -i s/64/4096/ config.json")
    message = after(paths)
    assert message is not None
    assert "current_model/ was removed; not healed." in message
    assert "became 4096" in message
    assert after(paths) is None


def test_while_a_run_trains_the_model_is_left_to_it(paths: Paths) -> None:
    record = make_run(paths, 4)
    with FileLock(paths.locks / "daemon.lock").hold("test"):
        carry_out(paths, "rm -rf current_model")
        message = after(paths)
    assert message is not None
    assert "the run that trains now publishes its own" in message
    assert not paths.current_model.exists()
    assert record.name


def test_where_nothing_is_nothing_is_made(tmp_path: Path) -> None:
    assert look_after(str(tmp_path), CALL) is None
    mark_start(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# The hook, and what it costs


def test_the_hook_heals_and_tells_the_agent(paths: Paths) -> None:
    carry_out(paths, "sed -i s/64/4096/ config.json")
    hook = [sys.executable, "-I", "-S", str(CODE_DIR / "guardrails/agent_hook.py"), "--base-dir", str(paths.base)]
    event = {**CALL, "tool_input": {"command": "make"}, "cwd": str(paths.base)}
    done = subprocess.run(hook, input=json.dumps(event), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)["hookSpecificOutput"]
    assert answer["hookEventName"] == "PostToolUse"
    assert "put back to 64" in answer["additionalContext"]
    assert load_config(paths).max_length == 64


def test_a_look_costs_the_same_at_thousands_of_versions(paths: Paths) -> None:
    """Counted in system calls, as far as Python tells: what is opened, listed and looked at."""

    def count() -> int:
        calls = 0

        def note(event: str, _: object) -> None:
            nonlocal calls
            calls += event in ("open", "os.listdir", "os.scandir")

        look = take_look(str(paths.base), {})
        assert look is not None
        time.sleep(0.06)  # until the stamps count
        look = take_look(str(paths.base), json.loads(json.dumps(look)))
        assert look is not None
        sys.addaudithook(lambda *arguments: note(*arguments) if counting else None)
        counting = True
        assert take_look(str(paths.base), look) == look
        counting = False
        return calls

    for number in range(4, 60):
        shutil.copytree(paths.version("v003"), paths.version(f"v{number:03d}"))
    few = count()
    for number in range(60, 1500):
        (paths.version(f"v{number:03d}") / "model").mkdir(parents=True)
    assert count() <= few
    size = len(json.dumps(take_look(str(paths.base), {})))
    assert size < 20_000


def test_the_look_imports_nothing_heavy() -> None:
    code = textwrap.dedent(f"""
        import sys
        sys.path.append({str(CODE_DIR)!r})
        import guardrails.guard.aftermath
        heavy = {{"pathlib", "subprocess", "tempfile", "typing", "click", "pydantic", "logging", "hashlib", "blake3"}}
        print(*sorted(heavy & set(sys.modules)))
    """)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_defaults_and_lock_format_are_those_of_the_toolkit() -> None:
    from guardrails import locks
    from guardrails.config import LOCKED_KEYS
    from guardrails.paths import SANDBOX

    defaults = Config().model_dump()
    assert {key: defaults[key] for key in LOCKED_KEYS} == look_module.LOCKED_DEFAULTS
    assert locks.FLOCK == look_module.FLOCK
    from guardrails.guard import aftermath

    assert aftermath.SANDBOX == SANDBOX
