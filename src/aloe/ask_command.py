"""`aloe ask`: one question to any model a recipe could name, through the strategies that `evaluate` scores."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from aloe.errors import AloeError
from aloe.terminal import json_text

if TYPE_CHECKING:
    from aloe.generate.engine import Engine
    from aloe.prompting.exemplars import ExemplarStore
    from aloe.prompting.strategies import Decision, Strategy
    from aloe.records import Question

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FREE = ("direct", "cot")  # strategies that need no options
WIDTH = 110  # of a printed table


class AskCommand(TyperCommand):
    """Reads `--options TEXT TEXT ...` up to the next option, as `--option` for each text."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(args: Sequence[str]) -> list[str]:
    """`--options A B` as `--option A --option B`; it ends at the next `--name`."""
    found: list[str] = []
    inside = False
    for place, arg in enumerate(args):
        if arg == "--":
            return [*found, *args[place:]]
        if arg == "--options":
            inside = True
        elif inside and not arg.startswith("--"):
            found += [f"--option={arg}"]
        else:
            inside = False
            found.append(arg)
    return found


def ask(
    model: str,
    question: str,
    option: Annotated[
        list[str] | None,
        typer.Option(help="The text of an option, in order. May be repeated; --options takes several at once."),
    ] = None,
    context: Annotated[str, typer.Option(help="A passage that stands before the question.")] = "",
    strategy: Annotated[
        str,
        typer.Option(help="direct, cot; with options also few_shot, knn_few_shot, self_consistency, medprompt."),
    ] = "direct",
    members: Annotated[int | None, typer.Option(min=1, help="Votes of self_consistency and medprompt.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Exemplars that are shown before the question.")] = None,
    exemplars: Annotated[
        str | None, typer.Option(help="An exemplar store, or rows to make one from: a file or starter/<name>.")
    ] = None,
    reranker: Annotated[
        Path | None, typer.Option(help="Folder of a cross-encoder that puts the nearest exemplars in order.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt of the library, instead of the strategy's.")] = None,
    show_votes: Annotated[bool, typer.Option("--show-votes", help="Print every member's vote.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Bound on one reply.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Of every member; 0 is greedy.")] = None,
    seed: int = 0,
) -> None:
    """Ask a model one question and print its answer.

    With options the answer is a letter, found as `evaluate` finds it, with the share of the votes as confidence.
    """
    from aloe.prompting.strategies import strategy as named

    given = {
        "members": members, "shots": shots, "max_new_tokens": max_new_tokens, "temperature": temperature,
        "prompt": prompt,
    }  # fmt: skip
    chosen = _changed(named(strategy, seed=seed), {key: value for key, value in given.items() if value is not None})
    if not option:
        _refuse_without_options(chosen, exemplars, members, show_votes)
        _say_notice()
        print(_free(model, question, context, chosen, as_json, max_new_tokens or 256))
        return
    asked = question_of(question, option, context)
    store = open_exemplars(exemplars, reranker, chosen)
    _say_notice()
    engine = _engine(model)
    decision = decide(engine, chosen, asked, store)
    if as_json:
        print(json_text(report(model, engine, chosen, decision, store), indent=1))
        return
    for line in told(chosen, decision, show_votes):
        print(line)


def _say_notice() -> None:
    from aloe.run.talk import NOTICE

    print(NOTICE, file=sys.stderr)


def _engine(model: str) -> Engine:
    from aloe.run.talk import open_engine

    return open_engine(model)


def _changed(chosen: Strategy, given: dict[str, Any]) -> Strategy:
    """The strategy with the options that the command line sets; one that it has no use for is refused."""
    from aloe.prompting.library import load_prompt

    if "shots" in given and chosen.exemplars == "none":
        fix = "use few_shot, knn_few_shot or medprompt, or leave --shots out"
        raise AloeError(f"strategy {chosen.name} shows no exemplars", where="--shots", fix=fix)
    if "members" in given and chosen.members == 1:
        fix = "use self_consistency or medprompt, or leave --members out"
        raise AloeError(f"strategy {chosen.name} asks once", where="--members", fix=fix)
    if "prompt" in given:
        extra = set(load_prompt(given["prompt"]).variables) - {"question", "letter", "reasoning"}
        if extra:
            fix = "choose another: aloe prompts list"
            raise AloeError(f"the prompt needs {sorted(extra)[0]!r}, which a choice has not", where="--prompt", fix=fix)
    return replace(chosen, **given)


