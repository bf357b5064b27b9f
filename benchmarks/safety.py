"""What a saved model survives: a table of tools and damages, made by really doing it.

Each tool saves a small model, is damaged, and is asked for the model back:

- a program writes into the very inode of a file in the live tree, as root may and some libraries do;
- a byte in the store flips, which neither size nor time stamps tell: is that found, and what is handed out then?
- a byte flips in every copy that the tool has: is the way back refused, with the live tree as it was?
"""

import os
import random
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Figure, say
from benchmarks.peers import WEIGHTS, Tool, Toolkit, is_installed
from guardrails.cli import print_table
from guardrails.filesystem import remove_tree
from tests.store import safetensors

# Several chunks for the tools that cut files into chunks.
WEIGHT_BYTES = 9_000_000


class Safety(NamedTuple):
    """What became of a save."""

    written_in_place: str
    flipped_byte: str
    handed_out: str
    all_copies_damaged: str


WHOLE = Safety("kept", "found", "the saved bytes", "refused, nothing changed")


def measure(folder: Path, peers: tuple[type[Tool], ...]) -> list[Figure]:
    """The table of what each tool survives, and how many cells of it are not as they should be."""
    rows = {}
    kinds: list[type[Tool]] = [Toolkit, *filter(is_installed, peers)]
    for kind in kinds:
        say(f"damaging what {kind.name} saved")
        rows[kind.name] = probe(kind, folder)
    print_table(
        ["TOOL", "IN-PLACE WRITE", "FLIPPED BYTE, CHECK", "THEN HANDED OUT", "ALL COPIES DAMAGED"],
        [[name, *row] for name, row in rows.items()],
    )
    print()
    ours = rows.pop(Toolkit.name)
    failed = sum(cell != whole for cell, whole in zip(ours, WHOLE, strict=True))
    figures = [Figure("safety: cells of this toolkit that are not whole", float(failed), "", 0)]
    if rows:
        figures.append(Figure("safety: peers whose row is whole", float(list(rows.values()).count(WHOLE)), "", 0))
    return figures


def probe(kind: type[Tool], folder: Path) -> Safety:
    """Save a small model, damage it, go back: once for each way of damage."""

    def begin() -> Tool:
        if folder.exists():
            remove_tree(folder)
        tool = kind(folder)
        tool.live.mkdir()
        (tool.live / WEIGHTS).write_bytes(make_weights(1))
        # Some tell by whole seconds whether a file changed since it was saved; nobody goes back within one.
        os.utime(tool.live / WEIGHTS, (0, 0))
        tool.save()
        return tool

    tool = begin()
    saved = read_tree(tool.live)
    flip_byte(tool.live / WEIGHTS)
    os.utime(tool.live / WEIGHTS)
    in_place = go_back(tool, saved)

    tool = begin()
    flip_byte(tool.copies()[0])
    sound = tool.check()
    train(tool)
    handed_out = go_back(tool, saved)

    tool = begin()
    for path in tool.copies():
        flip_byte(path)
    train(tool)
    refused = go_back(tool, saved)
    remove_tree(folder)
    return Safety(
        WHOLE.written_in_place if in_place == WHOLE.handed_out else "LOST",
        "no check" if sound is None else "not found" if sound else WHOLE.flipped_byte,
        handed_out,
        refused,
    )


def make_weights(seed: int) -> bytes:
    return safetensors(random.Random(seed).randbytes(WEIGHT_BYTES))


def train(tool: Tool) -> None:
    """Other weights under another inode, as a careful trainer writes them."""
    new = tool.live / "new"
    new.write_bytes(make_weights(2))
    new.rename(tool.live / WEIGHTS)


def go_back(tool: Tool, saved: dict[str, bytes]) -> str:
    """What asking for the saved model gave."""
    before = read_tree(tool.live)
    try:
        tool.restore()
        refused = False
    except subprocess.SubprocessError:
        refused = True
    after = read_tree(tool.live)
    if after == saved and not refused:
        return WHOLE.handed_out
    if after == before:
        return WHOLE.all_copies_damaged if refused else "NOTHING, without a word"
    return "refused, A BROKEN TREE" if refused else "BAD BYTES, without a word"


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_byte(path: Path) -> None:
    """As a failing disk does it: neither size nor time stamps tell."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, status.st_size // 2)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), status.st_size // 2)
    path.chmod(stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
