"""Every failure a user can meet: one family, each with its exit code and a hint.

The table of exit codes is in docs/cli.md. Only two places turn these into an exit or a log line:
``guardrails.cli`` for a command, and the daemon around one data file.
"""


class GuardrailsError(Exception):
    """A failure to be shown as ``error: …`` and ``hint: …``, never as a traceback.

    ``message`` names the file or key and the value, ``hint`` the command or step that helps.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class OperationError(GuardrailsError):
    """The command could not do what it was asked to, and changed nothing."""


class UsageError(GuardrailsError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class ConfigError(GuardrailsError):
    """config.json, or what it points to, cannot be trained with."""

    exit_code = 10


class ConfigLockError(GuardrailsError):
    """A locked value or the base model differs from what was locked."""

    exit_code = 11


class BusyError(GuardrailsError):
    """Another process holds what the command needs."""

    exit_code = 20


class DamagedStateError(GuardrailsError):
    """A state file cannot be read or was written by a newer toolkit; it is left untouched."""

    exit_code = 30


class IntegrityError(GuardrailsError):
    """Bytes on the disk are not the bytes that were saved."""

    exit_code = 31


class LastCopyError(GuardrailsError):
    """Carrying this out would remove the last good copy."""

    exit_code = 32


class DiskSpaceError(GuardrailsError):
    """There is not enough free disk space."""

    exit_code = 33


class TrainingError(GuardrailsError):
    """A data file could not be trained."""

    exit_code = 40


def name_some(names: list[str], most: int, between: str = ", ") -> str:
    """The first ``most`` of some names, and how many more there are: a message must stay readable with thousands."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more
