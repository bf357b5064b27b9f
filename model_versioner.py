#!/usr/bin/env python3
"""Save, list, restore and roll back versions of the model.

$ python3 model_versioner.py rollback
current_model/ is v002
went back from v003 to v002
undo: model_versioner.py restore v003
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from guardrails.bootstrap import enter_venv

    enter_venv()

import json
from pathlib import Path
from typing import Any

import click

from guardrails.cli import (
    Invocation,
    announcer,
    common_options,
    confirm_by_name,
    note_pending,
    only_reading,
    pass_invocation,
    print_json,
    print_table,
    report_damage,
    report_decisions,
    report_outcome,
    run,
    show_name,
    version_option,
)
from guardrails.config import load_config
from guardrails.errors import ConfigError, DamagedStateError, IntegrityError, OperationError, name_some
from guardrails.manifest import KnownHashes
from guardrails.paths import Paths
from guardrails.sandbox import is_inside
from guardrails.state_io import read_json
from guardrails.store.backups import backups_folder
from guardrails.store.change import open_store
from guardrails.store.copies import Copies
from guardrails.store.head import read_head
from guardrails.store.live_model import Outcome, restore, rollback, save_version, undo_change_by_hand
from guardrails.store.model_backups import copy_version_elsewhere
from guardrails.store.removal import bring_back, delete_version, empty_trash, set_pinned
from guardrails.store.removal import prune as prune_versions
from guardrails.store.repair import repair_everything, verify_version
from guardrails.store.requests import BY_HAND, Verb, ask_daemon
from guardrails.store.retention import MOST_DAYS, Policy, parse_duration
from guardrails.store.trash import list_entries, trash_of_backups
from guardrails.store.version_diff import compare_metadata, require_models
from guardrails.store.version_records import (
    is_kept,
    lineage,
    list_version_ids,
    parse_version_id,
    read_metadata,
    read_summaries,
)
from guardrails.store.versions import measure_storage

MEBIBYTE = 1 << 20
LISTED = (
    "id",
    "created_at",
    "kind",
    "description",
    "parent",
    "training_steps",
    "run_steps",
    "loss",
    "eval_loss",
    "size",
)
KEEP = click.IntRange(min=-1)
DAYS = click.IntRange(min=0, max=MOST_DAYS)
HOW_TO_REPAIR = "model_versioner.py repair heals them from their second copies"


def report(invocation: Invocation, outcome: Outcome) -> None:
    report_outcome(invocation, outcome.message, outcome.undo, outcome.version)


def summarize(metadata: dict[str, Any], head: str | None) -> dict[str, Any]:
    row = {key: metadata[key] for key in LISTED}
    row["current"] = row["id"] == head
    row["pinned"] = bool(metadata.get("pinned"))
    return row


def version_table(rows: list[dict[str, Any]], head: str | None) -> None:
    columns = ("", "version", "created", "kind", "steps", "loss", "eval loss", "MiB", "parent", "description")
    print_table(
        columns,
        [
            (
                ("*" if row["id"] == head else "") + ("p" if row.get("pinned") else ""),
                row["id"],
                row["created_at"],
                show_name(row["kind"]),
                str(row["training_steps"]),
                show_loss(row["loss"]),
                show_loss(row["eval_loss"]),
                mebibytes(row["size"]),
                row["parent"] or "-",
                show_name(row["description"]),
            )
            for row in rows
        ],
        right=("steps", "loss", "eval loss", "MiB"),
    )


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / MEBIBYTE:.1f}"


def parent_of(paths: Paths, version: str) -> str:
    return str(read_metadata(paths, version)["parent"])


def print_difference(difference: dict[str, Any]) -> None:
    click.echo(f"from {difference['from']} to {difference['to']}")
    for kind, names in difference["files"].items():
        for name in names:
            click.echo(f"file {kind}: {show_name(name)}")
    for part in ("metrics", "config"):
        for key, (old, new) in difference[part].items():
            click.echo(f"{part.removesuffix('s')} {key}: {show_name(json.dumps(old))} -> {show_name(json.dumps(new))}")
    changed = [module for module in difference["weights"] if module["state"] != "equal"]
    rows = [
        (
            show_name(module["module"]),
            module["state"] if module["finite"] else "not finite",
            show_number(module["norm"]),
            show_number(module["relative"]),
        )
        for module in changed
    ]
    if rows:
        print_table(("module", "", "norm of change", "relative"), rows, right=("norm of change", "relative"))
    equal = len(difference["weights"]) - len(changed)
    click.echo(f"weights: {len(changed)} modules differ, {equal} are equal")


def show_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def show_loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def versions_with_model(paths: Paths) -> list[str]:
    """Every version that should have a model: all but those that were removed."""
    rows = read_summaries(paths).rows
    return [v for v in list_version_ids(paths) if is_kept(paths, v) or "removed_at" not in rows.get(v, {})]


def change_pin(invocation: Invocation, version: str, *, pinned: bool) -> None:
    paths = invocation.paths
    version_id = parse_version_id(paths, version)
    word = "pinned" if pinned else "unpinned"
    with open_store(paths, "pinning", announcer(invocation)):
        changed = set_pinned(paths, version_id, pinned)
    undo = f"model_versioner.py unpin {version_id}" if pinned else f"model_versioner.py pin {version_id}"
    message = f"{word} {version_id}" if changed else f"{version_id} was {word} already"
    report(invocation, Outcome(message, undo if changed else None, version_id))


def choose_policy(paths: Paths, keep: dict[str, Any]) -> Policy:
    """The policy of the command line, else of the config.

    Raises:
        UsageError: neither keeps anything.
    """
    from guardrails.settings import Retention

    is_from_config = all(value is None for value in keep.values())
    if is_from_config:
        settings = load_config(paths).retention or Retention()
        keep = {key: value for key, value in settings.model_dump().items() if key.startswith("keep_")}
    policy = Policy(**{key.removeprefix("keep_"): value for key, value in keep.items() if value is not None})
    try:
        parse_duration(policy.within or "0d")
    except ValueError as error:
        if is_from_config:
            hint = "training_controller.py config set retention VALUE"
            raise ConfigError(f"{paths.config}: retention.keep_within: {error}", hint) from None
        raise click.BadParameter(str(error), param_hint="--keep-within") from None
    if policy.keeps_nothing():
        raise click.UsageError("say what to keep, for example --keep-last 30 --keep-monthly 24")
    return policy


def have_it_done(invocation: Invocation, verb: Verb, argument: str | None = None) -> int:
    """In an agent's sandbox the daemon does it; the exit code of what it ran."""

    def announce(line: str) -> None:
        click.echo(line, err=True)

    return ask_daemon(invocation.paths, verb, argument, as_json=invocation.as_json, announce=announce)


