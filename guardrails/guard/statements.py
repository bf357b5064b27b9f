"""Kinds of shell commands: lists, pipes, conditions, loops, functions and declarations."""

import re
from collections.abc import Callable

from guardrails.guard.parameters import glob_to_regex
from guardrails.guard.patterns import STAR, UNKNOWN, is_known
from guardrails.guard.shell import MOST_ROUNDS, MOST_VALUES, ExitedError, Shell
from guardrails.guard.words import Node, expand_text, expand_words, first_text


def _join(shell: Shell, branch: Shell, before: tuple[str, tuple[str, ...]]) -> None:
    """Take what a branch changed as one possibility beside what is."""
    for name, values in branch.variables.items():
        mine = shell.variables.get(name)
        if mine != values:
            shell.variables[name] = list(dict.fromkeys([*(mine or shell.values_of(name)), *values]))[:MOST_VALUES]
    for name, elements in branch.arrays.items():
        mine = shell.arrays.get(name, [])
        shell.arrays[name] = mine + [element for element in elements if element not in mine]
    shell.functions.update(branch.functions)
    scene = shell.scene
    cwds = dict.fromkeys([before[0], *before[1], scene.cwd, *scene.other_cwds])
    scene.cwd, *others = list(cwds)[:6]
    scene.other_cwds = tuple(others)


def run_block(shell: Shell, command: Node, stdin: str | None) -> str:
    return shell.run_statements(command.get("Stmts") or [], stdin)


def run_subshell(shell: Shell, command: Node, stdin: str | None) -> str:
    return shell.apart(lambda inner: inner.run_statements(command.get("Stmts") or [], stdin))


def run_time_clause(shell: Shell, command: Node, stdin: str | None) -> str:
    return shell.run_statement(command["Stmt"], stdin) if command.get("Stmt") else ""


def run_coproc_clause(shell: Shell, command: Node, stdin: str | None) -> str:
    return shell.apart(lambda inner: inner.run_statement(command["Stmt"], stdin))


def run_func_decl(shell: Shell, command: Node, stdin: str | None) -> str:
    if "Name" not in command:
        # In zsh a function without a name is run at once.
        return shell.run_statement(command["Body"], stdin)
    shell.functions[command["Name"]["Value"]] = command["Body"]
    return ""


def run_binary_cmd(shell: Shell, command: Node, stdin: str | None) -> str:
    operator, left, right = command["Op"], command["X"], command["Y"]
    if operator in ("|", "|&"):
        printed = shell.apart(lambda inner: inner.run_statement(left, stdin))
        return shell.apart(lambda inner: inner.run_statement(right, printed))
    holds = truth(shell, left)
    if operator == "&&":
        return "" if holds is False else _run_and(shell, left, right, stdin, is_sure=holds is True)
    if holds is not None:
        return shell.run_statement(left if holds else right, stdin)
    return _run_or(shell, left, right, stdin)


def _run_and(shell: Shell, left: Node, right: Node, stdin: str | None, *, is_sure: bool) -> str:
    """``cd there && rm x``: behind it the shell may be where it was, in it it is not."""
    scene = shell.scene
    printed = shell.run_statement(left, stdin)
    failed, scene.if_cd_failed = scene.if_cd_failed, ()
    scene.other_cwds = tuple(cwd for cwd in scene.other_cwds if cwd not in failed)
    try:
        printed += shell.run_statement(right, stdin)
    except ExitedError:
        # `test -e x && exit` leaves only if the test holds.
        if is_sure:
            raise
    scene.other_cwds += failed
    scene.if_cd_failed += failed
    return printed


def _run_or(shell: Shell, left: Node, right: Node, stdin: str | None) -> str:
    """``cd there || exit``: behind it the shell is there; ``cd there || echo no``: it most likely is."""
    scene = shell.scene
    before = (scene.cwd, scene.other_cwds)
    printed = _reach(shell, left, stdin)
    after = (scene.cwd, scene.other_cwds)
    branch = shell.fork()
    scene.cwd, scene.other_cwds = before
    try:
        branch.run_statement(right, stdin)
    except ExitedError:
        scene.cwd, others = after
        scene.other_cwds = tuple(cwd for cwd in others if cwd not in scene.if_cd_failed)
        return printed
    if (scene.cwd, scene.other_cwds) == before:
        scene.cwd, scene.other_cwds = after
    _join(shell, branch, after)
    return printed


