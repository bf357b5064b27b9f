"""A sandbox for agents: any command, under bubblewrap, with the models and the guards of this base dir read-only.

The base dir is mounted read-only as a whole, and each folder at its top that is not protected writable on top of that.
So ``current_model/`` is no mount of its own and is always the folder that has the name: an exchange outside shows
inside at once. Mounts of the sandbox are in its own namespace; outside nothing is pinned or blocked by them.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from guardrails.errors import DamagedStateError, OperationError
from guardrails.locks import share_lock
from guardrails.paths import CODE_DIR, SANDBOX, Paths
from guardrails.state_io import read_json
from guardrails.store.backups import backups_folder

# For whoever asks whether an agent started it.
AGENT = "GUARDRAILS_AGENT"
# Settings that decide whether an agent's hooks run.
WIRING = (".claude", ".codex", ".gemini", ".cursor")
# Root inside could undo by one call what the mounts and the immutable flag are for.
DROPPED_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_LINUX_IMMUTABLE")
HOW_TO_ALLOW = (
    "run it as root, or let users make namespaces: sysctl kernel.unprivileged_userns_clone=1 (Debian), "
    "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), user.max_user_namespaces=10000"
)


def is_inside(paths: Paths) -> bool:
    """Whether this process runs in such a sandbox, and this store is closed to it."""
    return SANDBOX in os.environ and not os.access(paths.models, os.W_OK)


def refuse_in_sandbox(paths: Paths) -> None:
    """Raises OperationError where the store is closed to this process."""
    if is_inside(paths):
        raise OperationError(
            f"{paths.base} is read-only in this sandbox", "ask a person to run this command outside of it"
        )


def run_agent(paths: Paths, command: Sequence[str]) -> NoReturn:
    """Become ``command`` in the sandbox: terminal, environment, working folder and exit code are the command's own.

    Raises:
        OperationError: bubblewrap is missing or may not make namespaces, or there is no such command.
    """
    if SANDBOX in os.environ:
        raise OperationError("this is a sandbox already", "run the command as it is")
    if shutil.which(command[0]) is None:
        raise OperationError(f"there is no command {command[0]!r}", "give its path")
    bubblewrap = find_bubblewrap()
    start = [bubblewrap, *mount_options(paths), "--"]
    check_start(start)
    # Who may not write there cannot ask the daemon for anything either.
    with contextlib.suppress(OSError):
        share_lock(agent_lock(paths))
    # Ctrl-C is for the agent: bubblewrap, which waits for its end, must outlive it.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    restored = ["env", "--default-signal=INT,QUIT", "--"]
    os.execve(bubblewrap, [*start, *restored, *command], {**os.environ, SANDBOX: "1", AGENT: "1"})  # noqa: S606 - no shell is meant


def agent_lock(paths: Paths) -> Path:
    """Shared by all sandboxes of a base dir for as long as they are open."""
    return paths.locks / "agent.lock"


def find_bubblewrap() -> str:
    """The path of ``bwrap``.

    Raises:
        OperationError: it is not installed.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise OperationError("bubblewrap is not installed", "apt install bubblewrap")
    return found


def check_start(start: Sequence[str]) -> None:
    """Raises OperationError if a sandbox with these options cannot be made here."""
    done = subprocess.run([*start, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise OperationError(f"bubblewrap cannot make a sandbox here: {last}", HOW_TO_ALLOW)


def mount_options(paths: Paths) -> list[str]:
    """The options of ``bwrap`` that make the sandbox of a base dir, as its folders are now."""
    options = ["--dev-bind", "/", "/"]
    if os.geteuid() == 0:
        options += [word for name in DROPPED_CAPABILITIES for word in ("--cap-drop", name)]
    for path, is_writable in plan_mounts(paths):
        options += ["--bind" if is_writable else "--ro-bind", str(path), str(path)]
    return options


def plan_mounts(paths: Paths) -> list[tuple[Path, bool]]:
    """What is mounted over the file system as it is, parents first, and whether it can be written to."""
    protected = protected_paths(paths)
    wanted: dict[Path, bool] = {}
    for root in {paths.base, CODE_DIR}:
        wanted[root] = False
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                wanted.setdefault(Path(entry.path), True)
    wanted.update(dict.fromkeys(protected, False))
    plan: dict[Path, bool] = {}
    for path in sorted(wanted, key=lambda path: len(path.parts)):
        # What is as its surroundings are needs no mount: one would pin the folder that has the name now.
        above = next((plan[parent] for parent in path.parents if parent in plan), True)
        if wanted[path] != above and os.path.exists(path):
            plan[path] = wanted[path]
    return list(plan.items())


def protected_paths(paths: Paths) -> set[Path]:
    """All that an agent is not to change, links resolved."""
    base_models = [paths.base / "base_models", *(paths.resolve(name) for name in _base_model_names(paths))]
    found = [
        *(paths.models, paths.current_model, paths.consolidated_models, backups_folder(paths), *base_models),
        *(root / name for root in (paths.base, CODE_DIR) for name in WIRING),
        *(CODE_DIR / name for name in ("guardrails", ".venv")),
        *(file.resolve().parent for folder in base_models for file in _list_links(folder)),
    ]
    return {*found, *(path.resolve() for path in found)}


def _base_model_names(paths: Paths) -> set[str]:
    """The base model as the config names it and as it is locked, however damaged the two are."""
    names: set[object] = set()
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        names.add(json.loads(paths.config.read_bytes()).get("base_model"))
    with contextlib.suppress(DamagedStateError, AttributeError):
        names.add(((read_json(paths.config_lock) or {}).get("locked") or {}).get("base_model"))
    return {name for name in names if isinstance(name, str) and name and "\0" not in name}


def _list_links(folder: Path) -> list[Path]:
    """Files of a base model that lie elsewhere, as in the cache of the Hugging Face hub."""
    try:
        return [file for file in folder.iterdir() if file.is_symlink() and file.is_file()]
    except OSError:
        return []
