"""DEITA: complexity x quality, read from a model's probabilities of the grades 1 to 6.

Liu et al. 2024, *What Makes Good Data for Alignment?* (arXiv 2312.15685), section 3, and the prompts and inference of
its published code (github.com/hkust-nlp/deita, `selection/scorer`): each grade is the expectation over the next
token being "1" .. "6", their probabilities renormalised to one; a row's score is the sum over its turns of
complexity x quality.

Where this differs from that code on purpose: a request that fails, or that misses one of the six probabilities, leaves
the row unscored (theirs makes it 3.0), and a user turn that nobody answered is not scored (theirs scores an empty
response).

The prompt. The published scorers (LLaMA-13B and Mistral-7B) were trained on the prompt followed at once by the digit,
without any chat markup: `form="raw"` sends the prompt unchanged, for a model folder whose chat template is
`RAW_TEMPLATE` (put it there as `chat_template.jinja`; their own folders have none). Any other instruct model grades
through its own template, `form="chat"`: the same prompt without its last space, which many templates would strip, and
the digit as the start of the assistant's turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from aloe.data.quality import Scored, exchanges
from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.generate.engine import Engine, Score, ScoreRequest, Tick
from aloe.records import Row

Form = Literal["chat", "raw"]
GRADES = ("1", "2", "3", "4", "5", "6")
COMPLEXITY = (
    "You are a helpful assistant. Please identify the complexity score of the following user query. \n"
    "##Query: {instruction}  \n##Complexity: "
)
QUALITY = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. \n"
    " #Question#:\n{instruction}\n#Response#:\n{output} \n##Quality: "
)
# Contents as they are, as the scorers were trained; the end token only closes a reply.
RAW_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and bos_token %}{{ bos_token }}{% endif %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
VERSION = 1
CHUNK = 1024  # rows asked at a time: bounds the memory that prompts take


def expected_grade(logprobs: Sequence[float]) -> float:
    """Expectation of the grade 1..6 under the six log-probabilities (nats) renormalised to one.

    Raises:
        ValueError: not six values, or one of them NaN or infinite.
    """
    if len(logprobs) != len(GRADES):
        raise ValueError(f"{len(logprobs)} log-probabilities for {len(GRADES)} grades")
    missing = [grade for grade, value in zip(GRADES, logprobs, strict=True) if not math.isfinite(value)]
    if missing:
        raise ValueError(f"no log-probability for grade {', '.join(missing)}")
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return math.fsum(grade * w for grade, w in enumerate(weights, 1)) / math.fsum(weights)


def complexity_prompt(instruction: str) -> str:
    """The published prompt for how demanding an instruction is."""
    return COMPLEXITY.replace("{instruction}", instruction)


def quality_prompt(instruction: str, output: str) -> str:
    """The published prompt for how well a response answers. Braces inside the texts stay as they are."""
    head, tail = QUALITY.split("{output}")
    return head.replace("{instruction}", instruction) + output + tail


class DeitaScorer:
    """The evol score through any engine that gives log-likelihoods.

    `parts`: mean `complexity` and `quality` over the turns, the number of `turns`, and `mass`, the least probability
    that the model gave to the six grades together. A trained scorer puts nearly all its mass there; where it is tiny
    the model does not grade at all and the expectation means little.

    Args:
        engine: asked for the log-probabilities of the six digits, two requests per turn.
        form: see the module's text; `raw` for the published scorers.
        max_prompt_tokens: a longer prompt leaves its row unscored; the engine's window where not given.
        min_mass: rows whose `mass` is below are unscored; 0 keeps all, as published.
    """

    name = "deita"

    def __init__(
        self, engine: Engine, *, form: Form = "chat", max_prompt_tokens: int | None = None, min_mass: float = 0.0
    ) -> None:
        if form not in ("chat", "raw"):
            raise AloeError(f"no form called {form!r}", where="quality.form", fix="use chat or raw")
        if not 0 <= min_mass < 1:
            raise AloeError("min_mass is a probability below 1", where="quality.min_mass", fix="give 0, or 0.5 say")
        self.engine, self.form, self.min_mass = engine, form, min_mass
        window = getattr(engine, "context", None)  # local engines know theirs; a grade takes one token of it
        self.max_prompt_tokens = max_prompt_tokens or (int(window) - 1 if window else None)
        self.digest = digest_json(
            {
                "scorer": self.name, "version": VERSION, "form": form, "min_mass": min_mass, "grades": GRADES,
                "complexity": COMPLEXITY, "quality": QUALITY, "max_prompt_tokens": self.max_prompt_tokens,
                "model": engine.model_digest, "template": engine.template_digest,
            }
        )  # fmt: skip

    def score(self, records: Sequence[Row], tick: Tick | None = None) -> list[Scored]:
        """One `Scored` per record, in order; scores lie in 1..36 per turn."""
        found: list[Scored] = []
        for start in range(0, len(records), CHUNK):
            found += self._score_chunk(records[start : start + CHUNK], tick)
        return found

    def _score_chunk(self, records: Sequence[Row], tick: Tick | None) -> list[Scored]:
        requests: list[ScoreRequest] = []
        turns: list[int] = []
        for record in records:
            pairs = exchanges(record)
            turns.append(len(pairs))
            for n, (user, answer) in enumerate(pairs):
                requests.append(self._request(f"{record.id}|{n}|complexity", complexity_prompt(user)))
                requests.append(self._request(f"{record.id}|{n}|quality", quality_prompt(user, answer)))
        replies = self.engine.loglikelihood(requests, tick) if requests else []
        if [r.key for r in replies] != [r.key for r in requests]:
            raise AloeError(f"engine {self.engine.name} did not answer every request in order", where="quality")
        scored, at = [], 0
        for count in turns:
            scored.append(self._combine(replies[at : at + 2 * count]))
            at += 2 * count
        return scored

    def _request(self, key: str, prompt: str) -> ScoreRequest:
        content = prompt if self.form == "raw" else prompt.rstrip()
        return ScoreRequest(key=key, messages=({"role": "user", "content": content},), continuations=GRADES)

    def _combine(self, replies: Sequence[Score]) -> Scored:
        if not replies:
            return Scored(None, why="no answered turn: nothing follows a user's turn")
        grades, mass = [], 1.0
        for reply in replies:
            if reply.error is not None:
                return Scored(None, why=f"engine error: {reply.error}")
            if self.max_prompt_tokens is not None and reply.prompt_tokens > self.max_prompt_tokens:
                return Scored(
                    None, why=f"too long: {reply.prompt_tokens} tokens, the scorer reads {self.max_prompt_tokens}"
                )
            try:
                grades.append(expected_grade(reply.logprobs))
            except ValueError as cause:
                return Scored(None, why=f"no probability: {cause}")
            mass = min(mass, math.fsum(math.exp(value) for value in reply.logprobs))
        if mass < self.min_mass:
            return Scored(None, {"mass": mass}, f"not a grade: the six digits hold {mass:.2g} of the probability")
        complexity, quality = grades[0::2], grades[1::2]
        turns = len(complexity)
        parts = {
            "complexity": math.fsum(complexity) / turns, "quality": math.fsum(quality) / turns,
            "turns": float(turns), "mass": mass,
        }  # fmt: skip
        return Scored(math.fsum(c * q for c, q in zip(complexity, quality, strict=True)), parts)
