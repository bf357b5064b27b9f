"""Programs that print, and what it is as far as that is known; it may be run or name what is deleted."""

import re
from collections.abc import Callable

from guardrails.guard.options import options_of
from guardrails.guard.patterns import DEEP, FRESH, STAR, TAINT, UNKNOWN, is_known
from guardrails.guard.programs import basename

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell


GREPS = ("grep", "egrep", "fgrep", "rg")


def run_echo(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    words = argv[1:]
    is_escaped = False
    while words and re.fullmatch(r"-[neE]+", words[0]):
        is_escaped = is_escaped or "e" in words[0]
        words = words[1:]
    text = " ".join(words) + "\n"
    if is_escaped:
        from guardrails.guard.words import decode_ansi_c

        return decode(text, decode_ansi_c)
    return text


def decode(text: str, decode: Callable[[str], str]) -> str:
    return "".join(decode(chunk) if is_known(chunk) else chunk for chunk in re.split("([\ue000-\ue005])", text))


def run_printf(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.words import decode_ansi_c

    words = argv[1:]
    target = None
    if words[:1] == ["-v"]:
        target, words = words[1] if len(words) > 1 else "", words[2:]
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        return ""
    printed = _fill(decode(words[0], decode_ansi_c), words[1:], decode_ansi_c)
    if target is not None:
        shell.assign(target, [printed])
        return ""
    return printed


def _fill(form: str, values: list[str], unescape: Callable[[str], str]) -> str:
    """A format of ``printf`` with its values, again and again until all are used."""
    rest = iter(values)
    left = len(values)

    def fill(match: "re.Match[str]") -> str:
        nonlocal left
        if match[0] == "%%":
            return "%"
        left -= 1
        value = next(rest, "")
        return decode(value, unescape) if match[1] == "b" else value

    printed = ""
    while True:
        before = left
        printed += re.sub(r"%[-+ #0-9.*]*([a-zA-Z%])", fill, form)
        if left <= 0 or left == before:
            return printed


def run_cat(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv)
    if not operands or operands == ["-"]:
        return UNKNOWN if stdin is None else stdin
    texts = [shell.scene.read(operand) for operand in operands]
    if any(text is None for text in texts):
        return shell.unknown_from(operands)
    from guardrails.guard.patterns import clean

    return clean("".join(text for text in texts if text is not None))


def run_pass_through(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """head, tail, grep, cut …: some of the lines, or pieces of them."""
    name = basename(argv[0])
    flags, _, operands = options_of(
        argv, {"head": "nc", "tail": "nc", "grep": "efmABC", "cut": "dfcb", "tr": "", "awk": "Fvf"}.get(name, "")
    )
    if name not in GREPS:
        files = operands if name in ("head", "tail", "uniq", "tac", "shuf", "nl") else []
        return shell.unknown_from(argv[1:]) if files or stdin is None else stdin
    if not flags.isdisjoint({"-q", "-c", "--quiet", "--count"}):
        return STAR
    files = operands if "-e" in flags else operands[1:]
    is_walk = not flags.isdisjoint({"-r", "-R", "--recursive"}) or name == "rg"
    if not flags.isdisjoint({"-l", "-L", "--files-with-matches", "--files-without-match"}):
        return "".join((f"{file}/{DEEP}/{UNKNOWN}.found" if is_walk else file) + "\n" for file in files or ["."])
    if files or stdin is None:
        return shell.unknown_from(files)
    if not flags.isdisjoint({"-v", "--invert-match"}) or not operands or "-e" in flags:
        return stdin
    return _select(stdin, operands[0])


def _select(text: str, pattern: str) -> str:
    """The lines that fit a pattern; an unknown one is known to hold the pattern's plain text."""
    plain = re.sub(r"[\\^$]|\[(.)\]", r"\1", pattern)
    lines = []
    for line in text.split("\n"):
        if is_known(line):
            try:
                fits = re.search(pattern, line) is not None
            except re.error:
                fits = True
            if fits and line:
                lines.append(line)
        elif re.fullmatch(r"[\w.-]+", plain) and line in (STAR, UNKNOWN):
            lines.append(line + plain + line)
        else:
            lines.append(line)
    return "".join(line + "\n" for line in lines)


def run_pgrep(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.processes import names_ours

    _, _, operands = options_of(argv, "dgGPstuUF", ())
    is_full = argv[0].endswith("pidof") or any(re.fullmatch(r"-\w*f\w*|--full", word) for word in argv[1:])
    return TAINT if any(names_ours(operand, is_full=is_full, is_exact=False) for operand in operands) else FRESH


def run_awk(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.other_code import judge_code

    _, values, operands = options_of(argv, "Fvfi", ("--file",))
    program = shell.scene.read(values["-f"]) if "-f" in values else operands[0] if operands else ""
    judge_code("awk", program or "", shell)
    files = operands if "-f" in values else operands[1:]
    if values.get("-i") == "inplace":
        for file in files:
            shell.scene.effect("write", file)
    if files or stdin is None:
        return shell.unknown_from(files)
    if match := re.match(r"\s*/([\w.\[\]-]+)/", program or ""):
        stdin = _select(stdin, match[1])
    if (match := re.search(r"print\s*\(?([^;}]*\"[^;}]*)", program or "")) is not None:
        # Text around a field of each line.
        glued = "".join(
            text if text is not None else UNKNOWN
            for text in (
                one[1] if one[0].startswith('"') else None for one in re.findall(r"(\"([^\"]*)\"|\$\w+)", match[1])
            )
        )
        return glued + "\n"
    return stdin


def run_encoded(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """base64, rev, tr, xxd: text that is turned into other text."""
    from guardrails.guard.real_tools import transform

    name = basename(argv[0])
    flags, _, operands = options_of(argv, "cglnos" if name == "xxd" else "wf", ("--wrap", "--from", "--to"))
    if name == "openssl" and "-out" in argv[:-1]:
        shell.scene.effect("write", argv[argv.index("-out") + 1])
    if name == "xxd" and len(operands) > 1:
        shell.scene.effect("write", operands[1])
    text = stdin
    if operands and name != "tr":
        text = shell.scene.read(operands[0])
    if text is None or not is_known(text):
        return UNKNOWN if text is None else text if name in ("tr",) else UNKNOWN
    return transform(name, flags, operands, text)


def filtered(shell: "Shell", argv: list[str], files: list[str], stdin: str | None) -> str:
    """What a filter prints that may drop or change lines."""
    if files:
        return shell.unknown_from(files)
    return TAINT if stdin and TAINT in stdin else _loosen(stdin)


def _loosen(stdin: str | None) -> str:
    """Lines of which any may be missing: as they are, for a path among them stays one."""
    return UNKNOWN if stdin is None else stdin


def run_name_parts(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, _, operands = options_of(argv, "s", ("--suffix",))
    is_folder = basename(argv[0]) == "dirname"
    if not operands:
        return UNKNOWN
    lines = []
    for operand in operands if is_folder or "-a" in flags else operands[:1]:
        folder, _, name = operand.rstrip("/").rpartition("/")
        lines.append((folder or ("/" if operand.startswith("/") else ".")) if is_folder else name)
    if not is_folder and len(operands) > 1 and "-a" not in flags:
        lines = [lines[0].removesuffix(operands[1])]
    return "\n".join(lines) + "\n"


def run_full_path(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "", ("--relative-to", "--relative-base"))
    return "".join(path + "\n" for operand in operands for path in shell.scene.paths(operand)[:1])


def run_mktemp(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, values, operands = options_of(argv, "p", ("--tmpdir", "--suffix"))
    folder = (
        values.get("-p")
        or values.get("--tmpdir")
        or ("" if operands and "-t" not in argv and "--tmpdir" not in argv else "/tmp")  # noqa: S108 - a name in a command
    )
    name = re.sub("X{3,}", FRESH, operands[0]) if operands else FRESH
    return (f"{folder}/{name}" if folder else name) + "\n"


def run_seq(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    numbers = [int(word) for word in argv[1:] if re.fullmatch(r"-?\d+", word)]
    if not numbers:
        return STAR
    first, step, last = (
        (1, 1, numbers[0]) if len(numbers) == 1 else (numbers[0], 1, numbers[-1]) if len(numbers) == 2 else numbers[:3]
    )
    form = next((word for word in argv[1:] if "%" in word), None)
    values = list(range(first, last + (1 if step > 0 else -1), step or 1))[:64]
    width = max((len(str(value)) for value in values), default=0) if "-w" in argv else 0
    return "".join((STAR if form else str(value).zfill(width)) + "\n" for value in values)


def run_pwd(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    return shell.scene.cwd + "\n"


def run_findmnt(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    return "/dev/sda1\n"
