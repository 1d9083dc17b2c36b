"""Instruction templates: how a record becomes the dialogue a model is trained on.

Sixteen tasks, as in Aloe Beta (arXiv 2505.04388), with 5 to 10 templates each and 110 in all; the texts are our own,
one file per task in `tasks/`. One template of the record's task is drawn per row, by the row's id (keyed randomness),
and its name stays on the row. A row may bring further texts for a template's slots (`meta["slots"]`): a template with a
slot that the row lacks can't be drawn, and one that leaves out what the row brings isn't (an answer chosen from labels
can't be learnt without the labels).

The paper doesn't print its list of tasks; ours is what public medical instruction sets ask for. What differs only in
what is asked, not in how one asks, is an alias: simplification and note_to_dialogue are `rewriting` in a given style,
definition is `question_answering` about a term, math_reasoning is an `instruction` (a calculation says itself what is
wanted). Extracting entities and relations stay two tasks, and so do classifying a text and a pair of texts, because
the requests have hardly a word in common.

Multiple-choice text has one shape everywhere: `format_question` here and in the prompting room are held equal by a
test, so training and evaluation show a question alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from typing import Any

from aloe.errors import AloeError
from aloe.keyed import rng
from aloe.records import Dialogue, Message, Question, Row
from aloe.yaml_text import load_yaml

MULTIPLE_CHOICE = ("multiple_choice", "multiple_choice_explained")
_ORDER = (
    *MULTIPLE_CHOICE, "question_answering", "yes_no_maybe", "instruction", "consultation", "diagnosis", "treatment",
    "dialogue_to_note", "summarization", "rewriting", "translation", "entity_extraction", "relation_extraction",
    "text_classification", "natural_language_inference",
)  # fmt: skip
_OWN_TEXT = frozenset({"question", "instruction", "input"})  # names of the row's user turn
_PAIR = frozenset({"premise", "hypothesis"})  # what stands in for it where a row is a pair of texts
_ANSWERS = frozenset({"answer", "letter", "explanation"})
_INFERABLE = frozenset({"source_language"})  # the text shows it: a template may leave it out
_SLOT = re.compile(r"\{(\w+)\}")
AS_IS = "conversation/as_is"


@dataclass(frozen=True)
class Template:
    """Texts of the user's and the assistant's turn, with `{slots}`; `name` is `task/number`."""

    name: str
    user: str
    assistant: str

    @cached_property
    def slots(self) -> frozenset[str]:
        """What a row has to bring beside its own turns."""
        return frozenset(_SLOT.findall(self.user)) - _OWN_TEXT


@dataclass(frozen=True)
class Alias:
    """Another name for `task`, with texts that the name implies. Of several one is drawn by the row's id."""

    task: str
    slots: Mapping[str, Sequence[str]] = field(default_factory=dict)
    asked: Sequence[str] = ()  # the question that a bare term is put into


ALIASES: dict[str, Alias] = {
    "question_answer": Alias("question_answering"),  # what the shape of two columns is called
    "definition": Alias(
        "question_answering",
        asked=('What does the medical term "{input}" mean?', 'How is the term "{input}" defined in medicine?'),
    ),
    "math_reasoning": Alias("instruction"),
    "simplification": Alias(
        "rewriting",
        {
            "style": (
                "in plain language for patients",
                "so that a patient without medical training can follow it",
                "in simple words, as one would explain it to a patient",
            )
        },
    ),
    "note_to_dialogue": Alias("rewriting", {"style": ("as a conversation between a doctor and a patient",)}),
}


def parse_task(task: str, text: str) -> tuple[Template, ...]:
    """The templates in the YAML `text` of one task's file: `about`, `answer` and a list of user turns, `templates`.

    Raises:
        AloeError: it is no YAML that is read here.
        ValueError: other keys, fewer than 5 or more than 10 templates, two alike, or a template in which the row's
            text or its answer doesn't stand exactly once.
    """
    values = load_yaml(text, task)
    if not isinstance(values, dict) or set(values) != {"about", "answer", "templates"}:
        raise ValueError(f"{task}: a task has exactly the keys about, answer and templates")
    family = tuple(Template(f"{task}/{i}", user, values["answer"]) for i, user in enumerate(values["templates"]))
    if not 5 <= len(family) <= 10:
        raise ValueError(f"{task}: {len(family)} templates, there should be 5 to 10")
    if len({" ".join(t.user.lower().split()) for t in family}) < len(family):
        raise ValueError(f"{task}: two templates are alike")
    for template in family:
        _check(template)
    return family


