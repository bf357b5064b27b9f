#!/usr/bin/env python3
"""Stop, pause, resume or skip the training at its next step, and look after the config.

$ python3 training_controller.py pause --reason "need the GPU" --wait 60
paused
$ python3 training_controller.py resume
resume requested
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from guardrails.bootstrap import enter_venv

    enter_venv()

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from guardrails import config_lock, signals
from guardrails.cli import (
    Invocation,
    as_typed,
    base_dir_option,
    common_options,
    confirm_by_name,
    pass_invocation,
    print_json,
    print_layers,
    run,
    show_name,
    version_option,
)
from guardrails.config import (
    LOCKED_KEYS,
    check_config,
    load_config,
    nearest_key_hint,
    parse_config,
    read_config_text,
    set_config_value,
)
from guardrails.config_lock import write_lock
from guardrails.errors import ConfigError, OperationError
from guardrails.locks import read_holder
from guardrails.paths import Paths
from guardrails.preflight import check_before_training
from guardrails.queue_records import counts
from guardrails.sandbox import run_agent
from guardrails.state_io import read_json
from guardrails.store.change import change_config, open_store
from guardrails.store.head import read_lock

if TYPE_CHECKING:
    from guardrails.settings import Config

DONE = {"stop": "stopped", "pause": "paused", "resume": "resumed", "skip": "skipped"}


def describe(paths: Paths) -> dict[str, Any]:
    """What the daemon and its run do now, and which signals wait."""
    holder = read_holder(paths.locks / "daemon.lock")
    daemon = read_json(paths.daemon_status) or {}
    progress = read_json(paths.training_status) or {}
    keys = (
        "status",
        "phase",
        "run_id",
        "data_name",
        "current_step",
        "run_step",
        "run_total_steps",
        "loss",
        "eta_seconds",
    )
    return {
        "daemon_running": holder is not None,
        "pid": holder.pid if holder else None,
        "state": daemon.get("state", "starting") if holder else "stopped",
        "reason": daemon.get("reason"),
        "training": {key: progress.get(key) for key in keys},
        "pending_signals": signals.pending(paths),
        "emergency_stop": paths.emergency_stop.exists(),
        "queue": counts(paths),
    }


def parse_value(text: str) -> object:
    """A value from the command line: JSON where it is JSON, else a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class Violation(NamedTuple):
    """A locked value that was changed; the base model's bytes count as base_model."""

    key: str
    old: object
    new: object


def find_violations(lock: dict[str, Any], config: "Config", fingerprint: config_lock.Fingerprint) -> list[Violation]:
    """What of the lock is violated, with old and new as a person is to see them."""
    was, now = lock["locked"], config_lock.locked_values(config)
    changed = [Violation(key, was[key], now[key]) for key in LOCKED_KEYS if was[key] != now[key]]
    old = lock["base_model_fingerprint"]
    if not any(one.key == "base_model" for one in changed) and old["blake3"] != fingerprint["blake3"]:
        difference = config_lock.describe_difference(old, fingerprint)
        changed.append(Violation("base_model", old["blake3"][:12], f"{fingerprint['blake3'][:12]} ({difference})"))
    return changed


def fingerprint(paths: Paths, config: "Config") -> config_lock.Fingerprint:
    """The fingerprint of the configured base model.

    Raises:
        ConfigError: there is no model in that folder.
    """
    return config_lock.fingerprint_base_model(paths, config_lock.base_model_folder(paths, config))


def describe_approval(record: dict[str, Any]) -> str:
    """A recorded change of a locked value, on one line."""
    where = f" at {record['tty']}" if record.get("tty") else ""
    old, new = (json.dumps(record.get(name)) for name in ("old", "new"))
    who = f"{record.get('user')}{where}, {record.get('how')}"
    return show_name(f"{record['key']}: {old} -> {new}, {record.get('at')} by {who}")


def refuse_if_changed(paths: Paths, text: str, lock: dict[str, Any] | None) -> None:
    """Raises OperationError if config or lock are not what the person was asked about; no lock is held while asking."""
    if read_config_text(paths) != text or read_lock(paths) != lock:
        raise OperationError("config.json or its lock was changed meanwhile", "look at it, then run the command again")


def as_typed_if_own(invocation: Invocation, fix: str) -> str:
    """A fix as it is typed; commands of other programs and what is said in words stay as they are."""
    return as_typed(invocation, fix) if fix.split(maxsplit=1)[0].endswith(".py") else fix


@click.group(help=__doc__.split("\n\n", maxsplit=1)[0])
@common_options
@version_option
def main() -> None:
    pass


