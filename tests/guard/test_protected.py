"""What is protected, wherever it lies and by whatever name it is called."""

import json
from pathlib import Path

import pytest

from guardrails.guard.patterns import DEEP, FRESH, STAR, TAINT, UNKNOWN
from guardrails.guard.protected import Protected
from tests.guard.box import make_box
from tests.guard.worlds import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("path", "recursive", "kind"),
    [
        ("current_model", True, "current_model/"),
        ("current_model/adapter_model.safetensors", False, "current_model/"),
        ("models/versions/v002/model", True, "the versions"),
        ("models/head.json", False, "the store of versions"),
        ("", True, "current_model/"),
        ("", False, None),
        ("models", True, "the versions"),
        (".config_lock.json", False, "the config lock"),
        (".claude", True, "the agent guard"),
        (".claude", False, None),
        ("current_model_notes", True, None),
        ("queue/normal", True, None),
        (STAR, True, "current_model/"),
        (f"mod{STAR}", True, "the versions"),
        (f"{STAR}.log", True, None),
        (f"models/versions/v00{STAR}", True, "the versions"),
        (f"current_model/{STAR}.tmp", False, None),
        (f"{DEEP}/{STAR}.safetensors", False, "current_model/"),
        (f"{DEEP}/{STAR}.pyc", False, None),
        (f"models/{UNKNOWN}", True, "the store of versions"),
        (UNKNOWN, True, None),
        (f"{UNKNOWN}/current_model", True, "current_model/"),
        (f"{UNKNOWN}/build", True, None),
        (TAINT, True, "current_model/"),
        (FRESH, True, None),
    ],
)
def test_a_path_is_known_for_what_it_may_reach(world: World, path: str, recursive: bool, kind: str | None) -> None:
    place = Protected(str(world.base)).find(f"{world.base}/{path}".rstrip("/"), recursive=recursive)
    if kind is None:
        assert place is None
    else:
        assert place is not None
        assert place.kind == kind


def test_folders_of_the_config_are_protected_wherever_they_lie(tmp_path: Path) -> None:
    base = make_box(tmp_path / "base")
    hub, disk = tmp_path / "hub", tmp_path / "disk"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "blobs" / "123").write_bytes(b"weights")
    (hub / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/123")
    settings = json.loads((base / "config.json").read_text())
    settings.update(backup_dir=str(disk), base_model=str(hub / "snapshots" / "abc"))
    (base / "config.json").write_text(json.dumps(settings))
    protected = Protected(str(base))
    for path in (disk / "b001", hub / "snapshots", hub / "blobs", hub / "blobs" / "123", base / "base_models" / "tiny"):
        assert protected.find(str(path), recursive=True) is not None, path
    assert protected.find(str(tmp_path / "other"), recursive=True) is None


def test_a_base_dir_behind_a_symlink_is_the_same(tmp_path: Path) -> None:
    base = make_box(tmp_path / "disk" / "base")
    (tmp_path / "link").symlink_to(base)
    assert Protected(str(tmp_path / "link")).find(str(base / "current_model"), recursive=True) is not None


def test_an_unreadable_config_leaves_the_rest_protected(tmp_path: Path) -> None:
    base = make_box(tmp_path / "base")
    (base / "config.json").write_text("{")
    (base / ".config_lock.json").write_text("[]")
    assert Protected(str(base)).find(str(base / "models"), recursive=True) is not None
