"""Base dirs in very different states, and what every face of their documents is held against."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.state.building import BaseDir, healthy

# What a person may call a file, and what monitors, shells and parsers may trip over.
ODD_NAME = 'it\'s | "odd" <b> $(x) `y` \\n & 模型 🙂.jsonl'
NAMES = ("healthy", "fresh", "warnings", "damaged", "training")


@contextmanager
def situations(folder: Path) -> Iterator[dict[str, BaseDir]]:
    """A base dir for each of ``NAMES``; as long as this lasts, their daemons live where they should."""
    with ExitStack() as stack:
        boxes = {name: healthy(folder / name, 3) for name in NAMES if name != "fresh"}
        boxes["fresh"] = BaseDir(folder / "fresh")
        for name in ("healthy", "training"):
            stack.enter_context(boxes[name].daemon())
        _warn(boxes["warnings"])
        _damage(boxes["damaged"])
        _train(boxes["training"])
        yield {name: boxes[name] for name in NAMES}


def _warn(box: BaseDir) -> None:
    box.config(max_length=4096, backup="off", model_name="large")
    box.version(4, description=f"{ODD_NAME}\nsecond line")
    box.paths.emergency_stop.touch()
    box.processing(ODD_NAME)
    box.daemon_said("stopped", exit_code=40, reason=f"bad | \"news\": {ODD_NAME}\n'again'")
    box.status_said("stopped", loss=0.000012345, total_evals=7)
    (box.paths.current_model / "notes.txt").write_text("x")
    for name in ("a.jsonl", "b.jsonl"):
        (box.paths.queue_folder("failed") / name).touch()
    for number in (1, 2, 3):
        shutil.rmtree(box.paths.backups / f"b{number:03d}")


def _damage(box: BaseDir) -> None:
    for path in ("config.json", ".config_lock.json", "models/head.json", "models/intent.json", "status/daemon.json"):
        (box.base / path).write_text("{")
    (box.paths.version("v001") / "metadata.json").write_text("[]")
    (box.paths.version("v002") / "model/adapter_config.json").unlink()
    metadata = box.paths.version("v003") / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "training_steps": 10**30, "loss": 1e400}))
    (box.paths.backups / "b001/metadata.json").unlink()
    box.status_said("training", current_step=-5, eta_seconds=1e300)
    box.base.joinpath("base_models/tiny/model.safetensors").unlink()


def _train(box: BaseDir) -> None:
    (box.paths.queue_folder("high") / "next.jsonl").touch()
    box.processing()
    box.status_said("training", current_step=247, loss=0.7531, eta_seconds=3671.25)
    box.daemon_said("training", run_id="r1")
    (box.paths.versions / ".stage-v004").mkdir()
