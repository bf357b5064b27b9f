"""The faces of one state document, each as it is printed; ``--json`` needs none of this.

Each imports what it needs when it is asked for, so that no form pays for another.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from guardrails.cli import print_json
from guardrails.paths import Paths
from guardrails.report.text import Look, Style, explanation_lines, report_lines, update_line, warning_lines
from guardrails.report.values import Json

STDOUT = "-"


def print_lines(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def print_face(form: str, document: Json, paths: Paths, style: Style) -> None:
    """The form ``check``, ``warnings`` or ``nagios``."""
    if form == "warnings":
        print_lines(warning_lines(document))
    elif form == "nagios":
        from guardrails.report.nagios import print_line, status_line

        print_line(status_line(document))
    else:
        print_lines(report_lines(document, _choose_look(style), _find_changes(document, paths)))


def _choose_look(style: Style) -> Look:
    """Figures and times as people read them on a terminal; anywhere else to the letter."""
    if not sys.stdout.isatty():
        return Look(style)
    from guardrails.report.look import TerminalLook

    return TerminalLook(style)


def _find_changes(document: Json, paths: Paths) -> Sequence[str]:
    """What has changed since all was well."""
    if document["verdict"] == "ok":
        return ()
    from guardrails.report.past import find_words_since_healthy

    return find_words_since_healthy(paths, document)


def print_update(document: Json, metrics_file: str | None, said: str | None = None) -> None:
    print_lines([update_line(document, metrics_file, said)])


def print_explanation(document: Json, identifier: str, *, as_json: bool) -> None:
    """What a finding means, and whether it stands.

    Raises:
        UsageError: there is no such finding.
    """
    from guardrails.report.explanations import explain

    explanation = explain(identifier, document)
    if as_json:
        print_json(explanation)
    else:
        print_lines(explanation_lines(explanation))


def export_metrics(document: Json, base: Path, target: str) -> None:
    """Metrics to the file ``target``, or to stdout.

    Raises:
        OperationError: something that is no metrics file lies there.
        OSError: it cannot be written.
    """
    from guardrails.report.prometheus import make_metrics, write_metrics

    metrics = make_metrics(document, base)
    if target == STDOUT:
        # As bytes: the format is UTF-8 in every locale.
        sys.stdout.flush()
        sys.stdout.buffer.write(metrics.encode())
    else:
        write_metrics(Path(target), metrics)
