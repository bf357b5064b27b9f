"""``config show|check|set|approve``: one value changes, locked ones only by a person at a terminal."""

import json
import os
import sys
from pathlib import Path

import pytest

from guardrails.config import load_config
from guardrails.config_lock import fingerprint_base_model, make_lock
from guardrails.paths import CODE_DIR
from guardrails.state_io import read_json, write_json
from tests import processes
from tests.box import Box

BARE = '{"model_name": "m",\n   "base_model" : "base",  "max_length":64,\n\t"seed": 7 }\n'


@pytest.fixture
def locked(tmp_path: Path) -> Box:
    """A base dir with a lock, two base models of one file each, and a config in nobody's style."""
    box = Box(tmp_path / "base", Path("base"))
    for name in ("base", "other"):
        folder = box.paths.base / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"name": name}))
    box.paths.config.write_text(BARE)
    config = load_config(box.paths)
    write_json(
        box.paths.config_lock, make_lock(config, fingerprint_base_model(box.paths, box.paths.base / "base"), "test")
    )
    return box


def type_at_terminal(box: Box, text: str, *arguments: str) -> tuple[int, str]:
    """Run the controller on a pseudo-terminal, type a line at its question; exit code and what it showed."""
    command = [sys.executable, str(CODE_DIR / "training_controller.py"), *arguments]
    return processes.type_at_terminal(command, text, box.environment())


def lock_of(box: Box) -> dict[str, object]:
    return dict((read_json(box.paths.config_lock) or {})["locked"])


def test_setting_a_value_leaves_every_other_character_as_it_stood(locked: Box) -> None:
    locked.run("training_controller.py", "config", "set", "seed", "8")
    assert locked.paths.config.read_text() == BARE.replace("7", "8")
    locked.run("training_controller.py", "config", "set", "epochs", "2")
    assert locked.json("training_controller.py", "config", "show")["epochs"] == 2
    before = locked.paths.config.read_text()
    for key, value in (("epochs", "-1"), ("epochs", "0"), ("epoch", "1"), ("backup", "sometimes")):
        assert locked.run("training_controller.py", "config", "set", key, value, code=10).stderr.count("\n") == 2
    assert locked.paths.config.read_text() == before


def test_a_locked_value_needs_a_terminal_and_its_name_typed(locked: Box) -> None:
    for text, code in (("yes", 11), ("max_length", 0)):
        assert locked.run("training_controller.py", "config", "set", "max_length", "32", code=11).stdout == ""
        assert lock_of(locked)["max_length"] == 64
        got, shown = type_at_terminal(locked, text, "config", "set", "max_length", "32")
        assert got == code, shown
        assert "old: 64" in shown
        assert "new: 32" in shown
    assert lock_of(locked) == {"max_length": 32, "base_model": "base", "model_name": "m"}
    assert load_config(locked.paths).max_length == 32


def test_approving_one_locked_key_approves_no_other(locked: Box) -> None:
    locked.paths.config.write_text(BARE.replace("64", "48"))
    code, shown = type_at_terminal(locked, "model_name", "config", "set", "model_name", "n")
    assert code == 0, shown
    assert lock_of(locked) == {"max_length": 64, "base_model": "base", "model_name": "n"}
    locked.run("training_controller.py", "config", "check", code=11)
    code, shown = type_at_terminal(locked, "max_length", "config", "approve")
    assert code == 0, shown
    assert lock_of(locked)["max_length"] == 48


def test_a_base_model_that_is_not_there_is_refused_before_anything_changes(locked: Box) -> None:
    lock = locked.paths.config_lock.read_bytes()
    assert "/no/such" in locked.run("training_controller.py", "config", "set", "base_model", "/no/such", code=10).stderr
    assert (locked.paths.config.read_text(), locked.paths.config_lock.read_bytes()) == (BARE, lock)


def test_another_base_model_moves_path_and_fingerprint_together(locked: Box) -> None:
    before = (read_json(locked.paths.config_lock) or {})["base_model_fingerprint"]["blake3"]
    code, shown = type_at_terminal(locked, "base_model", "config", "set", "base_model", "other")
    assert code == 0, shown
    assert lock_of(locked)["base_model"] == "other"
    assert (read_json(locked.paths.config_lock) or {})["base_model_fingerprint"]["blake3"] != before
    locked.run("training_controller.py", "config", "check")


def test_checking_the_config_writes_nothing(locked: Box) -> None:
    before = sorted(locked.paths.base.rglob("*"))
    locked.run("training_controller.py", "config", "check")
    locked.run("training_controller.py", "config", "show")
    locked.run("training_controller.py", "status")
    assert sorted(locked.paths.base.rglob("*")) == before


def test_a_pipe_in_the_configs_place_is_refused_and_not_waited_for(locked: Box) -> None:
    locked.paths.config.unlink()
    os.mkfifo(locked.paths.config)
    done = locked.run("training_controller.py", "config", "check", code=10)
    assert done.stderr.startswith(f"error: cannot read {locked.paths.config}: not a regular file\n")
