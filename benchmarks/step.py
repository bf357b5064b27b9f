"""What the guarded loop adds to a training step: the worker's own trainer against a bare Trainer, in CPU time.

Both trainers live in one process, each in its thread, and take turns: one batch of the one, then one of the other. So
whatever else the machine does, its clock and its caches included, meets both alike. Only one of them runs at a time,
and process time is read when a turn begins and when it ends: nobody's waiting is counted, but every thread's work is.

The guarded one is made by ``build_trainer`` with the worker's callback, status file, metrics and signal handler. The
bare one is a plain ``Trainer`` with the very same arguments, model, data, collator and optimizer, which logs by itself
as often. Neither evaluates or saves: checkpoints come by the clock, not by the step.

A step is timed from one ``on_step_begin`` to the next, so it holds everything between: fetching the batches, logging,
live progress. A pair compares the means of ``block_steps`` steps of each, with at least one log in them. Live progress
is written once a second of the clock, and the clock runs for both: here it comes twice as often as in a run.
"""

import dataclasses
import gc
import os
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

LOG_STEPS = 10
# Caches, allocator and lazy imports settle in these; no pair holds them.
WARM_UP_STEPS = 5
TOKENS = 2000


class Size(NamedTuple):
    """A model and its batches; ``seconds`` is about what a step of it takes on one core of 2024."""

    seconds: float
    hidden: int
    layers: int
    tokens: int
    batch_size: int
    accumulation: int
    block_steps: int


SMALL = Size(0.02, hidden=64, layers=2, tokens=64, batch_size=4, accumulation=1, block_steps=50)
LARGE = Size(0.2, hidden=128, layers=4, tokens=56, batch_size=4, accumulation=4, block_steps=10)


class Pairs(NamedTuple):
    """Seconds of CPU a step, pair by pair: of the first trainer, and how much more the second took."""

    bare: list[float]
    added: list[float]

    def step_seconds(self) -> float:
        return statistics.median(self.bare)


def prepare_process() -> None:
    """One thread for torch, one arena for malloc: to be called before a process that measures is started."""
    # Threads get arenas of their own otherwise, and the two trainers with them allocators of different speed.
    os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # peft asks transformers in its old words.
    os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning"


def measure_pairs(folder: Path, size: Size, count: int, *, guarded: bool = True) -> Pairs:
    """``count`` pairs of the bare and the guarded trainer, or of two bare ones; to be run by the main thread."""
    from guardrails.training.tiny_model import make_tiny_model

    model = folder / f"model-{size.hidden}-{size.layers}"
    if not model.exists():
        make_tiny_model(model, hidden=size.hidden, layers=size.layers)
    steps = WARM_UP_STEPS + count * size.block_steps
    turns = Turns()
    bare = make_trainer(folder / "bare", model, size, steps, turns.first, guarded=False)
    other = make_trainer(folder / "other", model, size, steps, turns.second, guarded=guarded)
    # A full collection of all that the libraries made would fall to whoever happens to allocate next.
    gc.collect()
    gc.freeze()
    failures: list[BaseException] = []

    def train_bare() -> None:
        try:
            turns.first.train(bare)
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            failures.append(error)

    thread = threading.Thread(target=train_bare)
    thread.start()
    # In the main thread, for the worker listens to signals.
    turns.second.train(other)
    thread.join()
    if failures:
        raise failures[0]
    return compare(turns.first.step_seconds, turns.second.step_seconds, size.block_steps)


def compare(bare: list[float], other: list[float], block_steps: int) -> Pairs:
    """The means of blocks of steps, after the warm-up."""

    def block_means(seconds: list[float]) -> list[float]:
        kept = seconds[WARM_UP_STEPS:]
        return [statistics.fmean(kept[start : start + block_steps]) for start in range(0, len(kept), block_steps)]

    first, second = block_means(bare), block_means(other)
    return Pairs(first, [b - a for a, b in zip(first, second, strict=True)])


