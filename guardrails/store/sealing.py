"""Immutable versions, if the config wants them: not even root deletes or overwrites a version or a backup by mistake.

Whoever holds the store lock takes the flags of what he changes, file by file where he can; when he is done, all is
immutable again. A folder says so meanwhile, so that after a kill the next one goes through every file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from guardrails.config import parse_config
from guardrails.errors import BusyError, ConfigError
from guardrails.paths import STAGE_PREFIX, Paths
from guardrails.state_io import fsync_folder
from guardrails.store.backups import backups_folder, list_backup_ids, lock_of_backups
from guardrails.store.immutable import CANNOT, is_immutable, set_tree
from guardrails.store.trash import list_entries, trash_of_backups
from guardrails.store.version_records import list_version_ids

KEY = "immutable_versions"
UNSEALED = f"{STAGE_PREFIX}unsealed"
# What this process has said of them already: it changes the store many times.
_said: set[str] = set()


@contextmanager
def sealed_afterwards(paths: Paths, announce: Callable[[str], None]) -> Iterator[None]:
    """Versions and backups are as immutable as the config wants them when this ends. Needs the store lock.

    Where that cannot be, it is announced, once; it fails nothing.
    """
    marker = paths.models / UNSEALED
    was_killed, was_sealed = marker.is_dir(), _is_sealed(paths)
    if was_sealed or wants_immutable(paths):
        marker.mkdir(parents=True, exist_ok=True)
        fsync_folder(paths.models)
    try:
        yield
    finally:
        wanted = wants_immutable(paths)
        if wanted or marker.is_dir():
            _seal(paths, wanted is not False, marker, announce, thorough=was_killed)


def wants_immutable(paths: Paths) -> bool | None:
    """What the config says; None of one that is wrong or cannot be read: then no flag is taken away for good."""
    try:
        value = parse_config(paths.config.read_text(encoding="utf-8"), paths.config).get(KEY, False)
    except (OSError, UnicodeDecodeError, ConfigError):
        return None
    return value if isinstance(value, bool) else None


def _is_sealed(paths: Paths) -> bool:
    """Whether the versions are immutable, as the newest tells; its flag is the last to go."""
    ids = list_version_ids(paths)
    return bool(ids) and is_immutable(paths.version(ids[-1]))


def _seal(paths: Paths, on: bool, marker: Path, announce: Callable[[str], None], *, thorough: bool) -> None:
    """All versions and backups; with ``thorough`` those, too, whose folder says that all in it is as it should be."""
    folder = backups_folder(paths)
    versions = [paths.version(version_id) for version_id in list_version_ids(paths)]
    backups = [folder / backup_id for backup_id in list_backup_ids(folder)]
    versions, backups = (
        [tree for tree in trees if thorough or is_immutable(tree) != on] for trees in (versions, backups)
    )
    is_done = _set_trees(versions, on, announce)
    if backups:
        try:
            # Another base dir may be at work on what it keeps there.
            with lock_of_backups(folder).hold("immutable backups", wait_seconds=0):
                is_done = _set_trees(backups, on, announce) and is_done
        except (BusyError, OSError):
            is_done = is_done and not thorough
    if not on:
        trashes = {paths.trash, trash_of_backups(paths, folder)}
        thrown = [entry.content for trash in sorted(trashes) for entry in list_entries(trash)]
        is_done = _set_trees(thrown, on, announce) and is_done
    if is_done and marker.is_dir():
        marker.rmdir()


def _set_trees(trees: list[Path], on: bool, announce: Callable[[str], None]) -> bool:
    """Whether all that this user can do here is done; a broken disk is a reason to try again."""
    try:
        for tree in trees:
            set_tree(tree, on)
    except OSError as error:
        how = "cannot be made immutable" if on else "stay immutable"
        line = f"{KEY}: those in {trees[0].parent} {how}: {error.strerror}"
        if line not in _said:
            _said.add(line)
            announce(line)
        return error.errno in CANNOT
    return True
