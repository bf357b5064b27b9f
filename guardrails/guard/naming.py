"""Programs that name files for others: ls, find, xargs and parallel."""

import re

from guardrails.guard.moving import children
from guardrails.guard.options import options_of
from guardrails.guard.patterns import DEEP, STAR, TAINT, UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell


def run_ls(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, _, operands = options_of(argv, "IwT", ())
    if "-d" in flags or any(STAR in operand for operand in operands):
        return "\n".join(operands) + "\n"
    lines: list[str] = []
    for operand in operands or ["."]:
        names = [
            name for name in children(shell, operand) if not name.startswith(".") or "-a" in flags or "-A" in flags
        ]
        inside = shell.unknown_from([operand])
        lines += names or [STAR]
        if inside == TAINT:
            lines.append(TAINT)
    return "\n".join(lines) + "\n"


def run_find(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.finding import run_find

    return run_find(shell, argv)


def run_fd(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """``fd``: a pattern, folders, and what is done with what is found."""
    action: list[str] = []
    words = argv
    for option in ("-x", "--exec", "-X", "--exec-batch"):
        if option in words:
            at = words.index(option)
            action, words = words[at + 1 :], words[:at]
    _, values, operands = options_of(words, "etdEcjS", ("--extension", "--type", "--max-depth", "--exclude", "--size"))
    extension = values.get("-e") or values.get("--extension")
    names = [STAR] if len(operands) < 1 or operands[0] == "." else [STAR + operands[0].strip("^$") + STAR]
    if extension:
        names = [f"{STAR}.{extension}"]
    found = [f"{root}/{DEEP}/{name}" for root in operands[1:] or ["."] for name in names]
    for path in found if action else []:
        command = [word.replace("{}", path) for word in action]
        shell.run_program(command if command != action else [*action, path], None)
    return "".join(path + "\n" for path in found)


def run_xargs(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """One command for all that stands on stdin, or with ``-I`` one for each."""
    words = argv[1:]
    replace: str | None = None
    delimiter = r"\s+"
    while words and words[0].startswith("-") and len(words[0]) > 1:
        option, words = words[0], words[1:]
        name, value = option.partition("=")[::2] if option.startswith("--") else (option[:2], option[2:])
        if name in XARGS_VALUED and not value:
            value, words = (words[0] if words else ""), words[1:]
        if name in ("-I", "-i", "--replace"):
            replace, delimiter = value or "{}", r"\n"
        elif name in ("-a", "--arg-file"):
            stdin = shell.read_all([value])
        elif name in ("-d", "--delimiter"):
            delimiter = r"\n" if value in ("\\n", "\n", "") else re.escape(value)
        elif name == "--null" or re.fullmatch(r"-\w*0\w*", option):
            delimiter = r"[\0\n]"
    items = [item.strip("'\"") for item in re.split(delimiter, UNKNOWN if stdin is None else stdin) if item]
    words = words or ["echo"]
    if replace is None:
        return shell.run_program([*words, *items[:200]], None)
    printed = ""
    for item in items[:64]:
        printed += shell.run_program([word.replace(replace, item) for word in words], None)
    return printed


XARGS_VALUED = (
    "-I",
    "-a",
    "-d",
    "-n",
    "-P",
    "-L",
    "-s",
    "-E",
    "--arg-file",
    "--delimiter",
    "--max-args",
    "--max-procs",
)


def run_parallel(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    words = argv[1:]
    while words and words[0].startswith("-"):
        words = words[2:] if words[0] in ("-j", "--jobs", "-n", "-N", "--colsep", "-S", "--joblog") else words[1:]
    marker = next((i for i, word in enumerate(words) if word in (":::", "::::", ":::+")), None)
    command = words if marker is None else words[:marker]
    items = (stdin or UNKNOWN).split("\n") if marker is None else words[marker + 1 :]
    if not command:
        for item in items:
            shell.run_text(item)
        return UNKNOWN
    for item in items[:64]:
        if item:
            line = " ".join(command)
            line = line.replace("{}", item) if "{}" in line else f"{line} {item}"
            shell.run_text(line)
    return UNKNOWN
