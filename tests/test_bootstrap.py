"""Every script runs on any python3, from anywhere, and says what to do before ``make install``."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from guardrails.bootstrap import ENTERED, VENV_DIR
from guardrails.paths import CODE_DIR

SCRIPTS = sorted(path.name for path in CODE_DIR.glob("*.py"))
# The system's python3, which has none of the libraries; else the base of this venv.
PYTHON = next(
    path for path in ("/usr/bin/python3", os.path.join(sys.base_prefix, "bin/python3")) if os.path.exists(path)
)
NOT_SET_UP = "error: the toolkit is not set up here; run: make -C '{}' install\n"


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run with nothing in the environment but what is given, as cron does."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=60,
        check=False,
    )


def copy_toolkit(folder: Path) -> Path:
    """The scripts and the library in another folder, without a .venv."""
    folder.mkdir(parents=True)
    for name in SCRIPTS:
        shutil.copy(CODE_DIR / name, folder)
    shutil.copytree(CODE_DIR / "guardrails", folder / "guardrails", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    return copy_toolkit(tmp_path / "mit Leerzeichen/größe 💾")


@pytest.mark.parametrize("name", [*SCRIPTS, "guardrails/bootstrap.py", "guardrails/__init__.py"])
def test_old_pythons_can_parse_what_runs_before_the_venv(name: str) -> None:
    ast.parse((CODE_DIR / name).read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_python_that_only_enters_the_venv_imports_next_to_nothing(name: str) -> None:
    """`typing` alone would cost as much as a third of a report, twice."""
    body = ast.parse((CODE_DIR / name).read_text(encoding="utf-8")).body
    before = body[: next(index for index, node in enumerate(body) if isinstance(node, ast.If))]
    imports = [node for node in before if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    assert {"os", "sys"} <= set(names) <= {"os", *sys.builtin_module_names}, "what Python has loaded anyway"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_runs_with_an_empty_environment_from_anywhere(name: str, tmp_path: Path) -> None:
    done = run([PYTHON, CODE_DIR / name, "--version"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_a_command(name: str, tmp_path: Path) -> None:
    done = run([CODE_DIR / name, "--version"], cwd=tmp_path, PATH="/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "")


def test_scripts_run_through_links(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tq").symlink_to(CODE_DIR / "training_queue.py")
    (tmp_path / "again").symlink_to("bin/tq")
    done = run([PYTHON, "again", "list", "--base-dir", tmp_path], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no data files\n", "")


@pytest.mark.parametrize("option", ["-I", "-E", "-s", "-u", "-B"])
def test_the_options_of_python_hold(option: str, tmp_path: Path) -> None:
    done = run([PYTHON, option, CODE_DIR / "training_queue.py", "--version"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_with_spaces_and_other_letters_are_fine(elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / ".venv").symlink_to(VENV_DIR)
    (elsewhere / "inbox").mkdir()
    (elsewhere / "inbox/ä b.jsonl").write_text("x")
    done = run([PYTHON, elsewhere / "training_queue.py", "process-inbox", "--json"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(elsewhere / "queue/normal") == ["ä b.jsonl"]
    done = run([PYTHON, "training_queue.py", "list"], cwd=elsewhere, LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


def test_the_venvs_own_python_starts_no_other(tmp_path: Path) -> None:
    done = run([Path(VENV_DIR) / "bin/python", CODE_DIR / "training_queue.py", "--version"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_venv_one_line_says_what_to_run(name: str, elsewhere: Path, tmp_path: Path) -> None:
    done = run([PYTHON, elsewhere / name, "--help"], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", NOT_SET_UP.format(elsewhere))


def test_a_venv_that_is_none_ends_in_the_same_line_and_not_in_an_endless_exec(elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / ".venv/bin").mkdir(parents=True)
    (elsewhere / ".venv/bin/python").symlink_to(PYTHON)
    done = run([PYTHON, elsewhere / "training_queue.py", "list"], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", NOT_SET_UP.format(elsewhere))


@pytest.mark.parametrize("content", ["", "#!/no/such/python\n"])
def test_a_venv_whose_python_cannot_start_is_one_line(elsewhere: Path, tmp_path: Path, content: str) -> None:
    python = elsewhere / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(content)
    python.chmod(0o755)
    done = run([PYTHON, elsewhere / "training_queue.py", "list"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: cannot start {python} (")
    assert done.stderr.count("\n") == 1


def test_the_mark_against_endless_execs_is_not_handed_on(elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / ".venv").symlink_to(VENV_DIR)
    (elsewhere / "probe.py").write_text(
        "import os, sys\n"
        "from guardrails.bootstrap import enter_venv\n"
        "enter_venv()\n"
        f"print({ENTERED!r} in os.environ, sys.argv[1:])\n"
    )
    done = run([PYTHON, elsewhere / "probe.py", "a b", "", "ä"], cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("False ['a b', '', 'ä']\n", "")


def test_importing_a_script_starts_nothing(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import training_queue; print(sys.prefix)"
    done = run([sys.executable, "-c", code, CODE_DIR], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
