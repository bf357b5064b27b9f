"""Findings on model, config, guard and versions: fired by their real causes, cleared by the very commands they name."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from guardrails.config import load_config
from guardrails.config_lock import fingerprint_base_model, make_lock, write_lock
from guardrails.manifest import make_manifest
from guardrails.paths import CODE_DIR, Paths
from guardrails.report.document import update_document
from guardrails.report.explanations import EXPLANATIONS
from guardrails.runs import run_of
from guardrails.state_io import read_json, write_json
from guardrails.store.change import say_nothing
from guardrails.store.live_model import finish_published_run, publish_run
from guardrails.store.model_backups import back_up_version
from tests.box import Box
from tests.disks import as_root
from tests.processes import strace, type_at_terminal, wait_until
from tests.state.fixing import Patient
from tests.state.verifiable import MODULE, WIDTH, floats, write_safetensors
from tests.store import WEIGHTS, copy_store, make_run
from tests.warm import Warm

HERE = {
    *("model-fresh-start", "model-no-adapter", "model-missing", "model-changed", "model-unsaved", "change-under-way"),
    *("change-interrupted", "model-bytes-damaged", "model-adapter-broken", "config-missing", "config-unreadable"),
    *("config-no-base-model", "config-lock-changed", "config-lock-missing", "base-model-missing", "base-model-changed"),
    *("base-model-touched", "guard-layer-off", "guard-healed", "base-model-bytes-changed", "config-lock-unapproved"),
    *("version-damaged", "version-bytes-damaged", "version-gone", "version-index-wrong", "backup-no-versions"),
    "guard-not-immutable",
}
BASE = "base_models/small"
BASE_WEIGHTS = f"{BASE}/model.safetensors"
Act = Callable[[Patient], object]
Step = str | Act


# A base dir as three trainings leave it


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Paths:
    """Three published versions with backups, and a base model that is locked."""
    paths = Paths(tmp_path_factory.mktemp("template") / "base")
    patient = Patient(paths, warm)
    patient.shell(f"python3 training_daemon.py --init --base-dir {paths.base}")
    folder = paths.base / BASE
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    write_safetensors(
        folder / "model.safetensors", {f"{MODULE}.weight": ("F32", [WIDTH, WIDTH], floats(b"base", WIDTH * WIDTH))}
    )
    for key, value in (("base_model", BASE), ("max_length", "64")):
        patient.shell(f"python3 training_controller.py config set {key} {value} --base-dir {paths.base}")
    write_lock(paths, make_lock(load_config(paths), fingerprint_base_model(paths, folder), "first training"))
    for number in (1, 2, 3):
        train(paths, number)
    return paths


def train(paths: Paths, number: int) -> None:
    """Publish a run whose adapter fits the base model, and back it up, as the daemon does."""
    config, lock = load_config(paths), read_json(paths.config_lock) or {}
    settings = config.model_dump()
    record = make_run(paths, number, config=settings, base_model_files=lock["base_model_fingerprint"])
    output, rank = paths.run(run_of(record)) / "output", config.lora_r
    adapter = {"peft_type": "LORA", "r": rank, "lora_alpha": config.lora_alpha}
    adapter["target_modules"] = config.lora_target_modules
    (output / "adapter_config.json").write_text(json.dumps(adapter))
    numbers = floats(b"%d" % number, rank * WIDTH)
    shapes = {"A": [rank, WIDTH], "B": [WIDTH, rank]}
    tensors = {f"base_model.model.{MODULE}.lora_{side}.weight": ("F32", shapes[side], numbers) for side in shapes}
    write_safetensors(output / WEIGHTS, tensors)
    outcome_path = output.with_name("outcome.json")
    write_json(outcome_path, {**(read_json(outcome_path) or {}), "files": make_manifest(output)})
    version = publish_run(paths, record, say_nothing)
    assert version is not None
    finish_published_run(paths, record, version)
    back_up_version(paths, str(version["id"]))


@pytest.fixture
def patient(template: Paths, tmp_path: Path, warm: Warm) -> Patient:
    return Patient(copy_store(template, tmp_path / "base"), warm)


@pytest.fixture
def fresh(tmp_path: Path, warm: Warm) -> Patient:
    """A base dir in which nothing was trained yet."""
    patient = Patient(Paths(tmp_path / "base"), warm)
    patient.shell(f"python3 training_daemon.py --init --base-dir {patient.paths.base}")
    return patient


# What people do


def take(patient: Patient, step: Step) -> None:
    """A step of a test; text is a line that somebody types in the base dir."""
    if isinstance(step, str):
        patient.shell(step, folder=patient.paths.base)
    else:
        step(patient)


def find_command(patient: Patient, identifier: str, words: str, meant: str) -> str:
    """The command with these words that the explanation names, its capitals filled in."""
    (command,) = [command for command in patient.explain(identifier) if words in command]
    return re.sub(r"\b[A-Z]+(?: [A-Z]+)?$", meant, command)


def named(identifier: str, words: str, meant: str = "") -> Act:
    """What the explanation leaves to whoever reads it."""
    return lambda patient: patient.carry_out(find_command(patient, identifier, words, meant))


def toolkit(line: str) -> Act:
    """A command of the toolkit, on this base dir."""

    def act(patient: Patient) -> None:
        if line.startswith("model_versioner.py"):
            done = patient.warm.run(patient.paths, *line.split())
            assert done.code == 0, done
        else:
            patient.shell(f"python3 {line} --base-dir {patient.paths.base}")

    return act


def typed(answer: str, identifier: str, words: str, meant: str = "") -> Act:
    """What the explanation leaves to a person at a terminal, who types this when it asks."""

    def act(patient: Patient) -> None:
        command = find_command(patient, identifier, words, meant).split()
        environment = {**patient.environment, "TRAINING_BASE_DIR": str(patient.paths.base)}
        code, shown = type_at_terminal([sys.executable, str(CODE_DIR / command[1]), *command[2:]], answer, environment)
        assert code == 0, shown

    return act


def all_of(*steps: Step) -> Act:
    def act(patient: Patient) -> None:
        for step in steps:
            take(patient, step)

    return act


class Case(NamedTuple):
    """A finding, what causes it, and what else than its fix command it takes until that clears it.

    ``code`` is how the fix command ends before; ``options`` are those of the report that sees the cause.
    """

    id: str
    cause: Step
    person: Step | None = None
    code: int = 0
    options: tuple[str, ...] = ()


def treat(patient: Patient, case: Case) -> None:
    patient.assert_gone(case.id, *case.options)
    take(patient, case.cause)
    found = patient.need(case.id, *case.options)
    patient.shell(found["hint"], case.code)
    if case.person is not None:
        assert case.id in patient.report(), "the fix command alone was to do nothing"
        take(patient, case.person)
        standing = patient.report().get(case.id)
        if standing is not None:
            patient.shell(standing["hint"])
    patient.assert_gone(case.id)
    patient.assert_gone(case.id, *case.options)


def rot(name: str, at: bytes = b"") -> Act:
    """One byte of a file, the last before ``at``, becomes another below the file system, as where a disk goes bad."""

    def act(patient: Patient) -> None:
        disk = patient.paths.base.parent
        image, path = disk.with_name("image"), patient.paths.base.relative_to(disk) / name
        number, offset = divmod((disk / path).read_bytes().rindex(at) - 1, BLOCK_BYTES)
        subprocess.run(["umount", disk], check=True)
        asked = ["debugfs", "-R", f"blocks /{path}", str(image)]
        blocks = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
        with image.open("r+b") as file:
            file.seek(int(blocks[number]) * BLOCK_BYTES + offset)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)

    return act


BLOCK_BYTES = 1024
DEEP = ("--deep",)
PREFLIGHT = toolkit("training_daemon.py --once")
BACK_TO_NOTHING = all_of(*[toolkit("model_versioner.py rollback")] * 3)
SET_LENGTH = 'sed -i \'s/"max_length": 64/"max_length": 4096/\''
SET_BOTH = f"{SET_LENGTH} config.json .config_lock.json"
SET_SIZES = 'sed -i \'s/"size": [0-9]*/"size": 3/\' models/versions/v002/metadata.json'
TEAR = f"truncate -s -4 current_model/{WEIGHTS}"
NAN = f"printf '\\377\\377\\377\\377' | dd of=current_model/{WEIGHTS} bs=1 seek=1000 conv=notrunc status=none"
KEEP, PUT_BACK = f"cp -a config.json .config_lock.json {BASE} ..", "cp -a ../config.json ../.config_lock.json ."
PUT_BASE_BACK = f"rm -r {BASE}; cp -a ../small {BASE}"
APPROVE_BASE = typed("base_model", "base-model-changed", "config approve")
SET_RECORDED = typed("max_length", "config-lock-unapproved", "config set", "max_length 64")
LINK, FILE_FOR_IT = "ln -s ../1.jsonl current_model/notes", "cp --remove-destination 1.jsonl current_model/notes"
AWAY = "cd models/versions/v002; mv model ../../../away; ln -s ../../../away model"
ROT_DESCRIPTION = rot("models/versions/v001/metadata.json", b'",\n  "kind"')
CASES = [
    Case("model-fresh-start", BACK_TO_NOTHING),
    Case("model-no-adapter", "rm current_model/adapter_config.json", named("model-no-adapter", "restore V", "v003")),
    Case("model-missing", "rm -rf current_model"),
    Case("model-missing", "rm -rf current_model/*"),
    Case("model-missing", "rm -rf current_model models/versions/v003"),
    Case("model-changed", "sed -i 's/LORA/LORA /' current_model/adapter_config.json"),
    Case("model-changed", "touch current_model/*"),
    Case("model-changed", TEAR),
    Case("model-changed", LINK, FILE_FOR_IT),
    Case("model-unsaved", "rm models/head.json"),
    Case("model-unsaved", f"rm models/head.json; {TEAR}"),
    Case("model-unsaved", all_of(BACK_TO_NOTHING, "cp -r models/versions/v002/model current_model")),
    Case("model-adapter-broken", TEAR, options=DEEP),
    Case("model-adapter-broken", NAN, options=DEEP),
    Case("config-missing", "rm config.json"),
    Case("config-unreadable", f"{KEEP}; truncate -s -9 config.json", PUT_BACK, 10),
    Case("config-unreadable", f"""{KEEP}; sed -i 's/": 64/": "64"/' config.json""", PUT_BACK, 10),
    Case("config-unreadable", f"{KEEP}; sed -i '1s/^/\\xef\\xbb\\xbf/' config.json", PUT_BACK, 10),
    Case("config-lock-changed:max_length", f"{SET_LENGTH} config.json"),
    Case("config-lock-missing", "rm .config_lock.json"),
    Case("base-model-changed", f"{KEEP}; echo >> {BASE_WEIGHTS}", PUT_BASE_BACK, 11),
    Case("base-model-changed", f"echo >> {BASE_WEIGHTS}", APPROVE_BASE, 11),
    Case("base-model-touched", all_of(PREFLIGHT, f"touch {BASE_WEIGHTS}")),
    Case("config-lock-unapproved", f"{KEEP}; {SET_BOTH}", PUT_BACK, options=DEEP),
    Case("config-lock-unapproved", SET_BOTH, SET_RECORDED, options=DEEP),
    Case("version-damaged:v002", "rm models/versions/v002/metadata.json"),
    Case("version-damaged:v003", f"truncate -s 100 models/versions/v003/model/{WEIGHTS}"),
    Case("version-damaged:v002", SET_SIZES),
    Case("version-damaged:v002", AWAY),
    Case("version-gone:v001", "rm -rf models/versions/v001", options=DEEP),
]
ROTTEN = [
    Case("model-bytes-damaged", rot(f"current_model/{WEIGHTS}"), options=DEEP),
    Case("version-bytes-damaged:v002", rot(f"models/versions/v002/model/{WEIGHTS}"), options=DEEP),
    Case(
        "base-model-bytes-changed",
        all_of(PREFLIGHT, KEEP, rot(BASE_WEIGHTS)),
        f"cp ../small/model.safetensors {BASE_WEIGHTS}",
        11,
        DEEP,
    ),
    Case("version-index-wrong", all_of(toolkit("model_versioner.py repair"), ROT_DESCRIPTION), options=DEEP),
]


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_what_the_finding_says_that_helps_clears_it(patient: Patient, case: Case) -> None:
    treat(patient, case)


@as_root
@pytest.mark.parametrize("case", ROTTEN, ids=[case.id for case in ROTTEN])
def test_what_the_finding_says_that_helps_clears_it_where_a_disk_rots(
    template: Paths, tmp_path: Path, warm: Warm, case: Case
) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    if not (shutil.which("mkfs.ext4") and shutil.which("debugfs")):
        pytest.skip("no mkfs.ext4 or debugfs here")
    subprocess.run(["mkfs.ext4", "-q", "-b", str(BLOCK_BYTES), image, "64m"], check=True)
    done = subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        treat(Patient(copy_store(template, disk / "base"), warm), case)
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


OFF = [
    Case("guard-layer-off:read-only", "chmod -R u+w models/versions/v003 models/backups"),
    Case("guard-layer-off:claude-hook-of-base-dir", "echo '{}' > .claude/settings.json"),
    Case("guard-layer-off:codex-hook-of-base-dir", "printf '[features]\nhooks = false\n' > .codex/config.toml"),
]


def test_what_the_finding_says_that_helps_switches_a_layer_on_again(patient: Patient) -> None:
    base = patient.paths.base
    # As the README says for another base dir; the hooks of the toolkit's folder are layers, too.
    patient.environment["TRAINING_BASE_DIR"] = str(base)
    for agent, name in (("claude", ".claude/settings.json"), ("codex", ".codex/hooks.json")):
        hook = f"{sys.executable} -I -S {CODE_DIR}/guardrails/agent_hook.py --agent {agent} --base-dir {base}"
        entry = {"matcher": "*", "hooks": [{"type": "command", "command": hook}]}
        (base / name).parent.mkdir()
        (base / name).write_text(json.dumps({"hooks": {"PreToolUse": [entry]}}))
    toolkit("training_controller.py doctor")(patient)
    for case in OFF:
        treat(patient, case)


@as_root
def test_a_base_model_whose_disk_is_mounted_again_is_not_missing(patient: Patient) -> None:
    disk = patient.paths.base / BASE
    subprocess.run(["cp", "-a", disk, disk.with_name("disk")], check=True)
    mount = ["mount", "--bind", str(disk.with_name("disk")), str(disk)]
    take(patient, f"rm -r {BASE}/*")
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    case = Case("base-model-missing", f"umount {BASE}", lambda _: subprocess.run(mount, check=True), 10)
    try:
        treat(patient, case)
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_person_may_keep_a_changed_locked_value(patient: Patient) -> None:
    identifier = "config-lock-changed:max_length"
    take(patient, f"{SET_LENGTH} config.json")
    patient.need(identifier)
    typed("max_length", identifier, "config approve")(patient)
    patient.assert_gone(identifier)
    assert load_config(patient.paths).max_length == 4096


def test_a_base_model_is_set_by_the_command_with_its_path_in_it(fresh: Patient, template: Paths) -> None:
    hint = fresh.need("config-no-base-model")["hint"]
    assert "/path/to/model" in hint
    fresh.shell(hint.replace("/path/to/model", str(template.base / BASE)))
    fresh.assert_gone("config-no-base-model")


def test_a_model_without_a_version_is_saved_by_the_command(fresh: Patient, template: Paths) -> None:
    shutil.copytree(template.current_model, fresh.paths.current_model)
    fresh.shell(fresh.need("backup-no-versions")["hint"])
    fresh.assert_gone("backup-no-versions")


@contextmanager
def restoring(patient: Patient) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A restore under strace that stands still between two of its steps, and the process that the report names."""
    stop = strace("-o", "/dev/null", "-e", "trace=renameat2", "-e", "inject=renameat2:signal=STOP:when=1")
    command = [*stop, sys.executable, str(CODE_DIR / "model_versioner.py"), "restore", "v001"]
    environment = {**patient.environment, "TRAINING_BASE_DIR": str(patient.paths.base)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: "change-under-way" in patient.report() or process.poll() is not None)
        number = re.search(r"process (\d+)", patient.need("change-under-way")["message"])
        assert number is not None
        yield process, int(number[1])


