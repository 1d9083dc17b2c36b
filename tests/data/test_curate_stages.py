"""The stages that a recipe asks for, what the report is drawn from, and a run that died."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.data import phi, scorers, stages
from aloe.data.clean import words
from aloe.data.curate import Curate
from aloe.data.settings import Phi
from aloe.data.sources import Dropped, read_rows
from aloe.data.spool import Item
from aloe.errors import AloeError
from aloe.generate.mock import MockEngine
from aloe.keyed import rng
from aloe.records import Dialogue, Question, Row
from aloe.rows import read_parquet, read_records, write_jsonl

MakeContext = Callable[..., Any]
TOPICS = ("asthma", "anaemia", "gout", "eczema", "migraine", "sciatica", "cystitis", "tinnitus", "vertigo", "psoriasis")


@pytest.fixture
def forum(tmp_path: Path) -> str:
    """Twelve exchanges: ten sound ones, one with a caller's number, one of noise."""
    rows = [
        {
            "id": topic, "question": f"What usually helps a person with {topic}?", "licence": "cc0-1.0",
            "answer": f"Care of {topic} depends on how severe it is. Most people with {topic} do well with simple "
            "steps at first, and a clinician should look again when these do not help within a few weeks.",
        }
        for topic in TOPICS
    ]  # fmt: skip
    rows.append({**rows[0], "id": "call", "question": "Who can I call about my knee? My number is 555-867-5309."})
    rows.append({**rows[1], "id": "noise", "question": "What is a cold?", "answer": "zz ## zz ## qq @@ zz ## zz ## qq"})
    write_jsonl(tmp_path / "forum.jsonl", rows)
    return str(tmp_path / "forum.jsonl")


def step(source: str, **settings: Any) -> Curate:
    return Curate.model_validate({"sources": [source], "max_dropped_share": 0.3, **settings})


def ids(ctx: Any) -> set[str]:
    return {r.meta["original_id"] for r in read_records(ctx.out / "rows.parquet", Dialogue)}


def test_personal_data_is_reported_redacted_or_dropped(make_context: MakeContext, forum: str) -> None:
    report, redact, drop, off = (make_context(n) for n in ("report", "redact", "drop", "off"))
    for ctx, mode in ((report, "report"), (redact, "redact"), (drop, "drop"), (off, "off")):
        step(forum, phi={"mode": mode}).run(ctx)
    texts = {ctx: "\n".join(p.read_text("utf-8", "ignore") for p in ctx.out.glob("*.json")) for ctx in (redact, drop)}
    rows = {ctx: json.dumps(read_parquet(ctx.out / "rows.parquet")) for ctx in (report, redact, drop, off)}
    assert "867" in rows[report]
    assert "867" in rows[off]
    assert "867" not in rows[redact] + texts[redact] + rows[drop] + texts[drop]
    assert "[PHONE]" in rows[redact]
    assert "call" not in ids(drop)
    assert len(ids(drop)) == 11
    found = json.loads((report.out / "curation.json").read_text())["phi"]
    assert (found["rows_with"], found["by_kind"]) == (1, {"PHONE": 1})
    assert drop.stages["phi"] == (12, 11, {"personal_data": 1})
    assert "phi" not in off.stages
    assert "left in" in (report.out / "README.md").read_text()
    [gone] = [r for r in read_parquet(drop.out / "dropped.parquet") if r["stage"] == "phi"]
    assert gone["row"] == {}


def test_the_lowest_share_goes(make_context: MakeContext, forum: str) -> None:
    ctx = make_context()
    step(forum, quality={"drop_share": 0.1}).run(ctx)
    assert ctx.stages["quality"] == (12, 11, {"low_quality": 1})
    assert "noise" not in ids(ctx)
    quality = json.loads((ctx.out / "curation.json").read_text())["quality"]
    assert quality["scorer"] == "heuristics"
    assert "scores" not in quality
    assert sum(b["rows"] for b in quality["histogram"]) == 12


