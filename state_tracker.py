#!/usr/bin/env python3
"""What exists here, and what needs attention: one report on the whole training system.

$ python3 state_tracker.py --check | grep VERSIONS:
VERSIONS: 3 saved
$ python3 state_tracker.py --warnings
[daemon] Training daemon not running (model exists with training progress)
$ python3 state_tracker.py --json | jq .current_model.training_steps
225
"""

import atexit
import gc
import os
import sys

if __name__ == "__main__":
    # A report is over before there is garbage worth the search, and what is loaded need not be searched at the end.
    gc.disable()
    atexit.register(gc.freeze)
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from guardrails.bootstrap import enter_venv

    # A monitor takes 1 for a verdict.
    enter_venv(failed=3 if "--nagios" in sys.argv else 1)

from typing import TYPE_CHECKING

import click

from guardrails.cli import Invocation, common_options, pass_invocation, print_json, run, version_option
from guardrails.errors import UsageError
from guardrails.report.document import update_report
from guardrails.report.values import Json

if TYPE_CHECKING:
    from guardrails.paths import Paths
    from guardrails.report.deep_check import Outcome
    from guardrails.report.report import Report
    from guardrails.report.text import Style
    from guardrails.report.views import Request

EXIT_CODES = {"ok": 0, "warning": 1, "critical": 3}
# What monitors expect; to them 3 is UNKNOWN.
PLUGIN_EXIT_CODES = {"ok": 0, "warning": 1, "critical": 2}
STDOUT = "-"


def choose_style() -> "Style":
    from guardrails.report.text import plain_style

    return click.style if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else plain_style


def show_live(invocation: Invocation, seconds: float) -> int:
    from guardrails.report.watch import watch

    gc.enable()
    return watch(invocation.paths, seconds, choose_style(), as_json=invocation.as_json)


def report_on(paths: "Paths", deep: bool) -> "tuple[Report, Outcome | None]":
    """A fresh report, and what a deep check before it found, if one is asked for."""
    if not deep:
        return update_report(paths), None
    from guardrails.report.deep_check import check_deeply

    outcome = check_deeply(paths)
    return update_report(paths, problems=outcome.problems), outcome


def print_deep_check(document: Json, outcome: "Outcome", said: "str | None") -> None:
    from guardrails.report.deep_text import deep_check_lines
    from guardrails.report.faces import print_lines

    print_lines(deep_check_lines(outcome, document, said))


def send_alerts(paths: "Paths", document: Json) -> "tuple[str, Exception | None]":
    from guardrails.background_faces import try_check

    return try_check(paths, document)


def look_back(form: "str | None", since: "str | None", sides: "tuple[str, ...]") -> "Request | None":
    if form not in ("history", "diff") and since is None and not sides:
        return None
    from guardrails.report.views import make_request

    return make_request(form, since, sides)


def refuse_two(faces: "dict[str, object]") -> None:
    """At most one of these is given: what reads stdout reads one form."""
    given = [name for name, value in faces.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} each print a form of their own", "ask for one of them")


def refuse_alert(form: "str | None", alert: bool, systemd: "str | None") -> None:
    if form == "test" and not alert:
        raise UsageError("--test is for --alert", "python3 state_tracker.py --alert --test")
    if alert and (form in ("nagios", "schema", "cron-example") or systemd is not None):
        raise UsageError("--alert goes with a report", "python3 state_tracker.py --alert")


def print_schedule(invocation: Invocation, folder: "str | None") -> int:
    from guardrails.background_faces import print_crontab, print_units

    if folder is None:
        print_crontab(invocation.paths)
    else:
        print_units(invocation.paths, folder, as_json=invocation.as_json)
    return 0