def test_a_change_that_is_under_way_is_over_when_its_process_is(patient: Patient) -> None:
    with restoring(patient) as (process, pid):
        patient.shell(patient.need("change-under-way")["hint"])
        os.kill(pid, signal.SIGCONT)
        assert process.wait(30) == 0
    patient.assert_gone("change-under-way")
    patient.assert_gone("change-interrupted")


def test_a_change_that_was_killed_is_finished_by_the_command(patient: Patient) -> None:
    with restoring(patient) as (process, pid):
        os.kill(pid, signal.SIGKILL)
        process.wait(30)
    patient.shell(patient.need("change-interrupted")["hint"])
    patient.assert_gone("change-interrupted")


def test_what_the_guard_put_right_is_shown_by_the_command_and_said_for_a_day(patient: Patient) -> None:
    hook = f"{CODE_DIR}/guardrails/agent_hook.py --agent claude --base-dir {patient.paths.base}"
    call = {"session_id": "s1", "cwd": str(patient.paths.base), "tool_name": "Bash", "tool_input": {"command": "make"}}
    for event in ("SessionStart", "PreToolUse", "PostToolUse"):
        if event == "PostToolUse":
            take(patient, f"{SET_LENGTH} config.json")
        text = json.dumps({"hook_event_name": event, **call})
        subprocess.run([sys.executable, *hook.split()], input=text, text=True, capture_output=True, check=True)
    shown = patient.shell(patient.need("guard-healed")["hint"])
    assert "put back to 64" in shown
    tomorrow = update_document(patient.paths, time.time() + 86_401)
    assert "guard-healed" not in {detail["id"] for detail in tomorrow["warning_details"]}


