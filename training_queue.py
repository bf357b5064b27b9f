#!/usr/bin/env python3
"""Put data files into the queue, order them, and see what became of them.

$ python3 training_queue.py add ~/data/math.jsonl --priority high
queued math.jsonl (high)
$ python3 training_queue.py list
state      name          rows  size    arrived               note
high       math.jsonl    -     506534  2026-11-21T10:00:00Z
$ python3 training_queue.py retry broken.jsonl
broken.jsonl waits again (normal)
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from guardrails.bootstrap import enter_venv

    enter_venv()

import shlex
from pathlib import Path
from typing import Any

import click

from guardrails.cli import (
    Invocation,
    common_options,
    find_argument,
    pass_invocation,
    print_json,
    print_table,
    run,
    show_name,
    version_option,
)
from guardrails.errors import OperationError
from guardrails.intake import Intake, add_file, inspect_inbox, process_inbox
from guardrails.paths import PRIORITIES, QUEUE_STATES, Paths
from guardrails.queue import remove, retry, set_priority
from guardrails.queue_records import (
    EXTENSION,
    Record,
    all_records,
    counts,
    find_states,
    next_file,
    processing,
    records,
)
from guardrails.store.head import trained_lookup

LISTED = ("processing", *PRIORITIES, "failed", "skipped", "completed")
NO_MODELS_FROM_THE_NET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def find_name(paths: Paths, argument: str) -> str:
    """The data file that an argument means: a name, a path in the queue, or a name without its ending."""
    name = argument.rstrip("/").rpartition("/")[2]
    return f"{name}{EXTENSION}" if not find_states(paths, name) and find_states(paths, f"{name}{EXTENSION}") else name


def summarize(record: Record) -> dict[str, Any]:
    summary = record.to_json()
    del summary["schema_version"], summary["events"]
    return summary


def describe(record: Record) -> str:
    """What there is to say of a file beside its columns, in a few words."""
    if record.state in PRIORITIES:
        return "not looked at yet" if record.arrival is None else record.reason or ""
    if record.state == "processing":
        return f"run {record.run_id}, attempt {record.attempts}" if record.run_id else "not looked at yet"
    return record.reason or record.version or ""


def print_records(rows: list[Record]) -> None:
    print_table(
        ("state", "name", "rows", "size", "arrived", "note"),
        [
            (
                row.state,
                show_name(row.name),
                "-" if row.rows is None else str(row.rows),
                str(row.size),
                row.added_at or "-",
                show_name(describe(row)),
            )
            for row in rows
        ],
        right=("rows", "size"),
    )


def print_taken(intake: Intake) -> None:
    for record in intake.queued:
        click.echo(f"queued {show_name(record.name)} ({record.priority})")
    for record in intake.skipped:
        click.echo(skipped_line(record))
    for path, why in intake.left:
        click.echo(f"left {show_name(path)}: {why}")
    if not intake.queued and not intake.skipped and not intake.left:
        click.echo("nothing to take")


def skipped_line(record: Record) -> str:
    why, again = show_name(record.reason or ""), show_name(shlex.quote(record.name))
    return f"skipped {show_name(record.name)}: {why}; to train it all the same: training_queue.py retry {again}"


def print_check(check: dict[str, Any]) -> None:
    """One line a file, and one a bad row."""
    name, problem = show_name(check["file"]), check["problem"]
    if problem is None:
        what = f"{check['trained']} rows to train, {check['held_out']} held out, {check['cut']} cut"
        click.echo(f"ok {name}: {what}, {check['trained_tokens']} trained tokens")
    else:
        click.echo(f"bad {name}: {show_name(problem['message'])}")
    for row in check["bad_rows"]:
        click.echo(f"  line {row['line']}: {show_name(row['reason'])}")


def report(invocation: Invocation, record: Record, line: str) -> None:
    if invocation.as_json:
        print_json(summarize(record))
    else:
        click.echo(line)


@click.group(help=__doc__.split("\n\n", maxsplit=1)[0])
@common_options
@version_option
def main() -> None:
    pass


@main.command(help="Copy data files into the queue; the originals stay. A duplicate goes to queue/skipped/.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@click.option("--force", is_flag=True, help="Train it even if its content was trained, undone or queued before.")
@common_options
@pass_invocation
def add(invocation: Invocation, files: tuple[str, ...], priority: str, force: bool) -> None:
    paths = invocation.paths
    sources = [find_argument(paths, file) for file in files]
    trained_in = trained_lookup(paths)
    added = []
    for source in sources:
        record = add_file(paths, source, priority, trained_in, force=force)
        added.append(summarize(record))
        if not invocation.as_json:
            name = show_name(record.name)
            click.echo(skipped_line(record) if record.state == "skipped" else f"queued {name} ({record.priority})")
    if invocation.as_json:
        print_json(added)


@main.command("list", help="List the data files: the one being trained, those that wait in their order, then the rest.")
@click.option("--state", "states", type=click.Choice(QUEUE_STATES), multiple=True, help="Only these folders.")
@common_options
@pass_invocation
def list_files(invocation: Invocation, states: tuple[str, ...]) -> None:
    paths = invocation.paths
    rows = [record for state in LISTED if not states or state in states for record in records(paths, state)]
    if invocation.as_json:
        print_json([summarize(row) for row in rows])
    elif rows:
        print_records(rows)
    else:
        click.echo("no data files")


@main.command(help="Show how many files are in which state, and what lies in the inbox and why.")
@common_options
@pass_invocation
def status(invocation: Invocation) -> None:
    paths = invocation.paths
    numbers, current, following, inbox = counts(paths), processing(paths), next_file(paths), inspect_inbox(paths)
    if invocation.as_json:
        print_json(
            {
                "counts": numbers,
                "processing": summarize(current) if current else None,
                "next": summarize(following) if following else None,
                "inbox": [left._asdict() for left in inbox],
            }
        )
        return
    click.echo(f"Processing: {f'{show_name(current.name)}, {describe(current)}' if current else 'nothing'}")
    click.echo(f"Next: {f'{show_name(following.name)} ({following.priority})' if following else 'nothing waits'}")
    click.echo("Queue: " + ", ".join(f"{number} {state}" for state, number in numbers.items()))
    click.echo(f"Inbox: {len(inbox)}")
    for path, why in inbox:
        click.echo(f"  {show_name(path)}: {why}")


@main.command("set-priority", help="Move a waiting file to another priority; within it, arrival decides.")
@click.argument("name")
@click.argument("priority", type=click.Choice(PRIORITIES))
@common_options
@pass_invocation
def set_priority_command(invocation: Invocation, name: str, priority: str) -> None:
    paths = invocation.paths
    record = set_priority(paths, find_name(paths, name), priority)
    report(invocation, record, f"{show_name(record.name)} waits with priority {priority}")


@main.command("remove", help="Move a waiting or failed file to queue/skipped/; nothing is deleted.")
@click.argument("name")
@common_options
@pass_invocation
def remove_command(invocation: Invocation, name: str) -> None:
    paths = invocation.paths
    record = remove(paths, find_name(paths, name))
    again = f"training_queue.py retry {show_name(shlex.quote(record.name))}"
    report(invocation, record, f"moved {show_name(record.name)} to queue/skipped/; to undo: {again}")


@main.command("retry", help="Put a failed or skipped file back into the queue, duplicate or not.")
@click.argument("name")
@common_options
@pass_invocation
def retry_command(invocation: Invocation, name: str) -> None:
    paths = invocation.paths
    record = retry(paths, find_name(paths, name))
    report(invocation, record, f"{show_name(record.name)} waits again ({record.priority})")


@main.command(help="Check data files as the pre-flight of a run would; exit 1 if one cannot be trained.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@common_options
@pass_invocation
def validate(invocation: Invocation, files: tuple[str, ...]) -> int:
    from guardrails.config import load_config
    from guardrails.config_lock import base_model_folder

    paths = invocation.paths
    sources: list[Path] = [find_argument(paths, file) for file in files]
    config = load_config(paths)
    base_model = base_model_folder(paths, config)
    os.environ.update(NO_MODELS_FROM_THE_NET)
    from guardrails.training.check import check_data

    checks = check_data(
        sources,
        base_model,
        config.max_length,
        config.max_bad_rows,
        config.seed,
        hold_out_rows=config.validation_file is None,
    )
    if invocation.as_json:
        print_json(checks)
    else:
        for check in checks:
            print_check(check)
    return 1 if any(check["problem"] for check in checks) else 0


@main.command("process-inbox", help="Take what lies at rest in inbox/ into the queue now.")
@common_options
@pass_invocation
def process_inbox_command(invocation: Invocation) -> None:
    paths = invocation.paths
    intake = process_inbox(paths, trained_lookup(paths))
    if not invocation.as_json:
        print_taken(intake)
        return
    print_json(
        {
            "queued": [summarize(record) for record in intake.queued],
            "skipped": [summarize(record) for record in intake.skipped],
            "left": [left._asdict() for left in intake.left],
        }
    )


@main.command(help="List what happened to the data files, oldest first; with NAME to one of them.")
@click.argument("name", required=False)
@common_options
@pass_invocation
def history(invocation: Invocation, name: str | None) -> None:
    paths = invocation.paths
    only = find_name(paths, name) if name else None
    chosen = [record for record in all_records(paths) if only in (None, record.name)]
    if only and not chosen:
        raise OperationError(f"there is no data file {only} in the queue", "see what there is: training_queue.py list")
    rows = [{"name": record.name, **event} for record in chosen for event in record.events]
    rows.sort(key=lambda row: row["at"] or "")
    if invocation.as_json:
        print_json(rows)
    elif rows:
        print_table(
            ("at", "name", "event", "detail"),
            [
                (row["at"] or "", show_name(row["name"] or ""), row["event"] or "", show_name(row["detail"] or ""))
                for row in rows
            ],
        )
    else:
        click.echo("nothing happened yet")


if __name__ == "__main__":
    run(main)
