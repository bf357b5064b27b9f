"""The world of the corpus: a base dir, a home and a scratch folder, and what the guard says to a case in it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from guardrails.guard.interpreters import SCRIPTS
from guardrails.guard.verdicts import judge_event
from guardrails.paths import CODE_DIR
from tests.guard.box import make_box

CORPUS = Path(__file__).parent / "corpus.jsonl"
Case = dict[str, Any]


class Verdict(NamedTuple):
    """What was decided, and why: ``stop`` for a denial as for a question to a person."""

    answer: str
    reason: str
    # Why the guard could not look through the call, if so.
    failure: str = ""


class World:
    """Three folders that the placeholders of a case stand for."""

    def __init__(self, root: Path) -> None:
        self.base = _furnish(make_box(root / "training"))
        self.home = root / "home"
        self.scratch = root / "scratch"
        self.home.mkdir()
        self.scratch.mkdir()
        self.names = {"{BASE}": str(self.base), "{HOME}": str(self.home), "{TMP}": str(self.scratch)}

    def fill(self, value: Any) -> Any:
        """A case with its placeholders replaced."""
        if isinstance(value, str):
            for name, path in self.names.items():
                value = value.replace(name, path)
            return value
        if isinstance(value, list):
            return [self.fill(one) for one in value]
        if isinstance(value, dict):
            return {self.fill(key): self.fill(one) for key, one in value.items()}
        return value

    def judge(self, case: Case) -> Verdict:
        """What the guard says to a case."""
        case = self.fill(case)
        cwd = Path(case.get("cwd", self.base))
        with self.staged(case, cwd), patch.dict(os.environ, HOME=str(self.home)):
            return self.ask(case, cwd)

    def ask(self, case: Case, cwd: Path) -> Verdict:
        """What the guard says to a filled case, without its files."""
        call = case.get("tool") or {"tool_name": "Bash", "tool_input": {"command": case["command"]}}
        verdict = judge_event({**call, "hook_event_name": "PreToolUse", "cwd": str(cwd)}, str(self.base))
        return Verdict("pass" if verdict.action == "pass" else "stop", verdict.reason, verdict.failure)

    @contextmanager
    def staged(self, case: Case, cwd: Path) -> Iterator[None]:
        """The files and symlinks of a case, for as long as it is judged."""
        made: list[tuple[Path, bytes | None]] = []
        try:
            for name, content in case.get("files", {}).items():
                path = cwd / name
                path.parent.mkdir(parents=True, exist_ok=True)
                made.append((path, path.read_bytes() if path.is_file() else None))
                path.write_text(content)
                path.chmod(0o755)
            for name, target in case.get("links", {}).items():
                (cwd / name).parent.mkdir(parents=True, exist_ok=True)
                (cwd / name).symlink_to(target)
                made.append((cwd / name, None))
            yield
        finally:
            for path, before in reversed(made):
                if before is None:
                    path.unlink()
                else:
                    path.write_bytes(before)


def load_corpus() -> list[Case]:
    return [json.loads(line) for line in CORPUS.read_text().splitlines()]


SETTINGS = {
    "model_name": "model",
    "base_model": "base_models/tiny",
    "max_length": 512,
    "batch_size": 4,
    "gradient_accumulation": 4,
    "learning_rate": 0.0002,
    "warmup_steps": 10,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "epochs": 1,
    "backup": "after_each",
    "backup_dir": None,
}
FOLDERS = ("data", "src", "tests", "docs", "guardrails/guard")
FILES = ("notes.md", "src/main.py", "guardrails/agent_hook.py", "guardrails/guard/judge.py")
SHIPPED = ("Makefile", "CLAUDE.md", ".claude", ".codex", ".gemini", ".cursor")


def _furnish(base: Path) -> Path:
    """Add to a box what the cases of the corpus name: a config with more settings, folders, scripts and wiring."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name in (*FILES, *SCRIPTS):
        (base / name).write_text("#!/usr/bin/env python3\n")
    for name in SHIPPED:
        if (CODE_DIR / name).is_dir():
            shutil.copytree(CODE_DIR / name, base / name, dirs_exist_ok=True)
        else:
            shutil.copy(CODE_DIR / name, base / name)
    config = base / "config.json"
    config.write_text(json.dumps({**SETTINGS, "base_model": None}, indent=2) + "\n")
    for arguments in (
        ("add", "-A"),
        ("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "all"),
    ):
        subprocess.run(["git", "-C", str(base), *arguments], check=True)
    config.write_text(json.dumps(SETTINGS, indent=2) + "\n")
    lock = json.loads((base / ".config_lock.json").read_text())
    lock["locked"] = {key: SETTINGS[key] for key in lock["locked"]}
    (base / ".config_lock.json").write_text(json.dumps(lock))
    return base
