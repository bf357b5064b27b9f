"""What goes wrong on a real box: each with its exit code and hint, the model untouched, nothing lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails.paths import CODE_DIR
from guardrails.state_io import dump_json
from tests.box import Box, make_rows

CHAT = dump_json(make_rows(1, 1)[0], indent=None) + "\n"


@pytest.fixture
def own_model(box: Box, tiny_model: Path) -> Path:
    """A base model that the test may change."""
    folder = box.paths.base / "base_models" / "own"
    shutil.copytree(tiny_model, folder)
    box.configure(base_model="base_models/own")
    return folder


def fails(box: Box, code: int, *words: str) -> None:
    """The daemon refuses with ``code``, naming all ``words``, with a hint, and starts no worker."""
    runs = len(list(box.paths.runs.iterdir()))
    result = box.once(code=code)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0], errors
    assert any(line.startswith("hint: ") and len(line) > 10 for line in result.stderr.splitlines())
    assert len(list(box.paths.runs.iterdir())) == runs


def corrupt(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_missing_config_is_refused(box: Box) -> None:
    box.drop("one.jsonl")
    box.paths.config.unlink()
    fails(box, 10, "config.json is missing")


def test_a_torn_config_is_refused_and_left_as_it_is(box: Box) -> None:
    box.paths.config.write_text('{"model_name": "tiny",')
    fails(box, 10, "not valid JSON")
    assert box.paths.config.read_text() == '{"model_name": "tiny",'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learnin_rate": 1}, ['unknown key "learnin_rate"']),
        ({"batch_size": 0}, ["batch_size"]),
        ({"batch_size": "4"}, ["batch_size", '"4"']),
        ({"base_model": "/no/such/model"}, ["/no/such/model"]),
        ({"base_model": None}, ["base_model is null"]),
        ({"use_qlora": True}, ["use_qlora"]),
        ({"validation_file": "missing.jsonl"}, ["missing.jsonl"]),
    ],
)
def test_a_bad_setting_is_refused_by_name(box: Box, change: dict[str, object], words: list[str]) -> None:
    settings = json.loads(box.paths.config.read_text())
    box.paths.config.write_text(dump_json({**settings, **change}))
    fails(box, 10, *words)


def test_an_unknown_key_names_the_nearest_right_one(box: Box) -> None:
    settings = json.loads(box.paths.config.read_text())
    box.paths.config.write_text(dump_json({**settings, "learnin_rate": 1}))
    assert 'did you mean "learning_rate"?' in box.once(code=10).stderr


@pytest.mark.training
def test_locked_values_and_base_model_are_held(box: Box, own_model: Path) -> None:
    box.drop("one.jsonl")
    box.once()
    weights, config = box.weights(), box.paths.config.read_text()
    settings = json.loads(config)
    for key, value in (("max_length", 64), ("model_name", "other"), ("base_model", str(own_model))):
        box.paths.config.write_text(dump_json({**settings, key: value}))
        fails(box, 11, key, json.dumps(settings[key]), json.dumps(value))
        box.run("training_controller.py", "config", "approve", code=11)
        box.run("training_controller.py", "config", "set", key, json.dumps(settings[key]))
        box.once()
    # Another model of the same size under the same name, with the old times put back.
    path = own_model / "model.safetensors"
    times, content = path.stat(), path.read_bytes()
    corrupt(path, content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    fails(box, 11, "base model", "model.safetensors has other bytes")
    corrupt(path, content)
    box.once()
    shutil.move(own_model, own_model.with_name("moved"))
    fails(box, 10, "base_models/own")
    assert box.weights() == weights


@pytest.mark.training
def test_adapter_settings_that_would_be_ignored_are_refused(box: Box) -> None:
    box.drop("one.jsonl")
    box.once()
    box.configure(base_model=box.settings["base_model"], lora_r=8)
    fails(box, 10, "lora_r", "8", "4")


@pytest.mark.training
def test_damaged_state_is_refused_and_left_untouched(box: Box) -> None:
    box.drop("one.jsonl")
    box.once()
    for path in (box.paths.head, box.paths.config_lock, box.paths.version("v001") / "metadata.json"):
        content = path.read_bytes()
        for bad in (b"", content[: len(content) // 2], b'{"schema_version": 99}', b"[]"):
            corrupt(path, bad)
            box.drop("two.jsonl", seed=2)
            fails(box, 30, path.name)
            assert path.read_bytes() == bad
        corrupt(path, content)
    box.once()
    assert box.head() == "v002"


@pytest.mark.training
def test_a_torn_adapter_is_refused_and_rolled_back(box: Box) -> None:
    box.drop("one.jsonl")
    box.once()
    weights = box.weights()
    corrupt(box.paths.current_model / "adapter_model.safetensors", weights[:1000])
    fails(box, 31, "adapter_model.safetensors is damaged")
    box.run("model_versioner.py", "rollback")
    assert box.weights() == weights


def bad_file(box: Box, name: str, content: bytes) -> str:
    """What the daemon says of a data file that cannot be trained."""
    (box.paths.inbox / name).write_bytes(content)
    result = box.once(code=40)
    assert name in result.stderr
    assert box.names("failed") == [name]
    assert box.versions() == []
    assert not box.paths.current_model.exists()
    record = json.loads((box.paths.queue_records / f"{name}.json").read_text())
    box.assert_at_rest()
    return str(record["reason"])


@pytest.mark.training
def test_rows_that_cannot_be_trained_fail_the_file_with_line_and_reason(box: Box) -> None:
    no_answer = '{"messages": [{"role": "user", "content": "hello"}]}\n'
    too_long = (
        dump_json(
            {"messages": [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "late"}]},
            indent=None,
        )
        + "\n"
    )
    content = (
        (CHAT * 3 + no_answer + "not json\n" + too_long).encode()
        + b'{"text": "\xff"}\n'
        + b'{"text": "'
        + b"a" * (100 << 20)
        + b'"}\n'
    )
    reason = bad_file(box, "bad.jsonl", content)
    assert "line 4" in reason
    report = json.loads(next(box.paths.runs.glob("*/rows.json")).read_text())
    assert [row["line"] for row in report["bad_rows"]] == [4, 5, 6, 7, 8]
    # The same file passes when that many bad rows are allowed, and each is counted.
    box.configure(base_model=box.settings["base_model"], max_bad_rows=5)
    box.run("training_queue.py", "retry", "bad.jsonl")
    box.once()
    assert (box.versions()[0]["data"][0]["bad"], box.versions()[0]["data"][0]["trained"]) == (5, 3)


@pytest.mark.training
def test_a_loss_that_is_no_number_leaves_the_model_alone(box: Box, own_model: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = own_model / "model.safetensors"
    tensors = load_file(path)
    next(tensor for name, tensor in tensors.items() if "norm" in name)[0] = torch.nan
    path.chmod(0o644)
    save_file(tensors, path, metadata={"format": "pt"})
    assert "non_finite_loss" in bad_file(box, "nan.jsonl", CHAT.encode() * 12)


@pytest.mark.faults
@pytest.mark.training
def test_a_file_deleted_under_way_loses_nothing_else(box: Box) -> None:
    box.configure(base_model=box.settings["base_model"], save_minutes=0)
    box.drop("gone.jsonl", rows=200, seed=1)
    box.drop("next.jsonl", rows=24, seed=2)
    box.start_daemon("--once")
    box.wait_for_phase("training", run_step=2)
    (box.paths.queue_folder("processing") / "gone.jsonl").unlink()
    box.wait_for_end()
    assert [version["data"][0]["name"] for version in box.versions()] == ["gone.jsonl", "next.jsonl"]
    # Deleted while its run stands still, the run is nobody's any more.
    box.drop("gone too.jsonl", rows=200, seed=3)
    box.start_daemon()
    box.wait_for_phase("training", run_step=2)
    box.run("training_controller.py", "stop", "--wait", "30")
    box.wait_for_end()
    (box.paths.queue_folder("processing") / "gone too.jsonl").unlink()
    box.once()
    assert box.head() == "v002"
    assert not list(box.paths.runs.glob("*/ckpt"))
    box.assert_at_rest()


@pytest.mark.training
def test_a_file_still_growing_waits_until_it_is_whole(box: Box) -> None:
    box.start_daemon()
    path = box.paths.inbox / "growing.jsonl"
    with path.open("w") as file:
        for row in make_rows(24, 1):
            file.write(dump_json(row, indent=None) + "\n")
            file.flush()
            box.wait(lambda: True, "nothing")
        before = box.paths.daemon_status.stat().st_mtime_ns
        box.wait(lambda: box.paths.daemon_status.stat().st_mtime_ns >= before, "a look at the inbox")
        assert path.exists()
    box.wait(lambda: box.head() == "v001", "v001")
    assert box.versions()[0]["data"][0]["rows"] == 24
    box.run("training_controller.py", "stop", "--wait", "30")
    box.wait_for_end()


@pytest.mark.faults
@pytest.mark.training
def test_a_hung_worker_is_killed_and_the_file_tried_again(box: Box) -> None:
    box.configure(base_model=box.settings["base_model"], save_minutes=0)
    box.drop("one.jsonl", rows=200)
    code = (
        "import sys; from pathlib import Path; import guardrails.daemon as d; from guardrails.paths import Paths;"
        f"d.HANG_SECONDS = 12.0; d.Daemon(Paths(Path({str(box.paths.base)!r})), once=True).run()"
    )
    with (box.paths.base / "daemon.out").open("ab") as output:
        box.daemon = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=CODE_DIR,
            env=box.environment(),
            stdout=output,
            stderr=output,
        )
    box.wait_for_phase("training", run_step=2)
    os.kill(box.workers()[0], signal.SIGSTOP)
    box.wait_for_end()
    assert "hang: no sign of life" in box.output()
    assert box.head() == "v001"
    box.assert_at_rest()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.training
def test_a_full_disk_holds_the_run_which_goes_on_when_there_is_room(small_disk: Path, tiny_model: Path) -> None:
    box = Box(small_disk / "base", tiny_model, save_minutes=0)
    try:
        box.drop("good.jsonl", rows=24, seed=1)
        box.once()
        weights = box.weights()
        filler = small_disk / "filler"
        box.drop("one.jsonl", rows=200, seed=2)
        box.start_daemon("--once")
        box.wait_for_phase("training", run_step=2)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        box.wait_for_end(code=33)
        assert box.weights() == weights
        assert box.names("processing") == ["one.jsonl"]
        assert "disk" in box.output()
        document = box.json("state_tracker.py")
        assert document["verdict"] == "critical"
        # Before a run begins, too.
        filler.unlink()
        with filler.open("wb") as file:
            file.write(b"\0" * (shutil.disk_usage(small_disk).free - (16 << 20)))
        fails(box, 33, "free")
        filler.unlink()
        box.once()
        assert box.head() == "v002"
        box.assert_at_rest()
    finally:
        box.close()
