"""Loss curves of TRL's own trainers on a tiny model; run by the peer's Python, which has TRL and not aloe.

    $ALOE_PEERS/trl/bin/python tests/train/trl_curves.py OUT.json [CASE ...]

The model, the rows and the adapter come from counter-based bits, so that any environment has the same bytes. What the
file holds: versions, hyper-parameters, the token ids and masks that TRL trained on (made from text by TRL's own
preparation), and its figures of every step. `test_trl_curves.py` compares ours with it.

`pairs` are given to DPOTrainer as text and not as messages: from messages it would also score the newline that ChatML
puts after the end of turn, which no generation ever reaches.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20250504
STEPS, BATCH, ROWS = 30, 4, 40
# Text and end of turn of an assistant lie inside the generation markers, from which TRL takes its mask.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "fever cough rash pain dose water rest urgent care doctor nurse heart lung liver child adult today never often "
    "take two tablets with food and call if it gets worse because the stiff neck needs a look at once"
)
WORDS = TEXT.split()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}

CASES: dict[str, dict[str, Any]] = {
    "sft constant": {"trainer": "sft", "lr": 1e-3, "schedule": "constant", "clip": 1.0},
    "sft cosine": {"trainer": "sft", "lr": 1e-3, "schedule": "cosine", "clip": 0.3, "decay": 0.1},
    "sft cosine, warm-up": {"trainer": "sft", "lr": 2e-3, "schedule": "cosine", "warmup": 6, "micro": 1},
    "sft lora": {"trainer": "sft", "lr": 5e-3, "schedule": "constant", "lora": True},
    "dpo sigmoid": {"trainer": "dpo", "loss": "sigmoid", "peer_loss": ["sigmoid"]},
    "dpo sigmoid + nll": {
        "trainer": "dpo", "loss": "sigmoid", "alpha_nll": 0.5, "peer_loss": ["sigmoid", "sft"],
        "peer_weights": [1.0, 0.5], "micro": 1,
    },
    "dpo robust": {"trainer": "dpo", "loss": "robust", "smoothing": 0.1, "peer_loss": ["robust"]},
    "dpo ipo": {"trainer": "dpo", "loss": "ipo", "beta": 0.5, "peer_loss": ["ipo"]},
    "dpo length_normalised": {
        "trainer": "dpo", "loss": "length_normalised", "beta": 5.0, "peer_loss": ["sigmoid_norm"],
    },
    "dpo hinge": {"trainer": "dpo", "loss": "hinge", "peer_loss": ["hinge"]},
}  # fmt: skip
DEFAULTS = {"lr": 5e-4, "schedule": "constant", "warmup": 0, "clip": 1.0, "decay": 0.0, "micro": 2, "beta": 0.1}
DEFAULTS |= {"smoothing": 0.0, "alpha_nll": 0.0, "lora": False}


def case(name: str) -> dict[str, Any]:
    """A case's hyper-parameters, every default written out."""
    return {**DEFAULTS, **CASES[name]}


# -- what both environments build -----------------------------------------------------------------------------------


def uniform(key: str, size: int) -> Any:
    """`size` float64 values in [-1, 1) from Philox keyed by `key`: raw bits, which no version of numpy changes."""
    words = np.frombuffer(hashlib.blake2b(f"{SEED}/{key}".encode(), digest_size=16).digest(), dtype="<u8")
    return (np.random.Philox(key=words).random_raw(size) >> 11) * 2.0**-52 - 1.0


def sentence(key: str, least: int, most: int) -> str:
    """Between `least` and `most` words."""
    draws = (uniform(key, most + 1) + 1) / 2
    count = least + int(draws[0] * (most - least + 1))
    return " ".join(WORDS[int(d * len(WORDS))] for d in draws[1 : count + 1])


def dialogues() -> list[list[dict[str, str]]]:
    """Rows of one to three turns, some with a system message, of very different lengths."""
    rows = []
    for i in range(ROWS):
        row = [{"role": "system", "content": sentence(f"system {i}", 2, 8)}] if i % 3 == 0 else []
        for turn in range(1 + i % 3):
            row.append({"role": "user", "content": sentence(f"user {i} {turn}", 1, 9)})
            row.append({"role": "assistant", "content": sentence(f"assistant {i} {turn}", 1, 14)})
        rows.append(row)
    return rows


