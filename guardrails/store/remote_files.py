"""The far end of a remote: files below one URL, each written once, proven there, never changed and never removed.

``s3://BUCKET/PREFIX``, ``sftp://USER@HOST/FOLDER`` and ``file:///FOLDER``, over fsspec. Credentials come from where
other tools have them too (``AWS_*`` and ``~/.aws``; ``~/.ssh`` and its agent), never from the URL, and an SSH host
counts only if ``known_hosts`` has its key. The libraries are imported when a remote is opened.
"""

import base64
import hashlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from guardrails import progress
from guardrails.errors import IntegrityError, OperationError, UsageError
from guardrails.filesystem import rename_noreplace
from guardrails.manifest import hash_file
from guardrails.state_io import fsync_folder

PIECES = "pieces"
# What a killed push leaves where files are written first and named then; it counts for nothing.
TEMPORARY_PREFIX = ".tmp-"
CONNECT_SECONDS = 15
ANSWER_SECONDS = 60
# No password, no options: nothing that could hold a secret.
SHAPES = {
    "s3": r"[^/:@?#]+(/[^?#]*)?",
    "sftp": r"([^/:@?#]+@)?[^/:@?#]+(:[0-9]{1,5})?/[^?#]*",
    "file": r"/.*",
}
EXAMPLES = "s3://BUCKET/PREFIX, sftp://USER@HOST:PORT/FOLDER or file:///FOLDER"
GO_ON = "check the URL, the network and the server; the same command then goes on where this one stopped"
KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to ~/.aws/credentials"
HINTS = {
    "NoCredentialsError": KEYS,
    "PartialCredentialsError": KEYS,
    "PermissionError": "check the credentials, and what they may do there: list, read and write",
    "AuthenticationException": "use a key that the host accepts: ssh-add, or IdentityFile in ~/.ssh/config",
    "BadHostKeyException": "find out why the host has another key than known_hosts says before you go on",
    "SSHException": "log in with ssh once: known_hosts needs the host's key, and the host one of yours (ssh-add)",
    "FileNotFoundError": "make the bucket or folder first, or mount its disk",
}


class Remote:
    """The files of one remote; names are relative to its URL, with ``/``. Every method raises OperationError where the
    far end does not answer or refuses.
    """

    def __init__(self, url: str, file_system: Any, root: str, failures: tuple[type[Exception], ...]) -> None:
        self.url = url
        self.fs = file_system
        self.root = root
        self.failures = failures
        self.sent_bytes = self.received_bytes = 0

    def list_files(self, folder: str) -> dict[str, int]:
        """Name and size of every file below ``folder``; empty where there is none."""
        with explaining(self.url, self.failures):
            found = self.fs.find(f"{self.root}/{folder}", detail=True)
        start, below = len(self.root) + 1, f"{self.root}/{folder}/"
        names = (name for name in found if name.startswith(below) and f"/{TEMPORARY_PREFIX}" not in name)
        return {name[start:]: found[name]["size"] for name in names}

    def read(self, name: str) -> bytes:
        """The bytes of a small file or piece.

        Raises:
            IntegrityError: there is no such file.
        """
        with explaining(self.url, self.failures):
            try:
                content = bytes(self.fs.cat_file(f"{self.root}/{name}"))
            except FileNotFoundError:
                raise damaged_there(self.url, f"{name} is missing") from None
        self.received_bytes += len(content)
        progress.advance(len(content))
        return content

    def write_new(self, name: str, content: bytes) -> bool:
        """Write a new file, proven to hold ``content`` before it counts; False if one of that name has come to exist.

        Raises:
            IntegrityError: what is there is not what was sent.
        """
        path = f"{self.root}/{name}"
        with explaining(self.url, self.failures):
            # A piece is named by its bytes, so nobody else can have written another one meanwhile.
            if not name.startswith(f"{PIECES}/") and self.fs.exists(path):
                return False
            self.sent_bytes += len(content)
            put = self._put if self.url.startswith("s3:") else self._write_and_rename
            try:
                is_good = put(path, content)
            except FileExistsError:
                return False
        if not is_good:
            raise damaged_there(self.url, f"{name} does not hold what was sent")
        progress.advance(len(content))
        return True

    def _put(self, path: str, content: bytes) -> bool:
        """One atomic put, with the checksum that buckets with object lock demand."""
        md5 = hashlib.md5(content, usedforsecurity=False)
        checksum = base64.b64encode(md5.digest()).decode()
        answer = self.fs.pipe_file(path, content, ContentMD5=checksum, chunksize=len(content))
        # The tag is the MD5 of what was stored, unless the bucket encrypts with keys of its own.
        return bool(answer["ETag"].strip('"') == md5.hexdigest() or self.fs.cat_file(path) == content)

    def _write_and_rename(self, path: str, content: bytes) -> bool:
        folder, _, _ = path.rpartition("/")
        temporary = f"{folder}/{TEMPORARY_PREFIX}{os.urandom(8).hex()}"
        try:
            try:
                self.fs.pipe_file(temporary, content)
            except FileNotFoundError:
                self.fs.makedirs(folder, exist_ok=True)
                self.fs.pipe_file(temporary, content)
            if self.fs.cat_file(temporary) == content:
                self.fs.mv(temporary, path)
                return True
        except self.failures:
            with suppress(*self.failures):
                self.fs.rm_file(temporary)
            raise
        self.fs.rm_file(temporary)
        return False


