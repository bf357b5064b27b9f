"""What guardrails.signals promises to people, senders and the daemon."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from guardrails import signals
from guardrails.errors import OperationError
from guardrails.locks import FileLock
from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import read_json, utc_now, write_json

SESSION = "4000-1"
RUN = "20261121T100003Z-5f3a91c2"


class FakeDaemon:
    """The parts of a daemon that senders see: its lock and its published state."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.lock = FileLock(paths.locks / "daemon.lock")
        paths.status.mkdir(exist_ok=True)
        self.lock.acquire("training daemon")

    def publish(self, session: str = SESSION, run_id: str | None = RUN, ended: bool = False) -> None:
        write_json(
            self.paths.daemon_status,
            {"pid": os.getpid(), "session": session, "run_id": run_id, "ended_at": utc_now() if ended else None},
        )


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path)


@pytest.fixture
def daemon(paths: Paths) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(paths)
    daemon.publish()
    yield daemon
    daemon.lock.release()


def touch(paths: Paths, *actions: str, content: str = "") -> None:
    paths.control.mkdir(exist_ok=True)
    for action in actions:
        (paths.control / f".{action}").write_text(content)


def listed(paths: Paths) -> list[str]:
    """Everything in control/ but acknowledgements."""
    return sorted(set(os.listdir(paths.control)) - {"acknowledged.json"}) if paths.control.exists() else []


def test_without_a_daemon_nothing_is_left_lying(paths: Paths) -> None:
    with pytest.raises(OperationError, match="no daemon") as caught:
        signals.send(paths, "stop")
    assert caught.value.exit_code == 1
    assert listed(paths) == []


def test_a_dead_daemons_published_state_counts_for_nothing(paths: Paths, daemon: FakeDaemon) -> None:
    daemon.lock.release()
    with pytest.raises(OperationError, match="no daemon"):
        signals.send(paths, "pause")
    assert listed(paths) == []


def test_a_signal_reaches_the_daemon_as_it_was_sent(paths: Paths, daemon: FakeDaemon) -> None:
    signal_id = signals.send(paths, "pause", reason="Grüße\n'\"", hold=True)
    signal, dropped = signals.read_strongest(paths, SESSION, RUN)
    assert signal is not None
    assert dropped == []
    assert (signal.id, signal.action, signal.hold, signal.reason) == (signal_id, "pause", True, "Grüße\n'\"")
    assert (signal.session, signal.run_id) == (SESSION, RUN)


def test_a_daemon_that_dies_while_a_signal_is_sent_leaves_none_lying(
    paths: Paths, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_die(path: Path, document: dict[str, object]) -> None:
        write_json(path, document)
        daemon.lock.release()

    monkeypatch.setattr("guardrails.signals.write_json", write_and_die)
    with pytest.raises(OperationError, match="no daemon"):
        signals.send(paths, "stop")
    assert listed(paths) == []


def test_an_ending_daemon_takes_no_signal(paths: Paths, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardrails.signals.STARTING_SECONDS", 0.1)
    daemon.publish(ended=True)
    with pytest.raises(OperationError, match="ending"):
        signals.send(paths, "stop")
    assert listed(paths) == []


def test_a_signal_to_a_starting_daemon_waits_for_its_session(paths: Paths) -> None:
    daemon = FakeDaemon(paths)
    publish = threading.Timer(0.2, daemon.publish, ["4000-2"])
    publish.start()
    signals.send(paths, "stop")
    signal, _ = signals.read_strongest(paths, "4000-2", None)
    assert signal is not None
    publish.join()
    daemon.lock.release()


def test_nothing_to_skip_is_said_at_once(paths: Paths, daemon: FakeDaemon) -> None:
    daemon.publish(run_id=None)
    with pytest.raises(OperationError, match="nothing to skip"):
        signals.send(paths, "skip")
    assert listed(paths) == []


def test_stop_beats_skip_beats_pause_beats_resume(paths: Paths) -> None:
    touch(paths, "resume", "pause", "skip", "stop")
    seen = []
    while (signal := signals.read_strongest(paths, SESSION, RUN)[0]) is not None:
        seen.append(signal.action)
        signals.acknowledge(paths, signal, "done")
    assert seen == ["stop", "skip", "pause", "resume"]
    assert signals.pending(paths) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "x\n",
        "{",
        "[]",
        "null",
        '{"id": 1}',
        '{"action": "pause"}',
        "\udcff",
        "[" * 60_000,
        '{"id": null, "hold": 0}',
    ],
)
def test_whatever_a_person_writes_into_a_signal_file_counts_as_a_touch(paths: Paths, content: str) -> None:
    paths.control.mkdir()
    (paths.control / ".stop").write_bytes(content.encode(errors="surrogateescape"))
    signal, dropped = signals.read_strongest(paths, SESSION, RUN)
    assert (signal, dropped) == (signals.Signal("stop", "touch"), [])