def _reach(shell: Shell, statement: Node, stdin: str | None) -> str:
    try:
        return shell.run_statement(statement, stdin)
    except ExitedError:
        return UNKNOWN


def _branch(shell: Shell, statements: list[Node], stdin: str | None) -> str:
    """Follow one way of a condition and the way around it."""
    before = (shell.scene.cwd, shell.scene.other_cwds)
    branch = shell.fork()
    try:
        printed = branch.run_statements(statements, stdin)
    except ExitedError:
        shell.scene.cwd, shell.scene.other_cwds = before
        return UNKNOWN
    _join(shell, branch, before)
    return printed


def run_if_clause(shell: Shell, command: Node, stdin: str | None) -> str:
    condition = command.get("Cond") or []
    printed = shell.run_statements(condition, stdin)
    holds = truth(shell, condition[0]) if len(condition) == 1 else None
    if holds is True or not condition:
        return printed + shell.run_statements(command.get("Then") or [], stdin)
    other = command.get("Else")
    if holds is False:
        return printed + (run_if_clause(shell, other, stdin) if other else "")
    printed += _branch(shell, command.get("Then") or [], stdin)
    if other:
        before = (shell.scene.cwd, shell.scene.other_cwds)
        try:
            printed += run_if_clause(shell, other, stdin)
        except ExitedError:
            shell.scene.cwd, shell.scene.other_cwds = before
    return printed


def truth(shell: Shell, statement: Node) -> bool | None:
    """Whether a test holds, where it only compares known text; None where that is not known."""
    command = statement.get("Cmd") or {}
    holds: bool | None = None
    if command.get("Type") == "TestClause":
        test = command.get("X") or {}
        if test.get("Type") == "BinaryTest":
            holds = _compare(first_text(shell, test["X"]), str(test["Op"]), first_text(shell, test["Y"]))
    elif command.get("Type") == "CallExpr" and not command.get("Assigns"):
        words = [first_text(shell, word) for word in (command.get("Args") or [])[:5]]
        if words in (["true"], ["false"]):
            holds = words == ["true"]
        elif words[:1] in (["["], ["test"]) and len(words) >= 4:
            holds = _compare(*words[1:4])
    return holds if holds is None else holds != bool(statement.get("Negated"))


def _compare(left: str, operator: str, right: str) -> bool | None:
    if operator not in ("=", "==", "!=") or not (is_known(left) and is_known(right)):
        return None
    return (left == right) == (operator != "!=")


def run_case_clause(shell: Shell, command: Node, stdin: str | None) -> str:
    values = expand_text(shell, command.get("Word"))
    printed = ""
    for item in command.get("Items") or []:
        patterns = [text for pattern in item.get("Patterns") or [] for text in expand_text(shell, pattern)]
        if len(values) == 1 and is_known(values[0]):
            if any(re.fullmatch(glob_to_regex(pattern), values[0], re.DOTALL) for pattern in patterns):
                return printed + shell.run_statements(item.get("Stmts") or [], stdin)
        else:
            printed += _branch(shell, item.get("Stmts") or [], stdin)
    return printed


def run_while_clause(shell: Shell, command: Node, stdin: str | None) -> str:
    condition, body = command.get("Cond") or [], command.get("Do") or []
    name = _name_of_read(condition)
    if name is not None and stdin is not None:
        return _run_lines(shell, name, body, stdin)
    printed = ""
    for _ in range(2):
        printed += shell.run_statements(condition, stdin)
        printed += _branch(shell, body, stdin)
    return printed


