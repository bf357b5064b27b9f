"""What a push to S3 sends, counted on the wire between the toolkit and a real server on loopback.

$ .venv/bin/python -m benchmarks.remotes [--short]

A base dir with one version is pushed and the push killed half-way, then run again; then the part of the model that
training changes is written anew, saved and pushed. What is counted is all that goes to the server, headers included.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import botocore.session

from benchmarks.figures import VENV_PYTHON, Figure, parse_short, print_figures, say
from benchmarks.peers import Toolkit
from benchmarks.storage import CHANGING_SHARE, GIGABYTE, write_model, write_weights
from guardrails.paths import CODE_DIR
from guardrails.store.remotes import PIECE_BYTES
from tests.servers import ACCESS_KEY, SECRET_KEY, CountingProxy, S3Server

BUCKET = "benchmark"
SPARE_SHARE = 1.01
SHORT_GIGABYTES = 0.12


def measure(*, short: bool = False, gigabytes: float = 2.0) -> list[Figure]:
    """Bytes sent as a multiple of those that had to be."""
    size = int((SHORT_GIGABYTES if short else gigabytes) * GIGABYTE)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "server").mkdir()
        server = S3Server(scratch / "server")
        try:
            server.wait_for_answer(server.port)
            client = botocore.session.Session().create_client(
                "s3",
                region_name="us-east-1",
                endpoint_url=f"http://127.0.0.1:{server.port}",
                aws_access_key_id=ACCESS_KEY,
                aws_secret_access_key=SECRET_KEY,
            )
            client.create_bucket(Bucket=BUCKET)
            return list(_pushes(scratch, server, size))
        finally:
            server.close()


def _pushes(scratch: Path, server: S3Server, size: int) -> list[Figure]:
    proxy = CountingProxy(server.port)
    toolkit = Toolkit(scratch / "base")
    write_model(toolkit.live, size, seed=1)
    toolkit.version("create")
    environment = os.environ | server.environment(proxy.port)
    command = [VENV_PYTHON, str(CODE_DIR / "backup_manager.py"), "push", f"s3://{BUCKET}/box"]
    command += ["--json", "--base-dir", str(toolkit.folder)]

    say("a push that is killed half-way")
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as killed:
        while proxy.sent_bytes < size // 2:
            assert killed.poll() is None, "the push ended before it was half-way"
            time.sleep(0.001)
        killed.kill()
    say("the same push again")
    resumed = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert resumed["versions"] == ["v001"]
    first = proxy.sent_bytes

    say("a push after a change")
    changed = int(size * CHANGING_SHARE)
    write_weights(toolkit.live, size, seed=2)
    toolkit.version("create")
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    second = proxy.sent_bytes - first
    proxy.close()
    # The piece that was on its way when the push was killed may have to be sent again.
    most = SPARE_SHARE + PIECE_BYTES / size
    return [
        Figure("push to S3, killed half-way and resumed", first / size, "x the model", most),
        Figure("push to S3, after a change", second / changed, "x changed", SPARE_SHARE),
    ]


if __name__ == "__main__":
    sys.exit(print_figures(measure(short=parse_short())))
