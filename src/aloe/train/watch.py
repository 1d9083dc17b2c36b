"""Watching a run: loss on held-out rows, sample replies, and when to look at them.

Nothing here changes what is trained: no gradients, no random numbers, and the model's modes are put back. Several
processes share the held-out rows as they share a batch. What is seen goes into the run's journal, which a checkpoint
takes along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from aloe.models.chat import ChatTemplate
from aloe.records import Message
from aloe.train.logprobs import sequence_sums
from aloe.train.losses import TIE, LogRatios
from aloe.train.packing import Example, PackedRow, pack
from aloe.train.reference import Alone, Floats, Logprobs
from aloe.train.tracker import Tracker

Share = Callable[[Sequence[PackedRow]], list[tuple[PackedRow, float]]]
Sum = Callable[[Mapping[str, float]], dict[str, float]]
BLOCK = 1024  # held-out rows packed at a time
ALONE = Alone()
AT_MOST = 700.0  # nats from which exp() overflows


# -- validation loss ------------------------------------------------------------------------------------------------


class Held(Protocol):
    """What is measured: `sums` of a row, which add up over rows and processes, and the `figures` they make."""

    def sums(self, row: PackedRow, logprobs: torch.Tensor) -> dict[str, float]: ...

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]: ...


class TokenFigures:
    """For SFT: `loss` in nats a trained token, its `perplexity`, and the number of `tokens`."""

    def sums(self, row: PackedRow, logprobs: torch.Tensor) -> dict[str, float]:
        """Of the row's trained tokens."""
        return {"nats": -float(logprobs.double().sum()), "tokens": float(len(logprobs))}

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over tokens."""
        loss = sums["nats"] / sums["tokens"]
        return {"loss": loss, "perplexity": math.exp(min(loss, AT_MOST)), "tokens": sums["tokens"]}


class PairFigures:
    """For DPO, means over pairs: `loss`; `accuracy` (ties count half); `margin`, beta times the difference of the
    log-ratios; `chosen_drift`, the chosen answers' log-ratio in nats a token; and the number of `pairs`.

    Args:
        reference: [pairs, 2] summed log-probabilities of the held-out pairs, in their order.
        loss: [pairs] of the ratios and the chosen answers' own log-probabilities.
    """

    def __init__(self, reference: Floats, loss: Callable[[LogRatios, torch.Tensor], torch.Tensor], beta: float) -> None:
        self._reference, self._loss, self._beta = reference, loss, beta

    def sums(self, row: PackedRow, logprobs: torch.Tensor) -> dict[str, float]:
        """Of the row's pairs."""
        found = sequence_sums(row, logprobs).view(-1, 2).cpu()
        ratio = found - torch.from_numpy(self._reference[row.members])
        counts = torch.from_numpy(np.bincount(row.sequence, minlength=row.sequences)).double().view(-1, 2)
        loss = self._loss(LogRatios(*ratio.T, *counts.T), found[:, 0])
        delta = ratio[:, 0] - ratio[:, 1]
        right = torch.where(delta.abs() < TIE, 0.5, (delta > 0).double())
        return {
            "loss": float(loss.sum()),
            "accuracy": float(right.sum()),
            "margin": float(self._beta * delta.sum()),
            "chosen_drift": float((ratio[:, 0] / counts[:, 0]).sum()),
            "pairs": float(len(found)),
        }

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over pairs."""
        return {name: value if name == "pairs" else value / sums["pairs"] for name, value in sums.items()}


def validation_loss(
    policy: Logprobs,
    examples: Sequence[Example],
    held: Held,
    *,
    width: int,
    multiple: int = 1,
    share: Share = ALONE.share,
    sum: Sum = dict,
) -> dict[str, float]:
    """Figures on held-out rows, the same on every process, which all call this with the same rows.

    Args:
        policy: gives a packed row's log-probabilities [scored]; evaluated without gradients or dropout.
        width, multiple: as for `pack`.
        share: this process's rows with a factor, 0 for a filler that is run but not counted (`Team.share`).
        sum: adds up figures over processes (`Team.sum`).
    """
    totals: dict[str, float] = {}
    with torch.no_grad(), evaluating(policy):
        for start in range(0, len(examples), BLOCK):
            block = range(start, min(start + BLOCK, len(examples)))
            for row, factor in share(pack(examples, block, width, 0, multiple)):
                for name, value in held.sums(row, policy(row)).items():
                    totals[name] = totals.get(name, 0.0) + (value if factor else 0.0)
    return held.figures(sum(totals))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode (no dropout, no recomputation of layers) inside; each module's own mode is put back after."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    recomputed = [(m, m.gradient_checkpointing) for m in modules if hasattr(m, "gradient_checkpointing")]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for layer, flag in recomputed:
            layer.gradient_checkpointing = flag  # the policy switches it for each row


# -- sample replies -------------------------------------------------------------------------------------------------


def samples(
    model: Any,
    tokenizer: Any,
    template: ChatTemplate,
    prompts: Sequence[Sequence[Message] | Sequence[int]],
    max_new_tokens: int,
    *,
    bf16: bool = False,
    forward: Callable[..., Any] | None = None,
) -> list[dict[str, Any]]:
    """Greedy replies of a transformers causal LM in the midst of training, one dict {prompt, text, finish, tokens}.

    One prompt at a time, because padding changes the rounding and with it, now and then, a reply. `finish` is `stop`
    at the template's end of turn (or the tokenizer's end of sequence), else `length`. Where the model's layers are
    spread over processes, all of them call this.

    Args:
        prompts: messages, or the token ids up to where the reply begins (which the result shows as text).
        bf16: run under autocast, as training does.
        forward: called instead of `model`, with its arguments (where a wrapper must gather the weights first).
    """
    run = forward or model
    with torch.no_grad(), evaluating(model), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        return [_reply(run, model, tokenizer, template, prompt, max_new_tokens) for prompt in prompts]


def _reply(
    run: Callable[..., Any],
    model: Any,
    tokenizer: Any,
    template: ChatTemplate,
    prompt: Sequence[Message] | Sequence[int],
    max_new_tokens: int,
) -> dict[str, Any]:
    from transformers import DynamicCache

    messages = [dict(m) for m in prompt if not isinstance(m, int | np.integer)]
    asked = template.prompt_ids(messages) if messages else [int(i) for i in prompt]  # type: ignore[arg-type]
    window = getattr(model.config, "max_position_embeddings", None) or len(asked) + max_new_tokens
    end, cache, finish = list(template.end_of_turn), DynamicCache(config=model.config), "length"
    ids: list[int] = []
    feed = torch.tensor([asked], device=model.device)
    while len(ids) < min(max_new_tokens, window - len(asked)):
        logits = run(input_ids=feed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        ids.append(int(logits.argmax()))
        feed = torch.tensor([[ids[-1]]], device=model.device)
        if ids[-len(end) :] == end or ids[-1] == tokenizer.eos_token_id:
            finish = "stop"
            break
    closing = len(end) if ids[-len(end) :] == end else int(finish == "stop")
    text = tokenizer.decode(ids[: len(ids) - closing], clean_up_tokenization_spaces=False)
    shown = messages or tokenizer.decode(asked, clean_up_tokenization_spaces=False)
    return {"prompt": shown, "text": text, "finish": finish, "tokens": len(ids)}


# -- when --------------------------------------------------------------------------------------------------------------


class Records(Protocol):
    """Where lines go (`journal.Journal`)."""

    def add(self, name: str, line: Mapping[str, Any]) -> None: ...


class Watch:
    """Validation and samples at their times: before the first step, each `every` steps, and after the last.

    Every process calls `before` and `after`, each with its own journal. Lines name the number of steps done: 0 is the
    model before training. Figures that are no finite numbers, which JSON lacks, are written as null.

    Args:
        evaluate: gives the validation figures (`validation_loss`), or None.
        sample: gives sample replies (`samples`), or None.
    """

    def __init__(
        self,
        every: int,
        *,
        evaluate: Callable[[], dict[str, float]] | None = None,
        sample: Callable[[], list[dict[str, Any]]] | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self._every, self._evaluate, self._sample, self._tracker = every, evaluate, sample, tracker

    def due(self, done: int, steps: int) -> bool:
        """Whether to look when `done` of `steps` steps are."""
        asked = self._evaluate is not None or self._sample is not None
        return asked and (done % self._every == 0 or done == steps)

    def before(self, steps: int, journal: Records) -> None:
        """Look at the model as it is before training; not for a run that goes on from a checkpoint."""
        if self.due(0, steps):
            self.run(0, journal)

    def after(self, step: int, steps: int, journal: Records) -> None:
        """Look after step `step` (from 0) of `steps` if it is time."""
        if self.due(step + 1, steps):
            self.run(step + 1, journal)

    def run(self, done: int, journal: Records) -> dict[str, float]:
        """Look now; adds to `evals.jsonl` and `samples.jsonl` and returns the validation figures."""
        figures = self._evaluate() if self._evaluate else {}
        replies = self._sample() if self._sample else []
        if figures:
            finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
            journal.add("evals.jsonl", {"step": done, **finite})
        for reply in replies:
            journal.add("samples.jsonl", {"step": done, **reply})
        if figures and self._tracker:
            self._tracker.log(figures, done, "validation")
        return figures
