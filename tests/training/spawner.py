"""Starts training workers quickly: the libraries are imported once, each worker is a fork of this process.

Reads JSON lines ``{"run": DIR, "environment": {}}`` on stdin and answers each with the worker's pid; writes
``{"pid", "code"}`` when one ends. A worker started so is the real one but for its import time.
"""

import json
import os
import selectors
import signal
import sys
import traceback
from pathlib import Path


def main() -> None:
    from guardrails.training import worker

    worker.prepare_libraries()
    import guardrails.training.model
    import guardrails.training.trainer  # noqa: F401

    answers = sys.stdout.fileno()
    wake, ended = os.pipe()
    os.set_blocking(ended, False)
    signal.set_wakeup_fd(ended)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    def answer(**message: int) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    def start(command: dict[str, object]) -> None:
        pid = os.fork()
        if pid:
            answer(started=pid)
            return
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(command["environment"])  # type: ignore[call-overload]
            sys.argv = ["worker", str(command["run"])]
            code = worker.main()
        except BaseException:  # noqa: BLE001 - the fork must never get into the loop below
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    unread = b""
    while True:
        for key, _ in selector.select():
            if key.fd == wake:
                os.read(wake, 4096)
                while True:
                    try:
                        pid, status = os.waitpid(-1, os.WNOHANG)
                    except ChildProcessError:
                        break
                    if not pid:
                        break
                    answer(pid=pid, code=os.waitstatus_to_exitcode(status))
            else:
                chunk = os.read(0, 65536)
                if not chunk:
                    return
                *lines, unread = (unread + chunk).split(b"\n")
                for line in lines:
                    start(json.loads(line))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    main()
