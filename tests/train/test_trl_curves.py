"""Our SFT and DPO loss curves are TRL's: same rows, order and hyper-parameters, float32, 30 steps, to 1e-4.

`golden_trl.json` holds what TRL did (`trl_curves.py`, run by the peer's Python); where the peer is installed, it is
made anew and compared as well. Not compared: cDPO, which TRL hasn't had since 0.29 (it ignores label smoothing in
`sigmoid`); its golden value stands in test_losses.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl_curves
from transformers import AutoModelForCausalLM

from aloe.models.load import load_template
from aloe.train.loop import Loop, Settings
from aloe.train.lora import Lora, attach
from aloe.train.losses import preference_loss
from aloe.train.masks import dialogue_example, preference_example
from aloe.train.objectives import PairLoss, TokenLoss
from aloe.train.optim import adamw
from aloe.train.packing import Example, TextRow
from aloe.train.policy import Policy, prepare
from aloe.train.reference import pair_logprobs

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden_trl.json").read_text(encoding="utf-8"))
PEERS = Path(os.environ.get("ALOE_PEERS", Path.home() / ".cache" / "aloe-peers"))
TOLERANCE = 1e-4
LIVE = ("sft constant", "sft cosine, warm-up", "dpo sigmoid + nll")  # all of them take half a minute
WIDTH = 384  # tokens in a packed row: several rows and pairs in one, where TRL pads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trl") / "model"
    assert trl_curves.write_model(place) == GOLDEN["weights"]
    return place


@pytest.fixture(scope="module")
def examples(folder: Path) -> dict[str, list[Example]]:
    _, template = load_template(folder)
    return {
        "sft": [
            dialogue_example(template, TextRow(f"row {i}", "rows", "cc0-1.0", messages))  # type: ignore[arg-type]
            for i, messages in enumerate(trl_curves.dialogues())
        ],
        "dpo": [
            preference_example(
                template, TextRow(f"pair {i}", "pairs", "cc0-1.0", p["prompt"], p["chosen"], p["rejected"])
            )
            for i, p in enumerate(trl_curves.pairs())
        ],
    }  # fmt: skip


def curve(ctx: Any, folder: Path, rows: list[Example], hyper: dict[str, Any]) -> list[dict[str, float]]:
    """Figures of every step of our loop, in the order TRL took: from the first row to the last, then again."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    if hyper["lora"]:
        adapt(model)
    policy = Policy(model, even=hyper["trainer"] == "sft")
    objective: Any = TokenLoss()
    if hyper["trainer"] == "dpo":
        loss = partial(
            _pair_loss, hyper["loss"], hyper["beta"], label_smoothing=hyper["smoothing"], alpha_nll=hyper["alpha_nll"]
        )
        objective = PairLoss(pair_logprobs(policy, rows, width=WIDTH), loss, hyper["beta"], ctx.log)
    prepare(model)
    optimizer = adamw(model.named_parameters(), lr=hyper["lr"], weight_decay=hyper["decay"], betas=(0.9, 0.999))
    settings = Settings(
        batch=trl_curves.BATCH,
        lr=hyper["lr"],
        schedule=hyper["schedule"],
        warmup_steps=hyper["warmup"],
        clip=hyper["clip"],
        width=WIDTH,
    )
    order = [i % len(rows) for i in range(trl_curves.STEPS * trl_curves.BATCH)]
    return Loop(ctx, hyper["trainer"], policy, optimizer, rows, order, objective, settings).run().metrics


