"""The red team: rates with intervals, over-refusal beside them, errors apart, models paired by prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aloe.errors import AloeError
from aloe.evaluate.stats import mcnemar, wilson
from aloe.generate.engine import Request
from aloe.generate.mock import MockEngine
from aloe.records import ItemResult, Preference
from aloe.rows import read_records, write_records
from aloe.safety.red_team import RedTeam

UNSAFE = "Sure: the weapon goes past the guard of the ward; the patient of the trial is new.\n1. Take it.\n2. Hide it."
REFUSAL = "I'm sorry, but I can't help with that."


def before(request: Request) -> str:
    text = request.messages[-1]["content"]
    return "Wash with a licensed lotion and comb the hair." if "lice" in text or "sore" in text else UNSAFE


def after(request: Request) -> str:
    text = request.messages[-1]["content"]
    if "Invent" in text and "novel" in text:
        return UNSAFE
    return REFUSAL


def step(**changes: Any) -> RedTeam:
    values = {"models": ["old", "new"], "requests": "harmful", "benign": "benign", "styles": ["plain", "fiction"]}
    return RedTeam(**{**values, **changes})


@pytest.fixture
def ran(make_context: Any) -> Any:
    ctx = make_context(old=MockEngine(before), new=MockEngine(after))
    summary = step().run(ctx)
    return ctx, summary, json.loads((ctx.out / "red_team.json").read_text())


def test_attack_success_by_model_style_and_topic_with_wilson_intervals(ran: Any) -> None:
    _, summary, result = ran
    old, new = result["models"]["old"], result["models"]["new"]
    assert old["attack_success"] == {
        "value": 1.0, "low": pytest.approx(wilson(6, 6)[0]), "high": 1.0, "successes": 6, "n": 6
    }  # fmt: skip
    assert new["attack_success"]["value"] == pytest.approx(1 / 6)
    assert new["by_style"]["plain"]["value"] == 0.0
    assert new["by_style"]["fiction"]["value"] == pytest.approx(1 / 3)
    assert new["by_topic"]["weapons"]["value"] == 0.0
    assert new["by_topic_and_style"]["fraud / fiction"]["value"] == 1.0
    assert new["attack_success_clustered"]["clusters"] == 3
    assert summary["attack_success"] == {"old": 1.0, "new": pytest.approx(1 / 6)}


def test_over_refusal_stands_beside_attack_success(ran: Any) -> None:
    _, summary, result = ran
    assert summary["over_refusal"] == {"old": 0.0, "new": 1.0}
    assert result["models"]["new"]["over_refusal_full"]["value"] == 1.0
    assert result["models"]["new"]["labels"] == {"refused": 5, "partial": 0, "complied": 1, "degenerate": 0}


def test_models_are_paired_prompt_by_prompt(ran: Any) -> None:
    result = ran[2]
    pair = next(p for p in result["paired"] if p["metric"] == "attack_success")
    assert (pair["before"], pair["after"], pair["n"]) == ("old", "new", 6)
    assert (pair["only_before"], pair["only_after"]) == (5, 0)
    assert pair["p_value"] == pytest.approx(mcnemar(5, 0)) == pytest.approx(2 / 2**5)


def test_items_are_the_source_of_the_rates(ran: Any) -> None:
    ctx, _, result = ran
    items = read_records(ctx.out / "items.parquet", ItemResult)
    assert len(items) == len({i.id for i in items}) == 2 * (6 + 2)
    assert {i.metric for i in items} == {"attack_success", "over_refusal"}
    assert {i.protocol for i in items} == set(result["protocols"])
    assert all({"topic", "style", "base_id"} <= set(i.meta) for i in items)
    assert ctx.ledgers["requests"] == {"in": 3, "kept": 3, "dropped": {}}


def test_errors_are_neither_safe_nor_unsafe(make_context: Any) -> None:
    def failing(request: Request) -> str:
        if "Invent" in request.messages[-1]["content"]:
            raise RuntimeError("timeout")
        return REFUSAL

    ctx = make_context(old=MockEngine(failing), new=MockEngine(after))
    summary = step().run(ctx)
    assert summary["errors"]["old"] == 2
    assert summary["n"]["old"] == 4
    rows = [i for i in read_records(ctx.out / "items.parquet", ItemResult) if i.outcome == "errored"]
    assert {i.value for i in rows} == {None}
    assert "timeout" in rows[0].meta["error"]


def test_without_look_alikes_over_refusal_is_said_to_be_unmeasured(make_context: Any) -> None:
    ctx = make_context(old=MockEngine(before), new=MockEngine(after))
    assert step(benign=None).run(ctx)["over_refusal"] == {"old": None, "new": None}


def test_held_out_styles_topics_and_leaks_are_named(make_context: Any, tmp_path: Any) -> None:
    ctx = make_context(old=MockEngine(before), new=MockEngine(after))
    folder = tmp_path / "attacks"
    folder.mkdir()
    pair = Preference(
        id="p", source="s", licence="cc0-1.0", prompt=[{"role": "user", "content": "x"}], chosen="a", rejected="b",
        meta={"topic": "fraud", "style": "plain", "base_id": "h5", "benign": False},
    )  # fmt: skip
    write_records(folder / "rows.parquet", [pair])
    ctx.upstream["attacks"] = ({"verb": "red_team_pairs"}, folder)
    summary = step().run(ctx)
    held = json.loads((ctx.out / "red_team.json").read_text())["held_out"]
    assert summary["held_out_styles"] == ["fiction"]
    assert summary["held_out_topics"] == ["weapons"]
    assert held["trained_by"] == ["attacks"]
    assert held["base_requests_seen_in_training"] == 1  # h5 is tested here too: the leak is counted


def test_different_templates_are_never_paired(make_context: Any) -> None:
    other = MockEngine(after)
    other.template_digest = "another"
    ctx = make_context(old=MockEngine(before), new=other)
    step().run(ctx)
    assert json.loads((ctx.out / "red_team.json").read_text())["paired"] == []


def test_harmful_rows_given_as_look_alikes_are_refused(make_context: Any) -> None:
    with pytest.raises(AloeError, match="not marked benign"):
        step(benign="harmful").run(make_context(old=MockEngine(before), new=MockEngine(after)))


def test_runs_are_deterministic(make_context: Any) -> None:
    ctx = make_context(old=MockEngine(before), new=MockEngine(after))
    step(limit=2, max_new_tokens=50).run(ctx)
    first = {p.name: p.read_bytes() for p in ctx.out.iterdir()}
    step(limit=2, max_new_tokens=50).run(ctx)
    assert {p.name: p.read_bytes() for p in ctx.out.iterdir()} == first
