"""The state document as text: the same sections, lines and words on a terminal and on a pipe."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from guardrails.cli import show_name, symbol
from guardrails.report.values import Json

COLOURS = {"critical": "red", "warning": "yellow", "info": "cyan", "ok": "green"}
NO_WARNINGS = "no warnings"
# Of what changed since all was well, a line names the weightiest.
MOST_CHANGES = 4

# click.style, or plain_style where no colour is wanted
Style = Callable[..., str]


def plain_style(text: str, **_: object) -> str:
    return text


def warning_lines(document: Json) -> list[str]:
    """One line a warning, ``[category] message``, worst first; one line without any category's name if all is well."""
    return [f"[{category}] {show_name(message)}" for category, message in document["warnings"]] or [NO_WARNINGS]


def update_line(document: Json, metrics_file: str | None = None, said: str | None = None) -> str:
    """What was done where no report was asked for."""
    unwritable = [d["message"] for d in document["warning_details"] if d["id"] == "state-file-unwritable"]
    done = unwritable[0] if unwritable else "updated .system_state.json"
    done += f"; wrote {metrics_file}" if metrics_file else ""
    done += f"; {said}" if said else ""
    return show_name(f"{done}: verdict {document['verdict']}, warnings: {len(document['warnings'])}")


class Look:
    """How a report writes its values: to the letter, as programs that read it rely on."""

    def __init__(self, style: Style = plain_style) -> None:
        self.style = style

    def number(self, value: int) -> str:
        return str(value)

    def gigabytes(self, value: float) -> str:
        return f"{value:.2f} GB"

    def time(self, stamp: str) -> str:
        return stamp

    def seconds(self, value: float) -> str:
        return f"{value:.0f} seconds"

    def fields(self, fields: Iterable[tuple[str, str]]) -> Iterator[str]:
        """The lines of a section: each a label and its value."""
        for label, value in fields:
            yield f"   {label}: {value}"

    def versions(self, versions: Sequence[Json]) -> Iterator[str]:
        """A line a version."""
        for version in versions:
            end = f"({version['date']}, {self.gigabytes(version['size_gb'])})"
            yield f"   {symbol('•', '*')} {version['id']}: {describe_version(version)} {end}"

    def finding(self, detail: Json) -> Iterator[str]:
        """What was found."""
        severity = self.style(detail["severity"], fg=COLOURS[detail["severity"]])
        line = f"   {symbol('•', '*')} [{detail['category']}] {show_name(detail['message'])}"
        yield f"{line} ({severity}, {show_name(detail['id'])})"


TO_THE_LETTER = Look()


def report_lines(document: Json, look: Look = TO_THE_LETTER, changes: Sequence[str] = ()) -> Iterator[str]:
    """The full report, section by section; each warning is followed by the command that helps.

    ``changes`` are what has changed since all was well, for below each warning.
    """
    style = look.style

    def heading(name: str, rest: str = "") -> str:
        return style(name, bold=True) + rest

    yield heading("CURRENT MODEL:")
    yield from look.fields(_model_fields(document["current_model"], look))
    yield ""
    yield heading("VERSIONS:", f" {len(document['versions'])} saved")
    yield from look.versions(document["versions"])
    kept = [f"{look.gigabytes(size)} {name.removesuffix('_gb')}" for name, size in document["storage"].items()]
    yield f"   Storage: {', '.join(kept)}"
    config = document["config"]
    yield ""
    yield heading("CONFIG:")
    yield from look.fields(
        [
            ("Model", _value(config["model_name"])),
            ("Base", _value(config["base_model"])),
            ("Max Length", _value(config["max_length"])),
            ("Locked Params", ", ".join(config["locked_params"]) or "none"),
        ]
    )
    yield ""
    yield heading("TRAINING STATUS:")
    yield from look.fields(_training_fields(document, look))
    yield ""
    running = document["daemon_running"]
    yield heading("DAEMON:", style(" Running", fg="green") if running else style(" Stopped", fg="yellow"))
    disk = document["disk_space"]
    yield ""
    yield heading("DISK SPACE:")
    yield from look.fields([("Available", f"{disk['available_gb']} GB"), ("Used", f"{disk['used_percent']}%")])
    yield ""
    count, verdict = len(document["warning_details"]), document["verdict"]
    yield heading("WARNINGS:", f" {count or 'none'}, verdict " + style(verdict, fg=COLOURS[verdict]))
    for detail in document["warning_details"]:
        yield from look.finding(detail)
        yield f"     Fix: {show_name(detail['hint'])}"
        if changes and detail["severity"] != "info":
            yield f"     Since: {detail['since']}; changed since all was well: {show_name(_first_of(changes))}"


def _first_of(changes: Sequence[str]) -> str:
    more = len(changes) - MOST_CHANGES
    return ", ".join(changes[:MOST_CHANGES]) + (f" and {more} more" if more > 0 else "")


def _value(value: object) -> str:
    return "not set" if value is None else show_name(str(value))


def describe_version(version: Json) -> str:
    return show_name(version["description"]) or "(no description)"


def _model_fields(model: Json, look: Look) -> list[tuple[str, str]]:
    exists = (f"{symbol('✓', '+')} Exists", model["path"]) if model["exists"] else (f"{symbol('✗', '-')} Exists", "No")
    return [
        exists,
        ("Size", look.gigabytes(model["size_gb"])),
        ("Training Steps", look.number(model["training_steps"])),
        ("Last Training", look.time(model["last_training"]) if model["last_training"] else "never"),
        ("Has Adapter", "Yes" if model["has_adapter"] else "No"),
    ]


def _training_fields(document: Json, look: Look) -> Iterator[tuple[str, str]]:
    training = document["training_status"]
    yield "Status", training["status"]
    yield "Steps", look.number(training["current_step"])
    yield "Evaluations", look.number(training["total_evals"])
    if training["status"] in ("training", "paused", "stopping"):
        step, total = (look.number(training[key]) for key in ("run_step", "run_total_steps"))
        loss = "" if training["loss"] is None else f", loss {training['loss']:.4g}"
        eta = "" if training["eta_seconds"] is None else f", {look.seconds(training['eta_seconds'])} left"
        yield "Run", f"step {step} of {total}{loss}{eta}"
    gpu = document["gpu"]
    if gpu is not None:
        used = f"{gpu['memory_used_gb']} of {gpu['memory_total_gb']} GB, {gpu['utilization_percent']}% busy"
        yield "GPU", f"{gpu['count']} x {show_name(gpu['name'])}, {used}"
    yield "Queue", ", ".join(f"{look.number(count)} {state}" for state, count in document["queue"].items())
    for line in document["pending"]:
        yield "Pending", show_name(line)


def explanation_lines(explanation: Json) -> Iterator[str]:
    """What ``guardrails.report.explanations.explain`` says of a finding, and what of it stands."""
    otherwise = f" ({explanation['otherwise']})" if explanation["otherwise"] else ""
    yield f"{explanation['id']}: {explanation['severity']}{otherwise}"
    yield f"   [{explanation['category'] or '...'}] {explanation['message']}"
    yield f"   Meaning: {explanation['meaning']}"
    yield f"   Why it matters: {explanation['why']}"
    yield f"   What to do: {explanation['remedy']}"
    if not explanation["standing"]:
        yield "STANDS NOW: no"
    for detail in explanation["standing"]:
        yield f"STANDS NOW: {show_name(detail['id'])}, {detail['severity']} since {detail['since']}"
        yield f"   [{detail['category']}] {show_name(detail['message'])}"
        yield f"   Fix: {show_name(detail['hint'])}"
