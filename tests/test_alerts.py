"""Alerts: each change is told once, to everybody, by whatever works, and none of it shows an address."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.alerts import checks, messenger
from guardrails.alerts.addresses import ALERT_VARIABLE, HEARTBEAT_VARIABLE, mask_address, read_addresses
from guardrails.alerts.checks import check, judge
from guardrails.alerts.memory import Memory
from guardrails.alerts.messenger import Message, run_errand
from guardrails.alerts.text import MOST_LINES
from guardrails.config import check_config
from guardrails.errors import ConfigError, OperationError
from guardrails.paths import CODE_DIR, Paths
from guardrails.settings import Alerts
from guardrails.state_io import format_utc, read_json
from tests.disks import as_root, mounted, read_only
from tests.processes import count_calls, run_killed, run_python, wait_until
from tests.receivers import Mailbox, Webhook, hanging_server
from tests.state.building import BaseDir, healthy, run_tracker

NOW = 1_795_255_200.0  # 2026-11-21T10:00:00Z
ODD = 'größe "模型" & <b>'
# Whatever part of an address shows, one of these does.
SECRETS = ("s3cret", "t0ken", "hidden.example.org", "uuid-9f31")


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    yield webhook
    webhook.close()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


@pytest.fixture
def base(tmp_path: Path) -> BaseDir:
    """A base dir on which nothing stands but what a test puts there; ``report`` depends on this machine's disk."""
    return BaseDir(tmp_path / "base")


def detail(identifier: str, severity: str = "warning", category: str = "daemon", message: str = "") -> dict[str, Any]:
    return {
        "id": identifier,
        "category": category,
        "severity": severity,
        "message": message or f"this is {identifier}",
        "hint": f"python3 fix.py {identifier}",
        "since": format_utc(NOW),
    }


def document(*details: dict[str, Any] | str, at: float = NOW) -> dict[str, Any]:
    """What of a report alerts look at."""
    found = [detail(one) if isinstance(one, str) else one for one in details]
    severities = {one["severity"] for one in found}
    verdict = "critical" if "critical" in severities else "warning" if "warning" in severities else "ok"
    return {"last_updated": format_utc(at), "verdict": verdict, "warning_details": found}


class Judge:
    """Checks one after the other, as an address that takes everything sees them."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Alerts(**settings)
        self.memory = Memory(Paths(Path("/data/llm")))
        self.now = NOW

    def check(self, *details: dict[str, Any] | str, minutes: float = 5) -> Message | None:
        self.now += 60 * minutes
        made = document(*details, at=self.now)
        return judge(self.memory, made, self.settings, self.now, Path("/data/llm"))

    def title(self, *details: dict[str, Any] | str, minutes: float = 5) -> str | None:
        """What the title of the check's message says behind verdict, host and folder."""
        message = self.check(*details, minutes=minutes)
        return message.title.partition("/data/llm: ")[2] if message else None


# What is said, and when


def test_a_finding_is_announced_once_after_that_many_checks_in_a_row_and_its_end_once() -> None:
    judge = Judge(after_checks=3)
    assert [judge.title("a") for _ in range(5)] == [None, None, "this is a", None, None]
    assert [judge.title() for _ in range(3)] == ["cleared: this is a", None, None]
    assert [judge.title("a") for _ in range(3)] == [None, None, "this is a"]


def test_what_comes_and_goes_too_quickly_is_never_said() -> None:
    judge = Judge()
    assert [judge.title(*found) for found in (["a"], [], ["a"], [], ["a"])] == [None] * 5


def test_all_that_is_new_at_a_check_is_one_message_with_what_still_stands() -> None:
    judge = Judge(after_checks=1)
    judge.check("old", "gone")
    message = judge.check(detail("b", "critical", message="the worst"), "c", "old")
    assert message is not None
    assert message.kind == "failure"
    assert message.title.startswith(f"Training CRITICAL on {os.uname().nodename} /data/llm: the worst (and 1 more)")
    new, cleared, still = (message.body.index(word) for word in ("NEW:", "CLEARED:", "STILL STANDING:"))
    places = [message.body.index(f"[daemon] {said}") for said in ("the worst", "this is gone", "this is old")]
    assert new < places[0] < cleared < places[1] < still < places[2]
    assert "    Fix: python3 fix.py b\n" in message.body
    assert message.body.endswith("python3 state_tracker.py --check --base-dir /data/llm")


def test_all_is_well_again_is_a_success() -> None:
    judge = Judge(after_checks=1)
    judge.check("a")
    message = judge.check()
    assert message is not None
    assert (message.kind, " OK on " in message.title) == ("success", True)


