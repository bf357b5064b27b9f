"""What runs by itself for a base dir, and the lines for cron that do it; ``guardrails.units`` has those for systemd.

They work as they stand: with nothing in the environment, with any letters in the paths, and beside whatever else runs,
for each command has its own locks.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from guardrails.alerts.addresses import DEFAULT_SECRETS_FILE
from guardrails.alerts.checks import read_settings
from guardrails.alerts.memory import Memory
from guardrails.errors import ConfigError, OperationError
from guardrails.paths import CODE_DIR, Paths
from guardrails.store.remotes import read_remotes

CHECK_MINUTES = 5
# Where Debian's node_exporter looks for metrics, and where others do.
METRICS_FOLDERS = ("/var/lib/prometheus/node-exporter", "/var/lib/node_exporter/textfile_collector")
UNSAFE_IN_UNIT_NAME = re.compile(r"[^A-Za-z0-9_.]+")
MOST_NAME = 200


class Plan:
    """What there is to run for a base dir."""

    def __init__(self, paths: Paths) -> None:
        refuse_unwritable_names(paths.base, CODE_DIR)
        self.paths = paths
        self.name = UNSAFE_IN_UNIT_NAME.sub("-", str(paths.base)).strip("-.")[-MOST_NAME:] or "base"
        self.secrets_file = _find_secrets_file(paths)
        # Of another user it cannot be read here; what is wrong with it, the first check says.
        self.has_address = self.secrets_file.is_file()
        self.metrics_file = _find_metrics_folder() / f"training-{self.name}.prom"
        self.remotes = sorted(read_remotes(paths))

    def command(self, script: str, *arguments: str) -> list[str]:
        """The words of a command that needs no environment."""
        return [sys.executable, str(CODE_DIR / script), *arguments, "--base-dir", str(self.paths.base)]


def refuse_unwritable_names(*folders: Path) -> None:
    """Raises OperationError for names that no line of text can have."""
    for folder in folders:
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", str(folder)):
            raise OperationError(f"{str(folder)!r} has a line break or the like in its name", "rename the folder")


def _find_secrets_file(paths: Paths) -> Path:
    try:
        return paths.resolve(read_settings(paths, Memory(paths)).secrets_file)
    except ConfigError:
        return paths.base / DEFAULT_SECRETS_FILE


def _find_metrics_folder() -> Path:
    folders = [Path(folder) for folder in METRICS_FOLDERS]
    return next((folder for folder in folders if os.access(folder, os.W_OK | os.X_OK)), folders[0])


def crontab_lines(paths: Paths) -> Iterator[str]:
    """Lines for ``crontab -e`` of the user whose base dir it is; those that could not work yet are commented out.

    Raises:
        OperationError: a path cannot stand in a crontab.
    """
    plan = Plan(paths)
    yield f"# {paths.base}: lines for crontab -e, as the user whose folder it is"
    yield "# They print only what went wrong, and cron mails that to:"
    yield "# MAILTO=you@example.org"
    yield ""
    yield "# the report, alerts, and the heartbeat"
    if not plan.has_address:
        yield f"# (first write an address into {plan.secrets_file}, then: chmod 600)"
    every = f"*/{CHECK_MINUTES} * * * *"
    yield _line(every, plan.command("state_tracker.py", "--alert"), is_ready=plan.has_address)
    yield "# metrics for node_exporter's textfile collector"
    is_there = os.access(plan.metrics_file.parent, os.W_OK | os.X_OK)
    metrics = plan.command("state_tracker.py", "--prometheus", str(plan.metrics_file))
    yield _line("* * * * *", metrics, is_ready=is_there)
    yield "# each day: read every version and backup from the disk, and send what is new to the remotes"
    yield _line("17 3 * * *", plan.command("model_versioner.py", "verify", "--all"))
    yield _line("47 3 * * *", plan.command("backup_manager.py", "verify", "--all"))
    for remote in plan.remotes or ["s3://BUCKET/PREFIX"]:
        yield _line("17 4 * * *", plan.command("backup_manager.py", "push", remote), is_ready=bool(plan.remotes))
    yield "# the daemon, where no systemd looks after it"
    yield _line("@reboot", plan.command("training_daemon.py"), is_ready=False)


def _line(when: str, command: list[str], *, is_ready: bool = True) -> str:
    # To cron a bare % ends the command.
    words = shlex.join(command).replace("%", r"\%")
    return f"{'' if is_ready else '# '}{when} {words} >/dev/null"
