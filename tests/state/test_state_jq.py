"""What users write around the report: filters of jq 1.6, and lines of shell scripts and crontabs.

Every line runs with an empty environment and ``pipefail``, as from cron.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guardrails.paths import CODE_DIR
from guardrails.report.text import warning_lines
from tests.state.building import Json, healthy

pytestmark = pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")

PYTHON = next((path for path in ("/usr/bin/python3",) if Path(path).exists()), sys.executable)
ODD = 'it\'s "odd"\tand, 模型 🙂'
SHELL = ("/bin/bash", "-o", "pipefail", "-c")


class World(NamedTuple):
    """A base dir with something to say, its document, and the same on a disk that runs full while a run is on."""

    base: Path
    document: Json
    busy: Json
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("jq")
    box = healthy(folder / "base dir", 3)
    box.version(4, description=ODD, created_at="2026-01-02T03:04:05Z", training_steps=10)
    box.config(max_length=4096)
    box.paths.emergency_stop.touch()
    (box.paths.queue_folder("failed") / "bad.jsonl").touch()
    document = box.report()
    training = {"status": "training", "run_step": 22, "run_total_steps": 75, "loss": 3.9, "eta_seconds": 31.5}
    low = ["disk", "LOW DISK SPACE: Only 8GB free!"]
    busy = {
        **document,
        "daemon_running": True,
        "current_model": {**document["current_model"], "warning": None},
        "training_status": {**document["training_status"], **training, "last_update": document["last_updated"]},
        "disk_space": {"available_gb": 8.12, "used_percent": 99, "total_gb": 812.0, "warning": low[1]},
        "warnings": [low, *document["warnings"]],
    }
    for name, one in (("state.json", document), ("busy.json", busy)):
        (folder / name).write_text(json.dumps(one))
    yield World(box.base, document, busy, folder)


def shell(world: World, line: str) -> subprocess.CompletedProcess[str]:
    """A line of a script, in an empty environment; ``$T`` is the state tracker on the base dir."""
    tracker = shlex.join([PYTHON, str(CODE_DIR / "state_tracker.py"), "--base-dir", str(world.base)])
    # A function, so that words are kept as they are on a line of a script.
    script = f'T() {{ {tracker} "$@"; }}\nBASE={shlex.quote(str(world.base))}\n{line}'
    return subprocess.run(
        [*SHELL, script], capture_output=True, text=True, encoding="utf-8", env={}, cwd=world.folder, check=False
    )


def counted(values: Iterator[Any]) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


# filter -> what it gives, of the busy document
FILTERS: list[tuple[str, Callable[[Json], list[Any]]]] = [
    ('.warnings[] | select(.[0]=="disk")', lambda d: [one for one in d["warnings"] if one[0] == "disk"]),
    ('.warnings[] | select(.[0]=="disk" or .[0]=="daemon") | .[1]', lambda d: of(d, "disk", "daemon")),
    (".warnings | map(.[0]) | unique", lambda d: [sorted({category for category, _ in d["warnings"]})]),
    ('any(.warnings[]; .[1] | test("^LOW DISK"))', lambda _: [True]),
    (".versions | max_by(.training_steps) | .id", lambda _: ["v003"]),
    (".versions | min_by(.date) | .description", lambda _: [ODD]),
    (".versions | length", lambda _: [4]),
    (".versions[-1].id", lambda _: ["v004"]),
    (".versions | map(select(.training_steps > 100)) | map(.id)", lambda _: [["v002", "v003"]]),
    ("[.versions[].size_gb] | add", lambda _: [0]),
    ('.versions | map(select(.description | contains("模型"))) | first | .id', lambda _: ["v004"]),
    (".versions | INDEX(.id) | .v002.training_steps", lambda _: [150]),
    ("(.last_updated | fromdateiso8601) > 1700000000", lambda _: [True]),
    ("now - (.last_updated | fromdateiso8601) | . >= 0 and . < 3600", lambda _: [True]),
    (
        "(.last_updated | fromdateiso8601) - (.training_status.last_update | fromdateiso8601) | . / 60 | floor",
        lambda _: [0],
    ),
    (
        "(.last_updated | fromdateiso8601) + .training_status.eta_seconds | floor | todateiso8601 | length",
        lambda d: [len(d["last_updated"])],
    ),
    (".training_status | .run_step / .run_total_steps * 100 | floor", lambda _: [29]),
    ('.training_status.eta_seconds | if . == null then "?" else . / 60 | ceil end', lambda _: [1]),
    ('.gpu.name // "no GPU"', lambda d: [d["gpu"]["name"] if d["gpu"] else "no GPU"]),
    ('.config.locked_params | index("max_length") != null', lambda _: [True]),
    (".queue | add", lambda d: [sum(d["queue"].values())]),
    (".queue | to_entries | map(select(.value > 0).key)", lambda _: [["completed", "failed"]]),
    ('.disk_space | "\\(.available_gb) of \\(.total_gb) GB"', lambda _: ["8.12 of 812 GB"]),
    (".storage | .versions_gb + .backups_gb + .trash_gb", lambda d: [sum(d["storage"].values())]),
    (
        ".warning_details | group_by(.severity) | map({key: .[0].severity, value: length}) | from_entries",
        lambda d: [counted(one["severity"] for one in d["warning_details"])],
    ),
    (
        '.warning_details[] | select(.id | startswith("config-lock-changed:")) | .hint',
        lambda d: [one["hint"] for one in d["warning_details"] if "set max_length" in one["hint"]],
    ),
    ('.warning_details | map(select(.severity == "critical")) | length', lambda _: [1]),
    (
        ".warning_details[] | select((.since | fromdateiso8601) > now - 86400) | .id",
        lambda d: [one["id"] for one in d["warning_details"]],
    ),
    ('[paths(type == "null") | join(".")] - ["gpu"]', lambda d: [[f"{one}.warning" for one in d if is_calm(d[one])]]),
    ("[.. | numbers | select(isnan or isinfinite)] | length", lambda _: [0]),
    ("del(.versions, .warnings, .warning_details) | keys | length", lambda d: [len(d) - 3]),
]


def of(document: Json, *categories: str) -> list[str]:
    return [message for category, message in document["warnings"] if category in categories]


def is_calm(section: object) -> bool:
    return isinstance(section, dict) and section.get("warning", "") is None


@pytest.mark.parametrize(("expression", "expected"), FILTERS, ids=[expression for expression, _ in FILTERS])
def test_a_filter_gives_what_its_words_say(
    world: World, expression: str, expected: Callable[[Json], list[Any]]
) -> None:
    done = shell(world, f"jq -c {shlex.quote(expression)} busy.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected(world.busy)


# What a user types, what is printed, and the exit code where it is not 0.
SESSIONS = r"""
$ jq -r '.versions[-1] | [.id, .training_steps, .description] | @csv' state.json
"v004",10,"it's ""odd""	and, 模型 🙂"
$ jq -r '.versions[] | [.id, .training_steps] | @tsv' state.json | sort -k2 -n | tail -1 | cut -f1
v003
$ jq -r '.warnings[] | @sh' state.json | head -1 | cut -c1-8
'config'
$ jq -r '.queue | to_entries[] | "\(.key)=\(.value)"' state.json | grep failed
failed=1
$ jq -e .daemon_running state.json
false
=> 1
$ jq -e '.disk_space.available_gb < 10' busy.json >/dev/null && echo low
low
$ jq -re '.disk_space.warning // empty' busy.json
LOW DISK SPACE: Only 8GB free!
$ jq 'if .disk_space.available_gb < 10 then error("disk") else . end' busy.json 2>&1 | grep -o 'disk$'
disk
=> 5
$ jq -n --slurpfile a state.json --slurpfile b busy.json '$b[0].warnings - $a[0].warnings | length'
1
$ diff <(jq -S .versions state.json) <(jq -S .versions busy.json) && echo same
same
$ jq -s 'map(.verdict) | unique | length' state.json busy.json
1
$ text=$(jq -r '.disk_space.warning // empty' busy.json); [ -z "$text" ] || printf 'Subject: disk\n\n%s\n' "$text"
Subject: disk

