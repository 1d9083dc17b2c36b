"""The curate step end to end: every stage, its ledger, its files, and its refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aloe.contract import references
from aloe.data.curate import Curate
from aloe.data.sources import load_questions
from aloe.digests import digest_file, files_in
from aloe.errors import AloeError
from aloe.records import Dialogue
from aloe.rows import read_parquet, read_records, write_jsonl

MakeContext = Callable[..., Any]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
STEMS = (
    "Which hormone lowers blood glucose by moving it into muscle and fat?",
    "Which valve lies between the left atrium and the left ventricle?",
    "Which organism causes most cases of community-acquired pneumonia in adults?",
    "What is the first-line drug for an acute attack of anaphylaxis in the community?",
    "Which electrolyte disturbance gives tall tented T waves on the electrocardiogram?",
    "Which nerve is at risk in a fracture of the shaft of the humerus?",
    "A deficiency of which vitamin causes night blindness and dry eyes in children?",
    "Which cells of the stomach secrete both hydrochloric acid and intrinsic factor?",
)
GOLD = ("Insulin", "Mitral valve", "Pneumococcus", "Adrenaline", "Hyperkalaemia", "Radial nerve", "Vitamin A",
        "Parietal cells")  # fmt: skip


def mcq(number: int, **change: Any) -> dict[str, Any]:
    options = {"A": GOLD[number], "B": f"Wrong {number}", "C": "None of these"}
    row = {"id": f"q{number}", "question": STEMS[number], "options": options, "answer": "A", "licence": "MIT"}
    return {**row, **change}


@pytest.fixture
def dirty(tmp_path: Path) -> dict[str, str]:
    """Two sources and a benchmark with one row of every kind that must go."""
    shuffled = {"A": "None of these", "B": GOLD[1], "C": "Wrong 1"}
    first = [
        *(mcq(n) for n in range(6)),
        mcq(1, id="twin", options=shuffled, answer="B"),
        mcq(2, id="near", question="Say: " + STEMS[2], explanation="Pneumococcus is the commonest."),
        mcq(0, id="mangled", question="Which gland makes the hormone cortisol in the human body?", answer="Ans-[A]"),
        mcq(0, id="misfit", answer="Z"),
        mcq(0, id="junk", question="n/a"),
    ]
    second = [
        {"id": "q0", "question": "What is a fever?", "answer": "A raised body temperature, often from infection."},
        {"id": "none", "question": "What is a cold?", "answer": "None"},
        {"id": "link", "question": "What helps sleep?", "answer": "Regular hours. See https://x.org for more."},
    ]
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("first", "second", "bench")}
    write_jsonl(Path(paths["first"]), first)
    write_jsonl(Path(paths["second"]), second)
    write_jsonl(Path(paths["bench"]), [mcq(3, id="exam-1", options={"A": "Adrenaline", "B": "Water", "C": "Salt"})])
    return paths


def curate(dirty: dict[str, str], **change: Any) -> Curate:
    settings = {
        "sources": [dirty["first"], dirty["second"]], "decontaminate": {"against": [dirty["bench"]]},
        "max_dropped_share": 0.9, **change,
    }  # fmt: skip
    return Curate.model_validate(settings)


def test_each_stage_drops_what_it_should(make_context: MakeContext, dirty: dict[str, str]) -> None:
    ctx = make_context()
    summary = curate(dirty).run(ctx)
    assert ctx.stages == {
        "load": (14, 13, {"answer_not_in_options": 1}),
        "clean": (13, 11, {"junk_answer": 1, "junk_question": 1}),
        "phi": (11, 11, {}),
        "exact_dedup": (11, 10, {"exact_duplicate": 1}),
        "near_dedup": (10, 9, {"near_duplicate": 1}),
        "decontaminate": (9, 8, {"contaminated": 1}),
        "template": (8, 8, {}),
        "mix": (8, 8, {}),
    }
    rows = read_records(ctx.out / "rows.parquet", Dialogue)
    kept = {r.id for r in rows}
    assert kept == {
        "first:q0", "first:q1", "first:near", "first:q4", "first:q5", "first:mangled", "second:q0", "second:link",
    }  # fmt: skip
    assert (summary["rows"], summary["rows_read"], summary["contaminated"]) == (8, 14, 1)
    json.dumps(summary, allow_nan=False)


def test_dropped_rows_carry_reason_and_evidence(make_context: MakeContext, dirty: dict[str, str]) -> None:
    ctx = make_context()
    curate(dirty).run(ctx)
    dropped = {row["id"]: row for row in read_parquet(ctx.out / "dropped.parquet")}
    assert dropped["first:misfit"]["where"] == "first.jsonl:10"
    assert dropped["first:twin"]["evidence"] == {"survivor": "first:q1"}
    near = dropped["first:q2"]["evidence"]  # its twin has an explanation, so it is longer and survives
    assert (near["survivor"], near["match"]) == ("first:near", "first:near")
    assert near["jaccard"] >= 0.72
    hit = dropped["first:q3"]["evidence"]
    assert (hit["benchmark"], hit["item_id"], hit["tier"]) == ("bench", "exam-1", "exact_stem")
    assert hit["row_text"]
    assert hit["item_text"]
    assert dropped["first:q3"]["row"]["question"] == STEMS[3]
    report = json.loads((ctx.out / "contamination.json").read_text())
    assert report["table"]["first"]["bench"]["contaminated"] == 1
    assert report["flagged_items"] == {"bench": ["exam-1"]}
    assert report["hits"][0]["similarity"] >= 0.6


def test_rows_trace_to_their_source(make_context: MakeContext, dirty: dict[str, str]) -> None:
    ctx = make_context()
    curate(dirty, licences={"second": "CC-BY-4.0"}).run(ctx)
    rows = {r.id: r for r in read_records(ctx.out / "rows.parquet", Dialogue)}
    row = rows["first:mangled"]
    assert (row.source, row.licence, row.meta["original_id"]) == ("first", "mit", "mangled")
    assert row.meta["repaired_answer"]["from"] == "Ans-[A]"
    assert row.meta["template"].startswith(row.meta["task"])
    assert rows["second:link"].messages[1]["content"] == "Regular hours. See for more."
    assert rows["second:q0"].licence == "cc-by-4.0"
    questions = {q.id: q for q in load_questions(ctx.out)}
    assert set(questions) == {i for i in rows if i.startswith("first:")}
    assert questions["first:q1"].options["A"] == "Mitral valve"
    stats = json.loads((ctx.out / "stats.json").read_text())
    assert stats["licences"] == {"cc-by-4.0": 2, "mit": 6}
    assert stats["changes"] == {"answer_repaired": 1, "url_stripped": 1}
    assert stats["dedup"]["permutations"] == 128
    assert sum(stats["shares"].values()) == pytest.approx(1)


def test_dataset_card(make_context: MakeContext, dirty: dict[str, str]) -> None:
    import yaml

    ctx = make_context()
    curate(dirty, licences={"second": "cc-by-nc-4.0"}).run(ctx)
    text = (ctx.out / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "cc-by-nc-4.0"
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"][0]["data_files"][0]["path"] == "rows.parquet"
    assert "| second | 2 | cc-by-nc-4.0 (2) |" in text
    assert "**cc-by-nc-4.0**" in text
    unknown = make_context("unknown")
    curate(dirty).run(unknown)
    assert "license: other" in (unknown.out / "README.md").read_text()


def test_same_inputs_same_bytes(make_context: MakeContext, dirty: dict[str, str]) -> None:
    first, second, other = make_context("a"), make_context("b"), make_context("c", seed=8)
    for ctx in (first, second, other):
        curate(dirty, rows=6).run(ctx)
    digests = [{p.name: digest_file(p) for p in files_in(c.out)} for c in (first, second, other)]
    assert digests[0] == digests[1]
    assert digests[0]["rows.parquet"] != digests[2]["rows.parquet"]
    assert set(digests[0]) == {
        "README.md", "contamination.json", "curation.json", "dropped.parquet", "rows.parquet", "stats.json",
    }  # fmt: skip


def test_weights_rows_and_limit(make_context: MakeContext, dirty: dict[str, str]) -> None:
    ctx = make_context()
    sources = {dirty["first"]: {"weight": 2, "limit": 6}, dirty["second"]: {"weight": 1}}
    curate(dirty, sources=sources, rows=3).run(ctx)
    rows = read_records(ctx.out / "rows.parquet", Dialogue)
    assert Counter(r.source for r in rows) == {"first": 2, "second": 1}
    assert ctx.stages["mix"][2] == {"not_sampled": 4}
    assert ctx.stages["load"][0] == 9
    with pytest.raises(AloeError, match="has no weight"):
        curate(dirty, sources={dirty["first"]: {"weight": 2}, dirty["second"]: None}).run(make_context("x"))
    with pytest.raises(AloeError, match="which has 5"):
        curate(dirty, sources=sources, rows=30).run(make_context("y"))


def test_priority_is_the_order_of_sources(make_context: MakeContext, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")
    write_jsonl(Path(one), [mcq(0), mcq(1)])
    write_jsonl(Path(two), [mcq(0, explanation="Insulin does, by opening transporters."), mcq(2)])
    ctx = make_context()
    Curate.model_validate({"sources": [one, two], "max_dropped_share": 0.5}).run(ctx)
    kept = {r.id for r in read_records(ctx.out / "rows.parquet", Dialogue)}
    assert kept == {"one:q0", "one:q1", "two:q2"}


def test_curated_rows_can_be_curated_again(make_context: MakeContext, dirty: dict[str, str]) -> None:
    first, second = make_context("a"), make_context("b")
    curate(dirty).run(first)
    second.steps["corpus"] = first.out
    summary = Curate.model_validate({"sources": ["corpus"], "decontaminate": {"against": [dirty["bench"]]}}).run(second)
    assert summary["rows"] == 8
    assert summary["by_source"] == {"first": 6, "second": 2}
    before = {r.meta["original_id"]: r.messages for r in read_records(first.out / "rows.parquet", Dialogue)}
    assert {r.meta["original_id"] for r in read_records(second.out / "rows.parquet", Dialogue)} == set(before)


def test_too_many_dropped_stops_and_says_why(make_context: MakeContext, dirty: dict[str, str]) -> None:
    with pytest.raises(AloeError) as error:
        curate(dirty, max_dropped_share=0.2).run(make_context())
    text = str(error.value)
    assert "6 of 14 rows dropped" in text
    assert "e.g. first:misfit (first.jsonl:10)" in text
    assert "max_dropped_share" in text


def test_nothing_left_says_which_stage(make_context: MakeContext, tmp_path: Path) -> None:
    path = str(tmp_path / "only.jsonl")
    write_jsonl(Path(path), [mcq(3)])
    bench = str(tmp_path / "bench.jsonl")
    write_jsonl(Path(bench), [mcq(3)])
    step = Curate.model_validate({"sources": [path], "decontaminate": {"against": [bench]}})
    with pytest.raises(AloeError, match=r"no row is left of 1 \(decontaminate: 1 contaminated, e\.g\. only:q3"):
        step.run(make_context())


def test_bad_parameters(make_context: MakeContext, dirty: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        Curate.model_validate({"sources": []})
    with pytest.raises(ValidationError):
        Curate.model_validate({"sources": ["a"], "dedupe": {}})
    with pytest.raises(AloeError, match="a source and a benchmark"):
        curate(dirty, decontaminate={"against": [dirty["first"]]}).run(make_context("a"))
    with pytest.raises(AloeError, match="no source is called 'third'"):
        curate(dirty, licences={"third": "mit"}).run(make_context("b"))
    with pytest.raises(AloeError, match="curate takes questions and dialogues"):
        Curate.model_validate({"sources": ["starter/preferences"]}).run(make_context("c"))
    with pytest.raises(AloeError, match="starter/medical_mcq"):
        Curate.model_validate({"sources": ["starter/nothing"]}).run(make_context("d"))


def test_references_of_every_form() -> None:
    step = Curate.model_validate(
        {"sources": {"starter/general": {"weight": 1}, "reasoning": {"weight": 2}}, "decontaminate": {"against": ["x"]}}
    )
    assert [(path, value) for path, value, _ in references(step)] == [
        ("sources[0].rows", "starter/general"),
        ("sources[1].rows", "reasoning"),
        ("decontaminate.against[0].rows", "x"),
    ]


def test_starter_sets(make_context: MakeContext) -> None:
    ctx = make_context()
    step = Curate.model_validate(
        {
            "sources": ["starter/medical_mcq", "starter/medical_qa", "starter/general"],
            "decontaminate": {"against": ["starter/exam"]},
        }
    )
    summary = step.run(ctx)
    assert summary["licence"] == "cc0-1.0"
    assert set(summary["by_source"]) == {"starter/medical_mcq", "starter/medical_qa", "starter/general"}
    assert summary["rows"] >= 0.9 * summary["rows_read"]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs the data folder beside the project (../shared/data)")
def test_real_questions_against_mmlu_medical(make_context: MakeContext) -> None:
    ctx = make_context()
    train, bench = SHARED / "train/medical_mcq.jsonl.gz", SHARED / "eval/mmlu_medical_test.jsonl.gz"
    step = Curate.model_validate(
        {
            "sources": {str(train): {"limit": 3000}},
            "decontaminate": {"against": [str(bench)]},
            "max_dropped_share": 0.05,
        }
    )
    summary = step.run(ctx)
    assert summary["rows_read"] == 3000
    assert summary["contaminated"] <= 2  # the set was checked against this benchmark before
    report = json.loads((ctx.out / "contamination.json").read_text())
    candidates = sum(row["mmlu_medical_test"]["candidates"] for row in report["table"].values())
    assert candidates > 50  # shared boilerplate: n-grams alone would have dropped these
