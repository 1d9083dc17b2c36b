"""What both training steps do around the loop: rows, memory plan, model, checkpoints, watching, and the folder made."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aloe.contract import Context
from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.models.load import DTYPES, Loaded, load, load_template
from aloe.models.weights_digest import digest_model
from aloe.train import memory
from aloe.train.attention import pick
from aloe.train.checkpoints import Checkpoints
from aloe.train.dimensions import recompute_above
from aloe.train.gather import Read, Rows, budget_line, gather
from aloe.train.logprobs import BF16_TOLERANCE, TOLERANCE, prove_exact, shortest_logprobs
from aloe.train.loop import TIMING, Loop, Objective, Outcome, Settings
from aloe.train.lora import attach, fold, save_adapter
from aloe.train.masks import preview, preview_ansi, preview_json
from aloe.train.optim import StochasticAdamW, adamw
from aloe.train.packing import Example, pack
from aloe.train.parallel import Team
from aloe.train.policy import Policy, Precision, prepare
from aloe.train.rendering import Builder
from aloe.train.schedule import Chunk
from aloe.train.settings import Training
from aloe.train.sharded import whole_gradient_bytes
from aloe.train.tracker import Tracker
from aloe.train.watch import Watch, samples
from aloe.train.written import performance, write_model

CPU_WIDTH = 1024  # tokens of a packed row: wider ones gain a few per cent and cost memory, narrower ones lose more
CPU_ACTIVATIONS = 0.25  # of the memory there is, the most that a row's kept layers may take; less where less is left
CUDA_ACTIVATIONS = 0.35


@dataclass
class Stage:
    """One run of a training step, up to the loop and from it.

    Args:
        model: reference to the model to start from; `template`: whose chat template is used, if not its own.
        data: reference -> share of the rows.
        read, builder: of the rows' kind.
        branches: whether rows have branches (pairs).
    """

    ctx: Context
    step: Training
    model: str
    template: str | None
    data: dict[str, float]
    max_rows: int | None
    read: Read
    builder: type[Builder]
    batch: int
    branches: bool
    chunks: int = 1
    team: Team = field(init=False)
    rows: Rows = field(init=False)
    held: Rows | None = field(init=False, default=None)
    loaded: Loaded = field(init=False)
    policy: Policy = field(init=False)

    # -- before the loop ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read and check everything that costs little, then load the model."""
        from transformers import AutoConfig

        ctx, step = self.ctx, self.step
        step.check()
        self.team = Team.join()
        folder = ctx.path(self.model)
        if step.precision == "bf16_stochastic" and self.team.strategy == "zero3":
            raise AloeError(
                "DeepSpeed keeps float32 weights of its own, so there is nothing to round",
                where="precision",
                fix="use launch.strategy fsdp2, or precision bf16_autocast",
            )
        template_from = ctx.path(self.template) if self.template else None
        _, template = load_template(template_from or folder)
        config = AutoConfig.from_pretrained(folder)
        self.limit = min(step.max_tokens, getattr(config, "max_position_embeddings", None) or step.max_tokens)
        common: dict[str, Any] = {
            "verb": step.verb,
            "template_digest": template.digest,
            "max_tokens": self.limit,
            "max_dropped": step.max_dropped,
            "overlong": step.overlong,
            "hold_out": step.hold_out,
            "is_main": self.team.is_main,
            "barrier": self.team.barrier,
        }
        build = self.builder(template)
        self.rows = gather(ctx, self.data, self.read, build, max_rows=self.max_rows, epochs=step.epochs, **common)
        if step.hold_out:
            self.held = gather(ctx, self.data, self.read, build, max_rows=None, epochs=1, held=True, **common)
        cuda = self.team.device.type == "cuda"
        self.multiple = 8 if cuda else 1
        self.width = ctx.hardware.row_tokens or (self.limit if cuda else CPU_WIDTH)
        self.attention = pick(
            self.team.device, branches=self.branches, bf16=step.precision != "float32", asked=ctx.hardware.attention
        )
        self.plan = self._plan_memory(folder, config)
        budget = self.rows.budget(self.batch, self.width, self.multiple)
        ctx.log(budget_line(budget))
        self._load(folder, template_from)

    def _plan_memory(self, folder: Path, config: Any) -> memory.MemoryPlan:
        """Print what training will need, and refuse what can't fit before anything is loaded."""
        ctx, step, team = self.ctx, self.step, self.team
        self.available = memory.available_memory(team.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        share = CUDA_ACTIVATIONS if team.device.type == "cuda" else CPU_ACTIVATIONS
        longest = int(self.rows.examples.tokens.max())
        plan = memory.plan(
            folder,
            width=min(max(self.width, longest), self.batch * longest),
            precision=step.precision,
            lora=step.lora,
            strategy=team.strategy,
            processes=team.world,
            attention=self.attention,
            device=team.device.type,
            whole_gradients=whole_gradient_bytes(team.device) if team.strategy == "fsdp2" else 0,
        )
        room = min(int(share * self.available), plan.room(self.available))  # beside weights, gradients and moments
        budget = {"auto": room, "always": 0, "never": None}[ctx.hardware.recompute]
        plan = replace(plan, budget=budget)
        ctx.log(plan.headline())
        if team.is_main:
            (ctx.out / "logs").mkdir(exist_ok=True)
            (ctx.out / "logs" / "memory.txt").write_text(plan.table(self.available) + "\n", encoding="utf-8")
        if ctx.hardware.memory == "refuse":
            plan.refuse(self.available)
        elif not plan.fits(self.available):
            ctx.log("warning: the memory plan doesn't fit what is free; going on as hardware.memory says")
        self.recompute_above = None if budget is None else recompute_above(config, budget, step.precision, step.lora)
        return plan

    def _load(self, folder: Path, template_from: Path | None) -> None:
        """The model, checked, with its adapters; weights are the same on every process.

        It comes to this process's device, or stays in main memory where a strategy will spread it over several.
        """
        ctx, step, team = self.ctx, self.step, self.team
        device = torch.device("cpu") if team.strategy in ("fsdp2", "zero3") else team.device
        self.loaded = loaded = load(folder, dtype="float32", device=device, template_from=template_from)
        self.policy = Policy(loaded.model, even=not self.branches, recompute_above=self.recompute_above)
        exact = prove_exact(self.policy, loaded.model, self.rows.examples, where=self.model)
        ctx.log(f"packed rows agree with separate rows to {exact:.1e} nats")
        self._choose_backend(device)
        self._preview()
        if step.lora is not None:
            attach(loaded.model, step.lora, ctx.seed)
        if step.precision == "bf16_stochastic":
            loaded.model.to(torch.bfloat16)
        self.policy.precision = step.precision
        prepare(loaded.model)
        if ctx.hardware.compile:
            compile_layers(loaded.model)

    def _choose_backend(self, device: torch.device) -> None:
        """Hold the backend of training against segments alone, which were just held against separate rows.

        Its kernel may know bf16 only, and only the device it is for, so both are run as training will run them.
        """
        if self.attention == "sdpa" or device.type != "cuda":
            self.policy.attention = self.attention
            return
        precision: Precision = "float32" if self.step.precision == "float32" else "bf16_autocast"
        found = []
        for backend in (self.policy.attention, self.attention):
            self.policy.attention, self.policy.precision = backend, precision
            found.append(shortest_logprobs(self.policy, self.rows.examples))
        apart = float((found[0] - found[1]).abs().max())
        if not apart <= (TOLERANCE if precision == "float32" else BF16_TOLERANCE):
            raise AloeError(
                f"attention by {self.attention} gives log-probabilities {apart:.3g} nats from those of sdpa",
                where="hardware.attention",
                fix="set hardware.attention to sdpa, which is slower and right",
            )
        self.ctx.log(f"attention by {self.attention}, {apart:.1e} nats from sdpa")

    def _preview(self) -> None:
        """Show what will be trained on. Pairs stay in the files: a stage may train on unsafe texts."""
        ctx, examples = self.ctx, self.rows.examples
        first = self.rows.order[: self.batch]
        packed = pack(examples, first, self.width, 0, self.multiple)
        tokenizer = self.loaded.tokenizer
        if self.team.is_main:
            text = preview(tokenizer, [examples[i] for i in first[:3]])
            (ctx.out / "preview.txt").write_text(text, encoding="utf-8")
            shown = preview_json(tokenizer, examples, packed, first[:3])
            (ctx.out / "preview.json").write_text(json.dumps(shown, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.branches:
            ctx.log("three rendered pairs with their masks: preview.txt")
        else:
            ctx.log(preview_ansi(tokenizer, examples, packed[:1], first[:1], colour=False) + "  more: preview.txt")

    # -- the loop -----------------------------------------------------------------------------------------------------

    def prepare(self) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """The policy as the team runs it, and its optimiser."""
        return self.team.prepare(self.policy, self._optimizer)

    def _optimizer(self, policy: torch.nn.Module) -> torch.optim.Optimizer:
        step = self.step
        given: dict[str, Any] = {"lr": step.lr, "weight_decay": step.weight_decay, "betas": step.betas}
        if step.precision == "bf16_stochastic":
            return StochasticAdamW(self.policy.model.named_parameters(), **given, seed=self.ctx.seed)
        return adamw(self.policy.model.named_parameters(), **given)

    def train(
        self,
        policy: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        evaluate: Callable[[], dict[str, float]] | None = None,
        begin_chunk: Callable[[Chunk], None] = lambda chunk: None,
        **identity: Any,
    ) -> Outcome:
        """Run the loop; a run that was killed goes on from its newest checkpoint.

        Args:
            evaluate: figures on the held-out rows.
            identity: what the run depends on beside the step, its inputs, rows and seed.
        """
        ctx, step, team, hardware = self.ctx, self.step, self.team, self.ctx.hardware
        whole = {
            **step.identity(),
            "seed": ctx.seed,
            "model": digest_model(ctx.path(self.model)),
            "template": self.loaded.template.digest,
            "tokens": self.rows.examples.digest,
            "limit": self.limit,
            **identity,
        }
        self.saved = ctx.cache / "train" / f"{ctx.name}-{digest_json(whole)[:16]}"
        checkpoints = Checkpoints(
            self.saved,
            whole,
            keep=hardware.keep_checkpoints,
            every_steps=hardware.checkpoint_steps,
            every_minutes=hardware.checkpoint_minutes,
            rank=team.rank,
            world=team.world,
            barrier=team.barrier,
            broadcast=team.broadcast,
            log=ctx.log,
        )
        settings = Settings(
            batch=self.batch,
            lr=step.lr,
            schedule=step.schedule,
            warmup_steps=step.warmup_steps,
            clip=step.clip,
            width=self.width,
            multiple=self.multiple,
            chunks=self.chunks,
        )
        tracker = Tracker(
            hardware.track if team.is_main else None, ctx.family, f"{ctx.name}-{self.saved.name[-16:]}", whole, ctx.log
        )
        self.watch = self._watch(policy, evaluate, tracker)
        loop = Loop(
            ctx,
            step.verb,
            policy,
            optimizer,
            self.rows.examples,
            self.rows.order,
            objective,
            settings,
            team=team,
            checkpoints=checkpoints,
            watch=self.watch,
            tracker=tracker,
            lora=step.lora,
            begin_chunk=begin_chunk,
        )
        began = time.monotonic()
        outcome = loop.run()
        tracker.finish()
        if team.is_main:
            performance(loop.journal.lines(TIMING), team, step.precision, ctx)
        if time.monotonic() - began > 60 * hardware.checkpoint_minutes:  # what follows may fail, too
            loop.save(loop.steps)
        ctx.done_with(self.saved)
        return outcome

    def _watch(
        self, policy: torch.nn.Module, evaluate: Callable[[], dict[str, float]] | None, tracker: Tracker
    ) -> Watch | None:
        step, held = self.step, self.held
        if held is None:
            return None
        loaded, run = self.loaded, policy if self.team.world > 1 else self.policy
        prompts = [_prompt(held.examples[i]) for i in held.order[: step.samples]]

        def replies() -> list[dict[str, Any]]:
            return samples(
                loaded.model,
                loaded.tokenizer,
                loaded.template,
                prompts,
                step.sample_tokens,
                bf16=step.precision == "bf16_autocast",
                forward=partial(run, None),  # through whatever holds the weights together
            )

        every = step.evaluate_every or len(self.rows.order)  # more than there are steps: before and after
        return Watch(every, evaluate=evaluate, sample=replies if step.samples else None, tracker=tracker)

    def sharing(self) -> dict[str, Any]:
        """How a validation is cut into rows and shared by the team."""
        return {"width": self.width, "multiple": self.multiple, "share": self.team.share, "sum": self.team.sum}

    # -- after the loop -----------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """What the manifest says of the rows."""
        held = {"held_out": len(self.held.examples)} if self.held is not None else {}
        return {**self.rows.report, **held}

    def save(self, policy: torch.nn.Module) -> dict[str, Any]:
        """Write a plain Hugging Face folder: safetensors, tokenizer, chat template, the base's generation settings.

        Raises:
            AloeError: a weight is NaN or infinite.
        """
        ctx, step, loaded = self.ctx, self.step, self.loaded
        dtype = DTYPES[step.dtype_out]
        gathered = dict(self.team.full_parameters(policy))
        if step.lora is not None and self.team.is_main:
            save_adapter(loaded.model, ctx.out / "adapter", self.model, gathered.items())
            gathered = dict(fold(gathered.items(), step.lora))
        if self.team.is_main:
            for name, tensor in gathered.items():
                if not torch.isfinite(tensor).all():
                    fix = "lower lr or lengthen the warm-up"
                    raise AloeError(f"training left NaN or infinite weights in {name}", fix=fix)
            write_model(loaded, gathered, ctx.out, dtype)
        self.team.barrier()
        return {"template": loaded.template.digest, "parameters": self.plan.parameters, "memory": self.plan.summary()}


def compile_layers(model: Any) -> None:
    """Compile the decoder's layers, which all share one piece of code.

    Raises:
        AloeError: the architecture keeps its layers elsewhere.
    """
    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise AloeError(
            f"the layers of a {model.config.model_type} model aren't where they are looked for",
            where="hardware.compile",
            fix="set hardware.compile to false",
        )
    for layer in layers:
        layer.compile(dynamic=True)


def _prompt(example: Example) -> list[int]:
    """Ids up to the first answer."""
    if example.tree.branches:
        return [int(i) for i in example.tree.prefix]
    return [int(i) for i in example.tree.prefix[: int(np.flatnonzero(np.asarray(example.scored))[0])]]