def trashes(paths: Paths) -> list[Path]:
    """The trash of the base dir, and that of backups on another disk."""
    return sorted({paths.trash, trash_of_backups(paths, backups_folder(paths))})


@click.group(help=__doc__.split("\n\n", maxsplit=1)[0])
@common_options
@version_option
def main() -> None:
    pass


@main.command(help="Save current_model/ as a version; an unchanged model names the version that it equals.")
@click.option("--description", default="made by hand", help="What this version is, in a few words.")
@common_options
@pass_invocation
def create(invocation: Invocation, description: str) -> int:
    paths = invocation.paths
    if is_inside(paths):
        return have_it_done(invocation, "create", description)
    with open_store(paths, "creating a version", announcer(invocation)):
        version, is_new = save_version(paths, description, "manual")
    if version is None:
        raise OperationError("there is no current_model/ to save", "model_versioner.py list shows what can be restored")
    storage = measure_storage(paths, version)
    if invocation.as_json:
        print_json({"version": version, "created": is_new, **storage})
    elif is_new:
        click.echo(f"created {version}")
        how = "sharing the blocks of current_model/ (reflink)" if storage["reflink"] else "copied"
        shared = f", {mebibytes(storage['shared_bytes'])} MiB shared with {parent_of(paths, version)}"
        click.echo(f"{mebibytes(storage['own_bytes'])} MiB {how}{shared if storage['shared_bytes'] else ''}")
    else:
        click.echo(f"unchanged: current_model/ is {version}")
    return 0


