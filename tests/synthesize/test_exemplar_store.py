"""The exemplar store that `synthesize` writes is one that prompting reads; tables by source, try and reason; rows that
go through the disk come out as rows written at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.data.sources import load_rows
from aloe.digests import digest_text
from aloe.evaluate.step import reasoned
from aloe.generate.mock import MockEngine
from aloe.prompting.exemplars import ExemplarStore, exemplars_of
from aloe.prompting.strategies import shots_for, strategy
from aloe.records import Dialogue, Question
from aloe.rows import read_parquet, read_records, write_jsonl, write_parquet
from aloe.synthesize import tries
from aloe.synthesize.cot import Synthesize
from aloe.synthesize.spool import AcceptedRows, TableWriter
from aloe.synthesize.store import question_digest, stem_digest

MakeWriter = Callable[..., Any]
ORGANS = ("liver", "kidney", "heart", "spleen", "lung", "brain", "skin")


class Organs:
    """Embeds a stem by the organ it names."""

    digest = digest_text("organs")

    def encode(self, texts: list[str]) -> np.ndarray:
        hits = np.array([[0.2 + (organ in t) for organ in ORGANS] for t in texts])
        return (hits / np.linalg.norm(hits, axis=1, keepdims=True)).astype(np.float32)


def question(organ: str, n: int) -> dict[str, Any]:
    return {
        "id": organ, "source": "first" if n < 3 else "second", "licence": "mit", "answer": "B",
        "question": f"Which vessel carries blood to the {organ} of a grown person?",
        "options": {"A": f"{organ} vein", "B": f"{organ} artery", "C": f"{organ} duct"},
        "explanation": "Short.", "meta": {"split": "train"},
    }  # fmt: skip


def solution(letter: str = "B") -> str:
    return (
        " which vessel runs towards an organ. The vein leads blood back to the right atrium, the artery brings oxygen "
        f"under pressure from the aorta, and the duct carries secretions outwards.\nAnswer: {letter}"
    )


@pytest.fixture
def made(make_writer: MakeWriter, tmp_path: Path) -> Path:
    """A finished artifact: two organs need a second try, one fails in all three."""
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [question(organ, n) for n, organ in enumerate(ORGANS)])
    seen: dict[str, int] = {}

    def reply(request: Any) -> str:
        seen[request.key] = seen.get(request.key, 0) + 1
        wrong = request.key == "brain" or (request.key in ("kidney", "lung") and seen[request.key] == 1)
        return solution("A" if wrong else "B")

    ctx = make_writer(MockEngine(reply, name="author"))
    Synthesize.model_validate({"questions": str(path), "writer": "writer"}).run(ctx)
    return Path(ctx.out)


def test_both_files_give_the_same_exemplars(made: Path) -> None:
    """By the way that `evaluate` goes: the artifact's rows, or its `exemplars.parquet`."""
    found = []
    for path in (made, made / "exemplars.parquet"):
        rows, dropped = load_rows(path, source="reasoning")
        kept, refused = exemplars_of([q for q in map(reasoned, rows) if q is not None])
        assert not dropped
        assert not refused
        found.append(kept)
    assert [(e.question.id, e.reasoning) for e in found[0]] == [(e.question.id, e.reasoning) for e in found[1]]
    assert len(found[1]) == 6
    assert found[1][0].reasoning.endswith("secretions outwards.")


def test_medprompt_shows_the_store_and_refuses_the_asked_question(made: Path) -> None:
    rows, _ = load_rows(made / "exemplars.parquet", source="reasoning")
    store = ExemplarStore(exemplars_of([q for q in rows if isinstance(q, Question)])[0], Organs())
    asked = Question(**question("liver", 0))
    chosen = strategy("medprompt", shots=3, members=3)
    [shots] = shots_for(chosen, [asked], store)
    assert len(shots) == 3
    assert "liver/cot" not in {s.exemplar.question.id for s in shots}
    shown = " ".join(m["content"] for m in chosen.requests(asked, shots)[0].messages[:-1])
    assert "brings oxygen under pressure" in shown


