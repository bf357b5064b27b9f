"""``find`` and ``fd``: the paths that an expression may come to, and what is done with them."""

import os
import re

from guardrails.guard.parameters import glob_to_regex
from guardrails.guard.patterns import DEEP, FRESH, STAR, from_glob, is_known, matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

VALUED = frozenset(
    "-name -iname -path -ipath -wholename -iwholename -regex -iregex -type -xtype -mtime -mmin -ctime -cmin -atime"
    " -amin -newer -anewer -cnewer -size -perm -user -group -uid -gid -maxdepth -mindepth -depth -fstype -inum"
    " -links -lname -ilname -samefile -printf -regextype -newermt -newerct -used".split()
)
EXECUTES = ("-exec", "-execdir", "-ok", "-okdir")


class Clause:
    """One alternative of a ``find`` expression: what tells which paths it comes to, and what it does with them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.excluded: list[str] = []
        self.included: list[str] = []
        self.depth: int | None = None
        self.is_empty_only = False
        self.actions: list[list[str]] = []
        self.deletes = False
        self.prunes = False
        self.prints = False
        self.writes: list[str] = []
        self.form: str | None = None

    def acts(self) -> bool:
        return bool(self.actions or self.deletes or self.writes or self.prints)


def run_find(shell: "Shell", argv: list[str]) -> str:
    """Follow one ``find``; the paths that it prints."""
    words = argv[1:]
    roots: list[str] = []
    follows = False
    while words and (words[0] in ("-L", "-H", "-P") or not words[0].startswith(("-", "(", "!", ")", ","))):
        word = words.pop(0)
        if word in ("-L", "-H", "-P"):
            follows = word != "-P"
        else:
            roots.append(word)
    clauses = _parse(words)
    depth = next((clause.depth for clause in clauses if clause.depth is not None), None)
    pruned = [glob for clause in clauses if clause.prunes and not clause.acts() for glob in _globs_of(clause)]
    if any(clause.acts() for clause in clauses):
        clauses = [clause for clause in clauses if clause.acts()]
    else:
        clauses = [clause for clause in clauses if not clause.prunes] or clauses
    printed = ""
    for clause in clauses:
        clause.depth = depth
        clause.excluded += pruned
        found = [
            pattern for root in roots or ["."] for pattern in _patterns_of_root(shell, root, clause, follows=follows)
        ]
        for target in clause.writes:
            shell.scene.effect("write", target)
        for pattern in found:
            if clause.deletes and not clause.is_empty_only:
                shell.scene.effect("delete", pattern, recursive=False)
            for action in clause.actions:
                shell.run_program([word.replace("{}", pattern) for word in action], None)
        printed += "".join(_print(clause.form, pattern) for pattern in found)
    return printed


def _globs_of(clause: Clause) -> list[str]:
    globs = [f"*/{name}" for name in clause.names] + [f"*/{name}/*" for name in clause.names]
    return globs + [glob for path in clause.included for glob in (path, f"{path}/*")]


def _parse(words: list[str]) -> list[Clause]:
    """The alternatives at the top of an expression; those in brackets count as one."""
    clause = Clause()
    clauses = [clause]
    is_negated = False
    level = index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word in ("!", "-not"):
            is_negated = not is_negated
            continue
        if word in ("(", ")"):
            level += 1 if word == "(" else -1
            continue
        if word in ("-o", "-or", ",") and level == 0:
            clause = Clause()
            clauses.append(clause)
        elif word in EXECUTES:
            end = next((i for i in range(index, len(words)) if words[i] in (";", "+", "\\;")), len(words))
            clause.actions.append(words[index:end])
            index = end + 1
        elif word == "-delete":
            clause.deletes = True
        elif word in ("-print", "-print0", "-ls"):
            clause.prints = True
        elif word == "-prune":
            clause.prunes = True
        elif word == "-empty":
            clause.is_empty_only = not is_negated
        elif word in ("-fprint", "-fprint0", "-fls", "-fprintf"):
            clause.writes.append(words[index] if index < len(words) else "")
            index += 1 + (word == "-fprintf")
        elif word in VALUED:
            _take_test(clause, word, words[index] if index < len(words) else "", is_negated=is_negated)
            index += 1
        is_negated = False
    return clauses


def _take_test(clause: Clause, test: str, value: str, *, is_negated: bool) -> None:
    if test in ("-name", "-iname"):
        if is_negated:
            clause.excluded += [f"*/{value}", f"*/{value}/*"]
        else:
            clause.names.append(value)
    elif test in ("-path", "-ipath", "-wholename", "-iwholename"):
        (clause.excluded if is_negated else clause.included).append(value)
        if is_negated and not value.endswith("*"):
            clause.excluded.append(value + "/*")
    elif test == "-maxdepth" and value.isdigit():
        clause.depth = int(value)
    elif test == "-printf":
        clause.prints = True
        clause.form = value


def _print(form: str | None, pattern: str) -> str:
    """A path as ``-printf`` writes it; ``%f`` and ``%P`` may stand for more than the name of the found path."""
    if form is None:
        return pattern + "\n"
    return re.sub(r"%[pfPh]", lambda _: pattern, form).replace("\\n", "\n").replace("\\0", "\n")


def _patterns_of_root(shell: "Shell", root: str, clause: Clause, *, follows: bool) -> list[str]:
    full = shell.scene.paths(root, follow_last=False)[0]
    is_link = full in shell.scene.links or (is_known(full) and os.path.islink(full))
    return [root] if is_link and not follows and not root.endswith("/") else _patterns(shell, root, clause)


def _patterns(shell: "Shell", root: str, clause: Clause) -> list[str]:
    """Patterns of the paths that are found below ``root``; a harmless one where nothing protected is among them."""
    harmless = f"{root}/{FRESH}"
    if clause.depth == 0:
        return [root]
    if (clause.excluded or clause.included) and not _may_come_to_protected(shell, root, clause):
        return [harmless]
    below = root if clause.depth == 1 else f"{root}/{DEEP}"
    if not clause.names:
        return [f"{below}/{STAR}", root] if clause.depth != 1 else [f"{below}/{STAR}"]
    own = root.rstrip("/").rsplit("/", 1)[-1]
    names = [from_glob(name) for name in clause.names]
    found = [f"{below}/{name}" for name in names]
    return [*found, *(root for name in names if is_known(own) and own not in (".", "") and matches(name, own))]


def _may_come_to_protected(shell: "Shell", root: str, clause: Clause) -> bool:
    """Whether some protected place below ``root`` passes the tests of paths."""
    protected = shell.scene.judge.protected
    for full in shell.scene.paths(root):
        for place in protected.places:
            if place.path.startswith(full.rstrip("/") + "/"):
                seen = root.rstrip("/") + place.path[len(full.rstrip("/")) :]
                inside = f"{seen}/x"
            elif (full + "/").startswith(place.path + "/"):
                seen, inside = root, f"{root.rstrip('/')}/x"
            else:
                continue
            is_left_out = any(_fits(glob, seen) and _fits(glob, inside) for glob in clause.excluded) or any(
                _fits(glob, inside) for glob in clause.excluded if glob.endswith("*")
            )
            is_meant = not clause.included or any(
                _fits(glob, seen) or _fits(glob, inside) or _fits(glob, inside + "/model/adapter_model.safetensors")
                for glob in clause.included
            )
            if (
                is_meant
                and not is_left_out
                and (
                    place.kind not in ("config.json", "the config lock", "the agent guard")
                    or not clause.names
                    or any(matches(from_glob(name), seen.rsplit("/", 1)[-1]) for name in clause.names)
                )
            ):
                return True
    return False


def _fits(glob: str, path: str) -> bool:
    return re.fullmatch(glob_to_regex(glob), path, re.DOTALL) is not None
