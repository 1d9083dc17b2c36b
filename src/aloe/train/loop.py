"""The one training loop, for both objectives: rows in, weights changed in place, metrics written.

Batches are global and in the user's units (dialogues or pairs). A batch is packed into rows, each row is one forward
and backward pass, and the loss is divided by what the whole batch trains on, so neither how it was cut nor how many
processes shared it changes anything beyond rounding. On the CPU two runs give the same weights bit for bit, and so does
a run that was killed and taken up again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch

from aloe.contract import Context
from aloe.errors import AloeError
from aloe.train.checkpoints import Checkpoints, random_states, restore_random_states
from aloe.train.dimensions import attention_pairs, flops
from aloe.train.journal import Journal
from aloe.train.lora import Lora
from aloe.train.packing import Example, PackedRow, lengths_of, pack
from aloe.train.parallel import Team, bare
from aloe.train.schedule import Chunk, ScheduleName, chunks, lr_factor
from aloe.train.tracker import Tracker

METRICS, TIMING = "metrics.jsonl", "logs/timing.jsonl"
Gather = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Settings:
    """How to optimise. `batch` is global, in dialogues or pairs; `lr` absolute; `width` tokens in a packed row."""

    batch: int
    lr: float
    schedule: ScheduleName
    warmup_steps: int | None
    clip: float
    width: int
    multiple: int = 1  # positions a packed row is rounded up to
    chunks: int = 1  # parts trained one after the other, each with an optimiser and a schedule of its own


class Objective(Protocol):
    """What is minimised."""

    def weigh(self, batch: Sequence[Example]) -> int:
        """What the loss of a global batch is divided by."""
        ...

    def loss(self, row: PackedRow, logprobs: torch.Tensor, counted: bool = True) -> torch.Tensor:
        """Sum over the row. `counted` is False for a row that only keeps a process company: it adds to no figure."""
        ...

    def figures(self, gather: Gather) -> dict[str, float]:
        """Means of the step just done, over all processes."""
        ...

    def hopeless(self, metrics: Sequence[dict[str, float]]) -> str | None:
        """Why going on would be a waste, if it would."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as plain JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Watching(Protocol):
    """What looks on during training: validation, samples."""

    def before(self, steps: int, journal: Journal) -> None:
        """Called before the first step, unless a checkpoint was taken up."""
        ...

    def after(self, step: int, steps: int, journal: Journal) -> None:
        """Called after every step (numbered from 0) of `steps`; all processes call it."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What the loop did: one dict of figures a step, and totals over the run."""

    metrics: list[dict[str, float]]
    warmup: int
    padding: int
    resumed: list[int]
    chunk_steps: list[int]

    def total(self, name: str) -> int:
        """Sum of a figure over all steps."""
        return int(sum(m[name] for m in self.metrics))

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        rows, tokens, trained = (self.total(name) for name in ("rows", "tokens", "trained_tokens"))
        found: dict[str, Any] = {
            "steps": len(self.metrics),
            "warmup_steps": self.warmup,
            "rows_seen": rows,
            "tokens": tokens,
            "trained_tokens": trained,
            "padding_share": self.padding / (tokens + self.padding),
            "first_loss": self.metrics[0]["loss"],
            "last_loss": self.metrics[-1]["loss"],
            "budget": f"{rows:,} rows in {len(self.metrics):,} steps: {tokens:,} tokens, of which "
            f"{trained:,} ({trained / tokens:.0%}) trained",
        }
        if len(self.chunk_steps) > 1:
            found["chunks"] = self.chunk_steps
        if self.resumed:
            found["resumed_from"] = self.resumed
        return found


