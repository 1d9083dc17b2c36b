"""A crew gives what one process gives, whoever works, dies or never comes; and what compares rows stays whole."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data import crew as crew_module
from aloe.data import decontaminate, dedup, flow, spool
from aloe.data.crew import LEAD, Crew, claim, serve
from aloe.data.spool import Item, Spool, SpoolWriter, View
from aloe.keyed import rng
from aloe.records import Dialogue, Question
from aloe.rows import write_jsonl

WORDS = ("fever", "rest", "water", "aspirin", "a", "stiff", "neck", "of", "the", "patient", "daily", "pain", "renal")
BIRTHS = "My name is John Miller, born 04/05/1971, call 555-201-3344. "


def lengths(items: list[Item]) -> list[tuple[str, int]]:
    return [(i.record.id, len(i.record.messages)) for i in items]  # type: ignore[attr-defined]


def view_of(folder: Path, count: int) -> View:
    path = folder / "rows.arrow"
    with SpoolWriter(path) as writer:
        for n in range(count):
            turns = [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "yes"}]
            writer.put(Item(Dialogue(id=f"s:{n}", source="s", licence="mit", messages=turns), "s", 0))
    return View(Spool(path), np.arange(count - 1, -1, -1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches so small that a few rows make many."""
    for module in (spool, flow, crew_module):
        monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(crew_module, "BEAT", 0.05)
    monkeypatch.setattr(crew_module, "DEAD", 0.3)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    folder = tmp_path / "crew"
    folder.mkdir()
    made = Crew(folder)
    yield made
    made.close()


def test_a_lead_without_workers_does_all(small: None, crew: Crew, tmp_path: Path) -> None:
    view = view_of(tmp_path, 30)
    assert [r for some in crew.map(lengths, view) for r in some] == [(f"s:{n}", 2) for n in range(29, -1, -1)]
    assert not list(crew.folder.glob("stage-*"))


def test_what_a_dead_worker_claimed_is_done_by_the_lead(small: None, crew: Crew, tmp_path: Path) -> None:
    """The lead waits no longer than for a sign of life; a claimed batch without one is its own."""
    results = crew.map(lengths, view_of(tmp_path, 30))
    found = [next(results)]
    (stage,) = crew.folder.glob("stage-*")
    (crew.folder / "alive-gone").touch()
    assert claim(stage, 1, "gone")
    assert claim(stage, 3, "never seen")
    found += list(results)
    assert [r for some in found for r in some] == [(f"s:{n}", 2) for n in range(29, -1, -1)]


def test_a_worker_serves_until_it_is_let_go(small: None, crew: Crew, tmp_path: Path) -> None:
    stage = crew.folder / "stage-one"
    stage.mkdir()
    view = view_of(tmp_path, 18)
    crew_module.write_work(stage, lengths, view)
    assert claim(stage, 2, LEAD)
    (crew.folder / "current").write_text('{"stage": "stage-one", "limit": 4}')
    crew.close()
    worked = subprocess.run(
        [sys.executable, "-m", "aloe.data.crew", str(crew.folder), "--one"], timeout=120, check=True
    )
    assert worked.returncode == 0
    assert crew_module._serve(stage, 4, "w") == 3  # batch 2 is the lead's, batch 4 beyond the limit
    assert pickle.loads((stage / "result-0").read_bytes()) == lengths(view[0:4])
    assert not (stage / "result-2").exists()
    assert not claim(stage, 1, "other")


def test_a_worker_goes_when_the_lead_is_gone(small: None, crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "LONELY", 5.0)
    crew._stop.set()
    crew._beat.join()
    os.utime(crew.folder / "beat", (time.time() - 60, time.time() - 60))
    assert serve(crew.folder, "w") == 0


