"""Programs that run code: shells, python, other languages, scripts on the disk, make and package runners."""

import os
import re

from guardrails.guard.options import options_of
from guardrails.guard.patterns import UNKNOWN, is_known, is_text_known
from guardrails.guard.programs import SHELLS, judge_outputs
from guardrails.guard.protected import CODE_DIR
from guardrails.guard.scene import MOST_BYTES, MOST_DEPTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

PYTHON = re.compile(r"(?:python|pypy)[0-9.]*w?|ipython3?")
OTHERS = {
    "perl": "-e -E",
    "ruby": "-e",
    "node": "-e --eval -p --print",
    "nodejs": "-e --eval -p --print",
    "bun": "-e --eval",
    "deno": "",
    "php": "-r",
    "lua": "-e",
    "luajit": "-e",
    "Rscript": "-e",
    "julia": "-e -E",
    "tclsh": "",
    "groovy": "-e",
}
SCRIPTS = (
    "state_tracker.py",
    "training_controller.py",
    "model_versioner.py",
    "backup_manager.py",
    "training_daemon.py",
    "training_queue.py",
)


def run_interpreter(shell: "Shell", argv: list[str], stdin: str | None) -> str | None:
    """Follow a program that runs code; None if it is none."""
    name = argv[0].rsplit("/", 1)[-1]
    if name in SHELLS:
        return _run_shell(shell, argv, stdin)
    if PYTHON.fullmatch(name):
        return _run_python(shell, argv, stdin)
    if name in OTHERS:
        return _run_other(shell, name, argv, stdin)
    if name in RUNNERS:
        return RUNNERS[name](shell, argv, stdin)
    if name in SCRIPTS or "/" in argv[0]:
        return _run_file(shell, argv[0], argv[1:], stdin)
    return None


