"""The local engine: a transformers model on this machine, batched, with every shared prefix computed once.

Log-likelihoods lay a stem and its variants side by side as a tree (`models/packed.py`), so that the four orders of a
question cost one stem. Generation computes the prefix that a batch shares once and repeats its cache. Sampling draws
by each request's own key, so a reply doesn't depend on the batch it was computed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from aloe.errors import AloeError
from aloe.generate.engine import Done, FinishReason, Reply, Request, Score, ScoreRequest, Tick
from aloe.keyed import rng
from aloe.models.load import Loaded
from aloe.models.packed import Tree, common_prefix, lay_out

# Trees in one row attend densely under a mask, which costs the square of the row: short rows on a CPU, where that
# is two thirds of the layers' own work at 2048 tokens; long ones on a GPU, which is idle otherwise.
CPU_TOKENS, GPU_TOKENS = 640, 8192
MIN_SHARED = 16  # tokens: repeating a cache for less costs more than it saves


@dataclass
class _Row:
    """One reply being written."""

    index: int
    request: Request
    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish: FinishReason | None = None


class LocalEngine:
    """Engine over a loaded checkpoint.

    Args:
        loaded: model, tokenizer and template.
        name: what reports call it.
        model_digest: content digest of the weights.
        max_batch: replies written side by side.
        batch_tokens: tokens laid out in one forward pass for log-likelihoods; by device where not given.
    """

    reports = True

    def __init__(
        self, loaded: Loaded, name: str, model_digest: str, *, max_batch: int = 16, batch_tokens: int | None = None
    ) -> None:
        self.loaded, self.name, self.model_digest = loaded, name, model_digest
        self.template_digest = loaded.template.digest
        self.max_batch = max_batch
        self.batch_tokens = batch_tokens or (CPU_TOKENS if loaded.device.type == "cpu" else GPU_TOKENS)
        self._eos = self._end_tokens()
        window = getattr(loaded.model.config, "max_position_embeddings", None)
        self.context = int(window) if window else 1 << 30

    def _end_tokens(self) -> set[int]:
        ends = {self.loaded.template.end_of_turn[-1], self.loaded.tokenizer.eos_token_id}
        stated = self.loaded.model.generation_config.eos_token_id
        ends.update(stated if isinstance(stated, list) else [stated])
        return {e for e in ends if e is not None}

    # -- generation ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], tick: Tick | None = None, done: Done | None = None) -> list[Reply]:
        """One reply per request, in order. Requests are batched by their opening tokens, then by length.

        Raises:
            AloeError: a request with a JSON schema, which nothing here could hold the reply to.
        """
        if any(r.schema is not None for r in requests):
            raise AloeError(
                f"model {self.name} runs on this machine, where replies can't be held to a JSON schema",
                fix="name a server with `structured: true` for this step (docs/servers.md)",
            )
        rows = [_Row(i, r, self.loaded.template.prompt_ids(r.messages, r.prefill)) for i, r in enumerate(requests)]
        replies: dict[int, Reply] = {}
        fitting = []
        for row in rows:
            if len(row.prompt) + row.request.sampling.max_new_tokens > self.context:
                replies[row.index] = self._too_long(row.request, len(row.prompt))
            else:
                fitting.append(row)
        fitting.sort(key=lambda r: (r.prompt[:256], len(r.prompt)))
        for start in range(0, len(fitting), self.max_batch):
            batch = fitting[start : start + self.max_batch]
            self._generate_batch(batch)
            for row in batch:
                replies[row.index] = self._reply(row)
                if done:
                    done(row.index, replies[row.index])
            if tick:
                tick(len(batch), sum(len(r.ids) for r in batch))
        return [replies[i] for i in range(len(rows))]

    def _too_long(self, request: Request, length: int) -> Reply:
        message = f"prompt of {length} tokens + {request.sampling.max_new_tokens} exceeds the window of {self.context}"
        return Reply(
            key=request.key, text="", finish_reason="error", prompt_tokens=length, completion_tokens=0, error=message
        )

    def _reply(self, row: _Row) -> Reply:
        ids = row.ids[:-1] if row.ids and row.ids[-1] in self._eos else row.ids
        text = self.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        for mark in row.request.sampling.stop:
            text = text.split(mark)[0]
        return Reply(
            key=row.request.key,
            text=text,
            finish_reason=row.finish or "length",
            prompt_tokens=len(row.prompt),
            completion_tokens=len(row.ids),
            logprob=row.logprob,
        )

    def _generate_batch(self, rows: list[_Row]) -> None:
        from transformers import DynamicCache

        model, device = self.loaded.model, self.loaded.device
        cache = DynamicCache(config=model.config)
        shared = min(common_prefix([r.prompt for r in rows]), min(len(r.prompt) for r in rows) - 1)
        shared = shared if len(rows) > 1 and shared >= MIN_SHARED else 0
        if shared:
            prefix = torch.tensor([rows[0].prompt[:shared]], device=device)
            model.model(input_ids=prefix, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(rows))
        # Left padding keeps every row's last token in the last column; padded keys are masked out for good.
        rest = [r.prompt[shared:] for r in rows]
        width = max(len(r) for r in rest)
        ids = torch.tensor([[0] * (width - len(r)) + r for r in rest], device=device)
        pads = torch.tensor([width - len(r) for r in rest], device=device)
        seen = torch.ones(len(rows), shared + width, dtype=torch.long, device=device)
        for i, pad in enumerate(pads.tolist()):
            seen[i, shared : shared + pad] = 0
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, shared:]
        active = list(rows)
        while active:
            hidden = model.model(
                input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            logits = model.lm_head(hidden).float()
            if not torch.isfinite(logits).all():
                raise AloeError(
                    f"model {self.name} gives NaN or infinite logits",
                    where=str(self.loaded.folder),
                    fix="its weights are damaged or its precision overflows: check the step that made it",
                )
            chosen = self._choose(active, logits)
            keep = [i for i, row in enumerate(active) if row.finish is None]
            if not keep:
                return
            if len(keep) < len(active):
                index = torch.tensor(keep, device=device)
                cache.batch_select_indices(index)
                seen, positions, chosen = seen[index], positions[index], chosen[index]
                active = [active[i] for i in keep]
            ids = chosen[:, None]
            seen = torch.cat([seen, torch.ones(len(active), 1, dtype=torch.long, device=device)], dim=1)
            positions = positions[:, -1:] + 1

    def _choose(self, rows: list[_Row], logits: torch.Tensor) -> torch.Tensor:
        """Pick a token per row, note its log-probability, and mark rows that are done."""
        logprobs = torch.log_softmax(logits, dim=-1)
        chosen = logits.argmax(dim=-1)
        for i, row in enumerate(rows):
            sampling = row.request.sampling
            if sampling.temperature > 0:
                chosen[i] = _draw(logits[i], row)
        for i, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            row.ids.append(token)
            row.logprob += float(logprobs[i, token])
            if token in self._eos or self._stopped(row):
                row.finish = "stop"
            elif len(row.ids) >= row.request.sampling.max_new_tokens:
                row.finish = "length"
        return chosen

    def _stopped(self, row: _Row) -> bool:
        if not row.request.sampling.stop:
            return False
        tail = self.loaded.tokenizer.decode(row.ids[-24:])
        return any(mark in tail for mark in row.request.sampling.stop)

    # -- log-likelihood -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def loglikelihood(
        self, requests: Sequence[ScoreRequest], tick: Tick | None = None, done: Done | None = None
    ) -> list[Score]:
        """Scores in order. Consecutive requests that open alike (the orders of one question) share that opening."""
        template = self.loaded.template
        contexts = [template.prompt_ids(r.messages, r.prefill) for r in requests]
        tails = [[template.continuation_ids(c, r.prefill, end=r.end_turn) for c in r.continuations] for r in requests]
        scores: dict[int, Score] = {}
        for batch in self._score_batches(contexts, tails):
            self._score_batch(batch, requests, contexts, tails, scores)
            if done:
                for i in batch:
                    done(i, scores[i])
            if tick:
                tick(len(batch), sum(len(contexts[i]) for i in batch))
        return [scores[i] for i in range(len(requests))]

    def _score_batches(self, contexts: list[list[int]], tails: list[list[list[int]]]) -> list[list[int]]:
        """Runs of requests, in order, that fit `batch_tokens` together even if they shared nothing."""
        batches: list[list[int]] = [[]]
        used = 0
        for i, context in enumerate(contexts):
            cost = len(context) + sum(len(t) for t in tails[i])
            if batches[-1] and used + cost > self.batch_tokens:
                batches.append([])
                used = 0
            batches[-1].append(i)
            used += cost
        return [b for b in batches if b]

    def _score_batch(
        self,
        batch: list[int],
        requests: Sequence[ScoreRequest],
        contexts: list[list[int]],
        tails: list[list[list[int]]],
        scores: dict[int, Score],
    ) -> None:
        trees, places = _plant(batch, contexts, tails)
        layout = lay_out(trees, sum(len(t) for t in trees), pad_id=0)
        device = self.loaded.device
        hidden = self.loaded.model.model(
            input_ids=torch.from_numpy(layout.ids)[None].to(device),
            position_ids=torch.from_numpy(layout.positions)[None].to(device),
            attention_mask=torch.from_numpy(layout.mask())[None, None].to(device),
            use_cache=False,
        ).last_hidden_state[0]
        for i in batch:
            results = []
            for tail, at in zip(tails[i], places[i], strict=True):
                index = torch.tensor([layout.starts[t][b] + offset for t, b, offset in at], device=device)
                logits = self.loaded.model.lm_head(hidden[index]).float()
                if not torch.isfinite(logits).all():
                    raise AloeError(
                        f"model {self.name} gives NaN or infinite logits",
                        where=str(self.loaded.folder),
                        fix="its weights are damaged or its precision overflows: check the step that made it",
                    )
                target = torch.tensor(tail, device=device)
                logprob = torch.log_softmax(logits, dim=-1).gather(1, target[:, None]).sum()
                results.append((float(logprob), bool((logits.argmax(dim=-1) == target).all())))
            scores[i] = Score(
                key=requests[i].key,
                logprobs=tuple(r[0] for r in results),
                token_counts=tuple(map(len, tails[i])),
                greedy=tuple(r[1] for r in results),
                prompt_tokens=len(contexts[i]),
            )


def _draw(logits: torch.Tensor, row: _Row) -> int:
    """One token by temperature and nucleus; the random number is keyed by (seed, request key, position)."""
    sampling = row.request.sampling
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    point = rng(row.request.seed, "sample", f"{row.request.key}|{len(row.ids)}").random()
    if sampling.top_p >= 1:
        cumulative = probabilities.double().cumsum(0)
        return int(torch.searchsorted(cumulative, point * float(cumulative[-1]), right=True).clamp(max=len(logits) - 1))
    # The nucleus is nearly always among the likeliest few; sorting the whole vocabulary costs as much as a layer.
    ordered, order = probabilities.topk(min(256, len(logits)))
    if float(ordered.double().sum()) < sampling.top_p:
        ordered, order = probabilities.sort(descending=True)
    cumulative = ordered.double().cumsum(0)
    last = min(int((cumulative < sampling.top_p).sum()), len(order) - 1)  # the token that reaches top_p is still in
    chosen = torch.searchsorted(cumulative, point * float(cumulative[last]), right=True)
    return int(order[min(int(chosen), last)])


Place = tuple[int, int, int]  # (tree, branch, offset from the branch's start) of the token that predicts


def _plant(
    batch: list[int], contexts: list[list[int]], tails: list[list[list[int]]]
) -> tuple[list[Tree], dict[int, list[list[Place]]]]:
    """Trees for a batch, and for every continuation where its predicting tokens stand.

    Neighbouring requests that share at least `MIN_SHARED` opening tokens become one tree with a branch each; a
    request whose continuations are longer than one token gets a branch per continuation. Otherwise one row serves.
    """
    trees: list[Tree] = []
    places: dict[int, list[list[Place]]] = {}
    at = 0
    while at < len(batch):
        group = [batch[at]]
        single = all(len(t) == 1 for t in tails[batch[at]])
        shared = len(contexts[batch[at]])
        while single and at + len(group) < len(batch):
            candidate = batch[at + len(group)]
            common = common_prefix([contexts[group[0]][:shared], contexts[candidate]])
            # Joining must not shorten what the group already shares by much: stop at the next question.
            if any(len(t) != 1 for t in tails[candidate]) or common < MIN_SHARED or common < 0.6 * shared:
                break
            shared = min(shared, common)
            group.append(candidate)
            if len(group) == 2:
                shared = common
        if single and len(group) > 1:
            _plant_orders(group, contexts, shared, trees, places, tails)
        else:
            _plant_one(group[0], contexts, trees, places, tails)
        at += len(group)
    return trees, places


def _plant_orders(
    group: list[int],
    contexts: list[list[int]],
    shared: int,
    trees: list[Tree],
    places: dict[int, list[list[Place]]],
    tails: list[list[list[int]]],
) -> None:
    shared = min(shared, min(len(contexts[i]) for i in group) - 1)  # every branch keeps a token that predicts
    branches = [contexts[i][shared:] for i in group]
    trees.append(Tree(contexts[group[0]][:shared], branches))
    for b, i in enumerate(group, 1):
        places[i] = [[(len(trees) - 1, b, len(branches[b - 1]) - 1)] for _ in tails[i]]


def _plant_one(
    i: int,
    contexts: list[list[int]],
    trees: list[Tree],
    places: dict[int, list[list[Place]]],
    tails: list[list[list[int]]],
) -> None:
    # A branch's last token predicts nothing that is asked for, so it is not computed.
    trees.append(Tree(contexts[i], [t[:-1] for t in tails[i]]))
    tree, last = len(trees) - 1, len(contexts[i]) - 1
    places[i] = [
        [(tree, 0, last)] + [(tree, b, offset) for offset in range(len(tail) - 1)] for b, tail in enumerate(tails[i], 1)
    ]


def make_engine(loaded: Loaded, name: str, model_digest: str, **options: Any) -> LocalEngine:
    """A local engine; the seam where another backend is chosen."""
    return LocalEngine(loaded, name, model_digest, **options)
