"""What a command in an agent's sandbox asks the daemon to do, because the store is closed to it.

One file a request, in ``control/requests/``. The daemon runs the very command, as a process of its own, as if it were
typed outside: it waits, refuses and reports as it does there. Whoever asked reads its output as it comes, and its exit
code. Renaming the file takes a request and unlinking it takes it back, so that only one of the two happens.
"""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

from guardrails.errors import DamagedStateError, GuardrailsError, OperationError
from guardrails.locks import FileLock, read_holder
from guardrails.paths import CODE_DIR, VERSION_ID, Paths
from guardrails.sandbox import agent_lock
from guardrails.shapes import is_path_text
from guardrails.state_io import SCHEMA_VERSION, read_json, set_aside, utc_now, write_json

Verb = Literal["create", "restore", "rollback"]
# The argument of a rollback that undoes only what somebody changed.
BY_HAND = "by hand"
REQUEST_KEYS = {"verb": str, "argument": str | None, "as_json": bool}
RESULT_KEYS = {"exit_code": int}
# In the order in which they were asked for.
NAME = re.compile(r"(\d{20}-[0-9a-f]{8})\.json")
MAX_DESCRIPTION = 1000
POLL_SECONDS = 0.1
# A daemon that was asked to stop waits this long for the rollback in the next line, while an agent's sandbox is open.
LAST_CALL_SECONDS = 4.0


def ask_daemon(
    paths: Paths, verb: Verb, argument: str | None, *, as_json: bool, announce: Callable[[str], None]
) -> int:
    """Have the daemon run that command of the versioner; its output passes through, its exit code is returned.

    Raises:
        OperationError: no daemon runs, or it died over it.
    """
    folder, lock = _folder(paths), _lock(paths)
    if read_holder(lock) is None:
        raise _no_daemon(paths)
    name = f"{time.time_ns():020d}-{os.urandom(4).hex()}"
    folder.mkdir(parents=True, exist_ok=True)
    request = {"schema_version": SCHEMA_VERSION, "verb": verb, "argument": argument, "as_json": as_json}
    write_json(folder / f"{name}.json", request)
    announce("the store is closed in this sandbox; the daemon is asked to do it")
    sent = {"out": 0, "err": 0}
    try:
        while True:
            # Asked before the result is looked for: it is there before the daemon lets go.
            is_served = read_holder(lock) is not None
            result = read_json(folder / f"{name}.result.json", RESULT_KEYS)
            for kind, stream in (("out", sys.stdout.buffer), ("err", sys.stderr.buffer)):
                sent[kind] += _pass_on(folder / f"{name}.{kind}", sent[kind], stream)
            if result is not None:
                return int(result["exit_code"])
            if not is_served:
                raise _no_daemon(paths) if _take_back(folder, name) else _lost(paths)
            if not any((folder / f"{name}.{kind}").exists() for kind in ("json", "taken", "result.json")):
                raise _lost(paths)
            time.sleep(POLL_SECONDS)
    finally:
        _take_back(folder, name)
        if not (folder / f"{name}.taken").exists():
            _remove(folder, name)


def _pass_on(file: Path, start: int, stream: BinaryIO) -> int:
    """Write what ``file`` has from ``start`` on to a stream; how many bytes that were."""
    try:
        with open(file, "rb") as source:
            source.seek(start)
            content = source.read()
    except FileNotFoundError:
        return 0
    stream.write(content)
    stream.flush()
    return len(content)


