"""Consolidation: an adapter becomes part of the base model, all or nothing, and a rollback takes it out again."""

import functools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save

from guardrails.config import load_config
from guardrails.config_lock import fingerprint_base_model, make_lock, read_approvals
from guardrails.errors import BusyError, ConfigLockError, DiskSpaceError, IntegrityError, OperationError
from guardrails.locks import FileLock, read_holder
from guardrails.manifest import find_damage, make_manifest
from guardrails.paths import CODE_DIR, Paths
from guardrails.preflight import check_before_training
from guardrails.state_io import read_json, write_json
from guardrails.store import consolidation
from guardrails.store.backups import backup_of_version, list_backup_ids, read_backup, verify_backup
from guardrails.store.change import CONSOLIDATION_LOCK, open_store, say_nothing
from guardrails.store.consolidation import consolidate, plan_consolidation
from guardrails.store.head import read_head
from guardrails.store.live_model import finish_published_run, publish_run, restore, rollback
from guardrails.store.version_records import list_version_ids, read_metadata
from guardrails.training.merge import copy_rest, refuse_quantized
from tests.box import Box
from tests.processes import count_calls, run_killed, type_at_terminal, wait_until
from tests.store import make_run, make_store, safetensors

RANK, ALPHA, MODULES = 4, 32, ["q_proj", "v_proj"]
ADAPTER = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": MODULES,
    "base_model_name_or_path": None,
    "inference_mode": True,
}
# In the place of the merge process, without torch. It renames once, as a killed one must not be mistaken for the other.
STUB = """
import json, os, sys, time
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
base = Path(job["base_model"]).parent
Path(job["model"]).mkdir()
Path(job["model"], "config.json").write_text('{"merged": true}')
EXTRA
beside = Path(job["result"] + ".new")
beside.write_text(json.dumps({"logits": {"max_difference": 0.0}, "libraries": {"torch": "0"}, "problem": None}))
beside.rename(job["result"])
"""
COMMAND = """
import sys
from pathlib import Path
from guardrails.store import consolidation
from guardrails.store.change import say_nothing
from guardrails.paths import Paths
paths = Paths(Path(sys.argv[1]))
consolidation.MERGE = (sys.executable, sys.argv[2])
consolidation.consolidate(paths, consolidation.plan_consolidation(paths, say_nothing), "test", say_nothing)
"""
# The merge itself, but what it saved is damaged before it is read back.
TAMPERED = """
import os, sys
from pathlib import Path
from safetensors.numpy import load_file, save_file
from guardrails.training import merge
copy_rest = merge.copy_rest
def tamper(base_model, target):
    copy_rest(base_model, target)
    weights = load_file(target / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.self_attn.v_proj.weight"))
    weights[name] = weights[name] * 1.01
    save_file(weights, target / "model.safetensors", {"format": "pt"})
merge.copy_rest = tamper
os._exit(merge.main())
"""
Use = Callable[[str], None]


