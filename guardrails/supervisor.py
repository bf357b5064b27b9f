"""What the daemon tells systemd, where that started it: the datagrams of sd_notify(3). Elsewhere nothing is sent.

A manager that does not listen must not end months of training, so nothing here ever fails.
"""

import os
import socket
import time
from collections.abc import MutableMapping

# How often systemd hears of the daemon where its watchdog does not ask for more.
PET_SECONDS = 10.0
# A start or an end that gets on may take this much longer than the unit says; asked for anew with each sign of that.
EXTENSION_SECONDS = 180
SEND_SECONDS = 1.0


class Supervisor:
    """The manager that ``NOTIFY_SOCKET`` names, which is taken out of ``environment``: none but the daemon uses it."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        # A name in the abstract namespace starts with a zero byte.
        self.address = f"\0{address[1:]}" if address.startswith("@") else address if address.startswith("/") else ""
        limit, owner = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        self.pet_seconds = PET_SECONDS
        if limit.isdecimal() and owner in ("", str(os.getpid())):
            self.pet_seconds = min(PET_SECONDS, int(limit) / 1e6 / 4)
        self.last_pet = float("-inf")
        self.status = ""
        self.is_ready = self.is_stopping = False

    def wants_pet(self) -> bool:
        """Whether it is time for another sign that something gets on."""
        return bool(self.address) and time.monotonic() >= self.last_pet + self.pet_seconds

    def pet(self) -> None:
        """Something got on: the watchdog starts anew. Costs next to nothing until it is time again."""
        if not self.wants_pet():
            return
        self.last_pet = time.monotonic()
        if self.is_ready and not self.is_stopping:
            self._send("WATCHDOG=1")
        else:
            self._send("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1_000_000}")

    def show(self, status: str) -> None:
        """What ``systemctl status`` shows; one line."""
        if status != self.status:
            self.status = status
            self._send(f"STATUS={status}")

    def ready(self) -> None:
        """The start is done: what waits for the daemon may go on."""
        self.is_ready = True
        self._send("READY=1")

    def stopping(self) -> None:
        """The daemon comes to its end, whoever asked for it."""
        if not self.is_stopping:
            self.is_stopping = True
            self._send("STOPPING=1")

    def _send(self, *assignments: str) -> None:
        if not self.address:
            return
        message = "\n".join(" ".join(line.split()) for line in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.sendto(message.encode(errors="backslashreplace"), self.address)
        except OSError:
            # It is gone, or too busy. The next one may arrive.
            return