@click.command()
@click.option("--check", "form", flag_value="check", help="Print the full report.")
@click.option("--warnings", "form", flag_value="warnings", help="Print the warnings alone, one a line.")
@click.option("--nagios", "form", flag_value="nagios", help="Print one line, and exit 0 to 3, as a monitoring plugin.")
@click.option("--schema", "form", flag_value="schema", help="Print the JSON Schema of the document.")
@click.option("--history", "form", flag_value="history", help="List what changed, and when.")
@click.option("--since", metavar="TIME", help="With --history: only since 7d, 2h or 2026-11-01.")
@click.option("--diff", "form", flag_value="diff", help="Compare A with B: times, rows (#12) or saved documents.")
@click.argument("sides", nargs=-1, metavar="[A [B]]")
@click.option("--explain", metavar="ID", help="Say what a finding means, why it matters and what to do.")
@click.option("--prometheus", metavar="FILE", help="Write FILE for node_exporter's textfile collector; - is stdout.")
@click.option("--alert", is_flag=True, help="Also send what changed to the addresses for alerts.")
@click.option("--test", "form", flag_value="test", help="With --alert: send each address a test message instead.")
@click.option("--cron-example", "form", flag_value="cron-example", help="Print lines for a crontab.")
@click.option("--systemd", metavar="DIR", help="Write systemd units for the daemon and the report into DIR.")
@click.option("--watch", type=float, metavar="SECONDS", help="Show the state on a screen, anew every SECONDS.")
@click.option("--deep", is_flag=True, help="Read everything in full first; alone, say what was read and found.")
@click.option("--exit-code", is_flag=True, help="Exit 1 on warnings, 3 on critical ones; else a report exits 0.")
@common_options
@version_option
@pass_invocation
def main(
    invocation: Invocation,
    form: "str | None",
    explain: "str | None",
    prometheus: "str | None",
    since: "str | None",
    sides: "tuple[str, ...]",
    alert: bool,
    systemd: "str | None",
    watch: "float | None",
    deep: bool,
    exit_code: bool,
) -> int:
    """Report what exists here and what needs attention, and keep it in .system_state.json.

    Without an option: only update that file. --diff without B compares with now, without A from the last change on.
    """
    if watch is not None:
        refuse_two({"--watch": True, f"--{form}": form, "--explain": explain is not None, "--prometheus": prometheus})
        refuse_two({"--watch": True, "--deep": deep, "--alert": alert, "--systemd": systemd})
        return show_live(invocation, watch)
    refuse_two({f"--{form}": form, "--explain": explain is not None, "--prometheus -": prometheus == STDOUT})
    refuse_two({f"--{form}": form, "--systemd": systemd is not None})
    refuse_two({"--json": invocation.as_json, "--prometheus -": prometheus == STDOUT})
    refuse_alert(form, alert, systemd)
    if form == "schema":
        from guardrails.report.schema import make_schema

        print_json(make_schema())
        return 0
    if form == "cron-example" or systemd is not None:
        return print_schedule(invocation, systemd)
    request = look_back(form, since, sides)
    paths = invocation.paths
    report, outcome = report_on(paths, deep)
    verdict = report.sections["verdict"]
    said, failure = send_alerts(paths, report.document) if alert and form != "test" else (None, None)
    if prometheus is not None:
        from guardrails.report.faces import export_metrics

        export_metrics(report.document, paths.base, prometheus)
    if explain is not None:
        from guardrails.report.faces import print_explanation

        print_explanation(report.document, explain, as_json=invocation.as_json)
    elif request is not None:
        from guardrails.report.views import print_past

        verdict = print_past(request, paths, report.document, choose_style(), as_json=invocation.as_json)["verdict"]
    elif form == "test":
        from guardrails.background_faces import print_test

        print_test(paths, report.document, as_json=invocation.as_json)
    elif invocation.as_json:
        sys.stdout.write(report.text)
    elif form is not None:
        from guardrails.report.faces import print_face

        print_face(form, report.document, paths, choose_style())
    elif outcome is not None and prometheus is None:
        print_deep_check(report.document, outcome, said)
    elif prometheus != STDOUT:
        from guardrails.report.faces import print_update

        print_update(report.sections, prometheus, said)
    if failure is not None:
        raise failure
    codes = PLUGIN_EXIT_CODES if form == "nagios" else EXIT_CODES if exit_code else {}
    return codes.get(verdict, 0)


if __name__ == "__main__":
    if "--nagios" in sys.argv:
        from guardrails.report.nagios import run_check

        run_check(lambda report: run(main, report=report))
    run(main)
