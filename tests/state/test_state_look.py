"""The report on a terminal is easier on the eye, and says the same under the same labels."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails.report.look import MOST_VERSIONS, OLDEST_VERSIONS, TerminalLook
from guardrails.report.terminal_text import count_cells
from guardrails.report.text import Look, plain_style, report_lines
from tests.state.building import SCRIPT, BaseDir, Json, healthy, run_tracker
from tests.state.situations import NAMES, situations
from tests.terminals import show

NOW = 1_800_000_000.0
VOLATILE = ("Available", "Used", "disk", "du -xhd2")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BaseDir]]:
    with situations(tmp_path_factory.mktemp("boxes")) as made:
        yield made


def check_on_terminal(box: BaseDir, columns: int = 80, **variables: str) -> list[str]:
    command = (sys.executable, SCRIPT, "--check", "--base-dir", box.base)
    return show(command, columns, 24, **variables).splitlines()


def lines_of(document: Json, columns: int = 80) -> list[str]:
    return list(report_lines(document, TerminalLook(plain_style, columns, NOW)))


def labels(lines: list[str]) -> list[str]:
    """The sections and the labels in them, without what only a list has."""
    found = (re.match(r"([A-Z][A-Z ]+:)|   +(?:[^\w\s] )?([A-Z]\w+(?: [A-Z]\w+)?): ", line) for line in lines)
    return [match[1] or match[2] for match in found if match]


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("name", NAMES)
def test_all_sections_and_labels_are_there_in_the_same_order_and_lines_fit(
    boxes: dict[str, BaseDir], name: str, columns: int
) -> None:
    document = boxes[name].report()
    shown = lines_of(document, columns)
    assert labels(shown) == labels(list(report_lines(document)))
    # Commands, and what is a path or a list of counts, stay in one piece.
    whole = ("Fix: ", "Pending: ", "Queue: ", "Base: ", "GPU: ", "Storage: ", "Since: ")
    long = [line for line in shown if count_cells(line) > columns and not any(label in line for label in whole)]
    assert [line for line in long if " " in line.strip()] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_command_is_a_line_of_its_own_and_nothing_is_left_out(boxes: dict[str, BaseDir], name: str) -> None:
    document = boxes[name].report()
    shown, plain = lines_of(document), list(report_lines(document))
    commands = [line for line in plain if line.startswith("     Fix: ")]
    assert [line for line in shown if line.startswith("     Fix: ")] == commands
    text = " ".join(line.strip() for line in shown)
    for detail in document["warning_details"]:
        assert f"({detail['severity']}, {detail['id']}" in text


def test_numbers_times_and_lengths_are_said_for_people(boxes: dict[str, BaseDir]) -> None:
    document = boxes["training"].report()
    document["current_model"] |= {"training_steps": 1234567, "last_training": "2027-01-15T06:00:00Z", "size_gb": 1234.5}
    document["training_status"] |= {"eta_seconds": 3671.25}
    document["warning_details"] = [{**one, "since": "2027-01-14T05:00:00Z"} for one in document["warning_details"]]
    text = "\n".join(lines_of(document))
    assert "Training Steps: 1,234,567\n" in text
    assert "Size: 1,234.50 GB\n" in text
    assert "Last Training: 2027-01-15T06:00:00Z (2 h ago)\n" in text
    assert ", 1 h 1 min left\n" in text
    assert ", for 1 d)" in text
    # On a pipe all of it is to the letter.
    plain = "\n".join(report_lines(document))
    assert "Training Steps: 1234567\n" in plain
    assert "Last Training: 2027-01-15T06:00:00Z\n" in plain
    assert ", 3671 seconds left\n" in plain


def test_a_time_to_come_is_shown_without_an_age(boxes: dict[str, BaseDir]) -> None:
    document = boxes["healthy"].report()
    document["current_model"]["last_training"] = "2099-01-01T00:00:00Z"
    assert "Last Training: 2099-01-01T00:00:00Z" in [line.strip() for line in lines_of(document)]


def make_versions(count: int) -> list[Json]:
    return [
        {"id": f"v{n:03d}", "date": "2026-11-21", "description": f"file {n}.jsonl 模型", "size_gb": n / 100}
        for n in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [0, 1, MOST_VERSIONS, MOST_VERSIONS + 1, 1000])
def test_a_long_list_of_versions_is_folded_and_says_how_to_see_it_all(count: int) -> None:
    versions = make_versions(count)
    shown = list(TerminalLook(plain_style, 80, NOW).versions(versions))
    listed = [match[1] for line in shown if (match := re.match(r"   • (v\d+): ", line))]
    if count <= MOST_VERSIONS:
        assert listed == [version["id"] for version in versions]
        assert len(shown) == count
    else:
        ids = [version["id"] for version in versions]
        newest = MOST_VERSIONS - OLDEST_VERSIONS
        assert listed == ids[:OLDEST_VERSIONS] + ids[-newest:]
        fold = shown[OLDEST_VERSIONS]
        first, last = ids[OLDEST_VERSIONS], ids[-newest - 1]
        assert fold == f"   … {count - MOST_VERSIONS} more, {first} to {last}: python3 state_tracker.py --check | less"
    assert len(list(Look().versions(versions))) == count
    ends = {count_cells(line) for line in shown if line.startswith("   •")}
    assert len(ends) <= 1, "aligned"


def test_the_fold_is_for_terminals_alone(tmp_path: Path) -> None:
    box = healthy(tmp_path, 2)
    for number in range(3, MOST_VERSIONS + 5):
        box.version(number)
    terminal = check_on_terminal(box, NO_COLOR="1")
    assert sum(line.startswith("   • v") for line in terminal) == MOST_VERSIONS
    assert any("4 more, v004 to v007: python3 state_tracker.py --check | less" in line for line in terminal)
    piped = run_tracker(tmp_path, "--check").stdout.splitlines()
    assert sum(line.startswith("   • v") for line in piped) == MOST_VERSIONS + 4


def test_a_description_that_is_too_long_is_cut_on_a_terminal_only(tmp_path: Path) -> None:
    box = healthy(tmp_path, 1)
    box.version(2, description="word " * 60)
    (line,) = [line for line in check_on_terminal(box, NO_COLOR="1") if "v002" in line and line.startswith("   •")]
    assert count_cells(line) <= 80
    assert "… (20" in line


@pytest.mark.parametrize("columns", [80, 160])
def test_the_terminals_own_width_is_taken(boxes: dict[str, BaseDir], columns: int) -> None:
    box = boxes["warnings"]
    lines = check_on_terminal(box, columns, NO_COLOR="1")
    whole = [line for line in lines if not re.search(r"Fix: |Since: |Base: |Queue: |Pending: |Storage: ", line)]
    widest = max(count_cells(line) for line in whole if " " in line.strip())
    assert columns - 20 < widest <= columns


def test_colour_only_where_it_is_wanted_and_ascii_where_it_must_be(boxes: dict[str, BaseDir]) -> None:
    box = boxes["damaged"]
    coloured = "\n".join(check_on_terminal(box))
    assert "\x1b[31mcritical\x1b[0m" in coloured
    plain = check_on_terminal(box, NO_COLOR="1")
    assert "\x1b" not in "".join(plain)
    bare = re.sub(r"\x1b\[\d*m", "", coloured)
    assert [line for line in bare.splitlines() if not any(word in line for word in VOLATILE)] == [
        line for line in plain if not any(word in line for word in VOLATILE)
    ]
    ascii_only = check_on_terminal(box, LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", NO_COLOR="1")
    assert "".join(ascii_only).isascii()
    assert any(line.startswith("   * [") for line in ascii_only)


def test_a_bar_shows_how_far_a_deep_check_is_and_what_goes_to_a_file_goes_there(tmp_path: Path) -> None:
    box = healthy(tmp_path / "base")
    code = (
        "import runpy, sys, guardrails.cli\n"
        "guardrails.cli.BAR_AFTER_SECONDS = -1\n"
        f"sys.argv = ['state_tracker.py', '--deep', '--json', '--base-dir', {str(box.base)!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    target = tmp_path / "out.json"
    line = f"{sys.executable} -c \"$CODE\" > '{target}'"
    shown = show(("bash", "-c", line), CODE=code, PYTHONPATH=str(SCRIPT.parent))
    assert re.search(r"[\d.]+/[\d.]+ (bytes|kB)", re.sub(r"\x1b\[[\d;?]*\w", "", shown)), shown
    assert json.loads(target.read_text())["schema_version"] == 1


def test_a_pipe_and_a_terminal_say_the_same_words(boxes: dict[str, BaseDir]) -> None:
    document = boxes["healthy"].report()
    words = {word for line in report_lines(document) for word in re.findall(r"[A-Za-z]{4,}", line)}
    assert words <= {word for line in lines_of(document, 300) for word in re.findall(r"[A-Za-z]{4,}", line)} | {
        "seconds"
    }


def test_it_costs_a_pipe_nothing(tmp_path: Path) -> None:
    healthy(tmp_path)
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--check", "--base-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("state_look", "terminal_text", "state_words"):
        assert name not in done.stderr
