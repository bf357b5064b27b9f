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
    """The long ones first, so that no process of several is left alone with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("training") is None)


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
