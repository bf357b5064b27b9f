"""One run in one process: ``python -m guardrails.training.worker RUN_DIR``.

Reads job.json and request.json, writes everything else in the run's folder and training_status.json.
SIGTERM ends it: at once while there is nothing to save, else after a checkpoint. Exit codes: 0 completed
or interrupted, 20 another worker lives, 30 job.json is unreadable, 33 disk full, 40 failed.
"""

import ctypes
import errno
import gc
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrails.errors import DiskSpaceError, GuardrailsError, TrainingError
from guardrails.locks import FileLock
from guardrails.manifest import FileEntry, hash_file, make_manifest
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, utc_now, write_json
from guardrails.training.job import RunError, load_job
from guardrails.training.status import Metrics, StatusFile

if TYPE_CHECKING:
    from guardrails.training.encode import EncodedFile
    from guardrails.training.trainer import ItemDataset, RunCallback

DAEMON_PID = "GUARDRAILS_DAEMON_PID"
PR_SET_PDEATHSIG = 1
LIBRARIES = ("torch", "transformers", "peft")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# What the savers of torch and safetensors say instead of raising OSError.
FULL_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")
TORCH_WRITE_WORDS = ("PytorchStreamWriter failed", "unexpected pos", "file write failed")
CPU_MEMORY_WORDS = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")
PROBE_BYTES = 8 << 20


