"""Presets: each on rows in its set's published schema (texts are our own), with one row that doesn't fit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aloe.data import templates
from aloe.data.mappings import SECTIONS
from aloe.data.presets import PRESETS, Preset, preset_of, preset_table
from aloe.data.sources import Dropped, load_rows, read_rows
from aloe.errors import AloeError
from aloe.licence import known
from aloe.records import Dialogue, Preference, Question, Row
from aloe.rows import write_jsonl


@dataclass(frozen=True)
class Case:
    """A row in the published schema, what it becomes, and changes that make it not fit, each with its reason."""

    row: dict[str, Any]
    becomes: Callable[[Any], Any]
    expected: Any
    misfits: list[tuple[dict[str, Any], str, str]]
    id: str = ""


def question(r: Question) -> Any:
    return r.question, r.options, r.answer, r.context, r.explanation


def exchange(r: Dialogue) -> Any:
    return r.messages[0]["content"], r.messages[1]["content"], r.meta["form"], r.meta.get("slots")


def pair(r: Preference) -> Any:
    return r.prompt, r.chosen, r.rejected


STEM, RIGHT = "Which vitamin prevents scurvy?", "Vitamin C"
FOUR = {"A": "Vitamin A", "B": "Vitamin B12", "C": RIGHT, "D": "Vitamin D"}
TEXTS = list(FOUR.values())
ASKED = [{"role": "user", "content": "Name a cause of anaemia."}]
MEDQA = {
    "question": STEM, "answer": RIGHT, "options": FOUR, "meta_info": "step1", "answer_idx": "C",
    "metamap_phrases": ["vitamin", "scurvy"],
}  # fmt: skip
MEDMCQA = {
    "id": "3f1c", "question": STEM, **dict(zip(("opa", "opb", "opc", "opd"), TEXTS, strict=True)), "cop": 2,
    "choice_type": "single", "exp": "Collagen needs it.", "subject_name": "Biochemistry", "topic_name": None,
}  # fmt: skip
PUBMEDQA = {
    "pubid": 101, "question": "Does rest help?",
    "context": {"contexts": ["We asked.", "They rested."], "labels": ["AIM", "RESULTS"], "meshes": ["Rest"]},
    "long_answer": "Rest helped.", "final_decision": "yes",
}  # fmt: skip
YES = ("Does rest help?", {"A": "yes", "B": "no", "C": "maybe"}, "A", "We asked.\nThey rested.", "Rest helped.")
COMPLETIONS = [
    {"model": "m1", "principle": "helpfulness", "response": "Iron is a metal.", "overall_score": 3.0,
     "fine-grained_score": 4.5, "annotations": {"honesty": {"Rating": "3"}}},
    {"model": "m2", "principle": "honesty", "response": "Iron deficiency.", "overall_score": 8.5,
     "fine-grained_score": 4.0, "annotations": {}},
    {"model": "m3", "principle": "honesty", "response": "I don't know.", "overall_score": 1.0,
     "fine-grained_score": 1.25, "annotations": {}},
    {"model": "m4", "principle": "honesty", "response": "Unscored.", "overall_score": "N/A",
     "fine-grained_score": None, "annotations": {}},
]  # fmt: skip
ULTRAFEEDBACK = {
    "source": "sharegpt", "instruction": "Name a cause of anaemia.", "models": ["m1", "m2", "m3", "m4"],
    "completions": COMPLETIONS, "correct_answers": ["None"], "incorrect_answers": ["None"],
}  # fmt: skip
BINARIZED = {
    "prompt": "Name a cause of anaemia.", "prompt_id": "9ab",
    "chosen": [*ASKED, {"role": "assistant", "content": "Iron deficiency."}],
    "rejected": [*ASKED, {"role": "assistant", "content": "Water."}],
    "messages": [*ASKED, {"role": "assistant", "content": "Iron deficiency."}],
    "score_chosen": 8.0, "score_rejected": 2.0,
}  # fmt: skip
CASES: dict[str, Case] = {
    "medqa": Case(
        MEDQA, question, (STEM, FOUR, "C", "", ""),
        [
            ({"answer_idx": "B"}, "ambiguous_answer", "answer 'Vitamin C' is not the text of option B"),
            ({"answer_idx": "F"}, "answer_not_in_options", "answer 'F' is none of A, B, C, D"),
            ({"answer_idx": None}, "no_answer", "answer_idx is missing or blank"),
            ({"options": {"A": RIGHT}}, "too_few_options", "1 option(s)"),
        ],
    ),
    "medqa_hf": Case(
        {"id": "train-00001", "sent1": STEM, "sent2": "", **{f"ending{i}": t for i, t in enumerate(TEXTS)}, "label": 2},
        question, (STEM, FOUR, "C", "", ""),
        [
            ({"label": 4}, "answer_not_in_options", "label 4 is outside 0..3"),
            ({"label": -1}, "no_answer", "label is -1"),
        ],
        "train-00001",
    ),
    "medmcqa": Case(
        MEDMCQA, question, (STEM, FOUR, "C", "", "Collagen needs it."),
        [
            ({"cop": -1}, "no_answer", "cop is -1: this row is published without its answer"),
            ({"opc": ""}, "answer_not_in_options", "answer 'C' is none of A, B, D"),
            ({"question": " "}, "empty_question", "question is missing or blank"),
        ],
        "3f1c",
    ),
    "medmcqa_original": Case(
        {**MEDMCQA, "cop": 3}, question, (STEM, FOUR, "C", "", "Collagen needs it."),
        [
            ({"cop": 5}, "answer_not_in_options", "cop 5 is outside 1..4"),
            ({"cop": "x"}, "answer_not_in_options", "'x', expected a number"),
        ],
        "3f1c",
    ),
    "pubmedqa": Case(
        PUBMEDQA, question, YES,
        [
            ({"final_decision": None}, "no_answer", "final_decision is missing or blank"),
            ({"final_decision": "perhaps"}, "answer_not_in_options", "'perhaps' is none of yes, no, maybe"),
            ({"context": {"labels": []}}, "no_context", "context should hold the texts"),
        ],
        "101",
    ),
    "pubmedqa_artificial": Case(
        {**PUBMEDQA, "final_decision": "no"}, question, (*YES[:2], "B", *YES[3:]),
        [({"final_decision": ""}, "no_answer", "missing")], "101",
    ),
    "pubmedqa_original": Case(
        {"pmid": "101", "QUESTION": "Does rest help?", "CONTEXTS": ["We asked.", "They rested."],
         "LABELS": ["AIM", "RESULTS"], "MESHES": ["Rest"], "YEAR": "2001", "reasoning_required_pred": "yes",
         "reasoning_free_pred": "yes", "LONG_ANSWER": "Rest helped.", "final_decision": "yes"},
        question, YES, [({"pmid": "102", "CONTEXTS": "one text"}, "no_context", "CONTEXTS should hold")], "101",
    ),
    "headqa": Case(
        {"name": "Cuaderno_2013_1_B", "year": "2013", "category": "biology", "qid": 1, "qtext": STEM, "ra": 3,
         "image": None, "answers": [{"aid": i, "atext": t} for i, t in enumerate(TEXTS, 1)]},
        question, (STEM, FOUR, "C", "", ""),
        [
            ({"qid": 2, "ra": 5}, "answer_not_in_options", "ra 5 is the aid of 0 answers"),
            ({"qid": 2, "image": {"bytes": "iVBOR", "path": "q2.png"}}, "needs_image", "comes with an image"),
            ({"qid": 2, "answers": "1) x"}, "bad_options", "list of aid and atext"),
        ],
        "Cuaderno_2013_1_B-1",
    ),
    "careqa": Case(
        {"exam_id": 26, "question": STEM, **{f"op{i}": t for i, t in enumerate(TEXTS, 1)}, "cop": 3, "year": 2024,
         "category": "Medicine", "unique_id": "5636d1af"},
        question, (STEM, FOUR, "C", "", ""),
        [({"unique_id": "x", "cop": 0}, "answer_not_in_options", "cop 0 is outside 1..4")], "5636d1af",
    ),
    "careqa_open": Case(
        {"exam_id": 26, "question": STEM, "answer": "Vitamin C.", "year": 2024, "category": "Medicine",
         "unique_id": "u1"},
        exchange, (STEM, "Vitamin C.", "question_answer", None),
        [({"unique_id": "u2", "answer": ""}, "empty_answer", "answer is missing or blank")], "u1",
    ),
    "mmlu": Case(
        {"question": STEM, "subject": "nutrition", "choices": TEXTS, "answer": 2}, question, (STEM, FOUR, "C", "", ""),
        [
            ({"answer": 4}, "answer_not_in_options", "answer 4 is outside 0..3"),
            ({"choices": "x; y"}, "bad_options", "choices should be a list, found str"),
        ],
    ),
    "mmlu_csv": Case(
        {"question": STEM, **FOUR, "answer": "C"}, question, (STEM, FOUR, "C", "", ""),
        [({"answer": "E"}, "answer_not_in_options", "'E', expected a number")],
    ),
    "medquad": Case(
        {"document_id": "0000559", "document_source": "GHR", "document_url": "https://example.org/scurvy",
         "category": None, "umls_cui": "C0036474", "umls_semantic_types": "T047", "umls_semantic_group": "Disorders",
         "synonyms": None, "question_id": "0000559-1", "question_focus": "scurvy", "question_type": "information",
         "question": "What is scurvy?", "answer": "A lack of vitamin C."},
        exchange, ("What is scurvy?", "A lack of vitamin C.", "question_answer", None),
        [({"answer": None}, "empty_answer", "answer is missing or blank")],
    ),
    "medquad_csv": Case(
        {"qtype": "information", "Question": "What is scurvy?", "Answer": "A lack of vitamin C."},
        exchange, ("What is scurvy?", "A lack of vitamin C.", "question_answer", None),
        [({"Question": ""}, "empty_question", "Question is missing or blank")],
    ),
    "mts_dialog": Case(
        {"ID": 7, "section_header": "GENHX", "section_text": "Cough for two days.",
         "dialogue": "Doctor: What brings you in?\nPatient: A cough, for two days."},
        exchange, ("Doctor: What brings you in?\nPatient: A cough, for two days.", "Cough for two days.",
                   "dialogue_to_note", {"section": "history of present illness"}),
        [
            ({"ID": 8, "section_header": "MOOD"}, "unknown_section", "'MOOD' is none of the 20 published ones"),
            ({"ID": 8, "section_text": ""}, "empty_note", "section_text is missing or blank"),
        ],
        "7",
    ),
    "chatdoctor": Case(
        {"instruction": "Answer as a doctor would.", "input": "My gums bleed.", "output": "See a dentist."},
        exchange, ("My gums bleed.", "See a dentist.", "consultation", None),
        [({"input": ""}, "empty_question", "input is missing or blank")],
    ),
    "icliniq": Case(
        {"input": "My gums bleed.", "answer_icliniq": "See a dentist.", "answer_chatgpt": "Brush gently.",
         "answer_chatdoctor": "Floss."},
        exchange, ("My gums bleed.", "See a dentist.", "consultation", None),
        [({"answer_icliniq": ""}, "empty_answer", "answer_icliniq is missing or blank")],
    ),
    "doctor_forum": Case(
        {"question": "My gums bleed.", "answer": "See a dentist.", "tags": ["gums"], "url": "https://example.org/1"},
        exchange, ("My gums bleed.", "See a dentist.", "consultation", None),
        [({"answer": {"text": "x"}}, "not_text", "answer should be text, found dict")],
    ),
    "medinstruct": Case(
        {"instruction": "Explain scurvy.", "input": "<noinput>", "output": "It is a lack of vitamin C."},
        exchange, ("Explain scurvy.", "It is a lack of vitamin C.", "instruction", None),
        [({"output": "  "}, "empty_answer", "output is missing or blank")],
    ),
    "gsm8k": Case(
        {"question": "A box has 6 pills; 2 are taken. How many are left?",
         "answer": "There are 6-2=<<6-2=4>>4 pills left.\n#### 4"},
        exchange, ("A box has 6 pills; 2 are taken. How many are left?", "There are 6-2=4 pills left.\n#### 4",
                   "math_reasoning", None),
        [({"answer": "Four."}, "no_final_answer", "doesn't end in a line ####")],
    ),
    "ultrafeedback": Case(
        ULTRAFEEDBACK, pair, (ASKED, "Iron deficiency.", "I don't know."),
        [
            ({"completions": COMPLETIONS[3:]}, "too_few_completions", "0 completion(s) with"),
            ({"completions": [COMPLETIONS[0], {**COMPLETIONS[1], "overall_score": 3}]}, "no_preference",
             "all completions have overall_score 3"),
        ],
    ),
    "ultrafeedback_fine_grained": Case(
        ULTRAFEEDBACK, pair, (ASKED, "Iron is a metal.", "I don't know."),
        [({"completions": None}, "bad_completions", "should be a list of maps")],
    ),
    "ultrafeedback_binarized": Case(
        BINARIZED, pair, (ASKED, "Iron deficiency.", "Water."),
        [
            ({"prompt": "Another?"}, "prompts_differ", "does not answer the prompt"),
            ({"chosen": BINARIZED["rejected"]}, "chosen_is_rejected", "the same text"),
            ({"rejected": ASKED}, "bad_conversation", "one user and one assistant turn"),
        ],
    ),
    "helpsteer2_preference": Case(
        {"split": "train", "prompt": "Name a cause of anaemia.", "response_1": "Water.",
         "response_2": "Iron deficiency.", "preference_strength": 2, "preference_statement": "The second is right."},
        pair, (ASKED, "Iron deficiency.", "Water."),
        [
            ({"preference_strength": 0}, "no_preference", "judged equal"),
            ({"preference_strength": 9}, "bad_score", "outside -3..3"),
            ({"prompt": "Hi\n<extra_id_1>Assistant\nHi"}, "conversation_prompt", "several turns"),
        ],
    ),
}  # fmt: skip


def write(folder: Path, preset: Preset, *rows: dict[str, Any]) -> Path:
    """The rows as the set is published: keyed JSON, CSV without a header, or JSON Lines."""
    path = folder / f"{preset.name}.jsonl"
    if preset.form.key:
        path = path.with_suffix(".json")
        keyed = {r[preset.form.key]: {k: v for k, v in r.items() if k != preset.form.key} for r in rows}
        path.write_text(json.dumps(keyed))
    elif preset.form.header:
        path = path.with_suffix(".csv")
        with open(path, "w", newline="") as handle:
            csv.writer(handle).writerows([r[c] for c in preset.form.header] for r in rows)
    else:
        write_jsonl(path, rows)
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_row_becomes_its_record(name: str, tmp_path: Path) -> None:
    preset, case = PRESETS[name], CASES[name]
    assert set(case.row) == set(preset.columns), "the test row has not the published schema"
    [record], dropped = load_rows(write(tmp_path, preset, case.row), source="set", preset=name, strict=True)
    assert not dropped
    assert isinstance(record, preset.makes)
    assert case.becomes(record) == case.expected
    assert (record.source, record.licence) == ("set", preset.licence)
    assert not case.id or record.id == case.id


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_that_does_not_fit_is_in_the_ledger_with_its_line(name: str, tmp_path: Path) -> None:
    preset, case = PRESETS[name], CASES[name]
    for number, (change, reason, detail) in enumerate(case.misfits):
        bad = {**case.row, **change}
        bad = bad if "id" not in bad else {**bad, "id": "bad"}
        if preset.ids and not set(preset.ids) & set(change):
            bad[preset.ids[-1]] = "other"
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write(folder, preset, case.row, bad)
        kept, dropped = load_rows(path, source="set", preset=name)
        assert len(kept) == 1
        assert [(d.reason, d.where, d.stage) for d in dropped] == [(reason, f"{path.name}:2", "load")], (
            change,
            dropped,
        )
        assert detail in dropped[0].detail
        with pytest.raises(AloeError) as error:
            load_rows(path, source="set", preset=name, strict=True)
        assert error.value.where == f"{path}:2"


def test_every_preset_is_tested_and_says_what_it_is() -> None:
    assert set(CASES) == set(PRESETS)
    for preset in PRESETS.values():
        assert preset.licence == "unknown" or known(preset.licence), preset.name
        assert preset.homepage.startswith("https://")
        assert set(preset.needs) | set(preset.ids) <= set(preset.columns)
        assert preset.task in templates.TEMPLATES or preset.task in ("preference", "math_reasoning")
    assert [row[0] for row in preset_table()] == list(PRESETS)


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.makes is not Preference])
def test_records_of_presets_can_be_put_into_templates(name: str, tmp_path: Path) -> None:
    [record], _ = load_rows(write(tmp_path, PRESETS[name], CASES[name].row), source="set", preset=name)
    shown = templates.render(record, seed=7)
    wanted = {"math_reasoning": "instruction", "multiple_choice": "multiple_choice_explained"}
    assert shown.meta["task"] in (PRESETS[name].task, wanted.get(PRESETS[name].task))
    assert "{" not in shown.messages[0]["content"]


def test_other_published_forms_of_the_same_sets(tmp_path: Path) -> None:
    """bigbio's options, a sequence of maps as `datasets` stores it, numbers as text, five options."""

    def one(name: str, row: dict[str, Any]) -> Any:
        [record], _ = load_rows(write(tmp_path, PRESETS[name], row), source="s", preset=name, strict=True)
        return record

    pairs = [{"key": k, "value": v} for k, v in FOUR.items()]
    assert one("medqa", {**MEDQA, "options": pairs}).options == FOUR
    five = {**FOUR, "E": "Iron"}
    assert one("medqa", {**MEDQA, "options": five, "answer": "Iron", "answer_idx": "E"}).answer == "E"
    row = CASES["headqa"].row
    columns = {"aid": [1, 2, 3, 4], "atext": TEXTS}
    assert one("headqa", {**row, "answers": columns, "ra": "3"}).answer == "C"
    assert one("headqa", {**row, "image": {"bytes": None, "path": None}}).answer == "C"
    assert one("medmcqa", {**MEDMCQA, "cop": 0}).answer == "A"
    assert one("medmcqa", {**MEDMCQA, "opa": None, "cop": 3}).options == {k: v for k, v in FOUR.items() if k != "A"}
    assert one("medmcqa_original", {**MEDMCQA, "cop": 1}).answer == "A"
    assert one("mmlu", {**CASES["mmlu"].row, "answer": "C"}).answer == "C"
    assert one("helpsteer2_preference", {**CASES["helpsteer2_preference"].row, "preference_strength": -1}).chosen == (
        "Water."
    )


