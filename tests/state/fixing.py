"""What a finding says that helps, run as a person pastes it: its fix command, and what its explanation names."""

import json
import os
import re
import subprocess
from pathlib import Path

from guardrails.config import load_config
from guardrails.manifest import make_manifest
from guardrails.paths import CODE_DIR, Paths
from guardrails.queue_records import Record
from guardrails.report.explanations import find_explanation
from guardrails.runs import run_of
from guardrails.state_io import read_json, write_json
from guardrails.store.change import say_nothing
from guardrails.store.live_model import finish_published_run, publish_run
from tests.state.building import Json
from tests.state.verifiable import MODULE, WIDTH, floats, write_safetensors
from tests.store import WEIGHTS, make_run
from tests.warm import Warm


class Patient:
    """A base dir whose findings are read from ``state_tracker.py --json`` and fixed in a shell."""

    def __init__(self, paths: Paths, warm: Warm) -> None:
        self.paths = paths
        self.warm = warm
        # A fix command names its base dir itself, where that is not the toolkit's folder.
        self.environment = {name: value for name, value in os.environ.items() if name != "TRAINING_BASE_DIR"}

    def report(self, *options: str) -> dict[str, Json]:
        """The findings of a fresh report by id; each is as it is explained."""
        done = self.warm.run(self.paths, "state_tracker.py", "--json", *options)
        assert done.code == 0, done
        found: dict[str, Json] = {detail["id"]: detail for detail in json.loads(done.stdout)["warning_details"]}
        for identifier, detail in found.items():
            entry = find_explanation(identifier)
            assert (entry.category or detail["category"]) == detail["category"], detail
            assert detail["severity"] in entry.severities, detail
        return found

    def need(self, identifier: str, *options: str) -> Json:
        """The finding, which stands; its hint is a command."""
        found = self.report(*options)
        assert identifier in found, list(found)
        return found[identifier]

    def assert_gone(self, identifier: str, *options: str) -> None:
        found = self.report(*options)
        assert identifier not in found, found[identifier]

    def shell(self, line: str, code: int = 0, folder: Path = CODE_DIR, **environment: str) -> str:
        """What ``sh -c`` prints for a line, in the toolkit's folder; it ends with this exit code."""
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (line, done)
        assert "Traceback" not in done.stderr, (line, done)
        return done.stdout + done.stderr

    def explain(self, identifier: str) -> list[str]:
        """The commands that the explanation of a finding names, in their order."""
        done = self.warm.run(self.paths, "state_tracker.py", "--explain", identifier, "--json")
        assert done.code == 0, done
        return re.findall(r"`([^`]+)`", json.loads(done.stdout)["remedy"])

    def carry_out(self, command: str, code: int = 0) -> str:
        """A command of an explanation; what is no script of the toolkit is meant for the base dir."""
        is_script = re.match(r"python3 (\w+\.py)\b", command)
        folder = CODE_DIR if is_script else self.paths.base
        return self.shell(command, code, folder, TRAINING_BASE_DIR=str(self.paths.base))


def train(paths: Paths, number: int) -> str:
    """Publish a run; its version's id."""
    record = complete_run(paths, number)
    version = publish_run(paths, record, say_nothing)
    assert version is not None
    finish_published_run(paths, record, version)
    return str(version["id"])


def complete_run(paths: Paths, number: int) -> Record:
    """The data file of a run that is complete but for its publishing, with an adapter of the configured shape."""
    config, lock = load_config(paths), read_json(paths.config_lock) or {}
    record = make_run(paths, number, config=config.model_dump(), base_model_files=lock["base_model_fingerprint"])
    output = paths.run(run_of(record)) / "output"
    adapter: Json = {"peft_type": "LORA", "r": config.lora_r, "lora_alpha": config.lora_alpha}
    adapter["target_modules"] = config.lora_target_modules
    (output / "adapter_config.json").write_text(json.dumps(adapter))
    numbers = floats(b"%d" % number, config.lora_r * WIDTH)
    shapes = {"A": [config.lora_r, WIDTH], "B": [WIDTH, config.lora_r]}
    tensors = {f"base_model.model.{MODULE}.lora_{side}.weight": ("F32", shapes[side], numbers) for side in shapes}
    write_safetensors(output / WEIGHTS, tensors)
    outcome = output.with_name("outcome.json")
    write_json(outcome, {**(read_json(outcome) or {}), "files": make_manifest(output)})
    return record
