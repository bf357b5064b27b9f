"""rm, mv, cp, ln and their like: what disappears and what is written over."""

import os

from guardrails.guard.options import options_of
from guardrails.guard.patterns import from_glob, is_known
from guardrails.guard.programs import basename

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell


def run_rm(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, _, operands = options_of(argv)
    is_recursive = not flags.isdisjoint({"-r", "-R", "--recursive"})
    for operand in operands:
        shell.scene.effect("delete", operand, recursive=is_recursive)
    return ""


def run_delete_operands(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv, "ns", ("--iterations", "--size"))
    for operand in operands:
        shell.scene.effect("delete", operand, recursive=False)
    return ""


def run_trash(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    _, _, operands = options_of(argv)
    for operand in operands:
        shell.scene.effect("delete", operand)
    return ""


def destinations(shell: "Shell", sources: list[str], target: str, *, is_folder: bool) -> list[tuple[str, str]]:
    """Where each source comes to lie: into the folder ``target``, or as it."""
    scene = shell.scene
    if not is_folder:
        is_folder = target.endswith(("/", "/.", "/..")) or target in (".", "..") or len(sources) > 1
        is_folder = is_folder or any(is_known(path) and os.path.isdir(path) for path in scene.paths(target))
    if not is_folder:
        return [(source, target) for source in sources]
    pairs = []
    for source in sources:
        name = source.rstrip("/").rsplit("/", 1)[-1]
        if name in (".", "", "..") or (source.endswith("/") and source != "/" and name == "."):
            pairs += [(f"{source}/{child}", f"{target}/{child}") for child in children(shell, source)]
        else:
            pairs.append((source, f"{target}/{name}"))
    return pairs


def children(shell: "Shell", folder: str) -> list[str]:
    for path in shell.scene.paths(folder):
        if is_known(path):
            try:
                return sorted(os.listdir(path))[:200]
            except OSError:
                continue
    return []


def _transfer(shell: "Shell", argv: list[str]) -> tuple[set[str], list[tuple[str, str]]]:
    """The flags of ``cp``, ``mv``, ``ln`` or ``install``, and pairs of source and destination."""
    flags, values, operands = options_of(
        argv, "tSmog", ("--target-directory", "--suffix", "--mode", "--owner", "--group")
    )
    folder = values.get("-t") or values.get("--target-directory")
    if folder is not None:
        return flags, destinations(shell, operands, folder, is_folder=True)
    if len(operands) < 2:
        return flags, []
    is_one = not flags.isdisjoint({"-T", "--no-target-directory"})
    if is_one:
        return flags, [(operands[0], operands[-1])]
    return flags, destinations(shell, operands[:-1], operands[-1], is_folder=False)


def run_cp(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, pairs = _transfer(shell, argv)
    scene = shell.scene
    is_link = not flags.isdisjoint({"-l", "--link"})
    for source, target in pairs:
        if is_link:
            scene.effect("link", source, recursive=True)
        if not flags.isdisjoint({"-s", "--symbolic-link"}):
            _remember_link(shell, source, target)
        scene.effect("write", target, content=scene.read(source), recursive=False)
    return ""


def run_mv(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, pairs = _transfer(shell, argv)
    scene = shell.scene
    for source, target in pairs:
        if not flags.isdisjoint({"--exchange"}):
            scene.effect("move", target)
        scene.effect("move", source)
        # A folder that takes the place of another one takes all below it.
        scene.effect("write", target, content=scene.read(source), recursive=False)
        for path, new in zip(
            scene.paths(source, follow_last=False), scene.paths(target, follow_last=False), strict=False
        ):
            if path in scene.links:
                scene.links[new] = scene.links[path]
    return ""


def run_ln(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, values, operands = options_of(argv, "tS", ("--target-directory", "--suffix"))
    scene = shell.scene
    if len(operands) == 1 and not values:
        operands.append(".")
    is_symbolic = not flags.isdisjoint({"-s", "--symbolic"})
    folder = values.get("-t") or values.get("--target-directory")
    sources, target = (operands, folder) if folder else (operands[:-1], operands[-1] if operands else "")
    is_name = not flags.isdisjoint({"-T", "-n", "--no-dereference", "--no-target-directory"})
    pairs = (
        [(one, target) for one in sources]
        if is_name and not folder
        else destinations(shell, sources, target, is_folder=bool(folder))
    )
    for source, link in pairs:
        scene.effect("move", link, recursive=False)
        if is_symbolic:
            _remember_link(shell, source, link)
        else:
            scene.effect("link", source)
    return ""


def _remember_link(shell: "Shell", source: str, link: str) -> None:
    scene = shell.scene
    for path in scene.paths(link, follow_last=False):
        folder = os.path.dirname(path)
        target = source if source.startswith("/") else f"{folder}/{source}"
        from guardrails.guard.patterns import resolve, tidy

        scene.links[path] = resolve(tidy(target), scene.links, follow_last=True)


def run_install(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, pairs = _transfer(shell, argv)
    if "-d" in flags or "--directory" in flags:
        from guardrails.guard.writing import run_mkdir

        return run_mkdir(shell, argv, stdin)
    for source, target in pairs:
        shell.scene.effect("write", target, content=shell.scene.read(source), recursive=False)
    return ""


def run_rename(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    flags, _, operands = options_of(argv)
    if flags.isdisjoint({"-n", "--nono", "--no-act"}):
        if basename(argv[0]) == "mmv":
            # It expands the wildcards itself.
            operands = ["", *map(from_glob, operands[:1])]
        for operand in operands[1:]:
            shell.scene.effect("move", operand)
    return ""