def test_what_a_mapping_leaves_out_is_kept_as_evidence(tmp_path: Path) -> None:
    def meta(name: str) -> dict[str, Any]:
        [record], _ = load_rows(write(tmp_path, PRESETS[name], CASES[name].row), source="s", preset=name)
        return record.meta

    assert meta("medmcqa") == {"choice_type": "single", "subject_name": "Biochemistry"}
    assert meta("icliniq")["answer_chatgpt"] == "Brush gently."
    assert meta("mts_dialog")["section_header"] == "GENHX"
    assert meta("pubmedqa")["abstract"] == {"labels": ["AIM", "RESULTS"], "meshes": ["Rest"]}
    found = meta("ultrafeedback")
    assert (found["score_chosen"], found["score_rejected"], found["chosen_model"]) == (8.5, 1.0, "m2")
    assert found["prompt_source"] == "sharegpt"
    assert len(SECTIONS) == 20


@pytest.mark.parametrize(
    ("preset", "cop", "other"), [("medmcqa", 4, "medmcqa_original"), ("medmcqa_original", 0, "medmcqa")]
)
def test_options_counted_otherwise_than_the_preset_says_stop_the_file(
    preset: str, cop: int, other: str, tmp_path: Path
) -> None:
    """Every answer of such a file would be off by one, so it is no matter of one row."""
    path = tmp_path / "train.jsonl"
    write_jsonl(path, [{**MEDMCQA, "cop": 2}, {**MEDMCQA, "id": "x", "cop": cop}])
    with pytest.raises(AloeError) as error:
        load_rows(path, source="s", preset=preset)
    assert error.value.where == f"{path}:2"
    assert f"cop is {cop}" in error.value.what
    assert f"use preset {other}" in str(error.value.fix)


