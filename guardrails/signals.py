"""Control signals: how a person reaches the daemon, one file in ``control/`` per action.

A signal names the daemon session that it is meant for, and a skip the run. A file made by ``touch``
(or holding anything else) is bare: it means whatever runs now. Files of an earlier daemon can not
reach the next one, because a daemon calls ``clear`` when it starts, before it publishes its session,
and again when it ends, after it published ``ended_at`` and before it lets go of its lock.

Writers of the folder take ``.locks/control.lock``, so that a signal is only ever removed by who read it.
"""

import json
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import DamagedStateError, OperationError
from guardrails.locks import FileLock, read_holder
from guardrails.paths import Paths
from guardrails.state_io import (
    SCHEMA_VERSION,
    read_json,
    remove_temporary_files,
    set_aside,
    utc_now,
    write_json,
)

# Strongest first.
ACTIONS = ("stop", "skip", "pause", "resume")
# What goes with a stronger one that was carried out; a resume given after a pause or skip still counts.
SUPERSEDED = {"stop": ("skip", "pause", "resume"), "skip": ("pause",), "pause": (), "resume": ()}
# What a person says last counts; these two take each other back.
OPPOSITE = {"pause": "resume", "resume": "pause"}
BARE_ID = "touch"
TEXTS = ("id", "reason", "created_at", "session", "run_id")
POLL_SECONDS = 0.05
# A daemon takes its lock some moments before it publishes its session.
STARTING_SECONDS = 10.0
MAX_SIGNAL_BYTES = 1 << 16
KEPT_ACKNOWLEDGEMENTS = 16


class Signal(NamedTuple):
    """One signal; a bare one has the id ``touch`` and no session, run, reason or time."""

    action: str
    id: str
    hold: bool = False
    reason: str | None = None
    created_at: str | None = None
    session: str | None = None
    run_id: str | None = None


class Dropped(NamedTuple):
    """A signal that was removed without being carried out, and why, for the log."""

    signal: Signal
    why: str


class Acknowledgement(NamedTuple):
    """How a signal ended; ``result`` is ``done``, ``nothing_to_do`` or ``superseded``."""

    id: str
    action: str
    result: str
    detail: str | None
    at: str


def send(paths: Paths, action: str, *, reason: str | None = None, hold: bool = False) -> str:
    """Leave a signal for the running daemon; its id.

    A signal for the same thing that still waits is joined rather than replaced, so that both senders
    see its acknowledgement. A pause takes back a resume that still waits, and the other way round.

    Raises:
        OperationError: no daemon runs, or it has no run to skip; no signal is left lying.
        BusyError: another process keeps the control folder locked.
    """
    daemon = _wait_for_daemon(paths)
    signal = Signal(action, os.urandom(4).hex(), hold, reason, utc_now(), daemon["session"], daemon.get("run_id"))
    if action == "skip" and signal.run_id is None:
        raise OperationError(
            "nothing to skip: no file is being trained", "see what runs: training_controller.py status"
        )
    with _hold_control(paths):
        # Asked again under the lock: an ending daemon first publishes its end and then clears the folder.
        if not _is_running(paths, signal.session):
            raise _no_daemon(paths)
        waiting = _read_signal(paths, action)
        if waiting and _meaning(waiting) == _meaning(signal):
            return waiting.id
        if action in OPPOSITE:
            _signal_path(paths, OPPOSITE[action]).unlink(missing_ok=True)
        write_json(_signal_path(paths, action), {"schema_version": SCHEMA_VERSION, **signal._asdict()})
    # A daemon that was killed meanwhile clears nothing.
    if not _is_running(paths, signal.session) and _find_acknowledgement(paths, signal.id) is None:
        _withdraw(paths, signal.id)
        raise _no_daemon(paths)
    return signal.id


def pending(paths: Paths) -> list[str]:
    """The actions that wait, strongest first. One look at the folder; cheap enough for every tick."""
    try:
        with os.scandir(paths.control) as entries:
            names = {
                entry.name for entry in entries if entry.name[1:] in ACTIONS and entry.is_file(follow_symlinks=False)
            }
    except FileNotFoundError:
        return []
    return [action for action in ACTIONS if f".{action}" in names]


def read_strongest(paths: Paths, session: str, run_id: str | None) -> tuple[Signal | None, list[Dropped]]:
    """The strongest signal that is meant for this daemon and run; it stays until acknowledged.

    Signals for another session, and skips of another run, are acknowledged as such, removed and
    returned for the log. A stop, pause or resume is about the daemon: it also counts when the run that
    its sender saw is over. ``run_id`` is None while no run is open; a bare skip is returned then too.
    """
    dropped: list[Dropped] = []
    for action in pending(paths):
        signal = _read_signal(paths, action)
        if signal is None:
            continue
        if signal.session is not None and signal.session != session:
            why, result = f"it was meant for the daemon session {signal.session}", "superseded"
        elif action == "skip" and signal.run_id is not None and signal.run_id != run_id:
            why, result = f"run {signal.run_id} is already over", "nothing_to_do"
        else:
            return signal, dropped
        acknowledge(paths, signal, result, why)
        dropped.append(Dropped(signal, why))
    return None, dropped


