"""GPUs are asked of nvidia-smi, and anything it may answer is survived."""

from pathlib import Path

import pytest

from guardrails import gpu


def fake_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_all_gpus_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "echo 'NVIDIA H100, PCIe, 1024, 81920, 50'; echo 'NVIDIA H100, PCIe, 2048, 81920, 100'"
    fake_nvidia_smi(tmp_path, answer, monkeypatch)
    assert gpu.read_gpu() == {
        "name": "NVIDIA H100, PCIe",
        "count": 2,
        "memory_used_gb": 3.0,
        "memory_total_gb": 160.0,
        "utilization_percent": 75,
    }


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "echo; echo", "kill -9 $$"])
def test_no_useful_answer_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    fake_nvidia_smi(tmp_path, script, monkeypatch)
    assert gpu.read_gpu() is None


def test_values_that_a_driver_does_not_tell_count_as_nothing() -> None:
    found = gpu.parse_gpus("GB10, [N/A], [N/A], 3\n")
    assert found is not None
    assert (found["memory_total_gb"], found["utilization_percent"]) == (0.0, 3)


def test_without_nvidia_smi_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.read_gpu() is None


def test_a_hanging_driver_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TIMEOUT_SECONDS", 0.2)
    fake_nvidia_smi(tmp_path, "exec sleep 60", monkeypatch)
    assert gpu.read_gpu() is None