class Turn:
    """One of two threads; ``step_seconds`` is the CPU time that the process took for each of its steps."""

    def __init__(self) -> None:
        self.mine = threading.Semaphore(0)
        self.other: Turn
        self.began = 0.0
        self.seconds = 0.0
        self.step_seconds: list[float] = []
        self.steps = 0

    def train(self, trainer: Any) -> None:
        """The whole training, begun with the first turn; the turn is given away for good at its end."""
        self.mine.acquire()
        try:
            trainer.train()
        finally:
            self.other.mine.release()

    def begin_step(self) -> None:
        """Note what the last step took, and let the other thread go on."""
        self.change()
        if self.steps > 0:
            self.step_seconds.append(self.seconds)
        self.steps += 1
        self.seconds = 0.0

    def change(self) -> None:
        """Let the other thread go on until it does the same."""
        self.seconds += time.process_time() - self.began
        self.other.mine.release()
        self.mine.acquire()
        self.began = time.process_time()


class Turns:
    """Two threads that take turns; the first one's comes first."""

    def __init__(self) -> None:
        self.first, self.second = Turn(), Turn()
        self.first.other, self.second.other = self.second, self.first
        self.first.mine.release()


def make_trainer(folder: Path, model_folder: Path, size: Size, steps: int, turn: Turn, *, guarded: bool) -> Any:
    """A trainer of ``steps`` full turns, the worker's own or a bare one."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from guardrails.training.checkpoints import Checkpoints
    from guardrails.training.encode import load_tokenizer
    from guardrails.training.model import load_model
    from guardrails.training.status import Metrics, StatusFile
    from guardrails.training.trainer import RunCallback, StopRequest, build_trainer

    class TurnCallback(TrainerCallback):  # type: ignore[misc] # the library is not checked
        def on_step_begin(self, *_args: Any, **_others: Any) -> None:
            turn.begin_step()

        def on_substep_end(self, *_args: Any, **_others: Any) -> None:
            turn.change()

    folder.mkdir(parents=True, exist_ok=True)
    job = make_job(folder, model_folder, size)
    # The last turn ends when the step after it begins.
    train = make_items(size, (steps + 1) * size.batch_size * size.accumulation)
    evaluation = make_items(size, 0)
    callback = RunCallback(
        job=job,
        items=len(train),
        checkpoints=Checkpoints(folder, "", ""),
        request=StopRequest(folder, os.getppid()),
        status=StatusFile(job),
        metrics=Metrics(folder / "metrics.jsonl"),
        stage=folder / "stage",
    )
    trainer: Any = build_trainer(
        job,
        model=load_model(job, TOKENS),
        tokenizer=load_tokenizer(model_folder),
        train=train,
        evaluation=evaluation,
        run=callback,
    )
    if not guarded:
        collator = trainer.data_collator

        def collate(batch: Any) -> dict[str, Any]:
            inputs: dict[str, Any] = collator(batch)
            del inputs["positions"]
            return inputs

        names = [field.name for field in dataclasses.fields(trainer.args) if field.init]
        settings = {name: getattr(trainer.args, name) for name in names}
        trainer = Trainer(
            model=trainer.model,
            args=TrainingArguments(**{**settings, "logging_strategy": "steps", "logging_steps": LOG_STEPS}),
            data_collator=collate,
            train_dataset=train,
        )
        trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TurnCallback())
    return trainer


def make_job(folder: Path, model_folder: Path, size: Size) -> Any:
    """A job with the settings of a fresh config where ``size`` says nothing else."""
    from guardrails.config import TRAINING_KEYS
    from guardrails.settings import Config
    from guardrails.training.job import Job

    config = Config(
        batch_size=size.batch_size, gradient_accumulation=size.accumulation, log_steps=LOG_STEPS, eval_steps=0
    )
    return Job(
        run_id="benchmark",
        data_name="benchmark.jsonl",
        data_path="",
        data_blake3="",
        base_model=str(model_folder),
        parent_adapter=None,
        start_steps=0,
        status_file=str(folder / "training_status.json"),
        validation_file=None,
        **{key: getattr(config, key) for key in TRAINING_KEYS},
    )


def make_items(size: Size, count: int) -> Any:
    """``count`` items of random tokens, all of one length, so that steps are alike."""
    from guardrails.training.encode import Items, Sequence
    from guardrails.training.trainer import ItemDataset

    source = random.Random(1)
    items = Items()
    for number in range(count):
        tokens = source.choices(range(300, TOKENS), k=size.tokens)
        items.append(number, Sequence(tokens, [1] * size.tokens))
    return ItemDataset(items, list(range(count)))
