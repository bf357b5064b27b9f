#!/usr/bin/env python3
"""What exists here, and what needs attention: one report on the whole training system.

$ python3 state_tracker.py --check | grep VERSIONS:
VERSIONS: 3 saved
$ python3 state_tracker.py --warnings
[daemon] Training daemon not running (model exists with training progress)
$ python3 state_tracker.py --json | jq .current_model.training_steps
225
"""

import os
import sys
from collections.abc import Iterable

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from guardrails.bootstrap import enter_venv

    enter_venv()

import click

from guardrails.cli import Invocation, common_options, pass_invocation, print_json, run, show_name, version_option
from guardrails.state import Json
from guardrails.state_document import update_document

EXIT_CODES = {"ok": 0, "warning": 1, "critical": 3}


def print_lines(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def print_report(document: Json) -> None:
    from guardrails.state_text import plain_style, report_lines

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print_lines(report_lines(document, click.style if colour else plain_style))


def print_warnings(document: Json) -> None:
    from guardrails.state_text import warning_lines

    print_lines(warning_lines(document))


def print_update(document: Json) -> None:
    unwritable = [d["message"] for d in document["warning_details"] if d["id"] == "state-file-unwritable"]
    done = unwritable[0] if unwritable else "updated .system_state.json"
    print_lines([show_name(f"{done}: verdict {document['verdict']}, warnings: {len(document['warnings'])}")])


@click.command()
@click.option("--check", "form", flag_value="check", help="Print the full report.")
@click.option("--warnings", "form", flag_value="warnings", help="Print the warnings alone, one a line.")
@click.option("--schema", "form", flag_value="schema", help="Print the JSON Schema of the document.")
@click.option("--exit-code", is_flag=True, help="Exit 1 on warnings, 3 on critical ones; else a report exits 0.")
@common_options
@version_option
@pass_invocation
def main(invocation: Invocation, form: "str | None", exit_code: bool) -> int:
    """Report what exists here and what needs attention, and keep it in .system_state.json.

    Without an option: only update that file.
    """
    if form == "schema":
        from guardrails.state_schema import make_schema

        print_json(make_schema())
        return 0
    document = update_document(invocation.paths)
    if invocation.as_json:
        print_json(document)
    elif form == "check":
        print_report(document)
    elif form == "warnings":
        print_warnings(document)
    else:
        print_update(document)
    return EXIT_CODES[document["verdict"]] if exit_code else 0


if __name__ == "__main__":
    run(main)
