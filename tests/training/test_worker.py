"""What the worker guarantees, with real processes."""

import random
import signal
from collections.abc import Callable

import pytest

from tests.training.runs import RunFolder, Spawner, wait_until

pytestmark = pytest.mark.training

MakeRun = Callable[..., RunFolder]


def newest(run: RunFolder) -> int:
    return max(run.checkpoints(), default=0)


def test_interrupted_training_is_bit_identical(spawner: Spawner, make_run: MakeRun) -> None:
    """Dropout, accumulation, two epochs, evaluations: killed and stopped at random, the result is the same."""
    whole = make_run("whole", epochs=2)
    assert spawner.train(whole) == 0

    source = random.Random(3)
    pieces = make_run("pieces", epochs=2, save_minutes=0)
    ends = []
    while not (pieces.path / "outcome.json").exists() or pieces.read("outcome.json")["result"] != "completed":
        (pieces.path / "outcome.json").unlink(missing_ok=True)
        worker = spawner.start(pieces)
        kind = source.choice([signal.SIGKILL, signal.SIGTERM])
        target = newest(pieces) + source.randint(0, 6)
        wait_until(lambda: newest(pieces) >= target or worker.poll() is not None, "a checkpoint")
        worker.wait_at_most(source.uniform(0, 0.04))
        worker.send(kind)
        ends.append((target, kind.name, worker.wait()))
    print(ends)
    assert pieces.result() == whole.result()
    assert whole.read("outcome.json")["times_trained"] == {"least": 2, "most": 2}