@main.command("list", help="List the versions, oldest first; * marks what current_model/ is, p what is pinned.")
@common_options
@pass_invocation
def list_versions(invocation: Invocation) -> None:
    paths = invocation.paths
    note_pending(paths)
    summaries = read_summaries(paths)
    damaged = summaries.damaged
    head = read_head(paths)["version"] if not damaged else (read_json(paths.head) or {}).get("version")
    rows = [row for row in summaries.rows.values() if "removed_at" not in row or is_kept(paths, row["id"])]
    if invocation.as_json:
        print_json([summarize(row, head) for row in rows])
    elif rows:
        version_table(rows, head)
    else:
        click.echo("no versions yet")
    if damaged:
        raise DamagedStateError(
            f"not listed: {name_some(damaged, 3, '; ')}",
            "backup_manager.py list shows the second copies, backup_manager.py restore ID puts the metadata back",
        )


@main.command(help="Show all that is known of a version.")
@click.argument("version")
@common_options
@pass_invocation
def show(invocation: Invocation, version: str) -> None:
    paths = invocation.paths
    note_pending(paths)
    metadata = read_metadata(paths, parse_version_id(paths, version))
    if invocation.as_json:
        print_json(metadata)
        return
    fingerprint = (metadata["base_model_fingerprint"] or {}).get("blake3", "-")
    is_removed = "removed_at" in metadata and not is_kept(paths, metadata["id"])
    for label, value in (
        ("Version", metadata["id"]),
        ("Description", show_name(metadata["description"])),
        ("Kind", show_name(metadata["kind"])),
        ("Created", metadata["created_at"]),
        ("Parent", metadata["parent"] or "none"),
        ("Kept", f"removed {metadata['removed_at']}" if is_removed else "pinned" if metadata.get("pinned") else "yes"),
        ("Steps", f"{metadata['training_steps']} in all, {metadata['run_steps']} in this run"),
        ("Loss", show_loss(metadata["loss"])),
        ("Eval loss", f"{show_loss(metadata['eval_loss'])} (before: {show_loss(metadata['eval_loss_before'])})"),
        ("Base model", f"{show_name(metadata['base_model'] or '-')} ({show_name(fingerprint[:12])})"),
    ):
        click.echo(f"{label}: {value}")
    for data in metadata["data"]:
        click.echo(
            f"Data: {show_name(data['name'])}, {data['rows']} rows, {data['trained']} trained,"
            f" {show_name(data['blake3'][:12])}"
        )
    for entry in metadata["files"]:
        click.echo(f"File: {show_name(entry['path'])}, {entry['size']} bytes, {show_name(entry['blake3'][:12])}")


@main.command(
    "rollback", help="Undo the last change: a stopped run, a change by hand, else the last training or restore."
)
@click.option("--by-hand", is_flag=True, help="Undo only what somebody changed in current_model/, or its removal.")
@common_options
@pass_invocation
def rollback_command(invocation: Invocation, by_hand: bool) -> int:
    if is_inside(invocation.paths):
        return have_it_done(invocation, "rollback", BY_HAND if by_hand else None)
    if by_hand:
        report(invocation, undo_change_by_hand(invocation.paths, announcer(invocation)))
        return 0
    report(invocation, rollback(invocation.paths, announcer(invocation)))
    return 0


@main.command("restore", help="Make current_model/ the given version; what was there stays.")
@click.argument("version")
@click.option("--target", type=click.Path(path_type=Path), help="Put a copy into this new folder instead.")
@common_options
@pass_invocation
def restore_command(invocation: Invocation, version: str, target: Path | None) -> int:
    paths = invocation.paths
    version_id = parse_version_id(paths, version)
    if target is None and is_inside(paths):
        return have_it_done(invocation, "restore", version_id)
    if target is None:
        report(invocation, restore(paths, version_id, announcer(invocation)))
        return 0
    full = copy_version_elsewhere(paths, version_id, target, announcer(invocation))
    report(invocation, Outcome(f"copied {version_id} to {full}", None, version_id))
    return 0


@main.command(help="Read versions from the disk and compare every byte with what was saved.")
@click.argument("version", required=False)
@click.option("--all", "every", is_flag=True, help="Every version; the default without a VERSION.")
@common_options
@pass_invocation
def verify(invocation: Invocation, version: str | None, every: bool) -> None:
    paths = invocation.paths
    if every and version:
        raise click.UsageError("give a VERSION or --all, not both")
    note_pending(paths)
    hash_of = KnownHashes()
    ids = [parse_version_id(paths, version)] if version else versions_with_model(paths)
    damage = {name: verify_version(paths, name, hash_of) for name in ids}
    report_damage(invocation, damage, "no versions yet", HOW_TO_REPAIR)


