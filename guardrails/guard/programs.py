"""What programs do to files: a table from the name of a program to its effects."""

import os
import re
from collections.abc import Callable
from importlib import import_module

from guardrails.guard.patterns import UNKNOWN, is_known, is_text_known, join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

Handler = Callable[["Shell", list[str], str | None], str]

# Nothing but reading and printing, whatever the arguments; what they print is unknown.
READERS = frozenset(
    "apropos arch b2sum bc blkid cal cksum cmp column comm cut date df diff dig du egrep expand factor fgrep"
    " file fmt fold free getconf getent getfacl groups hexdump host hostname htop id info iostat ip join jobs last"
    " less locale locate ls lsattr lsblk lscpu lsmod lsof lspci man md5sum nm nproc numfmt"
    " nvidia-smi objdump od paste ping pinky pr printenv ps pstree readelf rg sha1sum sha256sum sha512sum"
    " size sleep ss stat strings sum tac test top tree true tsort tty type uname unexpand uniq uptime users vmstat"
    " w wc whereis which who whoami yes zcat zgrep bzcat xzcat zless grep ag ack bat exa eza colordiff cloc"
    " tokei false : [ wait umask ulimit shopt hash help history dirs times getopts let pip pip3 black isort mypy"
    " ruff flake8 pylint pyright tox nox pre-commit apt apt-get dpkg brew snap journalctl"
    " kubectl helm terraform gh hub http https nc ncat telnet traceroute".split()
)
# Programs that run another one: options that take a value, and how many words come before the command.
WRAPPERS: dict[str, tuple[frozenset[str], int]] = {
    "sudo": (frozenset("-u -g -h -p -C -r -t -T -U -D -R --user --group --host --prompt --chdir --chroot".split()), 0),
    "doas": (frozenset("-u -C".split()), 0),
    "pkexec": (frozenset(["--user"]), 0),
    "nice": (frozenset("-n --adjustment".split()), 0),
    "ionice": (frozenset("-c -n --class --classdata".split()), 0),
    "chrt": (frozenset("-T -P -D".split()), 1),
    "taskset": (frozenset(), 1),
    "nohup": (frozenset(), 0),
    "setsid": (frozenset(), 0),
    "stdbuf": (frozenset("-i -o -e --input --output --error".split()), 0),
    "timeout": (frozenset("-k -s --kill-after --signal".split()), 1),
    "time": (frozenset("-f -o --format --output".split()), 0),
    "strace": (frozenset("-e -o -p -s -u -E -a -O -S -P -X".split()), 0),
    "ltrace": (frozenset("-e -o -p -s -u -a -n -x -l".split()), 0),
    "valgrind": (frozenset(), 0),
    "perf": (frozenset("-e -o -F -g --call-graph".split()), 1),
    "unbuffer": (frozenset(), 0),
    "command": (frozenset(), 0),
    "builtin": (frozenset(), 0),
    "exec": (frozenset(["-a"]), 0),
    "busybox": (frozenset(), 0),
    "toybox": (frozenset(), 0),
    "fakeroot": (frozenset("-l -s -i -b".split()), 0),
    "proot": (frozenset("-r -b -w -q".split()), 0),
    "firejail": (frozenset(), 0),
    "systemd-run": (frozenset("-p -u -t -E --unit --property --uid --gid --slice --description --setenv".split()), 0),
    "systemd-inhibit": (frozenset(), 0),
    "caffeinate": (frozenset("-t -w".split()), 0),
    "unshare": (frozenset("-S -G -R -w --root --wd --setuid --setgid".split()), 0),
    "nsenter": (frozenset("-t --target -S -G".split()), 0),
    "setarch": (frozenset(), 1),
    "xvfb-run": (frozenset("-n -s -e -f -p -w".split()), 0),
    "dbus-run-session": (frozenset(), 0),
    "catchsegv": (frozenset(), 0),
    "prlimit": (frozenset(), 0),
    "uv": (frozenset("--with --python -p --directory --project --group --extra".split()), 1),
    "poetry": (frozenset("-C --directory".split()), 1),
    "pipenv": (frozenset(), 1),
    "hatch": (frozenset("-e".split()), 1),
    "pdm": (frozenset("-p".split()), 1),
    "conda": (frozenset("-n -p --name --prefix --cwd".split()), 1),
    "mamba": (frozenset("-n -p --name --prefix".split()), 1),
    "npx": (frozenset("-p --package".split()), 0),
    "entr": (frozenset(), 0),
    "chronic": (frozenset(), 0),
    "ts": (frozenset(), 0),
    "dotenv": (frozenset("-f --file".split()), 1),
    "direnv": (frozenset(), 2),
    "coverage": (frozenset(), 1),
    "gosu": (frozenset(), 1),
    "setpriv": (frozenset("--reuid --regid --groups".split()), 0),
    "capsh": (frozenset(), 0),
    "torchrun": (frozenset(), 0),
}
# Of those, the ones whose first word says that they run something.
RUN_WORDS = {
    **dict.fromkeys(("uv", "poetry", "pipenv", "hatch", "pdm", "conda", "mamba", "coverage", "dotenv"), ("run",)),
    "perf": ("stat", "record", "trace"),
    "direnv": ("exec",),
}
SHELLS = frozenset("sh bash zsh dash ksh ash mksh fish rbash".split())
# An option of any program that names what it writes.
WRITES_TO = re.compile(
    r"--?(?:o|out|output|output[-_]?(?:dir|file|path|folder)|outdir|outfile|dest|destination|local[-_]dir|logging[-_]dir"
    r"|save|save[-_]?(?:dir|path|to|directory|folder)|target[-_]dir|export[-_]dir|to|O|d|directory)(?:=(.*))?",
    re.DOTALL,
)
# The same of a script, whose options may mean anything.
SCRIPT_WRITES_TO = re.compile(
    r"--(?:out|output|outdir|outfile|(?:out|output|save|target|export|logging|local)[-_](?:dir|file|path|folder|to"
    r"|directory))(?:=(.*))?",
    re.DOTALL,
)
# Names that say that something is destroyed when they stand as a word of a command nobody knows.
KNOWN_DESTROYERS = frozenset(
    "rm rmdir unlink shred mv cp truncate dd tee find rsync sh bash zsh dash python python3 perl ruby node".split()
)
DAEMON = re.compile(r"training_daemon|training\.worker")
HARD_TIMEOUT = re.compile(r"(?:-s|--signal)[ =]?(?:SIG)?(?:KILL|9)\b")
DESTROYS = re.compile(
    r"(?:^|[-_])(?:clean|clear|purge|prune|wipe|remov|delet|tmpreap|tmpwatch|erase|destroy|discard|reset|overwrite|rotate"
    r"|in-?place|truncat|dedup|drop|unlink|shred|zap|nuke)",
    re.IGNORECASE,
)
# Programs that write what they are told last.
WRITES_LAST = frozenset("mergekit-yaml mergekit-moe llama-quantize quantize ffmpeg convert magick qemu-img".split())
FLAG_OF_DELETION = re.compile(r"-[a-zA-Z]*[rRf][a-zA-Z]*|--recursive|--force")

