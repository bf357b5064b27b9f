"""The docs that the code says: docs/cli.md, and the marked parts of docs/STATE_TRACKER_GUIDE.md.

$ python -m docs.generate            # write them
$ python -m docs.generate --check    # exit 1 if they are not what the code says
"""

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from docs.typescript import make_interface
from guardrails import errors
from guardrails.config import LOCKED_KEYS, TRAINING_KEYS
from guardrails.errors import GuardrailsError
from guardrails.paths import CODE_DIR
from guardrails.report.explanations import EXPLANATIONS, Explanation
from guardrails.report.schema import make_schema
from guardrails.settings import Config

PAGE = CODE_DIR / "docs" / "cli.md"
GUIDE = CODE_DIR / "docs" / "STATE_TRACKER_GUIDE.md"
WIDTH = 100
FROZEN_KEYS = (*TRAINING_KEYS, "validation_file")
OWN_CODES = {
    0: "Done.",
    2: "The command line, or what it names, cannot be understood.",
    130: "Interrupted by Ctrl-C.",
}
# Of two classes, and more than their docstrings say.
FAILED = "The command failed, or a person declined it."

SETTINGS = {
    "model_name": "What the model is called in reports.",
    "base_model": "Folder of the base model; null until one is chosen.",
    "max_length": "Tokens that a row may have; longer texts are split, longer chats cut at the end.",
    "batch_size": "Rows a forward pass.",
    "gradient_accumulation": "Batches an optimizer step.",
    "learning_rate": "Peak of the learning rate, for each file anew.",
    "warmup_steps": "Steps until the learning rate is at its peak.",
    "lora_r": "Rank of the adapter; fixed with its first training.",
    "lora_alpha": "Scale of the adapter; fixed with its first training.",
    "lora_dropout": "Dropout in the adapter while it trains.",
    "lora_target_modules": "Layers that the adapter changes; fixed with its first training.",
    "use_qlora": "Not available yet.",
    "seed": "Decides the first adapter, the order of rows, dropout, and which rows are held out.",
    "epochs": "How often each row of a file is trained.",
    "log_steps": "Steps from one line of metrics to the next.",
    "eval_steps": "Steps from one evaluation to the next; 0: only before and after a file.",
    "save_minutes": "Minutes from one checkpoint to the next; 0: at each step.",
    "validation_file": "Data file to evaluate on; null: rows held out of each file.",
    "poll_interval": "Seconds from one look at the inbox to the next.",
    "max_attempts": "Attempts without progress after which a file goes to `queue/failed/`.",
    "max_bad_rows": "Bad rows that a file may have; with more it fails before it is trained.",
    "backup": '`"after_each"` version a second copy, `"daily"` one a day, or `"off"`.',
    "backup_dir": "Folder for backups, better on another disk; null: `models/backups/`.",
    "immutable_versions": (
        "Versions and backups get the file system's immutable flag (`chattr +i`), so that not even root deletes or "
        "overwrites them by mistake. Needs root and ext4, XFS or btrfs; a changed value holds from the daemon's next "
        "start or the next writing command on."
    ),
    "monitor_port": "Port of the live page, which is not there yet.",
    "launch": "Not available yet.",
    "alerts": (
        "When `state_tracker.py --alert` sends a message: an object with `after_checks` (2), `min_severity` "
        '(`"warning"`), `max_per_day` (20), `remind_hours` (null: never) and `secrets_file` (`".alerts.env"`), the '
        "file that has the addresses; null: as in the brackets."
    ),
    "retention": (
        "What `model_versioner.py prune` keeps when it is given no `--keep-…`: an object with `keep_last`, "
        "`keep_hourly`, `keep_daily`, `keep_weekly`, `keep_monthly`, `keep_yearly` (-1 keeps all) and `keep_within` "
        "(`1y5m7d2h`); `trash_days` (7) is how long the trash holds what was removed. Nothing is pruned by itself."
    ),
}


def scripts() -> list[str]:
    """Module names of all scripts, sorted."""
    return sorted(path.stem for path in CODE_DIR.glob("*.py"))


def load_command(script: str) -> click.Command:
    """The click command of a script."""
    command = importlib.import_module(script).main
    assert isinstance(command, click.Command), script
    return command


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all below it, with the words that call them, in alphabetical order."""
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from commands(command.commands[name], (*path, name))


def exit_codes() -> dict[int, str]:
    """Every exit code and what it means: the first line of its error's docstring."""
    found = dict(OWN_CODES)
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, GuardrailsError):
            found.setdefault(error.exit_code, (inspect.getdoc(error) or "").splitlines()[0])
    found[GuardrailsError.exit_code] = FAILED
    return dict(sorted(found.items()))


