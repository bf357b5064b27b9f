"""What a shell does itself."""

import re

from guardrails.guard.options import options_of
from guardrails.guard.patterns import UNKNOWN, is_known, is_text_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell


def run_cd(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    operands = [word for word in argv[1:] if word not in ("-P", "-L", "-e", "-@", "--", "-q")]
    name = argv[0]
    if name == "popd":
        shell.change_folder(shell.folders.pop() if shell.folders else UNKNOWN)
        return ""
    if name == "pushd":
        shell.folders.append(shell.scene.cwd)
    if not operands:
        shell.change_folder(shell.value_of("HOME"))
    elif operands[0] == "-":
        shell.change_folder(shell.old_cwd)
    else:
        named = shell.variables.get("CDPATH", [""])[0]
        shell.change_folder(operands[0])
        if named and not operands[0].startswith(("/", "./", "../")):
            shell.scene.other_cwds += tuple(
                path for folder in named.split(":") for path in shell.scene.paths(f"{folder}/{operands[0]}")
            )
    return ""


def run_eval(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    return shell.run(" ".join(argv[1:]), stdin)


def run_export(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    for word in argv[1:]:
        name, equals, value = word.partition("=")
        if equals:
            shell.assign(name, [value])
    return ""


def run_alias(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    for word in argv[1:]:
        name, equals, value = word.partition("=")
        if equals:
            shell.aliases[name] = value
    return ""


def run_set(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    if any(re.fullmatch(r"-\w*e\w*", word) for word in argv[1:]) or "errexit" in argv:
        shell.scene.stops_at_errors = True
    if "--" in argv:
        shell.arguments = argv[argv.index("--") + 1 :]
    elif len(argv) > 1 and not argv[1].startswith(("-", "+")):
        shell.arguments = argv[1:]
    return ""


def run_shift(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    count = int(argv[1]) if len(argv) > 1 and argv[1].isdigit() else 1
    if shell.arguments is not None:
        shell.arguments = shell.arguments[count:]
    return ""


def run_read(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, values, operands = options_of(argv, "adinNptu", ())
    text = UNKNOWN if stdin is None else stdin.split("\n", 1)[0]
    if name := values.get("-a"):
        shell.arrays[name] = text.split()
        return ""
    names = operands or ["REPLY"]
    words = text.split(None, len(names) - 1) if is_text_known(text) else [text] * len(names)
    for index, name in enumerate(names):
        shell.assign(name, [words[index].strip() if index < len(words) else ""])
    return ""


def run_mapfile(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "dnOsuCc", ())
    shell.arrays[operands[0] if operands else "MAPFILE"] = (UNKNOWN if stdin is None else stdin).splitlines()
    return ""


def run_trap(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    if len(argv) > 2 and argv[1] not in ("-", ""):
        shell.run_text(argv[1])
    return ""


def run_exit(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.shell import ExitedError

    raise ExitedError


def run_unset(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    for word in argv[1:]:
        shell.variables.pop(word, None)
        shell.arrays.pop(word, None)
        shell.functions.pop(word, None)
    return ""


def run_nothing(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    return ""


def run_env(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    words = argv[1:]
    while words:
        word = words[0]
        if word in ("-u", "--unset"):
            words = words[2:]
        elif word in ("-C", "--chdir"):
            shell.change_folder(words[1] if len(words) > 1 else "", or_fail=True)
            words = words[2:]
        elif word in ("-S", "--split-string") or word.startswith(("-S", "--split-string=")):
            text = (
                word.partition("=")[2]
                if word.startswith("--split-string=")
                else word[2:]
                if len(word) > 2 and not word.startswith("--")
                else ""
            )
            rest = words[1:] if text else words[2:]
            text = text or (words[1] if len(words) > 1 else "")
            return shell.run(" ".join([text, *(quoted(one) for one in rest)]), stdin)
        elif word.startswith("-"):
            words = words[1:]
        elif "=" in word and is_known(word.partition("=")[0]):
            name, _, value = word.partition("=")
            shell.assign(name, [value])
            words = words[1:]
        else:
            return shell.run_program(words, stdin)
    return UNKNOWN


def quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
