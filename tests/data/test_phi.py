"""Finding and redacting personal health information: what the product promises of `find`, `redact` and records."""

from __future__ import annotations

import itertools
import time
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.phi import EXTRA_KINDS, KINDS, Finding, find, find_in_record, redact, redact_record
from aloe.records import AttackPrompt, Dialogue, Preference, Question

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def found(text: str, **options: object) -> list[tuple[str, str]]:
    return [(f.kind, f.text) for f in find(text, **options)]  # type: ignore[arg-type]


LETTER = (
    "Hi Dr. Sharma, my name is Oluwaseun Fagbenle and I am a 92-year-old. Call me at (415) 555-0123 or write to "
    "jane.doe@example.com. MRN: 00482913. Born 14/03/1931. My SSN is 219-09-9999. I live at 12 Elm Street, "
    "Springfield, IL 62704. Regards, John"
)


def test_a_letter_loses_every_identifier_and_nothing_else() -> None:
    assert redact(LETTER, find(LETTER)) == (
        "Hi Dr. [NAME], my name is [NAME] and I am a [AGE]. Call me at [PHONE] or write to [EMAIL]. MRN: [MRN]. "
        "Born [DATE]. My SSN is [NATIONAL_ID]. I live at [ADDRESS]. Regards, [NAME]"
    )


def test_findings_stand_in_order_and_are_slices_of_the_text() -> None:
    findings = find(LETTER)
    assert [f.text for f in findings] == [LETTER[f.start : f.end] for f in findings]
    assert all(a.end <= b.start for a, b in itertools.pairwise(findings))
    assert {f.kind for f in findings} <= set(KINDS)
    assert all(f.rule for f in findings)


def test_kinds_narrow_the_search_and_an_unknown_kind_is_refused() -> None:
    assert found(LETTER, kinds=("EMAIL", "MRN")) == [("EMAIL", "jane.doe@example.com"), ("MRN", "00482913")]
    assert found(LETTER, kinds=()) == []
    with pytest.raises(ValueError, match="unknown kind 'PHOTO'"):
        find(LETTER, kinds=("PHOTO",))


def test_a_month_with_its_year_is_an_extra_kind() -> None:
    text = "He fell ill in March 2019 and again in 04/2020."
    assert found(text) == []
    assert found(text, kinds=(*KINDS, *EXTRA_KINDS)) == [("MONTH", "March 2019"), ("MONTH", "04/2020")]
    assert found("on 14 March 2019", kinds=(*KINDS, *EXTRA_KINDS)) == [("DATE", "14 March 2019")]


def test_allowed_words_are_never_part_of_a_name() -> None:
    assert found("Ask Dr. Zorbalin about it.") == [("NAME", "Zorbalin")]
    assert found("Ask Dr. Zorbalin about it.", allow=("Zorbalin",)) == []


PIECES = st.sampled_from(
    [
        "Dr. Smith",
        "dr khan",
        "John",
        "[NAME]",
        "[DATE]",
        "12/03/2019",
        "(415) 555-0123",
        "a.b@c.org",
        "MRN: 48291310",
        "\n",
        ", ",
        ". ",
        "Regards,",
        "my name is",
        "Patient:",
        "O'Brien",
        "de la",
        "92-year-old",
        "12 Elm Street",
        "IL 62704",
        "Parkinson",
        "May",
        "5",
        "-",
        "www.x.org/a",
        "Maria",
        "Lopez",
        "hi",
        "J.",
        "disease",
        "1",
        "[",
        "]",
        "AA 12 34 56 C",
        "call",
        "ext. 5",
        "İ",
        "ß",
        "\x00",
        "12345678Z",
        "on 3/14",
    ]
)


def test_a_later_finding_takes_in_what_it_reaches_over() -> None:
    """An address that goes on behind an e-mail address, found once that is a placeholder."""
    text = "92-year-oldwww.x.org/aa.b@c.org"
    assert [(f.kind, f.text) for f in find(text)] == [("AGE", "92-year-old"), ("URL", "www.x.org/aa.b@c.org")]
    assert redact(text, find(text)) == "[AGE][URL]"


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=14), st.sampled_from(["", " "]))
def test_redacted_text_holds_nothing_further_to_find(pieces: list[str], space: str) -> None:
    text = space.join(pieces)
    findings = find(text)
    assert [f.text for f in findings] == [text[f.start : f.end] for f in findings]
    clean = redact(text, findings)
    assert find(clean) == []
    assert redact(clean, find(clean)) == clean


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_can_be_searched(text: str) -> None:
    findings = find(text)
    assert find(redact(text, findings)) == []


def test_placeholders_are_invisible_numbered_ones_too() -> None:
    assert found("[NAME] wrote to Dr. [NAME 2] on [DATE] from [ADDRESS], [PHONE].") == []