def exit_code_section() -> Iterator[str]:
    yield "## Exit codes"
    yield ""
    yield "| code | meaning |"
    yield "|---|---|"
    for code, meaning in exit_codes().items():
        yield f"| {code} | {meaning} |"
    yield ""
    yield "`state_tracker.py --exit-code` has its own: 0 ok, 1 warnings, 3 critical; `--nagios` those of a monitoring"
    yield "plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. A failed command says `error: …` and `hint: …` on stderr;"
    yield "with `--json` the same as one JSON object."


def setting_section() -> Iterator[str]:
    assert SETTINGS.keys() == Config.model_fields.keys(), SETTINGS.keys() ^ Config.model_fields.keys()
    defaults = Config().model_dump()
    yield "## config.json"
    yield ""
    yield "A locked value is held by `.config_lock.json` from the first training on; only a person changes it"
    yield "(`training_controller.py config approve`). A run takes the values marked *run* when it begins, and keeps"
    yield "them until its file is done."
    yield ""
    yield "| key | default | meaning | |"
    yield "|---|---|---|---|"
    for key, meaning in SETTINGS.items():
        kept = "locked" if key in LOCKED_KEYS else "run" if key in FROZEN_KEYS else ""
        yield f"| `{key}` | `{json.dumps(defaults[key])}` | {meaning} | {kept} |"


def command_section(script: str) -> Iterator[str]:
    name = f"{script}.py"
    yield f"## {name}"
    for path, command in commands(load_command(script), (name,)):
        if len(path) > 1:
            yield ""
            yield f"### {' '.join(path)}"
        context = click.Context(command, info_name=" ".join(path), terminal_width=WIDTH, max_content_width=WIDTH)
        yield ""
        yield "```"
        yield command.get_help(context)
        yield "```"


def make_page() -> str:
    """The whole of docs/cli.md."""
    lines = ["# Commands", "", "Made by `make docs` from the code; a test holds the two together.", ""]
    for section in (exit_code_section(), setting_section(), *(command_section(script) for script in scripts())):
        lines += [*section, ""]
    return "\n".join(line.rstrip() for line in lines)


def finding_table() -> Iterator[str]:
    """Every finding, a row each."""
    yield "| id | severity | message | what helps |"
    yield "|---|---|---|---|"
    for entry in EXPLANATIONS:
        cells = (cell.replace("|", r"\|") for cell in _cells(entry))
        yield f"| {' | '.join(cells)} |"


def _cells(entry: Explanation) -> tuple[str, ...]:
    severity = entry.severity + (f" ({entry.otherwise})" if entry.otherwise else "")
    return f"`{entry.id}`", severity, f"[{entry.category or '…'}] {entry.message}", entry.remedy


def state_interface() -> Iterator[str]:
    """The state document's type."""
    yield "```typescript"
    yield make_interface("SystemState", make_schema())
    yield "```"


def fill(page: str, part: str, lines: Iterator[str]) -> str:
    """``page`` with ``lines`` between the marks of ``part``."""
    begin, end = f"<!-- {part}: made by make docs -->\n", f"<!-- end of {part} -->\n"
    before, _, rest = page.partition(begin)
    _, mark, after = rest.partition(end)
    assert mark, f"the marks of {part} are missing"
    return before + begin + "".join(f"{line}\n" for line in lines) + end + after


def make_guide() -> str:
    """docs/STATE_TRACKER_GUIDE.md with the parts that the code says."""
    page = GUIDE.read_text(encoding="utf-8")
    return fill(fill(page, "findings", finding_table()), "interface", state_interface())


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a file is not what the code says.")
def main(check: bool) -> int:
    code = 0
    for path, page in ((PAGE, make_page()), (GUIDE, make_guide())):
        shown = Path("docs") / path.name
        if path.exists() and path.read_text(encoding="utf-8") == page:
            click.echo(f"{shown} is up to date")
        elif check:
            click.echo(f"error: {shown} is not what the code says\nhint: make docs", err=True)
            code = 1
        else:
            path.write_text(page, encoding="utf-8")
            click.echo(f"wrote {shown}")
    return code


if __name__ == "__main__":
    sys.exit(main(standalone_mode=False))
