"""Training in two processes as a user starts it: what comes out, what a kill leaves to go on from, what errors say."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from aloe.errors import AloeError
from aloe.keyed import rng
from aloe.recipe import Recipe
from aloe.rows import write_jsonl
from aloe.run.execute import run_recipe
from aloe.run.launch import launch
from aloe.run.plan import open_resources, plan_step
from aloe.run.progress import Console
from aloe.run.store import Store

WORDS = ("rest", "water", "a stiff neck", "fever", "the doctor", "Yes.", "No.", "urgent care", "which option", "time")
SHARED = "max_tokens: 512, warmup_steps: 2"
SFT = f"base: model, data: sft.jsonl, batch_rows: 6, lr: 1e-3, {SHARED}"
DPO = f"model: model, pairs: dpo.jsonl, batch_pairs: 6, epochs: 1.6, {SHARED}, chunks: 2, chunk_reference: chunk"
ONE_STEP = f"batch_rows: 40, epochs: 1, precision: float32, {SHARED}"
LOOK = "hold_out: 0.2, evaluate_every: 3, samples: 2, sample_tokens: 8"
RECIPE = f"""\
family: tiny
seed: 7
licence: cc-by-nc-4.0
hardware: {{row_tokens: 64, checkpoint_steps: 3}}
steps:
  tuned:
    sft: {{{SFT}, epochs: 1.6, precision: float32, {LOOK}}}
  aligned:
    dpo: {{{DPO}, lr: 1e-2, lora: {{rank: 4}}, {LOOK}}}
  taken_up:
    dpo: {{{DPO}, lr: 1e-3}}
  killed:
    sft: {{{SFT}, epochs: 6, precision: bf16_stochastic}}
  infinite:
    sft: {{base: overflowing, data: overflowing.jsonl, {ONE_STEP}}}
  unreadable:
    sft: {{base: model, data: unreadable.jsonl, {ONE_STEP}}}
"""
TIMES = {"finished", "wall_seconds", "peak_memory_bytes", "ranks", "code"}  # what the run was, not what it made
BYTES = {"files", "content_digest", "manifest_digest"}  # of weights that agree to rounding only
STOCHASTIC = 4e-3  # of a tensor's norm: a bf16 gradient summed otherwise turns some roundings of a bf16 weight
NO_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (extra `deepspeed`)"
)


def two(strategy: str) -> str:
    """The recipe's `launch` for two processes."""
    return f"launch={{processes: 2, strategy: {strategy}}}"


@pytest.fixture(scope="module", autouse=True)
def _surroundings() -> Iterator[None]:
    """One thread for each of the processes, and no GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, rows and the recipe."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(tiny_model_folder, folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    dialogues, pairs = [], []
    for i in range(40):
        draw = rng(1, "rows", i)
        question, answer, other = (" ".join(draw.choice(WORDS, int(draw.integers(1, 8)))) for _ in range(3))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        dialogues.append({"id": f"d{i}", "messages": turns})
        pairs.append({"id": f"p{i}", "prompt": question, "chosen": answer, "rejected": f"{other}!"})
    write_jsonl(folder / "sft.jsonl", dialogues)
    write_jsonl(folder / "dpo.jsonl", pairs)
    long = {7: "water " * 60, 11: "water Z " * 40}  # the second longest row is the second rank's
    with_z = [
        row | {"messages": [row["messages"][0], {"role": "assistant", "content": long[i]}]} if i in long else row
        for i, row in enumerate(dialogues)
    ]
    write_jsonl(folder / "overflowing.jsonl", with_z)
    infinite_after_z(folder / "model", folder / "overflowing")
    dialogues[11] = dialogues[11] | {"messages": dialogues[11]["messages"][:1]}
    write_jsonl(folder / "unreadable.jsonl", dialogues)
    return folder


def infinite_after_z(model: Path, made: Path) -> None:
    """A copy of the model whose logits overflow right behind a "Z" and nowhere else, though each weight is finite.

    One dimension of the residual stream is set by "Z" alone, no layer writes to it, and one token's (tied) head row
    multiplies it by nearly the largest float32."""
    from transformers import AutoTokenizer

    shutil.copytree(model, made)
    tokenizer, weights = AutoTokenizer.from_pretrained(model), load_file(model / "model.safetensors")
    embedding, dimension = weights["model.embed_tokens.weight"], 5
    embedding[:, dimension] = 0
    embedding[tokenizer.convert_tokens_to_ids("Z"), dimension] = 1
    embedding[tokenizer.convert_tokens_to_ids("Q"), dimension] = 3e38
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[dimension] = 0
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def alone(root: Path) -> Path:
    """What one process makes of the steps."""
    recipe = Recipe.load(root / "recipe.yaml")
    steps = ["tuned", "aligned", "taken_up", "killed"]
    return run_recipe(recipe, out=root / "alone", steps=steps, console=Console(quiet=True)).root


def aloe(root: Path, out: str, steps: list[str], *sets: str) -> list[str]:
    """`aloe run` as a command line."""
    command = [sys.executable, "-m", "aloe", "run", str(root / "recipe.yaml"), *steps, "--out", str(root / out)]
    return command + [text for assignment in sets for text in ("--set", assignment)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def manifest(artifact: Path, leave_out: set[str] = TIMES | BYTES) -> dict[str, Any]:
    """The manifest without what differs from run to run, and without the memory plan, which is that of a launch."""
    found: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    found["summary"].pop("memory")
    return {name: value for name, value in found.items() if name not in leave_out}


def same(one: Any, other: Any, relative: float, where: str = "") -> None:
    """Equal, floats to `relative` (log-ratios near zero are small differences of large sums: to 1e-5 nats)."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            same(one[name], other[name], relative, f"{where}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, relative, f"{where}[{i}]")
    elif isinstance(one, float):
        assert math.isclose(one, other, rel_tol=relative, abs_tol=1e-5), f"{where}: {one} and {other}"
    else:
        assert one == other, where