def damaged_there(url: str, problem: str) -> IntegrityError:
    """The error of a file at the far end that is not what was sent there."""
    return IntegrityError(
        f"{url}: {problem}",
        f"remove that file there, then: backup_manager.py push {shlex.quote(url)} where the version still is",
    )


def normalize_url(url: str) -> str:
    """A remote's URL without a final slash.

    Raises:
        UsageError: it is none, or holds what may be a password; the message never shows it.
    """
    scheme, _, rest = url.partition("://")
    if scheme != "file" and ":" in rest.rpartition("@")[0]:
        raise UsageError(
            "the URL of the remote holds a password; it was neither used nor stored",
            "give credentials by AWS_* variables, ~/.aws or SSH keys",
        )
    if not re.fullmatch(SHAPES.get(scheme, "(?!)"), rest):
        raise UsageError(
            f"the URL of the remote is not one of {EXAMPLES}", "backup_manager.py remotes shows those in use"
        )
    return f"{scheme}://{rest.rstrip('/')}"


@contextmanager
def open_remote(url: str) -> Iterator[Remote]:
    """The remote at a normalized URL, whose bucket or folder must exist.

    Raises:
        OperationError: a library is missing, the far end does not answer or refuses, or there is no such place.
    """
    scheme, _, rest = url.partition("://")
    openers = {"s3": _open_s3, "sftp": _open_sftp, "file": _open_local}
    try:
        remote = openers[scheme](url, rest)
    except ImportError as error:
        raise OperationError(
            f"{scheme} remotes need the package {error.name}, which is not installed",
            ".venv/bin/python -m pip install -c constraints.txt '.[remote]'",
        ) from error
    with explaining(url, remote.failures):
        if scheme != "s3":
            remote.fs.ls(f"{remote.root}/", detail=False)
    try:
        yield remote
    finally:
        if scheme == "sftp":
            remote.fs.client.close()


def _open_local(url: str, root: str) -> Remote:
    from fsspec.implementations.local import LocalFileSystem

    class DurableFiles(LocalFileSystem):  # type: ignore[misc] # the libraries have no types
        def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
            super().pipe_file(path, value, **options)
            # What is compared then comes from the disk, not from the page cache.
            hash_file(Path(path), from_disk=True)

        def mv(self, one: str, other: str, **options: Any) -> None:
            rename_noreplace(Path(one), Path(other))
            fsync_folder(Path(other).parent)

    return Remote(url, DurableFiles(skip_instance_cache=True), root, (OSError,))


def _open_s3(url: str, root: str) -> Remote:
    from aiohttp import ClientError as TransportError
    from botocore.exceptions import BotoCoreError, ClientError
    from s3fs import S3FileSystem

    timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS}
    file_system = S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=timeouts)
    return Remote(url, file_system, root, (OSError, BotoCoreError, ClientError, TransportError))


def _open_sftp(url: str, rest: str) -> Remote:
    import paramiko
    from fsspec.implementations.sftp import SFTPFileSystem

    class CheckedHosts(SFTPFileSystem):  # type: ignore[misc]
        """fsspec's own knows no hosts and takes any; and it waits for the answer to each of its small requests."""

        def _connect(self) -> None:
            self.client = paramiko.SSHClient()
            self.client.load_system_host_keys()
            self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
            self.client.connect(self.host, **self.ssh_kwargs)
            self.ftp = self.client.open_sftp()
            self.ftp.get_channel().settimeout(ANSWER_SECONDS)

        def cat_file(self, path: str, **options: Any) -> bytes:
            content = io.BytesIO()
            self.ftp.getfo(path, content)
            return content.getvalue()

        def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
            self.ftp.putfo(io.BytesIO(value), path)

        def mv(self, one: str, other: str, **options: Any) -> None:
            try:
                # Unlike fsspec's it never overwrites.
                self.ftp.rename(one, other)
            except OSError:
                if self.exists(other):
                    raise FileExistsError(other) from None
                raise

    place, _, folder = rest.partition("/")
    user, _, address = place.rpartition("@")
    host, _, port = address.partition(":")
    failures = (OSError, EOFError, paramiko.SSHException)
    with explaining(url, failures):
        config = Path("~/.ssh/config").expanduser()
        options = paramiko.SSHConfig.from_path(str(config)).lookup(host) if config.is_file() else {}
        timeouts = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), CONNECT_SECONDS)
        file_system = CheckedHosts(
            options.get("hostname", host),
            port=int(port or options.get("port", 22)),
            username=user or options.get("user"),
            key_filename=[name for name in options.get("identityfile", []) if os.path.exists(name)],
            skip_instance_cache=True,
            **timeouts,
        )
    return Remote(url, file_system, f"/{folder}", failures)


@contextmanager
def explaining(url: str, failures: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what the libraries raise into one line and a hint."""
    try:
        yield
    except failures as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        # An endpoint's own URL may hold a password.
        text = re.sub(r"//[^/@\s]+@", "//", text)
        hint = next((HINTS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in HINTS), GO_ON)
        raise OperationError(f"{url}: {text}", hint) from error
