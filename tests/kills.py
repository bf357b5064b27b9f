"""Kill the worker, the daemon or both at random instants of a run, and see that nothing of it can be told after."""

import os
import random
import signal
import time

from tests.box import Box

ROWS = 160


def settings(box: Box) -> None:
    box.configure(base_model=box.settings["base_model"], eval_steps=5, save_minutes=0, max_attempts=50)


def kill_at(box: Box, instant: float, victims: tuple[str, ...]) -> None:
    """SIGKILL the victims ``instant`` seconds after the file's run began."""
    assert box.daemon is not None
    box.wait(lambda: box.names("processing") or box.daemon_ended(), "the run")
    time.sleep(instant)
    pids = box.workers() if "worker" in victims else []
    if "daemon" in victims:
        pids.append(box.daemon.pid)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    if "daemon" in victims:
        box.daemon.wait()


def survive_kills(box: Box, kills: int, seconds: float, seed: int, expected: bytes) -> list[str]:
    """Kill ``kills`` times at random instants of up to ``seconds``, restarting the daemon as needed.

    Each file must end in exactly one version with the weights that an undisturbed run reaches. Returns what was done.
    """
    source = random.Random(seed)
    done: list[str] = []
    for number in range(kills):
        name = f"{number}.jsonl"
        if not box.names("processing") and not box.names("normal"):
            # The same rows under the same name would be a duplicate: undo what the last round published.
            if box.head() is not None:
                box.run("model_versioner.py", "rollback")
                box.run("training_queue.py", "retry", box.names("skipped")[0])
            else:
                box.drop(name, rows=ROWS)
        victims = source.choice([("worker",), ("daemon",), ("worker", "daemon")])
        instant = source.uniform(0, seconds)
        if box.daemon_ended():
            box.start_daemon("--once")
        kill_at(box, instant, victims)
        done.append(f"{'+'.join(victims)} at {instant:.2f} s")
        if source.random() < 0.5:
            finish(box, expected, done)
    finish(box, expected, done)
    return done


def finish(box: Box, expected: bytes, done: list[str]) -> None:
    if not box.daemon_ended():
        box.wait_for_end()
    box.once()
    assert box.weights() == expected, done
    published = [version for version in box.versions() if version["id"] == box.head()]
    assert len(published) == 1, done
    runs = [version["run_id"] for version in box.versions()]
    assert len(runs) == len(set(runs)), done
    assert box.names("processing") == box.names("normal") == box.names("failed") == [], done
    box.assert_at_rest()