def test_an_error_in_a_row_is_raised_where_the_user_is(small: None, crew: Crew, tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        list(crew.map(_fails, view_of(tmp_path, 9)))


def _fails(items: list[Item]) -> Any:
    return items[0].record.nothing  # type: ignore[union-attr]


# -- what compares rows is the same however they were dealt out -----------------------------------------------------


def documents(draw_seed: int, count: int) -> list[dedup.Document]:
    found = []
    for n in range(count):
        draw = rng(draw_seed, "docs", n % max(1, count // 2))  # so that many have a double, some changed a little
        words = list(draw.choice(WORDS, int(draw.integers(5, 60))))
        if n % 3 == 0:
            words[0] = "other"
        turns = [{"role": "user", "content": " ".join(words[:4])}, {"role": "assistant", "content": " ".join(words)}]
        record: Any = Dialogue(id=f"d{n}", source="s", licence="mit", messages=turns)
        if n % 5 == 0:
            options = {"A": " ".join(words[:2]), "B": " ".join(words[2:4]) + " x"}
            record = Question(
                id=f"q{n}", source="s", licence="mit", question=" ".join(words), options=options, answer="A"
            )
        found.append(dedup.document(record, n % 2))
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 12))
def test_signing_elsewhere_finds_the_same_duplicates(seed: int, count: int, size: int) -> None:
    docs = documents(seed, count)
    here = dedup.near_duplicates(docs)
    parts = (dedup.sign_rows(docs[start : start + size]) for start in range(0, count, size))
    assert dedup.near_duplicates(docs, known=parts) == here
    digests = (b"".join(map(dedup.exact_digest, docs[start : start + size])) for start in range(0, count, size))
    assert dedup.exact_duplicates(docs, digests) == dedup.exact_duplicates(docs)


def test_looking_elsewhere_finds_the_same_items() -> None:
    def item(n: int) -> decontaminate.Item:
        words = " ".join(rng(5, "items", n).choice(WORDS, 30))
        return decontaminate.item(
            Dialogue(
                id=f"i{n}", source="ab"[n % 2], licence="mit",
                messages=[{"role": "user", "content": words}, {"role": "assistant", "content": words}],
            )
        )  # fmt: skip

    rows, benchmark = [item(n) for n in range(23)], {"exam": [item(n) for n in range(0, 23, 4)]}
    here = decontaminate.contamination(rows, benchmark)
    assert len(here.hits) >= 6
    look = pickle.loads(pickle.dumps(decontaminate.Look(benchmark, decontaminate.MIN_SIMILARITY)))
    for size in (1, 5, 23):
        parts = (look(rows[start : start + size]) for start in range(0, 23, size))
        assert decontaminate.gathered(parts, benchmark) == here
    assert pickle.loads(pickle.dumps(look))._ready is None


# -- a whole curation -------------------------------------------------------------------------------------------------

RECIPE = """\
family: tiny
seed: 7
licence: cc-by-nc-4.0
steps:
  corpus:
    curate:
      sources: {rows.jsonl: {weight: 0.7}, other.jsonl: {weight: 0.3}}
      phi: {mode: redact}
      decontaminate: {against: [exam.jsonl]}
      quality: {scorer: heuristics, drop_share: 0.1}
      max_dropped_share: 0.9
"""
LED = """
import sys
from aloe.data import crew, flow, spool
flow.PARALLEL_ROWS = 1
for module in (spool, flow, crew):
    module.BATCH = 64
from aloe.cli import main
sys.argv = ["aloe", "run", "recipe.yaml", "--out", sys.argv[1], "--quiet"]
main()
"""
WORKS = """
import sys
from aloe.data import crew, spool
spool.BATCH = crew.BATCH = 64
crew.main(sys.argv[1])
"""


def rows(count: int, name: str) -> list[dict[str, Any]]:
    """Rows with doubles, near doubles and names, far apart: in other batches than their likes."""
    found = []
    for n in range(count):
        draw = rng(3, "rows", n % (count * 3 // 4))
        text = " ".join(draw.choice(WORDS, int(draw.integers(25, 60))))
        said = (BIRTHS if n % 11 == 0 else "") + text + (" today." if n >= count * 3 // 4 and n % 2 else ".")
        found.append({"id": f"{name}{n}", "question": f"What of {text[:60]}?", "answer": said})
    return found


def alone_and_led(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """Curate `recipe.yaml` by one process, then by a lead and two workers: the first's manifest, the second's artifact.
    What is in them is held to be equal to the byte."""
    folder = tmp_path / "crew"
    folder.mkdir()
    plain = {k: v for k, v in os.environ.items() if k != crew_module.CREW}
    alone = [sys.executable, "-m", "aloe", "run", "recipe.yaml", "--out", "alone", "--quiet"]
    subprocess.run(alone, cwd=tmp_path, env=plain, check=True, timeout=300)
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKS, str(folder), "--one"], cwd=tmp_path, env=plain) for _ in range(2)
    ]
    try:
        led = [sys.executable, "-c", LED, "led"]
        subprocess.run(led, cwd=tmp_path, env={**plain, crew_module.CREW: str(folder)}, check=True, timeout=300)
        assert [w.wait(60) for w in workers] == [0, 0]  # the lead let them go
    finally:
        for worker in workers:
            worker.kill()
    assert len(list(folder.glob("alive-*"))) == 2
    one, many = (tmp_path / out / "tiny" / "corpus" for out in ("alone", "led"))
    first, second = (json.loads((p / "manifest.json").read_text()) for p in (one, many))
    assert first["content_digest"] == second["content_digest"]
    assert first["ledger"] == second["ledger"]
    return first, many


def test_two_workers_make_what_one_process_makes(tmp_path: Path) -> None:
    """Real workers in processes of their own, real batches: every file of the artifact is equal to the byte."""
    write_jsonl(tmp_path / "rows.jsonl", rows(800, "r"))
    write_jsonl(tmp_path / "other.jsonl", rows(400, "o"))
    write_jsonl(tmp_path / "exam.jsonl", [{**r, "id": f"x{r['id']}"} for r in rows(800, "r")[5:200:40]])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    first, many = alone_and_led(tmp_path)
    lost = {entry["stage"]: entry["dropped"] for entry in first["ledger"]}
    assert lost["exact_dedup"]["exact_duplicate"] > 100
    assert lost["near_dedup"]["near_duplicate"] > 50
    assert lost["decontaminate"]["contaminated"] >= 3
    assert "John Miller" not in "".join(p.read_text(errors="replace") for p in many.glob("*.json"))


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = ("medical_mcq", "medquad", "doctor_forum", "mts_dialog", "general_instructions", "general_math")
EXAMS = ("medmcqa_validation", "mmlu_medical_test", "pubmedqa_test", "mmlu_general_test", "gsm8k_test")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs the data folder beside the project (../shared/data)")
def test_two_workers_make_what_one_process_makes_of_real_rows(tmp_path: Path) -> None:
    """Questions with options, answers, dialogues and instructions as they come, against real benchmarks."""
    step = {
        "sources": {str(SHARED / "train" / f"{n}.jsonl.gz"): {"ids": "content", "limit": 400} for n in REAL},
        "phi": {"mode": "redact"}, "quality": {"scorer": "heuristics", "drop_share": 0.1}, "max_dropped_share": 0.9,
        "decontaminate": {"against": [str(SHARED / "eval" / f"{n}.jsonl.gz") for n in EXAMS]},
    }  # fmt: skip
    recipe = {"family": "tiny", "seed": 7, "licence": "cc-by-nc-4.0", "steps": {"corpus": {"curate": step}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    first, _ = alone_and_led(tmp_path)
    assert first["summary"]["rows_read"] == 400 * len(REAL)
    assert first["summary"]["rows"] > 1500