def test_what_gets_worse_is_said_again_and_what_gets_better_is_not() -> None:
    judge = Judge()
    severities = ["warning", "warning", "critical", "critical", "warning", "warning", "critical"]
    said = [judge.check(detail("a", severity)) for severity in severities]
    assert [message is not None for message in said] == [False, True, True, False, False, False, True]
    assert said[2] is not None
    assert "(critical, was warning, since" in said[2].body


def test_what_takes_the_place_of_something_announced_is_said_at_once() -> None:
    judge = Judge()
    getting_low, low = detail("disk-getting-low", "warning", "disk"), detail("disk-low", "critical", "disk")
    other = detail("other", "critical", "model")
    assert [judge.title(getting_low) for _ in range(2)] == [None, "this is disk-getting-low"]
    assert judge.title(low, other) == "this is disk-low", "and not: cleared; the other category waits"
    assert judge.title(low, other) == "this is other"


@pytest.mark.parametrize(("least", "heard"), [("info", "iwc"), ("warning", "wc"), ("critical", "c")])
def test_only_what_is_bad_enough_is_said(least: str, heard: str) -> None:
    judge = Judge(after_checks=1, min_severity=least)
    for letter, severity in (("i", "info"), ("w", "warning"), ("c", "critical")):
        found = detail(letter, severity)
        assert (judge.title(found) is not None) == (letter in heard)
        assert (judge.title(detail(letter, "info")) is not None) == (letter in heard and least != "info")
        judge.title()


def test_a_reminder_names_what_still_stands_after_that_many_hours() -> None:
    judge = Judge(after_checks=1, remind_hours=2)
    assert judge.title("a") == "this is a"
    assert [judge.title("a", minutes=30) for _ in range(4)] == [None, None, None, "still: this is a"]
    assert [judge.title("a", minutes=30) for _ in range(4)] == [None, None, None, "still: this is a"]
    assert judge.title() == "cleared: this is a"
    assert judge.title(minutes=1000) is None, "nothing stands, nothing is to be reminded of"
    assert [Judge(after_checks=1).title("a", minutes=100_000) for _ in range(1)] == ["this is a"]


def test_a_day_has_so_many_messages_one_that_says_so_and_the_next_day_what_is_left() -> None:
    judge = Judge(after_checks=1, max_per_day=2)
    said = [judge.title(*found) for found in (["a"], ["a", "b"], ["b"], ["b", "c"], ["c"], ["c", "d"])]
    assert said == ["this is a", "this is b", "2 alerts today, more are withheld until tomorrow (UTC)", *[None] * 3]
    message = judge.check("c", "d", minutes=24 * 60)
    assert message is not None
    assert message.title.endswith("this is c (and 1 more)")
    assert "CLEARED:\n  [daemon] this is a\n  [daemon] this is b\n" in message.body


def test_a_thousand_findings_are_one_message_that_can_be_read() -> None:
    message = Judge(after_checks=1).check(*(f"damaged:{number}" for number in range(1000)))
    assert message is not None
    assert message.body.count("Fix: ") == MOST_LINES
    assert f"  and {1000 - MOST_LINES} more\n" in message.body
    assert "(and 999 more)" in message.title


def test_names_of_files_break_no_line_and_no_header() -> None:
    name = f"{ODD}\r\nBcc: all@example.org\n\x1b[31m\udcff"
    message = Judge(after_checks=1).check(detail("a", message=name))
    assert message is not None
    assert len(message.title.splitlines()) == 1
    assert f"{ODD}\\r\\nBcc" in message.title
    (message.title + message.body).encode()


FINDINGS = st.sets(st.sampled_from("abcd"))
SEVERITY = {"a": "warning", "b": "critical", "c": "warning", "d": "info"}
CATEGORY = {"a": "disk", "b": "disk", "c": "model", "d": "daemon"}


@given(st.lists(FINDINGS, max_size=40), st.integers(1, 4))
def test_who_reads_every_message_knows_what_stands(history: list[set[str]], after_checks: int) -> None:
    judge = Judge(after_checks=after_checks, max_per_day=1000)
    known: set[str] = set()
    for index, standing in enumerate(history):
        message = judge.check(*(detail(one, SEVERITY[one], CATEGORY[one]) for one in sorted(standing)), minutes=1)
        heard = standing - {"d"}
        before = set(known)
        if message is not None:
            sections = message.body.split("\n\n")
            told = {section.split("\n")[0]: section for section in sections}
            known |= {one for one in "abcd" if f"this is {one} " in told.get("NEW:", "")}
            known -= {one for one in "abcd" if f"this is {one}" in told.get("CLEARED:", "")}
            assert known != before, "a message says something new"
        in_a_row = [history[max(0, index - after_checks + 1) : index + 1]] if index + 1 >= after_checks else []
        settled = {one for one in heard if in_a_row and all(one in checked for checked in in_a_row[0])}
        assert settled <= known <= heard, "what stood long enough is known, and what is known stands"
        if not before - heard:
            assert known - before <= settled, "nothing is announced early but what takes a place"