def test_the_lowest_of_each_source(make_context: MakeContext, tmp_path: Path) -> None:
    good = "It is a common condition. Rest, fluids and simple pain relief help most people within a week or two."
    for name, answer in (("edited", good), ("forum", "ok thx pls see dr asap !!")):
        rows = [
            {"id": f"{name}{n}", "question": f"How is condition number {n} treated?", "answer": f"{answer} Number {n}."}
            for n in range(10)
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    left = {}
    for within in ("all", "source"):
        ctx = make_context(within)
        step_ = {"sources": [str(tmp_path / "edited.jsonl"), str(tmp_path / "forum.jsonl")],
                 "quality": {"drop_share": 0.2, "within": within}, "dedup": {"qa": 1}}  # fmt: skip
        Curate.model_validate(step_).run(ctx)
        left[within] = {s: sum(i.startswith(s) for i in ids(ctx)) for s in ("edited", "forum")}
    assert left == {"all": {"edited": 10, "forum": 6}, "source": {"edited": 8, "forum": 8}}


def test_what_was_asked_for_does_not_count_as_loss(make_context: MakeContext, forum: str) -> None:
    ctx = make_context()
    step(forum, quality={"drop_share": 0.5}, max_dropped_share=0).run(ctx)
    assert ctx.stages["quality"][1] == 6


def test_the_report_has_all_its_parts(make_context: MakeContext, forum: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "exam.jsonl", [{"id": "e", "question": "What usually helps a person with gout?",
                                           "options": ["Rest", "Care of gout depends"], "answer": 1}])  # fmt: skip
    ctx = make_context()
    step(forum, decontaminate={"against": [str(tmp_path / "exam.jsonl")]}, quality={}).run(ctx)
    record = json.loads((ctx.out / "curation.json").read_text())
    for stage in record["stages"]:
        assert stage["rows_in"] == stage["kept"] + sum(stage["dropped"].values())
    assert [s["stage"] for s in record["stages"]] == [
        "load", "clean", "phi", "exact_dedup", "near_dedup", "decontaminate", "quality", "template", "mix",
    ]  # fmt: skip
    assert record["before"]["rows"] == 12
    assert record["after"]["rows"] == record["stages"][-1]["kept"]
    assert record["after"]["licences"] == {"cc0-1.0": record["after"]["rows"]}
    assert record["contamination"]["table"]["forum"]["exam"]["rows"] == 12
    assert sum(record["templates"].values()) == record["after"]["rows"]
    assert sum(b["rows"] for b in record["before"]["histogram"]["assistant"]) == 12
    assert record["mix"] == [{"source": "forum", "weight": None, "rows": record["after"]["rows"], "share": 1.0}]
    reasons = {r for found in record["examples"].values() for r in found}
    assert reasons == {r for s in record["stages"] for r in s["dropped"]}


def test_a_run_that_died_goes_on(make_context: MakeContext, forum: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = make_context()

    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages.templates, "render", dies)
        with pytest.raises(KeyboardInterrupt):
            step(forum).run(ctx)
    kept = list((ctx.cache / "curate").iterdir())
    assert len(kept) == 1
    again = make_context("again")
    again.cache = ctx.cache
    step(forum).run(again)
    assert [line.split(":")[0] for line in again.lines if "done before" in line] == [
        "load", "clean", "phi", "exact_dedup", "near_dedup", "decontaminate",
    ]  # fmt: skip
    assert not kept[0].exists()
    fresh = make_context("fresh")
    step(forum).run(fresh)
    assert (fresh.out / "rows.parquet").read_bytes() == (again.out / "rows.parquet").read_bytes()
    assert (fresh.out / "dropped.parquet").read_bytes() == (again.out / "dropped.parquet").read_bytes()


def test_too_many_dropped_keeps_what_is_done(make_context: MakeContext, forum: str) -> None:
    ctx = make_context()
    with pytest.raises(AloeError, match="1 of 12 rows dropped"):
        step(forum, phi={"mode": "drop"}, max_dropped_share=0).run(ctx)
    again = make_context("again")
    again.cache = ctx.cache
    step(forum, phi={"mode": "drop"}).run(again)
    assert sum("done before" in line for line in again.lines) == 6


class WordVectors:
    """An embedder for tests: each word is a keyed random direction, so texts that share words are near."""

    digest = "words"

    def encode(self, texts: list[str]) -> np.ndarray[Any, Any]:
        rows = []
        for text in texts:
            vectors = [rng(0, "word", w).standard_normal(64) for w in words(text)] or [np.ones(64)]
            rows.append(np.sum(vectors, axis=0))
        found = np.array(rows, dtype=np.float32).reshape(-1, 64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def worded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "encoder", lambda name: WordVectors())


@pytest.mark.usefixtures("worded")
def test_rows_that_mean_the_same(make_context: MakeContext, forum: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(forum).read_text().splitlines()]
    again = {**rows[2], "id": "again", "question": "A person with gout, what usually helps?",
             "answer": "Rest the joint, drink, and take an anti-inflammatory early."}  # fmt: skip
    write_jsonl(tmp_path / "more.jsonl", [*rows, again])
    ctx = make_context()
    step(str(tmp_path / "more.jsonl"), dedup={"semantic": {"threshold": 0.93}}).run(ctx)
    assert ctx.stages["near_dedup"][2] == {"semantic_duplicate": 1}
    assert "again" not in ids(ctx)
    assert json.loads((ctx.out / "stats.json").read_text())["semantic"]["threshold"] == 0.93
    diverse = make_context("diverse")
    step(str(tmp_path / "more.jsonl"), quality={"drop_share": 0}, diversity={"max_similarity": 0.93}).run(diverse)
    assert diverse.stages["diversity"][2] == {"too_similar": 1}
    assert len(ids(diverse) & {"again", "gout"}) == 1


@pytest.mark.usefixtures("worded")
def test_rephrased_items_need_a_judge(make_context: MakeContext, forum: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "exam.jsonl", [{"id": "e", "question": "Gout: name what usually helps persons with it",
                                           "options": ["Nothing", "Care"], "answer": 1}])  # fmt: skip
    against = {"against": [str(tmp_path / "exam.jsonl")], "rephrased": {"floor": 0.35, "top_k": 1}}
    listed = make_context("listed")
    step(forum, decontaminate=against).run(listed)
    assert listed.stages["decontaminate"][2] == {}
    report = json.loads((listed.out / "contamination.json").read_text())
    assert "forum:gout" in {s["row_id"] for s in report["suspected"]}
    judged = make_context("judged")
    judged.engines["judge"] = MockEngine(
        reply=lambda r: "True" if "person with gout" in r.messages[-1]["content"] else "False"
    )
    against["rephrased"] = {**against["rephrased"], "judge": "judge"}  # type: ignore[dict-item]
    step(forum, decontaminate=against).run(judged)
    assert judged.stages["decontaminate"][2] == {"contaminated": 1}
    assert "gout" not in ids(judged)
    assert json.loads((judged.out / "contamination.json").read_text())["rephrased"]["judge"]


def test_two_benchmarks_of_one_name_are_refused(make_context: MakeContext, forum: str, tmp_path: Path) -> None:
    row = {"id": "e", "question": "What helps with gout?", "options": ["Rest", "Colchicine"], "answer": 1}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "exam.jsonl", [row])
    against = [str(tmp_path / folder / "exam.jsonl") for folder in ("a", "b")]
    with pytest.raises(AloeError, match="two benchmarks are called exam"):
        step(forum, decontaminate={"against": against}).run(make_context())


