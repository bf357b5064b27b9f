"""Make a tiny but real Qwen3 with its tokenizer, to try things on: ``python -m guardrails.training.tiny_model DIR``.

It knows nothing, learns quickly, and is the same for the same seed and sizes.
"""

import argparse
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from guardrails.state_io import fsync_folder

VOCABULARY = 2048
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
WORDS = (
    "a about after again all also an and another answer any are as ask at back be because been before best between "
    "both but by call can case change check city clear close code common company could country day describe did "
    "different do does done down each early end enough even every example explain family far few file find first "
    "follow food for form four from function general get give go good great group had hand has have he help her here "
    "high his home hour house how however idea if important in information into is it its just keep kind know large "
    "last later learn leave less let letter life light like line list little live long look loss made make many may "
    "mean might mind model money month more most much must name need never new next night no not note nothing now "
    "number of off often old on once one only open or order other our out over own page part people place plan point "
    "possible problem program put question quick rather reach read reason result right river run said same say school "
    "second see seem sentence set several she short should show side simple since small so some something start state "
    "step still stop story such sure system take tell test than that the their them then there these they thing think "
    "this those three through time to together too training true try turn two under until up us use used user value "
    "very want was water way we week well were what when where which while who why will with word work world would "
    "write year yes yet you young your "
)
SYLLABLES = (
    "ab ac ad al an ar as ba be bi bo ca ce ci co con da de der di du en er es ex fa fi for ga ge go ha hi ic in ing "
    "ion is ist it ity la le li lo ly ma ment mi mo na ne ni no o per po pre pro ra re ri ro sa se si so sta ta te "
    "ter ti tion to tra tu u un ver vi "
)
CODE = (
    "def {a}({b}):\n    return {b} + 1\n",
    "for {a} in range(10):\n    print({a})\n",
    "if {a} is None:\n    raise ValueError('{b}')\n",
    "import json\n\n{a} = json.loads('{{\"{b}\": [1, 2, 3]}}')\n",
    "class {a}:\n    def __init__(self) -> None:\n        self.{b} = []\n",
    "| {a} | {b} |\n|---|---|\n- **{a}**: {b}\n1. {a}\n2. {b}\n",
)


def sample_text(seed: int) -> Iterator[str]:
    """Some English-like prose, code and syllable puzzles, enough for a tokenizer to find its merges in."""
    source = random.Random(seed)  # noqa: S311 - a sample, not a secret
    all_words, syllables = WORDS.split(), SYLLABLES.split()
    for number in range(3000):
        words = [source.choice(all_words) for _ in range(source.randint(6, 18))]
        yield " ".join(words).capitalize() + source.choice([".", "?", "!", ":"]) + source.choice([" ", "\n", "\n\n"])
        if number % 4 == 0:
            yield source.choice(CODE).format(a=source.choice(all_words), b=source.choice(all_words))
        if number % 4 == 1:
            parts = [source.choice(syllables) for _ in range(source.randint(2, 4))]
            yield f"{number % 9 + 1}. ___ ___ ___ ({len(parts)} syllables): {' | '.join(parts)} = {''.join(parts)}\n"
            yield f'{{"solutions": {{"{number}": "{"".join(parts).upper()}"}}, "inventory_check": true}}\n'


def make_tiny_model(folder: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0) -> None:
    """Write model and tokenizer to ``folder``, complete or not at all; an existing folder is left as it is.

    Raises:
        FileExistsError: there is something at ``folder``.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists")
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
    from transformers.utils import logging

    from guardrails.training.checkpoints import fsync_tree
    from guardrails.training.encode import TRAINING_TEMPLATE

    logging.disable_progress_bar()
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    # Sorted, for the alphabet comes as a set.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        sample_text(seed),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",  # noqa: S106 - no password
        pad_token="<|endoftext|>",  # noqa: S106 - no password
        additional_special_tokens=SPECIAL_TOKENS[1:3],
        model_max_length=4096,
    )
    tokenizer.add_tokens(SPECIAL_TOKENS[3:])
    tokenizer.chat_template = TRAINING_TEMPLATE.read_text(encoding="utf-8")

    torch.manual_seed(seed)
    heads = max(hidden // 32, 1)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=hidden * 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(heads // 2, 1),
            head_dim=32,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        fsync_tree(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(folder.parent)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a tiny Qwen3 base model to try things on.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--hidden", type=int, default=64, help="hidden size, a multiple of 32 (64)")
    parser.add_argument("--layers", type=int, default=2, help="number of layers (2)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another model (0)")
    options = parser.parse_args()
    try:
        make_tiny_model(options.folder, hidden=options.hidden, layers=options.layers, seed=options.seed)
    except OSError as error:
        raise SystemExit(f"error: {error}\nhint: choose a folder that does not exist, on a disk with space") from error


if __name__ == "__main__":
    main()