def _run_make(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.makefiles import run_make

    return run_make(shell, argv, stdin)


def _run_package_script(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.makefiles import run_package_script

    return run_package_script(shell, argv)


def _run_accelerate(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    words = argv[2:] if argv[1:2] == ["launch"] else []
    while words and words[0].startswith("-"):
        words = words[1:] if "=" in words[0] or words[0] in ("--multi_gpu", "--cpu") else words[2:]
    return _run_python(shell, ["python3", *words], stdin) if words else UNKNOWN


def _run_source(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    return _source(shell, argv[1:])


def _source(shell: "Shell", words: list[str]) -> str:
    if not words:
        return ""
    text = shell.scene.read(words[0])
    if text is None:
        return UNKNOWN
    # A script that runs itself ends here.
    return UNKNOWN if shell.scene.depth > MOST_DEPTH - 2 else shell.run(text)


def _run_shell(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    words = argv[1:]
    if any(re.fullmatch(r"-[a-z]*n[a-z]*", word) for word in words[:1]):
        return ""
    for name in ("BASH_ENV", "ENV"):
        if name in shell.variables:
            _source(shell, shell.variables[name])
    letters = ""
    while words and words[0].startswith(("-", "+")) and len(words[0]) > 1:
        word, words = words[0], words[1:]
        if word in ("--rcfile", "--init-file", "-o", "-O", "+o", "+O"):
            words = words[1:]
        elif word == "--":
            break
        elif not word.startswith("--"):
            letters += word[1:]
    if "c" in letters:
        return _run_text(shell, words[0], words[2:], words[1] if len(words) > 1 else "bash") if words else UNKNOWN
    if "s" in letters:
        return _run_text(shell, stdin or "", words, "bash")
    if words and words[0] not in ("-", "/dev/stdin"):
        text = shell.scene.read(words[0])
        return UNKNOWN if text is None else _run_text(shell, text, words[1:], words[0])
    return _run_text(shell, stdin if stdin is not None else "", [], "bash")


def _run_text(shell: "Shell", text: str, arguments: list[str], name: str) -> str:
    if not text.strip():
        return ""

    def run(inner: "Shell") -> str:
        inner.arguments, inner.name = arguments, name
        return inner.run(text)

    if not is_text_known(text) and text.strip(UNKNOWN + " \n") == "":
        return UNKNOWN
    return shell.apart(run)


def _run_python(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    words = argv[1:]
    while words and words[0].startswith("-") and len(words[0]) > 1:
        word = words.pop(0)
        if word in ("-W", "-X", "--check-hash-based-pycs"):
            words = words[1:]
        elif word.startswith("--"):
            continue
        elif "c" in word and re.fullmatch(r"-[bBdEhiIOqsSuvVPx]*c.*", word):
            code = word.split("c", 1)[1] or (words.pop(0) if words else "")
            return _follow_python(shell, code, ["-c", *words])
        elif "m" in word and re.fullmatch(r"-[bBdEiIOqsSuvPx]*m.*", word):
            module = word.split("m", 1)[1] or (words.pop(0) if words else "")
            return _run_module(shell, module, words)
    if not words or words[0] in ("-", "/dev/stdin"):
        return _follow_python(shell, stdin or "", ["-", *words[1:]])
    return _run_file(shell, words[0], words[1:], stdin, language="python") or UNKNOWN


def _follow_python(shell: "Shell", code: str, arguments: list[str]) -> str:
    from guardrails.guard.python.code import analyse

    def run(inner: "Shell") -> str:
        analyse(code, inner.scene, arguments, inner)
        return UNKNOWN

    return shell.apart(run)


def _run_module(shell: "Shell", module: str, words: list[str]) -> str:
    scene = shell.scene
    if module == "pytest":
        return shell.run_program(["pytest", *words], None)
    if module == "json.tool":
        _, _, operands = options_of(["json.tool", *words])
        for operand in operands[1:]:
            scene.effect("write", operand)
        return UNKNOWN
    if module in ("pip", "venv", "http.server", "compileall", "this", "site"):
        if module == "venv":
            return shell.run_program(["virtualenv", *words], None)
        return UNKNOWN
    if module in ("timeit", "cProfile", "pdb", "trace", "runpy"):
        return shell.run_program(
            ["python3", "-c", words[-1]] if module == "timeit" and words else ["python3", *words], None
        )
    if module in ("tarfile", "zipfile"):
        if words[:1] in (["-e"], ["--extract"]):
            scene.effect("write", words[2] if len(words) > 2 else ".", recursive=False)
        return UNKNOWN
    if module in ("torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch"):
        return shell.run_program(["torchrun", *words], None)
    for path in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__main__.py"):
        if scene.read(path) is not None:
            return _run_file(shell, path, words, None, language="python") or UNKNOWN
    if "." not in module and module not in SCRIPTS:
        return shell.run_program([module, *words], None)
    judge_outputs(shell, words)
    return UNKNOWN


def _run_other(shell: "Shell", name: str, argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.other_code import judge_code

    flags = OTHERS[name].split()
    words, code, in_place, script = argv[1:], [], False, None
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        is_eval = (
            word in flags
            or (name in ("perl", "ruby") and re.fullmatch(r"-[a-zA-Z0-9.]*[eE]", word))
            or (name in ("deno", "bun") and word == "eval")
        )
        if (
            name in ("perl", "ruby")
            and re.fullmatch(r"-[a-zA-Z0-9]*i(\.\w+)?[a-zA-Z]*", word)
            and not word.startswith("-I")
        ):
            in_place = True
        if is_eval:
            code.append(words[index] if index < len(words) else "")
            index += 1
        elif not word.startswith("-") or word == "-":
            script = word if not code else None
            if code:
                index -= 1
            break
    rest = words[index:]
    if code:
        text = "\n".join(code)
        judge_code(name, text, shell, rest)
        if in_place:
            _edit_in_place(shell, text, rest)
        return UNKNOWN
    if script in (None, "-"):
        judge_code(name, stdin or "", shell, rest)
        return UNKNOWN
    if name == "deno" and script == "run":
        script, rest = (rest[0], rest[1:]) if rest else ("", [])
    source = shell.scene.read(script or "")
    if source is not None:
        judge_code(name, source, shell, rest)
        return UNKNOWN
    return shell.unknown_from(rest)


def _edit_in_place(shell: "Shell", code: str, files: list[str]) -> None:
    """``perl -pi -e``: a single substitution is carried out in memory."""
    match = re.fullmatch(r"\s*s([/|#,!~])(.*?)(?<!\\)\1(.*?)(?<!\\)\1([gimsx]*)\s*;?\s*", code, re.DOTALL)

    def edit(old: str) -> str | None:
        if match is None:
            return None
        flags = re.IGNORECASE if "i" in match[4] else 0
        try:
            new = re.sub(
                r"\$(\d)|\$\{(\d)\}|\\(\d)",
                lambda one: f"\\g<{one[1] or one[2] or one[3]}>",
                match[3].replace("$&", "\\g<0>"),
            )
            lines = [
                re.sub(match[2], new, line, count=0 if "g" in match[4] else 1, flags=flags)
                for line in old.splitlines(keepends=True)
            ]
        except (re.error, IndexError):
            return None
        return "".join(lines)

    for file in files:
        shell.scene.effect("write", file, content=edit)


def _run_jq(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    from guardrails.guard.real_tools import jq_text

    scene = shell.scene
    if argv[0].endswith("yq"):
        _, _, operands = options_of(argv)
        if any(re.fullmatch(r"-\w*i|--inplace|--in-place", word) for word in argv[1:]):
            for operand in operands[1:]:
                scene.effect("write", operand)
        return UNKNOWN
    words = argv[1:]
    config = scene.judge.protected.config
    files = [word for word in words if not word.startswith("-") and config in scene.paths(word)]
    text = scene.read(files[0]) if files else stdin
    if text is None or not is_known(text) or not all(is_known(word) for word in words):
        return shell.unknown_from(words)
    printed = jq_text([word for word in words if word not in files], text)
    return UNKNOWN if printed is None else printed


def _run_file(
    shell: "Shell", script: str, arguments: list[str], stdin: str | None, language: str | None = None
) -> str | None:
    """A script on the disk, or one that this call has written."""
    scene = shell.scene
    path = scene.paths(script)[0]
    folder, name = os.path.split(path)
    if name in SCRIPTS and (folder in (CODE_DIR, scene.judge.protected.base) or not os.path.exists(path)):
        from guardrails.guard.toolkit import run_toolkit

        return run_toolkit(shell, name, folder, arguments)
    judge_outputs(shell, arguments)
    if language == "python" and "/" not in script and not is_known(script):
        return UNKNOWN
    if scene.depth > MOST_DEPTH - 2:
        return UNKNOWN
    text = scene.read(script)
    if text is None or "\0" in text[:200] or len(text) >= MOST_BYTES or _is_own(path):
        return None
    if language == "python":
        return _follow_python(shell, text, [script, *arguments])
    first = text.split("\n", 1)[0] if text.startswith("#!") else "#!/bin/sh"
    words = first[2:].split()
    program = next(
        (word.rsplit("/", 1)[-1] for word in words if not word.startswith("-") and not word.endswith("/env")), "sh"
    )
    if program in SHELLS:
        return _run_text(shell, text, arguments, script)
    if PYTHON.fullmatch(program):
        return _follow_python(shell, text, [script, *arguments])
    if program == "make":
        return shell.run_program(["make", "-f", script, *arguments], None)
    from guardrails.guard.other_code import judge_code

    judge_code(program, text, shell, arguments)
    return UNKNOWN


def _is_own(path: str) -> bool:
    """Files of the toolkit itself, as they were shipped, are no surprise."""
    return path.startswith((f"{CODE_DIR}/.venv/", f"{CODE_DIR}/guardrails/"))


RUNNERS = {
    **dict.fromkeys((".", "source"), _run_source),
    **dict.fromkeys(("make", "gmake", "just"), _run_make),
    **dict.fromkeys(("npm", "yarn", "pnpm"), _run_package_script),
    "accelerate": _run_accelerate,
    **dict.fromkeys(("jq", "yq"), _run_jq),
}
