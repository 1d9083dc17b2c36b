"""What a run will cost, before it runs. From the step's own last run here where there was one; else from arithmetic.

Training a token costs about 6 FLOPs a parameter (forward 2, backward 4), or 4 under LoRA, whose frozen weights need no
gradient; reading one costs 2 (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and DPO reads each once more for the
reference. Writing one costs `WRITING` times what
reading it does: replies are written a token at a time, a few side by side, and the weights pass by for each. Speed is
this machine's measured matrix product in the precision asked for, times `SHARE`, a round figure: the rest goes to what
isn't a matrix product. Estimates, not promises, and only until a step has run once here.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from aloe.contract import Ref, Step, references
from aloe.errors import AloeError
from aloe.run.inputs import Resource, open_resource
from aloe.run.plan import StepPlan
from aloe.run.store import Store

SHARE = 0.5  # of the measured matrix speed; ours
WRITING = 4.0  # a written token against a read one, on CPU with 16 replies side by side; ours
LOADING = 4.0  # seconds until a model answers
BYTES = {"float32": 4, "bfloat16": 2}
# Bytes a parameter of weights, gradients, two moments and autocast's bf16 copies; and of those that LoRA leaves frozen
# (its adapters are about a hundredth of them).
TRAINED_BYTES = {"float32": 16, "bf16_autocast": 18, "bf16_stochastic": 8}
FROZEN_BYTES = {"float32": 4, "bf16_autocast": 6, "bf16_stochastic": 2}
LIBRARIES_GB = 1.0  # Python with torch and transformers
PASSING_GB = 1.5  # training's activations and logits, of small models and rows; the step's own memory plan knows them
MERGE_SECONDS = 1e-7  # per parameter, of three models on one core
# Tokens, as the starter data has them: a question with options, a request, rows of training, a written explanation.
QUESTION, REQUEST, PAIR = 95, 60, 20
SCENARIO_TURNS = 2  # of the user in a clinical scenario, about
DRAWS = 25  # continuations of an opening, where the benchmark names no number
TOKENS_OF = {
    "sft": 130, "dpo": 220, "synthesize": 400, "rewrite": 600, "preference_pairs": 130, "red_team_pairs": REQUEST,
}  # fmt: skip
ROWS = Ref((), "rows")


class Count(NamedTuple):
    """Tokens read and tokens written."""

    read: int
    written: int = 0

    def times(self, n: int) -> Count:
        return Count(self.read * n, self.written * n)

    def plus(self, other: Count) -> Count:
        return Count(self.read + other.read, self.written + other.written)


@dataclass(frozen=True)
class Guess:
    """Tokens handled, seconds, gigabytes at peak; zeros where nothing is known."""

    tokens: int = 0
    seconds: float = 0.0
    memory_gb: float = 0.0


def estimates(recipe: Any, planned: list[StepPlan], store: Store) -> dict[str, Guess]:
    """A guess per step."""
    guesses = {}
    for item in planned:
        current = store.current(item.name)
        if current is not None and current.manifest["verb"] == item.verb:
            m = current.manifest
            guesses[item.name] = Guess(sum(m["tokens"].values()), m["wall_seconds"], m["peak_memory_bytes"] / 1e9)
        else:
            guesses[item.name] = by_arithmetic(recipe, recipe.steps[item.name], item.name)
    return guesses


def by_arithmetic(recipe: Any, step: Step, name: str) -> Guess:
    """A guess that looks at no earlier run."""
    size = max(
        (_parameters(recipe, name, ref) for _, ref, mark in references(step) if mark.resource == "model"), default=0
    )
    values = step.model_dump(mode="json")
    precision = recipe.setting("engine.precision")
    if step.verb == "merge":
        return Guess(0, size * MERGE_SECONDS, LIBRARIES_GB)
    if step.verb == "merge_search":
        models = values["budget"] + len(values["models"]) + 1  # half of the items for each, some both halves
        asked = values["safety"] or {"requests": None}
        rows = (asked["limit"] or _file_rows(recipe, asked["requests"])) if asked["requests"] else 0
        read = models * (_benchmark(recipe, {"protocol": "likelihood", **values["benchmark"]}).read + rows * REQUEST)
        guess = _asking(Count(read // 2), size, precision)
        return Guess(guess.tokens, guess.seconds + models * size * MERGE_SECONDS, guess.memory_gb)
    if step.verb == "red_team_loop":  # every request in every style, asked and trained on in every round
        rows = values["limit"] or sum(_file_rows(recipe, ref) for ref in values["requests"])
        turns = rows * len(values["styles"]) * values["rounds"]
        asked = Count(REQUEST, values["max_new_tokens"]).times(turns)
        trained = int(sum(asked) * values["dpo"]["epochs"] / (1 - values["benign_share"]))
        reading, training = _asking(asked, size, precision), _training(recipe, step, values["dpo"], trained, size)
        return Guess(sum(asked) + trained, reading.seconds + training.seconds, training.memory_gb)
    if step.makes == "model":
        tokens = int(_rows(recipe, step, values) * values["epochs"] * TOKENS_OF[step.verb])
        return _training(recipe, step, values, tokens, size)
    if step.verb == "evaluate":
        one = Count(0)
        for spec in values["benchmarks"].values():
            one = one.plus(_benchmark(recipe, spec))
        sizes = [_parameters(recipe, name, ref) for ref in values["models"]]
        return _together([_asking(one, n, precision) for n in sizes])
    if step.verb == "red_team":
        one = _red_team(recipe, values)
        sizes = [_parameters(recipe, name, ref) for ref in values["models"]]  # a guard may be larger
        guess = _together([_asking(one, n, precision) for n in sizes])
        return Guess(guess.tokens, guess.seconds, _loaded(size, precision) if size else 0.0)
    if step.verb in TOKENS_OF:
        rows = _rows(recipe, step, values) * len(values.get("models", [0])) * len(values.get("styles", [0]))
        again = values.get("tries", 1) * values.get("samples", 1)
        return _asking(Count(TOKENS_OF[step.verb], values["max_new_tokens"]).times(rows * again), size, precision)
    return Guess()


def _asking(count: Count, size: int, precision: str) -> Guess:
    """Of one model. Nothing but tokens is known when its size isn't."""
    if not size or not sum(count):
        return Guess(sum(count))
    seconds = 2 * size * (count.read + WRITING * count.written) / _flops(precision)
    return Guess(sum(count), seconds + LOADING, _loaded(size, precision))


