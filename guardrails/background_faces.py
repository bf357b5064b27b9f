"""The faces of what runs unseen: a check that alerts, its test, lines for cron and units for systemd."""

import os
import sys
from pathlib import Path

from guardrails.alerts.checks import check, refuse_failures, test
from guardrails.cli import print_json
from guardrails.errors import GuardrailsError
from guardrails.paths import Paths
from guardrails.report.faces import print_lines
from guardrails.report.values import Json
from guardrails.schedule import crontab_lines
from guardrails.units import next_commands, write_units

TRY_AGAIN = "correct the address or the settings of the service, then: python3 state_tracker.py --alert --test"


def try_check(paths: Paths, document: Json) -> tuple[str, GuardrailsError | OSError | None]:
    """What came of a report's alerts, in the past tense, and what went wrong: the report is printed all the same."""
    try:
        return check(paths, document), None
    except (GuardrailsError, OSError) as error:
        return "alerts failed", error


def print_test(paths: Paths, document: Json, *, as_json: bool) -> None:
    """Send a test to every address, and say of each how it went.

    Raises:
        OperationError: there is no address, or one took nothing.
    """
    outcomes = test(paths, document)
    if as_json:
        print_json([{"address": one.address, "ok": one.reason is None, "reason": one.reason} for one in outcomes])
    else:
        print_lines(f"{one.address}: {one.reason or 'it arrived'}" for one in outcomes)
    refuse_failures(outcomes, TRY_AGAIN)


def print_crontab(paths: Paths) -> None:
    # As bytes: paths are what they are in every locale.
    lines = "".join(f"{line}\n" for line in crontab_lines(paths))
    sys.stdout.flush()
    sys.stdout.buffer.write(lines.encode())


def print_units(paths: Paths, folder: str, *, as_json: bool) -> None:
    """Write units, and say what to do with them.

    Raises:
        OperationError: other files are in their place.
    """
    units = write_units(paths, Path(os.path.abspath(folder)))
    commands = next_commands(units)
    if as_json:
        print_json({"written": [str(unit) for unit in units], "next": commands})
    else:
        print_lines([*(f"wrote {unit}" for unit in units), *(f"next: {command}" for command in commands)])
