"""Bytes as they are read or copied, for whoever shows how far long work is. Nobody does unless asked."""

from collections.abc import Callable

_watchers: list[Callable[[int], None]] = []


def watch(watcher: Callable[[int], None]) -> None:
    """Have ``watcher`` called with the number of bytes of each block from now on, in this process."""
    _watchers.append(watcher)


def advance(count: int) -> None:
    """Tell that this many more bytes were read or copied."""
    for watcher in _watchers:
        watcher(count)
