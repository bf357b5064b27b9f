"""Checkpoints of one run: sealed by a manifest that is written last, and never used or thrown away unseen."""

import os
import re
import shutil
from pathlib import Path

from guardrails.errors import DamagedStateError
from guardrails.manifest import find_damage, list_files, make_manifest
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, write_json

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d+)")
KEPT = 2


class Checkpoints:
    """``ckpt/`` of a run. Only the worker that holds the run's lock may use it."""

    def __init__(self, run_dir: Path, job_blake3: str, items_blake3: str) -> None:
        self.folder = run_dir / "ckpt"
        # What the run was asked to do, and the tokens that came of it: both decide what a checkpoint means.
        self.origin = {"job_blake3": job_blake3, "items_blake3": items_blake3}
        # Oldest first: verified by this process, or written by it.
        self.good: list[Path] = []

    def find_newest(self) -> Path | None:
        """The newest checkpoint of this very job and tokens whose every byte is as saved; None to start afresh.

        Newer ones that are damaged or of another job are removed, but only once a good one was found.
        """
        refused: list[Path] = []
        for candidate in sorted(self._list(), key=step_of, reverse=True):
            problems = self._find_problems(candidate)
            if not problems:
                self.good = [candidate]
                for damaged in refused:
                    shutil.rmtree(damaged)
                return candidate
            print(f"checkpoint {candidate.name} is not used: {problems[0]}", flush=True)
            refused.append(candidate)
        return None

    def seal(self, staged: Path, step: int) -> Path:
        """Make a complete folder the checkpoint of ``step``, durably and in one step; then drop old ones."""
        files = make_manifest(staged)
        fsync_tree(staged)
        write_json(
            staged / MANIFEST,
            {"schema_version": SCHEMA_VERSION, "step": step, **self.origin, "files": files},
        )
        self.folder.mkdir(exist_ok=True)
        target = self.folder / f"step-{step}"
        if target.exists():
            # Refused by find_newest, or this step would not have been trained again.
            shutil.rmtree(target)
        staged.rename(target)
        fsync_folder(self.folder)
        self.good.append(target)
        self._rotate()
        return target

    def _rotate(self) -> None:
        # After the rename, so that the last good one never goes before its successor is there.
        self.good = self.good[-KEPT:]
        for old in self._list():
            if old not in self.good:
                shutil.rmtree(old)

    def _list(self) -> list[Path]:
        try:
            return [path for path in self.folder.iterdir() if NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []

    def _find_problems(self, checkpoint: Path) -> list[str]:
        try:
            manifest = read_json(checkpoint / MANIFEST)
        except DamagedStateError as error:
            return [error.message]
        if manifest is None:
            return ["it has no manifest"]
        for key, of in (("job_blake3", "another job.json"), ("items_blake3", "data that is tokenized differently now")):
            if manifest.get(key) != self.origin[key]:
                return [f"it is of {of}"]
        if manifest.get("step") != step_of(checkpoint):
            return [f"its manifest is of step {manifest.get('step')}"]
        problems = find_damage(checkpoint, manifest["files"])
        return [problem for problem in problems if problem != f"{checkpoint / MANIFEST} is not part of it"]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def fsync_tree(root: Path) -> None:
    """Make every file and folder below ``root``, and ``root`` itself, survive a power cut."""
    folders = {root}
    for name in list_files(root):
        path = root / name
        folders.add(path.parent)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for folder in folders:
        fsync_folder(folder)
