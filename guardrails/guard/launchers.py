"""Programs that run a command line given as text, on this machine, later, or on a terminal of their own."""

import json
import os
import re

from guardrails.guard.options import options_of
from guardrails.guard.patterns import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

THIS_MACHINE = re.compile(r"(?:[\w.-]+@)?(?:localhost|127\.[0-9.]+|::1|\$?HOSTNAME)")


def run_launcher(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """Follow what is launched."""
    name = argv[0].rsplit("/", 1)[-1]
    handler = LAUNCHERS[name]
    handler(shell, argv, stdin)
    return UNKNOWN


def _ssh(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, _, operands = _leading(argv, "bcDEeFIiJLlmOopQRSWw")
    if operands and THIS_MACHINE.fullmatch(operands[0]):
        text = " ".join(operands[1:]) or stdin or ""
        shell.apart(lambda inner: _at_home(inner, text, stdin))


def _at_home(shell: "Shell", text: str, stdin: str | None) -> str:
    shell.change_folder(shell.value_of("HOME"), or_fail=True)
    return shell.run(text, stdin)


def _leading(argv: list[str], valued: str) -> tuple[list[str], dict[str, str], list[str]]:
    """Options before the first operand, their values, and everything from it on."""
    values: dict[str, str] = {}
    index = 1
    while index < len(argv) and argv[index].startswith("-") and len(argv[index]) > 1:
        word = argv[index]
        index += 1
        if word == "--":
            break
        if not word.startswith("--"):
            for position, letter in enumerate(word[1:], 2):
                values[f"-{letter}"] = ""
                if letter in valued:
                    values[f"-{letter}"] = word[position:]
                    if not word[position:] and index < len(argv):
                        values[f"-{letter}"] = argv[index]
                        index += 1
                    break
        else:
            key, _, value = word.partition("=")
            values[key] = value
    return list(values), values, argv[index:]


def _su(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, values, operands = options_of(argv, "csugG", ("--command", "--shell", "--user", "--group"))
    if text := values.get("-c") or values.get("--command"):
        shell.run_text(text)
    elif "--" in argv:
        shell.run_argv(argv[argv.index("--") + 1 :])
    elif "-u" in values and operands:
        shell.run_argv(operands)
    elif stdin:
        shell.run_text(stdin)


def _script(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, values, operands = options_of(argv, "cIOBmETo", ("--command", "--log-out", "--log-in"))
    if text := values.get("-c") or values.get("--command"):
        shell.run_text(text)
    elif stdin:
        shell.run_text(stdin)
    for operand in operands[:1]:
        if operand != "/dev/null":
            shell.scene.effect("write", operand)


def _watch(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, _, operands = _leading(argv, "nq")
    shell.run_text(" ".join(operands))


def _flock(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, values, operands = _leading(argv, "wE")
    words = operands[1:]
    if "-c" in values and operands:
        shell.run_text(operands[-1])
    elif words[:1] in (["-c"], ["--command"]):
        shell.run_text(words[1] if len(words) > 1 else "")
    elif words:
        shell.run_argv(words)


def _expect(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, values, operands = options_of(argv, "cf", ())
    text = (
        values.get("-c")
        or (shell.scene.read(values.get("-f") or operands[0]) if values.get("-f") or operands else stdin)
        or ""
    )
    for match in re.finditer(r"\b(?:spawn|exec|system)\s+([^\n;]+)", text):
        shell.run_text(match[1])


def _tmux(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    """send-keys, stuff, new-session: each word that may be a command line."""
    words = [word for word in argv[1:] if not word.startswith("-")]
    for word in words:
        text = word.replace("\\n", "\n").replace("\\r", "\n").replace("^M", "\n")
        if " " in text.strip():
            shell.run_text(text)
    for start in range(len(words)):
        if words[start] in (
            "send-keys",
            "send",
            "stuff",
            "new-session",
            "new",
            "new-window",
            "neww",
            "split-window",
            "splitw",
            "respawn-pane",
            "run-shell",
            "run",
        ):
            rest = [word for word in words[start + 1 :] if word not in ("Enter", "C-m")]
            if rest:
                shell.run_text(" ".join(rest))
    options_with_command = argv[1:]
    if "-dm" in options_with_command or "-dmS" in options_with_command:
        after = (
            options_with_command.index("-dmS") + 2
            if "-dmS" in options_with_command
            else options_with_command.index("-dm") + 1
        )
        if options_with_command[after:]:
            shell.run_argv(options_with_command[after:])


def _at(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, values, _ = options_of(argv, "fqt", ())
    text = shell.scene.read(values["-f"]) if "-f" in values else stdin
    shell.run_text(text or "")


def _crontab(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, _, operands = options_of(argv, "u", ())
    if not operands:
        return
    text = stdin if operands[0] == "-" else shell.scene.read(operands[0])
    for line in (text or "").splitlines():
        match = re.match(r"\s*(?:@\w+|(?:\S+\s+){5})(.*)", line)
        if match and not line.lstrip().startswith("#"):
            shell.run_text(match[1])


def _chroot(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, _, operands = _leading(argv, "")
    if len(operands) < 2:
        return
    root = shell.scene.paths(operands[0])[0].rstrip("/")
    shell.run_argv([operands[1], *(root + word if word.startswith("/") else word for word in operands[2:])])


def _bwrap(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    """What bubblewrap runs sees read-only what was bound so; the toolkit's own launcher does that."""
    words = argv[1:]
    count = {
        "--bind": 2,
        "--ro-bind": 2,
        "--dev-bind": 2,
        "--bind-try": 2,
        "--ro-bind-try": 2,
        "--symlink": 2,
        "--setenv": 2,
        "--file": 2,
    }
    single = {
        "--dev",
        "--proc",
        "--tmpfs",
        "--dir",
        "--chdir",
        "--unsetenv",
        "--hostname",
        "--uid",
        "--gid",
        "--seccomp",
    }
    while words and words[0].startswith("--"):
        if words[0] == "--":
            words = words[1:]
            break
        words = words[1 + count.get(words[0], 1 if words[0] in single else 0) :]
    if words:
        shell.run_argv(words)


def _socat(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    for word in argv[1:]:
        match = re.match(r"(?:EXEC|SYSTEM):\"?'?([^,\"']+)", word, re.IGNORECASE)
        if match:
            shell.run_text(match[1])


def _run_parts(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, _, operands = options_of(argv, "a", ())
    for operand in operands:
        for path in shell.scene.paths(operand):
            for name in sorted(os.listdir(path)) if os.path.isdir(path) else []:
                shell.run_argv([f"{path}/{name}"])


def _emacs(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    from guardrails.guard.other_code import judge_code

    for option, value in zip(argv[1:], [*argv[2:], ""], strict=False):
        if option in ("--eval", "-eval", "--execute", "-l", "--load", "--script"):
            judge_code(
                "lisp", value if "eval" in option or option == "--execute" else shell.scene.read(value) or "", shell
            )


def _sqlite(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    for text in [*argv[1:], stdin or ""]:
        for match in re.finditer(r"\.(?:shell|system)\s+([^\n]+)", text):
            shell.run_text(match[1])
        for match in re.finditer(
            r"\.(?:output|once|backup|save|clone|excel|log)\s+['\"]?([^\s'\"]+)|writefile\(\s*'([^']+)'", text
        ):
            shell.scene.effect("write", match[1] or match[2])


def _sync(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    """rclone, aws s3, gsutil: copies between here and elsewhere."""
    words = [word for word in argv[1:] if not word.startswith("-")]
    flags = {word for word in argv[1:] if word.startswith("-")}
    if argv[0].endswith("aws") and words[:1] == ["s3"]:
        words = words[1:]
    verb, operands = (words[0], words[1:]) if words else ("", [])
    if {"--dry-run", "--dryrun", "-n"} & flags:
        return
    here = [operand for operand in operands if "://" not in operand and not re.match(r"[\w-]+:", operand)]
    if verb in ("delete", "purge", "rm", "deletefile", "rmdir", "rmdirs", "cleanup"):
        for operand in here:
            shell.scene.effect("delete", operand)
    if verb in ("move", "mv", "moveto") and operands and operands[0] in here:
        shell.scene.effect("move", operands[0])
    if len(operands) > 1 and operands[1] in here:
        if verb in ("sync", "rsync", "bisync") and (argv[0].endswith("rclone") or {"--delete", "-d"} & flags):
            shell.scene.effect("delete", operands[1])
        shell.scene.effect("write", operands[1], recursive=False)


def _btrfs(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    if argv[1:3] in (["subvolume", "delete"], ["sub", "del"], ["subvolume", "del"], ["su", "de"]):
        for word in argv[3:]:
            shell.scene.effect("delete", word)


def _deduplicate(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    """jdupes, fdupes, rdfind: files that are equal are deleted or linked to each other."""
    name = argv[0].rsplit("/", 1)[-1]
    if "-n" in argv or "--dry-run" in argv or re.search(r"-(?:dryrun|n) true", " ".join(argv)):
        return
    changes = name == "hardlink" or (name == "rdfind" and "true" in argv)
    if changes or any(re.fullmatch(r"-\w*[dLlN]\w*|--delete|--link-hard|--noprompt", word) for word in argv[1:]):
        for word in argv[1:]:
            if not word.startswith("-"):
                shell.scene.effect("link", word, recursive=True)


def _cpio(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    flags, values, operands = options_of(argv, "DFHE", ("--directory", "--file"))
    if not flags.isdisjoint({"-p", "--pass-through"}):
        for operand in operands:
            shell.scene.effect("write", operand)
    elif not flags.isdisjoint({"-i", "--extract"}):
        shell.scene.effect("write", values.get("-D") or values.get("--directory") or ".", recursive=False)


def _pytest(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    _, values, _ = options_of(argv, "kmpcno", ("--basetemp", "--rootdir"))
    if folder := values.get("--basetemp"):
        shell.scene.effect("delete", folder)


def _hub(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    """Huggingface's command line: its cache may hold the base model."""
    words = [word for word in argv[1:] if not word.startswith("-")]
    if words[:1] == ["delete-cache"] or (words[:1] == ["cache"] and words[1:2] in (["rm"], ["prune"], ["delete"])):
        home = shell.value_of("HF_HOME") if shell.is_set("HF_HOME") else "~/.cache/huggingface"
        shell.scene.effect("delete", home.replace("~", shell.value_of("HOME"), 1))
    _, values, _ = options_of(argv, "", ("--local-dir", "--cache-dir"))
    if folder := values.get("--local-dir"):
        shell.scene.effect("write", folder)


def _notebook(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    """``jupyter nbconvert --execute, jupyter execute, papermill``: the code in the cells."""
    runs = "papermill" in argv[0] or any(word in ("--execute", "execute", "run") for word in argv[1:])
    for word in argv[1:] if runs else []:
        if word.endswith(".ipynb"):
            shell.run_argv(["python3", "-c", _code_of(shell.scene.read(word) or "")])
    _, values, operands = options_of(argv, "pkr", ("--output-dir", "--output", "--to", "--template", "--config"))
    if folder := values.get("--output-dir"):
        shell.scene.effect("write", folder)
    if "papermill" in argv[0]:
        for operand in operands[1:2]:
            shell.scene.effect("write", operand)


def _code_of(notebook: str) -> str:
    try:
        cells = json.loads(notebook).get("cells", [])
        sources = [cell.get("source", "") for cell in cells if cell.get("cell_type") == "code"]
    except (ValueError, AttributeError):
        return ""
    code = "\n".join("".join(source) for source in sources)
    return re.sub(r"^[ \t]*[%!].*$", "", code, flags=re.MULTILINE)


def _virtualenv(shell: "Shell", argv: list[str], stdin: str | None) -> None:
    flags, _, operands = options_of(argv, "p", ("--python", "--prompt"))
    for operand in operands:
        shell.scene.effect("delete" if "--clear" in flags else "write", operand)


LAUNCHERS = {
    **dict.fromkeys(("jupyter", "papermill"), _notebook),
    "virtualenv": _virtualenv,
    **dict.fromkeys(("hf", "huggingface-cli"), _hub),
    "run-parts": _run_parts,
    "emacs": _emacs,
    **dict.fromkeys(("sqlite3", "duckdb"), _sqlite),
    **dict.fromkeys(("rclone", "aws", "gsutil", "s3cmd", "mc"), _sync),
    "btrfs": _btrfs,
    **dict.fromkeys(("jdupes", "fdupes", "rdfind", "hardlink", "duperemove"), _deduplicate),
    "cpio": _cpio,
    **dict.fromkeys(("pytest", "py.test"), _pytest),
    "ssh": _ssh,
    "su": _su,
    "runuser": _su,
    "script": _script,
    "watch": _watch,
    "flock": _flock,
    "expect": _expect,
    "tmux": _tmux,
    "screen": _tmux,
    "at": _at,
    "batch": _at,
    "crontab": _crontab,
    "chroot": _chroot,
    "bwrap": _bwrap,
    "socat": _socat,
}
