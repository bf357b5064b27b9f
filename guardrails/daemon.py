"""The daemon: takes data files one after the other, starts a worker for each, publishes what comes out.

It owns the queue's files in ``processing/``, ``status/daemon.json`` and the publishing; it never imports torch.
All that it knows stands in files, so that after a kill at any instant the next start goes on: an outcome is
published, a run with a checkpoint resumes, any other run starts again from its parent version.
"""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from guardrails import intake, progress, queue, signals
from guardrails.config import TRAINING_KEYS, load_config
from guardrails.config_lock import make_lock, write_lock
from guardrails.daemon_status import StatusBoard
from guardrails.errors import (
    BusyError,
    ConfigError,
    DiskSpaceError,
    GuardrailsError,
    OperationError,
    TrainingError,
)
from guardrails.locks import FileLock, read_holder
from guardrails.paths import PRIORITIES, Paths
from guardrails.preflight import Preflight, check_before_training, is_consolidated
from guardrails.queue_records import Record, find_duplicate, next_file, processing
from guardrails.runs import (
    drop_run,
    has_continuation,
    new_run_id,
    newest_checkpoint_step,
    read_job,
    read_outcome,
    remove_continuation,
    run_of,
    worker_of,
    write_job,
)
from guardrails.sandbox import refuse_in_sandbox
from guardrails.settings import Config
from guardrails.signals import Signal, is_stronger
from guardrails.state_io import remove_temporary_files
from guardrails.store.backups import backup_of_version, backups_folder
from guardrails.store.change import change_to, open_store
from guardrails.store.head import condition_of_live_model, read_head, trained_lookup
from guardrails.store.live_model import finish_published_run, publish_run, save_version
from guardrails.store.model_backups import back_up_version, was_backed_up_since
from guardrails.store.requests import LAST_CALL_SECONDS, RequestServer
from guardrails.store.version_records import read_metadata
from guardrails.worker_process import GRACE_SECONDS, HANG_SECONDS, Action, WorkerProcess, last_log_line

# How often signals are looked for: while a worker lives, and while nothing happens.
WATCH_SECONDS = 0.1
IDLE_SECONDS = 0.25
# Pauses before the second, third … attempt.
RETRY_SECONDS = (1.0, 10.0, 60.0, 300.0)
# How long a held queue waits before it looks whether the cause is gone.
HOLD_SECONDS = 10.0
MAX_HOLD_SECONDS = 600.0
# How long a worker whose daemon was killed may take to save and leave.
ORPHAN_SECONDS = 60.0
# How long files may be taken in before signals are looked for again.
INTAKE_SECONDS = 1.0
DAY_SECONDS = 86_400
# Another attempt would end the same way.
FINAL_REASONS = ("bad_data", "non_finite_loss")
# Not the file's fault: the queue waits, and the attempt does not count.
HELD_REASONS = ("disk_full", "bad_model", "bad_validation")


def kill_worker(pid: int, run_folder: Path) -> None:
    """SIGKILL a process if it still is the worker of that run."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if str(run_folder) in process.cmdline():
            process.kill()


class LostLockError(OperationError):
    """Somebody removed the daemon's lock: another daemon may run by now."""


class Stopped(Exception):  # noqa: N818 - an ending, not an error
    """The daemon was asked to stop; what is under way is at rest."""


