"""TRL's side of `sft.py` and `dpo.py`, run by the peer's own Python.

    PYTHON training_peer.py SPEC.json OUT.json

SPEC: `trainer` (sft, dpo), `model` (folder), `rows` (JSON file), `batch` (rows or pairs in an optimiser step), `lr`,
`epochs`, `config` (SFTConfig's or DPOConfig's own arguments; what isn't there is TRL's default) and, for `packing`,
`step_tokens`. Rows are in training order, as text and with the token ids that our side trains on: it is an error if
TRL makes other ids of the text. OUT: seconds, trained tokens (or pairs) and loss of every optimiser step, seconds of
the reference's log-probabilities where they are computed beforehand, and versions.

A step's seconds run from the end of the step before, so what the data loader takes is in them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

# What every run has: no files written but the caches, no bars, the order of the rows as given, and the machine's CPU.
NEUTRAL = {
    "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 7,
    "train_sampling_strategy": "sequential",
}  # fmt: skip


def arguments(spec: dict[str, Any], out: str) -> dict[str, Any]:
    """The trainer's arguments: neutral ones, then the configuration's, and the accumulation that keeps `batch` rows."""
    config = dict(spec["config"])
    device_batch = config.get("per_device_train_batch_size", 8)
    if config.get("packing"):
        accumulate = max(1, round(spec["step_tokens"] / (config["max_length"] * device_batch)))
    else:
        accumulate = max(1, spec["batch"] // device_batch)
    return {
        **NEUTRAL, "output_dir": out, "num_train_epochs": spec["epochs"], "learning_rate": spec["lr"],
        "gradient_accumulation_steps": accumulate, **config,
    }  # fmt: skip


def main() -> None:
    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = json.loads(Path(spec["rows"]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_DATASETS_CACHE"] = str(Path(place) / "datasets")  # a reference cached before would be no work
        found = sft(spec, rows, place) if spec["trainer"] == "sft" else dpo(spec, rows, place)
    names = ("trl", "transformers", "accelerate", "torch")
    Path(sys.argv[2]).write_text(json.dumps({**found, "versions": {n: version(n) for n in names}}), encoding="utf-8")


def clock(ends: list[float], processor: list[float]) -> Any:
    """A callback that notes when training began and when each optimiser step ended, and the processor time then."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            processor.append(time.process_time())

        on_step_end = on_train_begin

    return Clock()


def steps_of(trainer: Any, ends: list[float], processor: list[float]) -> dict[str, Any]:
    """Seconds of every step, on the clock and of processors, and the losses that were logged."""
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    seconds = [b - a for a, b in pairwise(ends)]
    return {"seconds": seconds, "processor_seconds": [b - a for a, b in pairwise(processor)], "losses": losses}


def sft(spec: dict[str, Any], rows: list[dict[str, Any]], out: str) -> dict[str, Any]:
    """Supervised fine-tuning on prompt and completion, of which TRL trains on the completion."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    trained: list[int] = []

    class Counting(SFTTrainer):  # type: ignore[misc]
        """Notes how many tokens each optimiser step trains on."""

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            samples, count = super().get_batch_samples(*args, **kwargs)
            trained.append(int(count))
            return samples, count

    config = arguments(spec, out)
    init = config.pop("model_init_kwargs", None)
    data = Dataset.from_list([{"prompt": r["prompt"], "completion": r["completion"]} for r in rows])
    ends: list[float] = []
    processor: list[float] = []
    trainer = Counting(
        spec["model"],
        SFTConfig(**config, model_init_kwargs=init),
        train_dataset=data,
        callbacks=[clock(ends, processor)],
    )
    made = trainer.train_dataset
    if config.get("packing"):
        same = sorted(t for row in made["input_ids"] for t in row) == sorted(t for r in rows for t in r["ids"])
    else:
        same = [list(ids) for ids in made["input_ids"]] == [r["ids"] for r in rows]
    if not same:
        raise SystemExit("TRL made other token ids of the rows")
    trainer.train()
    return {
        **steps_of(trainer, ends, processor),
        "trained": trained,
        "rows_a_step": config["gradient_accumulation_steps"],
    }


def dpo(spec: dict[str, Any], rows: list[dict[str, Any]], out: str) -> dict[str, Any]:
    """Preference optimisation on text; the end of turn, which is the tokenizer's end of sequence, is added by TRL."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    reference: list[float] = []

    class Timed(DPOTrainer):  # type: ignore[misc]
        """Notes how long the reference's log-probabilities take where they are computed beforehand."""

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            made = super()._precompute_ref_logps(*args, **kwargs)
            reference.append(time.perf_counter() - began)
            return made

    data = Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows])
    ends: list[float] = []
    processor: list[float] = []
    trainer = Timed(
        spec["model"], args=DPOConfig(**arguments(spec, out)), train_dataset=data, callbacks=[clock(ends, processor)]
    )
    made = trainer.train_dataset
    for key, ours in (("prompt_ids", "ids"), ("chosen_ids", "chosen_ids"), ("rejected_ids", "rejected_ids")):
        if [list(ids) for ids in made[key]] != [r[ours] for r in rows]:
            raise SystemExit(f"TRL made other {key} of the rows")
    trainer.train()
    found = steps_of(trainer, ends, processor)
    size = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    epoch = [min(size, len(rows) - start) for start in range(0, len(rows), size)]
    pairs = epoch * spec["epochs"]
    return {**found, "trained": pairs, "reference_seconds": sum(reference)}


if __name__ == "__main__":
    main()
