#!/usr/bin/env python3
"""Make, list, verify and restore backups: independent copies that were read back from the disk.

$ python3 backup_manager.py backup current_model/ --reason "before the move"
backed up current_model/ (v003) as b004
$ python3 backup_manager.py restore b004
current_model/ is v003
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from guardrails.bootstrap import enter_venv

    enter_venv()

from pathlib import Path
from typing import Any

import click

from guardrails.backups import (
    MANUAL_TYPES,
    BackupType,
    backups_folder,
    list_backup_ids,
    read_backup,
    verify_backup,
)
from guardrails.cli import (
    Invocation,
    announcer,
    common_options,
    find_argument,
    pass_invocation,
    print_json,
    print_table,
    read_each,
    report_outcome,
    run,
    show_name,
    version_option,
)
from guardrails.errors import DamagedStateError, IntegrityError
from guardrails.model_backups import back_up, restore_backup

MEBIBYTE = 1 << 20


def summarize(metadata: dict[str, Any]) -> dict[str, Any]:
    keys = ("id", "created_at", "type", "reason", "source", "version", "size", "verified_at")
    return {key: metadata[key] for key in keys}


def find_problems(folder: Path, backup_id: str) -> list[str]:
    """What is wrong with a backup, unreadable metadata included."""
    try:
        return verify_backup(folder, backup_id)
    except DamagedStateError as error:
        return [error.message]


@click.group(help=__doc__.split("\n\n", maxsplit=1)[0])
@common_options
@version_option
def main() -> None:
    pass


@main.command(help="Back up a folder or file and read the copy back from the disk.")
@click.argument("path")
@click.option("--type", "backup_type", type=click.Choice(MANUAL_TYPES), default="manual", show_default=True)
@click.option("--reason", metavar="TEXT", help="Why, for the list.")
@common_options
@pass_invocation
def backup(invocation: Invocation, path: str, backup_type: BackupType, reason: str | None) -> None:
    paths = invocation.paths
    metadata = back_up(paths, find_argument(paths, path), backup_type, reason)
    if invocation.as_json:
        print_json(summarize(metadata))
    else:
        version = f" ({metadata['version']})" if metadata["version"] else ""
        click.echo(f"backed up {show_name(metadata['source'])}{version} as {metadata['id']}")


@main.command("list", help="List the backups, oldest first.")
@common_options
@pass_invocation
def list_backups(invocation: Invocation) -> None:
    folder = backups_folder(invocation.paths)
    good, damaged = read_each(list_backup_ids(folder), lambda backup_id: read_backup(folder, backup_id))
    rows = [summarize(metadata) for metadata in good]
    if invocation.as_json:
        print_json(rows)
    elif rows:
        print_table(
            ("backup", "created", "type", "version", "MiB", "source", "reason"),
            [
                (
                    row["id"],
                    row["created_at"],
                    row["type"],
                    row["version"] or "-",
                    f"{row['size'] / MEBIBYTE:.1f}",
                    show_name(row["source"]),
                    show_name(row["reason"] or "-"),
                )
                for row in rows
            ],
            right=("MiB",),
        )
    else:
        click.echo("no backups yet")
    if damaged:
        raise DamagedStateError(
            f"not listed: {'; '.join(damaged)}", "backup_manager.py backup current_model/ makes a new one"
        )


@main.command(help="Read backups from the disk and compare every byte with what was saved.")
@click.argument("backup_id", metavar="[ID]", required=False)
@click.option("--all", "every", is_flag=True, help="Every backup; the default without an ID.")
@common_options
@pass_invocation
def verify(invocation: Invocation, backup_id: str | None, every: bool) -> None:
    folder = backups_folder(invocation.paths)
    if every and backup_id:
        raise click.UsageError("give an ID or --all, not both")
    ids = [backup_id] if backup_id else list_backup_ids(folder)
    damage = {name: find_problems(folder, name) for name in ids}
    if invocation.as_json:
        print_json([{"id": name, "ok": not problems, "problems": problems} for name, problems in damage.items()])
    else:
        for name, problems in damage.items():
            click.echo(f"{name}: {show_name('; '.join(problems)) if problems else 'good'}")
    damaged = [name for name, problems in damage.items() if problems]
    if damaged:
        raise IntegrityError(
            f"damaged: {', '.join(damaged)}", "backup_manager.py backup current_model/ makes a new one"
        )
    if not ids and not invocation.as_json:
        click.echo("no backups yet")


@main.command(help="Put a backup back where it came from, or into a new folder TARGET.")
@click.argument("backup_id", metavar="ID")
@click.argument("target", required=False, type=click.Path(path_type=Path))
@common_options
@pass_invocation
def restore(invocation: Invocation, backup_id: str, target: Path | None) -> None:
    outcome = restore_backup(invocation.paths, backup_id, target, announcer(invocation))
    report_outcome(invocation, outcome.message, outcome.undo, outcome.version)


if __name__ == "__main__":
    run(main)
