"""training_queue.py as a person runs it: real processes, real exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guardrails import queue
from guardrails.config import starting_config
from guardrails.paths import CODE_DIR, Paths
from guardrails.queue_records import processing

SCRIPT = str(CODE_DIR / "training_queue.py")
RUN = "20261121T100003Z-5f3a91c2"
COMMANDS = ("add", "list", "status", "set-priority", "remove", "retry", "validate", "process-inbox", "history")


class Shell:
    """Runs the script in one base dir, from another folder."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder / "base dir")
        self.paths.inbox.mkdir(parents=True)
        self.data = folder / "data"
        self.data.mkdir()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments],
            capture_output=True,
            text=True,
            cwd=self.data,
            env={"TRAINING_BASE_DIR": str(self.paths.base), "PATH": os.environ["PATH"], **environment},
            timeout=120,
            check=False,
        )

    def do(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def read(self, *arguments: str) -> Any:
        return json.loads(self.do("--json", *arguments))

    def write(self, name: str, content: str = "") -> Path:
        path = self.data / name
        path.write_text(content or f'{{"text": "{name}"}}\n')
        return path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_added_files_wait_in_their_order_and_the_originals_stay(shell: Shell) -> None:
    for name in ("c.jsonl", "a.jsonl", "b.jsonl"):
        shell.write(name)
    assert shell.do("add", "c.jsonl", "a.jsonl") == "queued c.jsonl (normal)\nqueued a.jsonl (normal)\n"
    shell.do("add", "--priority", "high", str(shell.data / "b.jsonl"))
    assert [row["name"] for row in shell.read("list")] == ["b.jsonl", "c.jsonl", "a.jsonl"]
    assert sorted(os.listdir(shell.data)) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert os.listdir(shell.paths.queue_folder("high")) == ["b.jsonl"]


def test_a_path_is_relative_to_the_current_folder_else_to_the_base_dir(shell: Shell) -> None:
    (shell.paths.base / "mine").mkdir()
    (shell.paths.base / "mine/x.jsonl").write_text("x")
    assert shell.do("add", "mine/x.jsonl/") == "queued x.jsonl (normal)\n"


def test_nothing_is_added_when_one_of_the_files_is_missing(shell: Shell) -> None:
    shell.write("a.jsonl")
    done = shell.run("add", "a.jsonl", "missing.jsonl")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no missing.jsonl")
    assert shell.read("list") == []


def test_a_duplicate_goes_to_skipped_names_the_other_and_can_be_forced(shell: Shell) -> None:
    shell.write("a.jsonl", "same")
    shell.write("b.jsonl", "same")
    shell.do("add", "a.jsonl")
    printed = shell.do("add", "b.jsonl")
    assert "same content as a.jsonl" in printed
    assert "training_queue.py retry b.jsonl" in printed
    assert [row["state"] for row in shell.read("add", "b.jsonl", "--force")] == ["normal"]
    assert shell.read("status")["counts"]["skipped"] == 1


def test_the_inbox_is_taken_and_what_is_left_is_told_of(shell: Shell) -> None:
    (shell.paths.inbox / "sub").mkdir()
    (shell.paths.inbox / "sub/a b'\n.jsonl").write_text("a")
    (shell.paths.inbox / "b.jsonl.part").write_text("b")
    before = shell.read("status")
    assert {left["path"] for left in before["inbox"]} == {"inbox/sub/a b'\n.jsonl", "inbox/b.jsonl.part"}
    taken = shell.read("process-inbox")
    assert [row["name"] for row in taken["queued"]] == ["a b'\n.jsonl"]
    assert [left["why"] for left in taken["left"]] == ["looks like an unfinished download"]
    assert len(shell.do("list").splitlines()) == 2
    assert shell.do("set-priority", "a b'\n", "low") == "a b'\\n.jsonl waits with priority low\n"


def test_remove_and_retry_are_each_others_undoing(shell: Shell) -> None:
    shell.write("a.jsonl")
    shell.do("add", "a.jsonl", "--priority", "low")
    assert shell.do("remove", "queue/low/a.jsonl").startswith("moved a.jsonl to queue/skipped/")
    assert shell.do("retry", "a.jsonl") == "a.jsonl waits again (low)\n"
    events = [row["event"] for row in shell.read("history", "a")]
    assert events == ["added", "removed", "retried"]


def test_a_file_in_training_is_busy(shell: Shell) -> None:
    shell.write("a.jsonl")
    shell.do("add", "a.jsonl")
    queue.claim(shell.paths, "a.jsonl", RUN)
    for arguments in (["remove", "a"], ["retry", "a"], ["set-priority", "a", "high"]):
        done = shell.run(*arguments)
        assert (done.returncode, done.stdout) == (20, "")
        assert "hint: training_controller.py skip\n" in done.stderr
    assert processing(shell.paths) is not None
    assert RUN in shell.do("status")


@pytest.mark.parametrize("command", ["remove", "retry", "history"])
def test_a_name_that_does_not_exist_is_one_line_and_a_hint(shell: Shell, command: str) -> None:
    done = shell.run(command, "none\n.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: there is no data file none")
    assert lines[1].startswith("hint: ")


@pytest.mark.parametrize("arguments", [["add"], ["set-priority", "a", "urgent"], ["lsit"], ["--nope"]])
def test_a_mistyped_command_line_exits_2(shell: Shell, arguments: list[str]) -> None:
    done = shell.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


def test_a_damaged_record_exits_30_and_is_left_untouched(shell: Shell) -> None:
    shell.write("a.jsonl")
    shell.do("add", "a.jsonl")
    record = shell.paths.queue_records / "a.jsonl.json"
    record.write_text("{")
    done = shell.run("list", "--json")
    assert (done.returncode, done.stdout) == (30, "")
    assert json.loads(done.stderr)["exit_code"] == 30
    assert record.read_text() == "{"


def test_json_is_taken_before_and_after_the_subcommand_and_is_ascii(shell: Shell) -> None:
    shell.write("größe💾.jsonl")
    shell.do("add", "größe💾.jsonl")
    for command in ("list", "status", "history"):
        before, after = shell.do("--json", command), shell.do(command, "--json")
        assert before == after
        assert after.isascii()
        assert after.endswith("\n")
        json.loads(after)


def test_a_terminal_that_knows_only_ascii_still_gets_every_line(shell: Shell) -> None:
    shell.write("größe💾.jsonl")
    shell.do("add", "größe💾.jsonl")
    done = shell.run("list", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr\\xf6\\xdfe" in done.stdout


def test_reading_commands_change_nothing(shell: Shell) -> None:
    (shell.paths.inbox / "a.jsonl").write_text("a")
    for command in ("list", "status", "history"):
        shell.do(command)
    assert sorted(str(path.relative_to(shell.paths.base)) for path in shell.paths.base.rglob("*")) == [
        "inbox",
        "inbox/a.jsonl",
    ]


def test_a_reader_that_goes_away_ends_it_quietly(shell: Shell) -> None:
    (shell.paths.queue_folder("high")).mkdir(parents=True)
    # More than a pipe holds.
    for number in range(700):
        (shell.paths.queue_folder("high") / f"{number}{'x' * 150}.jsonl").touch()
    script = f"{sys.executable} {SCRIPT} list | grep -q high"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        capture_output=True,
        text=True,
        env={"TRAINING_BASE_DIR": str(shell.paths.base), "PATH": os.environ["PATH"]},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(shell: Shell, command: str) -> None:
    assert "--base-dir" in shell.do(command, "--help")


def test_the_base_dir_is_taken_from_the_option_first(shell: Shell, tmp_path: Path) -> None:
    shell.write("a.jsonl")
    shell.do("add", "a.jsonl")
    other = tmp_path / "other"
    other.mkdir()
    assert shell.read("list", "--base-dir", str(other)) == []
    assert shell.read("--base-dir", str(other), "list") == []


def test_the_reading_commands_start_without_the_slow_libraries(shell: Shell) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, "--base-dir", str(shell.paths.base), "status", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert loaded.isdisjoint({"pydantic", "rich", "torch", "transformers", "psutil"})


@pytest.mark.training
def test_validate_finds_what_a_run_would_find(shell: Shell, tiny_model: Path) -> None:
    shell.paths.config.write_text(starting_config(base_model=str(tiny_model), max_length=128))
    shell.write("good.jsonl", '{"text": "one two three"}\n' * 20)
    shell.write("bad.jsonl", '{"text": "one"}\n{"txt": "two"}\nnonsense\n')
    good = shell.run("validate", "good.jsonl")
    assert (good.returncode, good.stdout[:3]) == (0, "ok "), good.stderr
    both = shell.run("validate", "good.jsonl", "bad.jsonl", "--json")
    assert both.returncode == 1, both.stderr
    first, second = json.loads(both.stdout)
    assert first["problem"] is None
    assert [row["line"] for row in second["bad_rows"]] == [2, 3]


def test_validate_without_a_base_model_exits_10(shell: Shell) -> None:
    shell.paths.config.write_text(starting_config())
    shell.write("a.jsonl")
    done = shell.run("validate", "a.jsonl")
    assert (done.returncode, done.stdout) == (10, "")
