"""However a destructive command is spelled, it is stopped; the same spelling of a harmless one passes."""

import base64
import shlex
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.guard.worlds import World, load_corpus

Spelling = Callable[[str], str]

# {} is the path. Each destroys what is there.
DESTROYS = (
    "rm -rf {}",
    "rm -r -f -- {}",
    "mv {} /somewhere/else",
    "find {} -delete",
    "find {} -type f -exec rm {{}} +",
    "find {} -print0 | xargs -0 rm -rf",
    "echo {} | xargs rm -rf",
    "chmod -R a+w {}",
    "rsync -a --delete /empty/ {}/",
    "tar --remove-files -cf /tmp/x.tar {}",
    "for f in {}; do rm -rf $f; done",
    "d={}; rm -rf $d",
    "clear_it() {{ rm -rf $1; }}; clear_it {}",
    "python3 -c 'import shutil; shutil.rmtree(\"{}\")'",
    "perl -e 'use File::Path; rmtree(\"{}\")'",
)
# Other names for the same path below the base dir.
PATHS: tuple[Spelling, ...] = (
    lambda path: path,
    lambda path: f"./{path}",
    lambda path: f".//{path}",
    lambda path: f"src/../{path}",
    lambda path: f"{path}/",
)
# Other words for the same command line.
LINES: tuple[Spelling, ...] = (
    lambda line: f"bash -c {shlex.quote(line)}",
    lambda line: f"sh -c {shlex.quote(line)}",
    lambda line: f"eval {shlex.quote(line)}",
    lambda line: f"(\n{line}\n)",
    lambda line: f"{{\n{line}\n}}",
    lambda line: f"true && {line}",
    lambda line: f"false || {line}",
    lambda line: f"cd src && cd .. && {line}",
    lambda line: f"if [ -d src ]; then\n{line}\nfi",
    lambda line: f"while true; do\n{line}\nbreak; done",
    lambda line: f"sudo bash -c {shlex.quote(line)}",
    lambda line: f"env A=1 nohup timeout 60 bash -c {shlex.quote(line)}",
    lambda line: f"bash <<'END{len(line)}'\n{line}\nEND{len(line)}",
    lambda line: f"bash <<< {shlex.quote(line)}",
    lambda line: f"printf %s {shlex.quote(line)} | sh",
    lambda line: f"echo {base64.b64encode(line.encode()).decode()} | base64 -d | bash",
    lambda line: f'x={shlex.quote(line)}; eval "$x"',
    lambda line: f"echo $(\n{line}\n)",
    lambda line: f"(\n{line}\n) &",
    lambda line: f"trap {shlex.quote(line)} EXIT",
    lambda line: f"run() {{\n{line}\n}}\nrun",
    lambda line: f"ls -la # look\n{line}",
    lambda line: f"cat > /tmp/step.sh <<'END{len(line)}'\n{line}\nEND{len(line)}\nbash /tmp/step.sh",
)
spellings = st.lists(st.sampled_from(LINES), max_size=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def spell(template: str, path: str, lines: list[Spelling]) -> str:
    line = template.format(path)
    for spelling in lines:
        line = spelling(line)
    return line


many = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(
    st.sampled_from(DESTROYS),
    st.sampled_from(("current_model", "models", "models/versions/v002", "models/backups", "base_models/tiny")),
    st.sampled_from(PATHS),
    spellings,
)
def test_every_spelling_of_a_destructive_command_is_stopped(
    world: World, template: str, place: str, path: Spelling, lines: list[Spelling]
) -> None:
    command = spell(template, path(place), lines)
    assert world.judge({"command": command}).answer == "stop", command


@many
@given(
    st.sampled_from(DESTROYS),
    st.sampled_from(("build", "src/current_model_old", "data/models", "runs/tmp", "current_model.bak")),
    st.sampled_from(PATHS),
    spellings,
)
def test_every_spelling_of_a_harmless_command_passes(
    world: World, template: str, place: str, path: Spelling, lines: list[Spelling]
) -> None:
    command = spell(template, path(place), lines)
    assert world.judge({"command": command}).answer == "pass", command


def is_understood(world: World, command: str) -> bool:
    """Whether the guard looked through a command line, or rightly said that it is none or too large."""
    failure = world.judge({"command": command}).failure
    return failure in ("", "it is too large") or failure.startswith("UnparsableError")


@many
@given(st.text(alphabet="curentmodl/*?[]{}$'\"\\ .~;|&()<>=!#\n-rf`@:+", max_size=60))
@example("rm -rf ${")
@example("$(" * 50 + ")" * 50)
@example("{1..9}" * 9)
@example(";():")
def test_no_text_breaks_the_guard(world: World, text: str) -> None:
    assert is_understood(world, f"rm -rf {text}")


COMMANDS = [case["command"] for case in load_corpus() if "command" in case and "files" not in case]


@many
@given(st.sampled_from(COMMANDS), st.sampled_from(COMMANDS), st.integers(0, 400), st.integers(0, 400))
def test_no_torn_command_breaks_the_guard(world: World, one: str, other: str, end: int, start: int) -> None:
    assert is_understood(world, one[:end] + other[start:])