def pairs() -> list[dict[str, Any]]:
    """Prompt (messages), chosen, rejected."""
    return [
        {
            "prompt": [{"role": "user", "content": sentence(f"prompt {i}", 1, 12)}],
            "chosen": sentence(f"chosen {i}", 1, 14),
            "rejected": sentence(f"rejected {i}", 1, 14),
        }
        for i in range(ROWS)
    ]


def write_model(folder: Path) -> str:
    """Write a two-layer llama and a tokenizer of single bytes; returns the digest of the weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0], unk_token=SPECIAL[0]
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            drawn = 0.2 * uniform(name, weight.numel()) + (1.0 if weight.ndim == 1 else 0.0)
            values = drawn.astype(np.float32).reshape(tuple(weight.shape))
            weight.copy_(torch.from_numpy(values))
            digest.update(name.encode() + values.tobytes())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return digest.hexdigest()


def lora_a(name: str, size: int) -> Any:
    """[size] float32 start of the LoRA matrix A that peft calls `name`."""
    return (0.3 * uniform(name, size)).astype(np.float32)


def adapted(model: Any) -> Any:
    """The model with LoRA by peft: A from keyed bits, B zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(**LORA, lora_dropout=0.0, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                weight.copy_(torch.from_numpy(lora_a(name, weight.numel())).view_as(weight))
    return model


# -- the peer's side ------------------------------------------------------------------------------------------------


def lr_factor(step: int, warmup: int) -> float:
    """Linear warm-up to 1 at step `warmup`, its first step 1/(warmup + 1); then cosine."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))


def run_case(name: str, folder: Path, out: Path) -> dict[str, Any]:
    """Train one case with TRL; its figures of every step and the rows as TRL tokenised them."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    c = case(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shared = {
        "output_dir": str(out), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "train_sampling_strategy": "sequential",
        "max_steps": STEPS, "per_device_train_batch_size": c["micro"],
        "gradient_accumulation_steps": BATCH // c["micro"], "learning_rate": c["lr"], "weight_decay": c["decay"],
        "max_grad_norm": c["clip"], "warmup_steps": 0, "lr_scheduler_type": c["schedule"], "max_length": None,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    if c["trainer"] == "sft":
        data = Dataset.from_list([{"messages": row} for row in dialogues()])
        if c["lora"]:
            model = adapted(model)
        trainer: Any = SFTTrainer(
            model, SFTConfig(**shared, assistant_only_loss=True), train_dataset=data, processing_class=tokenizer
        )
    else:
        rendered = [
            {**row, "prompt": tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)}
            for row in pairs()
        ]
        config = DPOConfig(
            **shared, beta=c["beta"], loss_type=c["peer_loss"], loss_weights=c.get("peer_weights"),
            label_smoothing=c["smoothing"],
        )  # fmt: skip
        trainer = DPOTrainer(model, args=config, train_dataset=Dataset.from_list(rendered), processing_class=tokenizer)
    if c["warmup"]:
        trainer.create_optimizer()
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda s: lr_factor(s, c["warmup"]))
    trainer.train()
    steps = [h for h in trainer.state.log_history if "loss" in h]
    always = ("loss", "grad_norm", "learning_rate")
    pairwise = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
    columns = ("input_ids", "labels") if c["trainer"] == "sft" else ("prompt_ids", "chosen_ids", "rejected_ids")
    return {
        "hyper": c,
        "rows": {k: list(map(list, trainer.train_dataset[k])) for k in columns},
        "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        "steps": {k: [h[k] for h in steps] for k in always + pairwise if k in steps[0]},
    }


def main() -> None:
    import os
    from importlib.metadata import version

    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        digest = write_model(folder)
        os.environ["HF_DATASETS_CACHE"] = str(Path(place) / "datasets")
        cases = {name: run_case(name, folder, Path(place) / "out") for name in sys.argv[2:] or CASES}
    rows: dict[str, Any] = {}
    for found in cases.values():
        kind = rows.setdefault(found["hyper"]["trainer"], found["rows"])
        assert kind == found.pop("rows")  # every case of a trainer trained on the same ids
    names = ("trl", "transformers", "accelerate", "peft", "torch", "numpy", "tokenizers")
    found = {"versions": {n: version(n) for n in names}, "seed": SEED, "weights": digest, "batch": BATCH}
    text = json.dumps({**found, "cases": cases, "rows": rows}, separators=(",", ":"))
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