def _loaded(size: int, precision: str) -> float:
    """Gigabytes of a model that answers: its weights, and their file, whose mapped pages count while it is read."""
    return 2 * size * BYTES[precision] / 1e9 + LIBRARIES_GB


def _training(recipe: Any, step: Step, how: Mapping[str, Any], tokens: int, size: int) -> Guess:
    """As `how` says (`precision`, `lora`) and the recipe's `launch` shares it. Memory is each process's."""
    if not size:
        return Guess(tokens)
    lora, precision, launch = how["lora"] is not None, how["precision"], recipe.head.launch
    processes = launch.processes * launch.nodes if step.parallel else 1
    flops = (4 if lora else 6) + (0 if step.verb == "sft" else 2)
    # Processes of one machine share its cores: only other machines bring speed that isn't in the measured one.
    faster = launch.nodes if step.parallel else 1
    seconds = flops * size * tokens / _flops("float32" if precision == "float32" else "bfloat16") / faster
    shards = processes if launch.strategy in ("fsdp2", "zero3") else 1
    kept = size * (FROZEN_BYTES if lora else TRAINED_BYTES)[precision] / shards
    return Guess(tokens, seconds + LOADING, kept / 1e9 + LIBRARIES_GB + PASSING_GB)


def _together(guesses: Sequence[Guess]) -> Guess:
    """One after the other."""
    return Guess(
        sum(g.tokens for g in guesses), sum(g.seconds for g in guesses), max((g.memory_gb for g in guesses), default=0)
    )


def _benchmark(recipe: Any, spec: Mapping[str, Any]) -> Count:
    """Tokens of one benchmark for one model: prompts in every order, shots, and replies."""
    items = spec["limit"] or _file_rows(recipe, spec["data"])
    reply = spec.get("max_new_tokens") or 160
    if spec["protocol"] == "likelihood":
        return Count(QUESTION * (spec["rotations"] or 4)).times(items)
    if spec["protocol"] == "plain":
        return Count(QUESTION * (1 + (spec.get("shots") or 0))).times(items)
    if spec["protocol"] == "pairs":
        return Count(2 * PAIR).times(items)
    if spec["protocol"] == "continuations":
        return Count(REQUEST, (spec.get("draws") or DRAWS) * (spec.get("max_new_tokens") or 20)).times(items)
    if spec["protocol"] != "generated":
        return Count(REQUEST, reply).times(items)
    members, shots = spec["members"] or 5, spec["shots"] or 5
    one = Count(QUESTION, reply)
    per_strategy = {
        "direct": Count(QUESTION, min(reply, 32)),
        "cot": one,
        "self_consistency": Count(QUESTION, members * reply),  # the prompt is read once for all members
        "medprompt": Count(shots * 2 * QUESTION, 0).plus(one.times(members)),
    }
    total = Count(0)
    for strategy in spec["strategies"] or ["direct"]:
        total = total.plus(per_strategy.get(strategy, Count((shots * 2 + 1) * QUESTION, reply)))
    return total.times(items)


