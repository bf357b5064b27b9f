"""The edge every script shares: common options, one document on stdout, errors to exit codes."""

import errno
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from guardrails import __version__, progress
from guardrails.errors import (
    ConfigLockError,
    DamagedStateError,
    DiskSpaceError,
    GuardrailsError,
    IntegrityError,
    OperationError,
    name_some,
)
from guardrails.locks import read_holder
from guardrails.paths import CODE_DIR, Paths, find_base_dir
from guardrails.state_io import dump_json, read_json

BAR_AFTER_SECONDS = 0.5

Function = TypeVar("Function", bound=Callable[..., Any])
# How an error is told: message, hint and exit code; returns the code to exit with.
Report = Callable[[str, str, int], int]


class Invocation:
    """What the common options of one command line said."""

    def __init__(self) -> None:
        self.base_dir: str | None = None
        self.as_json = False

    @property
    def paths(self) -> Paths:
        """The paths of the chosen base dir.

        Raises:
            OperationError: there is no such folder.
        """
        base = find_base_dir(self.base_dir)
        if not base.is_dir():
            raise OperationError(
                f"base dir {base} does not exist", f"make it: training_daemon.py --base-dir '{base}' --init"
            )
        return Paths(base)


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    invocation = context.find_root().ensure_object(Invocation)
    if value == "":
        raise click.BadParameter("it is empty", context, parameter)
    if value:
        setattr(invocation, str(parameter.name), value)


def base_dir_option(function: Function) -> Function:
    """``--base-dir DIR``, taken before and after a subcommand."""
    return click.option(
        "--base-dir",
        metavar="DIR",
        expose_value=False,
        callback=_remember,
        help="Folder to work in; else $TRAINING_BASE_DIR, else the folder of the scripts.",
    )(function)


def json_option(function: Function) -> Function:
    """``--json``, taken before and after a subcommand."""
    return click.option(
        "--json", "as_json", is_flag=True, expose_value=False, callback=_remember, help="Print one JSON document."
    )(function)


def common_options(function: Function) -> Function:
    """``--base-dir`` and ``--json``."""
    return base_dir_option(json_option(function))


def version_option(function: Function) -> Function:
    return click.version_option(__version__, message="%(prog)s %(version)s")(function)


def print_json(document: object) -> None:
    """One ASCII-safe JSON document and a newline on stdout; of a list one element a line."""
    try:
        if isinstance(document, list) and document:
            encode = json.JSONEncoder(allow_nan=False).encode
            text = "[\n" + ",\n".join(map(encode, document)) + "\n]"
        else:
            text = dump_json(document)
    except ValueError as error:
        raise DamagedStateError(
            f"a number in what was read is none in JSON: {error}", "look at it without --json"
        ) from error
    sys.stdout.write(text + "\n")


def note_pending(paths: Paths) -> None:
    """Say on stderr that a change was interrupted: what is read meanwhile is neither the old nor the new state."""
    try:
        intent = read_json(paths.intent, {"operation": str})
    except DamagedStateError as error:
        line = f"note: {error.message}"
    else:
        if intent is None:
            return
        what = intent["operation"]
        line = f"note: an interrupted {what} is pending; the next writing command finishes it"
        if read_holder(paths.locks / "store.lock") is not None:
            line = f"note: a {what} is under way"
    with suppress(OSError):
        click.echo(show_name(line), err=True)


@contextmanager
def only_reading(paths: Paths) -> Iterator[None]:
    """For a dry run, in the place of the store lock, which it does not take."""
    note_pending(paths)
    yield


