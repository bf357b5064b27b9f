"""What a deep check did, as text for people."""

from collections.abc import Iterator

from guardrails.cli import show_name
from guardrails.report.deep_check import Outcome
from guardrails.report.deep_findings import KINDS
from guardrails.report.text import update_line
from guardrails.report.values import Json

MEGABYTE = 1 << 20
MOST_FINDINGS = 20


def deep_check_lines(outcome: Outcome, document: Json, said: str | None = None) -> Iterator[str]:
    """What was read, what of it is damaged with the command that helps, and the verdict of it all.

    ``said`` is what else was done.
    """
    counts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in outcome.read.items()]
    cost = f"{outcome.read_bytes / MEGABYTE:.1f} MB, {outcome.seconds:.1f} s"
    yield f"read in full: {', '.join(counts) or 'nothing'} ({cost})"
    found = [detail for detail in document["warning_details"] if detail["id"].partition(":")[0] in KINDS]
    for detail in found[:MOST_FINDINGS]:
        yield show_name(f"[{detail['category']}] {detail['message']}")
        yield show_name(f"   Fix: {detail['hint']}")
    if len(found) > MOST_FINDINGS:
        yield f"{len(found) - MOST_FINDINGS} more: python3 state_tracker.py --check"
    if not found:
        yield "all is as it was saved"
    yield update_line(document, None, said)
