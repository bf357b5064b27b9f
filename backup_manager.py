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

from guardrails.cli import (
    Invocation,
    announcer,
    as_typed,
    common_options,
    find_argument,
    note_pending,
    only_reading,
    pass_invocation,
    print_json,
    print_table,
    read_each,
    report_damage,
    report_decisions,
    report_outcome,
    run,
    show_name,
    version_option,
)
from guardrails.errors import DamagedStateError, name_some
from guardrails.store.backups import (
    MANUAL_TYPES,
    BackupType,
    backups_folder,
    list_backup_ids,
    read_backup,
)
from guardrails.store.change import open_store
from guardrails.store.model_backups import back_up, restore_backup
from guardrails.store.remotes import drill, pull, push, read_remotes
from guardrails.store.removal import clean_up_backups
from guardrails.store.repair import find_backup_damage
from guardrails.store.retention import MOST_DAYS

MEBIBYTE = 1 << 20
DAYS = click.IntRange(min=0, max=MOST_DAYS)


def summarize(metadata: dict[str, Any]) -> dict[str, Any]:
    keys = ("id", "created_at", "type", "reason", "source", "version", "size", "verified_at")
    return {key: metadata[key] for key in keys}


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
    note_pending(invocation.paths)
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
                    show_name(row["type"]),
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
            f"not listed: {name_some(damaged, 3, '; ')}", "backup_manager.py backup current_model/ makes a new one"
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
    note_pending(invocation.paths)
    ids = [backup_id] if backup_id else list_backup_ids(folder)
    damage = {name: find_backup_damage(folder, name) for name in ids}
    report_damage(invocation, damage, "no backups yet", "model_versioner.py repair heals them from the versions")


@main.command(help="Move old backups to the trash, never the last good copy; a dry run without --execute.")
@click.option("--retention-days", type=DAYS, required=True, metavar="N", help="Older than N days.")
@click.option("--execute", is_flag=True, help="Do it; else only say what would be done.")
@common_options
@pass_invocation
def cleanup(invocation: Invocation, retention_days: int, execute: bool) -> None:
    paths = invocation.paths
    with open_store(paths, "cleaning up backups", announcer(invocation)) if execute else only_reading(paths):
        decisions = clean_up_backups(paths, retention_days, execute=execute)
    report_decisions(invocation, decisions, execute=execute, nothing="no backups yet")


@main.command(help="Put a backup back where it came from, or into a new folder TARGET.")
@click.argument("backup_id", metavar="ID")
@click.argument("target", required=False, type=click.Path(path_type=Path))
@common_options
@pass_invocation
def restore(invocation: Invocation, backup_id: str, target: Path | None) -> None:
    outcome = restore_backup(invocation.paths, backup_id, target, announcer(invocation))
    report_outcome(invocation, outcome.message, outcome.undo, outcome.version)


@main.command("push", help="Send the versions that REMOTE lacks: an s3://, sftp:// or file:/// URL.")
@click.argument("remote")
@common_options
@pass_invocation
def push_command(invocation: Invocation, remote: str) -> None:
    done = push(invocation.paths, remote, announcer(invocation))
    if invocation.as_json:
        print_json(done)
    else:
        click.echo(
            f"pushed to {show_name(done['remote'])}: {done['bytes_sent']} bytes; {len(done['versions'])} versions there"
        )


@main.command("pull", help="Bring the versions that are missing here, or those that are named, from REMOTE.")
@click.argument("remote")
@click.argument("versions", nargs=-1, metavar="[VERSION]...")
@common_options
@pass_invocation
def pull_command(invocation: Invocation, remote: str, versions: tuple[str, ...]) -> None:
    done = pull(invocation.paths, remote, versions, announcer(invocation))
    if invocation.as_json:
        print_json(done)
        return
    click.echo(f"pulled from {show_name(done['remote'])}: {done['bytes_received']} bytes")
    if done["head"] is not None:
        click.echo(f"next: {as_typed(invocation, 'model_versioner.py restore ' + done['head'])}")


@main.command(help="List the remotes that this base dir was pushed to; asks none of them.")
@common_options
@pass_invocation
def remotes(invocation: Invocation) -> None:
    known = read_remotes(invocation.paths)
    rows = [{"remote": url, **entry} for url, entry in sorted(known.items())]
    if invocation.as_json:
        print_json(rows)
    elif rows:
        columns = ("remote", "pushed", "versions", "newest")
        there = [(row["versions"], row["versions"][-1] if row["versions"] else "-") for row in rows]
        cells = [
            (show_name(r["remote"]), r["pushed_at"], str(len(v)), n) for r, (v, n) in zip(rows, there, strict=True)
        ]
        print_table(columns, cells, right=("versions",))
    else:
        click.echo("no remotes yet")


@main.command("drill", help="Prove that the newest backup, or the newest version at REMOTE, can be restored.")
@click.argument("remote", required=False)
@common_options
@pass_invocation
def drill_command(invocation: Invocation, remote: str | None) -> None:
    done = drill(invocation.paths, remote)
    if invocation.as_json:
        print_json(done)
    else:
        what = f"{done['files']} files, {done['bytes']} bytes, {done['seconds']:.1f} s"
        click.echo(f"restored {show_name(done['source'])} as it was saved, and removed it again: {what}")


if __name__ == "__main__":
    run(main)