def symbol(text: str, plain: str) -> str:
    """``text`` where stdout can show it, else ``plain``."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return plain
    return text


def show_name(name: str) -> str:
    """A file name on one line: control characters and what stdout cannot show are escaped."""
    if name.isascii() and name.isprintable():
        return name
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)
    return escaped.encode(sys.stdout.encoding or "ascii", "backslashreplace").decode(sys.stdout.encoding or "ascii")


def announcer(invocation: Invocation) -> Callable[[str], None]:
    """Where lines go while something is under way: stdout for a person, stderr beside a JSON document.

    What is under way does not depend on whether anybody can read of it.
    """

    def announce(line: str) -> None:
        with suppress(OSError):
            click.echo(show_name(line), err=invocation.as_json)

    return announce


def as_typed(invocation: Invocation, command: str) -> str:
    """A command of the toolkit as a person types it to reach the same base dir."""
    base = invocation.paths.base
    place = "" if base == CODE_DIR else f" --base-dir {shlex.quote(str(base))}"
    return f"python3 {command}{place}"


def report_outcome(invocation: Invocation, message: str, undo: str | None, version: str | None) -> None:
    """Say what was done, and the command that undoes it, as it is typed."""
    undo = as_typed(invocation, undo) if undo is not None else None
    if invocation.as_json:
        print_json({"version": version, "message": message, "undo": undo})
        return
    click.echo(show_name(message))
    if undo is not None:
        click.echo(f"undo: {undo}")


def confirm_by_name(key: str, old: object, new: object) -> None:
    """Returns only when a person typed the key's name on a terminal.

    Raises:
        ConfigLockError: there is no terminal, it is an AI agent's, or something else was typed; nothing was changed.
    """
    from guardrails.agents import find_agent

    refusal = f"{key} is locked: {json.dumps(old)} stays, {json.dumps(new)} needs a person's approval"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigLockError(refusal, "run this command yourself on a terminal and type the key's name")
    if agent := find_agent():
        # A pseudo-terminal is a terminal to the kernel, and no person.
        raise ConfigLockError(
            f"{refusal}, and this runs under an AI agent: {agent}",
            "as a person, open a terminal of your own, outside the agent, and run it there",
        )
    for counter in _shown:
        counter.close()
    click.echo(f"{key} is locked.\n  old: {json.dumps(old)}\n  new: {json.dumps(new)}", err=True)
    if click.prompt(f"Type {key} to change it", default="", show_default=False, err=True) != key:
        raise ConfigLockError(
            f"{key} stays as it is: its name was not typed", "run the command again if you want the change"
        )


def find_argument(paths: Paths, argument: str) -> Path:
    """The path that a PATH argument names: relative to the current folder, else to the base dir.

    Raises:
        OperationError: there is nothing at either.
    """
    for root in (Path.cwd(), paths.base):
        path = Path(os.path.normpath(root / argument))
        if path.exists():
            return path
    raise OperationError(f"there is no {argument}, neither here nor in {paths.base}", f"ls '{paths.base}'")


def read_each(names: Iterable[str], read: Callable[[str], dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """What could be read, and for the rest why not: one damaged file must not hide the others."""
    good, damaged = [], []
    for name in names:
        try:
            good.append(read(name))
        except DamagedStateError as error:
            damaged.append(error.message)
    return good, damaged


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Rows below their column names, aligned, one line a row, never wrapped or cut."""
    # Column by column and written at once: a list may have thousands of rows.
    cells = []
    for index, name in enumerate(columns):
        column = [name, *(row[index] for row in rows)]
        width = max(map(len, column))
        align = str.rjust if name in right else str.ljust
        cells.append([align(text, width) for text in column])
    click.echo("\n".join("  ".join(line).rstrip() for line in zip(*cells, strict=True)))


def print_layers(layers: Sequence[dict[str, str | None]]) -> None:
    """Layers of protection: a table on a terminal, and on a pipe a line each with what to do below it."""
    if not sys.stdout.isatty():
        for layer in layers:
            click.echo(show_name(f"{layer['state']}: {layer['id']}: {layer['detail']}"))
            if layer["fix"] and layer["state"] != "on":
                click.echo(show_name(f"   Fix: {layer['fix']}"))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("layer", "", "what was found, and what to do")
    for layer in layers:
        style = {"on": "green", "off": "bold red"}.get(str(layer["state"]), "")
        found = Text(show_name(str(layer["detail"])))
        if layer["fix"] and layer["state"] != "on":
            found.append("\n").append(show_name(layer["fix"]), style="bold")
        table.add_row(str(layer["id"]), Text(str(layer["state"]), style=style), found)
    Console().print(table)


def report_damage(invocation: Invocation, damage: dict[str, list[str]], nothing: str, hint: str) -> None:
    """What a verification found, by the name of what was read.

    Raises:
        IntegrityError: something is damaged.
    """
    if invocation.as_json:
        print_json([{"id": name, "ok": not problems, "problems": problems} for name, problems in damage.items()])
    else:
        for name, problems in damage.items():
            click.echo(f"{name}: {show_name('; '.join(problems)) if problems else 'good'}")
        if not damage:
            click.echo(nothing)
    if damaged := [name for name, problems in damage.items() if problems]:
        raise IntegrityError(f"damaged: {name_some(damaged, 20)}", hint)