def _red_team(recipe: Any, values: Mapping[str, Any]) -> Count:
    """Tokens of one model under attack: attacks in every style, look-alikes, scenarios and escalations, each turn of
    which is read again in the next. Files are taken whole: what of them is another split isn't known before they are
    read. Judges and attackers are other models, and not in it."""

    def rows(refs: Sequence[str], limit: int | None) -> int:
        found = sum(_file_rows(recipe, ref) for ref in refs)
        if not refs or limit is None:
            return found
        return min(found, limit) if found else limit  # of rows that are yet to be made the limit is all that is known

    limit, reply = values["limit"], values["max_new_tokens"]
    base = rows(values["requests"], limit)
    attempts = base * len(values["styles"]) * values["attempts"]
    budget = values["budget"] or {"attempts": None, "tokens": None}
    if budget["attempts"]:
        attempts = min(attempts, budget["attempts"])
    one = Count(REQUEST, reply)
    total = one.times(attempts + rows(values["benign"], limit))
    if values["scenarios"]:
        scenes = rows([values["scenarios"]], limit)
        total = total.plus(_conversation(SCENARIO_TURNS, values["scenario_tokens"]).times(scenes))
    if values["escalation"]:
        climbed = min(base, values["escalation"]["limit"] or base)
        total = total.plus(_conversation(values["escalation"]["turns"], reply).times(climbed))
    if budget["tokens"] and sum(total) > budget["tokens"]:
        written = budget["tokens"] * total.written // sum(total)
        return Count(budget["tokens"] - written, written)
    return total


def _conversation(turns: int, reply: int) -> Count:
    """Tokens of a conversation in which each turn reads all before it."""
    return Count(turns * (turns + 1) // 2 * REQUEST + turns * (turns - 1) // 2 * reply, turns * reply)


def _parameters(recipe: Any, name: str, ref: str, depth: int = 0) -> int:
    """Parameters of the model behind a reference, following steps back to a base whose weights are here."""
    if ref in recipe.steps:
        inner = recipe.steps[ref]
        found = [_parameters(recipe, ref, r, depth + 1) for _, r, m in references(inner) if m.resource == "model"]
        return max(found, default=0) if depth < 20 else 0
    mark = next((m for _, r, m in recipe.outside[name] if r == ref), None)
    if mark is None or mark.resource != "model" or mark.served is not None:
        return 0
    return _outside_size(ref, mark, recipe.near)


@cache
def _outside_size(ref: str, mark: Ref, near: Path | None) -> int:
    """Kept for the process: sizing asks for it again and again, and opening a model reads its digest."""
    try:
        resource = open_resource(ref, mark, near)
    except AloeError:
        return 0
    return model_size(resource)


def model_size(resource: Resource) -> int:
    """Parameters by the safetensors headers (shapes only); 0 when the weights aren't here."""
    from aloe.models.sources import cached_model_folder

    folder = cached_model_folder(resource.model) if resource.model else None
    if folder is None:
        return 0
    return sum(_tensor_sizes(p) for p in sorted(folder.glob("*.safetensors")))


def _tensor_sizes(path: Path) -> int:
    from aloe.models.headers import safetensors_header

    return sum(math.prod(entry.shape) for entry in safetensors_header(path).values())


def _rows(recipe: Any, step: Step, values: Mapping[str, Any]) -> int:
    """Rows a step handles: its own limit, else what its files hold; 0 for rows that are yet to be made."""
    limits = [values[k] for k in ("max_rows", "max_pairs", "limit", "rows") if isinstance(values.get(k), int)]
    if limits:
        return int(min(limits))
    return sum(
        _file_rows(recipe, ref)
        for field, ref, mark in references(step)
        if mark.resource == "rows" and not field.startswith("benign")
    )


def _file_rows(recipe: Any, ref: str) -> int:
    if ref in recipe.steps:
        return 0
    try:
        path = open_resource(ref, ROWS, recipe.near).path
    except AloeError:
        return 0
    if path is None or not path.name.endswith((".jsonl", ".jsonl.gz")):
        return 0
    return _lines(path, path.stat().st_mtime_ns)


@cache
def _lines(path: Path, changed: int) -> int:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
        return sum(1 for _ in handle)


@cache
def _flops(precision: str) -> float:
    from aloe.models.load import DTYPES
    from aloe.models.speed import matmul_flops

    # The best of short looks: other work on the machine slows a long one down, and with it every estimate.
    return max(matmul_flops(0.02, DTYPES[precision]) for _ in range(20)) * SHARE
