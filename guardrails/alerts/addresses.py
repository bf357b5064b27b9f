"""Where alerts go: addresses that are secrets, and never stand in config.json, a report, an error or a log.

They come from the environment, else from a file that nobody but its owner can read. The names are the same in both, so
that a shell or systemd's ``EnvironmentFile=`` can read the file, too.
"""

import base64
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

from guardrails.errors import OperationError

ALERT_VARIABLE = "GUARDRAILS_ALERT_URLS"
HEARTBEAT_VARIABLE = "GUARDRAILS_HEARTBEAT_URL"
# In the base dir, unless ``alerts.secrets_file`` of the config names another.
DEFAULT_SECRETS_FILE = ".alerts.env"
EXAMPLE = f"{ALERT_VARIABLE}=mailto://USER:PASSWORD@smtp.example.org?to=me@example.org"
MAX_FILE_BYTES = 1 << 16
# Whatever is shorter stands in too many words.
LEAST_SECRET = 3
MASK = "****"


class Addresses(NamedTuple):
    """Apprise's URLs, and the one that is asked for after each check; ``repr`` shows neither."""

    alerts: list[str]
    heartbeat: str | None

    def __repr__(self) -> str:
        return f"Addresses({len(self.alerts)} alerts, {'a' if self.heartbeat else 'no'} heartbeat)"


def read_addresses(environment: Mapping[str, str], file: Path) -> Addresses:
    """The addresses in ``environment``; those of ``file`` for a variable that is not set.

    Raises:
        OperationError: the file is not this user's, is open to others, or holds something else; or an address is none.
            No message has anything of an address.
    """
    values = {name: environment.get(name, "").split() for name in (ALERT_VARIABLE, HEARTBEAT_VARIABLE)}
    if not all(values.values()):
        for name, found in _read_file(file).items():
            values[name] = values[name] or found
    for number, url in enumerate(values[ALERT_VARIABLE], 1):
        if not re.match(r"[a-z][a-z0-9_]*://.", url, re.IGNORECASE):
            raise OperationError(f"alert address {number} is no URL", f"as in {EXAMPLE}; space goes between addresses")
    heartbeats = values[HEARTBEAT_VARIABLE]
    if len(heartbeats) > 1 or not all(re.match(r"https?://[^/]", url, re.IGNORECASE) for url in heartbeats):
        raise OperationError(
            f"{HEARTBEAT_VARIABLE} is not one http:// or https:// URL", "take the one that the service shows for pings"
        )
    return Addresses(values[ALERT_VARIABLE], heartbeats[0] if heartbeats else None)


def _read_file(path: Path) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {ALERT_VARIABLE: [], HEARTBEAT_VARIABLE: []}
    for number, line in enumerate(_read_private(path).splitlines(), 1):
        name, is_assignment, value = line.strip().removeprefix("export ").partition("=")
        if not name or name.startswith("#"):
            continue
        if not is_assignment or name.strip() not in values:
            raise OperationError(
                f"{path}, line {number}: neither {ALERT_VARIABLE}=… nor {HEARTBEAT_VARIABLE}=…",
                f"one assignment a line, as in {EXAMPLE}",
            )
        value = value.strip()
        if value[:1] in ("'", '"') and value[-1:] == value[:1]:
            value = value[1:-1]
        values[name.strip()] += value.split()
    return values


def _read_private(path: Path) -> str:
    """The text of a file that is this user's alone; empty if there is none."""
    try:
        # A pipe must not make anybody wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise OperationError(f"cannot read {path}: {error.strerror}", f"ls -l '{path}'") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OperationError(f"{path} is no file", "it holds addresses for alerts, one assignment a line")
        if status.st_uid != os.geteuid():
            raise OperationError(
                f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this; it was not used",
                f"run this as that user, or: chown {os.geteuid()} '{path}'",
            )
        if status.st_mode & 0o077:
            raise OperationError(
                f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may read it; it was not used",
                f"chmod 600 '{path}'",
            )
        content = os.read(descriptor, MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    try:
        if len(content) > MAX_FILE_BYTES:
            raise ValueError
        return content.decode()
    except ValueError:
        raise OperationError(
            f"{path} is no text file of addresses", f"one assignment a line, as in {EXAMPLE}"
        ) from None


def name_address(number: int, url: str) -> str:
    """How an address is spoken of: by its place in the list and its scheme, for even its host may be a token."""
    return f"{number} ({url.partition('://')[0]}://…)"


def mask_address(text: str, url: str) -> str:
    """``text`` on one line, with every part of the address but its scheme taken out, in whatever coding."""
    secrets = sorted((piece for piece in _list_pieces(url) if len(piece) >= LEAST_SECRET), key=len, reverse=True)
    text = re.sub("|".join(map(re.escape, secrets)), MASK, text, flags=re.IGNORECASE)
    return " ".join(text.split())


def _list_pieces(url: str) -> Iterable[str]:
    rest = url.partition("://")[2]
    before, _, query = rest.partition("?")
    user = before.rpartition("@")[0]
    pieces = {url, rest, before, query, user, *re.split(r"[/:@,;+#]", before)}
    for _, value in parse_qsl(query):
        pieces |= {value, *re.split(r"[/:@,;+ ]", value)}
    pieces |= {unquote(piece) for piece in pieces} | {quote(piece, safe="") for piece in pieces}
    pieces |= {base64.b64encode(unquote(user).encode()).decode()} if user else set()
    return pieces