class RequestServer:
    """The daemon's side: a thread that carries requests out one after the other, whatever else the daemon does."""

    def __init__(self, paths: Paths, log: Callable[[str], None]) -> None:
        self.paths = paths
        self.folder = _folder(paths)
        self.log = log
        self.lock = FileLock(_lock(paths))
        self.closing = threading.Event()
        self.last_call_seconds = 0.0
        self.thread = threading.Thread(target=self._serve, name="requests", daemon=True)

    def start(self) -> None:
        """Serve from now on. What was asked of an earlier daemon is removed and logged."""
        self.thread.start()

    def close(self, last_call_seconds: float) -> None:
        """Carry out what was asked, and, while a sandbox is open, what is asked in the next seconds; then end.

        Called when the daemon's lock is free: a rollback waits for that.
        """
        self.last_call_seconds = last_call_seconds
        self.closing.set()
        if self.thread.ident is not None:
            self.thread.join()

    def _serve(self) -> None:
        # An earlier daemon may be at its last request.
        while not self.lock.try_acquire("serving requests"):
            if self.closing.wait(POLL_SECONDS):
                return
        try:
            self._guarded(self._clear)
            while not self.closing.wait(POLL_SECONDS):
                self._guarded(self._carry_out_all)
            until = time.monotonic() + self.last_call_seconds
            self._guarded(self._carry_out_all)
            while time.monotonic() < until and read_holder(agent_lock(self.paths)) is not None:
                time.sleep(POLL_SECONDS)
                self._guarded(self._carry_out_all)
        finally:
            # Whoever waits learns from it that nobody serves any more.
            self.lock.release()

    def _guarded(self, step: Callable[[], None]) -> None:
        """A request that cannot be served is no reason to end months of training."""
        try:
            step()
        except (GuardrailsError, OSError) as error:
            self.log(f"cannot serve requests: {error}")

    def _clear(self) -> None:
        if not self.folder.is_dir():
            return
        for name in _list_requests(self.folder):
            self.log(f"removed a request of before the daemon's start: {name}")
        for entry in os.listdir(self.folder):
            (self.folder / entry).unlink(missing_ok=True)

    def _carry_out_all(self) -> None:
        for name in _list_requests(self.folder):
            path = self.folder / f"{name}.json"
            try:
                arguments = read_request(path)
            except DamagedStateError as error:
                self.log(f"set aside as {set_aside(path).name}: {error.message}")
                continue
            if arguments is None:
                continue
            taken = path.with_suffix(".taken")
            try:
                path.rename(taken)
            except FileNotFoundError:
                # Whoever asked took it back.
                continue
            try:
                self._carry_out(name, arguments)
            finally:
                # Without a result it tells whoever waits that there will be none.
                taken.unlink()

    def _carry_out(self, name: str, arguments: list[str]) -> None:
        self.log(f"asked from a sandbox: {' '.join(arguments)}")
        script = [sys.executable, str(CODE_DIR / "model_versioner.py"), "--base-dir", str(self.paths.base)]
        # Made anew: whoever may write here must not choose what the daemon writes to.
        with open(self.folder / f"{name}.out", "xb") as out, open(self.folder / f"{name}.err", "xb") as err:
            done = subprocess.run(
                [*script, *arguments],
                cwd=self.paths.base,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                check=False,
            )
        result = {"schema_version": SCHEMA_VERSION, "exit_code": done.returncode, "ended_at": utc_now()}
        write_json(self.folder / f"{name}.result.json", result)
        self.log(f"{arguments[0]}, asked from a sandbox, ended with {done.returncode}")


def read_request(path: Path) -> list[str] | None:
    """What a request comes to as the arguments of ``model_versioner.py``; None if there is none any more.

    Raises:
        DamagedStateError: it is none that this toolkit writes.
    """
    request = read_json(path, REQUEST_KEYS)
    if request is None:
        return None
    arguments = _make_arguments(request)
    if arguments is None:
        raise DamagedStateError(f"{path} asks for what is not done on request", "see docs/formats.md")
    return [*arguments, *(["--json"] if request["as_json"] else [])]


def _make_arguments(request: dict[str, Any]) -> list[str] | None:
    verb, argument = request["verb"], request["argument"]
    if verb == "rollback" and argument in (None, BY_HAND):
        return ["rollback", *(["--by-hand"] if argument else [])]
    if verb == "restore" and argument is not None and VERSION_ID.fullmatch(argument):
        return ["restore", argument]
    if verb == "create" and argument is not None and len(argument) <= MAX_DESCRIPTION and is_path_text(argument):
        # One word, or a description could be an option.
        return ["create", f"--description={argument}"]
    return None


def _folder(paths: Paths) -> Path:
    return paths.control / "requests"


def _lock(paths: Paths) -> Path:
    return paths.locks / "requests.lock"


def _list_requests(folder: Path) -> list[str]:
    """Names of the requests that wait, in the order in which they came."""
    try:
        with os.scandir(folder) as entries:
            files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(match[1] for name in files if (match := NAME.fullmatch(name)))


def _take_back(folder: Path, name: str) -> bool:
    """Whether the request still waited."""
    try:
        (folder / f"{name}.json").unlink()
    except FileNotFoundError:
        return False
    return True


def _remove(folder: Path, name: str) -> None:
    for kind in ("out", "err", "result.json"):
        with contextlib.suppress(OSError):
            (folder / f"{name}.{kind}").unlink()


def _no_daemon(paths: Paths) -> OperationError:
    return OperationError(
        f"no daemon runs for {paths.base}, and in this sandbox the store is closed", "run this command outside of it"
    )


def _lost(paths: Paths) -> OperationError:
    return OperationError(
        f"the daemon ended, or failed, over what it was asked to do: {paths.logs} says why",
        "model_versioner.py list shows what came of it",
    )