@pytest.fixture
def use_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes a source text the merge process."""

    def use(source: str) -> None:
        script = tmp_path / "merge.py"
        script.write_text(source)
        monkeypatch.setattr(consolidation, "MERGE", (sys.executable, str(script)))
        monkeypatch.setenv("PYTHONPATH", str(CODE_DIR))

    return use


@pytest.fixture
def paths(tmp_path: Path, use_merge: Use) -> Paths:
    """Two versions on a base model of one file, and a merge that takes a moment."""
    use_merge(STUB.replace("EXTRA", ""))
    return make_locked_store(tmp_path / "base")


def make_locked_store(base: Path) -> Paths:
    paths = make_store(base, versions=0)
    (base / "base").mkdir()
    (base / "base" / "config.json").write_text('{"dtype": "float32"}')
    settings = json.loads(paths.config.read_text())
    paths.config.write_text(json.dumps({**settings, "lora_r": RANK, "lora_target_modules": MODULES}))
    for number in (1, 2):
        publish_adapter(paths, number, safetensors(bytes([number])))
    return paths


def publish_adapter(paths: Paths, number: int, weights: bytes) -> None:
    """Publish a run on the configured base model with this adapter, and lock what it was trained on."""
    config = load_config(paths)
    fingerprint = fingerprint_base_model(paths, paths.resolve(config.base_model or ""))
    record = make_run(paths, number, base_model_files=fingerprint, config=config.model_dump())
    folder = paths.run(record.run_id or "")
    (folder / "output" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (folder / "output" / "adapter_model.safetensors").write_bytes(weights)
    outcome = read_json(folder / "outcome.json") or {}
    write_json(folder / "outcome.json", {**outcome, "files": make_manifest(folder / "output")})
    version = publish_run(paths, record, say_nothing)
    assert version is not None
    finish_published_run(paths, record, version)
    write_json(paths.config_lock, make_lock(config, fingerprint, "test"))


def carry_out(paths: Paths) -> str:
    version = consolidate(paths, plan_consolidation(paths, say_nothing), "test", say_nothing).version
    assert version is not None
    return version


def state(paths: Paths) -> tuple[str | None, str | None, str]:
    """What changes together: the version, and the base model in config and lock."""
    lock = read_json(paths.config_lock) or {}
    return read_head(paths)["version"], load_config(paths).base_model, lock["locked"]["base_model"]


def assert_whole(paths: Paths) -> None:
    """``current_model/`` is its version on its base model, all is undamaged, and nothing is left lying."""
    check_before_training(paths)
    head, base_model, locked = state(paths)
    assert head is not None
    assert base_model == locked == read_metadata(paths, head)["base_model"]
    assert find_damage(paths.current_model, read_metadata(paths, head)["files"]) == []
    for version in list_version_ids(paths):
        metadata = read_metadata(paths, version)
        assert find_damage(paths.version(version) / "model", metadata["files"]) == []
        found = fingerprint_base_model(paths, paths.resolve(metadata["base_model"]), remember=False)
        assert found == metadata["base_model_fingerprint"]
    for backup in list_backup_ids(paths.backups):
        assert verify_backup(paths.backups, backup) == []
    folders = (paths.models, paths.versions, paths.backups, paths.consolidated_models)
    assert not [name for folder in folders for name in os.listdir(folder) if name.startswith(".stage-")]
    assert not paths.intent.exists()


def test_a_consolidation_moves_model_config_and_lock_together_and_a_rollback_moves_them_back(paths: Paths) -> None:
    before = (paths.config.read_text(), read_json(paths.config_lock))
    assert carry_out(paths) == "v003"
    merged = "consolidated_models/model-v002"
    assert state(paths) == ("v003", merged, merged)
    assert_whole(paths)
    metadata, parent = read_metadata(paths, "v003"), read_metadata(paths, "v002")
    assert (metadata["kind"], metadata["parent"], metadata["data"]) == ("consolidation", "v002", [])
    assert (metadata["training_steps"], metadata["run_steps"]) == (parent["training_steps"], 0)
    assert metadata["total_evals"] == parent["total_evals"]
    assert metadata["config"] == load_config(paths).model_dump()
    assert [path.name for path in paths.current_model.iterdir()] == ["consolidation.json"]
    said = json.loads((paths.current_model / "consolidation.json").read_text())
    assert (said["version"], said["base_model"], said["merged_base_model"]) == ("v002", "base", merged)
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in (paths.base / merged).iterdir())
    assert read_backup(paths.backups, "b001")["type"] == "pre_consolidation"
    assert read_backup(paths.backups, "b001")["version"] == "v002"
    assert backup_of_version(paths.backups, metadata) == "b002"
    with pytest.raises(OperationError, match="no adapter"):
        plan_consolidation(paths, say_nothing)

    assert rollback(paths, say_nothing).version == "v002"
    assert state(paths) == ("v002", "base", "base")
    assert paths.config.read_text() == before[0]
    assert (read_json(paths.config_lock) or {})["locked"] == (before[1] or {})["locked"]
    assert_whole(paths)
    restore(paths, "v003", say_nothing)
    assert state(paths) == ("v003", merged, merged)
    rollback(paths, say_nothing)
    assert carry_out(paths) == "v004"
    assert state(paths)[1] == f"{merged}-2"
    assert_whole(paths)
    changes = [(r["old"], r["new"], r["how"]) for r in read_approvals(paths)]
    assert changes == [
        ("base", merged, "consolidation to v003"),
        (merged, "base", "rollback to v002"),
        ("base", merged, "restore to v003"),
        (merged, "base", "rollback to v002"),
        ("base", f"{merged}-2", "consolidation to v004"),
    ]


def test_without_a_lock_file_the_lock_is_made_anew_and_follows(paths: Paths) -> None:
    paths.config_lock.unlink()
    carry_out(paths)
    assert json.loads(paths.config_lock.read_text())["schema_version"] == 1
    assert_whole(paths)
    paths.config_lock.unlink()
    rollback(paths, say_nothing)
    assert state(paths) == ("v002", "base", "base")
    assert_whole(paths)


def test_a_model_changed_by_hand_becomes_a_version_before_it_is_merged(paths: Paths) -> None:
    (paths.current_model / "notes.txt").write_text("by hand")
    assert carry_out(paths) == "v004"
    assert [read_metadata(paths, version)["kind"] for version in ("v003", "v004")] == ["snapshot", "consolidation"]
    assert state(paths)[1] == "consolidated_models/model-v003"
    rollback(paths, say_nothing)
    assert (paths.current_model / "notes.txt").read_text() == "by hand"
    assert_whole(paths)


def test_a_name_that_is_no_file_name_is_made_one(paths: Paths) -> None:
    for name, folder in (("../a b/c", "a-b-c-v002"), ("модель", "модель-v002"), ("/", "v002"), ("x" * 300, None)):
        merged = consolidation._free_name(paths, f"{name}-v002")
        assert merged.parent == paths.consolidated_models
        assert merged.name == (folder or "x" * 195 + "-v002")


def assert_refused(paths: Paths, kind: type[Exception], words: str) -> None:
    before = state(paths)
    with pytest.raises(kind, match=words):
        carry_out(paths)
    assert state(paths) == before
    assert os.listdir(paths.consolidated_models) == []


def test_what_cannot_be_consolidated_is_refused_before_anything_is_made(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = read_json(paths.config_lock) or {}
    with FileLock(paths.locks / CONSOLIDATION_LOCK).hold("another"):
        assert_refused(paths, BusyError, "another")
    with monkeypatch.context() as patch:
        patch.setattr(consolidation, "free_bytes", lambda _: 1 << 20)
        assert_refused(paths, DiskSpaceError, "1 MiB are free")
    with monkeypatch.context() as patch:
        patch.setattr(consolidation, "LIBRARIES", ("torch", "no_such_library"))
        assert_refused(paths, OperationError, "no_such_library")
    (paths.base / "base" / "more.json").write_text("{}")
    assert_refused(paths, ConfigLockError, r"more\.json is new")
    config = load_config(paths)
    write_json(paths.config_lock, make_lock(config, fingerprint_base_model(paths, paths.base / "base"), "a person"))
    assert_refused(paths, OperationError, "v002 is not known to be trained on base")
    (paths.base / "base" / "more.json").unlink()
    write_json(paths.config_lock, lock)
    record = make_run(paths, 3)
    (paths.run(record.run_id or "") / "outcome.json").unlink()
    assert_refused(paths, BusyError, r"the run on 3\.jsonl is not finished")
    assert list_backup_ids(paths.backups) == []
    refuse_quantized(paths.base / "base")
    (paths.base / "base" / "config.json").write_text('{"quantization_config": {"load_in_4bit": true}}')
    with pytest.raises(OperationError, match="is quantized"):
        refuse_quantized(paths.base / "base")


def test_a_plan_holds_only_while_nothing_changes(paths: Paths) -> None:
    plan = plan_consolidation(paths, say_nothing)
    (paths.current_model / "notes.txt").write_text("by hand")
    with pytest.raises(OperationError, match="was changed meanwhile"):
        consolidate(paths, plan, "test", say_nothing)
    assert (list_version_ids(paths), list_backup_ids(paths.backups)) == (["v001", "v002"], [])


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ("(base / 'current_model' / 'notes').write_text('x')", OperationError, "was changed meanwhile"),
        ("(base / 'base' / 'more.json').write_text('{}')", ConfigLockError, r"more\.json is new"),
        ("os.kill(os.getpid(), 9)", OperationError, "ended with -9"),
        ("sys.exit(1)", OperationError, "ended with 1"),
    ],
)
def test_a_merge_that_fails_or_that_the_world_overtook_changes_nothing(
    paths: Paths, use_merge: Use, change: str, kind: type[Exception], words: str
) -> None:
    use_merge(STUB.replace("EXTRA", change))
    assert_refused(paths, kind, words)
    assert list_version_ids(paths) == ["v001", "v002"]


def test_files_besides_weights_come_along(tmp_path: Path) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    names = ["tokenizer.json", "chat_template.jinja", "generation_config.json", "templates/tools.jinja"]
    for name in [*names, "config.json", "model.safetensors", "model.safetensors.index.json", "README.md", ".git/x"]:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    copy_rest(base, merged)
    assert {str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file()} == set(names)


def test_the_stage_of_a_killed_consolidation_goes_when_its_merge_is_gone_too(paths: Paths, use_merge: Use) -> None:
    use_merge(STUB.replace("EXTRA", "time.sleep(60)"))
    stage = paths.consolidated_models / ".stage-model-v002"
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(paths.base), consolidation.MERGE[1]])
    wait_until((stage / "model").exists)
    (merge,) = psutil.Process(process.pid).children()
    assert (read_json(stage / "job.json") or {})["parent"] == process.pid
    process.kill()
    process.wait()
    with open_store(paths, "test"):
        assert stage.exists()
    merge.kill()
    wait_until(functools.partial(is_free, paths))
    with open_store(paths, "test"):
        assert not stage.exists()
    assert_whole(paths)


def is_free(paths: Paths) -> bool:
    return read_holder(paths.locks / CONSOLIDATION_LOCK) is None


def kill_at(tmp_path: Path, chosen: list[tuple[str, int]]) -> set[str | None]:
    """Kill a consolidation at each of the calls; which versions came of it."""
    stub, seen = tmp_path / "stub.py", set()
    stub.write_text(STUB.replace("EXTRA", ""))
    for index, (call, number) in enumerate(chosen):
        paths = make_locked_store(tmp_path / str(index))
        run_killed(COMMAND, paths.base, stub, call=call, number=number)
        try:
            # Whoever was killed, both processes are gone when the lock is.
            wait_until(functools.partial(is_free, paths))
            with open_store(paths, "test"):
                pass
            merged = "consolidated_models/model-v002"
            assert state(paths) in [("v002", "base", "base"), ("v003", merged, merged)]
            assert_whole(paths)
            seen.add(state(paths)[0])
            if state(paths)[0] == "v003":
                rollback(paths, say_nothing)
                assert state(paths) == ("v002", "base", "base")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(consolidation, "MERGE", (sys.executable, str(stub)))
                carry_out(paths)
            assert_whole(paths)
        except BaseException as error:
            error.add_note(f"killed at the {number}. {call}")
            raise
    return seen


def points(tmp_path: Path, calls: tuple[str, ...]) -> list[tuple[str, int]]:
    paths, stub = make_locked_store(tmp_path / "counting"), tmp_path / "stub.py"
    stub.write_text(STUB.replace("EXTRA", ""))
    counts = count_calls(COMMAND, paths.base, stub, calls=calls, log=tmp_path / "calls")
    # One rename is the stub's.
    counts["rename"] -= 1
    return [(call, number) for call, count in counts.items() for number in range(1, count + 1)]


def test_a_kill_at_some_renames_leaves_all_or_nothing(tmp_path: Path) -> None:
    every = points(tmp_path, ("rename", "renameat2"))
    early = [point for point in every if point[0] == "renameat2"]
    late = [point for point in every if point[0] == "rename"][-8:]
    chosen = [*random.Random(0).sample(early, 2), *random.Random(0).sample(late, 2)]
    assert kill_at(tmp_path, chosen) == {"v002", "v003"}


@pytest.mark.faults
def test_a_kill_at_every_rename_leaves_all_or_nothing(tmp_path: Path) -> None:
    assert kill_at(tmp_path, points(tmp_path, ("rename", "renameat2"))) == {"v002", "v003"}


# The real merge, on a real model.


def make_weights(source: Any) -> dict[str, Any]:
    """The weights of a LoRA adapter for the tiny model, as PEFT names them."""
    outputs = {"q_proj": 64, "v_proj": 32}
    shapes = {}
    for layer, module in ((layer, module) for layer in (0, 1) for module in MODULES):
        name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
        shapes[f"{name}.lora_A.weight"] = (RANK, 64)
        shapes[f"{name}.lora_B.weight"] = (outputs[module], RANK)
    return {name: source.standard_normal(shape).astype(np.float32) / 10 for name, shape in shapes.items()}


@pytest.fixture
def trained(box: Box) -> tuple[Box, Mapping[str, Any]]:
    """A base dir with the tiny model and a version with an adapter for it, and that adapter's weights."""
    box.configure(base_model=box.settings["base_model"], lora_target_modules=MODULES, lora_r=RANK)
    weights = make_weights(np.random.default_rng(0))
    publish_adapter(box.paths, 1, save(weights))
    return box, weights


