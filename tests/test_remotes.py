"""Remotes: whatever is pushed comes back, from real servers, whoever is killed and whatever is damaged."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guardrails.errors import BusyError, DiskSpaceError, GuardrailsError, IntegrityError, OperationError, UsageError
from guardrails.locks import FileLock
from guardrails.manifest import hash_file, make_manifest
from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import write_json
from guardrails.store import remotes
from guardrails.store.change import open_store, say_nothing
from guardrails.store.head import read_head
from guardrails.store.live_model import save_version
from guardrails.store.remote_files import Remote, normalize_url, open_remote
from guardrails.store.remotes import drill, pull, push, read_remotes
from guardrails.store.version_records import is_kept, lineage, list_version_ids, read_metadata
from guardrails.store.versions import store_lock
from tests.processes import run_python
from tests.servers import CountingProxy, S3Server, SshServer
from tests.store import WEIGHTS, make_store, overwrite, publish

PIECE = 16 << 10
WEIGHT_BYTES = 5 * PIECE + 1000
KINDS = ("file", "sftp", "s3")
BUCKET = "tests"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("weed"))
    server.wait_for_answer(server.port)
    with pytest.MonkeyPatch.context() as patch:
        set_all(patch, server.environment())
        call_s3("create_bucket", Bucket=BUCKET)
    yield server
    server.close()


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    server = SshServer(tmp_path_factory.mktemp("sshd"))
    server.wait_for_answer(server.port)
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A place of the test's own in a bucket."""
    set_all(monkeypatch, s3_server.environment())
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def sftp(ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("HOME", str(ssh_server.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "far").mkdir()
    return ssh_server.url(tmp_path / "far")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "far").mkdir()
    return f"file://{tmp_path}/far"


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str:
    """A remote of each kind, below a folder that has to be there."""
    return str(request.getfixturevalue({"file": "folder"}.get(request.param, request.param)))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes, "PIECE_BYTES", PIECE)


