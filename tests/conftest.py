"""What all tests share: a tiny base model, made once however many processes run the tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardrails.locks import FileLock
from guardrails.paths import CODE_DIR


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