def test_leak_guard_fields_know_a_question_by_any_order_of_its_options(made: Path) -> None:
    row = read_parquet(made / "exemplars.parquet")[0]
    meta, own = row["meta"], Question(**question("liver", 0))
    shuffled = Question.from_dict(
        own.to_dict() | {"options": {"A": "liver duct", "B": "Liver artery.", "C": "liver vein"}}
    )
    other = Question(**question("heart", 2))
    assert meta["question"] == question_digest(own) == question_digest(shuffled) != question_digest(other)
    assert meta["stem"] == stem_digest(own) != stem_digest(other)
    assert meta["original_id"] == "liver"
    assert (meta["split"], meta["writer"], meta["try"]) == ("train", "author", 1)
    assert meta["writer_digest"] == digest_text("mock:author")
    stats = json.loads((made / "stats.json").read_text())
    assert meta["prompt"] == stats["protocol"]["prompt"]


def test_acceptance_by_source_and_try_and_reason(made: Path) -> None:
    stats = json.loads((made / "stats.json").read_text())
    assert stats["by_source_and_try"] == {
        "first": {"1": {"asked": 3, "accepted": 2}, "2": {"asked": 1, "accepted": 1}},
        "second": {
            "1": {"asked": 4, "accepted": 2},
            "2": {"asked": 2, "accepted": 1},
            "3": {"asked": 1, "accepted": 0},
        },
    }
    assert stats["reasons"] == {"disagrees_with_label": {"first": {"1": 1}, "second": {"1": 2, "2": 1, "3": 1}}}
    rejected = read_parquet(made / "rejected.parquet")
    assert all(set(r["measures"]) >= {"copied", "echoed", "new_words"} for r in rejected)
    assert not (made / "spool").exists()


def test_rows_keep_the_order_of_the_questions(made: Path) -> None:
    ids = [row.meta["original_id"] for row in read_records(made / "rows.parquet", Dialogue)]
    assert ids == [o for o in ORGANS if o != "brain"]


def test_blocks_change_nothing(made: Path, make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "BLOCK", 2)
    before = {p.name: p.read_bytes() for p in made.iterdir()}
    seen: dict[str, int] = {}

    def reply(request: Any) -> str:
        seen[request.key] = seen.get(request.key, 0) + 1
        wrong = request.key == "brain" or (request.key in ("kidney", "lung") and seen[request.key] == 1)
        return solution("A" if wrong else "B")

    ctx = make_writer(MockEngine(reply, name="author"), "again")
    Synthesize.model_validate({"questions": str(made.parent / "q.jsonl"), "writer": "writer"}).run(ctx)
    assert {p.name: p.read_bytes() for p in ctx.out.iterdir()} == before


def test_streamed_rows_are_the_bytes_of_rows_written_at_once(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "source": "s", "licence": "mit", "meta": {"n": n, "ä": None}, "messages": [{"role": "user"}]}
        for n in range(50)
    ]
    columns = {"id": "text", "source": "text", "licence": "text", "meta": "json", "messages": "json"}
    with TableWriter(tmp_path / "a.parquet", columns) as out:
        for row in rows:
            out.add(row)
    write_parquet(tmp_path / "b.parquet", rows)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    with TableWriter(tmp_path / "c.parquet", columns, group=7) as out:
        for row in rows:
            out.add(row)
    assert read_parquet(tmp_path / "c.parquet") == rows


def test_accepted_rows_merge_by_place(tmp_path: Path) -> None:
    spool = AcceptedRows(tmp_path / "spool")
    for number, places in ((1, (0, 3, 4)), (2, (1,)), (3, (2, 5))):
        for place in places:
            spool.add(number, place, {"place": place, "try": number})
    assert [row["place"] for row in spool.merged()] == [0, 1, 2, 3, 4, 5]
    spool.close()
    assert not (tmp_path / "spool").exists()


def test_the_prompts_share_all_but_the_question(made: Path) -> None:
    """What an engine computes once: system turn and worked examples are the same text for every question."""
    from aloe.synthesize.prompt import writer_messages
    from aloe.synthesize.rewrite_prompt import rewrite_messages

    a, b = (writer_messages(Question(**question(o, 0)), "explain", 2) for o in ("liver", "skin"))
    assert a[:-1] == b[:-1]
    assert len(a) == 6
    assert a[-1] != b[-1]
    assert rewrite_messages("x", "y", 2)[:-1] == rewrite_messages("v", "w", 2)[:-1]
