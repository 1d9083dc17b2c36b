"""Templates: sixteen tasks, drawn by key among those that fit, one question shape for the whole project."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import aloe.data
from aloe.data.templates import (
    ALIASES,
    MULTIPLE_CHOICE,
    SLOTS,
    TASKS,
    TEMPLATES,
    draw,
    fill,
    format_question,
    parse_task,
    render,
    task_table,
)
from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.records import Dialogue, Question

QUESTION = Question(
    id="q1", source="s", licence="mit", question="Which?", options={"B": "y", "A": "x {letter}"}, answer="B",
    explanation="Because.", meta={"topic": "t"},
)  # fmt: skip


def test_question_shape_equals_the_prompting_rooms() -> None:
    mcq = pytest.importorskip("aloe.prompting.mcq")
    cases: list[tuple[str, dict[str, str], str]] = [
        ("Which?", {"A": "x", "B": "y"}, ""),
        (" Which? \n", {"C": " z ", "A": "x", "B": "y"}, "Some\ncontext. "),
        ("Which?", {"A": "x", "B": "y"}, "  "),
    ]
    for case in cases:
        assert format_question(*case) == mcq.format_question(*case)
    assert format_question("Which?", {"A": "x", "B": "y"}, "C.") == "C.\n\nWhich?\n\nA. x\nB. y"


def test_sixteen_tasks_110_templates_no_two_alike() -> None:
    assert len(TEMPLATES) == 16
    assert sum(len(family) for family in TEMPLATES.values()) == 110
    for task, family in TEMPLATES.items():
        assert 5 <= len(family) <= 10
        assert [t.name for t in family] == [f"{task}/{n}" for n in range(len(family))]
    asked = {(t.user, t.assistant) for family in TEMPLATES.values() for t in family}
    assert len({(re.sub(r"\{\w+\}", "{}", user), answer) for user, answer in asked}) >= 105  # frames, over all tasks
    files = {p.stem for p in (Path(aloe.data.__file__).parent / "tasks").glob("*.yaml")}
    assert files == set(TEMPLATES)


def test_texts_and_draws_of_the_first_four_tasks_never_change() -> None:
    """Rows made before there were sixteen keep their template."""
    first = ("multiple_choice", "multiple_choice_explained", "question_answering", "instruction")
    texts = {task: [[t.name, t.user, t.assistant] for t in TEMPLATES[task]] for task in first}
    assert digest_json(texts) == "063657156131f700eab9aa7282d472c3"
    drawn = {task: "".join(draw(task, f"r{i}", 7).name[-1] for i in range(16)) for task in first}
    assert drawn == {
        "multiple_choice": "2015353540300424",
        "multiple_choice_explained": "2140051401343305",
        "question_answering": "1214333455024125",
        "instruction": "0411310422403440",
    }


def test_every_name_that_a_source_may_use_resolves() -> None:
    for name in [
        "consultation",
        "dialogue_to_note",
        "note_to_dialogue",
        "summarization",
        "diagnosis",
        "treatment",
        "entity_extraction",
        "relation_extraction",
        "text_classification",
        "natural_language_inference",
        "simplification",
        "translation",
        "definition",
        "math_reasoning",
        "rewriting",
        "yes_no_maybe",
        "question_answer",
        "question_answering",
        "instruction",
    ]:
        assert name in TASKS
    assert "summarisation" not in TASKS
    for name, alias in ALIASES.items():
        assert name not in TEMPLATES
        assert set(alias.slots) <= SLOTS[alias.task]


GOOD = {"about": "a", "answer": "{answer}", "templates": [f"{n}: {{input}}" for n in range(5)]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"about": None, "more": 1}, "exactly the keys"),
        ({"templates": GOOD["templates"][:4]}, "4 templates"),
        ({"templates": [f"{n}: {{input}}" for n in range(11)]}, "11 templates"),
        ({"templates": [*GOOD["templates"], "4:  {INPUT}".lower()]}, "alike"),
        ({"templates": [*GOOD["templates"], "no text"]}, "exactly once"),
        ({"templates": [*GOOD["templates"], "{input} and {question}"]}, "exactly once"),
        ({"templates": [*GOOD["templates"], "{input} and {input}"]}, "twice"),
        ({"templates": [*GOOD["templates"], "{premise} without the other"]}, "exactly once"),
        ({"templates": [*GOOD["templates"], "{premise} {hypothesis} {input}"]}, "exactly once"),
        ({"templates": [*GOOD["templates"], "{input} {answer}"]}, "only there"),
        ({"templates": [*GOOD["templates"], "{input} {"]}, "stray brace"),
        ({"templates": [*GOOD["templates"], "{input} "]}, "white space"),
        ({"answer": "none"}, "the answer should stand"),
        ({"answer": "{input}"}, "the answer should stand"),
        ({"answer": "{answer}{answer}"}, "twice"),
    ],
)
def test_a_bad_task_file_is_refused(change: dict[str, object], message: str) -> None:
    assert len(parse_task("t", yaml.safe_dump(GOOD))) == 5
    with pytest.raises(ValueError, match=message):
        parse_task("t", yaml.safe_dump(GOOD | change))


def test_the_table_of_tasks() -> None:
    table = task_table()
    assert [row[0] for row in table] == list(TEMPLATES)
    assert sum(n for _, n, _ in table) == 110
    assert all("{" in example and "\n" not in example for _, _, example in table)


def test_multiple_choice_answers_end_in_the_letter() -> None:
    explained, plain = render(QUESTION, 7, 1.0), render(QUESTION, 7, 0.0)
    assert explained.messages[1]["content"] == "Because.\n\nAnswer: B"
    assert plain.messages[1]["content"] == "Answer: B"
    for row, task in ((explained, "multiple_choice_explained"), (plain, "multiple_choice")):
        assert format_question("Which?", QUESTION.options) in row.messages[0]["content"]
        assert row.meta["task"] == task
        assert row.meta["template"].startswith(task)
        assert Question.from_dict(row.meta["question"]) == QUESTION
        assert (row.id, row.source, row.licence) == ("q1", "s", "mit")


def test_draw_depends_on_row_and_seed_alone_and_is_even() -> None:
    names = [draw("multiple_choice", f"r{i}", 7).name for i in range(3000)]
    assert names == [draw("multiple_choice", f"r{i}", 7).name for i in range(3000)]
    assert names != [draw("multiple_choice", f"r{i}", 8).name for i in range(3000)]
    counts = Counter(names)
    assert len(counts) == len(TEMPLATES["multiple_choice"])
    assert min(counts.values()) > 400


def test_slots_are_filled_once() -> None:
    assert fill("{a} {b}", {"a": "{b}", "b": "x"}) == "{b} x"


def dialogue(*texts: str, **meta: object) -> Dialogue:
    roles = ["user", "assistant"] * 3
    turns = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return Dialogue(id="d", source="s", licence="mit", messages=turns, meta=dict(meta))


def test_dialogues() -> None:
    answered = render(dialogue("What is {flu}?", "A virus.", form="question_answer"), 7)
    assert answered.messages[1]["content"] == "A virus."
    assert "What is {flu}?" in answered.messages[0]["content"]
    assert answered.meta["task"] == "question_answering"
    instructed = render(dialogue("Sum up.", "Done.", form="instruction", task="summarise"), 7)
    assert (instructed.meta["task"], instructed.meta["original_task"]) == ("instruction", "summarise")
    talk = dialogue("a", "b", "c", "d")
    assert render(talk, 7).messages == talk.messages
    assert render(talk, 7).meta == {"task": "conversation", "template": "conversation/as_is"}
    assert render(render(talk, 7), 7) == render(talk, 7)


# -- slots --------------------------------------------------------------------------------------------------------

FILLED = {
    "dialogue_to_note": {"section": "Past medical history"},
    "entity_extraction": {"types": ["diseases", "drugs"]},
    "text_classification": {"labels": "benign, malignant"},
    "natural_language_inference": {"premise": "Afebrile.", "hypothesis": "The patient has a fever."},
    "rewriting": {"style": "as a letter"},
    "translation": {"source_language": "English", "target_language": "Spanish"},
}


def rendered(form: str, n: int, slots: object = None, user: str = "Some text.") -> list[Dialogue]:
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": "An answer."}]
    meta = {"form": form} | ({"slots": slots} if slots is not None else {})
    return [render(Dialogue(id=f"d{i}", source="s", licence="mit", messages=turns, meta=meta), 7) for i in range(n)]


@pytest.mark.parametrize("form", sorted(TASKS - set(MULTIPLE_CHOICE)))
def test_every_task_renders_with_what_its_rows_bring(form: str) -> None:
    rows = rendered(form, 200, FILLED.get(form))
    task = ALIASES[form].task if form in ALIASES else form
    names = {r.meta["template"] for r in rows}
    assert {r.meta["task"] for r in rows} == {task}
    assert len(names) >= (3 if form == "entity_extraction" else 5)
    for row in rows:
        user, assistant = (m["content"] for m in row.messages)
        assert assistant == "An answer."
        assert "{" not in user
        shown = ["Afebrile.", "The patient has a fever."] if form == "natural_language_inference" else ["Some text."]
        shown += ["Past medical history"] * (form == "dialogue_to_note") + ["as a letter"] * (form == "rewriting")
        shown += ["diseases, drugs"] * (form == "entity_extraction") + ["Spanish"] * (form == "translation")
        shown += ["benign, malignant"] * (form == "text_classification")
        assert [user.count(text) for text in shown] == [1] * len(shown)


@pytest.mark.parametrize("form", ["dialogue_to_note", "text_classification", "rewriting", "entity_extraction"])
def test_a_row_without_slots_gets_a_template_without(form: str) -> None:
    for slots in (None, {}, dict.fromkeys(SLOTS[form], " "), dict.fromkeys(SLOTS[form])):
        rows = rendered(form, 60, slots)
        assert len({r.meta["template"] for r in rows}) >= 3
        assert all("{" not in r.messages[0]["content"] for r in rows)


def test_a_pair_that_stands_in_the_users_turn_needs_no_slots() -> None:
    texts = {r.messages[0]["content"] for r in rendered("natural_language_inference", 40, user="Premise: a. H: b.")}
    assert len(texts) == 2
    assert all("Premise: a. H: b." in t for t in texts)


def test_the_source_language_may_go_unsaid_and_the_target_may_not() -> None:
    names = {r.meta["template"] for r in rendered("translation", 100, {"target_language": "Catalan"})}
    assert len(names) == 3
    with pytest.raises(AloeError, match=r"no template of translation fits[^\n]*: source_language") as error:
        rendered("translation", 1, {"source_language": "English"})
    assert error.value.where == "d0"
    assert "target_language" in (error.value.fix or "")


def test_a_slot_by_another_name_is_refused_and_foreign_columns_are_left_alone() -> None:
    with pytest.raises(AloeError, match=r"text_classification has no slot 'lables'.*\n.*labels"):
        rendered("text_classification", 1, {"lables": "a, b"})
    for slots in ({"from": "9:00"}, ["9:00"], "x"):
        assert rendered("question_answering", 1, slots)[0].meta["slots"] == slots
    assert rendered("translation", 1, {"target_language": "Catalan"})[0].meta["slots"] == {"target_language": "Catalan"}


def test_aliases() -> None:
    plain = rendered("simplification", 300)
    assert all(
        re.search("plain language|simple words|without medical training", r.messages[0]["content"]) for r in plain
    )
    assert len({r.messages[0]["content"] for r in plain}) == 15
    assert {(r.meta["task"], r.meta["form"]) for r in plain} == {("rewriting", "simplification")}
    assert "as a poem" in rendered("simplification", 1, {"style": "as a poem"})[0].messages[0]["content"]
    for row in rendered("note_to_dialogue", 30):
        assert "as a conversation between a doctor and a patient" in row.messages[0]["content"]
    terms = {r.messages[0]["content"] for r in rendered("definition", 300, user="ascites ")}
    assert len(terms) == 12
    assert all('term "ascites"' in t for t in terms)
    assert any(
        r.messages[0]["content"] == "What is ascites?" for r in rendered("definition", 60, user="What is ascites?")
    )
    assert "form" not in rendered("question_answer", 1)[0].meta


def test_unknown_forms_and_other_turns_stay_as_they_are() -> None:
    for form in ("summarisation", "multiple_choice", "multiple_choice_explained", "", "conversation"):
        row = rendered(form, 1)[0]
        assert row.meta == {"task": "conversation", "template": "conversation/as_is"}
        assert row.messages[0]["content"] == "Some text."
    talk = dialogue("a", "b", "c", "d", form="consultation")
    assert render(talk, 7).messages == talk.messages
    turns = [{"role": r, "content": r} for r in ("system", "user", "assistant")]
    led = render(Dialogue(id="r2", source="s", licence="mit", messages=turns, meta={"form": "treatment"}), 7)
    assert [m["role"] for m in led.messages] == ["system", "user", "assistant"]
    assert led.messages[0]["content"] == "system"
    assert led.meta["template"] == draw("treatment", "r2", 7).name


def test_draws_among_fitting_templates_are_even() -> None:
    counts = Counter(draw("translation", f"r{i}", 7, frozenset({"target_language"})).name for i in range(3000))
    assert len(counts) == 3
    assert min(counts.values()) > 900


TEXT = st.text(alphabet=st.sampled_from("{}ab %\\$\n/input"), min_size=1).filter(str.strip)


@given(
    form=st.sampled_from(sorted(TASKS - set(MULTIPLE_CHOICE))), user=TEXT, answer=TEXT, slot=TEXT, seed=st.integers(0)
)
def test_braces_in_data_are_data(form: str, user: str, answer: str, slot: str, seed: int) -> None:
    """Whatever stands in a row comes out as it went in, once, inside a template of its task."""
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    slots = dict.fromkeys(FILLED.get(form, {}), slot)
    row = Dialogue(id="r", source="s", licence="mit", messages=turns, meta={"form": form, "slots": slots})
    made = render(row, seed)
    task, number = made.meta["template"].split("/")
    template = TEMPLATES[task][int(number)]
    assert made.messages[1]["content"] == answer
    pieces = re.split(r"\{(\w+)\}", template.user)
    if form not in ALIASES:
        known = dict.fromkeys(("question", "instruction", "input"), user) | dict.fromkeys(slots, slot.strip())
        expected = "".join(known[p] if n % 2 else p for n, p in enumerate(pieces))
        assert made.messages[0]["content"] == expected
    else:
        assert user.strip() in made.messages[0]["content"]
