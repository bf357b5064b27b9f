"""The docs say what the code does: pages that are made, links that lead somewhere, commands that exist."""

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs.generate import PAGE, commands, exit_codes, load_command, make_page, scripts
from docs.generate import main as generate
from guardrails.paths import CODE_DIR

PAGES = sorted([*CODE_DIR.glob("*.md"), *CODE_DIR.glob("docs/*.md")])
WRITTEN_BY_HAND = [page for page in PAGES if page != PAGE]
SOURCES = sorted([*CODE_DIR.glob("*.py"), *CODE_DIR.glob("guardrails/**/*.py")])
COMMANDS = {f"{script}.py": load_command(script) for script in scripts()}
# Named by a hint before it is there; an entry that came to exist fails the test.
NOT_YET: set[str] = set()

MENTION = re.compile(rf"\b({'|'.join(map(re.escape, COMMANDS))})(?=[\s.,;:)'`]|$)")
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
END_OF_COMMAND = re.compile(r"[`|;&<>#()\n]|\$ |  ")


def find_commands(text: str) -> Iterator[list[str]]:
    """Each command of the toolkit in a piece of code or prose, as its words."""
    mentions = list(MENTION.finditer(text))
    for mention, following in itertools.zip_longest(mentions, mentions[1:]):
        rest = text[mention.end() : following.start() if following else None]
        rest = END_OF_COMMAND.split(rest)[0]
        try:
            words = shlex.split(rest)
        except ValueError:  # an apostrophe of the prose around it
            words = rest.split()
        yield [mention[1], *(word.rstrip(".,:") for word in words)]


def find_problem(words: list[str]) -> str | None:
    """What in a command does not exist: a subcommand or an option. Arguments are not looked at."""
    command, options, said = COMMANDS[words[0]], set[str](), words[0]
    rest = iter(words[1:])
    while True:
        known = {name: parameter for parameter in command.params for name in parameter.opts}
        options |= known.keys() | {"--help"}
        for word in rest:
            if word == "--":
                # What follows is another program's.
                return None
            if word.startswith("-") and len(word) > 1 and word[1] != " ":
                if word.partition("=")[0] not in options:
                    return f"{said} {word}"
                parameter = known.get(word)
                if isinstance(parameter, click.Option) and not parameter.is_flag and not parameter.is_eager:
                    next(rest, None)
            elif isinstance(command, click.Group):
                if word not in command.commands:
                    return f"{said} {word}"
                command, said = command.commands[word], f"{said} {word}"
                break
        else:
            return None


def problems_of(commands_found: Iterator[list[str]]) -> set[str]:
    return {problem for words in commands_found if (problem := find_problem(words))}


def commands_in_page(page: Path) -> Iterator[list[str]]:
    for block, span in CODE.findall(page.read_text(encoding="utf-8")):
        for line in (block or span).splitlines():
            yield from find_commands(line)


def commands_in_source(path: Path) -> Iterator[list[str]]:
    """The commands in a source's strings (hints, above all) and in the findings' ``command(facts, …)``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values]
            yield from find_commands("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for line in node.value.splitlines():
                yield from find_commands(line)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "command":
            words = [a.value if isinstance(a, ast.Constant) else "VALUE" for a in node.args[1:]]
            if words and words[0] in COMMANDS:
                yield [str(word) for word in words]


def slug(heading: str) -> str:
    """The anchor that a heading gets on the usual forges."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_cli_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_page(), "run: make docs"
    assert generate(["--check"], standalone_mode=False) == 0


def test_every_command_and_option_is_on_the_cli_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, script in COMMANDS.items():
        for path, command in commands(script, (name,)):
            assert f"Usage: {' '.join(path)} " in page
            if not isinstance(command, click.Group):
                assert command.help, path
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    assert all(option in page for option in parameter.opts), path


def test_exit_codes_are_those_that_users_rely_on() -> None:
    assert list(exit_codes()) == [0, 1, 2, 10, 11, 20, 30, 31, 32, 33, 40, 130]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{target}#{anchor}"


@pytest.mark.parametrize("page", WRITTEN_BY_HAND, ids=lambda page: page.name)
def test_every_command_in_the_docs_exists(page: Path) -> None:
    assert problems_of(commands_in_page(page)) <= NOT_YET


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_command_in_a_hint_exists(source: Path) -> None:
    assert problems_of(commands_in_source(source)) <= NOT_YET


def test_what_is_not_there_yet_is_not_there_yet() -> None:
    assert {words for words in NOT_YET if find_problem(words.split()) is None} == set()


@pytest.mark.parametrize("page", WRITTEN_BY_HAND, ids=lambda page: page.name)
def test_every_file_and_test_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:tests|guardrails|benchmarks|docs)/[\w/]+\.(?:py|md)\b", text):
        assert (CODE_DIR / path).is_file(), path
    defined = "".join(path.read_text(encoding="utf-8") for path in CODE_DIR.glob("tests/**/*.py"))
    for name in re.findall(r"\b(test_\w+)\b(?!\.py)", text):
        assert f"def {name}(" in defined, name


def test_claude_md_is_short_and_starts_with_the_guardrails() -> None:
    lines = (CODE_DIR / "CLAUDE.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert lines[0] == "# Guardrails"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("python3 model_versioner.py list", None),
        ("python3 model_versioner.py --base-dir DIR restore v002 --target copy", None),
        ("training_controller.py config set max_length 2048", None),
        ("training_controller.py stop, then model_versioner.py rollback", None),
        ("state_tracker.py --check | grep VERSIONS:", None),
        ("model_versioner.py undo", "model_versioner.py undo"),
        ("training_controller.py config lock", "training_controller.py config lock"),
        ("model_versioner.py list --al", "model_versioner.py list --al"),
        ("state_tracker.py --chek", "state_tracker.py --chek"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, problem: str | None) -> None:
    assert problems_of(find_commands(line)) == ({problem} if problem else set())
