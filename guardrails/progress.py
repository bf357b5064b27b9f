"""Bytes as they are read or copied, for whoever shows how far long work is. Nobody does unless asked."""

from collections.abc import Callable

Watcher = Callable[[int], None]

_watchers: list[Watcher] = []
_expecters: list[Watcher] = []


def watch(watcher: Watcher, expecter: Watcher | None = None) -> None:
    """Have ``watcher`` called with the number of bytes of each block from now on, in this process.

    ``expecter`` is called with how many there will be in all, where that is known beforehand.
    """
    _watchers.append(watcher)
    if expecter is not None:
        _expecters.append(expecter)


def advance(count: int) -> None:
    """Tell that this many more bytes were read or copied."""
    for watcher in _watchers:
        watcher(count)


def expect(count: int) -> None:
    """Tell how many bytes are about to be read, as far as can be told."""
    for expecter in _expecters:
        expecter(count)
