"""Archives, copies of whole trees, mounts and disks."""

import os
import re

from guardrails.guard.moving import children, destinations
from guardrails.guard.options import options_of
from guardrails.guard.patterns import UNKNOWN, is_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell


def run_tar(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    words = list(argv)
    if len(words) > 1 and re.fullmatch(r"[A-Za-z]+", words[1]):
        words[1] = "-" + words[1]
    flags, values, operands = options_of(
        words, "fCTXb", ("--file", "--directory", "--files-from", "--exclude", "--transform")
    )
    scene = shell.scene
    folder = values.get("-C") or values.get("--directory") or "."
    if not flags.isdisjoint({"--remove-files"}):
        for operand in operands:
            scene.effect("delete", operand if folder == "." else f"{folder}/{operand}")
    archive = values.get("-f") or values.get("--file")
    if not flags.isdisjoint({"-x", "--extract", "--get"}) and flags.isdisjoint({"-O", "--to-stdout"}):
        scene.effect("write", folder, recursive=False)
        strip = (
            int(values.get("--strip-components", "0") or "0") if values.get("--strip-components", "0").isdigit() else 0
        )
        piped = stdin.split("\n") if archive in (None, "-") and stdin and is_known(stdin) else []
        for name in [*operands, *members(shell, archive), *piped]:
            scene.effect("write", f"{folder}/{'/'.join(name.split('/')[strip:])}", recursive=False)
    elif archive and not flags.isdisjoint({"-c", "-r", "-u", "-A", "--create", "--append", "--update"}):
        scene.effect("write", archive)
    if value := values.get("--to-command") or values.get("--checkpoint-action", "").partition("exec=")[2]:
        shell.run_text(value)
    return shell.unknown_from(operands)


def members(shell: "Shell", archive: str | None) -> list[str]:
    """The names in an archive that is there already."""
    for path in shell.scene.paths(archive) if archive else []:
        if is_known(path) and os.path.isfile(path) and os.path.getsize(path) < 1 << 30:
            from guardrails.guard.real_tools import list_members

            return list_members(path)
    return []


def run_unzip(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, values, operands = options_of(argv, "dxP", ())
    if flags.isdisjoint({"-l", "-t", "-p", "-v", "-Z"}):
        folder = values.get("-d", ".")
        shell.scene.effect("write", folder, recursive=False)
        for name in [*operands[1:], *members(shell, operands[0] if operands else None)]:
            shell.scene.effect("write", f"{folder}/{name}", recursive=False)
    return UNKNOWN


def run_zip(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, _, operands = options_of(argv, "xbt", ())
    if "-m" in flags or "--move" in flags:
        for operand in operands[1:]:
            shell.scene.effect("delete", operand)
    for operand in operands[:1]:
        shell.scene.effect("write", operand)
    return UNKNOWN


def run_seven_zip(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    words = argv[2:]
    if argv[1:2] in (["x"], ["e"]):
        shell.scene.effect("write", next((word[2:] for word in words if word.startswith("-o")), "."), recursive=False)
    if "-sdel" in words:
        for word in words[1:]:
            shell.scene.effect("delete", word)
    return UNKNOWN


def run_rsync(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, values, operands = options_of(
        argv,
        "efBTM",
        (
            "--rsh",
            "--exclude",
            "--include",
            "--exclude-from",
            "--files-from",
            "--link-dest",
            "--filter",
            "--bwlimit",
            "--backup-dir",
            "--temp-dir",
            "--chmod",
            "--log-file",
            "--partial-dir",
            "--max-size",
            "--min-size",
        ),
    )
    scene = shell.scene
    if not flags.isdisjoint({"-n", "--dry-run", "--list-only"}) or not operands:
        return UNKNOWN
    if folder := values.get("--link-dest"):
        shell.scene.effect("link", folder, recursive=True)
    sources, target = operands[:-1], operands[-1]
    if "--remove-source-files" in flags:
        for source in sources:
            scene.effect("delete", source)
    if is_remote(target) or not sources:
        return UNKNOWN
    if any(flag.startswith("--del") for flag in flags):
        scene.effect("delete", target.rstrip("/") or "/", recursive=all(source.endswith("/") for source in sources))
    for source in sources:
        name = "" if source.endswith("/") else source.rsplit("/", 1)[-1]
        inside = [""] if name or is_remote(source) else children(shell, source)
        for child in inside or [""]:
            scene.effect(
                "write", "/".join(part for part in (target.rstrip("/") or "/", name, child) if part), recursive=False
            )
    return UNKNOWN


def is_remote(operand: str) -> bool:
    return bool(re.match(r"[^/]+:", operand)) or "://" in operand


def run_scp(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "cFiJloPSX", ())
    if len(operands) > 1 and not is_remote(operands[-1]):
        for _, target in destinations(shell, operands[:-1], operands[-1], is_folder=False):
            shell.scene.effect("write", target, recursive=False)
    return UNKNOWN


def run_mount(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "toLU", ("--types", "--options"))
    if operands:
        shell.scene.effect("mount", operands[-1])
    return UNKNOWN


def run_disk_tool(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """``mkfs`` and the like: what they are pointed at is overwritten."""
    _, _, operands = options_of(argv, "tLmbNiU", ())
    for operand in operands:
        if "/" in operand:
            shell.scene.effect("write", operand)
    return UNKNOWN
