"""Watching a run: held-out rows, validation figures, sample replies and when they are due; nothing else is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aloe.generate.engine import Request, Sampling
from aloe.generate.local import LocalEngine
from aloe.models.load import load
from aloe.models.packed import Tree
from aloe.train.journal import Journal
from aloe.train.losses import sigmoid
from aloe.train.packing import Example, pack
from aloe.train.parallel import deal
from aloe.train.policy import Policy, prepare
from aloe.train.reference import pair_logprobs
from aloe.train.watch import PairFigures, TokenFigures, Watch, evaluating, samples, validation_loss


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, 384, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


DIALOGUES = [Example(f"d/{n}", Tree(ids(n, n)), [i > n // 2 for i in range(n)]) for n in range(6, 22)]
PAIRS = [
    Example(f"p/{n}", Tree(ids(n, n), [ids(5, 50 + n), ids(n, 90 + n)]), [False] * n + [True] * (n + 5))
    for n in range(4, 16)
]


@pytest.fixture(scope="module")
def policy(tiny_model_folder: Path) -> Policy:
    """As in training: layers recomputed, dropout that would show, and modes that differ from module to module."""
    policy = Policy(load(tiny_model_folder).model, recompute_above=0)
    prepare(policy.model)
    policy.model.base_model.embed_tokens.register_forward_hook(
        lambda module, args, out: torch.nn.functional.dropout(out, 0.5, module.training)
    )
    policy.model.base_model.layers[0].eval()
    return policy


def state(policy: Policy) -> Any:
    modes = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in policy.modules()]
    return modes, [p.grad for p in policy.parameters()], torch.get_rng_state().tolist()


# -- figures --------------------------------------------------------------------------------------------------------


def test_sft_figures_are_those_of_separate_rows(policy: Policy) -> None:
    policy(pack(DIALOGUES, [0], 64, 0)[0]).sum()  # leaves its layers to be recomputed, as a training step does
    before = state(policy)
    assert {flag for _, flag in before[0]} == {None, True}
    found = validation_loss(policy, DIALOGUES, TokenFigures(), width=64)
    assert state(policy) == before
    nats = 0.0
    modes = [m.training for m in policy.modules()]
    policy.eval()
    for e in DIALOGUES:
        with torch.no_grad():
            logp = policy.model(torch.tensor([e.tree.prefix])).logits[0].double().log_softmax(-1)
        nats -= sum(float(logp[i - 1, e.tree.prefix[i]]) for i, flag in enumerate(e.scored) if flag)
    for module, mode in zip(policy.modules(), modes, strict=True):
        module.training = mode
    tokens = sum(e.trained for e in DIALOGUES)
    assert found["loss"] == pytest.approx(nats / tokens, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["tokens"] == tokens
    assert validation_loss(policy, DIALOGUES, TokenFigures(), width=64) == found


def test_dpo_figures_by_hand(policy: Policy) -> None:
    """The reference is set so that the log-ratios of the four pairs are known: 2 and -1, 0 and 0, -3 and 1, 4 and 4."""
    rows, ratios = PAIRS[:4], np.array([[2.0, -1.0], [0.0, 0.0], [-3.0, 1.0], [4.0, 4.0]])
    with evaluating(policy):
        reference = pair_logprobs(policy, rows, width=64) - ratios
    figures = PairFigures(reference, lambda r, logp: sigmoid(r, 0.1), 0.1)
    found = validation_loss(policy, rows, figures, width=64)
    delta = ratios[:, 0] - ratios[:, 1]
    assert found["pairs"] == 4
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-0.1 * delta)).mean(), abs=1e-6)
    assert found["accuracy"] == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert found["margin"] == pytest.approx(0.1 * delta.mean(), abs=1e-6)
    assert found["chosen_drift"] == pytest.approx((ratios[:, 0] / 5).mean(), abs=1e-6)  # chosen answers have 5 tokens


@pytest.mark.parametrize("world", [2, 4, 5])
def test_processes_that_share_the_rows_find_the_same(policy: Policy, world: int) -> None:
    alone = validation_loss(policy, DIALOGUES, TokenFigures(), width=40)
    parts: list[dict[str, float]] = []
    passes = []
    for rank in range(world):
        ran = []

        def share(rows: Any, rank: int = rank, ran: list[int] = ran) -> Any:
            mine = deal([len(r.layout.ids) for r in rows], world)[rank]
            ran.append(len(mine))
            return [(rows[i], factor) for i, factor in mine]

        validation_loss(policy, DIALOGUES, TokenFigures(), width=40, share=share, sum=lambda s: parts.append(s) or s)
        passes.append(ran)
    total = {name: sum(p[name] for p in parts) for name in parts[0]}
    assert TokenFigures().figures(total) == pytest.approx(alone, rel=1e-12)
    assert all(ran == passes[0] for ran in passes)
    rows = len(pack(DIALOGUES, range(len(DIALOGUES)), 40, 0))
    assert passes[0] == [-(-rows // world)]  # fillers included


def test_a_perplexity_beyond_all_numbers_stays_a_number() -> None:
    assert math.isfinite(TokenFigures().figures({"nats": 1e6, "tokens": 2.0})["perplexity"])


# -- samples --------------------------------------------------------------------------------------------------------

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("A headache?", "Which option is right about a fever?", "é🙂")
]


def test_replies_are_the_greedy_ones_and_leave_no_trace(policy: Policy, tiny_model_folder: Path) -> None:
    loaded = load(tiny_model_folder)
    before = state(policy)
    found = samples(policy.model, loaded.tokenizer, loaded.template, PROMPTS, 12)
    assert state(policy) == before
    engine = LocalEngine(loaded, "tiny", "digest", max_batch=1)
    requests = [
        Request(key=str(i), messages=p, seed=0, sampling=Sampling(temperature=0.0, max_new_tokens=12))
        for i, p in enumerate(PROMPTS)
    ]
    replies = engine.generate(requests)
    assert [f["tokens"] for f in found] == [r.completion_tokens for r in replies]
    for one, prompt in zip(found, PROMPTS, strict=True):
        written = loaded.template.prompt_ids(prompt)
        start = len(written)
        for _ in range(one["tokens"]):  # without a cache, one whole pass a token
            with torch.no_grad():
                written.append(int(loaded.model(torch.tensor([written])).logits[0, -1].argmax()))
        assert one["text"] == loaded.tokenizer.decode(written[start:])
        assert one["finish"] == "length"
        assert one["prompt"] == prompt


class Scripted:
    """A model that writes given ids, whatever it is asked."""

    def __init__(self, tokens: list[int], positions: int = 2048) -> None:
        self.tokens, self.device = list(tokens), torch.device("cpu")
        from transformers import LlamaConfig

        self.config = LlamaConfig(num_hidden_layers=1, max_position_embeddings=positions)

    def __call__(self, **given: Any) -> Any:
        logits = torch.zeros(1, 1, 400)
        logits[0, 0, self.tokens.pop(0)] = 1
        return type("Out", (), {"logits": logits})


def test_a_reply_ends_with_its_turn_or_where_the_window_does(tiny_model_folder: Path) -> None:
    loaded = load(tiny_model_folder)
    said = loaded.template.completion_ids("Rest.")
    (reply,) = samples(Scripted([*said, 5, 5, 5]), loaded.tokenizer, loaded.template, PROMPTS[:1], 50)
    assert reply == {"prompt": PROMPTS[0], "text": "Rest.", "finish": "stop", "tokens": len(said)}
    asked = len(loaded.template.prompt_ids(PROMPTS[0]))
    (cut,) = samples(Scripted([5] * 9, asked + 2), loaded.tokenizer, loaded.template, PROMPTS[:1], 9)
    assert (cut["finish"], cut["tokens"]) == ("length", 2)
    (full,) = samples(Scripted([], asked), loaded.tokenizer, loaded.template, PROMPTS[:1], 9)
    assert (full["text"], full["tokens"]) == ("", 0)


def test_a_prompt_may_be_given_as_tokens(policy: Policy, tiny_model_folder: Path) -> None:
    loaded = load(tiny_model_folder)
    tokens = [np.array(loaded.template.prompt_ids(p)) for p in PROMPTS]
    found = samples(policy.model, loaded.tokenizer, loaded.template, tokens, 4)
    asked = samples(policy.model, loaded.tokenizer, loaded.template, PROMPTS, 4)
    assert [f["text"] for f in found] == [a["text"] for a in asked]
    assert found[2]["prompt"] == "<|im_start|>user\né🙂<|im_end|>\n<|im_start|>assistant\n"


# -- when -----------------------------------------------------------------------------------------------------------


def test_due_before_between_and_after() -> None:
    watch = Watch(4, evaluate=dict)
    assert [step for step in range(11) if watch.due(step, 10)] == [0, 4, 8, 10]
    assert not Watch(4).due(4, 10)


def test_a_resumed_run_leaves_the_lines_of_an_uninterrupted_one(tmp_path: Path) -> None:
    at = [0]

    def loop(journal: Journal, first: int, last: int) -> None:
        watch = Watch(
            2, evaluate=lambda: {"loss": 1 / at[0] if at[0] else math.inf}, sample=lambda: [{"text": f"é {at[0]}"}]
        )
        at[0] = first
        if first == 0:
            watch.before(7, journal)
        for step in range(first, last):
            at[0] = step + 1
            watch.after(step, 7, journal)

    loop(Journal(tmp_path / "whole"), 0, 7)
    loop(journal := Journal(tmp_path / "killed"), 0, 4)
    checkpoint = json.loads(json.dumps(journal.state()))
    loop(journal, 4, 6)
    journal = Journal(tmp_path / "resumed")
    journal.restore(checkpoint)
    loop(journal, 4, 7)
    for name in ("evals.jsonl", "samples.jsonl"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    evals = [json.loads(line) for line in (tmp_path / "whole" / "evals.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evals] == [0, 2, 4, 6, 7]
    assert evals[0]["loss"] is None


def test_the_tracker_gets_the_validation_figures() -> None:
    told: list[Any] = []

    class Told:
        def log(self, figures: Any, step: int, group: str) -> None:
            told.append((figures, step, group))

    Watch(1, evaluate=lambda: {"loss": 1.0}, tracker=Told()).after(2, 9, Journal(Path("."), writes=False))  # type: ignore[arg-type]
    assert told == [({"loss": 1.0}, 3, "validation")]
