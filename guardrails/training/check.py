"""The data check without training: what a run would find, row by row.

``python -m guardrails.training.check --base-model DIR FILE…`` prints one JSON document, the files' checks in order.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrails.manifest import hash_file
from guardrails.state_io import dump_json
from guardrails.training.job import RunError


def check_data(
    files: Sequence[Path],
    base_model: Path,
    max_length: int,
    max_bad_rows: int,
    seed: int = 42,
    *,
    hold_out_rows: bool = True,
) -> list[dict[str, Any]]:
    """What rows.json of a run of each file would hold, and under ``problem`` why the run would fail, or None.

    ``hold_out_rows`` is false where a validation_file is set.

    Raises:
        RunError: bad_model: the base model's tokenizer cannot be used for any file.
        OSError: a file cannot be read.
    """
    # Imported late: what the libraries read from the environment is set by then.
    from guardrails.training.encode import Encoder, check_rows, encode_file, hold_out, load_tokenizer

    encoder = Encoder(load_tokenizer(base_model), max_length)
    found = []
    for path in files:
        blake3 = hash_file(path)
        data = encode_file(path, encoder)
        if hold_out_rows:
            hold_out(data, seed, blake3)
        problem = None
        try:
            check_rows(data, path.name, max_bad_rows)
        except RunError as error:
            problem = {"reason": error.reason, "message": error.message, "hint": error.hint}
        found.append({"file": str(path), **data.document(blake3), "problem": problem})
    return found


def main() -> int:
    """The command line; exit code 40 if a file cannot be trained."""
    parser = argparse.ArgumentParser(description="Check data files as a training run would.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--base-model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens an item may have (2048)")
    parser.add_argument("--max-bad-rows", type=int, default=0, help="bad rows that a file may hold (0)")
    parser.add_argument("--seed", type=int, default=42, help="decides which rows are held out (42)")
    parser.add_argument("--validation-file", action="store_true", help="there is one: hold no rows out")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        found = check_data(
            options.files,
            options.base_model,
            options.max_length,
            options.max_bad_rows,
            options.seed,
            hold_out_rows=not options.validation_file,
        )
    except RunError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}\nhint: check the path and its permissions", file=sys.stderr)
        return 1
    print(dump_json(found))
    return RunError.exit_code if any(one["problem"] for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
