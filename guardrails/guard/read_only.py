"""Commands that are plainly read-only, told without parsing: most of what agents run.

A command line passes only if all of it is understood. It consists of words and separators, where

- a word is bare, of letters, digits and ``_ . / : = @ % + , ^ ~ -``, or quoted as a whole without any character that
  means something between its quotes, so it stands for itself: no expansion, no wildcard, no substitution;
- a separator is ``|``, ``&&``, ``||`` or ``;``, and the only redirections are ``2>&1`` and those to ``/dev/null``;
- each command's first word is a program below, with arguments under which it writes no file and runs no program.

What does not pass is not denied; it is looked through.
"""

import os
import re

MOST_CHARACTERS = 4096
TOKEN = re.compile(
    r"""[ \t]*(?:
        (?P<separator>\|\||\||&&|;)
      | (?P<redirection>2>&1|2?>[ ]?/dev/null)(?=[ \t;|]|$)
      | (?P<bare>[A-Za-z0-9_./:=@%+,^~-]+)(?=[ \t;|]|$)
      | '(?P<single>[^'\n]*)'(?=[ \t;|]|$)
      | "(?P<double>[^"$`\\!\n]*)"(?=[ \t;|]|$)
    )""",
    re.VERBOSE,
)
# Nothing but reading and printing, whatever the arguments.
READERS = (
    "basename cat cd cksum cmp comm cut df diff dirname du echo egrep expand false fgrep fmt fold free getconf grep"
    " head id jq ls lscpu md5sum nl nproc od paste pgrep printenv ps pwd readlink realpath seq sha1sum sha256sum sleep"
    " stat strings tac tail test tr true type uname uptime wc which whoami"
)
# With operands alone, with options alone, with neither.
NO_OPTIONS = ("file", "tree")
NO_OPERANDS = ("uniq",)
NO_ARGUMENTS = ("date", "hostname", "nvidia-smi")
SORT_OPTION = r"-[bdfghinrRsuV]+|-k[0-9.,bdfginr]+|-t."
SED_RANGE = r"(?:[0-9]+|\$)(?:,(?:[0-9]+|\$))?p"
# These write a file or run a program.
RG_OPTIONS = ("--pre", "--hostname-bin")
GIT_OPTIONS = ("--output", "--ext-diff")
GIT_READERS = "blame describe diff log ls-files ls-tree rev-list rev-parse shortlog show status"
FIND_OPTION = (
    r"-(?:i?name|i?path|type|maxdepth|mindepth|size|[acm]time|[acm]min|newer|empty|print0?|not|o|a|ls|follow|xdev|L|H|P"
    r"|i?regex|user|group|perm|links|inum|readable|writable|executable|prune|[0-9]+[a-zA-Z]?)"
)
TRACKER = "state_tracker.py"
TRACKER_OPTIONS = ("--check", "--warnings", "--json", "--exit-code", "--help", "--version")


def is_read_only(command: str, cwd: str) -> bool:
    """Whether a command line changes nothing, as far as that is plain to see."""
    if len(command) > MOST_CHARACTERS:
        return False
    commands = split_commands(command.strip())
    if commands is None:
        return False
    moved = any(words[0] == "cd" for words in commands)
    return all(_is_reader(words, None if moved else cwd) for words in commands)


def split_commands(text: str) -> list[list[str]] | None:
    """The words of each command; None where there is anything but words and separators."""
    commands: list[list[str]] = [[]]
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        if match["separator"]:
            commands.append([])
        elif not match["redirection"]:
            commands[-1].append(match[match.lastgroup or 0])
    if len(commands) > 1 and not commands[-1] and text.endswith(";"):
        commands.pop()
    return commands if all(commands) else None


def _is_reader(words: list[str], cwd: str | None) -> bool:
    program, arguments = words[0], words[1:]
    if program in READERS.split():
        return True
    options = [word for word in arguments if word.startswith("-") and word != "-"]
    if program == "git":
        return _is_git_reader(arguments)
    if program == "rg":
        return not any(option.startswith(RG_OPTIONS) for option in options)
    if program == "find":
        return all(re.fullmatch(FIND_OPTION, option) for option in options)
    if program == "sort":
        return all(re.fullmatch(SORT_OPTION, option) for option in options)
    if program == "sed":
        return options == arguments[:1] == ["-n"] and re.fullmatch(SED_RANGE, "".join(arguments[1:2])) is not None
    if program in NO_OPTIONS:
        return not options
    if program in NO_OPERANDS:
        return options == arguments
    return not arguments if program in NO_ARGUMENTS else _is_tracker(words, cwd)


def _is_git_reader(arguments: list[str]) -> bool:
    while arguments[:1] == ["--no-pager"] or arguments[:1] == ["-C"]:
        arguments = arguments[1 if arguments[0] == "--no-pager" else 2 :]
    return "".join(arguments[:1]) in GIT_READERS.split() and not any(map(_is_git_writer, arguments))


def _is_git_writer(option: str) -> bool:
    """Whether it is one of the options that write, which git also takes shortened."""
    name = option.partition("=")[0]
    return len(name) > 2 and any(long.startswith(name) or name.startswith(long) for long in GIT_OPTIONS)


def _is_tracker(words: list[str], cwd: str | None) -> bool:
    """The toolkit's own report; another file of that name may do anything."""
    if words[0] == "python3":
        words = words[1:]
    if not words or os.path.basename(words[0]) != TRACKER or (cwd is None and not words[0].startswith("/")):
        return False
    from guardrails.guard.protected import CODE_DIR

    if os.path.realpath(os.path.join(cwd or "/", words[0])) != f"{CODE_DIR}/{TRACKER}":
        return False
    after_base_dir = False
    for word in words[1:]:
        if not after_base_dir and word not in TRACKER_OPTIONS and not word.startswith("--base-dir"):
            return False
        after_base_dir = word == "--base-dir"
    return True
