"""All versions, or all backups of one folder: what they amount to, without reading again what did not change.

A report takes the stat of every ``metadata.json``, by a path through ``model/``: so one that was edited, torn or
removed shows at once, and so does a tree whose ``model/`` is gone. Of the newest trees, of damaged ones and of those
that are watched it takes the stats of all files, and of the others of some; the next report goes on where it ended, so
that each has its turn. What is not as it was is read anew.
"""

import json
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from re import Pattern
from typing import NamedTuple

from guardrails.paths import STAGE_PREFIX
from guardrails.report.parts import make_line, make_rows
from guardrails.report.saved_trees import RECORD, SavedTree, look, looks_the_same, total_bytes
from guardrails.report.shelf_cache import Columns, PackedCards, StoredShelf, Summary
from guardrails.report.values import Json
from guardrails.signature import is_settled
from guardrails.state_io import take_stat

# Of so many trees at the end of a shelf each report looks at all files.
NEWEST = 32
# So many stats it takes of one shelf, those of metadata.json first, and at least so many of the rest.
MOST_STATS = 4000
LEAST_STATS = 300
# So many stats are taken before one that fails is looked for.
AT_A_TIME = 500
# Of a tree whose metadata.json cannot be looked at; hash() never returns it.
NO_MARK = -1
NO_CONTENT = "-" * 16

# Makes the entry of a tree in the state document.
Describe = Callable[[SavedTree], Json]
# Trees of a shelf that matter more than others.
Watch = Callable[["Shelf"], "Iterable[SavedTree | None]"]


class Place(NamedTuple):
    """Where the trees of a shelf lie, how their names look, and how to describe a kept one in the state document."""

    folder: Path
    pattern: Pattern[str]
    base: Path
    describe: Describe | None = None

    def look(self, identifier: str) -> SavedTree:
        """One tree, as it is now."""
        tree = look(identifier, self.folder, self.base)
        if self.describe and not tree.removed:
            tree.line = make_line(self.describe(tree))
        return tree


class Turn(NamedTuple):
    """At which tree a report goes on to look at ``metadata.json``, and at which one to look at all files."""

    records: int = 0
    files: int = 0


class Listing(NamedTuple):
    """What a folder holds; ``mark`` is what its stat is known by, None while a change might not show in that."""

    ids: list[str]
    stages: list[str]
    mark: int | None