def send_signal(
    invocation: Invocation, action: str, reason: str | None, wait: float | None, hold: bool = False
) -> None:
    """Send a signal, wait for its acknowledgement if asked to, and say what came of it.

    Raises:
        OperationError: no daemon, nothing to do, or not acknowledged in time.
    """
    paths = invocation.paths
    signal_id = signals.send(paths, action, reason=reason, hold=hold)
    report: dict[str, Any] = {"id": signal_id, "action": action, "result": "requested", "detail": None}
    if wait is not None:
        deadline = time.monotonic() + wait
        ending = signals.wait_for_acknowledgement(paths, signal_id, wait)
        if ending is None:
            raise OperationError(
                f"{action} was not acknowledged within {wait:g} s",
                "training_controller.py status shows what is under way",
            )
        if ending.result != "done":
            raise OperationError(
                f"{action}: {ending.result.replace('_', ' ')}{f', {ending.detail}' if ending.detail else ''}",
                "training_controller.py status shows what is under way",
            )
        if action == "stop":
            wait_for_lock(paths, deadline)
        report.update(result=ending.result, detail=ending.detail)
    if invocation.as_json:
        print_json(report)
    else:
        click.echo(DONE[action] if wait is not None else f"{action} requested")


def wait_for_lock(paths: Paths, deadline: float) -> None:
    """Until the daemon that acknowledged a stop is gone, so that the next one can start."""
    while read_holder(paths.locks / "daemon.lock") is not None and time.monotonic() < deadline:
        time.sleep(signals.POLL_SECONDS)


reason_option = click.option("--reason", metavar="TEXT", help="Why, for the log and the reports.")
wait_option = click.option(
    "--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait for the acknowledgement; exit 1 without."
)


@main.command(help="Save a checkpoint at the next step and end the daemon; its next start goes on from there.")
@reason_option
@wait_option
@common_options
@pass_invocation
def stop(invocation: Invocation, reason: str | None, wait: float | None) -> None:
    send_signal(invocation, "stop", reason, wait)


@main.command(help="Save a checkpoint at the next step, free the GPU and hold the queue until resume.")
@click.option("--hold", is_flag=True, help="Keep the worker and its model in memory.")
@reason_option
@wait_option
@common_options
@pass_invocation
def pause(invocation: Invocation, hold: bool, reason: str | None, wait: float | None) -> None:
    send_signal(invocation, "pause", reason, wait, hold)


@main.command(help="Go on from the step of the pause.")
@reason_option
@wait_option
@common_options
@pass_invocation
def resume(invocation: Invocation, reason: str | None, wait: float | None) -> None:
    send_signal(invocation, "resume", reason, wait)


@main.command(help="Drop the run; the model stays as before the file, the file goes to queue/skipped/.")
@reason_option
@wait_option
@common_options
@pass_invocation
def skip(invocation: Invocation, reason: str | None, wait: float | None) -> None:
    send_signal(invocation, "skip", reason, wait)


@main.command(help="Show what the daemon does and which signals wait.")
@common_options
@pass_invocation
def status(invocation: Invocation) -> None:
    report = describe(invocation.paths)
    if invocation.as_json:
        print_json(report)
        return
    training = report["training"]
    process = f" (process {report['pid']})" if report["pid"] else ""
    click.echo(f"Daemon: {report['state']}{process}")
    if report["reason"]:
        click.echo(f"Reason: {show_name(report['reason'])}")
    if training["data_name"]:
        click.echo(f"File: {show_name(training['data_name'])}, run {training['run_id']}")
        click.echo(
            f"Step: {training['run_step']} of {training['run_total_steps']} ({training['phase'] or training['status']})"
        )
    click.echo(f"Signals: {', '.join(report['pending_signals']) or 'none'}")
    click.echo("Queue: " + ", ".join(f"{count} {state}" for state, count in report["queue"].items()))


@main.command(help="Remove signals that wait and were not taken up.")
@common_options
@pass_invocation
def clear(invocation: Invocation) -> None:
    removed = [signal.action for signal in signals.clear(invocation.paths)]
    if invocation.as_json:
        print_json({"removed": removed})
    else:
        click.echo(f"removed {', '.join(removed)}" if removed else "no signal was waiting")


