"""The demo recipe at a size that a fault test can afford: its steps and verbs, a random two-layer model, few rows.

The model is the one that the tests build (`tests/conftest.py`, seed 0); rows are the first of the starter sets. The
steps, their order and what feeds what are read from `recipes/demo.yaml`, so a step added there is broken here, too.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SHORT = 220  # characters of a row at most: the tiny tokenizer knows few words
ROWS = {"medical_mcq": 24, "medical_qa": 16, "general": 16, "exam": 8, "preferences": 16, "harmful": 12}
SPLITS = ("train", "test")
# Parameters by verb that replace the demo's. Checkpoints come every second step, and batches are of four rows.
SMALL: dict[str, dict[str, Any]] = {
    "synthesize": {"limit": 3, "tries": 2, "max_new_tokens": 80, "shots": 0},
    "sft": {"max_rows": 20, "batch_rows": 4, "max_tokens": 2048},
    "dpo": {"max_pairs": 12, "batch_pairs": 4, "max_tokens": 2048},
    "red_team_pairs": {"limit": 6, "max_new_tokens": 80, "judges": ["rules"]},
    "red_team": {"limit": 3, "max_new_tokens": 8, "scenario_tokens": 8},
}
SENTENCE = (
    "Rest, water and time are often enough for a patient, and a stiff neck needs urgent care. The other options do not "
    "fit what was found here. The answer is A."
)
QUESTIONS = ("What helps?", "Which option is right?", "Tell me more about it, please.", "How is this done?")
LESSONS = 150
MODEL, BASE = "smollm2-135m-instruct", "model"
WINDOW = 8192
CHECKPOINT_STEPS = 2
MAX_BATCH = 4


class _Folders:
    """Stands in for pytest's `tmp_path_factory`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def mktemp(self, name: str) -> Path:
        (self.root / name).mkdir(parents=True)
        return self.root / name


def tiny_model(folder: Path) -> Path:
    """Write the tests' tiny model below `folder`, with a licence that the release can honour."""
    spec = importlib.util.spec_from_file_location("tests_conftest", ROOT / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.tiny_tokenizer.__wrapped__()
    made: Path = module.tiny_model_folder.__wrapped__(tokenizer, _Folders(folder))
    config = json.loads((made / "config.json").read_text())
    config["max_position_embeddings"] = WINDOW  # the prompts of the writer are long in few-letter tokens
    (made / "config.json").write_text(json.dumps(config))
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\nOne sentence, by heart.\n")
    _learn_by_heart(made)
    return made.rename(folder / BASE)


def _learn_by_heart(folder: Path) -> None:
    """Train the model until it says `SENTENCE` whatever it is asked: random weights write nothing a judge calls words,
    and steps that make rows from replies would end without any."""
    import torch

    from aloe.models.load import load

    loaded = load(folder)
    model, template = loaded.model.train(), loaded.template
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for number in range(LESSONS):
        asked = [{"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]} {number}"}]
        turn = template.render([*asked, {"role": "assistant", "content": SENTENCE}])
        ids = torch.tensor([turn.ids])
        labels = torch.full_like(ids, -100)
        start, end = turn.spans[0]
        labels[0, start:end] = ids[0, start:end]
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)


def few_rows(folder: Path, name: str, count: int) -> Path:
    """The first short rows of a starter set, with its licence beside them."""
    from aloe.data.starter import starter_path

    lines = starter_path(name).read_text(encoding="utf-8").splitlines()
    short = [line for line in lines if len(line) < 4 * SHORT]
    if name == "harmful":  # what the sentence is on the topic of, for the judges: some to train on and some to test
        asked = [(line, json.loads(line)) for line in short]
        split = {s: [x for x, row in asked if row["split"] == s and "patient" in row["request"]] for s in SPLITS}
        short = [line for pair in zip(*split.values(), strict=False) for line in pair]
    short = short[:count]
    path = folder / f"{name}.jsonl"
    stated = [json.dumps({**json.loads(line), "licence": "cc0-1.0"}, ensure_ascii=False) for line in short]
    path.write_text("\n".join(stated) + "\n", encoding="utf-8")
    path.with_name(path.name + ".license").write_text("SPDX-License-Identifier: CC0-1.0\n")
    return path


def tiny_recipe(folder: Path, steps: Sequence[str] | None = None) -> Path:
    """Write model, rows and recipe below `folder`; returns the recipe's path. `steps`: these alone, which must be all
    that they need."""
    model = tiny_model(folder)
    (folder / "rows").mkdir()
    values = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    names = {f"starter/{name}": str(few_rows(folder / "rows", name, count)) for name, count in ROWS.items()}
    values = _renamed(values, names | {MODEL: str(model)})
    values["engine"]["max_batch"] = MAX_BATCH
    values["hardware"] = {"checkpoint_steps": CHECKPOINT_STEPS, "row_tokens": 512}
    for step in values["steps"].values():
        [(verb, parameters)] = step.items()
        parameters |= SMALL.get(verb, {})
        if verb == "synthesize":
            # Nothing that random weights write agrees with a label. The rows of `corpus` alone train the model.
            parameters["allow_empty"] = True
        if verb == "sft" and isinstance(parameters["data"], dict):
            parameters["data"] = {"corpus": 1.0}
        if verb == "evaluate":
            _fewer_items(parameters["benchmarks"])
    if steps:
        values["steps"] = {name: step for name, step in values["steps"].items() if name in steps}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def _fewer_items(benchmarks: dict[str, Any]) -> None:
    for benchmark in benchmarks.values():
        benchmark["limit"] = 2
        if "members" in benchmark:
            benchmark["members"] = 2
        if "max_new_tokens" in benchmark:
            benchmark["max_new_tokens"] = 8


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


if __name__ == "__main__":
    print(tiny_recipe(Path(sys.argv[1])))
