"""How a row of a published set becomes a record: one exact mapping per schema, used by the table in `presets.py`.

Pure, like `shapes.py`: a dict in, a record out, or a `Misfit`. A row that shows that the whole file has another schema
than its preset (an answer counted from 1 where it should count from 0) is an `AloeError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any

from aloe.data.clean import key_text
from aloe.data.options import Misfit, checked, columns_options, parsed, read_options, whole_number
from aloe.data.shapes import Defaults, Taker, as_task, preference, ranked
from aloe.errors import AloeError
from aloe.records import Question, Row

Build = Callable[[Mapping[str, Any], Defaults], Row]


# ---------------------------------------------------------------------------------------------- questions


def _question(
    taker: Taker, defaults: Defaults, stem: str, options: dict[str, str], letter: str, *, context: str = "",
    explanation: str = "", **extra: Any,
) -> Question:  # fmt: skip
    if letter not in options:
        raise Misfit("answer_not_in_options", f"answer {letter[:60]!r} is none of {', '.join(options)}")
    base = taker.base(defaults, **extra)
    return Question(question=stem, options=options, answer=letter, context=context, explanation=explanation, **base)


def _counted(taker: Taker, column: str, count: int, first: int, other: str = "") -> str:
    """The letter for the number of one of `count` options, counted from `first`. A number that only the other way of
    counting has means that every row of the file would get a wrong answer: an error that names the preset `other`."""
    value = taker.take(column)
    number = whole_number(value)
    if value is None or number == -1:
        raise Misfit("no_answer", f"{column} is {value!r}: this row is published without its answer")
    if number is None:
        raise Misfit("answer_not_in_options", f"{column} is {str(value)[:60]!r}, expected a number")
    wrong = count if first == 0 else 0
    if other and number == wrong:
        raise AloeError(
            f"{column} is {number}, so this file counts options from {1 - first}, not from {first}",
            fix=f"use preset {other}; rows read so far would have had wrong answers",
        )
    if not first <= number < first + count:
        raise Misfit("answer_not_in_options", f"{column} {number} is outside {first}..{first + count - 1}")
    return ascii_uppercase[number - first]


def medqa(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """`options` by letter (a map, or bigbio's list of key and value), `answer_idx` a letter, `answer` its text."""
    taker = Taker(row)
    stem, (options, _) = taker.need("empty_question", "question"), read_options(taker.take("options"))
    letter, text = taker.need("no_answer", "answer_idx").strip().upper(), taker.text("answer")
    if letter in options and key_text(text) != key_text(options[letter]):
        raise Misfit("ambiguous_answer", f"answer {text[:60]!r} is not the text of option {letter}")
    return _question(taker, defaults, stem, options, letter)


def medqa_endings(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """The SWAG layout: `sent1` and `sent2` are the stem, `ending0`..`ending3` the options, `label` counts from 0."""
    taker = Taker(row)
    stem = " ".join(t for t in (taker.need("empty_question", "sent1"), taker.text("sent2")) if t.strip())
    names = [f"ending{i}" for i in range(5)]
    taker.used.update(names)
    options = columns_options(row, names)
    return _question(taker, defaults, stem, options, _counted(taker, "label", len(options), 0))


def medmcqa(first: int, other: str) -> Build:
    """Columns `opa`..`opd`; `cop` counts from `first`; -1 in the test split, whose answers are not published."""

    def build(row: Mapping[str, Any], defaults: Defaults) -> Row:
        taker = Taker(row)
        names = ("opa", "opb", "opc", "opd")
        taker.used.update(names)
        stem, options = taker.need("empty_question", "question"), columns_options(row, names)
        letter = _counted(taker, "cop", len(names), first, other)
        return _question(taker, defaults, stem, options, letter, explanation=taker.text("exp"))

    return build


YES_NO_MAYBE = {"A": "yes", "B": "no", "C": "maybe"}


def pubmedqa(question: str, contexts: str, long_answer: str) -> Build:
    """A yes/no/maybe question on an abstract, whose sections are the context and whose conclusion the explanation."""

    def build(row: Mapping[str, Any], defaults: Defaults) -> Row:
        taker = Taker(row)
        stem, value, extra = taker.need("empty_question", question), parsed(taker.take(contexts)), {}
        if isinstance(value, Mapping):
            extra = {"abstract": {str(k): v for k, v in value.items() if k != "contexts"}}
            value = value.get("contexts")
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise Misfit("no_context", f"{contexts} should hold the texts of the abstract's sections")
        decision = taker.need("no_answer", "final_decision").strip().lower()
        letter = next((k for k, v in YES_NO_MAYBE.items() if v == decision), None)
        if letter is None:
            raise Misfit("answer_not_in_options", f"final_decision {decision[:60]!r} is none of yes, no, maybe")
        return _question(
            taker, defaults, stem, dict(YES_NO_MAYBE), letter, context="\n".join(value),
            explanation=taker.text(long_answer), **extra,
        )  # fmt: skip

    return build


def headqa(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """`answers` are pairs of number and text, `ra` is the number of the right one. A question with a picture needs
    it and is not for a text model."""
    taker = Taker(row)
    image = taker.take("image")
    if image and not (isinstance(image, Mapping) and not any(image.values())):
        raise Misfit("needs_image", "the question comes with an image")
    stem, answers = taker.need("empty_question", "qtext"), parsed(taker.take("answers"))
    if isinstance(answers, Mapping):  # `datasets` keeps a sequence of maps as a map of sequences
        numbers, texts = answers.get("aid"), answers.get("atext")
        both = isinstance(numbers, list) and isinstance(texts, list) and len(numbers) == len(texts)
        answers = [{"aid": a, "atext": t} for a, t in zip(numbers or (), texts or (), strict=True)] if both else None
    if not isinstance(answers, list) or not all(isinstance(a, Mapping) for a in answers):
        raise Misfit("bad_options", "answers should be a list of aid and atext")
    if len(answers) > len(ascii_uppercase):
        raise Misfit("bad_options", f"{len(answers)} answers")
    options = checked({letter: a.get("atext") for letter, a in zip(ascii_uppercase, answers, strict=False)})
    right = whole_number(taker.take("ra"))
    if right is None:
        raise Misfit("no_answer", "ra is missing or no number")
    letters = [k for k, a in zip(ascii_uppercase, answers, strict=False) if whole_number(a.get("aid")) == right]
    if len(letters) != 1:
        raise Misfit("answer_not_in_options", f"ra {right} is the aid of {len(letters)} answers")
    return _question(taker, defaults, stem, options, letters[0])


def careqa(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """Columns `op1`..`op4`; `cop` counts from 1."""
    taker = Taker(row)
    names = ("op1", "op2", "op3", "op4")
    taker.used.update(names)
    stem, options = taker.need("empty_question", "question"), columns_options(row, names)
    return _question(taker, defaults, stem, options, _counted(taker, "cop", len(names), 1))


def mmlu(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """`choices` a list of four (or columns `A`..`D`), `answer` an index from 0 (or, in the CSV release, a letter)."""
    taker = Taker(row)
    stem, value = taker.need("empty_question", "question"), parsed(taker.take("choices"))
    if value is None:
        taker.used.update("ABCD")
        options = columns_options(row, "ABCD")
    elif isinstance(value, list) and len(value) <= len(ascii_uppercase):
        options = checked(dict(zip(ascii_uppercase, value, strict=False)))
    else:
        raise Misfit("bad_options", f"choices should be a list, found {type(value).__name__}")
    answer = row.get("answer")
    if isinstance(answer, str) and answer.strip() in options:
        taker.used.add("answer")
        return _question(taker, defaults, stem, options, answer.strip())
    return _question(taker, defaults, stem, options, _counted(taker, "answer", len(options), 0))


# ---------------------------------------------------------------------------------------------- exchanges


def exchange(task: str, user: str, answer: str) -> Build:
    """A text and its answer, in columns `user` and `answer`, for the templates of `task`."""

    def build(row: Mapping[str, Any], defaults: Defaults) -> Row:
        taker = Taker(row)
        asked = taker.need("empty_question", user)
        return as_task(taker, defaults, task, asked, taker.need("empty_answer", answer))

    return build


NO_INPUT = "<noinput>"  # what Self-Instruct's prompt asks the writer to put where an instruction needs no input


def instruction(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """Alpaca's three columns; an input of `<noinput>` is none."""
    taker = Taker(row)
    asked, extra = taker.need("empty_instruction", "instruction"), taker.text("input")
    if extra.strip() and extra.strip().lower() != NO_INPUT:
        asked = f"{asked}\n\n{extra}"
    return as_task(taker, defaults, "instruction", asked, taker.need("empty_answer", "output"))


# The section headers of MTS-Dialog, as its README lists them, in words that a request for a note can use.
SECTIONS = {
    "fam/sochx": "family and social history", "genhx": "history of present illness",
    "pastmedicalhx": "past medical history", "cc": "chief complaint", "pastsurgical": "past surgical history",
    "allergy": "allergies", "ros": "review of systems", "medications": "medications", "assessment": "assessment",
    "exam": "physical examination", "diagnosis": "diagnosis", "disposition": "disposition", "plan": "plan",
    "edcourse": "emergency department course", "immunizations": "immunizations", "imaging": "imaging",
    "gynhx": "gynecologic history", "procedures": "procedures", "other_history": "other history", "labs": "laboratory",
}  # fmt: skip


def mts_dialog(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """A conversation and one section of the note on it; the section's header, in words, is a slot of the templates."""
    taker = Taker(row)
    dialogue, note = taker.need("empty_dialogue", "dialogue"), taker.need("empty_note", "section_text")
    header = str(row.get("section_header") or "").strip()  # stays in `meta`, too
    if header.lower() not in SECTIONS:
        raise Misfit("unknown_section", f"section_header {header[:60]!r} is none of the 20 published ones")
    return as_task(taker, defaults, "dialogue_to_note", dialogue, note, section=SECTIONS[header.lower()])


_CALCULATOR = re.compile(r"<<[^<>]*>>")


def gsm8k(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """Reasoning that ends in `#### number`. The calculator annotations `<<48/2=24>>` are left out: they were made for
    a decoder that calls a calculator (Cobbe et al., section 2)."""
    taker = Taker(row)
    question, answer = taker.need("empty_question", "question"), taker.need("empty_answer", "answer")
    if not re.search(r"\S.*\n#### *-?[\d.,]*\d *\Z", answer.strip(), re.DOTALL):
        raise Misfit("no_final_answer", "the answer doesn't end in a line #### and a number")
    return as_task(taker, defaults, "math_reasoning", question, _CALCULATOR.sub("", answer.strip()))


# ---------------------------------------------------------------------------------------------- preferences


def ultrafeedback(score: str) -> Build:
    """The completion with the best `score` against the one with the worst; `source` names where the prompt is from."""

    def build(row: Mapping[str, Any], defaults: Defaults) -> Row:
        return ranked(Taker(_renamed(row, source="prompt_source")), defaults, score)

    return build


def binarized(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """Two whole conversations that share their prompt."""
    taker = Taker(row)
    prompt = taker.need("empty_prompt", "prompt")
    chosen, rejected = parsed(taker.take("chosen")), parsed(taker.take("rejected"))
    taker.take("messages")  # repeats the chosen conversation
    turns = []
    for conversation in (chosen, rejected):
        if not isinstance(conversation, list) or [_role(m) for m in conversation] != ["user", "assistant"]:
            raise Misfit("bad_conversation", "chosen and rejected should be one user and one assistant turn")
        if str(conversation[0].get("content")).strip() != prompt.strip():
            raise Misfit("prompts_differ", "chosen or rejected does not answer the prompt")
        turns.append(str(conversation[1].get("content") or ""))
    return preference([{"role": "user", "content": prompt}], turns[0], turns[1], taker.base(defaults))


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def helpsteer(row: Mapping[str, Any], defaults: Defaults) -> Row:
    """Two responses and `preference_strength` from -3 (the first is much better) to 3 (the second is)."""
    taker = Taker(row)
    prompt = taker.need("empty_prompt", "prompt")
    if "<extra_id_1>" in prompt:  # how the set marks the turns of a conversation
        raise Misfit("conversation_prompt", "the prompt is a conversation of several turns in one text")
    first, second = taker.need("empty_answer", "response_1"), taker.need("empty_answer", "response_2")
    strength = whole_number(row.get("preference_strength"))  # stays in `meta`, too
    if strength is None or not -3 <= strength <= 3:
        raise Misfit("bad_score", f"preference_strength {row.get('preference_strength')!r} is outside -3..3")
    if strength == 0:
        raise Misfit("no_preference", "both responses are judged equal")
    chosen, rejected = (first, second) if strength < 0 else (second, first)
    return preference([{"role": "user", "content": prompt}], chosen, rejected, taker.base(defaults))


def _renamed(row: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(k, k): v for k, v in row.items()}