class Run:
    """One attempt at a run. What is known of it so far is what its outcome would say now."""

    def __init__(self, folder: Path, daemon_pid: int | None) -> None:
        self.folder = folder
        self.stage = folder / "stage"
        self.daemon_pid = daemon_pid
        self.job, self.job_blake3 = load_job(folder)
        self.status = StatusFile(self.job)
        self.started = time.monotonic()
        self.data: EncodedFile | None = None
        self.callback: RunCallback | None = None
        self.files: list[FileEntry] = []

    def train(self) -> str:
        """Train the run's file to its end or until a signal; returns ``completed`` or ``interrupted``.

        Raises:
            RunError: the run cannot go on.
        """
        self.status.show_phase("importing")
        # Millions of objects that stay: searching them for garbage while they come would be a seventh of the time.
        gc.disable()
        from guardrails.training.checkpoints import Checkpoints, fsync_tree
        from guardrails.training.model import load_model, save_adapter
        from guardrails.training.trainer import Interrupted, RunCallback, StopRequest, build_trainer

        gc.freeze()
        gc.enable()
        # Left by a killed attempt; complete ones stand elsewhere.
        shutil.rmtree(self.stage, ignore_errors=True)
        shutil.rmtree(self.folder / "output", ignore_errors=True)

        self.status.show_phase("tokenizing")
        tokenizer, train, evaluation = self._read_data()

        self.status.show_phase("loading")
        checkpoints = Checkpoints(self.folder, self.job_blake3, train.items.digest())
        checkpoint = checkpoints.find_newest()
        metrics = Metrics(self.folder / "metrics.jsonl")
        model = load_model(self.job, train.items.highest_token())
        request = StopRequest(self.folder, self.daemon_pid)
        callback = RunCallback(
            job=self.job,
            items=len(train),
            checkpoints=checkpoints,
            request=request,
            status=self.status,
            metrics=metrics,
            stage=self.stage,
        )
        self.callback = callback
        callback.restore(checkpoint)
        if checkpoint:
            print(f"going on from {checkpoint.name}", flush=True)
        trainer = build_trainer(
            self.job, model=model, tokenizer=tokenizer, train=train, evaluation=evaluation, run=callback
        )
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Interrupted:
            return "interrupted"
        callback.check_loss()
        self._check_counts()

        self.status.show_phase("saving")
        adapter = self.stage / "output"
        save_adapter(model, adapter)
        self.files = make_manifest(adapter)
        fsync_tree(adapter)
        adapter.rename(self.folder / "output")
        fsync_folder(self.folder)
        return "completed"

    def _read_data(self) -> "tuple[Any, ItemDataset, ItemDataset]":
        """The tokenizer, the items to train and the items to evaluate on; rows.json says what was found."""
        from guardrails.training.encode import Encoder, check_rows, encode_file, hold_out, load_tokenizer
        from guardrails.training.trainer import ItemDataset

        job, path = self.job, Path(self.job.data_path)
        tokenizer = load_tokenizer(Path(job.base_model))
        encoder = Encoder(tokenizer, job.max_length)
        if not path.is_file():
            raise RunError(
                "bad_data", f"{path} is missing", "put the file back, or drop the run: training_controller.py skip"
            )
        if hash_file(path) != job.data_blake3:
            raise RunError(
                "bad_data",
                f"{path} was changed since it was queued",
                "add the changed file anew: training_queue.py add",
            )
        data = encode_file(path, encoder, self.status.refresh)
        validation = None
        if job.validation_file is None:
            hold_out(data, job.seed, job.data_blake3)
        self.data = data
        write_json(self.folder / "rows.json", data.document(job.data_blake3))
        check_rows(data, job.data_name, job.max_bad_rows)
        train = ItemDataset(data.items, data.train)
        if job.validation_file is None:
            return tokenizer, train, ItemDataset(data.items, data.held_out)
        if not Path(job.validation_file).is_file():
            hint = "put it back, or: training_controller.py config set validation_file null"
            raise RunError("bad_validation", f"validation_file {job.validation_file} is missing", hint)
        validation = encode_file(Path(job.validation_file), encoder, self.status.refresh)
        try:
            check_rows(validation, job.validation_file, job.max_bad_rows)
        except RunError as error:
            # Not the fault of the file that is trained.
            raise RunError("bad_validation", f"validation_file: {error.message}", error.hint) from error
        return tokenizer, train, ItemDataset(validation.items, validation.train)

    def _check_counts(self) -> None:
        assert self.callback is not None
        times, epochs = self.callback.times_trained, self.job.epochs
        if times.min() != epochs or times.max() != epochs:
            wrong = int((times != epochs).sum())
            raise RunError(
                "rows_miscounted",
                f"{wrong} of {len(times)} items were not trained exactly {epochs} times",
                "this is a fault of the toolkit or the libraries, not of the data; keep the run's folder and report it",
            )

    def write_outcome(self, result: str, error: RunError | None = None) -> None:
        """Say durably how the run ended.

        Raises:
            OSError: it cannot be written.
        """
        callback, data = self.callback, self.data
        progress = callback.progress if callback else None
        steps = 0
        if callback:
            steps = callback.saved_step if result == "interrupted" else self.status.document["run_step"]
        times = callback.times_trained if callback else None
        outcome = {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.job.run_id,
            "result": result,
            "reason": error.reason if error else None,
            "message": error.message if error else None,
            "hint": error.hint if error else None,
            "run_steps": steps,
            "total_steps": self.status.document["run_total_steps"],
            "loss": progress.loss if progress else None,
            "eval_loss": progress.eval_loss if progress else None,
            "eval_loss_before": progress.eval_loss_before if progress else None,
            "evaluations": progress.evaluations if progress else 0,
            "rows": data.rows() if data else None,
            "times_trained": {"least": int(times.min()), "most": int(times.max())} if times is not None else None,
            "files": self.files,
            "libraries": {name: version(name) for name in LIBRARIES},
            "seconds": round(callback.seconds() if callback else time.monotonic() - self.started, 1),
            "ended_at": utc_now(),
        }
        write_json(self.folder / "outcome.json", outcome)

    def finish(self) -> int:
        """Train, and write how it ended; the exit code."""
        try:
            result, error = self.train(), None
        # The one place where any failure of any library becomes an outcome; the traceback stays in the log.
        except Exception as failure:  # noqa: BLE001
            if not isinstance(failure, RunError):
                traceback.print_exc()
            result, error = "failed", self._explain(failure)
        # Partial files may be what fills the disk.
        shutil.rmtree(self.stage, ignore_errors=True)
        self.write_outcome(result, error)
        if error is None:
            return 0
        print(f"failed: {error.reason}: {error.message}", flush=True)
        self.status.show_phase(self.status.document["phase"], "error")
        return DiskSpaceError.exit_code if error.reason == "disk_full" else TrainingError.exit_code

    def _explain(self, failure: Exception) -> RunError:
        """The failure as the run's reason, message and hint."""
        if isinstance(failure, RunError):
            return failure
        message = (str(failure).strip() or type(failure).__name__).splitlines()[-1]
        if any(is_full_disk(error, self.folder) for error in chain(failure)):
            return RunError(
                "disk_full",
                f"the disk is full: {message}",
                "free some disk space; the run goes on from its last checkpoint",
            )
        if is_out_of_memory(failure):
            hint = "make batch_size smaller and gradient_accumulation larger, or max_length smaller"
            return RunError("out_of_memory", f"out of memory: {message}", hint)
        hint = f"the traceback is in {self.folder / 'worker.log'}"
        if self.status.document["phase"] == "loading":
            hint = f"check that {self.job.base_model} holds a whole model; {hint}"
            return RunError("bad_model", f"the model cannot be loaded: {type(failure).__name__}: {message}", hint)
        return RunError("error", f"{type(failure).__name__}: {message}", hint)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it arose from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_full_disk(error: BaseException, folder: Path) -> bool:
    """Whether an exception of any library means that the disk, or the quota, of ``folder`` is full."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return True
    if any(words in str(error) for words in FULL_DISK_WORDS):
        return True
    if not any(words in str(error) for words in TORCH_WRITE_WORDS):
        return False
    # torch does not say why it could not write; ask the disk.
    probe = folder / "stage" / "probe"
    try:
        probe.parent.mkdir(exist_ok=True)
        with probe.open("wb") as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as cause:
        return cause.errno in FULL_DISK
    return False


def is_out_of_memory(error: Exception) -> bool:
    """Whether the GPU's or the machine's memory ran out."""
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_MEMORY_WORDS)


def follow_daemon(pid: int) -> bool:
    """Make the kernel send SIGTERM when the daemon dies, even of SIGKILL; False if it is gone already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() == pid


def open_log(path: Path) -> None:
    """Send all output of the process, its libraries' included, to the end of ``path``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)
    print(f"{utc_now()} worker {os.getpid()}", flush=True)


def prepare_libraries() -> None:
    """What the libraries read from the environment when they are imported."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # Trainer would spread a batch over all GPUs that it sees.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def main() -> int:
    """The command line."""
    # The daemon decides about Ctrl-C; and what it ignores or blocks itself is none of the worker's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    value = os.environ.get(DAEMON_PID)
    daemon_pid = int(value) if value else None
    if daemon_pid is not None and not follow_daemon(daemon_pid):
        return 0
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: python -m guardrails.training.worker RUN_DIR", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]).absolute()
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire("training worker", wait_seconds=0)
        open_log(folder / "worker.log")
        prepare_libraries()
        return Run(folder, daemon_pid).finish()
    except GuardrailsError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return DiskSpaceError.exit_code if error.errno in FULL_DISK else TrainingError.exit_code


if __name__ == "__main__":
    # Straight to the exit: tearing down torch takes longer than all that was left to do.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
