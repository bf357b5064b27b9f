"""The state document as text for people, the same lines on a terminal and on a pipe."""

from collections.abc import Callable, Iterator

from guardrails.cli import show_name, symbol
from guardrails.state import Json

COLOURS = {"critical": "red", "warning": "yellow", "info": "cyan", "ok": "green"}
NO_WARNINGS = "no warnings"

# click.style, or plain_style where no colour is wanted
Style = Callable[..., str]


def plain_style(text: str, **_: object) -> str:
    return text


def warning_lines(document: Json) -> list[str]:
    """One line a warning, ``[category] message``, worst first; one line without any category's name if all is well."""
    return [f"[{category}] {show_name(message)}" for category, message in document["warnings"]] or [NO_WARNINGS]


def report_lines(document: Json, style: Style = plain_style) -> Iterator[str]:
    """The full report, section by section; each warning is followed by the command that helps."""

    def heading(name: str, rest: str = "") -> str:
        return style(name, bold=True) + rest

    bullet = symbol("•", "*")
    model = document["current_model"]
    yield heading("CURRENT MODEL:")
    if model["exists"]:
        yield f"   {symbol('✓', '+')} Exists: {model['path']}"
    else:
        yield f"   {symbol('✗', '-')} Exists: No"
    yield f"   Size: {model['size_gb']:.2f} GB"
    yield f"   Training Steps: {model['training_steps']}"
    yield f"   Last Training: {model['last_training'] or 'never'}"
    yield f"   Has Adapter: {'Yes' if model['has_adapter'] else 'No'}"

    yield ""
    yield heading("VERSIONS:", f" {len(document['versions'])} saved")
    for version in document["versions"]:
        described = show_name(version["description"]) or "(no description)"
        yield f"   {bullet} {version['id']}: {described} ({version['date']}, {version['size_gb']:.2f} GB)"
    storage = document["storage"]
    yield (
        f"   Storage: {storage['versions_gb']:.2f} GB versions, {storage['backups_gb']:.2f} GB backups,"
        f" {storage['trash_gb']:.2f} GB trash"
    )

    config = document["config"]
    yield ""
    yield heading("CONFIG:")
    yield f"   Model: {_value(config['model_name'])}"
    yield f"   Base: {_value(config['base_model'])}"
    yield f"   Max Length: {_value(config['max_length'])}"
    yield f"   Locked Params: {', '.join(config['locked_params']) or 'none'}"

    yield ""
    yield heading("TRAINING STATUS:")
    yield from _training_lines(document)

    yield ""
    running = document["daemon_running"]
    yield heading("DAEMON:", style(" Running", fg="green") if running else style(" Stopped", fg="yellow"))

    disk = document["disk_space"]
    yield ""
    yield heading("DISK SPACE:")
    yield f"   Available: {disk['available_gb']} GB"
    yield f"   Used: {disk['used_percent']}%"

    yield ""
    count, verdict = len(document["warning_details"]), document["verdict"]
    yield heading("WARNINGS:", f" {count or 'none'}, verdict " + style(verdict, fg=COLOURS[verdict]))
    for detail in document["warning_details"]:
        severity = style(detail["severity"], fg=COLOURS[detail["severity"]])
        yield f"   {bullet} [{detail['category']}] {show_name(detail['message'])} ({severity})"
        yield f"     Fix: {show_name(detail['hint'])}"


def _value(value: object) -> str:
    return "not set" if value is None else show_name(str(value))


def _training_lines(document: Json) -> Iterator[str]:
    training = document["training_status"]
    yield f"   Status: {training['status']}"
    yield f"   Steps: {training['current_step']}"
    yield f"   Evaluations: {training['total_evals']}"
    if training["status"] in ("training", "paused", "stopping"):
        loss = "" if training["loss"] is None else f", loss {training['loss']:.4g}"
        eta = "" if training["eta_seconds"] is None else f", {training['eta_seconds']:.0f} seconds left"
        yield f"   Run: step {training['run_step']} of {training['run_total_steps']}{loss}{eta}"
    gpu = document["gpu"]
    if gpu is not None:
        used = f"{gpu['memory_used_gb']} of {gpu['memory_total_gb']} GB, {gpu['utilization_percent']}% busy"
        yield f"   GPU: {gpu['count']} x {show_name(gpu['name'])}, {used}"
    yield f"   Queue: {', '.join(f'{count} {state}' for state, count in document['queue'].items())}"
    for line in document["pending"]:
        yield f"   Pending: {show_name(line)}"