def weights(artifact: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_file(artifact / file).items()}


def apart(one: Path, other: Path, file: str = "model.safetensors") -> float:
    """Largest difference of a tensor, relative to its norm."""
    a, b = weights(one, file), weights(other, file)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / a[name].norm()) for name in a)


def same_run(one: Path, other: Path) -> None:
    """Both made the same of the same steps, up to the order of float additions."""
    first, second = lines(one / "metrics.jsonl"), lines(other / "metrics.jsonl")
    assert [m["step"] for m in second] == list(range(len(first)))
    same(first, second, 1e-4, "metrics")
    for name in ("evals.jsonl", "samples.jsonl"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            same(lines(one / name), lines(other / name), 1e-4, name)
    assert apart(one, other) < 1e-4
    start = weights(one.parents[2] / "model")
    assert max(float((start[n] - t).norm() / t.norm()) for n, t in weights(one).items()) > 1e-2  # something was learnt


def fingerprints(root: Path, *sets: str) -> dict[str, Any]:
    recipe = Recipe.load(root / "recipe.yaml", list(sets))
    resources = open_resources(recipe, recipe.order)
    return {n: plan_step(recipe, Store(root / "none"), n, resources, {}).fingerprint for n in ("tuned", "aligned")}


def nothing_is_left(root: Path, out: str) -> None:
    assert not list((root / out / "tiny" / ".store").glob("tmp-*"))
    assert not list((root / out / "tiny" / ".cache" / "train").glob("*"))


# -- the same result ------------------------------------------------------------------------------------------------


def test_sft_in_two_copies_behind_a_process_of_its_own(root: Path, alone: Path) -> None:
    """`via: process` starts `aloe run` for the step, that starts torchrun. Held-out rows and samples are shared."""
    more = "launch={via: process, processes: 2, strategy: ddp}"
    recipe = Recipe.load(root / "recipe.yaml", [more])
    made = launch(recipe, out=root / "ddp", steps=["tuned"], overrides=[more], console=Console(quiet=True))
    assert made.made == ["tuned"]
    artifact = made.artifacts["tuned"].path
    same_run(alone / "tuned", artifact)
    same(manifest(alone / "tuned"), manifest(artifact), 1e-4)
    ranks = json.loads((artifact / "manifest.json").read_text())["ranks"]
    assert (ranks["processes"], ranks["strategy"], len(ranks["peak_memory_bytes"])) == (2, "ddp", 2)
    nothing_is_left(root, "ddp")


def test_dpo_of_adapters_in_two_shards(root: Path, alone: Path) -> None:
    """The first chunk's reference is the sharded model with its adapters off, the second's the model as it is then."""
    subprocess.run(aloe(root, "fsdp2", ["aligned"], two("fsdp2")), check=True, capture_output=True)
    artifact = root / "fsdp2" / "tiny" / "aligned"
    same_run(alone / "aligned", artifact)
    same(manifest(alone / "aligned"), manifest(artifact), 1e-4)
    adapter = "adapter/adapter_model.safetensors"
    assert apart(alone / "aligned", artifact, adapter) < 1e-4
    nothing_is_left(root, "fsdp2")
    # A plain folder, and fresh for a recipe with another launch.
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(artifact, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert next(model.parameters()).dtype == torch.float32
    recipe = Recipe.load(root / "recipe.yaml")
    again = run_recipe(recipe, out=root / "fsdp2", steps=["aligned"], console=Console(quiet=True))
    assert again.made == []
    assert fingerprints(root) == fingerprints(root, two("ddp"))
    assert None not in fingerprints(root).values()


@NO_DEEPSPEED
@pytest.mark.parametrize("step", ["tuned", "aligned", "taken_up"])
def test_deepspeed(step: str, root: Path, alone: Path) -> None:
    subprocess.run(aloe(root, "zero3", [step], two("zero3")), check=True, capture_output=True)
    same_run(alone / step, root / "zero3" / "tiny" / step)
    same(manifest(alone / step), manifest(root / "zero3" / "tiny" / step), 1e-4)


# -- going on with another number of processes ------------------------------------------------------------------------


class Interrupting(Console):
    """Presses ctrl-C when the training bar has advanced by so many rows."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
        self.left = after

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Any]:
        yield self if label.endswith(": dpo") else _Nothing()

    def advance(self, count: int = 1, **figures: Any) -> None:
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


class _Nothing:
    def advance(self, count: int = 1, **figures: Any) -> None:
        return


def test_interrupted_alone_and_taken_up_by_two(root: Path, alone: Path) -> None:
    recipe = Recipe.load(root / "recipe.yaml")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, out=root / "one-two", steps=["taken_up"], console=Interrupting(after=50))
    recipe = Recipe.load(root / "recipe.yaml", [two("ddp")])
    made = run_recipe(recipe, out=root / "one-two", steps=["taken_up"], console=Console(quiet=True))
    artifact = made.artifacts["taken_up"].path
    same_run(alone / "taken_up", artifact)
    theirs = manifest(artifact)
    assert theirs["summary"].pop("resumed_from") == [9]  # in the second chunk, whose reference the checkpoint holds
    same(manifest(alone / "taken_up"), theirs, 1e-4)
    nothing_is_left(root, "one-two")


def test_killed_in_two_and_taken_up_alone(root: Path, alone: Path) -> None:
    """kill -9 of the run's whole process group. The ranks are in another one, and end by themselves."""
    cache = root / "two-one" / "tiny" / ".cache" / "train"
    command = aloe(root, "two-one", ["killed"], two("fsdp2"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(cache.glob("*/step-*")):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(below) == 3  # torchrun's agent and two ranks
    assert psutil.wait_procs(below, timeout=30)[1] == []
    recipe = Recipe.load(root / "recipe.yaml")
    made = run_recipe(recipe, out=root / "two-one", steps=["killed"], console=Console(quiet=True))
    artifact = made.artifacts["killed"].path
    (resumed,) = json.loads((artifact / "manifest.json").read_text())["summary"]["resumed_from"]
    first, second = (lines(a / "metrics.jsonl") for a in (alone / "killed", artifact))
    assert resumed in range(3, len(first), 3)
    assert [m["step"] for m in second] == list(range(len(first)))
    exact = ("rows", "tokens", "trained_tokens", "lr")  # the same batches
    same([{name: m[name] for name in exact} for m in first], [{name: m[name] for name in exact} for m in second], 1e-9)
    same([m["loss"] for m in first], [m["loss"] for m in second], 2e-3, "loss")
    assert apart(alone / "killed", artifact) < STOCHASTIC
    norms = torch.tensor([m["grad_norm"] for m in second])
    assert not torch.equal(norms, norms.bfloat16().float())  # of bf16 gradients, but not rounded to bf16 itself
    nothing_is_left(root, "two-one")


@pytest.mark.parametrize(("before", "after"), [(two("fsdp2"), ""), ("", two("fsdp2"))])
def test_a_run_goes_on_with_another_number_of_processes(root: Path, alone: Path, before: str, after: str) -> None:
    """Stopped in two shards and taken up alone, and the other way round: equal to 1e-5 to a run that never stopped."""
    out = f"elastic-{bool(before):d}"
    first = Recipe.load(root / "recipe.yaml", [before] if before else [])
    with pytest.raises(KeyboardInterrupt):
        run_recipe(first, out=root / out, steps=["taken_up"], console=Interrupting(after=50))
    second = Recipe.load(root / "recipe.yaml", [after] if after else [])
    made = run_recipe(second, out=root / out, steps=["taken_up"], console=Console(quiet=True))
    artifact = made.artifacts["taken_up"].path
    summary = json.loads((artifact / "manifest.json").read_text())["summary"]
    (resumed,) = summary["resumed_from"]
    assert resumed % 3 == 0
    assert resumed > 0
    assert apart(alone / "taken_up", artifact) < 1e-5
    losses = [[m["loss"] for m in lines(a / "metrics.jsonl")] for a in (alone / "taken_up", artifact)]
    same(*losses, 1e-5, "loss")
    nothing_is_left(root, out)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "strategy", "what", "where"),
    [
        ("infinite", "fsdp2", "the loss is inf on the rows d11", "step 0"),
        ("unreadable", "ddp", "no assistant turn to train on", "unreadable.jsonl:12"),
    ],
)
def test_an_error_in_a_rank_names_the_row_and_ends_the_other(
    step: str, strategy: str, what: str, where: str, root: Path
) -> None:
    """In the second rank, a loss that overflows; in the first, a row that can't be tokenised, while the second waits
    for the tokens."""
    recipe, began = Recipe.load(root / "recipe.yaml", [two(strategy)]), time.monotonic()
    with pytest.raises(AloeError) as caught:
        run_recipe(recipe, out=root / step, steps=[step], console=Console(quiet=True))
    assert caught.value.what == what
    assert str(caught.value.where).endswith(where)
    assert time.monotonic() - began < 90
    nothing_is_left(root, step)