def acknowledge(paths: Paths, signal: Signal, result: str, detail: str | None = None) -> None:
    """Record how ``signal`` ended, then remove it; a newer signal for the same action stays.

    In this order, so that a sender who finds the signal gone finds the acknowledgement there.

    Raises:
        BusyError: another process keeps the control folder locked.
    """
    with _hold_control(paths):
        ending = Acknowledgement(signal.id, signal.action, result, detail, utc_now())
        try:
            earlier = _read_acknowledgements(paths)
        except DamagedStateError:
            # Nobody needs an old acknowledgement once its sender has gone.
            set_aside(_acknowledged_path(paths))
            earlier = []
        kept = [entry._asdict() for entry in earlier[: KEPT_ACKNOWLEDGEMENTS - 1]]
        document = {"schema_version": SCHEMA_VERSION, **ending._asdict(), "earlier": kept}
        write_json(_acknowledged_path(paths), document)
        waiting = _read_signal(paths, signal.action)
        if waiting and waiting.id == signal.id:
            _signal_path(paths, signal.action).unlink(missing_ok=True)


def is_stronger(one: Signal, other: Signal) -> bool:
    return ACTIONS.index(one.action) < ACTIONS.index(other.action)


def supersede_weaker(paths: Paths, action: str) -> None:
    """Remove the signals that wait beside a stronger one that was carried out."""
    for waiting in _read_all(paths):
        if waiting.action in SUPERSEDED[action]:
            acknowledge(paths, waiting, "superseded", f"by {action}")


def wait_for_acknowledgement(paths: Paths, signal_id: str, seconds: float) -> Acknowledgement | None:
    """How the signal ended, as soon as it did; ``superseded`` if it was taken back.

    None after ``seconds``, or when the daemon died without carrying it out: it is removed then.
    """
    deadline = time.monotonic() + seconds
    while True:
        # Asked before the acknowledgement is looked for, in reverse of the order in which they change.
        alive = read_holder(paths.locks / "daemon.lock") is not None
        waits = any(signal.id == signal_id for signal in _read_all(paths))
        ending = _find_acknowledgement(paths, signal_id)
        if ending is not None:
            return ending
        if not waits:
            return Acknowledgement(
                signal_id, "", "superseded", "it was taken back before it was carried out", utc_now()
            )
        if not alive:
            _withdraw(paths, signal_id)
            return None
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_SECONDS)


def clear(paths: Paths) -> list[Signal]:
    """Remove every signal; what was removed, for the log."""
    with _hold_control(paths):
        removed = _read_all(paths)
        for signal in removed:
            _signal_path(paths, signal.action).unlink(missing_ok=True)
        remove_temporary_files(paths.control)
    return removed


def _meaning(signal: Signal) -> tuple[str | None, str | None, bool]:
    return signal.session, signal.run_id, signal.hold


def _hold_control(paths: Paths) -> AbstractContextManager[None]:
    paths.control.mkdir(parents=True, exist_ok=True)
    return FileLock(paths.locks / "control.lock").hold("control signals")


def _signal_path(paths: Paths, action: str) -> Path:
    return paths.control / f".{action}"


def _acknowledged_path(paths: Paths) -> Path:
    return paths.control / "acknowledged.json"


def _read_signal(paths: Paths, action: str) -> Signal | None:
    """The signal file of ``action``; anything that this toolkit did not write is a bare one."""
    try:
        # Never waits for the other end of a pipe that somebody put there.
        descriptor = os.open(_signal_path(paths, action), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        return Signal(action, BARE_ID)
    try:
        document = json.loads(os.read(descriptor, MAX_SIGNAL_BYTES))
        signal = Signal(action, hold=document["hold"] is True, **{key: document[key] for key in TEXTS})
        texts = [signal.id, signal.session, *filter(None, signal)]
        return signal if all(isinstance(value, str | bool) for value in texts) else Signal(action, BARE_ID)
    except IsADirectoryError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return Signal(action, BARE_ID)
    finally:
        os.close(descriptor)


def _read_all(paths: Paths) -> list[Signal]:
    signals = (_read_signal(paths, action) for action in pending(paths))
    return [signal for signal in signals if signal is not None]


def _withdraw(paths: Paths, signal_id: str) -> None:
    with _hold_control(paths):
        for signal in _read_all(paths):
            if signal.id == signal_id:
                _signal_path(paths, signal.action).unlink(missing_ok=True)


def _read_acknowledgements(paths: Paths) -> list[Acknowledgement]:
    """The last acknowledgements, newest first."""
    document = read_json(_acknowledged_path(paths))
    if document is None:
        return []
    try:
        entries = [document, *document["earlier"]]
        return [Acknowledgement(*(entry[key] for key in Acknowledgement._fields)) for entry in entries]
    except (KeyError, TypeError) as error:
        raise DamagedStateError(
            f"{_acknowledged_path(paths)} is damaged: {error!r}", "the daemon writes a new one with the next signal"
        ) from error


def _find_acknowledgement(paths: Paths, signal_id: str) -> Acknowledgement | None:
    return next((entry for entry in _read_acknowledgements(paths) if entry.id == signal_id), None)


def _is_running(paths: Paths, session: str | None) -> bool:
    """Whether this very session still holds the daemon's lock and has not published its end."""
    if read_holder(paths.locks / "daemon.lock") is None:
        return False
    daemon = read_json(paths.daemon_status)
    return daemon is not None and daemon.get("session") == session and daemon.get("ended_at") is None


def _wait_for_daemon(paths: Paths) -> dict[str, Any]:
    """The published state of the daemon that holds the lock."""
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        holder = read_holder(paths.locks / "daemon.lock")
        if holder is None:
            raise _no_daemon(paths)
        daemon = read_json(paths.daemon_status)
        if daemon is not None and daemon.get("pid") == holder.pid and daemon.get("ended_at") is None:
            return daemon
        if time.monotonic() >= deadline:
            raise OperationError(
                f"the daemon of {paths.base} (process {holder.pid}) is starting or ending", "try again in a moment"
            )
        time.sleep(POLL_SECONDS)


def _no_daemon(paths: Paths) -> OperationError:
    return OperationError(f"no daemon runs for {paths.base}", "start it: training_daemon.py")
