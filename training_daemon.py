#!/usr/bin/env python3
"""Train every data file that is dropped into inbox/, one after the other, for as long as it runs.

$ python3 training_daemon.py --base-dir ~/llm --init --tiny
$ cp math.jsonl ~/llm/inbox/
$ python3 training_daemon.py --base-dir ~/llm --once
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from guardrails.bootstrap import enter_venv

    enter_venv()

import subprocess
from pathlib import Path

import click

from guardrails.cli import Invocation, common_options, pass_invocation, print_json, run, version_option
from guardrails.config import load_config, set_config_value, starting_config
from guardrails.daemon import Daemon
from guardrails.errors import OperationError
from guardrails.locks import check_platform
from guardrails.paths import CODE_DIR, Paths, find_base_dir
from guardrails.state_io import fsync_folder, write_text

TINY_MODEL = "base_models/tiny"
# A tiny model learns something in a few small steps.
TINY_SETTINGS = {
    "model_name": "tiny",
    "base_model": TINY_MODEL,
    "max_length": 2048,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "log_steps": 5,
    "eval_steps": 25,
    "save_minutes": 0.5,
    "poll_interval": 1,
}


def initialize(paths: Paths, tiny: bool) -> list[str]:
    """Make the folders and a starting config where there are none; what was made, one line each.

    Nothing that exists is changed.

    Raises:
        OperationError: the tiny model could not be made.
    """
    made = []
    paths.base.mkdir(parents=True, exist_ok=True)
    for folder in paths.folders():
        if not folder.is_dir():
            folder.mkdir(parents=True)
            made.append(f"{paths.relative(folder)}/")
    if tiny and not (paths.base / TINY_MODEL).is_dir():
        make_tiny_model(paths.base / TINY_MODEL)
        made.append(f"{TINY_MODEL}/")
    if tiny and paths.config.exists() and load_config(paths).base_model is None:
        set_config_value(paths, "base_model", TINY_MODEL)
        made.append("base_model in config.json")
    if not paths.config.exists():
        write_text(paths.config, starting_config(**(TINY_SETTINGS if tiny else {})))
        made.append("config.json")
    fsync_folder(paths.base)
    return made


def make_tiny_model(folder: Path) -> None:
    """A tiny real Qwen3 with random weights; made by a process of its own, for it needs torch."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "guardrails.training.tiny_model", str(folder)]
    result = subprocess.run(command, cwd=CODE_DIR, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise OperationError(f"the tiny model could not be made: {last_line}", f"make -C '{CODE_DIR}' install")


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--once", is_flag=True, help="Work the queue empty, then exit.")
@click.option("--init", "init", is_flag=True, help="Make the folders and a starting config, then exit.")
@click.option("--tiny", is_flag=True, help="With --init: also a tiny base model to try things on.")
@common_options
@version_option
@pass_invocation
def main(invocation: Invocation, once: bool, init: bool, tiny: bool) -> None:
    check_platform()
    if init:
        made = initialize(Paths(find_base_dir(invocation.base_dir)), tiny)
        if invocation.as_json:
            print_json({"made": made})
        else:
            click.echo(f"made {', '.join(made)}" if made else "nothing was missing")
    elif tiny:
        raise click.UsageError("--tiny goes with --init")
    else:
        Daemon(invocation.paths, once=once).run()


if __name__ == "__main__":
    run(main, show_progress=False)