@pytest.mark.training
def test_a_person_consolidates_and_the_next_file_trains_a_fresh_adapter_on_the_new_base(
    trained: tuple[Box, Mapping[str, Any]], tiny_model: Path
) -> None:
    box, weights = trained
    command = ["consolidate", "--description", "first round"]
    before = state(box.paths)
    assert "needs a person" in box.run("model_versioner.py", *command, code=11).stderr
    terminal = [sys.executable, str(CODE_DIR / "model_versioner.py"), *command]
    assert type_at_terminal(terminal, "yes", box.environment())[0] == 11
    assert state(box.paths) == before
    code, shown = type_at_terminal(terminal, "base_model", box.environment())
    assert code == 0, shown
    merged = "consolidated_models/tiny-v001"
    assert f'old: "{tiny_model}"' in shown
    assert f'new: "{merged}"' in shown
    assert "undo: python3 model_versioner.py rollback" in shown
    assert state(box.paths) == ("v002", merged, merged)
    assert_whole(box.paths)
    old, new = (load_file(folder / "model.safetensors") for folder in (tiny_model, box.paths.base / merged))
    assert old.keys() == new.keys()
    for name, tensor in new.items():
        pair = [weights.get(f"base_model.model.{name.removesuffix('weight')}lora_{letter}.weight") for letter in "BA"]
        expected = old[name] if pair[0] is None else old[name] + ALPHA / RANK * pair[0] @ pair[1]
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, expected, atol=1e-6)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (box.paths.base / merged / name).read_bytes() == (tiny_model / name).read_bytes()
    logits = read_json(box.paths.current_model / "consolidation.json")
    assert logits is not None
    assert logits["logits"]["max_difference"] <= logits["logits"]["tolerance"] < 1e-2
    document = box.json("state_tracker.py")
    assert document["current_model"]["training_steps"] == 10
    assert [w["severity"] for w in document["warning_details"] if w["id"] == "model-no-adapter"] == ["info"]
    assert not [
        w for w in document["warning_details"] if w["id"].startswith(("backup-m", "backup-s-", "config", "base"))
    ]

    box.drop("next.jsonl", rows=24, seed=5)
    box.once()
    version = box.versions()[-1]
    assert (version["id"], version["parent"], version["kind"]) == ("v003", "v002", "training")
    assert version["training_steps"] == 10 + version["run_steps"] > 10
    assert version["total_evals"] == box.versions()[0]["total_evals"] + version["evaluations"]
    assert version["base_model"] == merged
    job = read_json(box.paths.run(version["run_id"]) / "job.json") or {}
    assert (job["parent_version"], job["parent_adapter"], job["base_model"]) == ("v002", None, merged)
    assert (job["start_steps"], job["start_evals"]) == (10, box.versions()[0]["total_evals"])
    for expected_state in (("v002", merged, merged), before):
        box.run("model_versioner.py", "rollback")
        assert state(box.paths) == expected_state
    assert_whole(box.paths)


@pytest.mark.training
def test_a_merged_model_that_answers_otherwise_is_refused(
    trained: tuple[Box, Mapping[str, Any]], use_merge: Use
) -> None:
    use_merge(TAMPERED)
    assert_refused(trained[0].paths, IntegrityError, "is not base plus adapter: logits differ by")
    assert_whole(trained[0].paths)
