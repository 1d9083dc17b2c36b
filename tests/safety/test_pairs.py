"""Stage-2 pairs: rejected is the model's own unsafe reply, look-alikes have the roles turned round."""

from __future__ import annotations

from typing import Any

import pytest

from aloe.errors import AloeError
from aloe.generate.engine import Request
from aloe.generate.mock import MockEngine
from aloe.records import Preference
from aloe.rows import read_parquet, read_records
from aloe.safety.pairs import OVER_REFUSALS, RedTeamPairs

UNSAFE = "Sure, here is the note for your friend, visits and diagnosis.\n1. Take a sheet.\n2. Write the note.\n3. Sign."
REFUSAL = "I'm sorry, but I can't help with that."


def step(**changes: Any) -> RedTeamPairs:
    values = {"model": "m", "requests": "harmful", "benign": "benign", "styles": ["plain", "fiction"]}
    return RedTeamPairs(**{**values, **changes})


def reply(request: Request) -> str:
    text = request.messages[-1]["content"]
    if "diagnosis" in text:
        return REFUSAL
    if "cortisone" in text:
        return REFUSAL
    return UNSAFE


def pairs_of(ctx: Any) -> list[Preference]:
    return read_records(ctx.out / "rows.parquet", Preference)


def test_rejected_is_the_models_own_reply_and_chosen_the_safe_response(make_context: Any) -> None:
    ctx = make_context(m=MockEngine(reply))
    summary = step(benign=None).run(ctx)
    rows = pairs_of(ctx)
    assert summary["harmful_pairs"] == len(rows) == 4  # two of three train requests, two styles
    assert {r.rejected for r in rows} == {UNSAFE}
    assert all("won't" in r.chosen or r.chosen.startswith("No.") for r in rows)
    assert {(r.meta["topic"], r.meta["style"]) for r in rows} == {("fraud", "plain"), ("fraud", "fiction")}
    assert all(r.meta["judge_rule"] and r.meta["base_id"] for r in rows)
    assert rows[0].licence == "cc0-1.0" or rows[0].licence == "unknown"


def test_requests_already_refused_are_dropped_with_reason_and_evidence(make_context: Any) -> None:
    ctx = make_context(m=MockEngine(reply))
    step().run(ctx)
    assert ctx.ledgers["requests"] == {"in": 6, "kept": 4, "dropped": {"already_refused": 2}}
    dropped = [r for r in read_parquet(ctx.out / "dropped.parquet") if r["reason"] == "already_refused"]
    assert [r["evidence"] for r in dropped] == [REFUSAL, REFUSAL]


def test_benign_look_alikes_are_mixed_in_by_share(make_context: Any) -> None:
    ctx = make_context(m=MockEngine(reply))
    summary = step(benign_share=0.34).run(ctx)
    benign = {r.prompt[-1]["content"]: r for r in pairs_of(ctx) if r.meta["benign"]}
    assert summary["benign_pairs"] == len(benign) == 2
    own = benign["What does a cortisone shot do?"]  # the model refused it: its own refusal is rejected
    assert (own.rejected, own.meta["rejected_from"]) == (REFUSAL, "model")
    listed = benign["How do I kill a fever?"]  # it answered: its answer may be right, so a refusal stands in
    assert listed.rejected in OVER_REFUSALS
    assert listed.chosen.startswith("Rest")
    assert ctx.ledgers["benign"]["dropped"] == {"no_answer": 1}


def test_share_zero_and_no_look_alikes_leave_only_harmful_pairs(make_context: Any) -> None:
    for changes in ({"benign_share": 0.0}, {"benign": None}):
        ctx = make_context(m=MockEngine(reply))
        assert step(**changes).run(ctx)["benign_pairs"] == 0


def test_errors_and_degenerate_replies_make_no_pair(make_context: Any) -> None:
    def broken(request: Request) -> str:
        if "false" in request.messages[-1]["content"]:
            raise RuntimeError("out of memory")
        return "the " * 40 if "diagnosis" in request.messages[-1]["content"] else UNSAFE

    ctx = make_context(m=MockEngine(broken))
    step(styles=["plain"], benign=None).run(ctx)
    assert ctx.ledgers["requests"]["dropped"] == {"errored": 1, "degenerate_reply": 1}


def test_no_pair_at_all_is_an_error_that_says_why(make_context: Any) -> None:
    with pytest.raises(AloeError, match="already_refused 3") as caught:
        step(styles=["plain"]).run(make_context(m=MockEngine(lambda r: REFUSAL)))
    assert "already refuse" in str(caught.value.fix)


def test_limit_counts_base_requests_and_keeps_their_styles_together(make_context: Any) -> None:
    ctx = make_context(m=MockEngine(lambda r: UNSAFE))
    summary = step(limit=2, benign=None).run(ctx)
    assert (summary["base_requests"], summary["pairs"]) == (2, 4)
    assert ctx.ledgers["limit"] == {"in": 3, "kept": 2, "dropped": {"over_limit": 1}}


def test_same_inputs_give_the_same_file(make_context: Any) -> None:
    ctx = make_context(m=MockEngine(reply))
    step().run(ctx)
    first = (ctx.out / "rows.parquet").read_bytes()
    step().run(ctx)
    assert (ctx.out / "rows.parquet").read_bytes() == first


def test_max_new_tokens_and_tokens_are_passed_on(make_context: Any) -> None:
    engine = MockEngine(reply)
    ctx = make_context(m=engine)
    step(max_new_tokens=33).run(ctx)
    assert {r.sampling.max_new_tokens for r in engine.requests} == {33}
    assert ctx.tokens["prompt"] > 0
    assert ctx.tokens["completion"] > 0


def test_an_unknown_split_names_the_known_ones(make_context: Any) -> None:
    with pytest.raises(AloeError, match="no request has split 'dev'") as caught:
        step(split="dev").run(make_context(m=MockEngine(reply)))
    assert "test, train" in str(caught.value)
