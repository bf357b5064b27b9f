"""Alerts: a message for each change of what deserves attention, to people who look at no report.

Quiet is what makes them read: a finding is announced when it stood in ``after_checks`` checks in a row, all that is new
at a check in one message; then again only when it got worse, or cleared. What one message said is not said by another,
whatever runs at once and whatever is killed: each is kept in the memory before it is sent, until it has arrived.
"""

import os
import time
from calendar import timegm
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from guardrails.alerts.addresses import ALERT_VARIABLE, HEARTBEAT_VARIABLE, Addresses, name_address, read_addresses
from guardrails.alerts.memory import Json, Memory, hold_memory
from guardrails.alerts.messenger import Errand, Message, deliver, require_apprise
from guardrails.alerts.text import Change, make_message, make_test_message, make_withheld_message, merge, read_message
from guardrails.config import check_config, parse_config, read_config_text
from guardrails.errors import ConfigError, OperationError
from guardrails.paths import Paths
from guardrails.report.findings import SEVERITIES
from guardrails.state_io import format_utc

if TYPE_CHECKING:
    from guardrails.settings import Alerts

HOUR_SECONDS = 3600


class Outcome(NamedTuple):
    """How it went with one address; ``reason`` is None where the message arrived."""

    address: str
    reason: str | None


def check(paths: Paths, document: Json, now: float | None = None) -> str:
    """Judge a report, send what it changes, and ask for the heartbeat's address; what was done, in the past tense.

    The heartbeat's address is asked for if and only if all that there was to say has arrived: silence there means that
    nobody is told.

    Raises:
        ConfigError: ``alerts`` in the config is wrong.
        OperationError: there is no address, or a message did not arrive; the next check sends it again.
        BusyError: another check took too long.
        OSError: there is no place to remember what was said.
    """
    now = time.time() if now is None else now
    with hold_memory(paths) as memory:
        settings = read_settings(paths, memory)
        addresses = find_addresses(paths, settings)
        # A report that waited while a later one was judged is old news; unless the clock moved back.
        if not document["last_updated"] < memory.report_at <= format_utc(now):
            message = judge(memory, document, settings, now, paths.base, is_heard=bool(addresses.alerts))
            memory.report_at = document["last_updated"]
            if message is not None:
                for number in range(1, len(addresses.alerts) + 1):
                    memory.waiting[str(number)] = list(merge(message, memory.waiting.get(str(number))))
        memory.write()
        outcomes = _send_waiting(memory, addresses)
        if outcomes:
            memory.write()
    refuse_failures(outcomes, "it is sent again at the next check; to try: python3 state_tracker.py --alert --test")
    ask_heartbeat(addresses)
    return f"{len(outcomes)} alert{'' if len(outcomes) == 1 else 's'} sent" if outcomes else "no alert to send"


def test(paths: Paths, document: Json) -> list[Outcome]:
    """Send a test message to each address, and ask for the heartbeat's; nothing is remembered of it.

    Raises:
        ConfigError, OperationError: there is no address, or ``alerts`` in the config is wrong.
    """
    addresses = find_addresses(paths, read_settings(paths, Memory(paths)))
    message = make_test_message(document, paths.base)
    errands = [Errand(url, message) for url in addresses.alerts]
    names = [name_address(number, url) for number, url in enumerate(addresses.alerts, 1)]
    if addresses.heartbeat:
        errands.append(Errand(addresses.heartbeat, None))
        names.append("heartbeat")
    return [Outcome(name, reason) for name, reason in zip(names, deliver(errands), strict=True)]


def read_settings(paths: Paths, memory: Memory) -> "Alerts":
    """``alerts`` of the config; of the last that could be read where this one cannot, which may be what to tell.

    Raises:
        ConfigError: they are wrong; no message shows a value.
    """
    try:
        config = parse_config(read_config_text(paths), paths.config)
    except ConfigError:
        found = memory.settings
    else:
        found = config.get("alerts")
    checked = check_config({"alerts": found if found is not None else {}}, paths.config).alerts
    assert checked is not None
    memory.settings = checked.model_dump()
    return checked


def find_addresses(paths: Paths, settings: "Alerts") -> Addresses:
    """Where alerts go, and that they can be sent at all.

    Raises:
        OperationError: there is no address, or apprise is not installed.
    """
    file = paths.resolve(settings.secrets_file)
    addresses = read_addresses(os.environ, file)
    if not addresses.alerts and addresses.heartbeat is None:
        raise OperationError(
            f"there is no address for alerts: neither ${ALERT_VARIABLE} nor ${HEARTBEAT_VARIABLE} is set,"
            f" and {file} has none",
            f"write {ALERT_VARIABLE}=URL into '{file}', then: chmod 600 '{file}'",
        )
    if addresses.alerts:
        require_apprise()
    return addresses


