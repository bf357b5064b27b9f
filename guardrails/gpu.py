"""What the GPUs of this machine do, asked of nvidia-smi."""

import os
import select
import time
from typing import Any

TIMEOUT_SECONDS = 3.0
QUERY = ("--query-gpu=name,memory.used,memory.total,utilization.gpu", "--format=csv,noheader,nounits")


def read_gpu() -> dict[str, Any] | None:
    """All GPUs together: memory in GiB, the mean utilization in percent; None if nvidia-smi has no answer in time."""
    return parse_gpus(_ask_nvidia_smi())


def parse_gpus(output: str) -> dict[str, Any] | None:
    """The answer of nvidia-smi, one line a GPU; values that a driver does not tell count as 0."""
    gpus = [[cell.strip() for cell in line.rsplit(",", 3)] for line in output.splitlines()]
    gpus = [cells for cells in gpus if len(cells) == 4]
    if not gpus:
        return None
    used, total, busy = (sum(_number(cells[column]) for cells in gpus) for column in (1, 2, 3))
    return {
        "name": gpus[0][0],
        "count": len(gpus),
        "memory_used_gb": round(used / 1024, 2),
        "memory_total_gb": round(total / 1024, 2),
        "utilization_percent": round(busy / len(gpus)),
    }


def _number(cell: str) -> float:
    return float(cell) if cell.replace(".", "", 1).isdecimal() else 0.0


def _ask_nvidia_smi() -> str:
    """Its output, or nothing; spawned directly, because importing subprocess costs more than the rest of a report."""
    reader, writer = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        pid = os.posix_spawnp("nvidia-smi", ["nvidia-smi", *QUERY], os.environ, file_actions=actions)
    except OSError:
        os.close(reader)
        return ""
    finally:
        os.close(writer)
    output = b""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    finished = False
    while not finished and (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            block = os.read(reader, 65536)
            output += block
            finished = not block
    os.close(reader)
    if not finished:
        os.kill(pid, 9)
    # A driver that hangs keeps its process in the kernel even after a kill; it is not waited for.
    _, status = os.waitpid(pid, 0 if finished else os.WNOHANG)
    return output.decode(errors="replace") if finished and os.waitstatus_to_exitcode(status) == 0 else ""