# That it arrives


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Messages go out from this process, which imports apprise once for all tests; the servers are as real."""
    monkeypatch.setattr(checks, "deliver", lambda errands: [run_errand(errand) for errand in errands])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def alert(base: BaseDir, *urls: str, heartbeat: str | None = None, **settings: Any) -> Callable[..., str]:
    """``check`` of documents on a base dir with these addresses."""
    lines = [f"{ALERT_VARIABLE}={url}" for url in urls] + ([f"{HEARTBEAT_VARIABLE}={heartbeat}"] if heartbeat else [])
    write_secrets(base, "\n".join(lines))
    base.config(alerts={"after_checks": 1, **settings})
    clock = iter(range(1, 1000))

    def run(*details: dict[str, Any] | str) -> str:
        now = NOW + 60 * next(clock)
        return check(base.paths, document(*details, at=now), now)

    return run


def write_secrets(base: BaseDir, text: str, mode: int = 0o600) -> Path:
    path = base.base / ".alerts.env"
    path.write_text(text)
    path.chmod(mode)
    return path


def waiting(base: BaseDir) -> dict[str, Any]:
    found = (read_json(base.paths.alerts) or {})["waiting"]
    assert isinstance(found, dict)
    return found


@pytest.mark.usefixtures("at_once")
def test_a_mail_names_verdict_host_and_base_dir_and_has_the_fix(tmp_path: Path, mailbox: Mailbox) -> None:
    base = BaseDir(tmp_path / ODD)
    run = alert(base, mailbox.url())
    assert run(detail("disk-low", "critical", "disk", f"LOW DISK: {ODD}"), "other") == "1 alert sent"
    assert run() == "1 alert sent"
    first, second = mailbox.mails
    assert first["Subject"].startswith(f"Training CRITICAL on {os.uname().nodename} {tmp_path / ODD}: LOW DISK: {ODD}")
    assert second["Subject"].partition(ODD)[2].startswith(": cleared: LOW DISK")
    assert [part.get_content_type() for part in first.walk()] == ["text/plain"], "as it is pasted into a shell"
    text = first.get_content().replace("\r\n", "\n")
    assert f"  [disk] LOW DISK: {ODD} (critical, since 2026-11-21T10:00:00Z, disk-low)\n" in text
    assert "    Fix: python3 fix.py disk-low\n" in text
    assert f"python3 state_tracker.py --check --base-dir '{tmp_path / ODD}'" in text


@pytest.mark.usefixtures("at_once")
def test_a_mail_that_the_server_refuses_waits_for_the_next_check(base: BaseDir, mailbox: Mailbox) -> None:
    run = alert(base, mailbox.url())
    mailbox.answer = "552 Mailbox full"
    with pytest.raises(OperationError, match=r"1 \(mailto://…\): it was not taken"):
        run("a")
    mailbox.answer = "250 OK"
    assert run("a") == "1 alert sent"
    assert run("a") == "no alert to send"
    assert len(mailbox.mails) == 1


@pytest.mark.usefixtures("at_once")
def test_every_address_gets_each_message_once_however_often_another_fails(base: BaseDir, webhook: Webhook) -> None:
    broken = Webhook()
    broken.status = 500
    run = alert(base, webhook.url(), broken.url(), heartbeat=webhook.heartbeat())
    with pytest.raises(OperationError, match=r"1 of 2 alerts did not arrive: 2 \(json://…\): it was not taken"):
        run("a")
    with pytest.raises(OperationError, match="1 of 1 alerts"):
        run("a")
    with pytest.raises(OperationError, match="1 of 2 alerts"):
        run("a", "b")
    assert [title.rpartition(": ")[2] for title in webhook.titles()] == ["this is a", "this is b"]
    assert webhook.gets == [], "nobody is told while something waits"
    broken.status = 200
    assert run("a", "b") == "1 alert sent"
    assert run("a", "b") == "no alert to send"
    # One message, with all that did not arrive before.
    assert len(broken.posts) == 1
    assert broken.titles()[0].endswith("this is b")
    assert "NOT DELIVERED BEFORE: " in broken.posts[0]["message"]
    assert "[daemon] this is a" in broken.posts[0]["message"]
    assert len(webhook.posts) == 2
    assert webhook.gets == ["/ping", "/ping"]
    assert waiting(base) == {}
    broken.close()


@pytest.mark.usefixtures("at_once")
def test_the_heartbeat_is_asked_for_at_every_check_also_without_any_other_address(
    base: BaseDir, webhook: Webhook
) -> None:
    run = alert(base, heartbeat=webhook.heartbeat("ping/uuid-9f31"))
    assert [run(*found) for found in ([], ["a"], ["a"])] == ["no alert to send"] * 3
    assert webhook.gets == ["/ping/uuid-9f31"] * 3
    # Nobody heard of it, so who is added later does.
    assert alert(base, webhook.url())("a") == "1 alert sent"
    webhook.status = 404
    with pytest.raises(OperationError, match="heartbeat: it answered with status 404"):
        alert(base, heartbeat=webhook.heartbeat())("a")


@pytest.mark.parametrize("trickle", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: 1\r\n"])
def test_a_server_that_never_ends_its_answer_holds_nobody_up(
    base: BaseDir, trickle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messenger, "SEND_SECONDS", 1)
    with hanging_server(trickle) as port:
        place = f"127.0.0.1:{port}"
        run = alert(base, f"json://{place}/x", f"mailto://u:pw@x.org:{port}?smtp=127.0.0.1&mode=insecure")
        started = time.monotonic()
        with pytest.raises(OperationError, match=r"2 of 2 alerts did not arrive: .*no answer within 1 s"):
            run("a")
        with pytest.raises(OperationError, match="heartbeat: no answer within 1 s"):
            alert(base, heartbeat=f"http://{place}/")()
        assert time.monotonic() - started < 2 * (1 + messenger.MARGIN_SECONDS)


def test_two_checks_at_once_send_once(base: BaseDir, webhook: Webhook) -> None:
    webhook.pause_seconds = 0.3
    write_secrets(base, f"{ALERT_VARIABLE}={webhook.url()}")
    base.config(alerts={"after_checks": 1}, base_model=None)
    command = [sys.executable, str(CODE_DIR / "state_tracker.py"), "--alert", "--base-dir", str(base.base)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert len(webhook.posts) == 1
    assert "1 alert sent" in said[0]
    assert "no alert to send" in said[1]


@pytest.mark.usefixtures("at_once")
def test_a_report_that_waited_for_a_later_one_clears_nothing(base: BaseDir, webhook: Webhook) -> None:
    run = alert(base, webhook.url())
    run("a")
    earlier, later = document(at=NOW), NOW + 3600
    assert check(base.paths, earlier, later) == "no alert to send"
    # With the clock moved back each report is earlier than the last, and counts.
    assert check(base.paths, document(at=NOW - 7200), NOW - 7200) == "1 alert sent"


CHECK = """
import json, sys
from pathlib import Path
from guardrails.alerts.checks import check
from guardrails.paths import Paths
check(Paths(Path(sys.argv[1])), json.loads(sys.argv[2]), 1795255260.0)
"""


def assert_killed_checks_lose_nothing(base: BaseDir, webhook: Webhook, points: list[tuple[str, int]]) -> None:
    alert(base, webhook.url())
    judged = json.dumps(document("a", at=NOW + 60))
    for call, number in points:
        webhook.posts.clear()
        for left in base.paths.status.iterdir():
            left.unlink()
        run_killed(CHECK, base.base, judged, call=call, number=number)
        done = run_python(CHECK, base.base, judged)
        assert done.returncode == 0, done.stderr
        assert 1 <= len(webhook.posts) <= 2, (call, number, webhook.titles())
        assert waiting(base) == {}
        assert [path.name for path in base.paths.status.iterdir()] == ["alerts.json"]


def test_a_killed_check_sends_at_most_one_message_twice(base: BaseDir, webhook: Webhook) -> None:
    # Before it was kept, and after it was sent.
    assert_killed_checks_lose_nothing(base, webhook, [("rename", 1), ("rename", 2)])


@pytest.mark.usefixtures("at_once")
def test_what_a_killed_check_did_not_send_arrives_though_it_is_over(base: BaseDir, webhook: Webhook) -> None:
    run = alert(base, webhook.url())
    run_killed(CHECK, base.base, json.dumps(document("a", at=NOW)), call="vfork", number=1)
    assert webhook.posts == []
    assert run() == "1 alert sent"
    (post,) = webhook.posts
    assert post["title"].endswith("cleared: this is a")
    assert "NOT DELIVERED BEFORE: " in post["message"]
    assert "NEW:\n  [daemon] this is a" in post["message"]


@pytest.mark.faults
def test_a_check_killed_at_any_call_loses_no_message(base: BaseDir, webhook: Webhook, tmp_path: Path) -> None:
    alert(base, webhook.url())
    # Those that only the check itself makes, and not what it starts.
    calls = ("fsync", "rename", "ftruncate", "vfork")
    counts = count_calls(CHECK, base.base, json.dumps(document("a")), calls=calls, log=tmp_path / "log")
    assert counts == {"fsync": 4, "rename": 2, "ftruncate": 1, "vfork": 1}
    points = [(call, number) for call, count in counts.items() for number in range(1, count + 1)]
    assert_killed_checks_lose_nothing(base, webhook, points)


@as_root
@pytest.mark.usefixtures("at_once")
def test_a_full_disk_and_one_mounted_read_only_are_told_of_once(tmp_path: Path, webhook: Webhook) -> None:
    with mounted("tmpfs", tmp_path) as disk:
        base = BaseDir(disk / "base")
        run = alert(base, webhook.url(), after_checks=2)
        run("a")
        assert run("a") == "1 alert sent"
        with contextlib.suppress(OSError), open(disk / "filler", "wb") as filler:
            while True:
                filler.write(b"x" * 4096)
                filler.flush()
        assert [run("a", "full") for _ in range(4)] == ["no alert to send", "1 alert sent", *["no alert to send"] * 2]
        with read_only(disk):
            # It takes the place of the other, so it is said at once.
            assert [run("a", "read-only") for _ in range(3)] == ["1 alert sent", *["no alert to send"] * 2]
        (disk / "filler").unlink()
        assert [run("a") for _ in range(2)] == ["1 alert sent", "no alert to send"]
    assert [title.partition("/base: ")[2] for title in webhook.titles()] == [
        "this is a",
        "this is full",
        "this is read-only",
        "cleared: this is read-only",
    ]
    assert not list(Path("/dev/shm").glob(f"guardrails-alerts-{os.geteuid()}-*.json"))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("content", ["{", "[]", '{"writes": 1}', '{"schema_version": 99}'])
def test_a_damaged_memory_is_set_aside_and_everything_is_news_again(
    base: BaseDir, webhook: Webhook, content: str
) -> None:
    run = alert(base, webhook.url())
    run("a")
    good = base.paths.alerts.read_text()
    base.paths.alerts.write_text(content if "writes" not in content else good.replace('"told": {', '"told": {"x": 1,'))
    assert run("a") == "1 alert sent"
    assert run("a") == "no alert to send"
    assert (base.paths.status / "alerts.json.damaged").exists()
    assert base.paths.alerts.stat().st_mode & 0o777 == 0o600


# On the command line


def test_the_command_alerts_after_two_checks_and_when_it_is_over(tmp_path: Path, webhook: Webhook) -> None:
    base = healthy(tmp_path / "base")
    write_secrets(base, f"{ALERT_VARIABLE}={webhook.url()}\n{HEARTBEAT_VARIABLE}={webhook.heartbeat()}\n")
    base.config(alerts={"min_severity": "critical"}, backup="off")
    base.base.joinpath("base_models/tiny").rename(base.base / "away")
    done = [run_tracker(base.base, "--alert") for _ in range(3)]
    assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * 3
    assert ["1 alert sent" in one.stdout for one in done] == [False, True, False]
    assert done[0].stdout.startswith("updated .system_state.json; no alert to send: verdict critical, warnings: ")
    (post,) = webhook.posts
    assert post["title"].startswith(f"Training CRITICAL on {os.uname().nodename} {base.base}: base model is missing")
    assert "Fix: " in post["message"]
    base.base.joinpath("away").rename(base.base / "base_models/tiny")
    assert "1 alert sent" in run_tracker(base.base, "--alert").stdout
    assert ": cleared: base model is missing" in webhook.titles()[1]
    assert webhook.gets == ["/ping"] * 4


def test_a_report_of_any_form_is_printed_whatever_becomes_of_the_alerts(base: BaseDir, webhook: Webhook) -> None:
    base.config(alerts={"after_checks": 1}, base_model=None)
    write_secrets(base, f"{ALERT_VARIABLE}={webhook.url()}")
    webhook.status = 500
    done = run_tracker(base.base, "--alert", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"] == read_json(base.paths.system_state)["verdict"]  # type: ignore[index]
    assert json.loads(done.stderr)["error"].startswith("1 of 1 alerts did not arrive: 1 (json://…)")
    done = run_tracker(base.base, "--alert", "--warnings")
    assert (done.returncode, "[config] base_model is not set" in done.stdout) == (1, True)
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    webhook.status = 200
    metrics = base.base / "training.prom"
    done = run_tracker(base.base, "--alert", "--prometheus", str(metrics), "--exit-code")
    assert (done.returncode, done.stderr, metrics.exists()) in [(1, "", True), (3, "", True)]
    assert len(webhook.posts) == 1


def test_a_test_message_goes_to_every_address_and_changes_nothing(base: BaseDir, webhook: Webhook) -> None:
    base.config()
    write_secrets(
        base, f"{ALERT_VARIABLE}={webhook.url()} {webhook.url('b')}\n{HEARTBEAT_VARIABLE}={webhook.heartbeat()}"
    )
    done = run_tracker(base.base, "--alert", "--test")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 (json://…): it arrived\n2 (json://…): it arrived\nheartbeat: it arrived\n"
    assert sorted(post["path"] for post in webhook.posts) == ["/b", "/hook"]
    assert all(title.endswith(": test") for title in webhook.titles())
    assert (webhook.gets, base.paths.alerts.exists()) == (["/ping"], False)
    webhook.status = 403
    done = run_tracker(base.base, "--alert", "--test", "--json")
    assert done.returncode == 1
    assert [one["ok"] for one in json.loads(done.stdout)] == [False] * 3
    assert "3 of 3 alerts did not arrive" in json.loads(done.stderr)["error"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--test"], "--test is for --alert"),
        (["--alert", "--nagios"], "--alert goes with a report"),
        (["--alert", "--cron-example"], "--alert goes with a report"),
        (["--alert", "--systemd", "x"], "--alert goes with a report"),
    ],
)
def test_what_does_not_go_together_is_refused(base: BaseDir, options: list[str], said: str) -> None:
    done = run_tracker(base.base, *options)
    assert done.returncode == (3 if "--nagios" in options else 2)
    assert said in done.stderr + done.stdout
    assert not base.paths.system_state.exists()


@pytest.mark.usefixtures("at_once")
def test_the_config_is_not_needed_to_tell_that_it_is_gone(base: BaseDir, webhook: Webhook) -> None:
    run = alert(base, webhook.url(), secrets_file="elsewhere.env")
    (base.base / ".alerts.env").rename(base.base / "elsewhere.env")
    assert run() == "no alert to send"
    base.paths.config.write_text("{")
    assert run(detail("config-unreadable", "critical", "config")) == "1 alert sent"
    base.paths.config.unlink()
    assert run(detail("config-missing", "critical", "config")) == "1 alert sent"


def test_the_settings_that_the_guide_shows_are_those_that_hold_without_any() -> None:
    guide = (CODE_DIR / "docs/STATE_TRACKER_GUIDE.md").read_text()
    shown = re.findall(r"config set alerts '(.*)'", guide)
    assert [check_config({"alerts": json.loads(one)}, Path("config.json")).alerts for one in shown] == [Alerts()]


# What is wrong is one line, and shows no address


def error_of(base: BaseDir, environment: dict[str, str] | None = None, **settings: Any) -> str:
    """The error of ``--alert``, which is one line and a hint."""
    values = {**os.environ, **(environment or {})}
    done = run_tracker(base.base, "--alert", env=values, **settings)
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
    assert done.returncode in (1, 10)
    assert base.paths.system_state.exists(), "the state file is updated all the same"
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS), done.stderr
    return done.stderr


def refusal(file: Path) -> str:
    """What is said of a file that is not used."""
    with pytest.raises(OperationError) as error:
        read_addresses({}, file)
    shown = f"{error.value.message}\n{error.value.hint}"
    assert not any(secret in shown for secret in SECRETS)
    return shown


def test_without_an_address_the_error_says_where_it_goes(base: BaseDir) -> None:
    base.config()
    said = error_of(base)
    assert f"neither ${ALERT_VARIABLE} nor ${HEARTBEAT_VARIABLE} is set, and {base.base}/.alerts.env has none" in said
    assert "chmod 600" in said


def test_without_apprise_the_error_says_what_to_install(base: BaseDir, tmp_path: Path) -> None:
    base.config()
    write_secrets(base, f"{ALERT_VARIABLE}=json://s3cret:t0ken@hidden.example.org/")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['apprise'] = None\n")
    said = error_of(base, {"PYTHONPATH": str(tmp_path)})
    assert "alerts need the package apprise, which is not installed" in said
    assert "pip install -c constraints.txt '.[alerts]'" in said


def test_a_file_that_others_may_open_is_not_used(base: BaseDir) -> None:
    base.config()
    write_secrets(base, f"{ALERT_VARIABLE}=json://s3cret:t0ken@hidden.example.org/", 0o640)
    said = error_of(base)
    assert "has mode 0640, so others may read it; it was not used" in said
    assert f"chmod 600 '{base.base}/.alerts.env'" in said


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o601, 0o777])
def test_no_mode_that_lets_others_in_will_do(base: BaseDir, mode: int) -> None:
    assert f"has mode {mode:04o}" in refusal(write_secrets(base, f"{ALERT_VARIABLE}=json://s3cret/", mode))


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_the_variables_of_the_environment_come_before_those_of_the_file(base: BaseDir, mode: int) -> None:
    text = f"\n# mine\nexport {ALERT_VARIABLE}='json://a/?x=1 json://b'\n{ALERT_VARIABLE}=json://c\n"
    path = write_secrets(base, f"{text}{HEARTBEAT_VARIABLE}=https://beat.org/1", mode)
    assert read_addresses({}, path) == (["json://a/?x=1", "json://b", "json://c"], "https://beat.org/1")
    assert read_addresses({ALERT_VARIABLE: "json://d\njson://e"}, path) == (
        ["json://d", "json://e"],
        "https://beat.org/1",
    )
    assert read_addresses({HEARTBEAT_VARIABLE: "http://x/"}, path)[1] == "http://x/"
    assert read_addresses({ALERT_VARIABLE: ""}, base.base / "none") == ([], None)


@as_root
def test_a_file_of_another_user_is_not_used(base: BaseDir) -> None:
    path = write_secrets(base, f"{ALERT_VARIABLE}=json://s3cret:t0ken@hidden.example.org/")
    os.chown(path, 65534, -1)
    assert "belongs to user 65534, not to user 0 who runs this" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("json://s3cret:t0ken@hidden.example.org/?a=b", "line 1: neither GUARDRAILS_ALERT_URLS=…"),
        ("# fine\n\nGUARDRAILS_ALERT_URL=json://s3cret", "line 3: neither GUARDRAILS_ALERT_URLS=…"),
        (f"{ALERT_VARIABLE}=s3cret:t0ken@hidden.example.org", "alert address 1 is no URL"),
        (f"{ALERT_VARIABLE}=json://127.0.0.1 t0ken", "alert address 2 is no URL"),
        (f"{HEARTBEAT_VARIABLE}=ftp://hidden.example.org/uuid-9f31", "is not one http:// or https:// URL"),
        (f"{HEARTBEAT_VARIABLE}=file:///s3cret", "is not one http:// or https:// URL"),
        (f"{HEARTBEAT_VARIABLE}=http://a.org/\n{HEARTBEAT_VARIABLE}=http://t0ken.org/", "is not one http://"),
        ("\x00" * 70_000, "is no text file of addresses"),
    ],
)
def test_a_file_that_holds_something_else_is_named_by_its_line(base: BaseDir, content: str, said: str) -> None:
    assert said in refusal(write_secrets(base, content))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_makes_nobody_wait(base: BaseDir, make: Callable[[Path], None]) -> None:
    make(base.base / ".alerts.env")
    assert "is no file" in refusal(base.base / ".alerts.env")


@pytest.mark.parametrize(
    ("alerts", "said"),
    [
        ("json://s3cret:t0ken@hidden.example.org/", "alerts: Input should be"),
        ({"urls": ["json://s3cret:t0ken@hidden.example.org/"]}, 'unknown key "alerts.urls"'),
        ({"heartbeat": "https://hidden.example.org/uuid-9f31"}, 'unknown key "alerts.heartbeat"'),
        ({"secrets_file": ["s3cret"]}, "alerts.secrets_file: Input should be"),
    ],
)
def test_an_address_in_the_config_is_refused_and_not_shown(alerts: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_config({"alerts": alerts}, Path("config.json"))
    shown = error.value.message + error.value.hint
    assert said in shown
    assert "addresses stand in $GUARDRAILS_ALERT_URLS or in the file" in shown
    assert not any(secret in shown for secret in SECRETS)


def test_a_wrong_setting_is_named_with_the_nearest_right_one(base: BaseDir) -> None:
    base.config(alerts={"max_per_dya": 3})
    assert 'unknown key "alerts.max_per_dya"\nhint: did you mean "alerts.max_per_day"?' in error_of(base)


def test_no_part_of_an_address_shows_anywhere(base: BaseDir, tmp_path: Path) -> None:
    base.config(alerts={"after_checks": 1}, base_model=None)
    user = "s3cret-user:s3cret%20pw"
    urls = [
        f"json://{user}@127.0.0.1:1/t0ken-path?x=t0ken-value",
        f"mailto://{user}@hidden.example.org:1?smtp=127.0.0.1&mode=insecure",
    ]
    environment = {ALERT_VARIABLE: " ".join(urls), HEARTBEAT_VARIABLE: "http://127.0.0.1:1/uuid-9f31"}
    for options in (["--alert"], ["--alert", "--test", "--json"]):
        done = run_tracker(base.base, *options, env={**os.environ, **environment})
        assert done.returncode == 1
        assert "of " in done.stderr
        for secret in SECRETS:
            assert secret not in done.stdout + done.stderr, (options, done.stdout, done.stderr)
    kept = [path for path in base.base.rglob("*") if path.is_file()]
    assert base.paths.alerts in kept
    for path in kept:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS), path


def test_a_traceback_of_apprise_is_one_masked_line(base: BaseDir, tmp_path: Path) -> None:
    base.config(alerts={"after_checks": 1}, base_model=None)
    (tmp_path / "apprise.py").write_text(
        "import sys\n"
        "class Asset:\n    def __init__(self, **_): pass\n"
        "AppriseAsset, NotifyFormat = Asset, None\n"
        "class Apprise:\n"
        "    @staticmethod\n"
        "    def instantiate(url, asset):\n"
        "        print(url)\n        print(url, file=sys.stderr)\n"
        "        raise RuntimeError(f'cannot open\\n{url} as {url.upper()}')\n"
    )
    # Found before the real one.
    loader = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
    (tmp_path / "sitecustomize.py").write_text(loader)
    values = {"PYTHONPATH": str(tmp_path), ALERT_VARIABLE: "json://s3cret:t0ken@hidden.example.org/"}
    said = error_of(base, values)
    assert "1 of 1 alerts did not arrive: 1 (json://…): RuntimeError: cannot open **** as ****" in said


@given(
    st.text(
        alphabet=st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/:@?&#,;+= "), min_size=3
    ),
    st.sampled_from(["x://{}", "x://u:{}@host.org/", "x://host/a/{}/b", "x://host?token={}", "x://{}:pw@h?a=b"]),
)
def test_a_secret_is_masked_wherever_it_stands_in_an_address(secret: str, shape: str) -> None:
    from urllib.parse import quote, unquote

    for written in (secret, quote(secret, safe="")):
        url = shape.format(written)
        for shown in (secret, written, unquote(written), written.upper() if written.isascii() else written):
            assert shown not in mask_address(f"failed for |{shown}| and {url}", url).replace("failed for", "")


def test_no_other_process_sees_an_address(base: BaseDir) -> None:
    """Neither in the arguments of what sends it, nor, for other users, in its environment."""
    with hanging_server() as port:
        write_secrets(base, f"{ALERT_VARIABLE}=json://s3cret:t0ken@127.0.0.1:{port}/")
        base.config(alerts={"after_checks": 1}, base_model=None)
        command = [sys.executable, str(CODE_DIR / "state_tracker.py"), "--alert", "--base-dir", str(base.base)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen: list[psutil.Process] = []
        try:
            own = psutil.Process(process.pid)
            wait_until(lambda: any("guardrails.alerts.messenger" in child.cmdline() for child in own.children()))
            seen = [own, *own.children()]
            found = "".join(f"{one.cmdline()}{one.environ()}" for one in seen)
            assert "guardrails.alerts.messenger" in found
            assert "s3cret" not in found
        finally:
            for one in seen:
                one.kill()
            process.wait()


def test_neither_a_report_nor_a_quiet_check_imports_what_sends(base: BaseDir, webhook: Webhook) -> None:
    base.config()
    write_secrets(base, f"{ALERT_VARIABLE}={webhook.url()}")

    def imported(*options: str) -> set[str]:
        command = [sys.executable, "-X", "importtime", str(CODE_DIR / "state_tracker.py"), *options]
        done = subprocess.run([*command, "--base-dir", base.base], capture_output=True, text=True, check=True)
        return {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}

    of_report = imported("--json")
    own = ("alerts", "schedule", "units", "background")
    assert not [name for name in of_report if name.startswith(tuple(f"guardrails.{word}" for word in own))]
    of_check = imported("--alert")
    assert "guardrails.alerts.checks" in of_check
    assert not {name.partition(".")[0] for name in of_check} & {"apprise", "requests", "smtplib", "asyncio", "rich"}