def judge(
    memory: Memory, document: Json, settings: "Alerts", now: float, base: Path, *, is_heard: bool = True
) -> Message | None:
    """Count a report's findings, and make the message that it calls for, if any; ``memory`` takes both up.

    Without anybody who hears it nothing is said, nor taken for said.
    """
    relevant = SEVERITIES[: SEVERITIES.index(settings.min_severity) + 1]
    standing = {detail["id"]: detail for detail in document["warning_details"] if detail["severity"] in relevant}
    cleared = [told for identifier, told in memory.told.items() if identifier not in standing]
    replaced = {told["category"] for told in cleared}
    checks = {}
    for identifier, detail in standing.items():
        before = memory.checks.get(identifier, 0)
        # What takes the place of something announced, as a full disk does of one that gets full, need not wait.
        takes_over = not before and detail["category"] in replaced
        checks[identifier] = settings.after_checks if takes_over else min(before + 1, settings.after_checks)
    memory.checks = checks
    new, still = [], []
    for identifier, detail in standing.items():
        told = memory.told.get(identifier)
        if told is None:
            if checks[identifier] >= settings.after_checks:
                new.append(detail)
        elif SEVERITIES.index(detail["severity"]) < SEVERITIES.index(told["severity"]):
            new.append({**detail, "was": told["severity"]})
        else:
            told["severity"] = detail["severity"]
            still.append(detail)
    change = Change(new, cleared, still)
    if not is_heard or not (new or cleared or _is_reminder_due(memory, change, settings, now)):
        return None
    return _make_within_cap(memory, document, change, settings, now, base)


def _is_reminder_due(memory: Memory, change: Change, settings: "Alerts", now: float) -> bool:
    if settings.remind_hours is None or not change.standing:
        return False
    told_at = timegm(time.strptime(memory.told_at, "%Y-%m-%dT%H:%M:%SZ"))
    return now - told_at >= settings.remind_hours * HOUR_SECONDS


def _make_within_cap(
    memory: Memory, document: Json, change: Change, settings: "Alerts", now: float, base: Path
) -> Message | None:
    """The message, and with it what counts as told; once too many were made today, one that says so, then none.

    What is withheld stays untold, so the first message of the next day (UTC) has what is left of it.
    """
    at = format_utc(now)
    if memory.day != at[:10]:
        memory.day, memory.messages = at[:10], 0
    if memory.messages > settings.max_per_day:
        return None
    memory.messages += 1
    if memory.messages > settings.max_per_day:
        return make_withheld_message(document, settings.max_per_day, base)
    told = {detail["id"] for detail in (*change.new, *change.standing)}
    keys = ("category", "severity", "message")
    # Worst first, as they are shown when they are cleared.
    known = [detail for detail in document["warning_details"] if detail["id"] in told]
    memory.told = {detail["id"]: {key: detail[key] for key in keys} for detail in known}
    memory.told_at = at
    return make_message(document, change, base)


def _send_waiting(memory: Memory, addresses: Addresses) -> list[Outcome]:
    """Send what each address has to get yet; what arrived waits no more."""
    due = [(n, url) for n, url in enumerate(addresses.alerts, 1) if str(n) in memory.waiting]
    errands = [Errand(url, read_message(memory.waiting[str(n)])) for n, url in due]
    outcomes = []
    for (number, url), reason in zip(due, deliver(errands), strict=True):
        if reason is None:
            del memory.waiting[str(number)]
        outcomes.append(Outcome(name_address(number, url), reason))
    return outcomes


def refuse_failures(outcomes: list[Outcome], hint: str) -> None:
    """Raises OperationError, in one line that shows no address, if a message did not arrive."""
    failed = [f"{one.address}: {one.reason}" for one in outcomes if one.reason is not None]
    if failed:
        raise OperationError(f"{len(failed)} of {len(outcomes)} alerts did not arrive: {'; '.join(failed)}", hint)


def ask_heartbeat(addresses: Addresses) -> None:
    """Tell whoever waits for a sign of life that all is said.

    Raises:
        OperationError: the address did not answer.
    """
    if addresses.heartbeat:
        reason = deliver([Errand(addresses.heartbeat, None)])[0]
        refuse_failures([Outcome("heartbeat", reason)], f"{HEARTBEAT_VARIABLE} is asked for again at the next check")
