"""Hugging Face's Trainer, made stoppable at any moment and exact: what was trained how often, from where it went on.

Trainer's own saving, logging and evaluating by interval is off (``save_strategy="no"`` and so on); ``RunCallback``
decides at each step, so that signals, the clock and the interval share one place.
"""

import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from guardrails.errors import DamagedStateError
from guardrails.state_io import dump_json, read_json
from guardrails.training.checkpoints import Checkpoints, step_of
from guardrails.training.encode import IGNORED_LABEL, Items
from guardrails.training.job import Job, RunError
from guardrails.training.status import Metrics, StatusFile

PROGRESS = "progress.json"
TIMES_TRAINED = "times_trained.npy"
HOLD_POLL_SECONDS = 0.1
# How much the newest step weighs in the mean that the ETA is made from.
NEWEST_STEP_SHARE = 0.1


class Interrupted(Exception):  # noqa: N818 - not an error: a signal asked for it
    """Training ends here, by a signal."""


class EvaluationCut(Exception):  # noqa: N818 - not an error: a signal asked for it
    """A signal arrived in an evaluation."""


@dataclass
class Progress:
    """What a checkpoint holds beyond Trainer's own state. Losses are means over tokens."""

    window_loss: float = 0.0
    window_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    eval_loss_before: float | None = None
    evaluations: int = 0
    evaluation_due: bool = False
    seconds: float = 0.0
    metrics_bytes: int = 0