def test_a_touched_signal_is_gone_once_acknowledged(paths: Paths) -> None:
    touch(paths, "skip")
    signal, _ = signals.read_strongest(paths, SESSION, RUN)
    assert signal is not None
    # An impatient second touch means the same run, not the next one.
    touch(paths, "skip")
    signals.acknowledge(paths, signal, "done")
    assert listed(paths) == []


def test_a_signal_for_an_earlier_daemon_is_removed_and_reported(paths: Paths, daemon: FakeDaemon) -> None:
    signal_id = signals.send(paths, "stop")
    signal, dropped = signals.read_strongest(paths, "5000-9", RUN)
    assert signal is None
    assert [(one.signal.id, SESSION in one.why) for one in dropped] == [(signal_id, True)]
    assert listed(paths) == []


def test_a_skip_never_hits_another_run_than_it_was_meant_for(paths: Paths, daemon: FakeDaemon) -> None:
    signal_id = signals.send(paths, "skip")
    signals.send(paths, "pause")
    signal, dropped = signals.read_strongest(paths, SESSION, "20261121T110000Z-00000000")
    assert signal is not None
    assert signal.action == "pause"
    assert [one.signal.id for one in dropped] == [signal_id]
    ending = signals.wait_for_acknowledgement(paths, signal_id, 0)
    assert ending is not None
    assert ending.result == "nothing_to_do"


def test_a_stop_counts_when_the_run_its_sender_saw_is_over(paths: Paths, daemon: FakeDaemon) -> None:
    signals.send(paths, "stop")
    signal, _ = signals.read_strongest(paths, SESSION, None)
    assert signal is not None


def test_a_newer_signal_survives_the_acknowledgement_of_an_older_one(paths: Paths, daemon: FakeDaemon) -> None:
    signals.send(paths, "pause")
    old, _ = signals.read_strongest(paths, SESSION, RUN)
    assert old is not None
    signals.send(paths, "pause", hold=True)
    signals.acknowledge(paths, old, "done")
    new, _ = signals.read_strongest(paths, SESSION, RUN)
    assert new is not None
    assert new.hold


def test_two_who_ask_for_the_same_share_one_signal(paths: Paths, daemon: FakeDaemon) -> None:
    assert signals.send(paths, "stop", reason="one") == signals.send(paths, "stop", reason="two")


@pytest.mark.parametrize(("first", "second"), [("pause", "resume"), ("resume", "pause")])
def test_of_pause_and_resume_the_last_word_counts(paths: Paths, daemon: FakeDaemon, first: str, second: str) -> None:
    taken_back = signals.send(paths, first)
    signals.send(paths, second)
    assert signals.pending(paths) == [second]
    ending = signals.wait_for_acknowledgement(paths, taken_back, 5)
    assert ending is not None
    assert ending.result == "superseded"


def test_a_resume_sent_while_a_pause_is_carried_out_still_counts(paths: Paths, daemon: FakeDaemon) -> None:
    signals.send(paths, "pause")
    pause, _ = signals.read_strongest(paths, SESSION, RUN)
    assert pause is not None
    signals.send(paths, "resume")
    signals.supersede_weaker(paths, "pause")
    signals.acknowledge(paths, pause, "done")
    assert signals.pending(paths) == ["resume"]


