"""The guard on commands and edits as agents and people write them, each with what it would do."""

import contextlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.guard.worlds import Verdict, World, load_corpus

CASES = load_corpus()
Verdicts = dict[str, Verdict]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def verdicts(world: World) -> Verdicts:
    """What the guard says to each case."""
    with contextlib.chdir(world.base):
        return {case["id"]: world.judge(case) for case in CASES}


def test_the_corpus_is_large_and_has_many_harmless_look_alikes() -> None:
    expected = Counter(case["expect"] for case in CASES)
    assert expected.total() >= 400
    assert expected["pass"] * 3 > expected.total()


def wrong(verdicts: Verdicts, expect: str) -> list[str]:
    """The cases that are decided otherwise, with the reason."""
    ids = [case["id"] for case in CASES if case["expect"] == expect]
    return [f"{one}: {verdicts[one].reason}" for one in ids if verdicts[one].answer != expect]


def test_destructive_commands_are_stopped(verdicts: Verdicts) -> None:
    assert wrong(verdicts, "stop") == []


def test_harmless_look_alikes_pass(verdicts: Verdicts) -> None:
    assert wrong(verdicts, "pass") == []


def test_a_denial_names_the_policy_and_a_command_that_passes(world: World, verdicts: Verdicts) -> None:
    reasons = {one: verdict.reason for one, verdict in verdicts.items() if verdict.answer == "stop"}
    named = re.compile(r"policy \d|the agent guard stays on")
    commands = {one: re.findall(r"`(python3 [^`]+)`", reason) for one, reason in reasons.items()}
    assert [one for one, reason in reasons.items() if not named.search(reason) or not commands[one]] == []
    suggested = {command for found in commands.values() for command in found}
    assert len(suggested) > 5
    with contextlib.chdir(world.base):
        assert [command for command in suggested if world.judge({"command": command}).answer != "pass"] == []


def test_judging_changes_nothing(world: World) -> None:
    def files() -> dict[Path, tuple[int, int]]:
        found = (path for path in world.base.rglob("*") if path.is_file() and ".git" not in path.parts)
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}

    before = files()
    with contextlib.chdir(world.base):
        for case in [case for case in CASES if "files" not in case and "links" not in case][::10]:
            world.judge(case)
    assert files() == before