def set_all(patch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        patch.setenv(name, value)


@functools.cache
def s3_client() -> Any:
    with open_remote(f"s3://{BUCKET}") as remote:
        return remote.fs


def call_s3(method: str, **arguments: Any) -> Any:
    return s3_client().call_s3(method, **arguments)


@functools.cache
def template(folder: Path) -> Path:
    return make_store(folder / "template", 3, WEIGHT_BYTES).base


def store(tmp_path: Path) -> Paths:
    """A base dir with three versions; making it once and copying it is quicker."""
    shutil.copytree(template(tmp_path.parent), tmp_path / "here")
    return Paths(tmp_path / "here")


def empty(tmp_path: Path, name: str = "there") -> Paths:
    (tmp_path / name).mkdir()
    return Paths(tmp_path / name)


def send(paths: Paths, url: str) -> dict[str, Any]:
    return push(paths, url, say_nothing)


def fetch(paths: Paths, url: str, *wanted: str) -> dict[str, Any]:
    return pull(paths, url, wanted, say_nothing)


def contents(paths: Paths) -> dict[str, Any]:
    """Every version: its metadata, and what its files really hold."""
    ids = [version_id for version_id in list_version_ids(paths) if is_kept(paths, version_id)]
    return {v: (read_metadata(paths, v), make_manifest(paths.version(v) / "model")) for v in ids}


def pieces_of(far: str) -> list[Path]:
    return sorted(Path(far.removeprefix("file://")).glob("pieces/*/*"))


def piece_of(far: str, file: Path, number: int) -> Path:
    """Where a piece of a file lies in a ``file://`` remote."""
    document = json.loads((Path(far.removeprefix("file://")) / f"versions/{file.parent.parent.name}.json").read_text())
    return next(path for path in pieces_of(far) if path.name == document["pieces"][file.name][number])


def test_what_is_pushed_comes_back_and_only_what_is_new_is_sent(tmp_path: Path, url: str) -> None:
    here = store(tmp_path)
    first = send(here, url)
    assert first["sent"] == ["v001", "v002", "v003"]
    assert first["bytes_sent"] > 3 * WEIGHT_BYTES / 6  # equal pieces within a file are one
    assert send(here, url)["bytes_sent"] == 0
    version_id = publish(here, 4, WEIGHT_BYTES)
    again = send(here, url)
    assert again["sent"] == [version_id]
    assert 0 < again["bytes_sent"] < 2 * PIECE + 5000
    there = empty(tmp_path)
    assert fetch(there, url)["brought"] == ["v001", "v002", "v003", "v004"]
    assert contents(there) == contents(here)
    assert there.config.read_text() == here.config.read_text()
    assert not there.incoming.exists() and not there.current_model.exists()
    assert (there.version("v001") / "model" / WEIGHTS).stat().st_mode & 0o777 == 0o444
    assert fetch(there, url)["brought"] == []
    assert drill(here, url)["source"] == f"v004 from {url}"
    assert read_remotes(here)[url]["versions"] == ["v001", "v002", "v003", "v004"]


def test_the_bytes_on_the_wire_are_those_that_changed(tmp_path: Path, s3_server: S3Server, s3: str) -> None:
    here = empty(tmp_path)
    here.current_model.mkdir()
    for name in "abcd":
        (here.current_model / name).write_bytes(os.urandom(1 << 20))
    save(here)
    proxy = CountingProxy(s3_server.port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        patch.setattr(remotes, "PIECE_BYTES", 1 << 20)
        send(here, s3)
        assert proxy.sent_bytes > 4 << 20
        # Four pieces, the document and the box. Buckets with object lock demand it.
        assert proxy.checksums == 6
        before = proxy.sent_bytes
        (here.current_model / "b").write_bytes(os.urandom(1 << 20))
        save(here)
        send(here, s3)
    proxy.close()
    # Of one MiB; the requests themselves, listings included, are within the percent.
    assert 1 << 20 < proxy.sent_bytes - before < 1.01 * (1 << 20) + 10_000


def save(paths: Paths) -> None:
    with open_store(paths, "saving"):
        save_version(paths, "by hand", "manual")


def spoil_answers(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Have every remote write by what ``spoil`` makes of its function."""

    @contextmanager
    def opened(url: str) -> Iterator[Remote]:
        with open_remote(url) as remote:
            remote.fs.pipe_file = spoil(remote.fs.pipe_file)
            yield remote

    monkeypatch.setattr(remotes, "open_remote", opened)


def test_what_arrives_otherwise_than_it_was_sent_is_found_at_once(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = random_version(tmp_path)
    spoil_answers(monkeypatch, lambda write: lambda path, content, **_: write(path, b"?" + content[1:]))
    with pytest.raises(IntegrityError, match="does not hold what was sent"):
        send(here, url)
    with open_remote(normalize_url(url)) as remote:
        assert remote.list_files("versions") == {}
        # In a bucket it has its name already, for the server lied; elsewhere it never gets it.
        assert url.startswith("s3:") or remote.list_files("pieces") == {}


def test_a_bucket_whose_tags_are_no_checksums_is_read_back(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = random_version(tmp_path)
    spoil_answers(monkeypatch, lambda write: lambda *content, **options: {**write(*content, **options), "ETag": '"0"'})
    assert send(here, s3)["sent"] == ["v001"]


KILLED = """
import os, signal, sys
from pathlib import Path
from guardrails import progress
from guardrails.store import remotes
from guardrails.store.change import say_nothing
from guardrails.paths import Paths
from guardrails.store.remote_files import Remote
remotes.PIECE_BYTES = int(sys.argv[4])
count = 0
name, number = sys.argv[5].split(":")
real = getattr(Remote, name)
def counting(self, path, *content):
    global count
    if path.startswith("pieces/"):
        count += 1
        if count == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
    return real(self, path, *content)
setattr(Remote, name, counting)
getattr(remotes, sys.argv[1])(Paths(Path(sys.argv[2])), sys.argv[3], *([()] if name == "read" else []), say_nothing)
"""


def kill_in(command: str, paths: Paths, url: str, when: str) -> None:
    done = run_python(KILLED, command, paths.base, url, str(PIECE), when)
    assert done.returncode == -signal.SIGKILL, done.stderr


def random_version(tmp_path: Path) -> Paths:
    here = empty(tmp_path, "here")
    here.current_model.mkdir()
    (here.current_model / "weights.bin").write_bytes(os.urandom(10 * PIECE))
    save(here)
    return here


def test_a_killed_push_goes_on_where_it_was(tmp_path: Path, url: str) -> None:
    here = random_version(tmp_path)
    kill_in("push", here, url, "write_new:6")
    with open_remote(normalize_url(url)) as remote:
        assert len(remote.list_files("pieces")) == 5
        assert remote.list_files("versions") == {}
    with pytest.raises(OperationError, match="holds no versions"):
        fetch(empty(tmp_path), url)
    assert send(here, url)["bytes_sent"] - 5 * PIECE < 5000
    there = empty(tmp_path, "new")
    fetch(there, url)
    assert contents(there) == contents(here)


def test_a_push_killed_within_a_file_leaves_nothing_that_counts(tmp_path: Path, folder: str) -> None:
    here = random_version(tmp_path)
    far = Path(folder.removeprefix("file://"))
    for name in ("pieces/ab", "versions", "boxes"):
        (far / name).mkdir(parents=True)
        (far / name / ".tmp-0123456789abcdef").write_bytes(b"half of it")
    assert send(here, folder)["bytes_sent"] > 10 * PIECE
    fetch(there := empty(tmp_path), folder)
    assert contents(there) == contents(here)


def test_a_killed_pull_goes_on_where_it_was(tmp_path: Path, folder: str) -> None:
    here, there = random_version(tmp_path), empty(tmp_path)
    send(here, folder)
    kill_in("pull", there, folder, "read:8")
    assert list_version_ids(there) == []
    # A writing command cleans up what kills leave, but not this.
    with open_store(there, "anything"):
        pass
    # The file was not flushed: what was still in the memory of the process comes again.
    assert fetch(there, folder)["bytes_received"] < 5 * PIECE
    assert contents(there) == contents(here)
    assert not there.incoming.exists()


def test_torn_bytes_of_a_killed_pull_are_fetched_again(tmp_path: Path, folder: str) -> None:
    here, there = random_version(tmp_path), empty(tmp_path)
    send(here, folder)
    kill_in("pull", there, folder, "read:8")
    (staged,) = there.incoming.glob("*/model/weights.bin")
    overwrite(staged, b"torn")
    fetch(there, folder)
    assert contents(there) == contents(here)


def test_a_damaged_piece_at_the_far_end_is_found_and_can_be_sent_again(tmp_path: Path, folder: str) -> None:
    here, there = store(tmp_path), empty(tmp_path)
    send(here, folder)
    piece = piece_of(folder, here.version("v003") / "model" / WEIGHTS, -1)
    good = piece.read_bytes()
    overwrite(piece, b"\xff")
    with pytest.raises(IntegrityError, match=piece.name):
        fetch(there, folder)
    assert list_version_ids(there) == ["v001", "v002"]
    with pytest.raises(IntegrityError, match=piece.name):
        drill(here, folder)
    assert not (here.incoming / "drill").exists()
    piece.write_bytes(good[:-1])
    with pytest.raises(IntegrityError, match="bytes instead of"):
        send(here, folder)
    piece.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        drill(here, folder)
    assert send(here, folder)["sent"] == ["v003"]
    fetch(there, folder)
    assert contents(there) == contents(here)


def test_a_damaged_document_at_the_far_end_is_found(tmp_path: Path, folder: str) -> None:
    send(store(tmp_path), folder)
    path = Path(folder.removeprefix("file://")) / "versions/v002.json"
    path.write_text(path.read_text().replace('"run_steps": 10', '"run_steps": 11'))
    there = empty(tmp_path)
    with pytest.raises(IntegrityError, match=r"v002\.json is damaged"):
        fetch(there, folder)
    assert list_version_ids(there) == []


@pytest.mark.parametrize("path", ["../../../escaped", "/tmp/escaped", "a/../../../escaped"])
def test_a_document_cannot_write_outside_its_version(tmp_path: Path, folder: str, path: str) -> None:
    here, there = store(tmp_path), empty(tmp_path)
    send(here, folder)
    document = Path(folder.removeprefix("file://")) / "versions/v001.json"
    forged = json.loads(document.read_text())
    del forged["blake3"]
    forged["metadata"]["files"][0]["path"] = path
    forged["pieces"][path] = forged["pieces"].pop("adapter_config.json")
    document.write_text(json.dumps({**forged, "blake3": remotes._seal(forged)}))
    with pytest.raises(IntegrityError, match="leads out of it"):
        fetch(there, folder)
    assert not list(tmp_path.rglob("escaped"))


def test_a_damaged_version_is_not_pushed_and_the_others_are(tmp_path: Path, folder: str) -> None:
    here = store(tmp_path)
    overwrite(here.version("v002") / "model" / WEIGHTS, b"damaged")
    damaged = hash_file(here.version("v002") / "model" / WEIGHTS)
    with pytest.raises(IntegrityError, match=r"v002/model/.* has other bytes") as caught:
        send(here, folder)
    assert "repair" in caught.value.hint
    with open_remote(folder) as remote:
        assert sorted(remote.list_files("versions")) == ["versions/v001.json", "versions/v003.json"]
    assert damaged not in [hash_file(path) for path in pieces_of(folder)]
    assert read_remotes(here)[folder]["versions"] == ["v001", "v003"]
    (here.version("v002") / "metadata.json").write_text("{")
    with pytest.raises(GuardrailsError, match="v002"):
        send(here, folder)


@pytest.mark.usefixtures("s3")
def test_a_bucket_with_object_lock_takes_pushes_and_nothing_in_it_is_replaced(tmp_path: Path) -> None:
    bucket, s3 = "locked", "s3://locked"
    call_s3("create_bucket", Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    lock = {"ObjectLockEnabled": "Enabled", "Rule": rule}
    call_s3("put_object_lock_configuration", Bucket=bucket, ObjectLockConfiguration=lock)
    here = store(tmp_path)
    send(here, s3)
    publish(here, 4, WEIGHT_BYTES)
    assert send(here, s3)["sent"] == ["v004"]
    objects = call_s3("list_object_versions", Bucket=bucket)
    keys = [entry["Key"] for entry in objects["Versions"] if not entry["Key"].endswith("/")]
    assert len(keys) == len(set(keys)) and "versions/v004.json" in keys
    assert not objects.get("DeleteMarkers")
    held = call_s3("head_object", Bucket=bucket, Key="versions/v004.json")
    assert held["ObjectLockMode"] == "COMPLIANCE"
    fetch(there := empty(tmp_path), s3)
    assert contents(there) == contents(here)


def test_an_empty_machine_is_restored_from_the_remote_alone(tmp_path: Path, s3: str) -> None:
    here = store(tmp_path)
    lock = {"locked": {"max_length": 64}, "base_model_fingerprint": {"blake3": "f" * 64, "files": []}}
    write_json(here.config_lock, {"schema_version": 1, **lock})
    url = f"{s3}/boxes of/one"
    script(here, "backup_manager.py", "push", url)
    model = make_manifest(here.current_model)
    locked = here.config_lock.read_bytes()
    shutil.rmtree(here.base)
    new = empty(tmp_path, "new machine")
    pulled = script(new, "backup_manager.py", "pull", url)
    command = next(line for line in pulled.splitlines() if line.startswith("next: "))
    assert command == f"next: python3 model_versioner.py restore v003 --base-dir '{new.base}'"
    script(new, "model_versioner.py", "restore", "v003")
    assert make_manifest(new.current_model) == model
    assert new.config_lock.read_bytes() == locked
    assert [metadata["id"] for metadata in lineage(new, "v003")] == ["v003", "v002", "v001"]


def script(paths: Paths, name: str, *arguments: str, code: int = 0) -> str:
    """A script as a user runs it; its stdout, or stderr where it is to fail."""
    environment = {**os.environ, "TRAINING_BASE_DIR": str(paths.base)}
    command = [sys.executable, str(CODE_DIR / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done
    return done.stdout if code == 0 else done.stderr


def test_named_versions_alone_come_and_a_removed_one_only_by_name(tmp_path: Path, folder: str) -> None:
    here, there = store(tmp_path), empty(tmp_path)
    send(here, folder)
    assert fetch(there, folder, "2")["brought"] == ["v002"]
    assert list_version_ids(there) == ["v002"]
    remove(there, "v002")
    assert fetch(there, folder)["brought"] == ["v001", "v003"]
    assert not is_kept(there, "v002")
    assert fetch(there, folder, "v002")["brought"] == ["v002"]
    assert contents(there) == contents(here)
    with pytest.raises(OperationError, match="has no v009"):
        fetch(there, folder, "v001", "v009")


def remove(paths: Paths, version_id: str) -> None:
    """Leave the tombstone of a version, as its removal does."""
    removed = {**read_metadata(paths, version_id), "removed_at": "2026-11-21T10:00:00Z"}
    write_json(paths.version(version_id) / "metadata.json", removed)
    (paths.version(version_id) / "model").chmod(0o755)
    shutil.rmtree(paths.version(version_id) / "model")


def test_the_lineage_is_whole_after_a_pull_though_an_ancestor_was_removed(tmp_path: Path, folder: str) -> None:
    here, there = store(tmp_path), empty(tmp_path)
    remove(here, "v002")
    assert send(here, folder)["versions"] == ["v001", "v003"]
    assert send(here, folder)["bytes_sent"] == 0
    fetch(there, folder)
    assert [metadata["id"] for metadata in lineage(there, "v003")] == ["v003", "v002", "v001"]
    assert not is_kept(there, "v002") and "removed_at" in read_metadata(there, "v002")


def test_a_version_removed_in_the_middle_of_a_push_is_skipped(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, said = store(tmp_path), list[str]()
    write_new = Remote.write_new

    def remove_first(remote: Remote, name: str, content: bytes) -> bool:
        if is_kept(here, "v002"):
            remove(here, "v002")
        return write_new(remote, name, content)

    monkeypatch.setattr(Remote, "write_new", remove_first)
    assert push(here, folder, said.append)["sent"] == ["v001", "v003"]
    assert "v002 was removed meanwhile; skipped" in said


def test_a_version_whose_file_is_gone_is_damaged_and_not_removed(tmp_path: Path, folder: str) -> None:
    here = store(tmp_path)
    (here.version("v001") / "model").chmod(0o755)
    (here.version("v001") / "model" / WEIGHTS).unlink()
    with pytest.raises(IntegrityError, match=f"{WEIGHTS} is missing"):
        send(here, folder)


def test_a_consolidated_base_model_travels_with_the_versions_that_need_it(tmp_path: Path, folder: str) -> None:
    here, there = store(tmp_path), empty(tmp_path)
    base = here.consolidated_models / "first"
    base.mkdir()
    (base / "model.safetensors").write_bytes(os.urandom(3 * PIECE))
    files = make_manifest(base)
    name = "consolidated_models/first"
    fingerprint = {"blake3": "0" * 64, "files": files}
    publish(here, 4, WEIGHT_BYTES, config={"base_model": name, "max_length": 64}, base_model_files=fingerprint)
    assert send(here, folder)["sent"] == ["first", "v001", "v002", "v003", "v004"]
    fetch(there, folder, "v001")
    assert not (there.consolidated_models / "first").exists()
    assert fetch(there, folder)["brought"] == ["first", "v002", "v003", "v004"]
    assert make_manifest(there.consolidated_models / "first") == files
    assert [path.name for path in there.consolidated_models.iterdir()] == ["first"]
    assert (there.consolidated_models / "first").stat().st_mode & 0o777 == 0o555


def test_the_remote_of_another_base_dir_is_refused_and_left_alone(tmp_path: Path, folder: str) -> None:
    here, other = store(tmp_path), make_store(tmp_path / "other", 1, 50)
    send(here, folder)
    before = pieces_of(folder)
    with pytest.raises(OperationError, match="another v001"):
        send(other, folder)
    with pytest.raises(OperationError, match="another v001"):
        fetch(other, folder)
    assert pieces_of(folder) == before
    assert list_version_ids(other) == ["v001"]
    assert read_remotes(other) == {}


def test_a_push_waits_for_nobody_and_two_at_a_time_are_refused(tmp_path: Path, folder: str) -> None:
    here = store(tmp_path)
    with store_lock(here).hold("a long change"):
        assert send(here, folder)["sent"] == ["v001", "v002", "v003"]
    with FileLock(here.locks / "remotes.lock").hold("pushing"), pytest.raises(BusyError, match="pushing"):
        send(here, folder)


def test_too_little_room_stops_a_pull_before_it_begins(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store(tmp_path), folder)
    there = empty(tmp_path)
    monkeypatch.setattr(remotes, "free_bytes", lambda _: remotes.SPARE_BYTES + 2 * WEIGHT_BYTES)
    with pytest.raises(DiskSpaceError, match="this needs"):
        fetch(there, folder)
    assert not there.models.exists()
    assert fetch(there, folder, "v001")["brought"] == ["v001"]


def test_a_config_that_is_there_stays(tmp_path: Path, folder: str) -> None:
    send(store(tmp_path), folder)
    there = empty(tmp_path)
    there.config.write_text("{}")
    fetch(there, folder)
    assert there.config.read_text() == "{}" and not there.config_lock.exists()


def test_a_drill_finds_what_is_wrong_with_the_newest_backup(tmp_path: Path) -> None:
    here = make_store(tmp_path / "here", 2, WEIGHT_BYTES, backups=True)
    head = read_head(here)
    assert drill(here, None)["source"] == "b002"
    assert not (here.incoming / "drill").exists() and read_head(here) == head
    overwrite(here.backups / "b002" / "model" / WEIGHTS, b"\0")
    with pytest.raises(IntegrityError, match="b002 cannot be restored"):
        drill(here, None)
    assert not (here.incoming / "drill").exists()
    shutil.rmtree(here.backups)
    with pytest.raises(OperationError, match="no backups"):
        drill(here, None)


def test_the_commands_say_what_they_did_and_remotes_asks_nobody(tmp_path: Path, folder: str) -> None:
    here = store(tmp_path)
    assert script(here, "backup_manager.py", "push", folder).splitlines()[-1].endswith("; 3 versions there")
    assert "restored v003 from file:///" in script(here, "backup_manager.py", "drill", folder)
    shutil.rmtree(tmp_path / "far")
    (row,) = json.loads(script(here, "backup_manager.py", "remotes", "--json"))
    assert (row["remote"], row["versions"]) == (folder, ["v001", "v002", "v003"])
    assert folder in script(here, "backup_manager.py", "remotes")


def test_a_drill_finds_weights_that_were_cut_short_before_they_were_saved(tmp_path: Path, folder: str) -> None:
    here = empty(tmp_path)
    here.current_model.mkdir()
    (here.current_model / WEIGHTS).write_bytes((100).to_bytes(8, "little") + b"{}")
    save(here)
    send(here, folder)
    with pytest.raises(IntegrityError, match="header is cut off"):
        drill(here, folder)


@pytest.mark.parametrize(
    "secret_url",
    [
        "s3://KEY:hunter2@bucket/x",
        "sftp://user:hunter2@host/x",
        "sftp://user:hun/ter2@host/x",
        "s3://bucket/x?secret=hunter2",
        "https://user:hunter2@host/x",
        "sftp://host:hunter2/x",
    ],
)
def test_a_url_that_may_hold_a_secret_is_refused_and_never_shown(tmp_path: Path, secret_url: str) -> None:
    with pytest.raises(UsageError) as caught:
        send(empty(tmp_path), secret_url)
    assert "ter2" not in caught.value.message + caught.value.hint
    assert not list((tmp_path / "there").rglob("*.json"))


@pytest.mark.parametrize(
    ("url", "plain"), [("s3://b/", "s3://b"), ("file:///a b/c//", "file:///a b/c"), ("sftp://h:22/x/", "sftp://h:22/x")]
)
def test_a_final_slash_makes_no_other_remote(url: str, plain: str) -> None:
    assert normalize_url(url) == plain


def test_a_host_that_is_unknown_or_shows_another_key_is_refused(
    tmp_path: Path, ssh_server: SshServer, sftp: str
) -> None:
    here = store(tmp_path)
    known = (ssh_server.folder / "host_key.pub").read_text()
    try:
        for key, problem in ((None, "not found in known_hosts"), (other_key(tmp_path), "does not match")):
            ssh_server.trust(key)
            with pytest.raises(OperationError, match=problem):
                send(here, sftp)
            assert list((tmp_path / "far").iterdir()) == []
    finally:
        ssh_server.trust(known)


def other_key(tmp_path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    return (tmp_path / "other.pub").read_text()


def test_the_users_ssh_config_names_host_port_and_key(tmp_path: Path, ssh_server: SshServer, sftp: str) -> None:
    config, key = ssh_server.home / ".ssh" / "config", ssh_server.home / ".ssh" / "id_ed25519"
    config.write_text(f"Host vault\n HostName 127.0.0.1\n Port {ssh_server.port}\n IdentityFile {key}.backup\n")
    key.rename(f"{key}.backup")
    try:
        assert send(store(tmp_path), f"sftp://vault{tmp_path}/far")["sent"]
    finally:
        config.unlink()
        Path(f"{key}.backup").rename(key)


def wrong_secret(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")


def no_credentials(patch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(name)
    patch.setenv("HOME", "/nonexistent")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def nothing(patch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("spoil", "bucket", "hint"),
    [
        (wrong_secret, BUCKET, "check the credentials"),
        (no_credentials, BUCKET, "AWS_ACCESS_KEY_ID"),
        (nothing, "elsewhere", "make the bucket"),
    ],
)
def test_what_a_bucket_refuses_is_one_line_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None], bucket: str, hint: str
) -> None:
    here = store(tmp_path)
    spoil(monkeypatch)
    with pytest.raises(OperationError, match=f"s3://{bucket}/x: ") as caught:
        send(here, f"s3://{bucket}/x")
    assert hint in caught.value.hint and "hunter2" not in caught.value.message


def test_a_key_that_the_host_does_not_accept_is_one_line_and_a_hint(
    tmp_path: Path, ssh_server: SshServer, sftp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ssh_server.home, tmp_path / "home")
    (tmp_path / "home" / ".ssh" / "id_ed25519").unlink()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(OperationError) as caught:
        send(store(tmp_path), sftp)
    assert "ssh-add" in caught.value.hint


@pytest.mark.parametrize("far", ["file:///nonexistent/far", "sftp://127.0.0.1:1/x"])
def test_a_place_that_is_not_there_is_one_line_and_a_hint(tmp_path: Path, far: str) -> None:
    error = script(store(tmp_path), "backup_manager.py", "push", far, code=1)
    first, second = error.splitlines()
    assert first.startswith(f"error: {far}: ") and second.startswith("hint: ")


@pytest.mark.parametrize(
    ("package", "far"), [("s3fs", "s3://b"), ("paramiko", "sftp://h/x"), ("fsspec", "file:///tmp")]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, far: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in (package, "fsspec")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OperationError, match=f"the package {package}") as caught:
        send(store(tmp_path), far)
    assert caught.value.hint == ".venv/bin/python -m pip install -c constraints.txt '.[remote]'"