WANT_IMMUTABLE = (
    "setpriv --bounding-set=-linux_immutable python3 training_controller.py config set immutable_versions true"
)


@as_root
@pytest.mark.parametrize("person", [None, named("guard-not-immutable", "config set")], ids=["root", "person"])
def test_versions_become_immutable_by_the_command_or_need_not_be(patient: Patient, person: Act | None) -> None:
    """A command without the capability turns the setting on, as in a container; root may have it later or never."""
    base = patient.paths.base
    try:
        patient.shell("touch probe && chattr +i probe && chattr -i probe", folder=base)
    except AssertionError:
        pytest.skip("no file can be made immutable here")
    patient.shell(f"{WANT_IMMUTABLE} --base-dir {base}")
    hint = patient.need("guard-not-immutable")["hint"]
    try:
        if person is None:
            patient.shell(hint)
        else:
            person(patient)
        patient.assert_gone("guard-not-immutable")
    finally:
        patient.shell(f"chattr -R -i {base}/models")


def test_the_base_model_is_checked_where_nothing_can_be_remembered(patient: Patient) -> None:
    take(patient, "mv status away; touch status")
    toolkit("training_controller.py config check")(patient)


@pytest.mark.training
def test_a_fresh_start_is_over_with_the_first_file_that_the_daemon_trains(box: Box, warm: Warm) -> None:
    patient = Patient(box.paths, warm)
    hint = patient.need("model-fresh-start")["hint"]
    box.drop("first.jsonl", rows=4)
    daemon = subprocess.Popen(
        ["sh", "-c", f"exec {hint}"], cwd=CODE_DIR, env=box.environment(), stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: box.head() == "v001" or daemon.poll() is not None, 90)
        toolkit("training_controller.py stop --wait 60")(patient)
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
    patient.assert_gone("model-fresh-start")


def test_each_finding_is_treated_here_or_in_the_file_beside() -> None:
    from tests.state import test_state_fixes_daemon as beside

    assert {entry.family for entry in EXPLANATIONS} == HERE | beside.HERE
    assert not HERE & beside.HERE
    treated = set(re.findall(r'(?:Case|need)\(\s*"([a-z-]+)', Path(__file__).read_text()))
    assert treated >= HERE, HERE - treated