def report_decisions(invocation: Invocation, decisions: Sequence[Any], *, execute: bool, nothing: str) -> None:
    """What was removed and what was kept, and why; or what would be."""
    if invocation.as_json:
        rows = [{"id": one.id, "removed": one.removed, "reason": one.reason or None} for one in decisions]
        print_json({"executed": execute, "decisions": rows})
        return
    words = ("removed", "kept") if execute else ("would remove", "would keep")
    for one in decisions:
        why = f": {one.reason}" if one.reason else ""
        click.echo(show_name(f"{words[0] if one.removed else words[1]} {one.id}{why}"))
    if not decisions:
        click.echo(nothing)
    elif not execute:
        click.echo("nothing was changed: a dry run")


_shown: list["ByteCounter"] = []


class ByteCounter:
    """A progress bar on stderr for work that takes longer than a moment; never on a pipe.

    rich is imported when the bar first shows, so that quick commands do not pay for it.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.bytes = 0
        self.expected = 0
        self.bar: Any = None

    def expect(self, count: int) -> None:
        self.expected += count

    def advance(self, count: int) -> None:
        self.bytes += count
        if self.bar is None and time.monotonic() - self.started > BAR_AFTER_SECONDS:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeElapsedColumn, TransferSpeedColumn

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
            # rich would print to the terminal what goes to a file.
            redirect = sys.stdout.isatty()
            console = Console(stderr=True)
            self.bar = Progress(*columns, console=console, transient=True, redirect_stdout=redirect)
            self.task = self.bar.add_task("", total=self.expected or None)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.bytes)

    def close(self) -> None:
        """Take the bar away; it shows again when work goes on for a moment."""
        if self.bar is not None:
            self.bar.stop()
        self.bar, self.started = None, time.monotonic()


@contextmanager
def shown_progress() -> Iterator[None]:
    """Show how many bytes were read and copied, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    counter = ByteCounter()
    progress.watch(counter.advance, counter.expect)
    _shown.append(counter)
    try:
        yield
    finally:
        counter.close()


def run(command: click.Command, *, show_progress: bool = True, report: Report | None = None) -> NoReturn:
    """Run a script's command and exit with the code of docs/cli.md.

    Errors of the family and of the operating system end in ``error:`` and ``hint:`` on stderr (a JSON
    object with ``--json``), or wherever ``report`` tells them; a closed pipe ends quietly; a bug keeps its traceback.
    """
    # Started with a closed stdout or stderr, as some supervisors do.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - likewise
    with shown_progress() if show_progress else nullcontext():
        code = _exit_code(command, report or report_error)
    sys.exit(code)


def _exit_code(command: click.Command, report: Report) -> int:
    try:
        result = command.main(standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return report("interrupted", "nothing was left half done; run the command again", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        return report("which command?", f"{error.ctx.command_path} --help" if error.ctx else "--help", error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"{context.command_path} --help" if context else "--help lists what there is"
        return report(error.format_message(), hint, error.exit_code)
    except GuardrailsError as error:
        return report(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        return report("interrupted", "nothing was left half done; run the command again", 130)
    except SystemExit:
        # click's way of saying that the reader closed the pipe; it has silenced stdout.
        return 0
    except BrokenPipeError:
        _forget_unwritten()
        return 0
    except OSError as error:
        _forget_unwritten()
        return _report_os_error(error, report)


def _forget_unwritten() -> None:
    """Do without what stdout does not take, or Python would try again at its end, complain and exit 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_os_error(error: OSError, report: Report) -> int:
    where = f"{error.filename}: " if error.filename else ""
    message = f"{where}{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return report(message, "free some disk space, then run the command again", DiskSpaceError.exit_code)
    return report(message, "check the path, its permissions and the disk", OperationError.exit_code)


def report_error(message: str, hint: str, exit_code: int) -> int:
    """Tell an error on stderr, with ``--json`` as an object; returns ``exit_code``."""
    if "--json" in sys.argv[1:]:
        text = json.dumps({"error": message, "hint": hint, "exit_code": exit_code}, ensure_ascii=True)
    else:
        text = f"error: {_one_line(message)}\nhint: {_one_line(hint)}"
    sys.stderr.write(text + "\n")
    return exit_code


def _one_line(text: str) -> str:
    return " ".join(text.split())
