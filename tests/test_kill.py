"""SIGKILL at random instants: a few here, thirty in ``make faults``."""

from pathlib import Path

import pytest

from tests.box import Box
from tests.kills import ROWS, settings, survive_kills

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> bytes:
    box = Box(tmp_path_factory.mktemp("undisturbed") / "base", tiny_model)
    settings(box)
    box.drop("0.jsonl", rows=ROWS)
    box.once()
    return box.weights()


def test_a_killed_run_ends_in_one_version_with_the_same_weights(box: Box, undisturbed: bytes) -> None:
    settings(box)
    assert len(survive_kills(box, kills=2, seconds=8, seed=1, expected=undisturbed)) == 2


@pytest.mark.faults
def test_thirty_kills_at_random_instants(box: Box, undisturbed: bytes) -> None:
    settings(box)
    done = survive_kills(box, kills=30, seconds=8, seed=30, expected=undisturbed)
    assert len(done) == 30
    print("\n".join(done))