# Where a program is followed: the module and function, and the names of the programs.
HANDLED_BY = {
    "moving.run_rm": "rm",
    "moving.run_delete_operands": "rmdir unlink shred srm wipe",
    "moving.run_trash": "trash trash-put gio rimraf del-cli trash-cli",
    "moving.run_cp": "cp gcp",
    "moving.run_mv": "mv",
    "moving.run_ln": "ln link",
    "moving.run_install": "install",
    "moving.run_rename": "rename prename file-rename mmv",
    "writing.run_write_operands": "truncate fallocate sponge fsutil",
    "writing.run_touch": "touch",
    "writing.run_mkdir": "mkdir",
    "writing.run_tee": "tee",
    "writing.run_dd": "dd",
    "writing.run_metadata": "chmod chown chgrp chattr setfacl setfattr chcon",
    "writing.run_sed": "sed gsed",
    "writing.run_compress": "gzip gunzip bzip2 bunzip2 xz unxz lzma zstd unzstd lz4 unlz4 pigz lzip compress",
    "writing.run_sort": "sort",
    "writing.run_download": "curl wget aria2c",
    "writing.run_split_file": "split csplit",
    "writing.run_patch": "patch",
    "writing.run_editor": "ed ex vi vim nvim nano joe micro",
    "trees.run_tar": "tar bsdtar gtar",
    "trees.run_unzip": "unzip unrar",
    "trees.run_zip": "zip",
    "trees.run_seven_zip": "7z 7za 7zr",
    "trees.run_rsync": "rsync",
    "trees.run_scp": "scp sftp",
    "trees.run_mount": "mount umount",
    "trees.run_disk_tool": "mkfs mkfs.ext4 mkfs.xfs mkfs.btrfs mke2fs wipefs mkswap blkdiscard parted fdisk sgdisk",
    "naming.run_ls": "ls",
    "naming.run_find": "find gfind",
    "naming.run_fd": "fd fdfind",
    "naming.run_xargs": "xargs",
    "naming.run_parallel": "parallel",
    "printing.run_echo": "echo",
    "printing.run_printf": "printf",
    "printing.run_cat": "cat zcat tac less more bat",
    "printing.run_pass_through": "head tail grep egrep fgrep rg cut uniq shuf nl column pv",
    "printing.run_awk": "awk gawk mawk nawk",
    "printing.run_pgrep": "pgrep pidof",
    "printing.run_encoded": "base64 base32 rev tr xxd basenc openssl",
    "printing.run_name_parts": "dirname basename",
    "printing.run_full_path": "realpath readlink",
    "printing.run_mktemp": "mktemp tempfile",
    "printing.run_seq": "seq",
    "printing.run_pwd": "pwd",
    "shell_builtins.run_env": "env",
    "shell_builtins.run_cd": "cd pushd popd chdir",
    "shell_builtins.run_eval": "eval",
    "shell_builtins.run_export": "export readonly local declare typeset",
    "shell_builtins.run_alias": "alias",
    "shell_builtins.run_set": "set",
    "shell_builtins.run_shift": "shift",
    "shell_builtins.run_read": "read",
    "shell_builtins.run_mapfile": "mapfile readarray",
    "shell_builtins.run_trap": "trap",
    "shell_builtins.run_exit": "exit return logout",
    "shell_builtins.run_unset": "unset",
    "shell_builtins.run_nothing": "true false : wait sleep test [ break continue",
    "git.run_git": "git",
    "writing.run_apply_patch": "apply_patch applypatch",
    "printing.run_findmnt": "findmnt blkid",
    "processes.run_kill": "kill pkill killall fuser skill xkill",
    "processes.run_systemctl": "systemctl",
    "containers.run_container": "docker podman nerdctl",
    "launchers.run_launcher": (
        "jupyter papermill virtualenv hf huggingface-cli ssh su runuser script watch flock expect tmux "
        "screen at batch crontab chroot bwrap socat run-parts emacs sqlite3 duckdb rclone aws gsutil "
        "s3cmd mc btrfs jdupes fdupes rdfind hardlink duperemove cpio pytest py.test"
    ),
}
HANDLERS = {name: place for place, names in HANDLED_BY.items() for name in names.split()}


