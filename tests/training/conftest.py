"""Fixtures of the training engine's tests."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.runs import RunFolder, Spawner


@pytest.fixture(scope="session")
def spawner() -> Iterator[Spawner]:
    spawner = Spawner()
    yield spawner
    spawner.close()


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """A data file of 50 short chats, some of several turns, that a model can learn something from."""
    source = random.Random(7)
    path = tmp_path / "chats.jsonl"
    with open(path, "w") as file:
        for number in range(50):
            messages = []
            for _ in range(source.randint(1, 2)):
                count = source.randint(1, 8)
                messages += [
                    {"role": "user", "content": f"Write the word {count} times."},
                    {"role": "assistant", "content": " ".join(["word"] * count)},
                ]
            file.write(json.dumps({"messages": messages, "number": number}) + "\n")
    return path


@pytest.fixture
def make_run(tmp_path: Path, tiny_model: Path, chats: Path) -> Callable[..., RunFolder]:
    """Makes a run of ``chats``, or of ``data``, with job settings as keywords."""

    def make(name: str = "run", *, data: Path = chats, base_model: Path = tiny_model, **settings: object) -> RunFolder:
        return RunFolder(tmp_path / name, base_model, data, **settings)

    return make