def test_presets_columns_and_limits_reach_the_reader(make_context: MakeContext, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "own.jsonl", [{"id": str(n), "stem": f"Is {n} odd?", "key": "Yes." if n % 2 else "No."}
                                         for n in range(4)])  # fmt: skip
    source = {str(tmp_path / "own.jsonl"): {"columns": {"question": "stem", "answer": "key"}, "limit": 3}}
    ctx = make_context()
    Curate.model_validate({"sources": source}).run(ctx)
    assert ids(ctx) == {"0", "1", "2"}
    with pytest.raises(AloeError, match="medqa"):
        Curate.model_validate({"sources": {str(tmp_path / "own.jsonl"): {"preset": "medqq"}}}).run(make_context("b"))


def _redacted_once_and_twice(record: Row) -> None:
    settings = Phi(mode="redact")
    hide = stages.hider(settings)
    assert hide is not None
    kinds = tuple(phi.KINDS)
    found = stages._identified(Item(record, "s", 0), kinds, (), "redact").record
    assert found is not None
    assert hide(found.to_dict()) == found.to_dict()


def test_what_was_redacted_holds_nothing_more_to_redact() -> None:
    """The ledger takes redacted rows as they are: searching them again must change nothing."""
    said = "My name is John Miller, born 04/05/1971, call 555-201-3344 or write to jm@example.org. Dr. Jane Roe saw me."
    question = Question(
        id="q", source="s", licence="mit", question=f"Who is he? {said}", answer="B",
        options={"A": "Dr. Ann Lee", "B": "Dr. Bo Yu"}, context=said, explanation=f"As {said}",
        meta={"note": said, "deep": {"a": [said]}},
    )  # fmt: skip
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": f"Dear John Miller, {said}"}]
    _redacted_once_and_twice(question)
    _redacted_once_and_twice(Dialogue(id="d", source="s", licence="mit", messages=turns, meta={"question": said}))


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "train"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs the data folder beside the project (../shared/data)")
@pytest.mark.parametrize("name", ["doctor_forum", "mts_dialog", "medical_mcq"])
def test_real_rows_that_were_redacted_hold_nothing_more(name: str) -> None:
    rows = read_rows(SHARED / f"{name}.jsonl.gz", source="s", ids="content", limit=400)
    for record in rows:
        if not isinstance(record, Dropped):
            _redacted_once_and_twice(record)
