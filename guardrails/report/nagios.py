"""The state document as one line for Nagios, Icinga and whatever else runs monitoring plugins.

The form is that of the Monitoring Plugins guidelines: ``SERVICE STATUS - text | performance data``, and exit codes that
mean OK, WARNING, CRITICAL and UNKNOWN. The line is ASCII, and nothing in its text is more than text to a monitor, to a
web page, or to a shell that is handed it.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NoReturn

from guardrails.cli import Report, report_error
from guardrails.report.findings import CRITICAL_FREE_BYTES, LOW_FREE_BYTES
from guardrails.report.values import GIB, Json

UNKNOWN = 3
SERVICE = "TRAINING"
# Characters of the text. A monitor shows it in a table; the whole line has to pass through old NRPE's kilobyte.
MAX_TEXT = 200
# Nothing here counts that far; a damaged record may claim it, and would fill the line.
MAX_VALUE = 10**15
MORE_THAN_TEXT = str.maketrans({"|": "/", "\\": "/", "<": "(", ">": ")", "&": "+", **dict.fromkeys("'\"`$")})


def status_line(document: Json) -> str:
    """The worst finding, or in short how things are; then the performance data."""
    alarms = [detail for detail in document["warning_details"] if detail["severity"] != "info"]
    if alarms:
        more = f" (and {len(alarms) - 1} more)" if len(alarms) > 1 else ""
        text = _clean(f"[{alarms[0]['category']}] {alarms[0]['message']}") + more
    else:
        text = (
            f"{document['training_status']['status']}, {len(document['versions'])} versions,"
            f" daemon {'running' if document['daemon_running'] else 'stopped'},"
            f" {document['disk_space']['available_gb']} GB free"
        )
    return f"{SERVICE} {document['verdict'].upper()} - {text} | {' '.join(_performance(document))}"


def _clean(text: str) -> str:
    """Printable ASCII on one line, not too long, without what is more than text somewhere."""
    line = re.sub(r"[^ -~]", "?", " ".join(text.split()).translate(MORE_THAN_TEXT))
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 3]}..."


def _performance(document: Json) -> Iterator[str]:
    """``label=value[unit][;warn;crit;min;max]``; what is null in the document is left out."""
    model, training, disk = (document[name] for name in ("current_model", "training_status", "disk_space"))
    # As the guidelines have it, "50:" alarms below 50 and "0" above 0.
    limits = f";{LOW_FREE_BYTES}:;{CRITICAL_FREE_BYTES}:;0;{_bytes(disk['total_gb'])}"
    yield _figure("disk_free", _bytes(disk["available_gb"]), "B", limits)
    yield _figure("disk_used", disk["used_percent"], "%", ";;;0;100")
    yield _figure("model_size", _bytes(model["size_gb"]), "B")
    yield _figure("model_steps", model["training_steps"])
    yield _figure("versions", len(document["versions"]))
    for name, size in document["storage"].items():
        yield _figure(name.replace("_gb", "_size"), _bytes(size), "B")
    yield _figure("daemon", int(document["daemon_running"]), limits=";;;0;1")
    yield _figure("steps", training["current_step"])
    yield _figure("evaluations", training["total_evals"])
    yield _figure("run_steps", training["run_step"])
    yield _figure("run_total_steps", training["run_total_steps"])
    if training["loss"] is not None:
        yield _figure("loss", training["loss"])
    if training["eta_seconds"] is not None:
        yield _figure("eta", training["eta_seconds"], "s")
    for state, count in document["queue"].items():
        yield _figure(f"queue_{state}", count, limits=";0" if state == "failed" else "")
    for severity, limits in (("critical", ";;0"), ("warning", ";0"), ("info", "")):
        count = sum(detail["severity"] == severity for detail in document["warning_details"])
        yield _figure(f"findings_{severity}", count, limits=limits)
    yield _figure("pending", len(document["pending"]))
    gpu = document["gpu"]
    if gpu is not None:
        yield _figure("gpus", gpu["count"])
        yield _figure("gpu_memory", _bytes(gpu["memory_used_gb"]), "B", f";;;0;{_bytes(gpu['memory_total_gb'])}")
        yield _figure("gpu_used", gpu["utilization_percent"], "%", ";;;0;100")


def _figure(label: str, value: float, unit: str = "", limits: str = "") -> str:
    """One datum, never in exponents; ``U``, for a value that is not known, where the number makes no sense."""
    number = "U" if abs(value) >= MAX_VALUE else f"{value:.6f}".rstrip("0").rstrip(".") + unit
    return f"{label}={number}{limits}"


def _bytes(size_gb: float) -> int:
    return round(size_gb * GIB)


def report_unknown(message: str, hint: str, _exit_code: int) -> int:
    """Tell an error as a plugin does: on stdout, with the exit code for UNKNOWN; with ``--json`` as everywhere."""
    if "--json" in sys.argv[1:]:
        return report_error(message, hint, UNKNOWN)
    with suppress(OSError):
        print_line(f"{SERVICE} UNKNOWN - {_clean(message)}")
    return UNKNOWN


def print_line(line: str) -> None:
    """Past Python's buffer, where what cannot be written would be tried again at exit and change the exit code.

    Whether a monitor has closed the pipe makes no difference: it still takes the exit code.
    """
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), f"{line}\n".encode("ascii"))


def run_check(run: Callable[[Report], NoReturn]) -> NoReturn:
    """``run``; whatever goes wrong in it is UNKNOWN, since any other exit code would pass for a verdict."""
    try:
        run(report_unknown)
    except Exception as error:  # noqa: BLE001 - a bug keeps its traceback, below the line that the monitor reads
        code = report_unknown(f"internal error: {type(error).__name__}: {error}", "", UNKNOWN)
        traceback.print_exc()
        sys.exit(code)