# ---------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "A",
        "9",
        "1 ",
        "1-",
        "1.",
        "a@",
        "a.",
        "@",
        "dr ",
        "Dr. Smith ",
        "Aa Bb ",
        "1 Aa ",
        "+1 1 ",
        "O'",
        "a:1",
        "[NAME",
        "Name: ",
        "mar 1 ",
    ],
)
def test_time_grows_with_the_length_only(unit: str) -> None:
    """A pattern that backtracks would need minutes for these; the slowest takes about six seconds a megabyte."""
    text = unit * (60_000 // len(unit))
    began = time.process_time()
    find(text)
    assert time.process_time() - began < 3


def test_a_megabyte_without_a_space_is_quick() -> None:
    began = time.process_time()
    assert find("x" * 1_000_000) == []
    assert find("Ab" * 500_000) == []
    assert time.process_time() - began < 5


# ---------------------------------------------------------------------------------------------- protected names


def protected_names() -> list[str]:
    lines = (BENCHMARKS / "phi_names.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    "frame",
    [
        "{n}",
        "{n} is what I have.",
        "The patient has {n}.",
        "History of {n}, stable.",
        "My mother has {n} too.",
        "Thanks, {n} is better.",
        "It's {n}, I think.",
    ],
)
def test_no_drug_disease_or_eponym_of_the_500_is_touched(frame: str) -> None:
    names = protected_names()
    assert len(names) == len(set(names)) == 500
    touched = [n for n in names for form in (n, n.upper(), n.lower()) if find(frame.replace("{n}", form))]
    assert touched == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Mr. Parkinson has Parkinson's disease.", "Parkinson"),
        ("Dr. Hodgkin described Hodgkin lymphoma.", "Hodgkin"),
        ("Dear Florence, Florence Nightingale syndrome is rare.", "Florence"),
        ("My name is Yasmin and I take Yasmin daily.", "Yasmin"),
    ],
)
def test_an_eponym_is_a_person_where_its_surroundings_say_so_and_only_there(text: str, name: str) -> None:
    findings = [f for f in find(text) if f.text == name]
    assert [f.start for f in findings] == [text.index(name)]


# ---------------------------------------------------------------------------------------------- records

META = {"source": "s", "licence": "cc0-1.0"}


def test_a_question_is_searched_in_every_text_field() -> None:
    row = Question(
        id="q",
        question="Dr. Okafor asks: which drug?",
        options={"A": "Aspirin", "B": "Ask Mrs. Lindgren"},
        answer="A",
        context="Seen 12/03/2019.",
        explanation="See a.b@example.org.",
        meta={"question": "Dr. Okafor asks", "topic": "Dr. Okafor"},
        **META,
    )
    findings = find_in_record(row)
    assert {k: [f.text for f in v] for k, v in findings.items()} == {
        "question": ["Okafor"],
        "options.B": ["Lindgren"],
        "context": ["12/03/2019"],
        "explanation": ["a.b@example.org"],
        "meta.question": ["Okafor"],
    }
    clean = redact_record(row)
    assert (clean.question, clean.context, clean.explanation) == (
        "Dr. [NAME] asks: which drug?",
        "Seen [DATE].",
        "See [EMAIL].",
    )
    assert clean.options == {"A": "Aspirin", "B": "Ask Mrs. [NAME]"}
    assert (clean.id, clean.answer, clean.meta["question"]) == ("q", "A", "Dr. [NAME] asks")
    assert find_in_record(clean) == {}


def test_options_that_differed_still_differ() -> None:
    row = Question(
        id="q",
        question="Who?",
        options={"A": "Dr. Okafor", "B": "Dr. Lindgren", "C": "Nobody", "D": "Dr. [NAME 1]"},
        answer="B",
        **META,
    )
    clean = redact_record(row)
    assert len(set(clean.options.values())) == 4
    assert not any("Okafor" in o or "Lindgren" in o for o in clean.options.values())
    assert all(o.strip() for o in clean.options.values())
    assert find_in_record(clean) == {}


def test_a_dialogue_and_a_preference_are_searched_by_message() -> None:
    talk = Dialogue(
        id="d",
        messages=[{"role": "user", "content": "My name is Wanjiru."}, {"role": "assistant", "content": "Hello."}],
        **META,
    )
    assert list(find_in_record(talk)) == ["messages.0.content"]
    assert redact_record(talk).messages[0] == {"role": "user", "content": "My name is [NAME]."}
    pair = Preference(
        id="p", prompt=[{"role": "user", "content": "Who?"}], chosen="Dr. Okafor", rejected="Dr. Lindgren", **META
    )
    clean = redact_record(pair)
    assert clean.chosen != clean.rejected
    assert "Okafor" not in clean.chosen
    assert "Lindgren" not in clean.rejected


def test_a_record_without_findings_is_the_same_object_and_given_findings_are_used() -> None:
    row = Question(id="q", question="What is gout?", options={"A": "x", "B": "y"}, answer="A", **META)
    assert redact_record(row) is row
    marked = {"question": [Finding("NAME", 8, 12, "gout", "by hand")]}
    assert redact_record(row, marked).question == "What is [NAME]?"


def test_a_record_of_another_kind_is_refused() -> None:
    row = AttackPrompt(id="a", base_id="a", topic="t", style="s", request="r", prompt=[], **META)
    with pytest.raises(TypeError, match="AttackPrompt"):
        find_in_record(row)


def test_the_lists_travel_with_the_package() -> None:
    names = {p.name for p in (files("aloe.data") / "lists").iterdir()}
    assert {"given_names.txt", "surnames.txt", "eponyms.txt", "drugs.txt", "diseases.txt", "places.txt"} <= names
