"""systemd hears what the daemon does, and its watchdog is petted only while something gets on."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails.supervisor import EXTENSION_SECONDS, PET_SECONDS, Supervisor
from tests.box import Box


class Manager:
    """The socket of a service manager, and what was said to it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.heard: list[str] = []
        self.petted_at = time.monotonic()

    def listen(self) -> list[str]:
        """Every assignment so far, in order."""
        while True:
            try:
                said = self.socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                return self.heard
            self.heard += said
            if "WATCHDOG=1" in said:
                self.petted_at = time.monotonic()

    def quiet_seconds(self) -> float:
        """Since the watchdog was last petted."""
        self.listen()
        return time.monotonic() - self.petted_at

    def count(self, assignment: str) -> int:
        return self.listen().count(assignment)

    def last_status(self) -> str:
        return next((one for one in reversed(self.listen()) if one.startswith("STATUS=")), "")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "größe notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def abstract_manager() -> Iterator[Manager]:
    manager = Manager(f"@guardrails-{os.getpid()}-{time.monotonic_ns()}")
    yield manager
    manager.socket.close()


def supervisor(manager: Manager, **more: str) -> Supervisor:
    return Supervisor({"NOTIFY_SOCKET": manager.address, **more})


def test_each_word_is_a_datagram_of_its_own_and_said_once(manager: Manager, abstract_manager: Manager) -> None:
    for listener in (manager, abstract_manager):
        one = supervisor(listener)
        one.show("idle")
        one.show("idle")
        one.ready()
        one.pet()
        one.pet()
        one.stopping()
        one.stopping()
        assert listener.listen() == ["STATUS=idle", "READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_a_start_and_an_end_that_get_on_ask_for_more_time(manager: Manager) -> None:
    one = supervisor(manager, WATCHDOG_USEC="1")
    more = f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1_000_000}"
    one.pet()
    one.ready()
    one.pet()
    one.stopping()
    one.pet()
    assert manager.listen() == ["WATCHDOG=1", more, "READY=1", "WATCHDOG=1", "STOPPING=1", "WATCHDOG=1", more]


def test_a_name_with_a_line_break_says_nothing_but_itself(manager: Manager) -> None:
    supervisor(manager).show("training a\nMAINPID=1\r\nb \udcff 模型")
    assert manager.listen() == ["STATUS=training a MAINPID=1 b \\udcff 模型"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, PET_SECONDS),
        ({"WATCHDOG_USEC": "4000000"}, 1.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, PET_SECONDS),
        ({"WATCHDOG_USEC": "1920000000"}, PET_SECONDS),
        ({"WATCHDOG_USEC": "much"}, PET_SECONDS),
    ],
)
def test_it_is_petted_several_times_in_the_time_of_the_watchdog(environment: dict[str, str], seconds: float) -> None:
    environment = {**environment, "NOTIFY_SOCKET": "@x", "HOME": "/"}
    assert Supervisor(environment).pet_seconds == seconds
    assert environment == {"HOME": "/"}, "what the daemon starts does not speak for it"


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@nobody", "vsock:2:1234", "relative", "/" + 200 * "x"])
def test_a_manager_that_is_none_hinders_nobody(address: str) -> None:
    one = Supervisor({"NOTIFY_SOCKET": address})
    one.show("idle")
    one.ready()
    one.pet()
    one.stopping()


def test_a_manager_that_does_not_read_holds_nobody_up(manager: Manager) -> None:
    one = supervisor(manager)
    started = time.monotonic()
    with pytest.raises(BlockingIOError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        while True:
            other.sendto(b"X=1", one.address)
    one.show("idle")
    assert time.monotonic() - started < 10


@pytest.mark.training
def test_systemd_hears_of_the_daemon_and_a_hung_step_is_not_petted(
    box: Box, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    # Petted four times a second.
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    box.start_daemon()
    box.wait(lambda: manager.count("READY=1"), "READY=1")
    assert manager.listen().index("STATUS=starting") < manager.listen().index("READY=1")
    petted = manager.count("WATCHDOG=1")
    box.wait(lambda: manager.count("WATCHDOG=1") > petted + 3, "an idle daemon's pets")
    assert manager.last_status() == "STATUS=idle"
    monkeypatch.delenv("NOTIFY_SOCKET")

    box.drop("math.jsonl", rows=4000)
    box.wait_for_phase("importing")
    box.wait(box.workers, "the worker")
    (worker,) = box.workers()
    os.kill(worker, signal.SIGSTOP)
    petted = manager.count("WATCHDOG=1")
    box.wait(lambda: manager.count("WATCHDOG=1") > petted + 5, "pets in a phase that may be silent")
    assert box.progress()["phase"] == "importing"
    os.kill(worker, signal.SIGCONT)
    box.wait_for_phase("training", 3)
    assert b"NOTIFY_SOCKET" not in Path(f"/proc/{worker}/environ").read_bytes()
    petted = manager.count("WATCHDOG=1")
    box.wait(lambda: manager.count("WATCHDOG=1") > petted + 1, "pets at steps")
    assert manager.last_status().startswith("STATUS=math.jsonl: training, step ")

    os.kill(worker, signal.SIGSTOP)
    box.wait(lambda: manager.quiet_seconds() > 1.5, "the end of pets at a hung step")
    petted = manager.count("WATCHDOG=1")
    os.kill(worker, signal.SIGCONT)
    box.wait(lambda: manager.count("WATCHDOG=1") > petted + 1, "pets when it goes on")

    assert "STOPPING=1" not in manager.listen()
    box.run("training_controller.py", "stop", "--wait", "60")
    box.wait_for_end()
    said = manager.listen()
    assert said.count("STOPPING=1") == 1
    assert said.index("STOPPING=1") < len(said) - 1 - said[::-1].index("STATUS=stopped")