class DelayedScalar:
    """A scalar on its way from the device to the host, so that reading it later need not wait for the newest work."""

    def __init__(self, tensor: Any) -> None:
        self.event = None
        self.host = tensor
        if tensor.is_cuda:
            self.host = torch.empty((), dtype=tensor.dtype, pin_memory=True)
            self.host.copy_(tensor, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> float:
        if self.event is not None:
            self.event.synchronize()
        return float(self.host)


class StopRequest:
    """SIGTERM, and what request.json says that it is to mean."""

    def __init__(self, run_dir: Path, daemon_pid: int | None) -> None:
        self.path = run_dir / "request.json"
        self.daemon_pid = daemon_pid
        self.received = False
        self.resumed: tuple[int, int] | None = None

    def listen(self) -> None:
        """From now on SIGTERM only sets ``received``; until now it ended the process at once."""
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True

    def action(self) -> str:
        """``stop`` (also for pause), ``hold``, ``skip``, or ``resume`` if a hold was taken back before it began."""
        if self.daemon_pid is not None and os.getppid() != self.daemon_pid:
            return "stop"
        try:
            document = read_json(self.path) or {}
        except DamagedStateError:
            return "stop"
        action = document.get("action")
        if action == "resume" and self._identity() == self.resumed:
            # Left over from the last hold: this signal is somebody else's, the system's shutdown perhaps.
            return "stop"
        return action if action in ("hold", "skip", "resume") else "stop"

    def take_resume(self) -> None:
        """Remember that this resume was carried out, and forget the signal."""
        self.resumed = self._identity()
        self.received = False

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


class ItemDataset:
    """The items of ``numbers`` out of a file, for a DataLoader."""

    def __init__(self, items: Items, numbers: list[int]) -> None:
        self.items = items
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> tuple[int, list[int], list[int]]:
        item = self.numbers[position]
        return position, self.items.tokens(item), self.items.labels(item)


class Collator:
    """Pads items at the end to the longest of the batch; ``positions`` says which items these are."""

    def __init__(self, pad_token: int) -> None:
        self.pad_token = pad_token

    def __call__(self, batch: list[tuple[int, list[int], list[int]]]) -> dict[str, Any]:
        longest = max(len(tokens) for _, tokens, _ in batch)
        return {
            "input_ids": torch.tensor([tokens + [self.pad_token] * (longest - len(tokens)) for _, tokens, _ in batch]),
            "attention_mask": torch.tensor(
                [[1] * len(tokens) + [0] * (longest - len(tokens)) for _, tokens, _ in batch]
            ),
            "labels": torch.tensor([labels + [IGNORED_LABEL] * (longest - len(labels)) for _, _, labels in batch]),
            # A list stays on the host, where it is counted.
            "positions": [position for position, _, _ in batch],
        }


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Whatever is drawn inside, training goes on with the random numbers it would have had."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class RunTrainer(Trainer):
    """Trainer that counts what it trains, and whose evaluations leave no trace and can be cut short."""

    run: "RunCallback"

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        positions = inputs.pop("positions")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.run.count(positions, loss)
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("positions")
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # The one place that all evaluations pass, and from where training can go on without its result.
        while True:
            self.run.begin_evaluation()
            try:
                with kept_randomness():
                    metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
            except EvaluationCut:
                if self.run.must_save_first():
                    return {}
                self.run.obey()
            else:
                self.run.end_evaluation(metrics["eval_loss"])
                return metrics


class RunCallback(TrainerCallback):
    """One run's decisions: when to log, evaluate, save, hold and leave."""

    def __init__(
        self,
        *,
        job: Job,
        items: int,
        checkpoints: Checkpoints,
        request: StopRequest,
        status: StatusFile,
        metrics: Metrics,
        stage: Path,
    ) -> None:
        self.job = job
        self.checkpoints = checkpoints
        self.request = request
        self.status = status
        self.metrics = metrics
        self.stage = stage
        self.times_trained = np.zeros(items, dtype=np.int32)
        self.progress = Progress()
        self.started = time.monotonic()
        self.trainer: RunTrainer
        self.saved_step = 0
        self.last_save = self.last_step_end = time.monotonic()
        self.step_seconds: float | None = None
        self.step_loss: Any = None
        self.window_loss: Any = 0.0
        self.unchecked: DelayedScalar | None = None

    # What Trainer and its subclass report

    def count(self, positions: list[int], loss: Any) -> None:
        """A batch of these items was trained once, with this share of the step's loss."""
        for position in positions:
            self.times_trained[position] += 1
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_others: Any) -> None:
        self.request.listen()
        self.last_save = self.last_step_end = time.monotonic()
        self.status.document |= {"run_step": state.global_step, "run_total_steps": state.max_steps}
        self.status.show_phase("training")
        if self.progress.evaluation_due:
            self.trainer._evaluate(None, None)

    def on_substep_end(self, _args: Any, _state: Any, _control: Any, **_others: Any) -> None:
        self.status.refresh()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_others: Any) -> None:
        step, is_last = state.global_step, state.global_step >= state.max_steps
        self.check_loss()
        self.unchecked = DelayedScalar(self.step_loss)
        self.window_loss = self.window_loss + self.step_loss
        self.progress.window_steps += 1
        self.step_loss = None
        now = time.monotonic()
        self._show_step(step, state.max_steps, now)
        control.should_log = is_last or step % self.job.log_steps == 0
        due = self.job.eval_steps and step % self.job.eval_steps == 0
        control.should_evaluate = len(self.trainer.eval_dataset) > 0 and bool(is_last or due)
        control.should_save = now - self.last_save >= self.job.save_minutes * 60
        if self.request.received:
            action = self.request.action()
            if action == "skip":
                raise Interrupted
            if action == "resume":
                self.request.take_resume()
            else:
                self.status.show_phase("saving", "stopping" if action == "stop" else "training")
                control.should_save = True

    def on_log(self, _args: Any, state: Any, _control: Any, *, logs: dict[str, float], **_others: Any) -> None:
        # Kept in metrics.jsonl instead: in here it would grow with the run, and with every checkpoint.
        state.log_history.clear()
        if "loss" in logs:
            self.check_loss()
            # Trainer's own mean starts anew at each resume; this one is kept in the checkpoint.
            self.progress.loss = float(self.window_loss) / self.progress.window_steps
            self.window_loss = 0.0
            self.progress.window_steps = 0
            values = {key: logs.get(key) for key in ("epoch", "learning_rate", "grad_norm")}
            self.metrics.append(state.global_step, {"loss": self.progress.loss, **values})

    def on_prediction_step(self, _args: Any, _state: Any, _control: Any, **_others: Any) -> None:
        self.status.refresh()
        if self.request.received:
            raise EvaluationCut

    def on_save(self, _args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """Seal what Trainer saved; then do what a signal asked for."""
        self.status.show_phase("saving", self.status.document["status"])
        self.check_loss()
        staged = self.stage / f"checkpoint-{state.global_step}"
        self.progress.window_loss = float(self.window_loss)
        self.progress.metrics_bytes = self.metrics.sync()
        progress = asdict(self.progress) | {"seconds": self.seconds()}
        (staged / PROGRESS).write_text(dump_json(progress) + "\n", encoding="utf-8")
        np.save(staged / TIMES_TRAINED, self.times_trained)
        self.checkpoints.seal(staged, state.global_step)
        self.saved_step = state.global_step
        self.last_save = time.monotonic()
        if self.request.received:
            self.obey()
            if self.progress.evaluation_due:
                self.trainer._evaluate(None, None)
        self.status.show_phase("training")

    # Evaluation

    def begin_evaluation(self) -> None:
        self.status.show_phase("evaluating")
        self.progress.evaluation_due = True

    def end_evaluation(self, eval_loss: float) -> None:
        """Take an evaluation's result: the first is the one before training."""
        step = self.trainer.state.global_step
        if not math.isfinite(eval_loss):
            raise RunError("non_finite_loss", f"the loss on held-out rows is {eval_loss} at step {step}", LOSS_HINT)
        self.progress.evaluation_due = False
        self.progress.evaluations += 1
        self.progress.eval_loss = eval_loss
        if step == 0:
            self.progress.eval_loss_before = eval_loss
        self.metrics.append(step, {"epoch": self.trainer.state.epoch or 0.0, "eval_loss": eval_loss})
        self.status.document["eval_loss"] = eval_loss
        self.status.document["total_evals"] = self.job.start_evals + self.progress.evaluations
        self.status.show_phase("training")

    def must_save_first(self) -> bool:
        """A signal cut an evaluation: whether what was trained is not saved yet. Trainer saves next, then."""
        if self.saved_step == self.trainer.state.global_step or self.request.action() == "skip":
            return False
        self.trainer.control.should_save = True
        return True

    # Signals

    def obey(self) -> None:
        """Leave, or hold and come back; what can be saved is saved.

        Raises:
            Interrupted: training ends here.
        """
        action = self.request.action()
        if action == "resume":
            self.request.take_resume()
            return
        if action != "hold":
            self.status.show_phase("saving", "stopping")
            raise Interrupted
        self.request.received = False
        self.status.show_phase("held", "paused")
        while self.request.action() != "resume":
            if self.request.received:
                raise Interrupted
            time.sleep(HOLD_POLL_SECONDS)
            self.status.refresh()
        self.request.take_resume()
        self.last_step_end = time.monotonic()
        self.status.show_phase("training")

    # Bookkeeping

    def check_loss(self) -> None:
        """Fail if the last step that was not looked at yet had a loss that is no number.

        Raises:
            RunError: non_finite_loss.
        """
        if self.unchecked is None:
            return
        loss = self.unchecked.read()
        self.unchecked = None
        if not math.isfinite(loss):
            step = self.status.document["run_step"]
            raise RunError("non_finite_loss", f"the training loss is {loss} at step {step}", LOSS_HINT)
        self.status.document["loss"] = loss

    def seconds(self) -> float:
        """Seconds of all attempts up to now."""
        return self.progress.seconds + time.monotonic() - self.started

    def restore(self, checkpoint: Path | None) -> None:
        """Go on from what ``checkpoint`` holds beyond Trainer's own state; from nothing without one."""
        if checkpoint is None:
            self.metrics.cut(0)
            return
        self.progress = Progress(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))
        self.metrics.cut(self.progress.metrics_bytes)
        self.window_loss = self.progress.window_loss
        self.times_trained = np.load(checkpoint / TIMES_TRAINED)
        self.saved_step = step_of(checkpoint)
        self.status.document["eval_loss"] = self.progress.eval_loss
        self.status.document["loss"] = self.progress.loss
        self.status.document["total_evals"] += self.progress.evaluations

    def _show_step(self, step: int, total_steps: int, now: float) -> None:
        newest = now - self.last_step_end
        self.last_step_end = now
        mean = newest if self.step_seconds is None else self.step_seconds
        self.step_seconds = mean + NEWEST_STEP_SHARE * (newest - mean)
        document = self.status.document
        document["run_step"] = step
        document["eta_seconds"] = round((total_steps - step) * self.step_seconds, 1)
        self.status.refresh()


LOSS_HINT = "the model was left as it was; look at the data, or try a smaller learning_rate"


def build_trainer(
    job: Job, *, model: Any, tokenizer: Any, train: ItemDataset, evaluation: ItemDataset, run: RunCallback
) -> RunTrainer:
    """The trainer of a run, on the GPU if there is one; it evaluates before training only on a fresh start."""
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(run.stage),
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=job.batch_size,
        gradient_accumulation_steps=job.gradient_accumulation,
        learning_rate=job.learning_rate,
        warmup_steps=job.warmup_steps,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        eval_on_start=len(evaluation) > 0 and run.saved_step == 0,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trainer = RunTrainer(
        model=model,
        args=arguments,
        data_collator=Collator(padding or 0),
        train_dataset=train,
        eval_dataset=evaluation,
        callbacks=[run],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.run = run
    run.trainer = trainer
    return trainer