def run_program(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """Follow one program; what it prints, as far as that is known. Raises ``Denied``."""
    name = basename(argv[0])
    place = HANDLERS.get(name) if "/" not in argv[0] or _is_installed(shell, argv[0]) else None
    if place is not None:
        return _handler(place)(shell, argv, stdin)
    if name in READERS and "/" not in argv[0]:
        return shell.unknown_from(argv[1:])
    if name in WRAPPERS:
        return _run_wrapper(shell, name, argv, stdin)
    from guardrails.guard.interpreters import run_interpreter

    printed = run_interpreter(shell, argv, stdin)
    return printed if printed is not None else _run_unknown(shell, argv, stdin)


def basename(word: str) -> str:
    """The name of a program; with wildcards in it, the destructive one that it may be."""
    name = word.rsplit("/", 1)[-1]
    if is_known(name):
        return name
    from guardrails.guard.patterns import matches

    return next((known for known in sorted(KNOWN_DESTROYERS) if name and matches(name, known)), name)


def _is_installed(shell: "Shell", word: str) -> bool:
    """Whether a program named by a path is the one of the system that its name says."""
    path = join(shell.scene.cwd, word)
    return (
        not is_known(path)
        or path.startswith(("/bin/", "/usr/", "/sbin/", "/opt/", "/snap/", "/run/", "/nix/"))
        or not os.path.exists(path)
    )


def _run_unknown(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """A program that nobody here knows: its name and its arguments may tell."""
    name, words = argv[0].rsplit("/", 1)[-1], argv[1:]
    if not is_text_known(argv[0]):
        if any(FLAG_OF_DELETION.fullmatch(word) for word in words):
            _destroy(shell, words)
        return UNKNOWN
    if DESTROYS.search(name) or any(DESTROYS.search(word) for word in words if not set("/.= ") & set(word)):
        _destroy(shell, words)
    operands = [word for word in words if not word.startswith("-")]
    for index, word in enumerate(words):
        if WRITES_TO.fullmatch(word):
            judge_outputs(shell, words[index : index + 2], WRITES_TO)
        elif word in KNOWN_DESTROYERS and index + 1 < len(words):
            run_program(shell, words[index:], None)
            break
        elif not word.startswith("-") and (_is_new(shell, word) or (name in WRITES_LAST and word == operands[-1])):
            shell.scene.effect("write", word)
    return shell.unknown_from(words)


def judge_outputs(shell: "Shell", words: list[str], option: re.Pattern[str] = SCRIPT_WRITES_TO) -> None:
    """Judge what a command's options say it writes."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if match := option.fullmatch(word):
            value = following if match[1] is None else match[1]
            if value and not value.startswith("-"):
                shell.scene.effect("write", value)


def _destroy(shell: "Shell", words: list[str]) -> None:
    for word in words:
        shell.scene.effect("delete", word.partition("=")[2] if word.startswith("-") else word)


def _is_new(shell: "Shell", word: str) -> bool:
    """Whether a word names what is not there yet, in a folder that is: it cannot be read, so it is written."""
    return (
        "/" in word
        and not word.startswith("/dev/")
        and any(
            is_known(path) and not os.path.lexists(path) and os.path.isdir(os.path.dirname(path))
            for path in shell.scene.paths(word)
        )
    )


def _run_wrapper(shell: "Shell", name: str, argv: list[str], stdin: str | None) -> str:
    """A program that runs the one behind its own options."""
    if name in RUN_WORDS and next((word for word in argv[1:] if not word.startswith("-")), "") not in RUN_WORDS[name]:
        return _run_unknown(shell, argv, stdin)
    if name == "command" and argv[1:2] in (["-v"], ["-V"]):
        return UNKNOWN
    words = _skip_options(shell, name, argv[1:])
    if name == "timeout" and DAEMON.search(" ".join(words)) and HARD_TIMEOUT.search(" ".join(argv)):
        from guardrails.guard.processes import refuse

        refuse(shell, "timeout with SIGKILL")
    if name in ("torchrun", "coverage") and words:
        words = ["python3", *words]
    return shell.run_program(words, stdin) if words else ""


def _skip_options(shell: "Shell", name: str, words: list[str]) -> list[str]:
    """The command that a wrapper runs."""
    valued, skip = WRAPPERS[name]
    while words:
        word = words[0]
        if word == "--":
            words = words[1:]
            if not skip:
                break
        elif word in valued:
            if word in ("-D", "--chdir", "--directory") and name in ("sudo", "uv", "poetry"):
                shell.change_folder(words[1] if len(words) > 1 else "", or_fail=True)
            words = words[2:]
        elif (word.startswith("-") and len(word) > 1) or re.match(r"[A-Za-z_]\w*=", word):
            words = words[1:]
        elif skip:
            skip -= 1
            words = words[1:]
        else:
            break
    return words


def _handler(place: str) -> Handler:
    """The function that follows a program; its module is imported when it is needed."""
    module, _, function = place.partition(".")
    handler: Handler = getattr(import_module(f"guardrails.guard.{module}"), function)
    return handler