LOW DISK SPACE: Only 8GB free!
$ T --json | jq -r .verdict
critical
$ T --json | jq -e '.verdict == "ok"'
false
=> 1
$ T >/dev/null && jq -r .config.max_length "$BASE/.system_state.json"
4096
$ if T --exit-code >/dev/null; then echo fine; else echo "code $?"; fi
code 3
$ T --json --exit-code | jq -r .verdict
critical
=> 3
$ T --check | grep -q 'VERSIONS: 4 saved' && echo found
found
$ T --check | grep -A 3 'CURRENT MODEL:' | tail -1
   Training Steps: 225
$ T --check | awk -F': ' '/Training Steps/ {print $2}'
225
$ T --warnings | grep daemon
[daemon] the emergency stop lies in the base dir: as long as it does, the daemon does not start
[daemon] Training daemon not running (model exists with training progress)
[daemon] 1 data file failed to train
$ T --warnings | grep raid || echo none
none
$ T --warnings --exit-code | grep -q '^\[config\]'; echo ${PIPESTATUS[*]}
3 0
$ T --warnings | while read -r w; do logger --no-act --socket-errors=off -st llm "$w"; done 2>&1 | grep -c '\[daemon'
3
$ case $(T --json | jq -r .verdict) in critical) echo page;; warning) echo mail;; esac
page
$ T --warnings --exit-code >new.txt || sed '1s/^/Subject: /' new.txt | head -1 | cut -c1-24
Subject: [config] locked
$ flock -n .cron.lock bash -c 'exit 0' && T --warnings | grep -c '^\[backup\]'
1
$ timeout 60 true && T --nagios | cut -d' ' -f1-2
TRAINING CRITICAL
=> 2
$ T --prometheus - | grep -c '^training_verdict{.*} 1$'
1
$ T --watch 0.2 | grep -q 'VERDICT: critical' && echo seen
seen
$ T --watch 0.2 --json | head -2 | jq -r .schema_version | paste -s
1	1
$ T --json 2>&1 >/dev/full | cut -c1-9
{"error":
=> 33
"""
SESSION = re.compile(r"^\$ (.*)\n((?:(?!\$ |=> ).*\n)*)(?:=> (\d+)\n)?", re.MULTILINE)
LINES = [(line, output, int(code or 0)) for line, output, code in SESSION.findall(SESSIONS)]


@pytest.mark.parametrize(("line", "output", "code"), LINES, ids=[line for line, _, _ in LINES])
def test_a_line_of_a_script_does_what_it_looks_like(world: World, line: str, output: str, code: int) -> None:
    done = shell(world, line)
    assert (done.stderr, done.returncode, done.stdout) == ("", code, output)


def test_the_lines_of_warnings_are_what_a_filter_makes_of_the_document(world: World) -> None:
    done = shell(world, "T --warnings; T --json | jq -r '.warnings[] | \"[\\(.[0])] \\(.[1])\"'")
    lines = done.stdout.splitlines()
    assert lines == warning_lines(world.document) * 2
