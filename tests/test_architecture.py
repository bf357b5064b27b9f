"""The layer rules of docs/design.md, held against the sources themselves."""

import ast
from collections.abc import Iterator
from functools import cache

import pytest

from guardrails.paths import CODE_DIR

# Lowest first: a module of guardrails/ imports from lower layers only. The scripts stand above all of them.
LAYERS = (
    (
        "__init__",
        "agents",
        "alerts.__init__",
        "bootstrap",
        "errors",
        "gpu",
        "paths",
        "progress",
        "report.__init__",
        "report.adapter_check",
        "report.digest",
        "report.loss_curve",
        "report.schema",
        "report.values",
        "signature",
        "store.__init__",
        "store.retention",
    ),
    (
        "alerts.addresses",
        "supervisor",
    ),
    (
        "locks",
        "manifest",
        "report.explanations",
        "report.parts",
        "settings",
        "shapes",
        "state_io",
        "store.immutable",
    ),
    (
        "config",
        "report.report",
        "report.saved_trees",
        "report.shelf_cache",
    ),
    ("report.shelf",),
    ("report.memory",),
    (
        "cli",
        "filesystem",
        "queue_records",
        "report.database",
        "report.deep_record",
        "report.facts",
        "signals",
        "worker_process",
    ),
    (
        "config_lock",
        "queue",
        "report.findings",
        "report.prometheus",
        "report.terminal_text",
        "report.text",
        "runs",
        "store.trash",
        "store.version_records",
        "store.writers",
    ),
    (
        "alerts.messenger",
        "report.deep_findings",
        "report.diff",
        "report.history",
        "report.moments",
        "store.version_diff",
        "store.versions",
    ),
    (
        "alerts.memory",
        "alerts.text",
        "intake",
        "report.document",
        "report.nagios",
        "report.past",
        "report.words",
        "store.backups",
        "store.head",
    ),
    (
        "alerts.checks",
        "report.deep_trees",
        "report.history_text",
        "report.look",
        "report.screen",
        "sandbox",
        "store.copies",
        "store.sealing",
    ),
    (
        "report.faces",
        "report.watch",
        "store.remote_files",
        "store.removal",
        "store.repair",
        "store.requests",
    ),
    (
        "preflight",
        "report.deep_ledgers",
        "report.views",
        "store.consequences",
    ),
    (
        "report.deep_check",
        "store.change",
    ),
    (
        "daemon_status",
        "report.deep_text",
        "store.live_model",
    ),
    (
        "store.model_backups",
        "store.remotes",
    ),
    (
        "daemon",
        "doctor",
        "schedule",
        "store.consolidation",
    ),
    ("units",),
    ("background_faces",),
)
# The worker's side stands apart: it knows these, and of the rest only scripts know it.
WORKER = "guardrails.training"
BELOW_WORKER = ("errors", "locks", "manifest", "state_io")
USERS_OF_WORKER = {
    "model_versioner": f"{WORKER}.compare",  # diff, which needs no torch
    "training_queue": f"{WORKER}.check",  # validate, which is a run's data check without the run
}

# The guard's side stands apart, too: it starts at each call of an agent, so it loads next to nothing but itself.
GUARD = "guardrails.guard"
BELOW_GUARD = {"guardrails.signature"}
USERS_OF_GUARD = {
    "guardrails.agent_hook": {f"{GUARD}.hook"},
    "guardrails.doctor": {f"{GUARD}.protections"},
    "guardrails.report.findings": {f"{GUARD}.protections"},
}