def _check(template: Template) -> None:
    names, answers = _SLOT.findall(template.user), _SLOT.findall(template.assistant)
    own = [n for n in names if n in _OWN_TEXT]
    if len(set(names)) < len(names) or len(set(answers)) < len(answers):
        raise ValueError(f"{template.name}: a slot stands twice")
    if len(own) + (set(names) >= _PAIR) != 1:
        raise ValueError(f"{template.name}: the row's text should stand exactly once")
    if not answers or not _ANSWERS.issuperset(answers) or _ANSWERS & set(names):
        raise ValueError(f"{template.name}: the answer should stand in the assistant's turn, and only there")
    rest = _SLOT.sub("", template.user + template.assistant)
    if "{" in rest or "}" in rest or template.user != template.user.strip():
        raise ValueError(f"{template.name}: a stray brace, or white space at an end")


def _library() -> dict[str, tuple[Template, ...]]:
    folder = resources.files("aloe.data") / "tasks"
    return {task: parse_task(task, (folder / f"{task}.yaml").read_text(encoding="utf-8")) for task in _ORDER}


TEMPLATES: dict[str, tuple[Template, ...]] = _library()
TASKS = frozenset(TEMPLATES) | frozenset(ALIASES)  # every name that `meta["form"]` may have
SLOTS: dict[str, frozenset[str]] = {  # by such a name: what `meta["slots"]` may hold
    name: frozenset[str]().union(*(t.slots for t in TEMPLATES[ALIASES[name].task if name in ALIASES else name]))
    for name in sorted(TASKS)
}


def task_table() -> list[tuple[str, int, str]]:
    """(task, number of templates, one of them on a line) for every task: the table in the documentation."""
    return [(task, len(family), " ".join(family[1].user.split())) for task, family in TEMPLATES.items()]


def format_question(question: str, options: Mapping[str, str], context: str = "") -> str:
    """A multiple-choice question as text: context (if any), question, one `A. text` line per option, by letter."""
    head = f"{context.strip()}\n\n{question.strip()}" if context.strip() else question.strip()
    return head + "\n\n" + "\n".join(f"{letter}. {options[letter].strip()}" for letter in sorted(options))


def draw(task: str, row_id: str, seed: int, given: frozenset[str] = frozenset()) -> Template:
    """The template of `task` for this row: uniform over those that fit, and the same whatever other rows there are.

    Args:
        given: names of the slots that the row fills.

    Raises:
        AloeError: no template fits what the row brings.
    """
    family = _fitting(task, given & SLOTS[task])
    if not family:
        wants = " or ".join(sorted({", ".join(sorted(t.slots)) for t in TEMPLATES[task]}))
        brings = ", ".join(sorted(given)) or "none"
        raise AloeError(
            f"no template of {task} fits a row whose slots are: {brings}",
            where=row_id,
            fix=f"give the row, in meta slots, {wants}",
        )
    return family[int(rng(seed, f"template:{task}", row_id).integers(len(family)))]


@cache
def _fitting(task: str, given: frozenset[str]) -> tuple[Template, ...]:
    return tuple(t for t in TEMPLATES[task] if given - _INFERABLE <= t.slots <= given)


def fill(text: str, slots: Mapping[str, str]) -> str:
    """Put `slots` into `{names}`, in one pass: braces inside a slot's own text stay as they are."""
    return _SLOT.sub(lambda m: slots[m[1]], text)


def explained(question: Question, seed: int, share: float) -> bool:
    """Whether a question is rendered with its explanation: it has one, and the keyed draw falls below `share`."""
    return bool(question.explanation) and float(rng(seed, "explained", question.id).random()) < share