class Shelf:
    """The saved trees of one folder, oldest first, tombstones of removed versions included.

    Only iterating reads all of them. ``is_new`` says that the next report should know what this one found; ``turn`` is
    that report's.
    """

    def __init__(self, place: Place, stored: StoredShelf) -> None:
        self.place = place
        self.folder = place.folder
        self.stored = stored
        self.is_new = False
        self.turn = Turn()
        self._trees: dict[int, SavedTree] = {}

    @property
    def summary(self) -> Summary:
        return self.stored.summary

    @property
    def ids(self) -> list[str]:
        return self.stored.columns.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[SavedTree]:
        return map(self.load, range(len(self)))

    def __reversed__(self) -> Iterator[SavedTree]:
        return map(self.load, reversed(range(len(self))))

    def load(self, index: int) -> SavedTree:
        """One tree, from the cache if that has it."""
        if index not in self._trees:
            card = self.stored.cards[index]
            self._trees[index] = self.look(index) if card is None else unpack([card], self.folder)[0]
        return self._trees[index]

    def load_all(self) -> list[SavedTree]:
        """All trees, in one go."""
        cards = self.stored.cards.read_all()
        trees = iter(unpack([card for card in cards if card is not None], self.folder))
        return [next(trees) if card is not None else self.look(index) for index, card in enumerate(cards)]

    def look(self, index: int) -> SavedTree:
        """One tree, as it is now."""
        return self.place.look(self.ids[index])

    def find(self, identifier: object) -> SavedTree | None:
        """The tree with that id."""
        return self.load(self.ids.index(identifier)) if identifier in self.ids else None

    def find_newest(self, *, kept: bool = False) -> SavedTree | None:
        """The newest tree, or the newest that is no tombstone."""
        return next((tree for tree in reversed(self) if not (kept and tree.removed)), None)

    def list_damaged(self) -> list[SavedTree]:
        return [self.load(index) for index in self.summary.damaged]

    def list_copies(self, tree: SavedTree) -> list[SavedTree]:
        """Backups that are not damaged and by their metadata hold the very files of ``tree``."""
        if not tree.content:
            return []
        contents, width, found = self.stored.columns.contents, len(NO_CONTENT), []
        at = contents.find(tree.content)
        while at >= 0:
            if at % width == 0:
                found.append(self.load(at // width))
            at = contents.find(tree.content, at + 1)
        return found


def empty_shelf(place: Place) -> Shelf:
    return Shelf(place, _store(place.folder, Listing([], [], None), []))


def read_shelf(
    place: Place,
    last: StoredShelf | None,
    turn: Turn,
    *,
    watch: Watch = lambda _: (),
    most_records: int = sys.maxsize,
) -> Shelf:
    """The trees of a place; none where there is no such folder.

    ``last`` is what the last report knew of them. This one looks at all files of those that ``watch`` names, and at
    ``most_records`` metadata.json at most.

    Raises:
        OSError: the folder cannot be listed.
    """
    shelf = Shelf(place, last) if last and last.folder == str(place.folder) else empty_shelf(place)
    listing = _list_names(place, shelf.stored)
    if listing.ids != shelf.ids:
        known = dict(zip(shelf.ids, shelf.load_all(), strict=True))
        trees = [known.get(identifier) or _look_twice(place, identifier) for identifier in listing.ids]
        shelf = _make_shelf(place, listing, trees)
    elif (listing.stages, listing.mark) != (shelf.stored.stages, shelf.stored.mark):
        shelf.stored = shelf.stored._replace(stages=listing.stages, mark=listing.mark)
        shelf.is_new = True
    if not shelf.ids:
        return shelf
    descriptor = os.open(place.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        suspects, turn = _find_suspects(shelf, descriptor, turn, watch, most_records)
    finally:
        os.close(descriptor)
    changed = {}
    for index in suspects:
        tree = _look_twice(place, shelf.ids[index])
        if tree is None or pack(tree) != shelf.stored.cards[index]:
            changed[index] = tree
    if changed:
        trees = [changed.get(index, tree) for index, tree in enumerate(shelf.load_all())]
        shelf = _make_shelf(place, listing, trees)
    shelf.turn = turn
    return shelf


def _list_names(place: Place, last: StoredShelf) -> Listing:
    now_ns = time.time_ns()
    try:
        status = os.stat(place.folder)
        mark = hash((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
        if mark == last.mark:
            return Listing(last.columns.ids, last.stages, mark)
        with os.scandir(place.folder) as found:
            entries = list(found)
    except FileNotFoundError:
        return Listing([], [], None)
    ids = [entry.name for entry in entries if place.pattern.fullmatch(entry.name) and entry.is_dir()]
    ids.sort(key=lambda identifier: int(identifier[1:]))
    stages = [entry.name for entry in entries if entry.name.startswith(STAGE_PREFIX)]
    return Listing(ids, stages, mark if is_settled(status.st_ctime_ns, now_ns) else None)


def _look_twice(place: Place, identifier: str) -> SavedTree | None:
    """One tree; None if it is not there any more."""
    tree = place.look(identifier)
    if tree.problems:
        # It may just have been removed or come into being.
        tree = place.look(identifier)
        if not tree.folder.is_dir():
            return None
    return tree


def _find_suspects(shelf: Shelf, descriptor: int, turn: Turn, watch: Watch, most_records: int) -> tuple[set[int], Turn]:
    """The trees that are not as they were or were not sure; and the next report's turn."""
    count = len(shelf)
    at_once = {*range(max(0, count - NEWEST), count), *shelf.summary.damaged}
    at_once |= {shelf.ids.index(tree.id) for tree in watch(shelf) if tree is not None}
    records = range(count)
    if count > most_records:
        records = range(turn.records % count, turn.records % count + most_records)
    suspects = {*shelf.stored.unsure, *_find_changed_records(shelf, descriptor, records)}
    suspects |= {index for index in at_once - suspects if not looks_the_same(shelf.load(index), descriptor)}
    left = max(LEAST_STATS, MOST_STATS - len(records))
    others = (index % count for index in range(turn.files, turn.files + count))
    for index in others:
        if index in at_once or index in suspects:
            continue
        if left <= 0:
            return suspects, Turn(records.stop % count, index)
        tree = shelf.load(index)
        left -= len(tree.seen)
        if not looks_the_same(tree, descriptor):
            suspects.add(index)
    return suspects, Turn(records.stop % count, 0)


def _find_changed_records(shelf: Shelf, descriptor: int, records: range) -> Iterator[int]:
    """Indices of trees whose ``metadata.json`` is not as it was; ``records`` may go on from the last to the first."""
    ids, marks, bare, count = shelf.ids, shelf.stored.columns.marks, set(shelf.stored.bare), len(shelf)
    for start in range(0, len(records), AT_A_TIME):
        part = [number % count for number in records[start : start + AT_A_TIME]]
        paths = [f"{ids[index]}/{RECORD}" if index in bare else f"{ids[index]}/model/../{RECORD}" for index in part]
        statuses = map(partial(os.stat, dir_fd=descriptor), paths)
        try:
            # Thousands of times: a function called for each would cost a fifth more.
            now = [hash((s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)) for s in statuses]
        except OSError:
            now = [_mark_record(path, descriptor) for path in paths]
        yield from (index for index, mark in zip(part, now, strict=True) if mark != marks[index])


def _mark_record(path: str, descriptor: int) -> int:
    try:
        return hash(tuple(take_stat(os.stat(path, dir_fd=descriptor))))
    except OSError:
        return NO_MARK


def _make_shelf(place: Place, listing: Listing, trees: Iterable[SavedTree | None]) -> Shelf:
    """A shelf of these trees; one of them that went away after it was listed is left out."""
    shelf = Shelf(place, _store(place.folder, listing, [tree for tree in trees if tree is not None]))
    shelf.is_new = True
    return shelf


def _store(folder: Path, listing: Listing, trees: list[SavedTree]) -> StoredShelf:
    """What the next report, and the rest of this one, need of some trees."""
    return StoredShelf(
        folder=str(folder),
        mark=listing.mark if len(trees) == len(listing.ids) else None,
        stages=listing.stages,
        unsure=[index for index, tree in enumerate(trees) if not tree.is_sure],
        bare=[index for index, tree in enumerate(trees) if "model/" not in tree.seen],
        columns=Columns(
            [tree.id for tree in trees],
            array("q", [hash(tuple(tree.seen[RECORD])) if RECORD in tree.seen else NO_MARK for tree in trees]),
            "".join(tree.content if tree.is_verified and not tree.problems else NO_CONTENT for tree in trees),
        ),
        summary=Summary(
            kept=sum(not tree.removed for tree in trees),
            bytes=total_bytes(trees),
            damaged=[index for index, tree in enumerate(trees) if tree.problems],
            rows=make_rows([tree.line for tree in trees if tree.line]),
        ),
        cards=PackedCards([pack(tree) for tree in trees]),
    )


def pack(tree: SavedTree) -> bytes:
    """All that is known of a tree, but the folder it lies in."""
    if tree.card is None:
        values = (tree.id, tree.metadata, tree.content, tree.problems, tree.removed, tree.is_sure, tree.line, tree.seen)
        tree.card = json.dumps(values, separators=(",", ":")).encode("ascii")
    return tree.card


def unpack(cards: Iterable[bytes], folder: Path) -> list[SavedTree]:
    """The trees that ``pack`` packed."""
    cards = list(cards)
    trees = []
    for card, (identifier, *values) in zip(cards, json.loads(b"[%b]" % b",".join(cards)), strict=True):
        tree = SavedTree(identifier, folder)
        tree.metadata, tree.content, tree.problems, tree.removed, tree.is_sure, tree.line, tree.seen = values
        tree.card = card
        trees.append(tree)
    return trees