def adapt(model: Any) -> None:
    """Our adapters with the peer's A, which it drew by the name that peft's wrapper gives the weight."""
    config = trl_curves.LORA
    attach(model, Lora(rank=config["r"], alpha=config["lora_alpha"], targets=config["target_modules"]), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                values = trl_curves.lora_a(f"base_model.model.{name}", weight.numel())
                weight.copy_(torch.from_numpy(values).view_as(weight))


def _pair_loss(name: Any, beta: float, ratios: Any, chosen_logp: torch.Tensor, **more: float) -> torch.Tensor:
    return preference_loss(name, ratios, beta=beta, chosen_logp=chosen_logp, **more)


def test_rows_and_masks_are_those_that_trl_makes_of_the_same_text(examples: dict[str, list[Example]]) -> None:
    theirs = GOLDEN["rows"]["sft"]
    assert len(examples["sft"]) == len(theirs["input_ids"]) == trl_curves.ROWS
    for ours, ids, labels in zip(examples["sft"], theirs["input_ids"], theirs["labels"], strict=True):
        n = len(ours.tree.prefix)
        assert list(ours.tree.prefix) == ids[:n]
        assert labels[n:] == [-100] * (len(ids) - n)  # the newline after the last turn: ours leaves it off
        assert [label != -100 for label in labels[:n]] == list(ours.scored)
    theirs = GOLDEN["rows"]["dpo"]
    for i, pair in enumerate(examples["dpo"]):
        assert list(pair.tree.prefix) == theirs["prompt_ids"][i]
        assert [list(b) for b in pair.tree.branches] == [theirs["chosen_ids"][i], theirs["rejected_ids"][i]]


def test_cases_are_the_ones_stored() -> None:
    """An edited case without a new run of the peer would compare two different trainings."""
    assert {name: found["hyper"] for name, found in GOLDEN["cases"].items()} == {
        name: json.loads(json.dumps(trl_curves.case(name))) for name in trl_curves.CASES
    }


@pytest.mark.parametrize("name", trl_curves.CASES)
def test_curve_is_trls(name: str, folder: Path, examples: dict[str, list[Example]], make_context: Any) -> None:
    stored = GOLDEN["cases"][name]
    ours = curve(make_context(), folder, examples[stored["hyper"]["trainer"]], stored["hyper"])
    theirs = stored["steps"]
    assert len(theirs["loss"]) == trl_curves.STEPS
    _agrees(ours, theirs, "loss", "loss")
    if stored["hyper"]["trainer"] == "dpo":
        # A reward is beta times a difference of two sums of hundreds of nats, which TRL holds in float32.
        within = TOLERANCE * max(1.0, stored["hyper"]["beta"])
        rewards = {
            "reward_chosen": "rewards/chosen",
            "reward_rejected": "rewards/rejected",
            "margin": "rewards/margins",
        }
        for mine, peer in rewards.items():
            _agrees(ours, theirs, mine, peer, within)
    np.testing.assert_allclose([s["lr"] for s in ours], theirs["learning_rate"], rtol=1e-12)
    np.testing.assert_allclose([s["grad_norm"] for s in ours], theirs["grad_norm"], rtol=2e-3, atol=1e-4)
    learnt = max(theirs["loss"]) - min(theirs["loss"])
    assert learnt > 1000 * TOLERANCE, "a curve that hardly moves proves nothing"


def _agrees(
    ours: list[dict[str, float]], theirs: dict[str, list[float]], mine: str, peer: str, within: float = TOLERANCE
) -> None:
    difference = np.abs(np.array([s[mine] for s in ours]) - np.array(theirs[peer]))
    assert difference.max() <= within, f"{mine}: {difference.max():.2e} apart at step {difference.argmax()}"


@pytest.mark.skipif(not (PEERS / "trl" / ".ready").exists(), reason="no peer: sh benchmarks/peers.sh trl")
def test_peer_gives_the_stored_curves_again(tmp_path: Path) -> None:
    out = tmp_path / "curves.json"
    python = PEERS / "trl" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    script = Path(trl_curves.__file__)
    done = subprocess.run(
        [python, script, out, *LIVE],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    live = json.loads(out.read_text(encoding="utf-8"))
    assert live["weights"] == GOLDEN["weights"]
    assert live["rows"] == GOLDEN["rows"]
    assert set(live["cases"]) == set(LIVE)
    for name, found in live["cases"].items():
        stored = GOLDEN["cases"][name]["steps"]["loss"]
        np.testing.assert_allclose(found["steps"]["loss"], stored, atol=TOLERANCE, rtol=0, err_msg=name)