def test_without_a_preset_cop_counts_from_0_and_a_count_from_1_stops_the_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{**MEDMCQA, "cop": 4}])
    with pytest.raises(AloeError, match=r"cop is 4 of 4 options: this file counts them from 1, not from 0"):
        load_rows(tmp_path / "a.jsonl", source="s")


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"question": "Q?", "answer": "A."}])
    with pytest.raises(AloeError, match=r"not the schema of preset medqa: no column 'options', 'answer_idx'") as error:
        next(read_rows(tmp_path / "a.jsonl", source="s", preset="medqa"))
    assert error.value.where == f"{tmp_path / 'a.jsonl'}:1"
    with pytest.raises(AloeError, match="expected preference rows"):
        load_rows(write(tmp_path, PRESETS["medqa"], MEDQA), source="s", preset="medqa", kind="preference")


def test_an_unknown_preset_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="no preset 'medmqca'") as error:
        read_rows(tmp_path / "nothing", source="s", preset="medmqca")
    assert "did you mean 'medmcqa'?" in str(error.value.fix)
    assert preset_of("gsm8k").title == "GSM8K"


def test_licences_rows_first_then_the_preset(tmp_path: Path) -> None:
    path = write(tmp_path, PRESETS["medqa"], {**MEDQA, "licence": "CC0-1.0"})
    assert load_rows(path, source="s", preset="medqa")[0][0].licence == "cc0-1.0"
    assert load_rows(path, source="s", preset="medqa", licence="odc-by")[0][0].licence == "odc-by"


