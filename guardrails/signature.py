"""Stat signatures: whether a tree of files was touched, told without reading a byte of it.

Imports nothing but the standard library's lightest, because every report of the state tracker needs it.
"""

import os
import stat

# size, mtime_ns, ctime_ns and inode of each file, by relative path
Signature = dict[str, list[int]]

SECOND_NS = 1_000_000_000
# A file stamped this shortly before its signature was taken may have changed again under the same stamp: kernels stamp
# in ticks of at most 10 ms; FAT and old NFS in whole seconds, two at worst.
FINE_GRANULARITY_NS = 50_000_000
COARSE_GRANULARITY_NS = 2 * SECOND_NS


def settles_at(stat: list[int]) -> int:
    """From when on, in ns since the epoch, a further change of a file with this stat shows in its stat.

    Source: git's rule for racily clean entries.
    """
    changed_ns = stat[2]
    return changed_ns + (FINE_GRANULARITY_NS if changed_ns % SECOND_NS else COARSE_GRANULARITY_NS)


def is_settled(changed_ns: int, now_ns: int) -> bool:
    """Whether, at ``now_ns``, a further change of what has this ctime would show in its ctime.

    It would where the ctime is in the future, too: whoever changes a file stamps it with what the clock says then. Only
    near to now a second change may get the stamp of the first.
    """
    return abs(now_ns - changed_ns) >= (FINE_GRANULARITY_NS if changed_ns % SECOND_NS else COARSE_GRANULARITY_NS)


def take_signature(root: str | os.PathLike[str]) -> Signature:
    """Stat signature of everything below ``root`` but the folders themselves.

    What is no regular file (a link, a socket) stands in it with size -1, so that a tree with one
    never equals the signature of a saved tree, which holds regular files only.

    Raises:
        OSError: ``root`` or a folder in it cannot be listed, or a file went away meanwhile.
    """
    signature: Signature = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                relative = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{relative}/")
                    continue
                status = entry.stat(follow_symlinks=False)
                size = status.st_size if stat.S_ISREG(status.st_mode) else -1
                signature[relative] = [size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return signature


def take_model_signature(root: str | os.PathLike[str]) -> Signature:
    """Stat signature of every file that makes a base model, sorted by path.

    Links are followed (a hub cache is made of them); hidden files and Markdown are no part of a model.

    Raises:
        OSError: a file went away meanwhile, or a link points nowhere.
    """
    signature: Signature = {}
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or name.endswith(".md"):
                continue
            path = os.path.join(parent, name)
            status = os.stat(path)
            relative = os.path.relpath(path, root)
            signature[relative] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return dict(sorted(signature.items()))
