"""docker and podman: a folder of the host that is mounted writable is the same folder inside."""

from guardrails.guard.patterns import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

FLAGS = frozenset(
    "-d -i -t -it -ti --rm --init --privileged --read-only -P --detach --interactive --tty --no-healthcheck".split()
)


def _split_run(shell: "Shell", words: list[str]) -> tuple[dict[str, str], str | None, list[str]]:
    """The writable mounts (folder inside: folder of the host), the working folder and the command of a ``run``."""
    mounts: dict[str, str] = {}
    folder, entry = None, []
    while words and words[0].startswith("-"):
        name, equals, value = words[0].partition("=")
        words = words[1:]
        if name in FLAGS and not equals:
            continue
        if not equals:
            value, words = (words[0] if words else ""), words[1:]
        if name in ("-v", "--volume", "--mount"):
            inside, host = _mount_of(name, value)
            if inside and host:
                mounts[inside.rstrip("/") or "/"] = shell.scene.paths(host)[0]
        elif name in ("-w", "--workdir"):
            folder = value
        elif name == "--entrypoint":
            entry = [value]
    return mounts, folder, entry + words[1:]


def _mount_of(option: str, value: str) -> tuple[str, str]:
    """The folder inside and the one of the host; empty for one that is read-only."""
    if option != "--mount":
        host, inside, mode = [*value.split(":"), "", ""][:3]
        return ("", "") if "ro" in mode.split(",") else (inside, host)
    fields = dict(field.partition("=")[::2] for field in value.split(","))
    if "readonly" in fields or "ro" in fields:
        return "", ""
    inside = fields.get("target") or fields.get("dst") or fields.get("destination") or ""
    return inside, fields.get("source") or fields.get("src") or ""


def run_container(shell: "Shell", argv: list[str], stdin: str | None) -> str:
    """``docker run -v HOST:INSIDE image command``; anything else reaches no folder of the host."""
    words = argv[1:]
    if words[:1] == ["container"]:
        words = words[1:]
    if words[:1] != ["run"]:
        if words[:1] == ["cp"] and len(words) > 2 and ":" not in words[-1]:
            shell.scene.effect("write", words[-1])
        return UNKNOWN
    mounts, folder, command = _split_run(shell, words[1:])
    if not mounts or not command:
        return UNKNOWN

    def run(inner: "Shell") -> str:
        before = dict(inner.scene.links)
        inner.scene.links.update(mounts)
        inner.change_folder(folder or "/container", or_fail=True)
        try:
            return inner.run_program(command, None)
        finally:
            inner.scene.links = before

    return shell.apart(run)
