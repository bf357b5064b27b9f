"""What docs/STATE_TRACKER_GUIDE.md shows is so."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guardrails import findings
from guardrails.paths import CODE_DIR
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
    source = Path(findings.__file__).read_text("utf-8")
    source += (CODE_DIR / "guardrails/state_document.py").read_text("utf-8")
    raised = {match.rstrip(":") for match in re.findall(r'Finding\(\s*f?"([a-z-]+:?)', source)}
    rows = re.findall(r"^\| `([a-z-]+)(?::\w+)?` \| (\w+)", GUIDE, re.MULTILINE)
    assert {identifier for identifier, _ in rows} == raised
    assert {severity for _, severity in rows} == set(findings.SEVERITIES)


def test_the_guide_and_the_options_agree() -> None:
    options = set(re.findall(r"  (--[a-z-]+)", run_tracker(None, "--help").stdout))
    shown = set(re.findall(r"--(?:check|warnings|json|schema|exit-code|base-dir)", GUIDE))
    assert options - {"--help", "--version"} == shown
