"""Real servers on loopback for the tests of remotes: SeaweedFS with S3, sshd with SFTP, and a proxy that counts."""

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

START_SECONDS = 60.0
ACCESS_KEY, SECRET_KEY = "tester", "not-a-secret"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def find_program(name: str, *places: str) -> str:
    program = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", os.defpath)]))
    if program is None:
        pytest.skip(f"{name} is not installed")
    return program


class Server:
    """A process that is killed with the test session; ``folder`` holds all that it writes."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def wait_for_answer(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.answers(port):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def answers(self, port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class S3Server(Server):
    """Master, volume, filer and S3 in one; needs its own key."""

    def __init__(self, folder: Path) -> None:
        weed = find_program("weed", str(Path(sys.executable).parent))
        master, volume, filer, self.port, *grpc = free_ports(8)
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        (folder / "s3.json").write_text(
            json.dumps({"identities": [{"name": "tester", "credentials": keys, "actions": actions}]})
        )
        (folder / "data").mkdir()
        ports = {"master": master, "volume": volume, "filer": filer, "s3": self.port}
        options = [f"-{name}.port={port}" for name, port in ports.items()]
        options += [f"-{name}.port.grpc={port}" for name, port in zip(ports, grpc, strict=True)]
        options += ["-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=0"]
        options += ["-s3", "-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        super().__init__(folder, [weed, "server", *options])

    def answers(self, port: int) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 403
        except OSError:
            return False
        return True

    def environment(self, port: int | None = None) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
        }


class SshServer(Server):
    """An sshd of its own keys that lets this user in with the key of ``home``."""

    def __init__(self, folder: Path) -> None:
        sshd = find_program("sshd", "/usr/sbin")
        find_program("ssh-keygen")
        (self.port,) = free_ports(1)
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True)
        for key in (folder / "host_key", self.home / ".ssh" / "id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.trust((folder / "host_key.pub").read_text())
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.home}/.ssh/id_ed25519.pub\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        )
        if os.getuid() == 0:
            # Where the service was never started; sshd insists on it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        super().__init__(folder, [sshd, "-D", "-e", "-f", str(folder / "config")])

    def trust(self, host_key: str | None) -> None:
        """Let ``home`` know the server by this public key, or not at all."""
        line = f"[127.0.0.1]:{self.port} {host_key}" if host_key else ""
        (self.home / ".ssh" / "known_hosts").write_text(line)

    def url(self, folder: Path) -> str:
        return f"sftp://{getpass.getuser()}@127.0.0.1:{self.port}{folder}"


class CountingProxy:
    """Passes connections on to ``target`` and counts what clients send: bytes, and the checksums with them."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.sent_bytes = self.checksums = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                if counts:
                    self.sent_bytes += len(content)
                    self.checksums += content.count(b"Content-MD5: ")
                target.sendall(content)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            if counts:
                one.close()

    def close(self) -> None:
        self.listener.close()