@main.command(help="Heal damaged or lost versions and backups from each other; damaged bytes are kept in the trash.")
@click.argument("names", nargs=-1, metavar="[VERSION|BACKUP]...")
@common_options
@pass_invocation
def repair(invocation: Invocation, names: tuple[str, ...]) -> None:
    paths = invocation.paths
    with open_store(paths, "repairing", announcer(invocation)):
        repairs = repair_everything(paths, names)
    lost = sorted(set(names) - {one.id for one in repairs})
    if lost:
        raise OperationError(
            f"there is no version or backup {lost[0][:80]!r}, and no backup to make it from",
            "model_versioner.py list and backup_manager.py list show what there is",
        )
    left = [one.id for one in repairs if one.left]
    if invocation.as_json:
        print_json([{"id": one.id, "healed": bool(one.found) and not one.left, "left": one.left} for one in repairs])
    else:
        for one in repairs:
            if one.found:
                still = f"still damaged: {'; '.join(one.left)}"
                click.echo(f"{one.id}: {show_name(still) if one.left else 'healed'}")
        good = sum(not one.found for one in repairs)
        click.echo(f"{len(repairs)} versions and backups read, {good} were good")
    if left:
        raise IntegrityError(
            f"no good copy heals {name_some(left, 20)}", "backup_manager.py pull REMOTE, if there is one"
        )


@main.command(help="Keep a version whatever delete or prune are asked.")
@click.argument("version")
@common_options
@pass_invocation
def pin(invocation: Invocation, version: str) -> None:
    change_pin(invocation, version, pinned=True)


@main.command(help="Let delete and prune take a version again.")
@click.argument("version")
@common_options
@pass_invocation
def unpin(invocation: Invocation, version: str) -> None:
    change_pin(invocation, version, pinned=False)


@main.command(help="Move a version's model to the trash; its metadata stays. Never the last good copy.")
@click.argument("version")
@click.option("--confirm", is_flag=True, help="Without it nothing is done but to say what would be.")
@common_options
@pass_invocation
def delete(invocation: Invocation, version: str, confirm: bool) -> None:
    paths = invocation.paths
    version_id = parse_version_id(paths, version)
    if not confirm:
        size = mebibytes(read_metadata(paths, version_id)["size"])
        raise OperationError(
            f"{version_id} ({size} MiB) was not deleted: --confirm is missing",
            f"model_versioner.py delete {version_id} --confirm",
        )
    with open_store(paths, f"deleting {version_id}", announcer(invocation)):
        delete_version(paths, version_id, Copies(paths, strict=True), "deleted")
    outcome = Outcome(f"moved {version_id} to the trash", f"model_versioner.py trash restore {version_id}", version_id)
    report(invocation, outcome)


@main.command(help="Remove versions that no --keep-… option keeps (restic's words, UTC); a dry run without --execute.")
@click.option("--keep-last", type=KEEP, metavar="N", help="The N newest; -1 keeps all, here as below.")
@click.option("--keep-hourly", type=KEEP, metavar="N", help="The newest of each of the last N hours with versions.")
@click.option("--keep-daily", type=KEEP, metavar="N", help="The newest of each of the last N days with versions.")
@click.option("--keep-weekly", type=KEEP, metavar="N", help="The newest of each of the last N weeks with versions.")
@click.option("--keep-monthly", type=KEEP, metavar="N", help="The newest of each of the last N months with versions.")
@click.option("--keep-yearly", type=KEEP, metavar="N", help="The newest of each of the last N years with versions.")
@click.option("--keep-within", metavar="DURATION", help="All within 1y5m7d2h before the newest.")
@click.option("--execute", is_flag=True, help="Do it; else only say what would be done.")
@common_options
@pass_invocation  # type: ignore[arg-type] # click gives all by name
def prune(invocation: Invocation, execute: bool, **keep: Any) -> None:
    paths = invocation.paths
    policy = choose_policy(paths, keep)
    with open_store(paths, "pruning", announcer(invocation)) if execute else only_reading(paths):
        decisions = prune_versions(paths, policy, execute=execute)
    report_decisions(invocation, decisions, execute=execute, nothing="no versions yet")


@main.group(help="What was removed, and how to get it back.")
@common_options
def trash() -> None:
    pass


