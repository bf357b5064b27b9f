"""systemd units for a base dir: the daemon as a service, and the report on a timer.

They name absolute paths and the Python of this folder, and ask of systemd only what the daemon can keep.
"""

import pwd
import re
from pathlib import Path

from guardrails.config import parse_config, read_config_text
from guardrails.errors import GuardrailsError, OperationError
from guardrails.paths import CODE_DIR, Paths
from guardrails.schedule import CHECK_MINUTES, Plan
from guardrails.state_io import write_text
from guardrails.worker_process import GRACE_SECONDS, HANG_SECONDS

# The daemon itself ends a run without any sign of life; the watchdog is for a daemon that cannot.
WATCHDOG_SECONDS = round(HANG_SECONDS + GRACE_SECONDS)
# For a worker whose daemon is gone to save a checkpoint; a daemon that lives asks systemd for more.
STOP_SECONDS = 600
START_SECONDS = 300
RESTART_SECONDS = 30
# Another start would end the same way: usage, config, config lock, another daemon, damaged state.
FINAL_CODES = "2 10 11 20 30"
# A folder of this name is read by a user's own manager, any other by the system's.
USER_FOLDER = "user"
SYSTEM_FOLDERS = ("/usr/", "/boot/", "/efi/", "/etc/")

DAEMON = f"""\
{{mark}}
[Unit]
Description=Training daemon of {{base}}
RequiresMountsFor={{mounts}}
ConditionPathExists=!{{stop_file}}

[Service]
Type=notify
NotifyAccess=main
{{owner}}ExecStart={{daemon}}
Restart=on-failure
RestartSec={RESTART_SECONDS}
RestartPreventExitStatus={FINAL_CODES}
# To the worker, too: it saves a checkpoint, whether the daemon still lives or not.
KillSignal=SIGTERM
KillMode=control-group
TimeoutStopSec={STOP_SECONDS}
# The daemon itself sees to a worker that took too much memory.
OOMPolicy=continue
TimeoutStartSec={START_SECONDS}
# Petted when training gets on by a step, or the daemon by a turn.
WatchdogSec={WATCHDOG_SECONDS}
{{guards}}
[Install]
WantedBy={{target}}
"""
REPORT = f"""\
{{mark}}
[Unit]
Description=Training report of {{base}}
RequiresMountsFor={{mounts}}

[Service]
Type=oneshot
{{owner}}ExecStart={{report}}
{{metrics}}TimeoutStartSec={START_SECONDS}
Nice=10
{{guards}}"""
TIMER = f"""\
{{mark}}
[Unit]
Description=Training report of {{base}}, every {CHECK_MINUTES} minutes

[Timer]
OnCalendar=*:0/{CHECK_MINUTES}
AccuracySec=10

[Install]
WantedBy=timers.target
"""


def write_units(paths: Paths, folder: Path) -> list[Path]:
    """Write the units of a base dir into ``folder``, over nothing but their older selves; the files.

    They are for the system's manager and run as the owner of the base dir, or for a user's own manager.

    Raises:
        OperationError: a file is there that is not this base dir's, or a path cannot stand in a unit.
    """
    plan = Plan(paths)
    units = make_units(plan, of_user=folder.name == USER_FOLDER)
    for name, text in units.items():
        _refuse_other_file(folder / name, text)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in units.items():
        write_text(folder / name, text, 0o644, whatever_umask=True)
    return [folder / name for name in units]


def next_commands(units: list[Path]) -> list[str]:
    """What makes systemd take up the units that were written."""
    of_user = units[0].parent.name == USER_FOLDER
    systemctl = "systemctl --user" if of_user else "systemctl"
    started = " ".join(unit.name for unit in units if unit.suffix == ".timer" or "-daemon-" in unit.name)
    commands = [f"{systemctl} daemon-reload", f"{systemctl} enable --now {started}"]
    # Without it a user's units end with the last session.
    return [*commands, "loginctl enable-linger"] if of_user else commands


def _refuse_other_file(path: Path, text: str) -> None:
    try:
        with path.open("rb") as file:
            first = file.readline()
    except FileNotFoundError:
        return
    if first.rstrip(b"\n") != text.splitlines()[0].encode():
        raise OperationError(f"{path} is there already and not of this base dir; nothing was written", f"cat '{path}'")


def make_units(plan: Plan, *, of_user: bool) -> dict[str, str]:
    """The texts of the units by file name."""
    base = plan.paths.base
    daemon, report = f"training-daemon-{plan.name}", f"training-report-{plan.name}"
    metrics = ""
    if plan.metrics_file.parent.is_dir():
        # Whether that folder takes them is no matter of the report.
        metrics = f"ExecStart=-{_exec(plan.command('state_tracker.py', '--prometheus', str(plan.metrics_file)))}\n"
    values = {
        "mark": f"# {base}: made by state_tracker.py --systemd, and made anew by it",
        "base": _percent(str(base)),
        "mounts": " ".join(map(quote_word, _list_mounts(plan.paths))),
        "stop_file": _percent(str(plan.paths.emergency_stop)),
        "owner": "" if of_user else f"User={_name_owner(base)}\n",
        "daemon": _exec(plan.command("training_daemon.py")),
        "report": _exec(plan.command("state_tracker.py", *(["--alert"] if plan.has_address else []))),
        "metrics": metrics,
        "guards": "" if of_user else _guards(plan),
        "target": "default.target" if of_user else "multi-user.target",
    }
    texts = {f"{daemon}.service": DAEMON, f"{report}.service": REPORT, f"{report}.timer": TIMER}
    return {name: text.format_map(values) for name, text in texts.items()}


def _name_owner(folder: Path) -> str:
    """Who works there, whoever writes the units."""
    uid = folder.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _guards(plan: Plan) -> str:
    """What the commands can do without; with more, CUDA's caches or ``immutable_versions`` would fail."""
    folder = _read_settings(plan.paths).get("backup_dir")
    written = [plan.paths.base, *([plan.paths.resolve(folder)] if isinstance(folder, str) else [])]
    protect = "" if any(str(one).startswith(SYSTEM_FOLDERS) for one in written) else "ProtectSystem=full\n"
    return f"NoNewPrivileges=yes\n{protect}"


def _list_mounts(paths: Paths) -> list[str]:
    """Folders without which the daemon need not start. Backups' is none: it waits for that with the queue held."""
    model = _read_settings(paths).get("base_model")
    folders = [str(paths.base), str(CODE_DIR), *([model] if isinstance(model, str) and model.startswith("/") else [])]
    return list(dict.fromkeys(folders))


def _read_settings(paths: Paths) -> dict[str, object]:
    try:
        return parse_config(read_config_text(paths), paths.config)
    except GuardrailsError:
        return {}


def _exec(command: list[str]) -> str:
    # The colon: a dollar sign is nothing but that.
    return f":{' '.join(map(quote_word, command))}"


def quote_word(word: str) -> str:
    """One word of a unit's line."""
    if re.fullmatch(r"[\w@+=:,./-]+", word, re.ASCII):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_percent(escaped)}"'


def _percent(text: str) -> str:
    """``text`` without specifiers, as which ``%`` would be taken."""
    return text.replace("%", "%%")