def test_a_stop_supersedes_all_that_waits_beside_it(paths: Paths, daemon: FakeDaemon) -> None:
    waiting = [signals.send(paths, action) for action in ("skip", "pause")]
    touch(paths, "resume")
    signals.supersede_weaker(paths, "stop")
    endings = [signals.wait_for_acknowledgement(paths, signal_id, 0) for signal_id in waiting]
    assert [ending.result for ending in endings if ending] == ["superseded", "superseded"]
    assert listed(paths) == []


def test_waiting_ends_with_the_acknowledgement(paths: Paths, daemon: FakeDaemon) -> None:
    signal_id = signals.send(paths, "pause")

    def carry_out() -> None:
        signal, _ = signals.read_strongest(paths, SESSION, RUN)
        assert signal is not None
        signals.acknowledge(paths, signal, "done", "at step 7")

    answer = threading.Timer(0.2, carry_out)
    answer.start()
    ending = signals.wait_for_acknowledgement(paths, signal_id, 20)
    answer.join()
    assert ending is not None
    assert (ending.result, ending.detail, ending.action) == ("done", "at step 7", "pause")
    assert listed(paths) == []


def test_waiting_in_vain_ends_in_time_and_leaves_the_signal_to_the_daemon(paths: Paths, daemon: FakeDaemon) -> None:
    signal_id = signals.send(paths, "pause")
    began = time.monotonic()
    assert signals.wait_for_acknowledgement(paths, signal_id, 0.2) is None
    assert 0.2 <= time.monotonic() - began < 5
    assert signals.pending(paths) == ["pause"]


def test_waiting_for_a_daemon_that_was_killed_ends_at_once_and_removes_the_signal(
    paths: Paths, daemon: FakeDaemon
) -> None:
    signal_id = signals.send(paths, "pause")
    daemon.lock.release()
    assert signals.wait_for_acknowledgement(paths, signal_id, 60) is None
    assert listed(paths) == []


def test_an_acknowledgement_is_found_when_others_followed(paths: Paths, daemon: FakeDaemon) -> None:
    first = signals.send(paths, "skip")
    for _ in range(8):
        signal, _ = signals.read_strongest(paths, SESSION, RUN)
        if signal is None:
            touch(paths, "pause")
            continue
        signals.acknowledge(paths, signal, "done")
    ending = signals.wait_for_acknowledgement(paths, first, 0)
    assert ending is not None
    assert ending.action == "skip"


def test_a_damaged_acknowledgement_is_set_aside_by_the_next(paths: Paths) -> None:
    touch(paths, "stop")
    (paths.control / "acknowledged.json").write_text("{")
    signals.acknowledge(paths, signals.Signal("stop", "touch"), "done")
    assert (read_json(paths.control / "acknowledged.json") or {})["result"] == "done"
    assert (paths.control / "acknowledged.json.damaged").read_text() == "{"


def test_clear_removes_every_signal_and_names_it(paths: Paths, daemon: FakeDaemon) -> None:
    touch(paths, "stop")
    signals.send(paths, "pause")
    assert {signal.action for signal in signals.clear(paths)} == {"stop", "pause"}
    assert listed(paths) == []
    assert signals.clear(paths) == []


def test_every_one_of_many_senders_gets_an_answer(paths: Paths, daemon: FakeDaemon) -> None:
    code = """
import sys
from pathlib import Path
from guardrails import signals
from guardrails.paths import Paths
paths = Paths(Path(sys.argv[1]))
for number in range(5):
    ending = signals.wait_for_acknowledgement(paths, signals.send(paths, sys.argv[2], reason=str(number)), 30)
    assert ending is not None and ending.result in ("done", "superseded"), ending
"""
    environment = {**os.environ, "PYTHONPATH": str(CODE_DIR)}
    senders = [
        Popen([sys.executable, "-c", code, paths.base, action], env=environment, stderr=PIPE, text=True)
        for action in ("pause", "resume", "stop", "skip", "pause")
    ]
    deadline = time.monotonic() + 60
    while any(sender.poll() is None for sender in senders):
        assert time.monotonic() < deadline
        signal, dropped = signals.read_strongest(paths, SESSION, RUN)
        assert dropped == []
        if signal is not None:
            signals.acknowledge(paths, signal, "done")
        time.sleep(0.005)
    assert [sender.communicate()[1] for sender in senders] == [""] * len(senders)
    assert listed(paths) == []
