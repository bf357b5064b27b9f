"""docs/cli.md from the code: exit codes, settings, and every script's own help.

$ python -m docs.generate            # write it
$ python -m docs.generate --check    # exit 1 if the file is not what the code says
"""

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from guardrails import errors
from guardrails.config import LOCKED_KEYS, TRAINING_KEYS
from guardrails.errors import GuardrailsError
from guardrails.paths import CODE_DIR
from guardrails.settings import Config

PAGE = CODE_DIR / "docs" / "cli.md"
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
    "monitor_port": "Port of the live page, which is not there yet.",
    "launch": "Not available yet.",
    "alerts": "Not available yet.",
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
    yield "`state_tracker.py --exit-code` has its own: 0 ok, 1 warnings, 3 critical. A failed command says"
    yield "`error: …` and `hint: …` on stderr; with `--json` the same as one JSON object."


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


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if the file is not what the code says.")
def main(check: bool) -> int:
    page = make_page()
    shown = Path("docs") / PAGE.name
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        click.echo(f"{shown} is up to date")
        return 0
    if check:
        click.echo(f"error: {shown} is not what the code says\nhint: make docs", err=True)
        return 1
    PAGE.write_text(page, encoding="utf-8")
    click.echo(f"wrote {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main(standalone_mode=False))
