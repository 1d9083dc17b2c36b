"""The `synthesize` verb: chains of thought for multiple-choice questions, kept only where they earn the label.

A writer model gets several tries per question, each with its own keyed seed; all open questions of a try go to the
engine together. A text is accepted by the rules of `accept.py`. Accepted rows become dialogues; rejected texts and
exhausted questions are kept beside them with their reasons (rejected ones can serve as dispreferred answers).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from aloe.contract import Context, Kind, ModelRef, QuestionsRef, Step
from aloe.data import card
from aloe.data.sources import load_questions, load_rows, source_name
from aloe.data.templates import exchange, user_text
from aloe.digests import digest_text
from aloe.errors import AloeError
from aloe.generate.engine import Engine, Reply, Request, Sampling, Tick
from aloe.keyed import key64, shuffled
from aloe.prompting.extract import EXTRACTION_RULE
from aloe.records import Dialogue, Question
from aloe.rows import write_parquet, write_records
from aloe.synthesize.accept import Verdict, check
from aloe.synthesize.prompt import PREFILL, SHOTS, STOP, Mode, prompt_digest, writer_messages

TASK = "multiple_choice_explained"
REJECTED_COLUMNS = ("id", "question_id", "source", "try", "reason", "reasons", "concluded", "gold", "text", "error")
EXHAUSTED_COLUMNS = ("id", "source", "reasons")


@dataclass
class Outcome:
    """What became of the questions: accepted rows, every rejected text, and acceptance by try."""

    accepted: dict[str, Dialogue] = field(default_factory=dict)  # by question id
    rejected: list[dict[str, Any]] = field(default_factory=list)
    by_try: list[dict[str, int]] = field(default_factory=list)


class Synthesize(Step):
    """Write label-validated chains of thought. Without a gold answer in the prompt (`exam`), what is kept is what the
    writer solved by itself."""

    verb: ClassVar[str] = "synthesize"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "dialogues"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "engine.precision")

    questions: QuestionsRef
    writer: ModelRef
    keep: Literal["agrees_with_label"] = "agrees_with_label"  # the papers' rule, and the only one
    mode: Mode = "explain"  # papers: gold answer and reference explanation shown; `exam` hides both
    limit: int | None = Field(default=None, ge=1)  # questions, drawn by key
    tries: int = Field(default=3, ge=1)  # per question; the papers regenerate without a published bound
    max_new_tokens: int = Field(default=256, ge=8)  # tokens per try; ours
    temperature: float = Field(default=0.3, ge=0)  # ours: above it the packaged 135M writer loses the label
    top_p: float = Field(default=0.95, gt=0, le=1)  # ours
    shots: int = Field(default=2, ge=0, le=len(SHOTS))  # worked examples (Beta: 3; these are our own)
    require_all_options: bool = True  # the papers' prompt: every option is weighed
    allow_empty: bool = False  # finish although nothing was accepted

    @model_validator(mode="after")
    def _tries_differ(self) -> Synthesize:
        if self.temperature == 0 and self.tries > 1:
            raise ValueError("temperature 0 writes the same text in every try: set tries: 1, or a temperature above 0")
        return self

    def run(self, ctx: Context) -> dict[str, Any]:
        questions = self._questions(ctx)
        engine: Engine = ctx.engine(self.writer)
        outcome = Outcome()
        with _progress(ctx, len(questions) * self.tries) as tick:
            for number in range(1, self.tries + 1):
                open_ = [q for q in questions if q.id not in outcome.accepted]
                if open_:
                    self._try(ctx, engine, open_, number, outcome, tick)
        self._refuse_failure(outcome, questions)
        rows = [outcome.accepted[q.id] for q in questions if q.id in outcome.accepted]
        exhausted = _exhausted(questions, outcome)
        dropped = Counter(f"exhausted:{_first(e['reasons'][-1])}" for e in exhausted)
        ledger: dict[str, Any] = {
            "rows_in": len(questions),
            "kept": len(rows),
            "dropped": dict(sorted(dropped.items())),
        }
        ctx.ledger("synthesize", rows_in=len(questions), kept=len(rows), dropped=ledger["dropped"])
        summary = self._summary(questions, outcome, engine)
        _write(ctx.out, rows, outcome, exhausted, summary, ledger)
        return summary

    def _questions(self, ctx: Context) -> list[Question]:
        path = ctx.path(self.questions)
        found = load_questions(path, source=source_name(self.questions))
        chosen = shuffled(found, ctx.seed, "synthesize-limit", [q.id for q in found])[: self.limit]
        read = len(load_rows(path, source=source_name(self.questions), strict=True)[0])
        left = {"no multiple-choice question": read - len(found), "over limit": len(found) - len(chosen)}
        if any(left.values()):
            dropped = {reason: count for reason, count in left.items() if count}
            ctx.ledger("questions", rows_in=read, kept=len(chosen), dropped=dropped)
        return chosen if self.limit is not None else found

    def _try(
        self, ctx: Context, engine: Engine, questions: Sequence[Question], number: int, outcome: Outcome, tick: Tick
    ) -> None:
        sampling = Sampling(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, stop=STOP
        )
        requests = [
            Request(
                key=q.id, messages=writer_messages(q, self.mode, self.shots), sampling=sampling, prefill=PREFILL,
                seed=key64(ctx.seed, "synthesize", f"{q.id}|{number}"),
            )
            for q in questions
        ]  # fmt: skip
        replies = engine.generate(requests, tick)
        ctx.count_tokens(
            prompt=sum(r.prompt_tokens for r in replies), completion=sum(r.completion_tokens for r in replies)
        )
        before = len(outcome.accepted)
        for question, reply in zip(questions, replies, strict=True):
            if reply.error is not None:
                outcome.rejected.append(_rejected(question, number, ("errored",), reply, None))
                continue
            verdict = self._judge(question, reply)
            if verdict.accepted:
                outcome.accepted[question.id] = self._dialogue(ctx, engine, question, verdict, number)
            else:
                outcome.rejected.append(_rejected(question, number, verdict.reasons, reply, verdict.concluded))
        outcome.by_try.append({"try": number, "asked": len(questions), "accepted": len(outcome.accepted) - before})

    def _judge(self, question: Question, reply: Reply) -> Verdict:
        return check(
            PREFILL + reply.text,
            question,
            truncated=reply.finish_reason == "length",
            examples=[PREFILL + shot.solution for shot in SHOTS[: self.shots]],
            need_all_options=self.require_all_options,
            may_know=self.mode == "explain",
        )

    def _dialogue(self, ctx: Context, engine: Engine, question: Question, verdict: Verdict, number: int) -> Dialogue:
        """The row to train on: the question in a drawn template, the rationale, and the conclusion in one form."""
        user, template = user_text(question, TASK, ctx.seed)
        return Dialogue(
            id=f"{question.id}/cot",
            source=f"synthetic:{question.source}",
            licence=question.licence,
            messages=exchange(user, f"{verdict.rationale}\n\nAnswer: {question.answer}"),
            meta={
                "original_id": question.id, "task": TASK, "template": template, "mode": self.mode, "try": number,
                "writer": engine.name, "keep": self.keep, "question": question.to_dict(),
            },
        )  # fmt: skip

    def _refuse_failure(self, outcome: Outcome, questions: Sequence[Question]) -> None:
        """Errors everywhere, or nothing accepted: say why, unless an empty set was asked for."""
        errors = [r["error"] for r in outcome.rejected if r["error"]]
        if errors and len(errors) == len(outcome.rejected) and not outcome.accepted:
            raise AloeError(f"the writer failed every request: {errors[0]}", where="writer", fix="mend the writer")
        if outcome.accepted or self.allow_empty:
            return
        reasons = Counter(_first(r["reasons"]) for r in outcome.rejected).most_common(3)
        raise AloeError(
            f"none of {len(questions)} questions got an acceptable text in {self.tries} tries: "
            + ", ".join(f"{reason} {count}x" for reason, count in reasons),
            where="writer",
            fix="use a stronger writer, more tries or tokens, require_all_options: false, or allow_empty: true",
        )

    def _summary(self, questions: Sequence[Question], outcome: Outcome, engine: Engine) -> dict[str, Any]:
        asked = Counter(q.source for q in questions)
        accepted = Counter(q.source for q in questions if q.id in outcome.accepted)
        reasons = Counter(reason.split(":")[0] for r in outcome.rejected for reason in r["reasons"])
        return {
            "rows": len(outcome.accepted),
            "questions": len(questions),
            "acceptance": round(len(outcome.accepted) / len(questions), 6),
            "by_source": {
                s: {"questions": n, "accepted": accepted[s], "share": round(accepted[s] / n, 6)}
                for s, n in sorted(asked.items())
            },
            "by_try": outcome.by_try,
            "rejected_texts": len(outcome.rejected),
            "rejected_because": dict(sorted(reasons.items())),
            "protocol": {
                "mode": self.mode, "keep": self.keep, "shots": self.shots,
                "prompt": prompt_digest(self.mode, self.shots),
                "writer": engine.name, "writer_digest": engine.model_digest, "template_digest": engine.template_digest,
                "extraction": EXTRACTION_RULE, "tries": self.tries, "max_new_tokens": self.max_new_tokens,
                "temperature": self.temperature, "top_p": self.top_p, "require_all_options": self.require_all_options,
            },
        }  # fmt: skip


@contextmanager
def _progress(ctx: Context, total: int) -> Iterator[Tick]:
    """A bar over all tries; questions accepted early leave it short of the total."""
    with ctx.progress("writing", total, "texts") as bar:

        def tick(done: int, tokens: int) -> None:
            bar.advance(done)

        yield tick


def _first(reasons: Sequence[str]) -> str:
    return reasons[0].split(":")[0]


def _rejected(
    question: Question, number: int, reasons: tuple[str, ...], reply: Reply, concluded: str | None
) -> dict[str, Any]:
    return {
        "id": digest_text(f"{question.id}|{number}")[:16], "question_id": question.id, "source": question.source,
        "try": number, "reason": _first(reasons), "reasons": list(reasons), "concluded": concluded,
        "gold": question.answer, "text": "" if reply.error else PREFILL + reply.text, "error": reply.error,
    }  # fmt: skip


def _exhausted(questions: Sequence[Question], outcome: Outcome) -> list[dict[str, Any]]:
    """Questions whose tries are used up, with the reasons of each try in order."""
    reasons: dict[str, list[list[str]]] = {}
    for row in outcome.rejected:
        reasons.setdefault(row["question_id"], []).append(row["reasons"])
    return [
        {"id": q.id, "source": q.source, "reasons": reasons[q.id]} for q in questions if q.id not in outcome.accepted
    ]


def _write(
    out: Path,
    rows: Sequence[Dialogue],
    outcome: Outcome,
    exhausted: Sequence[dict[str, Any]],
    summary: dict[str, Any],
    ledger: dict[str, Any],
) -> None:
    write_records(out / "rows.parquet", rows)
    write_parquet(out / "rejected.parquet", outcome.rejected, columns=REJECTED_COLUMNS)
    write_parquet(out / "dropped.parquet", exhausted, columns=EXHAUSTED_COLUMNS)
    stats = {**summary, "words": card.lengths([row.messages[-1]["content"] for row in rows])}
    text = json.dumps(stats, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n"
    (out / "stats.json").write_text(text, encoding="utf-8")
    about = (
        "Written by a language model and kept only where the conclusion equals the gold answer (`aloe synthesize`). "
        f"{summary['rows']} of {summary['questions']} questions got an accepted text. The licence is that of the "
        "questions; the writer's terms may add to it."
    )
    readme = card.dataset_card("Synthetic chains of thought", about, rows, {"synthesize": ledger}, ["synthetic"])
    (out / "README.md").write_text(readme, encoding="utf-8")