EDGE = {"guardrails.cli"}
TRAINING = {WORKER}
FAR_END = {"guardrails.store.remote_files"}
LIBRARIES = {
    **dict.fromkeys(("click", "rich"), EDGE),
    "pydantic": {"guardrails.config", "guardrails.settings", "guardrails.report.schema"},
    "apprise": {"guardrails.alerts.messenger"},
    "sqlite3": {"guardrails.report.database"},
    **dict.fromkeys(("aiohttp", "botocore", "fsspec", "paramiko", "s3fs"), FAR_END),
    **dict.fromkeys(("accelerate", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers"), TRAINING),
}
# Who may write to, rename or delete a file, and which. Making a folder is free.
WRITERS = {
    "guardrails.alerts.memory": "/dev/shm, which has status/alerts.json while that cannot be written",
    "guardrails.store.backups": "models/backups/",
    "guardrails.cli": "/dev/null, for a reader that closed the pipe",
    "guardrails.store.change": "current_model/, models/retired/, models/intent.json",
    "guardrails.store.consolidation": "consolidated_models/, and the log of merges",
    "guardrails.daemon": "a run's outcome when the run goes on",
    "guardrails.daemon_status": "logs/",
    "guardrails.doctor": "nothing: it opens for writing what must not open",
    "guardrails.filesystem": "what the owners below ask it to",
    "guardrails.guard.aftermath": "logs/guard.jsonl, and what a call damaged, from the kept copies",
    "guardrails.guard.mark": "status/guard.mark",
    "guardrails.guard.protections": "status/guard/, status/protections.json, and agents' settings from the kept copies",
    "guardrails.intake": "inbox/, and copies on their way into queue/",
    "guardrails.store.live_model": "the outcome of a run that is trained again",
    "guardrails.locks": ".locks/",
    "guardrails.store.model_backups": "what a backup is put back over, copies that a person asked for",
    "guardrails.queue": "queue/",
    "guardrails.store.removal": "models/trash/",
    "guardrails.store.remote_files": "folders that are file:// remotes",
    "guardrails.store.remotes": "models/incoming/, consolidated_models/",
    "guardrails.store.repair": "damaged files of versions, backups and current_model/",
    "guardrails.runs": "what only a run that goes on needs",
    "guardrails.store.sealing": "models/.stage-unsealed/",
    "guardrails.signals": "control/",
    "guardrails.report.database": "status/state_history.db",
    "guardrails.state_io": "state files",
    "guardrails.store.requests": "control/requests/",
    "guardrails.store.trash": "models/trash/",
    "guardrails.store.version_records": "models/version_index.jsonl",
    "guardrails.store.versions": "models/versions/",
    "guardrails.worker_process": "request.json and worker.log of a run",
    WORKER: "runs/<run id>/ and status/training_status.json",
}
WRITING_METHODS = {
    "chmod",
    "hardlink_to",
    "rename",
    "rmdir",
    "symlink_to",
    "touch",
    "unlink",
    "write_bytes",
    "write_text",
}
WRITING_FUNCTIONS = {
    "os": {
        "chmod",
        "fchmod",
        "ftruncate",
        "link",
        "remove",
        "rename",
        "replace",
        "rmdir",
        "symlink",
        "truncate",
        "unlink",
    },
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"},
}
OWN_WRITING_FUNCTIONS = {"copy_file", "copy_tree", "exchange", "move_file", "remove_tree", "rename_noreplace"}
WRITING_FLAGS = {"O_APPEND", "O_CREAT", "O_RDWR", "O_TRUNC", "O_WRONLY"}


@cache
def imported(source: str) -> set[str]:
    """Every module that a source may import, wherever in it; names imported from a module count as its submodules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def is_write(call: ast.Call) -> bool:
    """Whether a call writes, renames or deletes, as far as its text tells."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if name == "open" and owner == "os":
        return any(isinstance(node, ast.Attribute) and node.attr in WRITING_FLAGS for node in ast.walk(call))
    if name in ("open", "fdopen"):
        if call.args and ast.unparse(call.args[0]).startswith("os.memfd_create("):
            return False
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        return any(isinstance(mode, str) and len(mode) < 4 and not {*mode}.isdisjoint("wax+") for mode in modes)
    if owner in WRITING_FUNCTIONS:
        return name in WRITING_FUNCTIONS[owner]
    if isinstance(function, ast.Name):
        return name in OWN_WRITING_FUNCTIONS
    # Path.replace takes one argument, str.replace two.
    return name in WRITING_METHODS or (name == "replace" and len(call.args) == 1 and not call.keywords)


@cache
def writes(source: str) -> list[tuple[int, str]]:
    """Line and text of each call in a source that writes."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [(call.lineno, ast.unparse(call)) for call in calls if is_write(call)]


def violations(modules: dict[str, str]) -> Iterator[str]:
    """Each rule that the sources break, one sentence a case."""
    ranks = {f"guardrails.{name}": rank for rank, layer in enumerate(LAYERS) for name in layer}
    below_worker = {f"guardrails.{name}" for name in BELOW_WORKER}
    for name, source in modules.items():
        in_library, on_worker = name.startswith("guardrails."), name.startswith(WORKER)
        on_guard = name == "guardrails.agent_hook" or f"{name}.".startswith(f"{GUARD}.")
        side = WORKER if on_worker else name
        if in_library and not (on_worker or on_guard) and name not in ranks:
            yield f"{name} has no layer"
        for other in sorted(imported(source) & modules.keys()):
            if in_library and not other.startswith("guardrails"):
                yield f"{name} imports the script {other}"
            if other.startswith(WORKER) and not on_worker and other != USERS_OF_WORKER.get(name):
                yield f"{name} imports {other} of the worker's side"
            if f"{other}.".startswith(f"{GUARD}.") and not (
                on_guard or other in {GUARD, *USERS_OF_GUARD.get(name, ())}
            ):
                yield f"{name} imports {other} of the guard's side"
            if other in ranks and on_guard and other not in BELOW_GUARD:
                yield f"{name} imports {other}, which is not the guard's"
            if other in ranks and on_worker and other not in below_worker:
                yield f"{name} imports {other} of the daemon's side"
            if other in ranks and name in ranks and ranks[other] >= ranks[name]:
                yield f"{name} imports {other}, which is not below it"
        for library in sorted({other.partition(".")[0] for other in imported(source)} & LIBRARIES.keys()):
            at_the_edge = LIBRARIES[library] is EDGE and not in_library
            if side not in LIBRARIES[library] and not at_the_edge:
                yield f"{name} imports {library}"
        if side not in WRITERS:
            yield from (f"{name}:{line} writes: {call}" for line, call in writes(source))


def sources() -> dict[str, str]:
    paths = [*CODE_DIR.glob("*.py"), *CODE_DIR.glob("guardrails/**/*.py")]
    names = (".".join(path.relative_to(CODE_DIR).with_suffix("").parts) for path in paths)
    return {name: path.read_text(encoding="utf-8") for name, path in zip(names, paths, strict=True)}


def test_the_sources_keep_the_layers() -> None:
    assert list(violations(sources())) == []


def test_every_layer_and_writer_exists() -> None:
    names = sources().keys()
    assert {f"guardrails.{name}" for layer in LAYERS for name in layer} <= names
    assert WRITERS.keys() - {WORKER} <= names


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("guardrails.queue", "from guardrails.daemon import Daemon", "is not below it"),
        ("guardrails.queue", "def late():\n    from guardrails.store import versions", "is not below it"),
        ("guardrails.daemon", "import training_queue", "imports the script training_queue"),
        ("guardrails.daemon", "from guardrails.training.job import load_job", "of the worker's side"),
        ("model_versioner", "import guardrails.training.worker", "of the worker's side"),
        ("guardrails.training.worker", "from guardrails.store.versions import add_version", "of the daemon's side"),
        ("guardrails.daemon", "from guardrails.guard.judge import Judge", "of the guard's side"),
        ("guardrails.guard.judge", "from guardrails.paths import Paths", "is not the guard's"),
        ("guardrails.daemon", "import click", "imports click"),
        ("guardrails.report.facts", "from pydantic import BaseModel", "imports pydantic"),
        ("guardrails.daemon", "import torch.nn, torch", "imports torch"),
        ("model_versioner", "from transformers import Trainer", "imports transformers"),
        ("guardrails.novelty", "", "has no layer"),
        ("guardrails.store.head", "import os\nos.rename(a, b)", "writes"),
        ("guardrails.store.head", "path.unlink(missing_ok=True)", "writes"),
        ("guardrails.store.head", "path.replace(other)", "writes"),
        ("guardrails.store.head", "path.open('ab')", "writes"),
        ("guardrails.store.head", "open(path, mode='w', encoding='utf-8')", "writes"),
        ("guardrails.store.head", "import os\nos.open(path, os.O_RDONLY | os.O_CREAT)", "writes"),
        ("guardrails.store.head", "import shutil\nshutil.rmtree(path)", "writes"),
        ("backup_manager", "remove_tree(path)", "writes"),
    ],
)
def test_a_violation_is_found(name: str, source: str, problem: str) -> None:
    found = list(violations({**sources(), name: source}))
    assert len(found) == 1, found
    assert problem in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "text.replace('a', 'b')",
        "path.open('rb')",
        "open(path, encoding='ascii')",
        "import os\nos.open(path, os.O_RDONLY)",
    ],
)
def test_reading_is_no_violation(source: str) -> None:
    assert list(violations({**sources(), "guardrails.store.head": source})) == []