class Loop:
    """One run of training.

    Args:
        policy, optimizer: as `Team.prepare` gives them; weights are changed in place.
        order: positions of the run -> indices into `examples`.
        begin_chunk: told each chunk before its first step, unless a checkpoint from within it was taken up.
    """

    def __init__(
        self,
        ctx: Context,
        label: str,
        policy: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        examples: Sequence[Example],
        order: Sequence[int],
        objective: Objective,
        settings: Settings,
        *,
        team: Team | None = None,
        checkpoints: Checkpoints | None = None,
        watch: Watching | None = None,
        tracker: Tracker | None = None,
        lora: Lora | None = None,
        begin_chunk: Callable[[Chunk], None] = lambda chunk: None,
    ) -> None:
        self.ctx, self.label, self.settings, self.objective = ctx, label, settings, objective
        self.examples, self.order = examples, order
        self.tokens = lengths_of(examples)
        self.team = team or Team()
        self.journal = Journal(ctx.out, writes=self.team.is_main)
        self.checkpoints, self.watch, self.tracker = checkpoints, watch, tracker
        self.begin_chunk, self.lora = begin_chunk, lora
        self.policy, self.optimizer = policy, optimizer
        self.chunks = chunks(len(order), settings.batch, settings.chunks, settings.warmup_steps)
        self.steps = sum(c.steps for c in self.chunks)
        self.resumed: list[int] = []
        self.padding = 0

    def run(self) -> Outcome:
        """Train to the end, from the newest checkpoint if there is one.

        Writes `metrics.jsonl` (one line a step, the same on every run) and `logs/timing.jsonl` under `ctx.out`.

        Raises:
            AloeError: the loss or the gradient is NaN or infinite (the step and its rows are named), or the loss has
                become worse than knowing nothing.
        """
        s = self.settings
        for chunk in self.chunks:
            if chunk.warmup >= chunk.steps:
                self.ctx.log(f"warm-up of {chunk.warmup} steps covers all {chunk.steps}: lr never reaches {s.lr:g}")
                break
        first = self._take_up()
        if first == 0 and self.watch is not None:
            self.watch.before(self.steps, self.journal)
        with self.ctx.progress(self.label, len(self.order), "rows") as bar:
            bar.advance(sum(int(m["rows"]) for m in self.journal.lines(METRICS)))
            for chunk in self.chunks:
                for step, start, end in chunk.batches(s.batch, first):
                    if step == chunk.first_step:
                        self._begin(chunk)
                    self._step(chunk, step, self.order[start:end], bar)
                    if self.watch is not None:
                        self.watch.after(step, self.steps, self.journal)
                    if self.checkpoints is not None and step + 1 < self.steps and self.checkpoints.due(step + 1):
                        self.save(step + 1)
        self.policy.eval()
        metrics = self.journal.lines(METRICS)
        outcome = Outcome(metrics, self.chunks[0].warmup, self.padding, self.resumed, [c.steps for c in self.chunks])
        self.ctx.count_tokens(trained=outcome.total("trained_tokens"), processed=outcome.total("tokens"))
        return outcome

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after `step` steps."""
        assert self.checkpoints is not None
        state = {
            "journal": self.journal.state(),
            "objective": self.objective.state(),
            "random": random_states(),
            "padding": self.padding,
            "resumed": self.resumed,
        }
        self.checkpoints.write(step, self.team.shards(self.policy, self.optimizer), state)

    def _take_up(self) -> int:
        """The step to begin with."""
        found = self.checkpoints.latest() if self.checkpoints is not None else None
        if found is None:
            return 0
        self.team.restore(self.policy, self.optimizer, found.read)
        self.journal.restore(found.state["journal"])
        self.objective.restore(found.state["objective"])
        restore_random_states(found.state["random"])
        self.padding = found.state["padding"]
        self.resumed = [*found.state["resumed"], found.step]
        self.ctx.log(f"going on from the checkpoint after step {found.step} of {self.steps}")
        return found.step

    def _begin(self, chunk: Chunk) -> None:
        if chunk.index:
            self.optimizer.state.clear()
        self.begin_chunk(chunk)

    def _step(self, chunk: Chunk, step: int, batch: Sequence[int], bar: Any) -> None:
        s, began = self.settings, time.perf_counter()
        where = f"step {step}"
        packed = pack(self.examples, batch, s.width, _pad_id(self.policy), s.multiple)
        weight = self.objective.weigh([self.examples[i] for i in batch])
        self.padding += sum(p.padding for p in packed)
        passed = backward(self.team, self.policy, self.examples, packed, weight, self.objective, where, bar.advance)
        mark = time.perf_counter()
        norm = self.team.clip(self.policy, s.clip)
        if not math.isfinite(norm):
            raise diverged("gradient", norm, (self.examples[i].key for i in batch), where)
        lr = s.lr * lr_factor(step - chunk.first_step, chunk.steps, chunk.warmup, s.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        tokens = int(self.tokens[list(batch)].sum())
        trained = int(sum(self.examples[i].trained for i in batch))
        figures: dict[str, float] = {"step": step, "rows": len(batch), "loss": passed.loss, "lr": lr, "grad_norm": norm}
        figures |= {"tokens": tokens, "trained_tokens": trained, **self.objective.figures(self.team.gather)}
        self.journal.add(METRICS, figures)
        if self.tracker is not None:
            self.tracker.log(figures, step, "train")
        seconds = time.perf_counter() - began
        timing = {"step": step, "seconds": seconds, "tokens_s": tokens / seconds, "trained_tokens_s": trained / seconds}
        timing |= {"forward_s": passed.forward_s, "backward_s": passed.backward_s, "optimizer_s": now - mark}
        timing["flops"] = self._flops(packed, tokens, trained)
        timing["data_s"] = seconds - passed.forward_s - passed.backward_s - timing["optimizer_s"]
        self.journal.add(TIMING, timing)
        bar.advance(0, loss=round(passed.loss, 4), tokens_s=round(tokens / seconds, 1))
        why = self.objective.hopeless(self.journal.lines(METRICS))
        if why:
            raise AloeError(why, where=where, fix="lower lr, lengthen the warm-up, or look at the rows of these steps")

    def _flops(self, packed: Sequence[PackedRow], tokens: int, trained: int) -> float:
        """Floating-point operations of the step, over all processes."""
        pairs = sum(attention_pairs(row.layout) for row in packed)
        return flops(bare(self.policy).config, tokens, trained, pairs, self.lora)


@dataclass(frozen=True)
class Passed:
    """A global batch's mean loss, and this process's seconds in either pass (of launching, on a GPU)."""

    loss: float
    forward_s: float
    backward_s: float


def backward(
    team: Team,
    policy: torch.nn.Module,
    examples: Sequence[Example],
    packed: Sequence[PackedRow],
    weight: int,
    objective: Objective,
    where: str = "batch",
    done: Callable[[int], None] = lambda rows: None,
) -> Passed:
    """Add the gradient of the mean loss over the global batch in `packed` to the weights' `.grad`."""
    mine = team.share(packed)
    losses: list[torch.Tensor] = []
    forward_s = backward_s = 0.0
    for i, (row, factor) in enumerate(mine):
        with team.accumulate(policy, last=i == len(mine) - 1):
            began = time.perf_counter()
            loss = objective.loss(row, policy(row), counted=factor > 0) * (factor / weight)
            mark = time.perf_counter()
            team.backward(loss)
            forward_s, backward_s = forward_s + mark - began, backward_s + time.perf_counter() - mark
        losses.append(loss.detach())
        done(len(row.members) if team.world == 1 else 0)
    values = torch.stack(losses).tolist()  # one wait for the device a step, not one a row
    for (row, _), value in zip(mine, values, strict=True):
        if not math.isfinite(value):
            raise diverged("loss", value, (examples[i].key for i in row.members), where)
    if team.world > 1:
        done(sum(len(row.members) for row in packed))
    return Passed(team.sum({"loss": math.fsum(values)})["loss"], forward_s, backward_s)


def diverged(what: str, value: float, rows: Iterable[str], where: str) -> AloeError:
    """The error of a loss or gradient that is no number; names the first rows."""
    keys = list(rows)
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    return AloeError(
        f"the {what} is {value} on the rows {', '.join(keys[:8])}{more}",
        where=where,
        fix="look at those rows; if they are sound, lower lr or lengthen the warm-up",
    )


def _pad_id(policy: Any) -> int:
    pad = bare(policy).config.pad_token_id
    return pad if isinstance(pad, int) and pad >= 0 else 0