@main.command(
    help="Run COMMAND, an agent say, where it cannot change the models or the guards (bubblewrap).",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("command", nargs=-1, required=True, metavar="[--] COMMAND...")
@base_dir_option
@pass_invocation
def agent(invocation: Invocation, command: tuple[str, ...]) -> None:
    run_agent(invocation.paths, command)


@main.command(help="Show which layers of protection are on, each proven by a harmless probe; exit 1 if one is off.")
@click.option("--repair", is_flag=True, help="First switch agents' hooks on again that were seen on and are off.")
@common_options
@pass_invocation
def doctor(invocation: Invocation, repair: bool) -> int:
    from guardrails.doctor import examine, repair_hooks

    for line in repair_hooks(invocation.paths) if repair else []:
        click.echo(show_name(line), err=invocation.as_json)
    layers = examine(invocation.paths, time.time())
    is_well = all(layer.state != "off" for layer in layers)
    rows = [{**layer._asdict(), "fix": layer.fix and as_typed_if_own(invocation, layer.fix)} for layer in layers]
    if invocation.as_json:
        print_json({"ok": is_well, "layers": rows})
    else:
        print_layers(rows)
    return 0 if is_well else 1


@main.group(help="Show, check and change config.json; approve a changed locked value.")
@common_options
def config() -> None:
    pass


@config.command("show", help="Print the settings with their defaults filled in.")
@common_options
@pass_invocation
def config_show(invocation: Invocation) -> None:
    settings = load_config(invocation.paths).model_dump()
    if invocation.as_json:
        print_json(settings)
        return
    for key, value in settings.items():
        click.echo(f"{key}: {json.dumps(value)}{'  (locked)' if key in LOCKED_KEYS else ''}")


@config.command("check", help="Run the pre-flight that comes before each file; list who changed what is locked.")
@common_options
@pass_invocation
def config_check(invocation: Invocation) -> None:
    approvals = config_lock.read_approvals(invocation.paths)
    result = check_before_training(invocation.paths, remember=False)
    if invocation.as_json:
        locked = {"locked": result.is_locked, "base_model_fingerprint": result.fingerprint["blake3"]}
        print_json({"ok": True, **locked, "approvals": approvals})
        return
    click.echo(f"config.json is right{', and as locked' if result.is_locked else '; nothing is locked yet'}")
    for record in approvals:
        click.echo(describe_approval(record))


# A value may begin with a minus.
@config.command(
    "set",
    help="Change one value and leave the rest of the file as it stands.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("key")
@click.argument("value")
@common_options
@pass_invocation
def config_set(invocation: Invocation, key: str, value: str) -> None:
    paths, new = invocation.paths, parse_value(value)
    from guardrails.settings import Config

    if key not in Config.model_fields:
        raise ConfigError(f'unknown key "{key}"', nearest_key_hint(key))
    check_config({key: new}, paths.config)
    text = read_config_text(paths)
    settings = parse_config(text, paths.config)
    old = settings.get(key, Config().model_dump()[key])
    lock = read_lock(paths)
    moved = None
    if key in LOCKED_KEYS and lock is not None and lock["locked"][key] != new:
        # Made before the question, so that a base model that is not there is told of first.
        changed = check_config({**settings, key: new}, paths.config)
        bytes_now = fingerprint(paths, changed) if key == "base_model" else lock["base_model_fingerprint"]
        moved = config_lock.move_lock(lock, {key: new}, bytes_now, "a person, by config set")
        confirm_by_name(key, lock["locked"][key], new)
    with open_store(paths, f"setting {key}"):
        refuse_if_changed(paths, text, lock)
        if moved is not None:
            change_config(paths, {key: new}, moved)
        else:
            set_config_value(paths, key, new)
            if lock is not None and not paths.config_lock.exists():
                # Known from the version that current_model/ is.
                write_lock(paths, config_lock.move_lock(lock, {}, lock["base_model_fingerprint"], "the head version"))
    if invocation.as_json:
        print_json({"key": key, "old": old, "new": new})
    else:
        click.echo(f"{key}: {json.dumps(old)} -> {json.dumps(new)}")


@config.command("approve", help="Accept locked values, or a base model, that were changed; asks a person for each.")
@common_options
@pass_invocation
def config_approve(invocation: Invocation) -> None:
    paths = invocation.paths
    text, settings, lock = read_config_text(paths), load_config(paths), read_lock(paths)
    changed: list[Violation] = []
    if lock is not None:
        # Taken once, before the questions: what is shown is what is approved.
        bytes_now, values = fingerprint(paths, settings), config_lock.locked_values(settings)
        changed = find_violations(lock, settings, bytes_now)
        approved = {one.key: values[one.key] for one in changed}
        model = bytes_now if "base_model" in approved else lock["base_model_fingerprint"]
        moved = config_lock.move_lock(lock, approved, model, "a person, by config approve")
        for one in changed:
            confirm_by_name(*one)
        if changed:
            with open_store(paths, "approving"):
                refuse_if_changed(paths, text, lock)
                write_lock(paths, moved)
    report = [one._asdict() for one in changed]
    if invocation.as_json:
        print_json({"approved": report})
    else:
        click.echo(f"approved {', '.join(one.key for one in changed)}" if changed else "nothing differs from the lock")


if __name__ == "__main__":
    run(main)
