"""One-liners and scripts of perl, ruby, node, php, lua and awk: what their names of functions and strings tell."""

import re

from guardrails.guard.config_edits import LOCKED_KEYS
from guardrails.guard.patterns import clean, from_glob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

STRINGS = re.compile(
    r"\"((?:[^\"\\\n]|\\.)*)\"|'((?:[^'\\\n]|\\.)*)'|`((?:[^`\\]|\\.)*)`|\bq[qw]?[({<|/]([^)}>|/]*)[)}>|/]|<([\w./*-]+)>"
)
DELETES = re.compile(
    r"\b(?:unlink|unlinkSync|rmtree|remove_tree|rmSync|rmdirSync|rmdir|rm_rf?|rm_r|rm_f|rm|remove|remove_entry\w*|remove_dir|delete|del|removeSync"
    r"|emptyDirSync|truncate|truncateSync|ftruncate|move|mv|rename|renameSync|moveSync|secure_delete|rimraf)\b"
)
WRITES = re.compile(
    r"\b(?:writeFile|writeFileSync|appendFile\w*|createWriteStream|file_put_contents|copyFile\w*|cpSync|copySync|outputFile\w*|write|binwrite"
    r"|cp_r?|copy|symlinkSync|linkSync|chmodSync|chmod\w*|chown\w*|syswrite|fwrite|fputs|putStr|openSync|writeTextFile\w*|fopen|spew\w*|touch)\b"
    r"|\bopen\b[^;]*(?:['\"]\s*\+?>{1,2}|['\"][wa]\+?b?['\"])|\bio\.open\b|>\s*\""
)
RUNS = re.compile(
    r"\b(?:system|exec|execSync|execFileSync|spawn|spawnSync|execFile|popen|shell_exec|passthru|qx|proc_open|os\.execute|IO\.popen|Open3\.\w+|getline|fork)\b|\||`|%x"
)


def judge_code(language: str, code: str, shell: "Shell", arguments: "list[str] | None" = None) -> None:
    """Tell the effects of code that is not followed but read for names: may see one where there is none."""
    scene = shell.scene
    scene.step()
    texts = (
        [
            clean(_unescape(next(group for group in match.groups(default=None) if group is not None)))
            for match in STRINGS.finditer(code)
        ]
        if STRINGS.search(code)
        else []
    )
    texts = _join_neighbours(code, texts)
    if RUNS.search(code):
        for text in texts:
            if " " in text.strip() or language in ("awk",):
                shell.run_text(text)
        _run_lists(code, shell)
    if language in ("tclsh", "lisp"):
        texts += code.split()
    if (
        re.search(r"\bkill\b", code)
        and re.search(r"KILL|\b9\b", code)
        and re.search(r"training_daemon|daemon\.lock|guardrails", code)
    ):
        from guardrails.guard.processes import refuse

        refuse(shell, f"kill in {language} code")
    words = [word for text in texts for word in (text.split() if "\n" in text or language == "perl" else [text])]
    if DELETES.search(code):
        for text in [*texts, *words, *(arguments or [])]:
            if _is_path(text):
                scene.effect("delete", from_glob(text))
        if not texts and arguments:
            return
    if WRITES.search(code):
        for text in [*texts, *(arguments or [])]:
            if _is_path(text):
                scene.effect("write", from_glob(text), content=(lambda old: old) if _leaves_locked(code) else None)


def _join_neighbours(code: str, texts: list[str]) -> list[str]:
    """Strings, and what some of them make together when they are glued with + or . or a comma."""
    joined = []
    for match in re.finditer(r"(?:(['\"])([^'\"\n]*)\1\s*(?:\+|\.|\.\.|,)\s*)+(['\"])([^'\"\n]*)\3", code):
        pieces = [piece for _, piece in re.findall(r"(['\"])([^'\"\n]*)\1", match[0])]
        joined += ["".join(pieces), "/".join(pieces)]
    return [*texts, *(clean(text) for text in joined)]


def _run_lists(code: str, shell: "Shell") -> None:
    """``system("rm", "-rf", "x")`` and ``spawnSync("rm", ["-rf", "x"])``."""
    for match in re.finditer(
        r"\b(?:system|exec|spawn\w*|execFile\w*|popen|Popen|run)\s*\(?\s*((?:\[?\s*(?:\"[^\"]*\"|'[^']*')\s*,?\s*)+)",
        code,
    ):
        argv = [one or other for one, other in re.findall(r"\"([^\"]*)\"|'([^']*)'", match[1])]
        if len(argv) > 1:
            shell.run_argv([clean(word) for word in argv])


def _leaves_locked(code: str) -> bool:
    """Whether code that writes a settings file names no locked key."""
    return not any(key in code for key in LOCKED_KEYS) and re.search(r"JSON|json", code) is not None


def _is_path(text: str) -> bool:
    return 0 < len(text) < 4096 and "\n" not in text and not text.startswith("-") and " -> " not in text


def _unescape(text: str) -> str:
    text = re.sub(r"\\x([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text)
    text = re.sub(r"[$#]\{[^}]*\}|\$\w+(?:\[\w+\])?", "…", text)
    return re.sub(r"\\(.)", r"\1", text)
