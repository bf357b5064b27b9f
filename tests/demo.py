"""The main job for real, as a person does it: ``python -m tests.demo FOLDER``.

Trains two good files, pauses and resumes one of them, starts a bad one, stops it, rolls back, and shows the state.
Every command is printed as one would type it, followed by what it really printed.
"""

import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import dump_json, read_json

MARKER = ".made-by-make-demo"
DEADLINE_SECONDS = 120.0


def sums(count: int, seed: int) -> list[str]:
    """Chats about small sums."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        one, two = source.randint(0, 20), source.randint(0, 20)
        rows.append(chat(f"What is {one} plus {two}?", f"{one} plus {two} is {one + two}."))
    return rows


def opposites(count: int, seed: int) -> list[str]:
    """Chats about opposites."""
    source = random.Random(seed)
    pairs = [
        ("hot", "cold"),
        ("day", "night"),
        ("open", "closed"),
        ("early", "late"),
        ("loud", "quiet"),
        ("full", "empty"),
    ]
    return [
        chat(f"What is the opposite of {one}?", f"The opposite of {one} is {two}.")
        for one, two in source.choices(pairs + [(two, one) for one, two in pairs], k=count)
    ]


def noise(count: int, seed: int) -> list[str]:
    """Chats that nobody would want in a model."""
    source = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz     "
    return [chat("Hello?", "".join(source.choices(letters, k=300))) for _ in range(count)]


def chat(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return dump_json({"messages": messages}, indent=None)


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def type_command(*words: str) -> None:
    """Print a command as a person types it, and run it."""
    print(f"$ {shlex.join(words)}", flush=True)
    command = [sys.executable, *words[1:]] if words[0] == "python3" else list(words)
    subprocess.run(command, check=True)


class Demo:
    """One base dir and its daemon."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.paths = Paths(base.resolve())

    def toolkit(self, script: str, *arguments: str) -> None:
        type_command("python3", script, "--base-dir", str(self.base), *arguments)

    def start_daemon(self) -> subprocess.Popen[bytes]:
        words = ["training_daemon.py", "--base-dir", str(self.base)]
        log_name = str(self.base / "daemon.log")
        print(f"$ {shlex.join(['python3', *words])} 2>{shlex.quote(log_name)} &", flush=True)
        with (self.base / "daemon.log").open("ab") as log:
            return subprocess.Popen([sys.executable, *words], stderr=log)

    def wait(self, what: str, **wanted: object) -> None:
        """Until the live progress, or the head, shows what is wanted."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            shown = {**(read_json(self.paths.training_status) or {}), **(read_json(self.paths.head) or {})}
            if all(shown.get(key) == value for key, value in wanted.items()):
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"waited in vain for {what}; see {self.base / 'daemon.log'}")
            time.sleep(0.02)


def prepare(base: Path) -> None:
    if base.exists():
        if not (base / MARKER).exists():
            raise SystemExit(f"{base} exists and is none of the demo's folders; move it away first")
        shutil.rmtree(base)
    base.mkdir()
    (base / MARKER).touch()
    data = base / "data"
    data.mkdir()
    for name, rows in (("sums", sums(400, 1)), ("opposites", opposites(200, 2)), ("noise", noise(400, 3))):
        (data / f"{name}.jsonl").write_text("\n".join(rows) + "\n")


def main() -> None:
    os.chdir(CODE_DIR)
    base = Path(sys.argv[1])
    prepare(base)
    demo = Demo(base)

    say("A new base dir, with a tiny model to try things on")
    demo.toolkit("training_daemon.py", "--init", "--tiny")
    daemon = demo.start_daemon()
    try:
        say("Drop a file: it trains. Pause it, look, resume it")
        type_command("cp", f"{base}/data/sums.jsonl", f"{base}/inbox/")
        demo.wait("training", phase="training", data_name="sums.jsonl")
        demo.toolkit("training_controller.py", "pause", "--reason", "need the GPU", "--wait", "60")
        demo.toolkit("training_controller.py", "status")
        demo.toolkit("training_controller.py", "resume", "--wait", "60")
        demo.wait("v001", version="v001", status="idle")

        say("A second good file")
        type_command("cp", f"{base}/data/opposites.jsonl", f"{base}/inbox/")
        demo.wait("v002", version="v002", status="idle")
        demo.toolkit("model_versioner.py", "list")

        say("A bad file: stop, roll back")
        type_command("cp", f"{base}/data/noise.jsonl", f"{base}/inbox/")
        demo.wait("training", phase="training", data_name="noise.jsonl")
        demo.toolkit("training_controller.py", "stop", "--reason", "that was the wrong file")
        demo.toolkit("model_versioner.py", "rollback")
        daemon.wait(DEADLINE_SECONDS)

        say("Undo a whole training, too, and take that back")
        demo.toolkit("model_versioner.py", "rollback")
        demo.toolkit("model_versioner.py", "restore", "v002")

        say("What exists, how healthy it is, what to do")
        demo.toolkit("state_tracker.py", "--check")
    finally:
        daemon.kill()
        daemon.wait()


if __name__ == "__main__":
    main()
