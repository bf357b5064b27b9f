"""Pure text tools, run for real or done again here, to know what an edit would make of a file."""

import base64
import binascii
import codecs
import os
import re

from guardrails.guard.patterns import clean

SECONDS = 2


def run_filter(argv: list[str], text: str) -> str | None:
    """What a filter that writes nothing prints for ``text``; None if it fails or takes too long."""
    limited = ["/bin/sh", "-c", f'ulimit -t {SECONDS} -v 1000000; exec "$@"', "sh", *argv]
    with open(os.memfd_create("in"), "w+b") as source, open(os.memfd_create("out"), "w+b") as target:
        source.write(text.encode("utf-8", "replace"))
        source.seek(0)
        try:
            pid = os.posix_spawn(
                "/bin/sh",
                limited,
                {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, source.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, target.fileno(), 1),
                    (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                ],
            )
        except OSError:
            return None
        _, status = os.waitpid(pid, 0)
        target.seek(0)
        return target.read(1 << 20).decode("utf-8", "replace") if status == 0 else None


def sed_text(options: list[str], old: str) -> str | None:
    """``old`` as ``sed`` with these options and script would leave it; its sandbox forbids files and commands."""
    return run_filter(["sed", "--sandbox", *options], old)


def jq_text(arguments: list[str], old: str) -> str | None:
    """What ``jq`` prints for ``old``."""
    return run_filter(["jq", *arguments], old)


def list_members(archive: str) -> list[str]:
    """The first names in a tar or zip file; empty if it is neither."""
    import tarfile
    import zipfile

    names: list[str] = []
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return opened.namelist()[:2000]
        with tarfile.open(archive) as tar:
            for member in tar:
                names.append(member.name)
                if len(names) >= 2000:
                    break
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError):
        pass
    return names


def transform(name: str, flags: set[str], operands: list[str], text: str) -> str:
    """The text that base64, rev, tr, xxd … make of a known text."""
    try:
        if name == "rev":
            return "\n".join(line[::-1] for line in text.split("\n"))
        if name == "tr":
            return _translate(flags, operands, text)
        if name == "xxd" and "-r" in flags:
            digits = re.sub(r"[^0-9a-fA-F]", "", text)
            return clean(bytes.fromhex(digits).decode("utf-8", "replace"))
        is_decoding = not flags.isdisjoint({"-d", "-D", "--decode"}) or (name == "openssl" and "-d" in operands)
        if not is_decoding:
            encode = base64.b32encode if name == "base32" else base64.b64encode
            return encode(text.encode()).decode() + "\n"
        decode = base64.b32decode if name == "base32" else base64.b64decode
        return clean(decode("".join(text.split())).decode("utf-8", "replace"))
    except (ValueError, binascii.Error):
        return ""


def _translate(flags: set[str], operands: list[str], text: str) -> str:
    if len(operands) == 1 and ("-d" in flags or "--delete" in flags):
        return text.translate({ord(character): None for character in _set(operands[0])})
    if len(operands) != 2:
        return text
    old, new = _set(operands[0]), _set(operands[1])
    if not new:
        return text
    new = new.ljust(len(old), new[-1])
    return text.translate({ord(a): b for a, b in zip(old, new, strict=False)})


def _set(text: str) -> str:
    names = {"lower": "a-z", "upper": "A-Z", "digit": "0-9", "space": " \t\n", "alpha": "A-Za-z", "blank": " \t"}
    text = re.sub(r"\[:(\w+):\]", lambda match: names.get(match[1], ""), text)
    text = codecs.decode(text.encode("ascii", "replace"), "unicode_escape") if "\\" in text else text
    return re.sub(
        r"(.)-(.)", lambda match: "".join(map(chr, range(ord(match[1]), ord(match[2]) + 1))), text, flags=re.DOTALL
    )
