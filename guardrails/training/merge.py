"""An adapter merged into its base model, and the proof: ``python -m guardrails.training.merge JOB.json``.

JOB.json names the ``base_model`` and the ``adapter``, the new folder ``model`` for what comes out, the file ``result``
that says how it went, and the process ``parent`` that it dies with. Exit codes: 0 merged, 31 the merged model answers
otherwise, 33 disk full, 1 any other failure.
"""

import gc
import json
import os
import shutil
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

from guardrails.errors import DiskSpaceError, GuardrailsError, IntegrityError, OperationError
from guardrails.state_io import SCHEMA_VERSION, read_json, write_json
from guardrails.training.worker import (
    LIBRARIES,
    chain,
    follow_daemon,
    is_full_disk,
    is_out_of_memory,
    prepare_libraries,
)

JOB_KEYS = {**dict.fromkeys(("base_model", "adapter", "model", "result"), str), "parent": int}
# What the saved model brings itself, and weights in whatever form; all else makes the model what it is, as it stands.
OWN_FILES = ("config.json",)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")
PROBES, PROBE_TOKENS = 4, 64
# Of the largest logit. In fp32 merged and unmerged models only round differently, measured 3e-7 with 2 layers and 2e-6
# with 28; one of the 196 modules of those 28 layers left out, after a single training step, made 6e-4.
TOLERANCE = 1e-4


def merge_adapter(base_model: Path, adapter: Path, target: Path) -> dict[str, float]:
    """Write the merged model in fp32 to the new folder ``target``; how its logits differ from base plus adapter.

    One model is in memory at a time.

    Raises:
        OperationError: the base model is quantized.
        IntegrityError: read back from ``target``, the model does not answer as base plus adapter does.
    """
    refuse_quantized(base_model)
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()

    model = PeftModel.from_pretrained(load(base_model), adapter).eval()
    rows = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(rows, (PROBES, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(tokens).logits
    model = model.merge_and_unload()
    model.save_pretrained(target)
    copy_rest(base_model, target)
    # Or it would stand beside the one that is read back.
    del model
    gc.collect()
    with torch.inference_mode():
        difference = (load(target)(tokens).logits - expected).abs().max().item()
    scale = expected.abs().max().item()
    # Not the other way round: a NaN has to fail.
    if not difference <= TOLERANCE * scale:
        raise IntegrityError(
            f"the merged model is not base plus adapter: logits differ by {difference:.2g} where the largest is"
            f" {scale:.2g}",
            "nothing was changed; check the memory and the disk, then run the command again",
        )
    return {"max_difference": difference, "largest": scale, "tolerance": TOLERANCE * scale}


def refuse_quantized(base_model: Path) -> None:
    """Raises OperationError if the weights in the folder are rounded to a few bits: a merge would round the adapter."""
    settings = json.loads((base_model / "config.json").read_text(encoding="utf-8"))
    if settings.get("quantization_config") is not None:
        raise OperationError(
            f"{base_model} is quantized; an adapter is merged into the unquantized model only",
            "use that one: training_controller.py config set base_model /path/to/model",
        )


def copy_rest(base_model: Path, target: Path) -> None:
    """Copy what makes the base model a model besides weights: tokenizer, chat template, generation config."""
    for parent, folders, names in os.walk(base_model):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(base_model)
            if name.startswith(".") or name.endswith((".md", *WEIGHTS)) or str(relative) in OWN_FILES:
                continue
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)


def explain(failure: Exception, job: dict[str, Any]) -> GuardrailsError:
    """The failure as what the command says."""
    if isinstance(failure, GuardrailsError):
        return failure
    message = (str(failure).strip() or type(failure).__name__).splitlines()[-1]
    if any(is_full_disk(error, Path(job["model"])) for error in chain(failure)):
        return DiskSpaceError(f"the disk is full: {message}", "free some disk space, then run the command again")
    if is_out_of_memory(failure):
        return OperationError(f"out of memory: {message}", "a merge holds the whole model in fp32, in main memory")
    return OperationError(
        f"the merge failed: {type(failure).__name__}: {message}",
        f"check that {job['base_model']} holds a whole model; the traceback is in logs/",
    )


def main() -> int:
    """The command line."""
    job = read_json(Path(sys.argv[1]), JOB_KEYS)
    if job is None or not follow_daemon(job["parent"]):
        return OperationError.exit_code
    prepare_libraries()
    problem, logits = None, None
    try:
        logits = merge_adapter(Path(job["base_model"]), Path(job["adapter"]), Path(job["model"]))
    # The one place where any failure of any library becomes a message; the traceback stays in the log.
    except Exception as failure:  # noqa: BLE001
        traceback.print_exc()
        problem = explain(failure, job)
    write_json(
        Path(job["result"]),
        {
            "schema_version": SCHEMA_VERSION,
            "logits": logits,
            "libraries": {name: version(name) for name in LIBRARIES},
            "problem": {"message": problem.message, "hint": problem.hint} if problem else None,
        },
    )
    return problem.exit_code if problem else 0


if __name__ == "__main__":
    # Straight to the exit: tearing down torch takes longer than all that was left to do.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
