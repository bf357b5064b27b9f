"""Messages on their way: each to one address, by a process of its own that is killed when it takes too long.

So a server that does not answer, or a library that hangs in a name look-up, holds nobody up for longer than
``SEND_SECONDS``, and apprise is imported only when there is something to say. The address is a secret: it goes to that
process by a pipe, and nothing but a masked reason comes back.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal, NamedTuple

from guardrails import __version__
from guardrails.alerts.addresses import mask_address
from guardrails.errors import OperationError
from guardrails.paths import CODE_DIR

# All that are sent together are sent at once.
SEND_SECONDS = 20
# For Python's own start, and its end.
MARGIN_SECONDS = 5
MOST_REASON = 200

# As apprise calls them.
Kind = Literal["info", "success", "warning", "failure"]


class Message(NamedTuple):
    """What people get to read; the title is one line."""

    kind: Kind
    title: str
    body: str


class Errand(NamedTuple):
    """One message to one of apprise's addresses; without a message the address is asked for by HTTP GET."""

    url: str
    message: Message | None

    def __repr__(self) -> str:
        return f"Errand({self.message!r})"


def require_apprise() -> None:
    """Raises OperationError where apprise is not installed; nothing is imported for that."""
    if find_spec("apprise") is None:
        raise OperationError(
            "alerts need the package apprise, which is not installed",
            f"cd '{CODE_DIR}' && .venv/bin/python -m pip install -c constraints.txt '.[alerts]'",
        )


def deliver(errands: Sequence[Errand], seconds: int | None = None) -> list[str | None]:
    """Run all errands at once; for each why it failed, None where it did not. Takes ``seconds`` at most, and a margin.

    None only where the far end took it. A reason has nothing of the address but its scheme.
    """
    limit = SEND_SECONDS if seconds is None else seconds
    started = [_start(errand, limit) for errand in errands]
    deadline = time.monotonic() + limit + MARGIN_SECONDS
    try:
        return [_wait(process, errand, deadline, limit) for errand, process in zip(errands, started, strict=True)]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _start(errand: Errand, limit: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "guardrails.alerts.messenger"],
        cwd=CODE_DIR,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A traceback may show anything.
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        json.dump({"seconds": limit, "url": errand.url, "message": errand.message}, process.stdin)
        process.stdin.close()
    except BrokenPipeError:
        # It is gone already, which shows when it is waited for.
        pass
    # Or ``communicate`` would flush it again.
    process.stdin = None
    return process


def _wait(process: "subprocess.Popen[str]", errand: Errand, deadline: float, limit: int) -> str | None:
    try:
        answer, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"no answer within {limit} s"
    if process.returncode == -signal.SIGALRM:
        return f"no answer within {limit} s"
    try:
        reason = json.loads(answer)["reason"]
    except (ValueError, KeyError, TypeError):
        return f"the process that should send it ended with {process.returncode}"
    return None if reason is None else mask_address(str(reason), errand.url)[:MOST_REASON]


def run_errand(errand: Errand) -> str | None:
    """Carry out one errand in this process, however long it takes; why it failed, or None."""
    try:
        return _notify(errand.url, errand.message) if errand.message is not None else _ping(errand.url)
    except Exception as error:  # noqa: BLE001 - a library's bug is a failed delivery, and its traceback has the address
        return f"{type(error).__name__}: {error}"


def _notify(url: str, message: Message) -> str | None:
    from apprise import Apprise, AppriseAsset, NotifyFormat

    complaints = _Complaints()
    logger = logging.getLogger("apprise")
    logger.addHandler(complaints)
    logger.propagate = False
    asset = AppriseAsset(app_id="training-guardrails", app_desc="training-guardrails", async_mode=False)
    service = Apprise.instantiate(url, asset=asset)
    if service is None:
        return f"apprise knows no such address{complaints.text()}"
    messenger = Apprise(asset=asset)
    messenger.add(service)
    sent = messenger.notify(message.body, message.title, notify_type=message.kind, body_format=NotifyFormat.TEXT)
    return None if sent else f"it was not taken{complaints.text()}"


class _Complaints(logging.Handler):
    """What apprise warns of; what it logs below that is whole requests."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def text(self) -> str:
        return f": {self.lines[-1]}" if self.lines else ""


def _ping(url: str) -> str | None:
    from urllib.error import HTTPError
    from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, Request, build_opener

    opener: OpenerDirector = build_opener(HTTPHandler, HTTPSHandler)
    request = Request(url, headers={"User-Agent": f"training-guardrails/{__version__}"})  # noqa: S310 - checked before
    try:
        with opener.open(request, timeout=SEND_SECONDS) as answer:
            status = int(answer.status)
    except HTTPError as error:
        status = error.code
        error.close()
    except OSError as error:
        return str(getattr(error, "reason", None) or error)
    return None if 200 <= status < 300 else f"it answered with status {status}"


def main() -> None:
    """Read an errand from stdin, carry it out, and write ``{"reason": …}`` to stdout."""
    task = json.load(sys.stdin)
    # Ends this process even if whoever started it was killed.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(task["seconds"])
    # What a library prints is no answer.
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    message = task["message"]
    reason = run_errand(Errand(task["url"], Message(*message) if message is not None else None))
    os.write(answer, json.dumps({"reason": reason}).encode())
    # Whatever threads a library left behind are of no use any more.
    os._exit(0)


if __name__ == "__main__":
    main()
