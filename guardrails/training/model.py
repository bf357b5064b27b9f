"""The model of a run: base model and adapter loaded, the finished adapter saved and checked."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, set_seed

from guardrails.state_io import dump_json
from guardrails.training.job import Job, RunError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_model(job: Job, highest_token: int) -> Any:
    """The base model with the adapter that the run starts from: the parent's, or a fresh one from the seed.

    Raises:
        RunError: bad_model: the parent adapter has other settings than the job, or the model has no row for
            ``highest_token``.
    """
    on_gpu_with_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    base = AutoModelForCausalLM.from_pretrained(
        job.base_model, dtype=torch.bfloat16 if on_gpu_with_bf16 else torch.float32, local_files_only=True
    )
    rows = base.get_input_embeddings().num_embeddings
    if highest_token >= rows:
        raise RunError(
            "bad_model",
            f"the tokenizer of {job.base_model} makes token {highest_token}, the model knows {rows} tokens",
            "the folder holds model and tokenizer that do not belong together; restore it from where it came from",
        )
    if job.parent_adapter is None:
        # The fresh adapter depends on the seed alone, not on what was drawn while loading.
        set_seed(job.seed)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=job.lora_r,
            lora_alpha=job.lora_alpha,
            lora_dropout=job.lora_dropout,
            target_modules=job.lora_target_modules,
        )
        return get_peft_model(base, config)
    config = PeftConfig.from_pretrained(job.parent_adapter)
    _check_adapter(config, job)
    config.lora_dropout = job.lora_dropout
    return PeftModel.from_pretrained(base, job.parent_adapter, config=config, is_trainable=True)


def _check_adapter(config: Any, job: Job) -> None:
    for name, found, wanted in (
        ("peft_type", str(getattr(config.peft_type, "value", config.peft_type)), "LORA"),
        ("lora_r", config.r, job.lora_r),
        ("lora_alpha", config.lora_alpha, job.lora_alpha),
        ("lora_target_modules", sorted(config.target_modules), sorted(job.lora_target_modules)),
    ):
        if found != wanted:
            raise RunError(
                "bad_model",
                f"adapter {job.parent_adapter} has {name} {json.dumps(found)}, the config says {json.dumps(wanted)}",
                "set the config back to what the model was trained with: training_controller.py config set",
            )


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter to ``folder``, new, as its two files, and read them back: equal to memory and finite.

    Raises:
        RunError: bad_output: a tensor is not finite, or the file does not hold what was saved.
    """
    state = get_peft_model_state_dict(model)
    infinite = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise RunError("bad_output", f"the trained adapter is not finite: {infinite[0]}", "try a smaller learning_rate")
    model.save_pretrained(folder)
    for path in folder.iterdir():
        if path.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            path.unlink()
        else:
            path.chmod(0o644)
    # peft writes the target modules in the order of a set; equal adapters are to have equal files.
    config_file = folder / ADAPTER_CONFIG
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(dump_json(config) + "\n", encoding="utf-8")

    saved = load_file(folder / ADAPTER_WEIGHTS)
    if saved.keys() != state.keys() or any(not torch.equal(saved[name], state[name].cpu()) for name in state):
        raise RunError(
            "bad_output", f"{folder / ADAPTER_WEIGHTS} does not hold what was saved", "check the disk and the memory"
        )