def test_a_preset_reads_mapped_columns(tmp_path: Path) -> None:
    row = {("stem" if k == "question" else k): v for k, v in MEDQA.items()}
    write_jsonl(tmp_path / "a.jsonl", [row])
    found: list[Row | Dropped] = list(
        read_rows(tmp_path / "a.jsonl", source="s", preset="medqa", columns={"question": "stem"})
    )
    assert question(found[0]) == (STEM, FOUR, "C", "", "")  # type: ignore[arg-type]
    with pytest.raises(AloeError, match="no column of ours is called 'request'"):
        read_rows(tmp_path / "a.jsonl", source="s", preset="medqa", columns={"request": "stem"})


def test_an_image_does_not_blow_up_the_ledger(tmp_path: Path) -> None:
    row = {**CASES["headqa"].row, "image": {"bytes": bytes(200_000), "path": None}}
    good = {**CASES["headqa"].row, "qid": 2, "image": {"bytes": None, "path": None}}
    pq.write_table(pa.Table.from_pylist([good, row]), tmp_path / "a.parquet")
    _, [dropped] = load_rows(tmp_path / "a.parquet", source="s", preset="headqa")
    assert (dropped.reason, dropped.where) == ("needs_image", "a.parquet:2")
    assert dropped.row["image"]["bytes"].startswith("<200000 bytes ")


def test_the_documentation_lists_every_preset() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text("utf-8")
    for name, title, hub, licence, task in preset_table():
        shown = f"`{hub}`" if hub else "-"
        assert f"| `{name}` | {title} | {shown} | {licence} | `{task}` |\n" in page
    for preset in PRESETS.values():
        assert not preset.note or f"- `{preset.name}`: {preset.note}\n" in page