def _run_lines(shell: Shell, name: str, body: list[Node], stdin: str) -> str:
    """``while read name``: once for each line."""
    lines = stdin.splitlines() or [UNKNOWN]
    printed = ""
    for line in lines[:MOST_ROUNDS]:
        shell.assign(name, [line.strip()])
        printed += _branch(shell, body, UNKNOWN)
    return printed


def run_for_clause(shell: Shell, command: Node, stdin: str | None) -> str:
    loop, body = command["Loop"], command.get("Do") or []
    if loop["Type"] != "WordIter":
        for part in ("Init",):
            if (node := loop.get(part)) and node.get("X"):
                shell.assign(first_text(shell, node["X"]), [STAR])
        return _branch(shell, body, stdin)
    name = loop["Name"]["Value"]
    if "Items" in loop or "InPos" in loop:
        items = [field for fields in expand_words(shell, loop.get("Items") or []) for field in fields]
    else:
        items = shell.arguments if shell.arguments is not None else [UNKNOWN]
    printed = ""
    for item in list(dict.fromkeys(items))[:MOST_ROUNDS]:
        shell.assign(name, [item])
        printed += _branch(shell, body, stdin)
    return printed


def run_decl_clause(shell: Shell, command: Node, stdin: str | None) -> str:
    is_reference = False
    for argument in command.get("Args") or []:
        if argument.get("Name"):
            if is_reference and argument.get("Value"):
                shell.references[argument["Name"]["Value"]] = first_text(shell, argument["Value"])
            else:
                shell.assign_node(argument)
        elif argument.get("Naked") and argument.get("Value") and first_text(shell, argument["Value"]).startswith("-"):
            is_reference = "n" in first_text(shell, argument["Value"])
        elif argument.get("Naked") and argument.get("Value"):
            for field in first_text(shell, argument["Value"]).split():
                name, equals, value = field.partition("=")
                if equals:
                    shell.assign(name, [value])
    return ""


def run_arithm_cmd(shell: Shell, command: Node, stdin: str | None) -> str:
    return ""


def run_test_clause(shell: Shell, command: Node, stdin: str | None) -> str:
    _visit_words(shell, command.get("X"))
    return ""


def _visit_words(shell: Shell, node: object) -> None:
    """Run the substitutions in a test's words."""
    if isinstance(node, dict):
        if node.get("Type") == "Word":
            expand_text(shell, node)
        else:
            _visit_words(shell, node.get("X"))
            _visit_words(shell, node.get("Y"))


def run_call_expr(shell: Shell, command: Node, stdin: str | None) -> str:
    assignments, words = command.get("Assigns") or [], command.get("Args") or []
    if not words:
        for node in assignments:
            shell.assign_node(node)
        return ""
    lists = expand_words(shell, words)
    if not assignments:
        return shell.run_lists(lists, stdin)
    kept = (dict(shell.variables), dict(shell.arrays))
    for node in assignments:
        shell.assign_node(node)
    try:
        return shell.run_lists(lists, stdin)
    finally:
        shell.variables, shell.arrays = kept


def _name_of_read(condition: list[Node]) -> str | None:
    """The variable that ``while read name`` fills."""
    for statement in condition:
        command = statement.get("Cmd") or {}
        words = ["".join(part.get("Value", "") for part in word.get("Parts", [])) for word in command.get("Args") or []]
        if words[:1] == ["read"]:
            names = [word for word in words[1:] if not word.startswith("-") and word not in ("", "''")]
            return names[0] if names else "REPLY"
    return None


# By the type of shfmt's node.
KINDS: dict[str, Callable[[Shell, Node, str | None], str]] = {
    "Block": run_block,
    "Subshell": run_subshell,
    "TimeClause": run_time_clause,
    "CoprocClause": run_coproc_clause,
    "FuncDecl": run_func_decl,
    "BinaryCmd": run_binary_cmd,
    "IfClause": run_if_clause,
    "CaseClause": run_case_clause,
    "WhileClause": run_while_clause,
    "ForClause": run_for_clause,
    "DeclClause": run_decl_clause,
    "TestClause": run_test_clause,
    "CallExpr": run_call_expr,
}
