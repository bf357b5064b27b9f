"""Signals: whether one that ends a process at once would hit the daemon or its worker."""

import os
import re

from guardrails.guard.options import options_of
from guardrails.guard.patterns import HAS_MARK, TAINT, UNKNOWN, is_known
from guardrails.guard.protected import read_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

# What the daemon takes as a stop, or does not mind.
SOFT = {"TERM", "INT", "CONT", "CHLD", "WINCH", "URG", "0", "2", "15", "18", "17", "28", "23", "EXIT"}
OURS = (
    "training_daemon.py",
    "guardrails.training.worker",
    "python3 training_daemon.py",
    "python3",
    "python",
    "torchrun",
)
SERVICE = re.compile(r"training|guardrails|daemon", re.IGNORECASE)
POLICY_STOP = ("training_controller.py stop --wait 120", "saves a checkpoint, then ends the daemon")


def run_kill(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """kill, pkill, killall and fuser -k."""
    name = argv[0].rsplit("/", 1)[-1]
    signal, words = _signal_of(name, argv[1:])
    if name == "fuser":
        _run_fuser(shell, argv, signal, words)
        return UNKNOWN
    if signal in SOFT or any(word in ("-l", "-L", "--list", "--help", "-V") for word in argv[1:]):
        return UNKNOWN
    if name == "kill":
        for word in words:
            if _may_be_ours(shell, word):
                whom = "the daemon or its worker" if is_known(word) else "a process that may be the daemon"
                refuse(shell, f"kill -{signal} {whom}")
    else:
        is_full = any(re.fullmatch(r"-\w*f\w*|--full", word) for word in argv[1:])
        is_exact = any(re.fullmatch(r"-\w*x\w*|--exact", word) for word in argv[1:])
        for word in words:
            if names_ours(word, is_full=is_full, is_exact=is_exact or name == "killall"):
                refuse(shell, f"{name} -{signal} {word}")
        if not words and name == "pkill" and any(word.startswith("-u") for word in argv[1:]):
            refuse(shell, f"{name} -{signal} of every process of a user")
    return UNKNOWN


def _run_fuser(shell: "Shell", argv: list[str], signal: str, words: list[str]) -> None:
    base = shell.scene.judge.protected.base
    if signal in SOFT or not any(re.fullmatch(r"-\w*k\w*|--kill", word) for word in argv[1:]):
        return
    for word in words:
        if not word.startswith("-") and not re.fullmatch(r"\d+/(?:tcp|udp)", word):
            for path in shell.scene.paths(word):
                if path == base or path.startswith(base + "/"):
                    refuse(shell, f"fuser -k on {word}")


def refuse(shell: "Shell", what: str) -> None:
    """Raises ``Denied`` for what would end the training the hard way."""
    from guardrails.guard.protected import CURRENT

    shell.scene.judge.deny(CURRENT, f"{what} would end the training without a checkpoint", POLICY_STOP)


def _signal_of(name: str, words: list[str]) -> tuple[str, list[str]]:
    """The signal's name without SIG (``fuser`` kills by default), and what is left of the words."""
    signal = "KILL" if name == "fuser" else "TERM"
    rest: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word in ("-s", "--signal", "-n") and words and (name != "pkill" or word != "-n"):
            signal = words.pop(0)
        elif word.startswith("--signal="):
            signal = word.partition("=")[2]
        elif (
            re.fullmatch(r"-(SIG)?[A-Z]{2,}[0-9]*|-[0-9]+|-s\w+", word)
            and not rest
            and not (name == "kill" and word == "-1" and signal != "TERM")
        ):
            signal = word[1:] if not word.startswith("-s") else word[2:]
        elif (
            word
            in ("-u", "-U", "-g", "-G", "-P", "-t", "-F", "--parent", "--user", "--pidfile", "--terminal", "-O", "-o")
            and name in ("pkill", "killall")
            and words
        ):
            value = words.pop(0)
            if word in ("-F", "--pidfile"):
                rest.append(value)
        elif word.startswith("-") and name != "kill" and word != "--":
            continue
        elif word != "--":
            rest.append(word)
    signal = signal.upper().removeprefix("SIG")
    return ("KILL" if HAS_MARK.search(signal) else signal), rest


def names_ours(pattern: str, *, is_full: bool, is_exact: bool) -> bool:
    """Whether a pattern of process names fits the daemon's."""
    if not is_known(pattern):
        return True
    for target in OURS if is_full else ("python3", "python", "python3.11", "torchrun", "training_daemon.py"):
        try:
            if (
                re.fullmatch(pattern, target)
                if is_exact
                else re.search(
                    pattern, f"/usr/bin/python3 /base/{target} --base-dir" if is_full and "/" not in target else target
                )
            ):
                return True
        except re.error:
            if pattern in target:
                return True
    return False


def _may_be_ours(shell: "Shell", word: str) -> bool:
    """Whether a process id may be the daemon's, its worker's or that of a process which they live in."""
    if word.startswith("%"):
        return False
    if not is_known(word):
        named = "".join(HAS_MARK.split(word))
        return TAINT in word or (UNKNOWN in word and len(named) > 3 and names_ours(named, is_full=True, is_exact=False))
    if not re.fullmatch(r"-?[0-9]+", word):
        return False
    number = int(word)
    if number in (-1, 0, 1):
        return True
    return abs(number) in _own_processes(shell)


def _own_processes(shell: "Shell") -> set[int]:
    """The daemon, its worker and all processes above and below them that are no system's."""
    base = shell.scene.judge.protected.base
    found = set()
    for name in (".locks/daemon.lock", "status/daemon.json", "status/training_status.json"):
        document = read_object(f"{base}/{name}") or {}
        found |= {value for key, value in document.items() if key.endswith("pid") and isinstance(value, int)}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    command = file.read(4096)
            except OSError:
                continue
            if (b"training_daemon.py" in command or b"guardrails.training" in command) and b"python" in command.split(
                b"\0"
            )[0]:
                found.add(int(entry))
    return found


def run_systemctl(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """``systemctl kill -s KILL training``; stop and restart send SIGTERM."""
    _, values, operands = options_of(argv, "sMHtp", ("--signal", "--kill-who", "--kill-whom"))
    if operands[:1] == ["kill"]:
        signal = (values.get("-s") or values.get("--signal") or "TERM").upper().removeprefix("SIG")
        for unit in operands[1:]:
            if signal not in SOFT and SERVICE.search(unit):
                refuse(shell, f"systemctl kill -s {signal} {unit}")
    return UNKNOWN
