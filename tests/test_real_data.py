"""Real rows beside the checkout, where there are any: all pass, and chats, puzzles and texts become v001 to v003."""

import json
import os
import shutil
from pathlib import Path

import pytest

from guardrails.paths import CODE_DIR
from tests.box import Box

DATA = Path(os.environ.get("TRAINING_TEST_DATA", CODE_DIR.parent / "shared" / "data"))
FILES = {"alpaca_en_demo.jsonl": 600, "syllo_puzzles_100.jsonl": 100, "c4_text_150.jsonl": 150}


pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"{DATA} is not there; tests/test_loop.py trains rows of our own"
)


def test_every_row_passes_pre_flight(tmp_path: Path, tiny_model: Path) -> None:
    box = Box(tmp_path / "base", tiny_model, max_length=2048)
    found = box.json("training_queue.py", "validate", *(str(DATA / name) for name in FILES))
    assert [(file["total"], file["bad"]) for file in found] == [(rows, 0) for rows in FILES.values()]


@pytest.mark.faults
@pytest.mark.training
def test_real_chats_puzzles_and_texts_are_trained_whole_and_lower_the_loss_on_held_out_rows(
    tmp_path: Path, tiny_model: Path
) -> None:
    box = Box(tmp_path / "base", tiny_model)
    box.paths.config.unlink()
    shutil.copytree(tiny_model, box.paths.base / "base_models" / "tiny")
    box.run("training_daemon.py", "--init", "--tiny")
    steps = 0
    for number, (name, rows) in enumerate(FILES.items(), 1):
        shutil.copy(DATA / name, box.paths.inbox)
        box.once()
        version = box.versions()[-1]
        assert (version["id"], box.head()) == (f"v00{number}", f"v00{number}")
        data = version["data"][0]
        assert (data["rows"], data["bad"]) == (rows, 0)
        assert data["trained"] + data["held_out"] == rows
        assert data["held_out"] > 0
        outcome = json.loads((box.paths.run(version["run_id"]) / "outcome.json").read_text())
        assert outcome["times_trained"] == {"least": 1, "most": 1}
        assert version["eval_loss"] < version["eval_loss_before"]
        steps += version["run_steps"]
        assert version["training_steps"] == steps
    assert [backup["version"] for backup in box.json("backup_manager.py", "list")] == ["v001", "v002", "v003"]
    shutil.copy(DATA / "c4_text_150.jsonl", box.paths.inbox / "again.jsonl")
    box.once()
    assert box.names("skipped") == ["again.jsonl"]
    assert box.json("training_queue.py", "list", "--state", "skipped")[0]["reason"].endswith("v003")
    box.assert_at_rest()