@trash.command("list", help="List what lies in the trash, oldest first.")
@common_options
@pass_invocation
def list_trash(invocation: Invocation) -> None:
    note_pending(invocation.paths)
    rows = [entry.describe() for folder in trashes(invocation.paths) for entry in list_entries(folder)]
    if invocation.as_json:
        print_json(rows)
    elif rows:
        columns = ("entry", "kind", "what", "removed", "MiB", "why")
        cells = [
            (
                *(show_name(r[key]) for key in ("id", "kind", "name", "removed_at")),
                mebibytes(r["size"]),
                show_name(r["reason"]),
            )
            for r in rows
        ]
        print_table(columns, cells, right=("MiB",))
    else:
        click.echo("the trash is empty")


@trash.command("restore", help="Give a deleted version its model back.")
@click.argument("version")
@common_options
@pass_invocation
def restore_from_trash(invocation: Invocation, version: str) -> None:
    paths = invocation.paths
    version_id = parse_version_id(paths, version)
    with open_store(paths, f"bringing back {version_id}", announcer(invocation)):
        if is_kept(paths, version_id):
            raise OperationError(f"{version_id} is there already", f"model_versioner.py restore {version_id}")
        source = bring_back(paths, version_id)
    undo = f"model_versioner.py delete {version_id} --confirm"
    report(invocation, Outcome(f"brought {version_id} back from {source}", undo, version_id))


@trash.command("empty", help="Remove for good what has been in the trash for long; never the last good copy.")
@click.option("--older-than", "days", type=DAYS, metavar="DAYS", help="Else trash_days of the config.")
@click.option("--unsaved", is_flag=True, help="Also what has no copy elsewhere and is no version or backup.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@common_options
@pass_invocation
def empty(invocation: Invocation, days: int | None, unsaved: bool, dry_run: bool) -> None:
    paths = invocation.paths
    if days is None:
        from guardrails.settings import Retention

        days = (load_config(paths).retention or Retention()).trash_days
    with only_reading(paths) if dry_run else open_store(paths, "emptying the trash", announcer(invocation)):
        decisions = empty_trash(paths, days, execute=not dry_run, unsaved=unsaved)
    report_decisions(invocation, decisions, execute=not dry_run, nothing="the trash is empty")


@main.command(help="Compare two versions: files, config, metrics, and how far the weights moved.")
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@common_options
@pass_invocation
def diff(invocation: Invocation, one: str, other: str) -> None:
    paths = invocation.paths
    from guardrails.training.compare import compare_weights

    note_pending(paths)
    old, new = parse_version_id(paths, one), parse_version_id(paths, other)
    require_models(paths, old, new)
    weights = compare_weights(paths.version(old) / "model", paths.version(new) / "model")
    difference = {**compare_metadata(paths, old, new), "weights": weights}
    if invocation.as_json:
        print_json(difference)
    else:
        print_difference(difference)


@main.command(
    "consolidate", help="Merge the adapter into the base model; the next file trains a fresh one. Asks a person."
)
@click.option("--description", required=True, metavar="TEXT", help="What the merged model is, in a few words.")
@common_options
@pass_invocation
def consolidate_command(invocation: Invocation, description: str) -> None:
    from guardrails.store.consolidation import consolidate, plan_consolidation

    paths, announce = invocation.paths, announcer(invocation)
    plan = plan_consolidation(paths, announce)
    confirm_by_name("base_model", plan.base_model, plan.merged)
    report(invocation, consolidate(paths, plan, description, announce))


@main.command("lineage", help="List a version's ancestry back to the first training, with the data of each.")
@click.argument("version")
@common_options
@pass_invocation
def lineage_command(invocation: Invocation, version: str) -> None:
    paths = invocation.paths
    note_pending(paths)
    chain = list(lineage(paths, parse_version_id(paths, version)))
    if invocation.as_json:
        print_json(
            [
                {key: metadata[key] for key in ("id", "kind", "parent", "training_steps", "run_steps", "data")}
                for metadata in chain
            ]
        )
        return
    print_table(
        ("version", "kind", "steps", "data", "rows"),
        [
            (
                metadata["id"],
                show_name(metadata["kind"]),
                str(metadata["training_steps"]),
                ", ".join(show_name(data["name"]) for data in metadata["data"]) or "-",
                ", ".join(str(data["rows"]) for data in metadata["data"]) or "-",
            )
            for metadata in chain
        ],
        right=("steps", "rows"),
    )


if __name__ == "__main__":
    run(main)
