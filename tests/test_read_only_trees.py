"""Read-only trees: what the modes of a version stop, for whoever is not root, and what they do not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import run_unprivileged
from tests.store import make_store

SHELL = """
import subprocess, sys
from pathlib import Path
from guardrails.store.change import open_store
from guardrails.store.repair import repair_everything
from tests.store import make_store
from tests.store_commands import read_tree, take_holdings

paths = make_store(Path(sys.argv[1]) / "base", versions=2, backups=True)

def run(line):
    return subprocess.run(["sh", "-c", line], cwd=paths.base, capture_output=True, text=True, check=False)
"""

STOPPED = """
before = take_holdings(paths)
for line in (
    "rm -rf models/versions/v001/model",
    "rm -f models/versions/*/model/* models/backups/*/model/*",
    "find models/versions/v001/model -delete",
    "echo x > models/versions/v001/model/adapter_model.safetensors",
    "cp config.json models/versions/v001/model/adapter_config.json",
    "cp config.json models/backups/b001/model/new",
    "mv models/versions/v001/model/adapter_model.safetensors .",
    "mv models/versions/v001/model elsewhere",
):
    done = run(line)
    assert done.returncode, (line, done)
assert take_holdings(paths) == before
"""

NOT_STOPPED = """
# The folder of a version is not the model in it.
model = read_tree(paths.version("v001") / "model")
assert run("rm -rf models/versions/v001").returncode
assert read_tree(paths.version("v001") / "model") == model
assert not (paths.version("v001") / "metadata.json").exists()
with open_store(paths, "test"):
    repair_everything(paths)
assert (paths.version("v001") / "metadata.json").exists()
assert run("mv models/versions/v001 elsewhere && mv elsewhere models/versions/v001").returncode == 0
# Whoever owns it may change the modes.
assert run("chmod -R u+w models/versions/v001 && rm -r models/versions/v001").returncode == 0
assert not paths.version("v001").exists()
"""


def test_the_model_of_a_version_is_not_deleted_overwritten_or_moved_by_mistake(shared_folder: Path) -> None:
    run_unprivileged(SHELL + STOPPED, shared_folder)


def test_its_owner_may_change_the_modes_and_move_the_whole_folder(shared_folder: Path) -> None:
    run_unprivileged(SHELL + NOT_STOPPED, shared_folder)


@pytest.mark.skipif(os.getuid() != 0, reason="is about root")
def test_modes_do_not_stop_root(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", versions=1)
    subprocess.run(["rm", "-rf", paths.version("v001")], check=True)
    assert not paths.version("v001").exists()


RSYNC = """
assert run("rsync -ac --delete current_model/ models/versions/v001/model/").returncode == 0
assert read_tree(paths.version("v001") / "model") == read_tree(paths.current_model)
with open_store(paths, "test"):
    (healed,) = (one for one in repair_everything(paths) if one.found)
assert (healed.id, healed.left) == ("v001", [])
"""


@pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync here")
def test_a_tool_that_sets_modes_itself_is_not_stopped_and_a_backup_heals_it(shared_folder: Path) -> None:
    run_unprivileged(SHELL + RSYNC, shared_folder)
