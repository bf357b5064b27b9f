"""Every path of a base dir, once."""

import os
import re
from pathlib import Path

CODE_DIR = Path(__file__).resolve().parent.parent

VERSION_ID = re.compile(r"v([0-9]{3,})")
BACKUP_ID = re.compile(r"b([0-9]{3,})")
# Names of trees that are being made; the next writing command removes what a kill left of them.
STAGE_PREFIX = ".stage-"

# Set in an agent's sandbox.
SANDBOX = "GUARDRAILS_SANDBOX"

PRIORITIES = ("high", "normal", "low")
QUEUE_STATES = (*PRIORITIES, "processing", "completed", "failed", "skipped")


class Paths:
    """The files and folders of one base dir; nothing is created or read by naming them."""

    def __init__(self, base_dir: Path) -> None:
        self.base = base_dir
        self.config = base_dir / "config.json"
        self.config_lock = base_dir / ".config_lock.json"
        self.emergency_stop = base_dir / ".stop"
        self.system_state = base_dir / ".system_state.json"
        self.locks = base_dir / ".locks"
        self.inbox = base_dir / "inbox"
        self.queue = base_dir / "queue"
        self.queue_records = self.queue / ".records"
        self.control = base_dir / "control"
        self.status = base_dir / "status"
        self.training_status = self.status / "training_status.json"
        self.daemon_status = self.status / "daemon.json"
        self.protections = self.status / "protections.json"
        self.base_model_stat = self.status / "base_model_stat.json"
        self.deep_check = self.status / "deep_check.json"
        self.deep_check_times = self.status / "deep_check_times.json"
        self.alerts = self.status / "alerts.json"
        self.saved_trees = self.status / "saved_trees.cache"
        self.report_cache = self.status / "report.cache"
        self.state_history = self.status / "state_history.db"
        self.state_history_last = self.status / "state_history_last.json"
        self.runs = base_dir / "runs"
        self.current_model = base_dir / "current_model"
        self.models = base_dir / "models"
        self.head = self.models / "head.json"
        self.intent = self.models / "intent.json"
        self.versions = self.models / "versions"
        self.version_index = self.models / "version_index.jsonl"
        self.retired = self.models / "retired"
        self.retired_model = self.retired / "model"
        self.backups = self.models / "backups"
        self.trash = self.models / "trash"
        self.consolidated_models = base_dir / "consolidated_models"
        self.logs = base_dir / "logs"
        self.approvals = base_dir / ".config_approvals.jsonl"
        self.guard_log = self.logs / "guard.jsonl"
        self.remotes = self.status / "remotes.json"
        self.incoming = self.models / "incoming"

    def queue_folder(self, state: str) -> Path:
        """The folder of data files in ``state``, one of ``QUEUE_STATES``."""
        return self.queue / state

    def run(self, run_id: str) -> Path:
        return self.runs / run_id

    def version(self, version_id: str) -> Path:
        return self.versions / version_id

    def resolve(self, value: str) -> Path:
        """A path from the config: relative to the base dir, ``~`` allowed; that of nobody is a name like any other."""
        try:
            return self.base / Path(value).expanduser()
        except RuntimeError:
            return self.base / value

    def relative(self, path: Path) -> str:
        """``path`` as shown to people: relative to the base dir where it lies in it."""
        try:
            return str(path.relative_to(self.base))
        except ValueError:
            return str(path)

    def folders(self) -> list[Path]:
        """Every folder that a base dir is made of."""
        return [
            self.inbox,
            *(self.queue_folder(state) for state in QUEUE_STATES),
            self.queue_records,
            self.control,
            self.status,
            self.runs,
            self.versions,
            self.retired,
            self.backups,
            self.trash,
            self.consolidated_models,
            self.logs,
            self.locks,
        ]


def find_base_dir(option: str | None) -> Path:
    """The base dir: ``--base-dir``, else ``$TRAINING_BASE_DIR``, else the folder of the scripts.

    Absolute, symlinks resolved, so that two spellings of one base dir share their locks.
    """
    chosen = option or os.environ.get("TRAINING_BASE_DIR") or CODE_DIR
    return Path(os.path.realpath(chosen))