def user_text(question: Question, task: str, seed: int) -> tuple[str, str]:
    """(user turn, template name) of a question for one of the two multiple-choice tasks."""
    template = draw(task, question.id, seed)
    shown = format_question(question.question, question.options, question.context)
    return fill(template.user, {"question": shown}), template.name


def render(record: Row, seed: int, explained_share: float = 1.0) -> Dialogue:
    """The training dialogue of a question or dialogue, its template and task in `meta`.

    A question keeps its fields in `meta["question"]`, so that later steps can read it. The task of a dialogue is its
    `meta["form"]`, with further texts in `meta["slots"]`. A conversation of several turns, a dialogue of no form in
    `TASKS`, a multiple-choice question that is text already, and a dialogue that carries a template stay as they are.

    Raises:
        AloeError: the row brings a slot that its task doesn't know, or lacks one that all its templates need.
    """
    if isinstance(record, Question):
        return _render_question(record, seed, explained_share)
    if not isinstance(record, Dialogue):
        raise TypeError(f"templates take questions and dialogues, not {type(record).__name__}")
    meta = dict(record.meta)
    if "template" in meta:
        return record
    form = str(meta.pop("form", ""))
    alias = ALIASES.get(form, Alias(form))
    roles = [m["role"] for m in record.messages]
    single = roles in (["user", "assistant"], ["system", "user", "assistant"])
    if alias.task not in TEMPLATES or alias.task in MULTIPLE_CHOICE or not single:
        return replace(record, meta=_with_task(meta, "conversation", AS_IS))
    *system, user, assistant = record.messages
    slots = _slots(record, form, alias, seed)
    template = draw(alias.task, record.id, seed, frozenset(slots))
    asked = _asked(user["content"], alias, record.id, seed)
    slots |= dict.fromkeys(_OWN_TEXT, asked) | {"answer": assistant["content"]}
    if form in ALIASES and form != "question_answer":
        meta["form"] = form  # says more than the task
    return replace(
        record,
        messages=system + exchange(fill(template.user, slots), fill(template.assistant, slots)),
        meta=_with_task(meta, alias.task, template.name),
    )


def _slots(record: Dialogue, form: str, alias: Alias, seed: int) -> dict[str, str]:
    """Texts that the row's form implies, then those it brings; a list is joined by commas, a blank one isn't there."""
    slots = {name: _one(texts, name, record.id, seed) for name, texts in alias.slots.items()}
    brought = record.meta.get("slots")
    if not SLOTS[form] or not isinstance(brought, Mapping):
        return slots
    if unknown := sorted(set(brought) - SLOTS[form]):
        fix = f"use one of {', '.join(sorted(SLOTS[form]))}"
        raise AloeError(f"{form} has no slot {unknown[0]!r}", where=record.id, fix=fix)
    for name, value in brought.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)
        if text.strip():
            slots[name] = text.strip()
    return slots


def _asked(text: str, alias: Alias, row: str, seed: int) -> str:
    """A bare term as a question; what is a question already stays one."""
    if not alias.asked or text.rstrip().endswith("?"):
        return text
    return fill(_one(alias.asked, "asked", row, seed), {"input": text.strip()})


def _one(texts: Sequence[str], purpose: str, row: str, seed: int) -> str:
    return texts[int(rng(seed, f"alias:{purpose}", row).integers(len(texts)))]


def _render_question(question: Question, seed: int, explained_share: float) -> Dialogue:
    task = "multiple_choice_explained" if explained(question, seed, explained_share) else "multiple_choice"
    user, name = user_text(question, task, seed)
    slots = {"explanation": question.explanation, "letter": question.answer}
    assistant = fill(draw(task, question.id, seed).assistant, slots)
    return Dialogue(
        id=question.id, source=question.source, licence=question.licence, messages=exchange(user, assistant),
        meta=_with_task(dict(question.meta), task, name) | {"question": question.to_dict()},
    )  # fmt: skip


def exchange(user: str, assistant: str) -> list[Message]:
    """One user turn and one assistant turn."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _with_task(meta: dict[str, Any], task: str, template: str) -> dict[str, Any]:
    """`meta` with our task and template; a task the source itself names is kept as `original_task`."""
    if "task" in meta:
        meta["original_task"] = meta.pop("task")
    return {**meta, "task": task, "template": template}
