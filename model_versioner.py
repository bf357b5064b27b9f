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

from pathlib import Path
from typing import Any

import click

from guardrails.change import open_store
from guardrails.cli import (
    Invocation,
    announcer,
    common_options,
    pass_invocation,
    print_json,
    print_table,
    read_each,
    report_outcome,
    run,
    show_name,
    version_option,
)
from guardrails.errors import DamagedStateError, OperationError
from guardrails.head import read_head
from guardrails.live_model import Outcome, copy_version, restore, rollback, save_version
from guardrails.state_io import read_json
from guardrails.versions import is_kept, lineage, list_version_ids, parse_version_id, read_metadata

MEBIBYTE = 1 << 20


def report(invocation: Invocation, outcome: Outcome) -> None:
    report_outcome(invocation, outcome.message, outcome.undo, outcome.version)


def summarize(metadata: dict[str, Any], head: str | None) -> dict[str, Any]:
    keys = (
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
    return {**{key: metadata[key] for key in keys}, "current": metadata["id"] == head}


def version_table(rows: list[dict[str, Any]]) -> None:
    columns = ("", "version", "created", "kind", "steps", "loss", "eval loss", "MiB", "parent", "description")
    print_table(
        columns,
        [
            (
                "*" if row["current"] else "",
                row["id"],
                row["created_at"],
                row["kind"],
                str(row["training_steps"]),
                show_loss(row["loss"]),
                show_loss(row["eval_loss"]),
                f"{row['size'] / MEBIBYTE:.1f}",
                row["parent"] or "-",
                show_name(row["description"]),
            )
            for row in rows
        ],
        right=("steps", "loss", "eval loss", "MiB"),
    )


def show_loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


@click.group(help=__doc__.split("\n\n", maxsplit=1)[0])
@common_options
@version_option
def main() -> None:
    pass


@main.command(help="Save current_model/ as a version; an unchanged model names the version that it equals.")
@click.option("--description", default="made by hand", help="What this version is, in a few words.")
@common_options
@pass_invocation
def create(invocation: Invocation, description: str) -> None:
    paths = invocation.paths
    with open_store(paths, "creating a version", announcer(invocation)):
        version, is_new = save_version(paths, description, "manual")
    if version is None:
        raise OperationError("there is no current_model/ to save", "model_versioner.py list shows what can be restored")
    if invocation.as_json:
        print_json({"version": version, "created": is_new})
    else:
        click.echo(f"created {version}" if is_new else f"unchanged: current_model/ is {version}")


@main.command("list", help="List the versions, oldest first; * marks the one that current_model/ is.")
@common_options
@pass_invocation
def list_versions(invocation: Invocation) -> None:
    paths = invocation.paths
    kept = [version for version in list_version_ids(paths) if is_kept(paths, version)]
    good, damaged = read_each(kept, lambda version: read_metadata(paths, version))
    head = read_head(paths)["version"] if not damaged else (read_json(paths.head) or {}).get("version")
    rows = [summarize(metadata, head) for metadata in good]
    if invocation.as_json:
        print_json(rows)
    elif rows:
        version_table(rows)
    else:
        click.echo("no versions yet")
    if damaged:
        raise DamagedStateError(
            f"not listed: {'; '.join(damaged)}",
            "backup_manager.py list shows the second copies, backup_manager.py restore ID puts the metadata back",
        )


@main.command(help="Show all that is known of a version.")
@click.argument("version")
@common_options
@pass_invocation
def show(invocation: Invocation, version: str) -> None:
    paths = invocation.paths
    metadata = read_metadata(paths, parse_version_id(paths, version))
    if invocation.as_json:
        print_json(metadata)
        return
    fingerprint = (metadata["base_model_fingerprint"] or {}).get("blake3", "-")
    for label, value in (
        ("Version", metadata["id"]),
        ("Description", show_name(metadata["description"])),
        ("Kind", metadata["kind"]),
        ("Created", metadata["created_at"]),
        ("Parent", metadata["parent"] or "none"),
        ("Steps", f"{metadata['training_steps']} in all, {metadata['run_steps']} in this run"),
        ("Loss", show_loss(metadata["loss"])),
        ("Eval loss", f"{show_loss(metadata['eval_loss'])} (before: {show_loss(metadata['eval_loss_before'])})"),
        ("Base model", f"{metadata['base_model'] or '-'} ({fingerprint[:12]})"),
    ):
        click.echo(f"{label}: {value}")
    for data in metadata["data"]:
        click.echo(
            f"Data: {show_name(data['name'])}, {data['rows']} rows, {data['trained']} trained, {data['blake3'][:12]}"
        )
    for entry in metadata["files"]:
        click.echo(f"File: {entry['path']}, {entry['size']} bytes, {entry['blake3'][:12]}")


@main.command(
    "rollback", help="Undo the last change: a stopped run, a change by hand, else the last training or restore."
)
@common_options
@pass_invocation
def rollback_command(invocation: Invocation) -> None:
    report(invocation, rollback(invocation.paths, announcer(invocation)))


@main.command("restore", help="Make current_model/ the given version; what was there stays.")
@click.argument("version")
@click.option("--target", type=click.Path(path_type=Path), help="Put a copy into this new folder instead.")
@common_options
@pass_invocation
def restore_command(invocation: Invocation, version: str, target: Path | None) -> None:
    paths = invocation.paths
    version_id = parse_version_id(paths, version)
    if target is None:
        report(invocation, restore(paths, version_id, announcer(invocation)))
        return
    copy_version(paths, version_id, target)
    report(invocation, Outcome(f"copied {version_id} to {target}", None, version_id))


@main.command("lineage", help="List a version's ancestry back to the first training, with the data of each.")
@click.argument("version")
@common_options
@pass_invocation
def lineage_command(invocation: Invocation, version: str) -> None:
    paths = invocation.paths
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
                metadata["kind"],
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
