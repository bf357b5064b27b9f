"""What docs/STATE_TRACKER_GUIDE.md shows is so."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guardrails.paths import CODE_DIR
from guardrails.report import findings
from guardrails.report.explanations import EXPLANATIONS
from tests.state.building import healthy, run_tracker

GUIDE = (CODE_DIR / "docs/STATE_TRACKER_GUIDE.md").read_text("utf-8")
JQ = re.search(r"```jq\n(.*?)```", GUIDE, re.DOTALL)
EXAMPLES = JQ[1].splitlines() if JQ else []


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_there_are_jq_examples() -> None:
    assert len(EXAMPLES) > 5


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
@pytest.mark.parametrize("example", EXAMPLES)
def test_jq_examples_work_on_a_full_and_on_an_empty_base_dir(tmp_path: Path, example: str) -> None:
    box = healthy(tmp_path / "full")
    box.status_said("training")
    box.paths.config.unlink()
    shutil.rmtree(box.paths.backups / "b002")
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty"):
        document = run_tracker(tmp_path / name, "--json").stdout
        result = subprocess.run(["jq", example], input=document, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        if name == "full":
            assert result.stdout.strip() or "training" in example


def test_the_table_names_every_finding_with_its_severity() -> None:
    rows = re.findall(r"^\| `([a-z-]+(?::\w+)?)` \| (\w+)", GUIDE, re.MULTILINE)
    assert rows == [(entry.id, entry.severity) for entry in EXPLANATIONS]
    assert {severity for _, severity in rows} == set(findings.SEVERITIES)


def test_every_option_is_in_the_guide() -> None:
    options = set(re.findall(r"^  (--[a-z-]+)", run_tracker(None, "--help").stdout, re.MULTILINE))
    assert options - {"--help", "--version"} <= set(re.findall(r"--[a-z-]+", GUIDE))


def test_the_explanation_that_the_guide_shows_is_the_one_that_is_printed(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    printed = run_tracker(tmp_path, "--explain", "backup-same-disk").stdout
    since = box.findings()["backup-same-disk"]["since"]
    printed = printed.replace(f" --base-dir {tmp_path}", "").replace(since, "2026-11-21T10:00:00Z")
    assert f"```\n$ python3 state_tracker.py --explain backup-same-disk\n{printed}```\n" in GUIDE