# ------------------------------------------------------------------------------------------------ without options


def _refuse_without_options(chosen: Strategy, exemplars: str | None, members: int | None, votes: bool) -> None:
    if chosen.name not in FREE:
        raise AloeError(
            f"strategy {chosen.name} votes between options, and the question has none",
            where="--strategy",
            fix=f'give them (--options "one text" "another"), or use {" or ".join(FREE)}',
        )
    for name, value in (("--exemplars", exemplars), ("--members", members), ("--show-votes", votes)):
        if value:
            raise AloeError("there is nothing to vote on without options", where=name, fix="give --options")


def _free(model: str, question: str, context: str, chosen: Strategy, as_json: bool, max_new_tokens: int) -> str:
    """The reply to a question in free text. `direct` asks it as it is; `cot`, or `--prompt`, through the prompt."""
    from aloe.generate.engine import Request, Sampling
    from aloe.prompting.library import load_prompt
    from aloe.records import Message

    text = f"{context.strip()}\n\n{question}" if context.strip() else question
    messages: list[Message] = [{"role": "user", "content": text}]
    prefill = ""
    if chosen.prompt != "direct":
        prompt = load_prompt(chosen.prompt)
        messages = [{"role": "user", "content": prompt.fill("user", {"question": text})}]
        prefill = prompt.prefill
        if prompt.system:
            messages.insert(0, {"role": "system", "content": prompt.system})
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=chosen.temperature)
    request = Request(key="ask", messages=tuple(messages), sampling=sampling, seed=chosen.seed, prefill=prefill)
    engine = _engine(model)
    [reply] = engine.generate([request])
    if reply.error is not None:
        raise AloeError(f"the model gave no answer: {reply.error}", where=model, fix="try again, or look at the server")
    if not as_json:
        return reply.text.strip()
    found = {
        "model": model, "model_digest": engine.model_digest, "question": question, "strategy": chosen.name,
        "text": reply.text, "finish_reason": reply.finish_reason, "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }  # fmt: skip
    return json_text(found, indent=1)


# --------------------------------------------------------------------------------------------------- with options


def question_of(question: str, options: Sequence[str], context: str = "") -> Question:
    """The question as a row. Its `answer` is not known: the first letter stands there, and nothing reads it."""
    from aloe.records import Question, row_id

    if not 2 <= len(options) <= len(LETTERS):
        raise AloeError(f"{len(options)} options", where="--options", fix=f"give 2 to {len(LETTERS)}")
    empty = next((i for i, text in enumerate(options) if not text.strip()), None)
    if empty is not None:
        raise AloeError(f"option {LETTERS[empty]} is empty", where="--options", fix="give it a text")
    if not question.strip():
        raise AloeError("the question is empty", where="QUESTION", fix="ask something")
    shown = dict(zip(LETTERS, (text.strip() for text in options), strict=False))
    return Question(
        id=row_id([question, list(shown.values()), context]), source="ask", licence="unknown", question=question,
        options=shown, answer="A", context=context,
    )  # fmt: skip


def open_exemplars(ref: str | None, reranker: Path | None, chosen: Strategy) -> ExemplarStore | None:
    """The exemplars of a strategy that shows some: a store, or one made of rows with the packaged encoder."""
    from aloe.exemplars_command import chosen as rows_of
    from aloe.generate.encoders import open_encoder
    from aloe.generate.rerank import CrossEncoderReranker
    from aloe.prompting.exemplars import ExemplarStore, exemplars_of
    from aloe.prompting.store_files import is_store, open_store

    if chosen.exemplars == "none":
        for name, value in (("--exemplars", ref), ("--reranker", reranker)):
            if value is not None:
                fix = "use few_shot, knn_few_shot or medprompt, or leave it out"
                raise AloeError(f"strategy {chosen.name} shows no exemplars", where=name, fix=fix)
        return None
    if ref is None:
        fix = "--exemplars starter/medical_mcq, a file of questions with explanations, or an exemplar store"
        raise AloeError(f"strategy {chosen.name} shows exemplars, and none were given", where="--exemplars", fix=fix)
    if reranker is not None and chosen.exemplars != "nearest":
        raise AloeError(f"strategy {chosen.name} ranks no exemplars", where="--reranker", fix="use knn_few_shot")
    ranker = CrossEncoderReranker(reranker) if reranker is not None else None
    if is_store(ref):
        return open_store(ref, reranker=ranker)
    questions, _ = rows_of(ref, [])
    return ExemplarStore(exemplars_of(questions)[0], open_encoder(), reranker=ranker)


def decide(engine: Engine, chosen: Strategy, asked: Question, store: ExemplarStore | None) -> Decision:
    """The vote on one question; a member that failed is an error, not a smaller vote."""
    from aloe.prompting.strategies import answer

    [decision] = answer(engine, chosen, [asked], store)
    if decision.outcome == "errored":
        fix = "try again, or look at the server"
        raise AloeError(f"a member's request failed: {decision.error}", where=engine.name, fix=fix)
    return decision


def confidence(decision: Decision) -> float:
    """Share of the answer in the votes of all members that were asked; those that can't be read count as votes."""
    return decision.votes[-1].counts.get(decision.letter or "", 0) / len(decision.replies)


def told(chosen: Strategy, decision: Decision, votes: bool) -> list[str]:
    """What is printed of a decision: answer, confidence and, on request, every vote and the exemplars shown. Of a reply
    that can't be read, the reply."""
    if decision.letter is None:
        first = decision.replies[0].text.strip()
        lines = ["No answer: no option could be read out of the reply.", _counted(decision), "", first]
    else:
        lines = [f"{decision.letter}. {decision.question.options[decision.letter]}", _counted(decision)]
    if votes:
        lines += ["", *_table(member_rows(chosen, decision))]
    if votes and decision.shots:
        lines += ["", "exemplars shown, the nearest last:", *_table(exemplar_rows(decision))]
    return lines


def _counted(decision: Decision) -> str:
    vote, asked = decision.votes[-1], len(decision.replies)
    unread = asked - sum(vote.counts.values())
    parts = [f"{letter} {count}" for letter, count in sorted(vote.counts.items())]
    parts += [f"unread {unread}"] if unread else []
    tie = f"; a tie of {', '.join(vote.tied)}, decided by {vote.tie_rule}" if vote.tied else ""
    return f"confidence {confidence(decision):.0%} of {asked} vote{'s' * (asked != 1)}: {', '.join(parts)}{tie}"


def member_rows(chosen: Strategy, decision: Decision) -> list[dict[str, Any]]:
    """One row per member asked: the order of the options it saw, the letter it said, the option that stands for."""
    orders, rows = chosen.orders(decision.question), []
    for member, ballot, found, reply in zip(
        decision.asked, decision.ballots, decision.extractions, decision.replies, strict=True
    ):
        rows.append({
            "member": member + 1, "order": "".join(orders[member]), "said": found.letter, "vote": ballot.letter,
            "rule": f"{found.rule}, conflict" if found.conflict else found.rule, "logprob": reply.logprob,
            "tokens": reply.completion_tokens, "ended": reply.finish_reason,
        })  # fmt: skip
    return rows


def exemplar_rows(decision: Decision) -> list[dict[str, Any]]:
    """One row per exemplar shown, in the order they were shown."""
    return [
        {
            "exemplar": shot.exemplar.question.id, "cosine": shot.similarity, "answer": shot.exemplar.question.answer,
            "question": " ".join(shot.exemplar.question.question.split()),
        }
        for shot in decision.shots
    ]  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of one shape as lines of aligned columns; the last column is cut at the width of a terminal."""
    cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def report(
    model: str, engine: Engine, chosen: Strategy, decision: Decision, store: ExemplarStore | None
) -> dict[str, Any]:
    """Everything about a decision as JSON-able values: what `--json` prints."""
    vote, question = decision.votes[-1], decision.question
    rows = member_rows(chosen, decision)
    return {
        "model": model,
        "model_digest": engine.model_digest,
        "protocol": chosen.protocol() | (store.protocol() if store is not None else {}),
        "question": question.question,
        "context": question.context,
        "options": question.options,
        "outcome": decision.outcome,
        "letter": decision.letter,
        "text": question.options[decision.letter] if decision.letter else None,
        "confidence": confidence(decision),
        "votes": vote.counts,
        "tied": list(vote.tied),
        "tie_rule": vote.tie_rule,
        "members": [row | {"text": reply.text} for row, reply in zip(rows, decision.replies, strict=True)],
        "exemplars": exemplar_rows(decision),
        "prompt_tokens": sum(reply.prompt_tokens for reply in decision.replies),
        "completion_tokens": sum(reply.completion_tokens for reply in decision.replies),
    }
