"""git commands that change the working tree: what they would delete, and the config.json that they would put there."""

import os

from guardrails.guard.config_edits import find_changed_key, split_patch
from guardrails.guard.options import options_of
from guardrails.guard.patterns import FRESH, STAR, UNKNOWN, is_known
from guardrails.guard.protected import CONFIG
from guardrails.guard.real_tools import run_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

# What git runs by itself, where somebody has put it.
HOOKS = {
    "commit": ("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit"),
    "merge": ("pre-merge-commit", "post-merge"),
    "pull": ("post-merge", "post-checkout"),
    "rebase": ("pre-rebase", "post-rewrite", "post-checkout"),
    **dict.fromkeys(("checkout", "switch", "clone", "worktree"), ("post-checkout",)),
    "push": ("pre-push",),
}
# Of every command; with one of these nothing is done.
HARMLESS = {"-h", "--help"}


def run_git(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """Follow one git command."""
    words, settings, folder = _split_globals(argv[1:])
    if folder is not None:
        return shell.apart(lambda inner: _in_folder(inner, folder, [argv[0], *settings, *words], stdin))
    if not words or not HARMLESS.isdisjoint(words):
        return UNKNOWN
    named = dict(setting.partition("=")[::2] for setting in settings if "=" in setting)
    if (alias := named.get(f"alias.{words[0]}")) is not None:
        if alias.startswith("!"):
            shell.run_text(" ".join([alias[1:], *words[1:]]))
            return UNKNOWN
        return shell.run_program(["git", *alias.split(), *words[1:]], stdin)
    if (
        words[0] == "clean"
        and {name.lower(): value for name, value in named.items()}.get("clean.requireforce") == "false"
    ):
        words.append("--force")
    for hook in HOOKS.get(words[0], ()):
        path = f"{_top(shell)}/.git/hooks/{hook}"
        if is_known(path) and os.path.exists(path):
            shell.run_argv([path])
    handler = COMMANDS.get(words[0])
    if handler is not None:
        handler(shell, words)
    elif words[0] in ("apply", "am"):
        _apply(shell, words, stdin)
    return _print(shell, words)


def _split_globals(words: list[str]) -> tuple[list[str], list[str], str | None]:
    """The command with its words, the settings before it (``-c name=value``), and the folder that it runs in."""
    settings: list[str] = []
    folder = None
    while words and words[0].startswith("-"):
        word, words = words[0], words[1:]
        if word in ("-C", "--work-tree"):
            folder = (f"{folder}/" if folder and words and not words[0].startswith("/") else "") + (
                words[0] if words else ""
            )
            words = words[1:]
        elif word.startswith("--work-tree="):
            folder = word.partition("=")[2]
        elif word in ("-c", "--git-dir", "--namespace", "--exec-path"):
            settings += [word, *words[:1]]
            words = words[1:]
    return words, settings, folder


def _in_folder(shell: "Shell", folder: str, argv: list[str], stdin: str | None) -> str:
    shell.change_folder(folder, or_fail=True)
    return shell.run_program(argv, stdin)


def _print(shell: "Shell", words: list[str]) -> str:
    if words[0] == "archive":
        # The names in it, for the tar that unpacks it.
        return run_filter(["git", "-C", _top(shell), "ls-files"], "") or UNKNOWN
    if words[:2] == ["rev-parse", "--show-toplevel"]:
        return _top(shell) + "\n"
    if words[0] == "ls-files":
        is_untracked = not {"-o", "--others", "-i", "--ignored"}.isdisjoint(words)
        return (STAR if is_untracked else FRESH) + "\n"
    if (
        words[0] in ("diff", "format-patch")
        and any("config.json" in word for word in words)
        and all(is_known(word) for word in words)
    ):
        return run_filter(["git", "-C", shell.scene.cwd, *words], "") or UNKNOWN
    if words[0] == "show" and len(words) > 1 and ":" in words[-1]:
        revision, _, path = words[-1].partition(":")
        text = _show(shell, revision, path)
        return UNKNOWN if text is None else text
    return UNKNOWN


def _top(shell: "Shell") -> str:
    """The folder of the repository that the current folder lies in."""
    folder = shell.scene.cwd
    while folder not in ("/", ""):
        if is_known(folder) and os.path.exists(f"{folder}/.git"):
            return folder
        folder = os.path.dirname(folder)
    return shell.scene.cwd


def _show(shell: "Shell", revision: str, path: str = "config.json") -> str | None:
    base = shell.scene.judge.protected.base
    if not is_known(revision) or not is_known(path) or revision.startswith("-"):
        return None
    return run_filter(["git", "-C", base, "show", f"{revision}:{path}"], "")


def _clean(shell: "Shell", words: list[str]) -> None:
    flags, _, operands = options_of(words, "e", ("--exclude",))
    if not flags.isdisjoint({"-n", "--dry-run"}) or flags.isdisjoint({"-f", "--force"}):
        return
    protected = shell.scene.judge.protected
    ignored = "x" if "-x" in flags else "X" if "-X" in flags else ""
    for operand in operands or ["."]:
        for path in shell.scene.paths(operand):
            if protected.find(path, recursive=True) is None:
                continue
            if ignored:
                shell.scene.effect("delete", operand)
            for name in ("current_model", "models", "base_models", "consolidated_models"):
                full = f"{protected.base}/{name}"
                is_reached = (is_known(path) and (full + "/").startswith(path.rstrip("/") + "/")) or path.startswith(
                    full
                )
                if is_reached and os.path.exists(full) and _is_ignored(shell, name) is False:
                    shell.scene.effect("delete", full)


def _is_ignored(shell: "Shell", name: str) -> bool | None:
    """Whether git ignores a folder of the base dir; None if it is in no repository."""
    base = shell.scene.judge.protected.base
    if _top(shell) == shell.scene.cwd and not os.path.exists(f"{shell.scene.cwd}/.git"):
        return None
    printed = run_filter(["git", "-C", base, "check-ignore", name], "")
    return printed is not None and name in printed


def _checkout(shell: "Shell", words: list[str]) -> None:
    """checkout, switch, restore and reset --hard: files become those of a commit."""
    flags, values, operands = options_of(words, "bBsc", ("--source", "--orphan", "--pathspec-from-file"))
    command = words[0]
    if command == "switch" and flags.isdisjoint({"-f", "--force", "--discard-changes"}):
        _take_config(shell, operands[0] if operands else None, only_if_clean=True)
        return
    if command == "reset":
        if not flags.isdisjoint({"--hard", "--merge"}):
            _take_config(shell, operands[0] if operands else "HEAD")
        return
    if command == "restore":
        if ("--staged" in flags and "--worktree" not in flags) or ("-S" in flags and "-W" not in flags):
            return
        revision = values.get("-s") or values.get("--source") or ":index"
        _take_paths(shell, revision, operands)
        return
    if not {"-b", "-B", "--orphan"}.isdisjoint(flags | values.keys()):
        return
    if "--" in words:
        before = words[1 : words.index("--")]
        revision = next((word for word in before if not word.startswith("-")), ":index")
        _take_paths(shell, revision, words[words.index("--") + 1 :])
        return
    if operands and _is_path_of(shell, operands[0]):
        _take_paths(shell, ":index", operands)
    elif len(operands) > 1:
        _take_paths(shell, operands[0], operands[1:])
    elif operands:
        _take_config(shell, operands[0], only_if_clean=flags.isdisjoint({"-f", "--force", "--discard-changes"}))


def _is_path_of(shell: "Shell", operand: str) -> bool:
    return operand == "." or any(is_known(path) and os.path.exists(path) for path in shell.scene.paths(operand))


def _take_paths(shell: "Shell", revision: str, operands: list[str]) -> None:
    protected = shell.scene.judge.protected
    for operand in operands:
        for path in shell.scene.paths(operand.removeprefix(":/").removeprefix(":(top)") or "."):
            if is_known(path) and (protected.config + "/").startswith(path.rstrip("/") + "/"):
                _take_config(shell, revision)
            elif not is_known(path):
                place = protected.find(path, recursive=False)
                if place is not None and place.kind == CONFIG:
                    _take_config(shell, revision)


def _take_config(shell: "Shell", revision: str | None, *, only_if_clean: bool = False) -> None:
    """config.json becomes the one of a commit (``:index``: the staged one)."""
    judge = shell.scene.judge
    base = judge.protected.base
    if (_top(shell) != base and not base.startswith(_top(shell) + "/")) or revision is None:
        return
    new = (
        run_filter(["git", "-C", base, "show", ":config.json"], "") if revision == ":index" else _show(shell, revision)
    )
    if new is None and not only_if_clean:
        # A commit that is not here yet: most likely its config.json is as little the user's own as the last one's.
        new = _show(shell, "HEAD")
    if new is None:
        return
    try:
        with open(judge.protected.config, encoding="utf-8") as file:
            old = file.read(1 << 20)
    except OSError:
        return
    if only_if_clean:
        head = _show(shell, "HEAD")
        if head is not None and head != old:
            # git refuses to overwrite what is not committed, or carries it over.
            return
    changed = find_changed_key(old, new, judge.protected.locked)
    if changed is not None:
        judge.deny(CONFIG, f"git would change {changed}")


def _stash(shell: "Shell", words: list[str]) -> None:
    flags, _, operands = options_of(words, "m", ("--message",))
    command = operands[0] if operands else "push"
    if command not in ("push", "save"):
        return
    if not flags.isdisjoint({"-a", "--all"}):
        shell.scene.effect("delete", _top(shell) if len(operands) < 2 else operands[-1])
    paths = words[words.index("--") + 1 :] if "--" in words else operands[1:] if command == "push" else []
    if paths:
        _take_paths(shell, "HEAD", paths)
    elif flags.isdisjoint({"--staged", "-S"}):
        _take_config(shell, "HEAD")


def _rm(shell: "Shell", words: list[str]) -> None:
    flags, _, operands = options_of(words)
    if flags.isdisjoint({"--cached", "-n", "--dry-run"}):
        for operand in operands:
            shell.scene.effect("delete", operand, recursive="-r" in flags)


def _mv(shell: "Shell", words: list[str]) -> None:
    flags, _, operands = options_of(words)
    if flags.isdisjoint({"-n", "--dry-run"}):
        for operand in operands[:-1]:
            shell.scene.effect("move", operand)
        for operand in operands[-1:]:
            shell.scene.effect("write", operand)


def _worktree(shell: "Shell", words: list[str]) -> None:
    if words[1:2] == ["remove"]:
        for operand in words[2:]:
            if not operand.startswith("-"):
                shell.scene.effect("delete", operand)


def _clone(shell: "Shell", words: list[str]) -> None:
    _, _, operands = options_of(words, "bocju", ("--branch", "--depth", "--origin", "--reference", "--config"))
    if len(operands) > 1:
        shell.scene.effect("write", operands[1])


def _run_rest(shell: "Shell", words: list[str]) -> None:
    """``git bisect run CMD``, ``git rebase -x CMD``, ``git submodule foreach CMD``."""
    if words[:2] == ["bisect", "run"]:
        shell.run_argv(words[2:])
    elif words[:2] == ["submodule", "foreach"]:
        shell.run_text(" ".join(words[2:]))
    for index, word in enumerate(words[:-1]):
        if word in ("-x", "--exec", "--tree-filter"):
            shell.run_text(words[index + 1])


def _apply(shell: "Shell", words: list[str], stdin: str | None) -> None:
    flags, _, operands = options_of(words, "pC", ("--directory", "--exclude", "--include"))
    if not flags.isdisjoint({"--check", "--stat", "--numstat", "--summary", "--cached"}):
        return
    is_reversed = not flags.isdisjoint({"-R", "--reverse"})
    for text in [shell.scene.read(operand) for operand in operands if operand != "-"] or [stdin]:
        if text:
            for path, edit in split_patch(text, is_reversed=is_reversed):
                shell.scene.effect("write", f"{_top(shell)}/{path}", content=edit)


def _read_tree(shell: "Shell", words: list[str]) -> None:
    flags, _, operands = options_of(words)
    if "-u" in flags:
        _take_config(shell, operands[0] if operands else "HEAD")


def _checkout_index(shell: "Shell", words: list[str]) -> None:
    _take_config(shell, ":index")


COMMANDS = {
    "clean": _clean,
    **dict.fromkeys(("checkout", "switch", "restore", "reset"), _checkout),
    "stash": _stash,
    "rm": _rm,
    "mv": _mv,
    "worktree": _worktree,
    "clone": _clone,
    "checkout-index": _checkout_index,
    "read-tree": _read_tree,
    **dict.fromkeys(("bisect", "rebase", "submodule", "filter-branch"), _run_rest),
}
