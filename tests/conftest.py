"""What all tests share: a tiny base model, made once however many processes run the tests."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails.locks import FileLock
from guardrails.paths import CODE_DIR
from tests.box import Box
from tests.warm import Warm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first in each process's share, so that none of several is left alone with them at the end."""
    shares = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("training")]
    short = [item for item in items if not item.get_closest_marker("training")]
    items[:] = [
        item
        for number in range(shares)
        for kind in (long, short)
        for item in kind[len(kind) * number // shares : len(kind) * (number + 1) // shares]
    ]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with its tokenizer; never to be changed by a test."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    model = folder / "tiny_model"
    with FileLock(folder / "tiny_model.lock").hold("making the tiny model", wait_seconds=120):
        if not model.exists():
            subprocess.run(
                [sys.executable, "-m", "guardrails.training.tiny_model", str(model)], cwd=CODE_DIR, check=True
            )
    return model


@pytest.fixture
def box(tmp_path: Path, tiny_model: Path) -> Iterator[Box]:
    """A base dir of the test's own; whatever still runs on it ends with the test."""
    box = Box(tmp_path / "base", tiny_model)
    yield box
    box.close()


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that nobody can write to as well; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="guardrails-"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process that runs the scripts without starting Python for each."""
    with Warm() as warm:
        yield warm
