"""What an analyser of code knows of the world that the code runs in, and how it tells effects."""

import os
import time

from guardrails.guard.judge import Content, Judge
from guardrails.guard.patterns import TAINT, UNKNOWN, join, resolve

# More steps than any sane command takes; a budget for all analysers of one call together.
MOST_STEPS = 20_000
# Of CPU time; agents give a hook half a minute and then go on without it.
MOST_SECONDS = 4.0
MOST_DEPTH = 12
MOST_BYTES = 256 * 1024


class TooMuchError(Exception):
    """The call is too large or too deeply nested to be looked through."""


class Scene:
    """The folder, the symlinks and files that the call itself made, and the judge of its effects."""

    def __init__(self, judge: Judge, cwd: str, environ: dict[str, str]) -> None:
        self.judge = judge
        judge.cwd = cwd
        self.cwd = cwd
        # Where a condition may have led as well.
        self.other_cwds: tuple[str, ...] = ()
        self.environ = environ
        # Symlinks and files (with their text, where it is known) that earlier commands of this call made.
        self.links: dict[str, str] = {}
        self.files: dict[str, str | None] = {}
        # Where the call would still be if a cd failed; and whether a failure ends it (set -e).
        self.if_cd_failed: tuple[str, ...] = ()
        self.stops_at_errors = False
        self.steps = 0
        self.started = time.process_time()
        self.depth = 0

    def step(self) -> None:
        """Count one step of any analysis.

        Raises:
            TooMuchError: that was one too many.
        """
        self.steps += 1
        if self.steps > MOST_STEPS or (self.steps % 64 == 0 and time.process_time() - self.started > MOST_SECONDS):
            raise TooMuchError

    def paths(self, value: str, *, follow_last: bool = True) -> list[str]:
        """The absolute, resolved paths that a value may be, seen from the current folder."""
        found = [resolve(join(cwd, value), self.links, follow_last=follow_last) for cwd in (self.cwd, *self.other_cwds)]
        if value[:1] in (UNKNOWN, TAINT):
            # It may be absolute as well.
            found.append(join("/", value))
        return found

    def effect(self, verb: str, value: str, *, content: Content = None, recursive: bool = True) -> None:
        """Tell an effect on the path ``value`` (``delete``, ``move``, ``write``, ``metadata``, ``link``, ``mount``).

        Raises:
            Denied: it must not happen.
        """
        if not value:
            return
        follow_last = verb not in ("delete", "move") or value.endswith("/")
        for path in self.paths(value, follow_last=follow_last):
            self.judge.weigh(verb, path, content=content, recursive=recursive)
            if verb == "write":
                self.files[path] = content if isinstance(content, str) else None

    def read(self, value: str) -> str | None:
        """The text of a file as it will be then; None if that cannot be told."""
        if value.startswith("/dev/fd/"):
            return self.files.get(value)
        for path in self.paths(value):
            if path in self.files:
                return self.files[path]
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    if not os.path.isfile(path):
                        return None
                    return file.read(MOST_BYTES)
            except (OSError, ValueError):
                continue
        return None