class Daemon:
    """One daemon of one base dir, from its lock to its end. ``run`` is all there is to call."""

    def __init__(self, paths: Paths, *, once: bool) -> None:
        self.paths = paths
        self.once = once
        self.lock = FileLock(paths.locks / "daemon.lock")
        self.board = StatusBoard(paths)
        self.log = self.board.log
        self.requests = RequestServer(paths, self.log)
        self.watch = intake.Watch()
        self.resting = 0
        self.paused = False
        self.asked_to_stop = False
        self.held: str | None = None
        self.hold_seconds = HOLD_SECONDS
        self.wake_at = 0.0
        self.failed: list[str] = []
        self.record: Record | None = None

    def run(self) -> None:
        """Work until stopped, or with ``once`` until the queue is empty.

        Raises:
            BusyError: another daemon runs here.
            TrainingError: with ``once``, files failed.
            GuardrailsError: pre-flight at the start, or with ``once`` before any file, failed.
        """
        refuse_in_sandbox(self.paths)
        if not self.lock.try_acquire("training daemon"):
            holder = read_holder(self.lock.path)
            raise BusyError(
                f"a daemon runs here already: process {holder.pid if holder else 'unknown'}",
                "training_controller.py status shows what it does",
            )
        ending: BaseException | None = None
        try:
            self._start()
            self._work()
        except Stopped:
            self.log("stopped")
        except BaseException as error:
            ending = error
            raise
        finally:
            self._end(ending)
        if self.once and self.failed:
            raise TrainingError(
                f"{len(self.failed)} failed: {', '.join(self.failed)}",
                "training_queue.py list shows why; training_queue.py retry NAME tries again",
            )

    # Start and end

    def _start(self) -> None:
        if self.paths.emergency_stop.exists():
            raise OperationError(
                f"{self.paths.emergency_stop} lies there: an emergency stop is on", f"rm '{self.paths.emergency_stop}'"
            )
        for folder in self.paths.folders():
            folder.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_stop)
        for stale in signals.clear(self.paths):
            self.log(f"removed a stale {stale.action} signal")
        # From here on signals find this session; what follows may take as long as hashing a base model.
        self.board.publish_state("starting")
        # Hashing or copying a large model is no hang.
        progress.watch(lambda _: self.board.supervisor.pet())
        self.requests.start()
        with open_store(self.paths, "daemon start", self.log, ORPHAN_SECONDS):
            # Whatever a kill left half done is finished by now.
            pass
        self._await_orphans()
        remove_temporary_files(self.paths.status)
        self._drop_abandoned_runs()
        if self._must_stop():
            raise Stopped
        check_before_training(self.paths)
        self.board.publish_state("idle")
        self.board.supervisor.ready()
        self.log(f"started, process {os.getpid()}")

    def _note_stop(self, _number: int, _frame: object) -> None:
        self.asked_to_stop = True

    def _await_orphans(self) -> None:
        """A worker outlives its killed daemon for as long as it takes to save its checkpoint."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        for run_id in sorted(os.listdir(self.paths.runs)):
            while (worker := worker_of(self.paths, run_id)) is not None:
                if time.monotonic() > deadline:
                    self.log(f"killing worker {worker.pid} of an earlier daemon: it does not end")
                    kill_worker(worker.pid, self.paths.run(run_id))
                    deadline += ORPHAN_SECONDS
                time.sleep(WATCH_SECONDS)

    def _drop_abandoned_runs(self) -> None:
        """End runs that stood still when somebody took their data file away; a finished result is kept."""
        record = self._open_record()
        for run_id in sorted(os.listdir(self.paths.runs)):
            if (record is None or record.run_id != run_id) and has_continuation(self.paths, run_id):
                outcome = read_outcome(self.paths, run_id)
                if outcome is None or outcome["result"] == "interrupted":
                    drop_run(self.paths, run_id, "its data file is gone")
                    self.log(f"run {run_id} dropped: its data file is gone")
                elif outcome["result"] != "completed":
                    # A kill came between its end and the clearing up.
                    remove_continuation(self.paths.run(run_id))

    def _end(self, error: BaseException | None) -> None:
        self.board.supervisor.stopping()
        exit_code = error.exit_code if isinstance(error, GuardrailsError) else int(error is not None)
        if error is None and self.once and self.failed:
            exit_code = TrainingError.exit_code
        if error is not None:
            self.log(f"ended: {error}")
        # A record that cannot be read is left alone; the error that it was is reported already.
        with contextlib.suppress(GuardrailsError):
            self.board.publish_progress("stopped" if self._open_record() else "idle")
        self.board.publish_state("stopped", reason=str(error) if error else None, exit_code=exit_code)
        for left in signals.clear(self.paths):
            self.log(f"removed a {left.action} signal that came too late")
        self.lock.release()
        self.requests.close(LAST_CALL_SECONDS if error is None else 0.0)

    # The loop

    def _work(self) -> None:
        while True:
            self.board.supervisor.pet()
            try:
                self._obey_while_idle()
                if self._take_next_step():
                    continue
            except (GuardrailsError, OSError) as error:
                if self.once or isinstance(error, LostLockError):
                    raise
                self._hold(error)
            self._rest(self._poll_seconds())

    def _take_next_step(self) -> bool:
        """Do what is to be done next; False if there is nothing to do now.

        Raises:
            Stopped: the queue is worked empty, or a stop was obeyed.
            GuardrailsError: the queue has to wait for a person or the disk.
        """
        if self.lock.is_lost():
            raise LostLockError(
                f"{self.lock.path} was removed while the daemon held it", "start the daemon anew: training_daemon.py"
            )
        self._take_in()
        if self.paused or time.monotonic() < self.wake_at:
            return False
        record = self._open_record() or next_file(self.paths)
        if record is not None:
            if self.held and record.state != "processing":
                # Looked at before it is claimed, or each look would open a run.
                check_before_training(self.paths, data_bytes=record.size)
            self._process(record)
            self.held = None
            return True
        self.held = None
        if self.once and not self.resting:
            raise Stopped
        self.board.publish_state("idle")
        return False

    def _open_record(self) -> Record | None:
        return processing(self.paths)

    def _take_in(self) -> None:
        """Move what lies at rest in the inbox into the queue."""
        result = intake.look(self.paths, self.watch, trained_lookup(self.paths), budget_seconds=INTAKE_SECONDS)
        self.resting = result.resting
        for record in result.queued:
            self.log(f"{record.name}: queued")
        for record in result.skipped:
            self.log(f"{record.name}: skipped, {record.reason}")

    def _poll_seconds(self) -> float:
        if self.resting:
            return intake.REST_SECONDS
        try:
            return load_config(self.paths).poll_interval
        except ConfigError:
            return HOLD_SECONDS

    def _rest(self, seconds: float) -> None:
        """Wait, but not past a signal."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.board.supervisor.pet()
            if self.asked_to_stop or signals.pending(self.paths) or self.paths.emergency_stop.exists():
                return
            time.sleep(min(IDLE_SECONDS, left))

    def _hold(self, error: GuardrailsError | OSError) -> None:
        """Keep the queue waiting, and say for what, until the cause is gone."""
        reason = (
            error.message
            if isinstance(error, GuardrailsError)
            else f"{error.filename or ''} {error.strerror or error}".strip()
        )
        if reason != self.held:
            self.held = reason
            hint = f" ({error.hint})" if isinstance(error, GuardrailsError) else ""
            self.log(f"the queue is held: {reason}{hint}")
            self.hold_seconds = HOLD_SECONDS
        self.board.publish_state("held", reason=reason)
        self.board.publish_progress("stopped" if self._open_record() else "idle")
        self.wake_at = time.monotonic() + self.hold_seconds
        # Looking again may mean starting a worker: a cause that stays is looked at ever less often.
        self.hold_seconds = min(2 * self.hold_seconds, MAX_HOLD_SECONDS)

    # Signals while no worker lives

    def _obey_while_idle(self) -> None:
        record = self._open_record()
        found = self._next_signal(record.run_id if record else None)
        if self._must_stop():
            raise Stopped
        if found is None:
            return
        if found.action == "stop":
            self.board.publish_state("stopping")
            self._acknowledge(found, "done")
            raise Stopped
        if found.action == "skip":
            if record is None:
                self._acknowledge(found, "nothing_to_do", "no file was being trained")
            elif self._is_completed(record):
                self._acknowledge(found, "nothing_to_do", "its training is complete; rollback undoes it")
            else:
                self._skip(record, found.reason)
                self._acknowledge(found, "done", record.name)
        elif found.action == "pause":
            self.paused = True
            self.board.publish_state("paused", record, reason=found.reason)
            self.board.publish_progress("paused")
            self._acknowledge(found, "done", "the queue is paused")
        else:
            was_waiting = self.paused or self.wake_at > time.monotonic()
            self.paused, self.wake_at = False, 0.0
            self.board.publish_state("idle", record)
            self.board.publish_progress("stopped" if record else "idle")
            self._acknowledge(found, "done" if was_waiting else "nothing_to_do", None if was_waiting else "not paused")

    def _must_stop(self) -> bool:
        return self.asked_to_stop or self.paths.emergency_stop.exists()

    def _next_signal(self, run_id: str | None) -> Signal | None:
        if not signals.pending(self.paths):
            return None
        try:
            found, dropped = signals.read_strongest(self.paths, self.board.session, run_id)
        except (GuardrailsError, OSError) as error:
            self.log(f"cannot read the signals: {error}")
            return None
        for one in dropped:
            self.log(f"removed a {one.signal.action} signal: {one.why}")
        return found

    def _acknowledge(self, obeyed: Signal, result: str, detail: str | None = None) -> None:
        """Answer a signal; weaker ones that wait beside it are superseded."""
        self.log(f"{obeyed.action}: " + ", ".join(filter(None, (result, detail, obeyed.reason))))
        try:
            if result == "done":
                signals.supersede_weaker(self.paths, obeyed.action)
            signals.acknowledge(self.paths, obeyed, result, detail)
        except (GuardrailsError, OSError) as error:
            # A full disk, say. The signal stays and is looked at again; no run may end for it.
            self.log(f"cannot acknowledge {obeyed.action}: {error}")

    # One data file

    def _process(self, record: Record) -> None:
        """Bring one data file as far as it goes: published, failed, skipped, or at rest in ``processing/``."""
        is_open = record.state == "processing"
        outcome = read_outcome(self.paths, run_of(record)) if is_open else None
        if outcome is not None and outcome["result"] == "completed":
            self._publish(record)
            return
        if outcome is not None and outcome["result"] == "dropped":
            # A kill came between the two steps of a skip or a rollback.
            queue.finish(self.paths, record.name, "skipped", reason=outcome["message"], held_back=True)
            return
        claimed = record if is_open else self._claim(record)
        if claimed is None:
            return
        self.board.publish_state("training", claimed)
        try:
            preflight = check_before_training(self.paths, data_bytes=claimed.size)
            frozen = self._freeze_job(claimed, preflight)
        except (GuardrailsError, OSError):
            if read_job(self.paths, run_of(claimed)) is None:
                queue.requeue(self.paths, claimed.name)
                with contextlib.suppress(OSError):
                    self.paths.run(run_of(claimed)).rmdir()
            raise
        if frozen is None:
            return
        parent = (read_job(self.paths, run_of(frozen)) or {}).get("parent_version")
        if parent is not None:
            # Its own publishing did that, unless a person's command came between, or it was made by hand.
            self._back_up(read_metadata(self.paths, parent))
        self._train(frozen, preflight.config)

    def _is_completed(self, record: Record) -> bool:
        """Whether all that is left to do for an open run is to publish it."""
        outcome = read_outcome(self.paths, run_of(record))
        return outcome is not None and outcome["result"] == "completed"

    def _claim(self, record: Record) -> Record | None:
        """The record in ``processing/`` with a run of its own; None if it turned out a duplicate.

        Under the store lock, so that a rollback either finds the run or comes before it.
        """
        with open_store(self.paths, f"taking {record.name}", self.log):
            # A person may have written into a file that waits.
            try:
                record = queue.refresh(self.paths, record.name)
            except OperationError:
                return None
            if record.state not in PRIORITIES:
                # Taken out by a person just now.
                return None
            found = find_duplicate(self.paths, record.blake3, trained_lookup(self.paths), record.name)
            if found is not None and not record.force:
                queue.finish(self.paths, record.name, "skipped", reason=found.reason)
                self.log(f"{record.name}: skipped, {found.reason}")
                return None
            return self._open_run(record)

    def _open_run(self, record: Record) -> Record:
        run_id = new_run_id(self.paths, record.blake3)
        self.paths.run(run_id).mkdir(parents=True)
        return queue.claim(self.paths, record.name, run_id)

    def _freeze_job(self, record: Record, preflight: Preflight) -> Record | None:
        """Save the model as it is, and write what the run is to do; one that goes on keeps its job.

        A run whose parent is no longer the model starts anew, as another run. None if a rollback dropped it.
        """
        paths, config = self.paths, preflight.config
        with open_store(paths, f"preparing {record.name}", self.log):
            still_open = self._open_record()
            if still_open is None or still_open.run_id != record.run_id:
                return None
            if load_config(paths) != config:
                # Changed since the pre-flight: that is made again, with the new one.
                return None
            version = self._save_model(record)
            if not preflight.is_locked:
                write_lock(paths, make_lock(config, preflight.fingerprint, "first training"))
                self.log("locked max_length, base_model and model_name")
            job = read_job(paths, run_of(record))
            if job is not None:
                known = (job["parent_version"], job["data_blake3"], job["base_model_fingerprint"])
                has_begun = newest_checkpoint_step(paths, run_of(record)) > 0
                if known == (version, record.blake3, preflight.fingerprint["blake3"]):
                    if has_begun or job["config"] == config.model_dump():
                        return record
                    self.log(f"{record.name}: nothing was trained yet; it takes the config as it is now")
                    self._write_job(record, preflight, version)
                    return record
                self.log(f"{record.name}: the model or the data changed since its run began; it starts anew")
                abandoned = run_of(record)
                # In this order: a file in processing/ whose run was dropped goes to skipped/ after a kill.
                queue.requeue(paths, record.name)
                drop_run(paths, abandoned, "the model or the data changed since the run began")
                record = self._open_run(record)
            self._write_job(record, preflight, version)
            return record

    def _write_job(self, record: Record, preflight: Preflight, version: str | None) -> None:
        """Freeze what the run is to do. Paths in it are relative to the base dir where they lie in it."""
        paths, config = self.paths, preflight.config
        parent = read_metadata(paths, version) if version else None
        adapter = paths.version(version) / "model" if version else None
        write_job(
            paths,
            {
                "run_id": record.run_id,
                "data_name": record.name,
                "data_path": f"queue/processing/{record.name}",
                "data_blake3": record.blake3,
                "base_model": paths.relative(preflight.base_model),
                "base_model_fingerprint": preflight.fingerprint["blake3"],
                "base_model_files": preflight.fingerprint,
                "config": config.model_dump(),
                "parent_version": version,
                # After a consolidation the adapter is part of the base model: a fresh one is trained.
                "parent_adapter": paths.relative(adapter) if adapter and not is_consolidated(adapter) else None,
                "start_steps": parent["training_steps"] if parent else 0,
                "start_evals": parent["total_evals"] if parent else 0,
                **{key: getattr(config, key) for key in TRAINING_KEYS},
                "validation_file": config.validation_file and paths.relative(paths.resolve(config.validation_file)),
                "world_size": 1,
            },
        )

    def _save_model(self, record: Record) -> str | None:
        """The version that ``current_model/`` is, made if need be; a model that was deleted is put back first."""
        paths = self.paths
        head = read_head(paths)
        if head["version"] is not None and condition_of_live_model(paths, head) == "absent":
            self.log(f"current_model/ is missing; putting {head['version']} back")
            change_to(paths, head, head["version"], "restore", self.log)
        version, is_new = save_version(paths, f"before {record.name}", "snapshot")
        if is_new:
            self.log(f"current_model/ had no version of its own; saved as {version}")
        return version

    def _train(self, record: Record, config: Config) -> None:
        """One attempt: a worker from its start to its end, and what follows from how it ended."""
        run_id, name = run_of(record), record.name
        (self.paths.run(run_id) / "outcome.json").unlink(missing_ok=True)
        step = newest_checkpoint_step(self.paths, run_id)
        attempts = queue.count_attempt(self.paths, name, step)
        self.log(f"{name}: run {run_id}, attempt {attempts}" + (f", from step {step}" if step else ""))
        worker = WorkerProcess(self.paths, run_id)
        try:
            obeyed = self._watch(worker, record)
        finally:
            worker.signal(signal.SIGKILL)
            worker.process.wait()
        outcome = read_outcome(self.paths, run_id)
        result = outcome["result"] if outcome else None
        action = obeyed.action if obeyed else None
        if action == "skip":
            self._skip(record, obeyed.reason if obeyed else None)
        elif result == "completed":
            self._publish(record)
        elif result == "failed" and outcome is not None:
            self._fail(record, config, attempts, outcome["reason"], outcome["message"] or outcome["reason"])
        elif action is None and not self._must_stop():
            self._fail(record, config, attempts, *self._explain_death(worker))
        else:
            queue.clear_attempts(self.paths, name)
            self.log(f"{name}: at rest, goes on from step {newest_checkpoint_step(self.paths, run_id)}")
        if action == "pause":
            self.paused = True
            self.board.publish_state("paused", self._open_record(), reason=obeyed.reason if obeyed else None)
            self.board.publish_progress("paused")
        if obeyed is not None:
            self._acknowledge(obeyed, "done", name)
        if action == "stop" or self._must_stop():
            raise Stopped

    def _watch(self, worker: WorkerProcess, record: Record) -> Signal | None:
        """Wait for the worker's end, passing signals on; the signal that ended it, if one did."""
        obeyed: Signal | None = None
        is_held = self.hung = False
        while worker.exit_code() is None:
            time.sleep(WATCH_SECONDS)
            found = self._next_signal(record.run_id)
            if self._must_stop() and (found is None or found.action != "stop"):
                found = Signal("stop", "none")
            if found is not None and found.action == "resume":
                if obeyed is None:
                    self._acknowledge(found, "nothing_to_do", "not paused")
                elif is_held:
                    worker.request("resume")
                    is_held, self.paused, obeyed = False, False, None
                    self.board.publish_state("training", record)
                    self._acknowledge(found, "done")
                # Else it waits until the pause that is under way is done.
            elif found is not None and (obeyed is None or is_stronger(found, obeyed) or (is_held and not found.hold)):
                obeyed, is_held = found, False
                self.board.publish_state("stopping", record, reason=found.reason)
                if found.action == "stop":
                    self.board.supervisor.stopping()
                worker.request(self._request_for(found))
            elif found is not None and is_held:
                self._acknowledge(found, "done", "held already")
            if obeyed is not None and obeyed.hold and not is_held and self.board.read_progress().get("phase") == "held":
                is_held = self.paused = True
                self.board.publish_state("paused", record, reason=obeyed.reason)
                self._acknowledge(obeyed, "done", record.name)
            silent_seconds = worker.silent_seconds()
            self.board.show_worker(worker.last_sign)
            if not is_held and silent_seconds > self._patience_seconds(obeyed):
                self.hung = True
                worker.signal(signal.SIGKILL)
                worker.process.wait()
        return obeyed

    def _patience_seconds(self, obeyed: Signal | None) -> float:
        """How long the worker may be silent. Hashing and flushing a large checkpoint gives no sign of life either."""
        if obeyed is None or self.board.read_progress().get("phase") == "saving":
            return HANG_SECONDS
        return GRACE_SECONDS

    def _explain_death(self, worker: WorkerProcess) -> tuple[str, str]:
        """Reason and message for a worker that left no outcome."""
        code = worker.exit_code() or 0
        if self.hung:
            return "hang", f"no sign of life from the worker for {HANG_SECONDS:g} s"
        if code == -signal.SIGKILL:
            return "error", "the worker was killed (signal 9; where nobody did, the system was out of memory)"
        if code < 0:
            return "error", f"the worker was killed by signal {-code}"
        return "error", f"the worker ended with {code}: {last_log_line(worker.folder)}"

    @staticmethod
    def _request_for(found: Signal) -> Action:
        if found.action == "pause":
            return "hold" if found.hold else "pause"
        return "skip" if found.action == "skip" else "stop"

    def _publish(self, record: Record) -> None:
        """Version, exchange, second copy, ``completed/``; each step is skipped where it was done before a kill."""
        self.board.publish_state("publishing", record)
        version = publish_run(self.paths, record, self.log)
        if version is None:
            return
        self.board.publish_progress("idle")
        self._back_up(version)
        finish_published_run(self.paths, record, version)
        self.log(f"{record.name}: published as {version['id']}, {version['training_steps']} steps in all")

    def _back_up(self, version: dict[str, Any]) -> None:
        """The second copy, as the config wants it.

        Raises:
            GuardrailsError, OSError: it could not be made; the queue waits.
        """
        config = load_config(self.paths)
        folder = backups_folder(self.paths)
        if config.backup == "off" or backup_of_version(folder, version) is not None:
            return
        if config.backup == "daily" and was_backed_up_since(self.paths, time.time() - DAY_SECONDS):
            return
        backup = back_up_version(self.paths, version["id"])
        self.log(f"{version['id']} backed up as {backup['id']}")

    def _skip(self, record: Record, reason: str | None) -> None:
        what = f"run {record.run_id} skipped{f': {reason}' if reason else ''}"
        drop_run(self.paths, run_of(record), what)
        queue.finish(self.paths, record.name, "skipped", reason=what, held_back=True)
        self.board.publish_progress("paused" if self.paused else "idle")
        self.board.publish_state("paused" if self.paused else "idle")
        self.log(f"{record.name}: {what}")

    def _fail(self, record: Record, config: Config, attempts: int, reason: str, message: str) -> None:
        """Another attempt after a pause, or ``failed/``; a cause outside the file holds the queue instead."""
        self.board.publish_progress("error")
        self.log(f"{record.name}: {reason}: {message}")
        if reason in HELD_REASONS:
            queue.clear_attempts(self.paths, record.name)
        if reason == "disk_full":
            raise DiskSpaceError(f"the disk is full: {message}", "free some space; the run goes on by itself")
        if reason in HELD_REASONS:
            raise ConfigError(message, "training_controller.py config check")
        if reason in FINAL_REASONS or attempts >= config.max_attempts:
            queue.finish(self.paths, record.name, "failed", reason=f"{reason}: {message}")
            remove_continuation(self.paths.run(run_of(record)))
            self.failed.append(record.name)
            return
        pause = RETRY_SECONDS[min(attempts, len(RETRY_SECONDS)) - 1]
        self.wake_at = time.monotonic() + pause
        self.board.publish_state("waiting", record, reason=f"{reason}: {message}")
        self.log(f"{record.name}: next attempt in {pause:g} s")
