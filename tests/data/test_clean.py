"""Cleaning: what is normalised, stripped, repaired and refused, and what must be left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.data.clean import (
    ANSWER_PATTERNS,
    Cleaned,
    clean_record,
    junk_answer,
    junk_question,
    key_text,
    links,
    normalise,
    repair_answer,
    repair_explanation,
    strip_links,
)
from aloe.data.html_tables import flatten_tables, has_table
from aloe.records import Dialogue, Question

OPTIONS = {"A": "Metformin", "B": "Insulin", "C": "All of the above", "D": "A virus"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("caf\u00c3\u00a9", "café"),
        ("ﬁbrosis", "fibrosis"),
        ("10⁵ CFU/mL", "10^5 CFU/mL"),  # plain NFKC says 105
        ("10⁻³ mol", "10^-3 mol"),
        ("2½ mg", "2 1/2 mg"),  # plain NFKC says 21/2
        ("37 ºC", "37 °C"),
        ("H₂O", "H2O"),
        ("a \t b\r\n\r\n\n\nc ", "a b\n\nc"),
        ("p &lt; 0.05", "p < 0.05"),
        ("see:\n```\nx   = 1\n```", "see:\n```\nx   = 1\n```"),
    ],
)
def test_normalise(before: str, after: str) -> None:
    assert normalise(before) == after


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=80))
def test_normalise_is_stable(text: str) -> None:
    once = normalise(text)
    assert normalise(once).split() == normalise(normalise(once)).split()
    assert once == once.strip()


def test_links_are_stripped_and_counted() -> None:
    text = "See [the guide](https://x.org/a) or https://a.b/c?d=1. Mail me@x.org (www.foo.com), please"
    assert strip_links(text) == ("See the guide or. Mail, please", 3, 1)
    assert strip_links(text, links(text)) == (text, 0, 0)
    assert strip_links("No link  here .") == ("No link  here .", 0, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty_question"),
        ("N/A", "junk_question"),
        ("No abstract available.", "junk_question"),
        ("[No abstract available]", "junk_question"),
        ("Erratum: dosing of gentamicin", "junk_question"),
        ("Retraction notice", "junk_question"),
        ("Withdrawn article", "junk_question"),
        ("What does this show? [figure: see text]", "needs_figure"),
        ("Retraction of the nipple is a sign of?", None),
        ("Withdrawal: which drug is used?", None),
        ("Withdrawal of alcohol causes which of these?", None),
        ("None of these drugs cause QT prolongation except?", None),
    ],
)
def test_junk_questions(text: str, reason: str | None) -> None:
    assert junk_question(text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ", "empty_answer"),
        ("Answers", "junk_answer"),
        ("None", "junk_answer"),
        ("none.", "junk_answer"),
        ("Erratum", "junk_answer"),
        ("Editor's note: see the next issue.", "junk_answer"),
        ("No", None),
        ("Yes.", None),
        ("None of them; rest is enough.", None),
        ("42", None),
    ],
)
def test_junk_answers(text: str, reason: str | None) -> None:
    assert junk_answer(text) == reason


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Ans-[B]", "B"),
        ("Ans. is 'b'", "B"),
        ("Ans: (b)", "B"),
        ("Ans B", "B"),
        ("Answer = B", "B"),
        ("The correct answer is B.", "B"),
        ("Correct option: (B) Insulin", "B"),
        ("Option B", "B"),
        ("Key: B", "B"),
        ("\\boxed{B}", "B"),
        ("**B**", "B"),
        ("[B]", "B"),
        ("(b) insulin", "B"),
        ("'B'", "B"),
        ("[C] i.e. All", "C"),
        ("C i.e., All of the above", "C"),
        ("B. Insulin", "B"),
        ("b)", "B"),
        ("Insulin (B)", "B"),
    ],
)
def test_mangled_answers_are_repaired(text: str, letter: str) -> None:
    assert (repair_answer(text, OPTIONS) or ("none",))[0] == letter


@pytest.mark.parametrize(
    "text",
    ["E", "Ans-[E]", "B. Metformin", "A and B", "A or B", "Ans: a virus", "Insulin (A)", "either B", "", "B C", "1"],
)
def test_what_cannot_be_read_is_not_guessed(text: str) -> None:
    assert repair_answer(text, OPTIONS) is None


def test_there_are_the_papers_twelve_patterns_and_more() -> None:
    assert len(ANSWER_PATTERNS) >= 12
    assert len({name for name, _ in ANSWER_PATTERNS}) == len(ANSWER_PATTERNS)


def test_explanations() -> None:
    assert repair_explanation("Ans. is 'b' i.e., Insulin lowers glucose.", "B") == (
        "Insulin lowers glucose.",
        "explanation_lead_stripped",
    )
    assert repair_explanation("Ans. is 'b' i.e., Insulin", "A") == ("", "explanation_contradicts_answer")
    for text in ("Answer is a disease of the skin.", "Option A: wrong, it is oral.", "Insulin lowers glucose."):
        assert repair_explanation(text, "B") == (text, None)


def question(**change: object) -> Question:
    base = {"question": "Which drug?", "options": {"A": "x", "B": "y"}, "answer": "A"}
    return Question(id="q", source="s", licence="mit", **{**base, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "n/a"}, "junk_question"),
        ({"options": {"A": "x", "B": "https://x.org"}}, "empty_option"),
        ({"options": {"A": "Iron", "B": "iron "}}, "two_options_are_the_answer"),
        ({"options": {"A": "x", "B": '<img src="1">'}}, "needs_figure"),
        ({"options": {"A": "<24 h", "B": ">24 h"}}, None),
        ({"options": {"A": "x", "B": "y", "C": "y"}}, None),  # a repeated distractor does no harm
    ],
)
def test_questions_dropped(change: dict[str, object], reason: str | None) -> None:
    assert clean_record(question(**change)).reason == reason


def test_dialogues() -> None:
    def dialogue(user: str, assistant: str, form: str = "question_answer") -> Dialogue:
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return Dialogue(id="d", source="s", licence="mit", messages=turns, meta={"form": form})

    cleaned = clean_record(dialogue("What is  flu?", "A virus. See https://x.org"))
    assert isinstance(cleaned.record, Dialogue)
    assert [m["content"] for m in cleaned.record.messages] == ["What is flu?", "A virus. See"]
    assert cleaned.changes == ("url_stripped",)
    assert clean_record(dialogue("What is flu?", "None")).reason == "junk_answer"
    assert clean_record(dialogue("erratum", "x")).reason == "junk_question"
    # An address that an instruction is about stays in both turns.
    task = dialogue("Extract the address from: write to a@b.org", "a@b.org", form="instruction")
    assert clean_record(task).record == task


def test_key_text_keeps_signs_that_change_the_meaning() -> None:
    assert key_text("Age < 5 years") != key_text("Age > 5 years")
    assert key_text("3.5 mg") != key_text("35 mg")
    assert key_text("Beta-blocker!") == key_text("beta blocker")


TABLE = (
    "Compare:<table class='x'><thead><tr><th>Drug</th><th>Dose</th></tr></thead>\n<tbody>"
    "<tr><td>Amoxicillin</td><td><b>500</b> mg&nbsp;x 3</td></tr>"
    "<tr><td>Count</td><td>10<sup>9</sup>/L,<br>H<sub>2</sub>O &lt; 1</td></tr></tbody></table> Which?"
)
FLAT = "Compare:\nDrug | Dose\nAmoxicillin | 500 mg x 3\nCount | 10^9/L, H2O < 1\nWhich?"


def test_simple_html_tables_become_lines_of_cells() -> None:
    made = clean_record(
        Question(id="q", source="s", licence="mit", question=TABLE, options={"A": "x", "B": TABLE}, answer="A")
    )
    assert isinstance(made.record, Question)
    assert (made.record.question, made.record.options["B"]) == (FLAT, FLAT)
    assert made.changes == ("html_table_flattened",)
    two = "<TABLE><tr><td>a</td></tr></TABLE>\nand <table><caption>Cells\n of 2</caption><tr><td>b<td>c</table>"
    assert normalise(flatten_tables(two) or "") == "a\n\nand\nCells of 2\nb | c"


@pytest.mark.parametrize(
    "text",
    [
        "<table><tr><td>a<table><tr><td>b</td></tr></table></td></tr></table>",
        "<table><tr><td colspan='2'>a</td></tr><tr><td>b</td><td>c</td></tr></table>",
        "<table><tr><td rowspan=2>a</td><td>b</td></tr><tr><td>c</td></tr></table>",
        "<table><tr><td>a</td></tr>",
        "</table> a",
        "<tr><td>a</td></tr>",
        "<table><td>a</td></table>",
        "<table><tr><td><img src='x.png'></td></tr></table>",
        "<table><tr><td>a</td> loose <td>b</td></tr></table>",
    ],
)
def test_other_tables_are_dropped_with_a_reason(text: str) -> None:
    assert flatten_tables(text) is None
    turns = [{"role": "user", "content": "What is normal?"}, {"role": "assistant", "content": f"See {text}"}]
    row = Dialogue(id="d", source="s", licence="mit", messages=turns)
    assert clean_record(row) == Cleaned(None, "html_table")
    mcq = Question(
        id="q", source="s", licence="mit", question=f"{text} Which?", options={"A": "x", "B": "y"}, answer="A"
    )
    assert clean_record(mcq) == Cleaned(None, "html_table")
    explained = replace(mcq, question="Which?", explanation=text)
    made = clean_record(explained)
    assert made.record == replace(explained, explanation="")
    assert made.changes == ("html_table_explanation_removed",)


def test_tables_that_are_meant_as_html_stay() -> None:
    code = "```\n<table><tr><td>a</td></tr></table>\n```"
    for user, answer in (("Write a table in HTML.", TABLE), ("Show a table.", code)):
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        made = clean_record(Dialogue(id="d", source="s", licence="mit", messages=turns))
        assert isinstance(made.record, Dialogue)
        assert "<table" in made.record.messages[1]["content"]
        assert made.changes == ()
    assert flatten_tables("p < 0.05, a<b and tables <in> text") == "p < 0.05, a<b and tables <in> text"


PIECES = ["a", "b", " ", "<", ">", "/", "=", "|", "'", "\n", "&lt;", "<table>", "</table>", "<tr>", "<td>", "</td>"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_no_table_markup_is_left(text: str) -> None:
    flat = flatten_tables(text)
    assert flat is None or not has_table(flat)
