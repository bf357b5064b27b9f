"""The ways to keep versions of a model, this toolkit's and its peers': how each saves, checks and goes back.

Each is run as its users run it, with the settings that make it fast: borg without encryption, dvc with hard links.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.figures import VENV_PYTHON
from guardrails.paths import CODE_DIR, Paths

WEIGHTS = "adapter_model.safetensors"
# Damaged repositories are read again and again by some; the largest tree takes a minute.
MOST_SECONDS = 300.0


class Tool:
    """Keeps saves of ``live``, a folder below ``folder``, which is the tool's own."""

    name = ""
    program = ""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder.resolve()
        self.live = self.folder / "current_model"
        self.saves = 0
        self.start()

    def start(self) -> None:
        """Make the repository, where there is one."""

    def save(self) -> None:
        self.saves += 1
        self.save_as(str(self.saves))

    def save_as(self, name: str) -> None:
        raise NotImplementedError

    def restore(self) -> None:
        """Make ``live`` the first save again.

        Raises:
            subprocess.SubprocessError: it refused, or did not come to an end.
        """
        raise NotImplementedError

    def check(self) -> bool | None:
        """Whether the tool finds its store sound; None: it has no such command."""
        return None

    def copies(self) -> list[Path]:
        """The files that hold the weights of the one save there is."""
        return [self.folder / "saves/1" / WEIGHTS]

    def call(self, *command: str | Path) -> str:
        """What the command said; raises SubprocessError if it failed."""
        home = {"HOME": str(self.folder), "RESTIC_PASSWORD": "x", "DVC_NO_ANALYTICS": "1"}
        caches = {"RESTIC_CACHE_DIR": f"{self.folder}/cache", "DVC_SITE_CACHE_DIR": f"{self.folder}/cache"}
        consent = {"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | home | caches | consent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            check=True,
        ).stdout

    def succeeds(self, *command: str | Path) -> bool:
        try:
            self.call(*command)
        except subprocess.SubprocessError:
            return False
        return True

    def largest(self, folder: str) -> list[Path]:
        return [max((path for path in (self.folder / folder).rglob("*") if path.is_file()), key=_size)]


def _size(path: Path) -> int:
    return path.stat().st_size


class Toolkit(Tool):
    """This toolkit, with the second copy that its daemon makes of each version."""

    name = "this toolkit"
    program = VENV_PYTHON

    def start(self) -> None:
        self.call(VENV_PYTHON, CODE_DIR / "training_daemon.py", "--init", "--base-dir", self.folder)
        self.paths = Paths(self.folder)

    def versioner(self, *arguments: str) -> list[str]:
        return [VENV_PYTHON, str(CODE_DIR / "model_versioner.py"), "--base-dir", str(self.folder), *arguments]

    def version(self, *arguments: str) -> str:
        return self.call(*self.versioner(*arguments))

    def save_as(self, name: str) -> None:
        self.version("create")
        version = f"models/versions/v{int(name):03d}"
        self.call(VENV_PYTHON, CODE_DIR / "backup_manager.py", "backup", version, "--base-dir", self.folder)

    def restore(self) -> None:
        self.version("restore", "v001")

    def check(self) -> bool | None:
        return self.succeeds(*self.versioner("verify", "--all"))

    def copies(self) -> list[Path]:
        return [self.paths.versions / "v001/model" / WEIGHTS, self.paths.backups / "b001/model" / WEIGHTS]


class HardLinks(Tool):
    name = "cp -al"
    program = "cp"

    def save_as(self, name: str) -> None:
        (self.folder / "saves").mkdir(exist_ok=True)
        self.call("cp", "-al", self.live, f"saves/{name}")

    def restore(self) -> None:
        shutil.rmtree(self.live)
        self.call("cp", "-a", "saves/1", self.live)


class Rsync(Tool):
    name = "rsync --link-dest"
    program = "rsync"

    def save_as(self, name: str) -> None:
        (self.folder / "saves").mkdir(exist_ok=True)
        before = self.folder / "saves" / str(int(name) - 1)
        self.call("rsync", "-a", f"--link-dest={before}", f"{self.live}/", f"saves/{name}/")

    def restore(self) -> None:
        self.call("rsync", "-a", "--delete", "saves/1/", f"{self.live}/")


class Restic(Tool):
    name = program = "restic"

    def start(self) -> None:
        self.call("restic", "-r", "repository", "init")

    def save_as(self, name: str) -> None:
        self.call("restic", "-r", "repository", "backup", "--compression", "off", "--tag", name, self.live)

    def restore(self) -> None:
        self.call("restic", "-r", "repository", "restore", "latest", "--tag", "1", "--target", "/")

    def check(self) -> bool | None:
        return self.succeeds("restic", "-r", "repository", "check", "--read-data")

    def copies(self) -> list[Path]:
        return self.largest("repository/data")


class Borg(Tool):
    name = program = "borg"

    def start(self) -> None:
        self.call("borg", "init", "--encryption", "none", "repository")

    def save_as(self, name: str) -> None:
        self.call("borg", "create", "--compression", "none", f"repository::{name}", self.live.name)

    def restore(self) -> None:
        self.call("borg", "extract", "repository::1")

    def check(self) -> bool | None:
        return self.succeeds("borg", "check", "--verify-data", "repository")

    def copies(self) -> list[Path]:
        return self.largest("repository/data")


class Dvc(Tool):
    name = program = "dvc"

    def start(self) -> None:
        self.call("dvc", "init", "--no-scm", "--quiet")
        self.call("dvc", "config", "cache.type", "hardlink")

    def save_as(self, name: str) -> None:
        self.call("dvc", "add", "--quiet", self.live.name)
        # As a commit of git would keep it.
        shutil.copy(self.folder / "current_model.dvc", self.folder / name)

    def restore(self) -> None:
        shutil.copy(self.folder / "1", self.folder / "current_model.dvc")
        self.call("dvc", "checkout", "--force", "--quiet")

    def check(self) -> bool | None:
        return "up to date" in self.call("dvc", "status")

    def copies(self) -> list[Path]:
        return self.largest(".dvc/cache")


PEERS: tuple[type[Tool], ...] = (HardLinks, Rsync, Restic, Borg, Dvc)


def is_installed(tool: type[Tool]) -> bool:
    """Whether the tool can be run here; a line on stderr says if not."""
    if shutil.which(tool.program):
        return True
    print(f"not measured: {tool.name} is not installed", file=sys.stderr)
    return False
