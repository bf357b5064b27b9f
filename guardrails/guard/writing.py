"""Programs that write files, change them in place, or change their modes."""

import os
import re

from guardrails.guard.options import options_of
from guardrails.guard.patterns import UNKNOWN, is_known
from guardrails.guard.printing import filtered
from guardrails.guard.programs import basename

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell


def run_write_operands(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "sonr", ("--size", "--reference", "--offset", "--length"))
    for operand in operands:
        shell.scene.effect("write", operand)
    return ""


def run_touch(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "dtr", ("--date", "--reference", "--time"))
    for operand in operands:
        shell.scene.effect("write", operand, content=lambda old: old)
    return ""


def run_mkdir(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "mog", ("--mode", "--owner", "--group"))
    for operand in operands:
        if not any(is_known(path) and os.path.isdir(path) for path in shell.scene.paths(operand)):
            shell.scene.effect("write", operand, content=lambda old: old, recursive=False)
    return ""


def run_tee(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, _, operands = options_of(argv)
    printed = UNKNOWN if stdin is None else stdin
    for operand in operands:
        if operand not in ("/dev/null", "/dev/stderr", "/dev/tty"):
            shell.write(operand, printed, append=not flags.isdisjoint({"-a", "--append"}))
    return printed


def run_dd(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    for word in argv[1:]:
        name, _, value = word.partition("=")
        if name == "of" and value != "/dev/null":
            source = next((one[3:] for one in argv if one.startswith("if=")), None)
            shell.scene.effect(
                "write",
                value,
                content=shell.scene.read(source) if source else stdin if stdin and is_known(stdin) else None,
            )
    return UNKNOWN


def run_metadata(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    valued = {"setfacl": "mxMXbk", "setfattr": "nvxh"}.get(basename(argv[0]), "")
    words = [word for word in argv if not re.fullmatch(r"[-+=][rwxXstugoa=,+-]+", word) or word == argv[0]]
    flags, values, operands = options_of(words, valued, ("--from",))
    is_recursive = bool({"-R", "--recursive"} & flags) or any(
        "R" in word for word in argv[1:] if re.fullmatch(r"-[a-zA-Z]+", word)
    )
    if (
        not {"--reference"} & values.keys()
        and not valued
        and basename(argv[0]) != "chattr"
        and not _has_mode_flag(argv)
    ):
        operands = operands[1:]
    for operand in operands:
        shell.scene.effect("metadata", operand, recursive=is_recursive)
    return ""


def _has_mode_flag(argv: list[str]) -> bool:
    """Whether the mode was written like an option (``-w``) and is gone from the operands already."""
    return any(re.fullmatch(r"[-+=][rwxXst]+", word) for word in argv[1:] if word not in ("-R",))


def run_sed(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    in_place = [word for word in argv[1:] if re.match(r"-[nErsuz]*i|--in-place", word)]
    words = [word for word in argv if word not in in_place]
    _, values, operands = options_of(words, "efl", ("--expression", "--file", "--line-length"))
    has_script = not {"-e", "-f", "--expression", "--file"}.isdisjoint(values)
    files = operands if has_script else operands[1:]
    script = values.get("-e") or values.get("--expression") or (operands[0] if operands and not has_script else "")
    for found in re.findall(r"(?:^|[;}\s/])[wW]\s+([^;\s}]+)", script):
        shell.scene.effect("write", found)
    if (match := re.fullmatch(r"\s*s(.)(.*?)\1(.*?)\1\w*e\w*\s*", script)) or re.fullmatch(r"\s*\d*e\s*", script):
        if match and match[3].strip():
            shell.run_text(match[3])
        if stdin:
            shell.run_text(stdin)
    if in_place:
        from guardrails.guard.real_tools import sed_text

        options = [word for word in words[1:] if word not in files]

        def edit(old: str) -> str | None:
            return sed_text(options, old) if is_known("".join(options)) else None

        for file in files:
            shell.scene.effect("write", file, content=edit)
        return ""
    return filtered(shell, argv, files, stdin)


def run_compress(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    name = basename(argv[0])
    # Some keep what they pack.
    keeps = name in ("zstd", "unzstd", "lz4", "unlz4")
    flags, values, operands = options_of(argv, "SbpTo" if keeps else "SbpT", ("--suffix",))
    if "-o" in values:
        shell.scene.effect("write", values["-o"])
    if name in ("lz4", "unlz4") and "-m" not in flags and len(operands) > 1:
        shell.scene.effect("write", operands.pop())
    if not flags.isdisjoint({"-c", "-k", "-l", "-t", "--stdout", "--to-stdout", "--keep", "--list", "--test"}):
        return shell.unknown_from(operands)
    if keeps and "--rm" not in flags:
        return UNKNOWN
    for operand in operands:
        shell.scene.effect("move", operand, recursive=not flags.isdisjoint({"-r", "--recursive"}))
    return ""


def run_sort(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, values, operands = options_of(argv, "oktST", ("--output", "--key", "--field-separator"))
    if target := values.get("-o") or values.get("--output"):
        shell.scene.effect("write", target)
    return filtered(shell, argv, operands, stdin)


def run_download(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    name = basename(argv[0])
    flags, values, operands = options_of(
        argv,
        "oHdXuAFTeb" if name == "curl" else "OPoaUt",
        (
            "--output",
            "--output-document",
            "--directory-prefix",
            "--output-dir",
            "--header",
            "--data",
            "--request",
            "--dir",
            "--out",
        ),
    )
    folder = (
        values.get("-P") or values.get("--directory-prefix") or values.get("--output-dir") or values.get("--dir") or "."
    )
    names = [values.get(option) for option in ("-o", "-O", "--output", "--output-document", "--out")]
    for target in names:
        if target and not (name == "wget" and target == values.get("-o")):
            shell.scene.effect("write", target if folder == "." or target.startswith("/") else f"{folder}/{target}")
    if folder != "." or (name == "curl" and not {"-O", "--remote-name"}.isdisjoint(flags)) or name != "curl":
        for url in operands:
            shell.scene.effect("write", f"{folder}/{url.split('?')[0].rstrip('/').rsplit('/', 1)[-1]}")
        if folder != ".":
            shell.scene.effect("write", folder)
    return UNKNOWN


def run_split_file(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "abCln", ())
    if len(operands) > 1:
        shell.scene.effect("write", operands[1] + UNKNOWN)
    return ""


def run_patch(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, values, operands = options_of(argv, "pidoFr", ("--input", "--directory", "--output"))
    if "--dry-run" in argv:
        return ""
    text = stdin if stdin is not None else None
    if source := values.get("-i") or values.get("--input"):
        text = shell.scene.read(source)
    for operand in operands[:1]:
        shell.scene.effect("write", operand)
    folder = values.get("-d") or values.get("--directory") or "."
    strip = int(values.get("-p") or "0") if (values.get("-p") or "0").isdigit() else 0
    from guardrails.guard.config_edits import split_patch

    for path, edit in split_patch(text or "", is_reversed="-R" in flags):
        parts = path.split("/")
        shell.scene.effect("write", f"{folder}/{'/'.join(parts[max(0, strip - 1) :])}", content=edit)
    return ""


def run_apply_patch(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.file_tools import judge_patch

    judge_patch(argv[1] if len(argv) > 1 else stdin or "", shell.scene)
    return ""


def run_editor(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """Editors: told what to do on the command line or on stdin they write without a person."""
    _, _, operands = options_of(
        argv,
        "cSsu" if "vi" in argv[0] or (argv[0] == "ex" and "-sc" not in argv) else "c" if argv[0] == "ex" else "",
        ("--cmd",),
    )
    for word in argv[1:]:
        text = word.lstrip("+-c")
        if text.startswith(("!", ":!")) or ":!" in word:
            shell.run_text(word.split("!", 1)[1])
    for operand in operands:
        if not operand.startswith("+"):
            shell.scene.effect("write", operand)
    return UNKNOWN
