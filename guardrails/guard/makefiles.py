"""Recipes that ``make`` and package runners would run."""

import json
import re

from guardrails.guard.options import options_of
from guardrails.guard.patterns import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

RULE = re.compile(r"^([^\t#=:][^=:]*?)\s*::?(?!=)([^;=]*)(?:;(.*))?$")
VARIABLE = re.compile(r"^(?:export\s+|override\s+)?([\w.-]+)\s*(?:::?|\?|\+|!)?=\s*(.*)$")
REFERENCE = re.compile(r"\$(?:\(([\w.-]+)\)|\{([\w.-]+)\}|([@<^*]))")


def run_make(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """Follow the recipes of the targets, with those that they need."""
    words, given, folder, file = argv[1:], {}, None, None
    targets = []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-C", "--directory") and words:
            folder = words.pop(0)
        elif word.startswith("-C"):
            folder = word[2:]
        elif name in ("--directory", "--file", "--makefile") and equals:
            folder, file = (value, file) if name == "--directory" else (folder, value)
        elif word in ("-f", "--file", "--makefile") and words:
            file = words.pop(0)
        elif word in ("-j", "-l") and words and words[0].isdigit():
            words.pop(0)
        elif word in ("-n", "--just-print", "--dry-run", "-p", "-q", "--version"):
            return UNKNOWN
        elif equals and not word.startswith("-"):
            given[name] = value
        elif not word.startswith("-"):
            targets.append(word)

    def run(inner: "Shell") -> str:
        if folder:
            inner.change_folder(folder, or_fail=True)
        is_just = argv[0].endswith("just")
        for name in (
            [file]
            if file
            else ["justfile", "Justfile", ".justfile"]
            if is_just
            else ["GNUmakefile", "makefile", "Makefile"]
        ):
            text = stdin if name in ("-", "/dev/stdin") else inner.scene.read(name)
            if text is not None:
                if is_just:
                    text = re.sub(r"^[ \t]+", "\t", text, flags=re.MULTILINE).replace("{{", "$(").replace("}}", ")")
                _Makefile(inner, text, given).run(targets)
                break
        return UNKNOWN

    return shell.apart(run)


class _Makefile:
    """Rules and variables, as far as plain makefiles go."""

    def __init__(self, shell: "Shell", text: str, given: dict[str, str]) -> None:
        self.shell = shell
        self.variables: dict[str, str] = {
            "MAKE": "make",
            "RM": "rm -f",
            "CURDIR": shell.scene.cwd,
            "SHELL": "/bin/sh",
            "PWD": shell.scene.cwd,
        }
        self.rules: dict[str, tuple[list[str], list[str]]] = {}
        self.first: str | None = None
        self.done: set[str] = set()
        self._read(text)
        self.variables.update(given)

    def _read(self, text: str) -> None:
        current: list[str] = []
        for line in re.sub(r"\\\n\s*", " ", text).split("\n"):
            if line.startswith("\t"):
                for name in current:
                    self.rules[name][1].append(line[1:])
                continue
            for called in re.findall(r"\$\(shell ([^()]*)\)", line):
                self.shell.run_text(called)
            if match := VARIABLE.match(line):
                self.variables[match[1]] = (
                    match[2] if "+=" not in line else f"{self.variables.get(match[1], '')} {match[2]}"
                )
            elif match := RULE.match(line):
                current = self._expand(match[1]).split()
                for name in current:
                    needs, recipe = self.rules.setdefault(name, ([], []))
                    needs += match[2].split()
                    if match[3]:
                        recipe.append(match[3])
                if self.first is None and current and not current[0].startswith("."):
                    self.first = current[0]

    def _expand(self, text: str, target: str = "", needs: "list[str] | None" = None, depth: int = 0) -> str:
        def value(match: "re.Match[str]") -> str:
            name = match[1] or match[2] or match[3]
            if name == "@":
                return target
            if name in ("<", "^"):
                return " ".join((needs or [])[: 1 if name == "<" else None])
            if name in self.variables and depth < 8:
                return self._expand(self.variables[name], target, needs, depth + 1)
            return self.shell.scene.environ.get(name, "")

        text = re.sub(r"\$\(shell ([^()]*)\)", r"$$(\1)", text)
        return REFERENCE.sub(value, text).replace("$$", "$")

    def run(self, targets: list[str]) -> None:
        for target in targets or ([self.first] if self.first else []):
            self._run(target)

    def _run(self, target: str) -> None:
        if target in self.done or target not in self.rules:
            return
        self.done.add(target)
        needs, recipe = self.rules[target]
        for need in needs:
            self._run(self._expand(need))
        for line in recipe:
            self.shell.run_text(self._expand(line.lstrip("@-+ "), target, needs))


def run_package_script(shell: "Shell", argv: list[str]) -> str:
    """``npm run NAME``: the script of that name in package.json, and the ones before and after it."""
    _, values, words = options_of(argv, "C", ("--prefix", "--cwd", "--dir", "--workspace"))
    folder = next((values[name] for name in ("--prefix", "--cwd", "--dir", "-C") if values.get(name)), ".")
    return shell.apart(lambda inner: _run_script_in(inner, folder, words))


def _run_script_in(shell: "Shell", folder: str, words: list[str]) -> str:
    shell.change_folder(folder, or_fail=True)
    return _run_script(shell, words)


def _run_script(shell: "Shell", words: list[str]) -> str:
    if words[:1] in (["run"], ["run-script"]):
        words = words[1:]
    elif words[:1] == ["exec"]:
        shell.run_argv(words[1:])
        return UNKNOWN
    if not words:
        return UNKNOWN
    try:
        document = json.loads(shell.scene.read("package.json") or "{}")
        scripts = document.get("scripts", {})
    except (ValueError, AttributeError):
        return UNKNOWN
    for name in (f"pre{words[0]}", words[0], f"post{words[0]}"):
        if isinstance(scripts, dict) and isinstance(scripts.get(name), str):
            shell.run_text(" ".join([scripts[name], *words[1:]]))
    return UNKNOWN
