"""Rows to token items: which tokens the model sees, and which of them it is trained to produce."""

import random
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from guardrails.state_io import SCHEMA_VERSION
from guardrails.training.job import RunError
from guardrails.training.rows import BadRow, Chat, Completion, Row, RowError, Text, read_rows

TRAINING_TEMPLATE = Path(__file__).with_name("chatml_training.jinja")
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
IGNORED_LABEL = -100
MAX_LISTED_BAD_ROWS = 100
HELD_OUT_SHARE = 0.05
HELD_OUT_LEAST = 2
HELD_OUT_MOST = 50
HELD_OUT_FROM_ROWS = 20

# Told apart by what a model's own template makes of it: a system prompt of its own, think blocks, or neither.
PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PROBES = [
    PROBE,
    [*PROBE, *PROBE],
    [{"role": "system", "content": "s"}, *PROBE],
    [*PROBE, {"role": "user", "content": "c"}],
]
OWN_SYSTEM = re.compile(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n<\|im_start\|>user\na", re.DOTALL)


@dataclass(frozen=True)
class Sequence:
    """Tokens of one item, and for each whether the model is trained to produce it (1) or only sees it (0)."""

    tokens: list[int]
    trained: list[int]


@dataclass(frozen=True)
class EncodedRow:
    """What one row becomes; ``cut`` when its end did not fit ``max_length``."""

    sequences: list[Sequence]
    cut: bool = False


class Items:
    """Token items of a file, packed: 5 bytes a token, so that millions of rows fit in memory."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._trained = bytearray()
        self._ends = array("q", [0])
        self._rows = array("q")

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, row: int, sequence: Sequence) -> None:
        self._tokens.extend(sequence.tokens)
        self._trained.extend(sequence.trained)
        self._ends.append(len(self._tokens))
        self._rows.append(row)

    def row(self, item: int) -> int:
        """The number (from 0) of the good row that an item came from."""
        return self._rows[item]

    def tokens(self, item: int) -> list[int]:
        return self._tokens[self._ends[item] : self._ends[item + 1]].tolist()

    def labels(self, item: int) -> list[int]:
        """The tokens again, with ``IGNORED_LABEL`` for those that are not trained."""
        trained = self._trained[self._ends[item] : self._ends[item + 1]]
        return [token if t else IGNORED_LABEL for token, t in zip(self.tokens(item), trained, strict=True)]

    def highest_token(self) -> int:
        """The largest token id in any item; the model must have a row for it."""
        return int(np.frombuffer(self._tokens, dtype=np.int32).max())

    def digest(self) -> str:
        """BLAKE3 of all items: whether a run goes on with the very tokens that it began with."""
        hasher = blake3()
        for part in (self._tokens, self._trained, self._ends):
            hasher.update(memoryview(part).cast("B"))
        return hasher.hexdigest()

    def count_trained(self, item: int) -> int:
        """How many tokens of an item the loss is taken over; nothing predicts the first."""
        return self._trained.count(1, self._ends[item] + 1, self._ends[item + 1])


@dataclass
class EncodedFile:
    """A data file, checked and encoded; ``train`` and ``held_out`` list items by number."""

    total: int = 0
    good: int = 0
    bad: int = 0
    cut: int = 0
    held_out_rows: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    items: Items = field(default_factory=Items)
    train: list[int] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)

    def rows(self) -> dict[str, int]:
        """The row counts as outcome.json and rows.json hold them."""
        return {
            "total": self.total,
            "trained": self.good - self.held_out_rows,
            "held_out": self.held_out_rows,
            "bad": self.bad,
            "cut": self.cut,
            "items": len(self.train),
            "trained_tokens": sum(self.items.count_trained(item) for item in self.train),
        }

    def document(self, data_blake3: str) -> dict[str, Any]:
        """rows.json of this file."""
        bad_rows = [{"line": row.line, "reason": row.reason} for row in self.bad_rows]
        return {"schema_version": SCHEMA_VERSION, "data_blake3": data_blake3, **self.rows(), "bad_rows": bad_rows}


def load_tokenizer(base_model: Path) -> Any:
    """The tokenizer of a local base model.

    Raises:
        RunError: bad_model: the folder or its tokenizer is missing or cannot be loaded.
    """
    hint = "set base_model to a folder that holds a whole model with its tokenizer: training_controller.py config show"
    if not (base_model / "config.json").is_file():
        raise RunError("bad_model", f"base model {base_model} is missing or has no config.json", hint)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base_model, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise RunError(
            "bad_model", f"the tokenizer of {base_model} cannot be loaded: {_first_line(error)}", hint
        ) from error
    if not tokenizer.is_fast:
        raise RunError(
            "bad_model", f"the tokenizer of {base_model} has no tokenizer.json", "convert it to a fast tokenizer"
        )
    return tokenizer


class Encoder:
    """Turns rows into token items for one tokenizer and ``max_length`` (tokens an item may have)."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._template: tuple[str, dict[str, Any]] | None = None

    def encode(self, row: Row) -> EncodedRow:
        """The items of a row; each has at least one trained token.

        Raises:
            RowError: nothing in the row can be trained.
            RunError: bad_model: the tokenizer lacks what rows of this kind need.
        """
        if isinstance(row, Text):
            return self._encode_text(row)
        sequence = self._encode_chat(row) if isinstance(row, Chat) else self._encode_completion(row)
        kept = Sequence(sequence.tokens[: self.max_length], sequence.trained[: self.max_length])
        if not any(kept.trained[1:]):
            if not any(sequence.trained[1:]):
                raise RowError("no token in it would be trained")
            raise RowError(
                f"what is to be learnt starts only after max_length: {sequence.trained.index(1)} tokens come before "
                f"it, and {self.max_length} fit"
            )
        return EncodedRow([kept], cut=len(sequence.tokens) > self.max_length)

    def _encode_text(self, row: Text) -> EncodedRow:
        tokens = self._tokenize(row.text, special=True)
        end = self._end_of_text()
        if tokens[-1:] != [end]:
            tokens.append(end)
        starts = list(range(0, len(tokens), self.max_length))
        # A window of one token would train nothing: it takes the token before it along as context.
        if len(tokens) - starts[-1] == 1 and len(starts) > 1:
            starts[-1] -= 1
        windows = [tokens[start : start + self.max_length] for start in starts]
        return EncodedRow([Sequence(window, [1] * len(window)) for window in windows])

    def _encode_completion(self, row: Completion) -> Sequence:
        # Apart, as at inference: the model will see the prompt's tokens and go on from there.
        prompt = self._tokenize(row.prompt, special=True)
        end = self._end_of_text()
        if prompt[-1:] == [end]:
            prompt.pop()
        completion = [*self._tokenize(row.completion, special=False), end]
        return Sequence(prompt + completion, [0] * len(prompt) + [1] * len(completion))

    def _encode_chat(self, row: Chat) -> Sequence:
        from jinja2 import TemplateError

        template, options = self._find_template()
        try:
            encoded = self.tokenizer.apply_chat_template(
                row.messages,
                tools=row.tools,
                chat_template=template,
                return_dict=True,
                return_assistant_tokens_mask=True,
                **options,
            )
        except (TemplateError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise RowError(f"the model's chat template refuses it: {_first_line(error)}") from error
        if options:
            self._check_rendering(row, template, options)
        trained = encoded["assistant_masks"]
        if row.context:
            turns = sum(message["role"] == "assistant" for message in row.messages[: row.context])
            trained = skip_runs(trained, turns)
        return Sequence(encoded["input_ids"], trained)

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return tokens

    def _end_of_text(self) -> int:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise RunError(
                "bad_model", "the tokenizer has no end-of-text token", "set eos_token in its tokenizer_config.json"
            )
        return int(end)

    def _find_template(self) -> tuple[str, dict[str, Any]]:
        """The template that marks what is trained, and its options; empty for a model's own."""
        if self._template is None:
            self._template = choose_template(self.tokenizer)
        return self._template

    def _check_rendering(self, row: Chat, template: str, options: dict[str, Any]) -> None:
        """The training template must show the model the very text that its own template will show it in use."""
        render = self.tokenizer.apply_chat_template
        ours = render(row.messages, tools=row.tools, chat_template=template, tokenize=False, **options)
        if ours != render(row.messages, tools=row.tools, tokenize=False):
            raise RowError("the model's own chat template renders it in a way that is not known here")


def choose_template(tokenizer: Any) -> tuple[str, dict[str, Any]]:
    """The model's own template if it has generation marks, else the shipped one if that renders the same text.

    Returns the template and the options it needs; a shipped template always has options.

    Raises:
        RunError: bad_model: neither can be used.
    """
    hint = (
        "put {% generation %} and {% endgeneration %} around the assistant's words in the model's chat_template.jinja, "
        "or give the data as prompt and completion"
    )
    try:
        own = tokenizer.get_chat_template()
    except ValueError:
        raise RunError(
            "bad_model", "the base model's tokenizer has no chat template, and the data holds chats", hint
        ) from None
    if GENERATION_MARK.search(own):
        return own, {}
    shipped = TRAINING_TEMPLATE.read_text(encoding="utf-8")
    for options in _template_options(tokenizer):
        if all(
            tokenizer.apply_chat_template(probe, tokenize=False)
            == tokenizer.apply_chat_template(probe, tokenize=False, chat_template=shipped, **options)
            for probe in PROBES
        ):
            return shipped, options
    raise RunError(
        "bad_model",
        "the base model's chat template does not mark what the assistant says, and is not ChatML as known here",
        hint,
    )


def _template_options(tokenizer: Any) -> Iterator[dict[str, Any]]:
    own_system = OWN_SYSTEM.search(tokenizer.apply_chat_template(PROBE, tokenize=False))
    system = {"default_system": own_system[1]} if own_system else {}
    yield {"thinking": True, **system}
    yield {"thinking": False, **system}


def skip_runs(mask: list[int], runs: int) -> list[int]:
    """``mask`` with its first ``runs`` runs of ones cleared."""
    cleared = list(mask)
    position = 0
    for _ in range(runs):
        while position < len(cleared) and not cleared[position]:
            position += 1
        while position < len(cleared) and cleared[position]:
            cleared[position] = 0
            position += 1
    return cleared


def encode_file(path: Path, encoder: Encoder, show_progress: Callable[[], None] = lambda: None) -> EncodedFile:
    """Every row of a file, encoded or listed as bad; all good rows are to be trained.

    ``show_progress`` is called once a row.

    Raises:
        OSError: the file cannot be read.
        RunError: bad_model: the tokenizer lacks what rows of this file need.
    """
    result = EncodedFile()

    def refuse(row: BadRow) -> None:
        result.bad += 1
        if len(result.bad_rows) < MAX_LISTED_BAD_ROWS:
            result.bad_rows.append(row)

    for read in read_rows(path):
        result.total += 1
        show_progress()
        if isinstance(read, BadRow):
            refuse(read)
            continue
        line, row = read
        try:
            encoded = encoder.encode(row)
        except RowError as error:
            refuse(BadRow(line, str(error)))
            continue
        for sequence in encoded.sequences:
            result.items.append(result.good, sequence)
        result.good += 1
        result.cut += encoded.cut
    result.train = list(range(len(result.items)))
    return result


def hold_out(data: EncodedFile, seed: int, data_blake3: str) -> None:
    """Take a small sample of the good rows out of training, for evaluation: the same for the same seed and data."""
    if data.good < HELD_OUT_FROM_ROWS:
        return
    count = min(max(round(data.good * HELD_OUT_SHARE), HELD_OUT_LEAST), HELD_OUT_MOST)
    # Seeding with a string is independent of PYTHONHASHSEED.
    rows = frozenset(random.Random(f"{seed} {data_blake3}").sample(range(data.good), count))  # noqa: S311 - not a secret
    data.held_out_rows = count
    data.held_out = [item for item in data.train if data.items.row(item) in rows]
    data.train = [item for item in data.train if data.items.row(item) not in rows]


def check_rows(data: EncodedFile, name: str, max_bad_rows: int) -> None:
    """Refuse a file with more bad rows than allowed, or with nothing to train.

    Raises:
        RunError: bad_data.
    """
    if data.bad > max_bad_rows:
        first = data.bad_rows[0]
        others = f" and {data.bad - 1} more" if data.bad > 1 else ""
        raise RunError(
            "bad_data",
            f"{name}: line {first.line}{others} of {data.total} rows cannot be trained: {first.reason}",
            "correct the file (training_queue.py validate lists the lines), or allow them: "
            f"training_controller.py config set max_bad_rows {data.bad}",
        )
    if not data.train:
        raise RunError(
            "bad_data", f"{name}: no row to train", "check that this is the right file: training_queue.py validate"
        )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
