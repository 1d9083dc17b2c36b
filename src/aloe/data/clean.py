"""Cleaning: pure functions from text to text, from record to record, each saying what it did or why it refused.

Lists and patterns follow the Aloe Beta paper's cleaning section (arXiv 2505.04388): URLs and e-mails stripped, junk
questions and junk answers dropped, mangled multiple-choice answers repaired.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

import ftfy

from aloe.data.html_tables import flatten_tables, has_table
from aloe.records import Dialogue, Message, Question, Row

# ---------------------------------------------------------------------------------------------- text

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_SUPERSCRIPT_RUN = re.compile("(?<=[\\w)])[" + "".join(SUPERSCRIPTS) + "]+")
_MIXED_FRACTION = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_DEGREE_ORDINAL = re.compile(r"º(?=\s*[CFcf]\b)")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_FENCE = re.compile(r"(```.*?```)", re.DOTALL)
_URL = re.compile(r"(?:\b(?:https?|ftp)://|\bwww\.)[^\s<>\"')\]]*[^\s<>\"')\].,;:!?]", re.IGNORECASE)
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
_MARKDOWN_LINK = re.compile(r"\[([^\]]+)\]\(((?:https?://|www\.)[^)\s]*)\)", re.IGNORECASE)
_HOLLOW = re.compile(r"\(\s*\)|\[\s*\]|<\s*>")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|\d+|[<>=≤≥±+%|↑↓]")


def normalise(text: str) -> str:
    """ftfy, Unicode NFKC and whitespace; text in code fences is left as it stands.

    Plain NFKC corrupts medical quantities ("10⁵" becomes 105, "2½ mg" becomes "21/2 mg"), so exponents become
    `^5` and mixed fractions get a space first.
    """
    parts = _FENCE.split(text)
    return "".join(p if p.startswith("```") else _normalise_prose(p) for p in parts).strip()


def _normalise_prose(text: str) -> str:
    if not text.isascii() or "&" in text or _CONTROL.search(text):  # plain ASCII has nothing to mend but its spaces
        text = _mend_unicode(text)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text)


def _mend_unicode(text: str) -> str:
    text = ftfy.fix_text(text, normalization="NFC")
    text = _DEGREE_ORDINAL.sub("°", text)
    text = _SUPERSCRIPT_RUN.sub(lambda m: "^" + "".join(SUPERSCRIPTS[c] for c in m[0]), text)
    text = _MIXED_FRACTION.sub(" ", text)
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/").replace("\u200b", "").replace("\ufeff", "")


def strip_links(text: str, keep: frozenset[str] = frozenset()) -> tuple[str, int, int]:
    """Text without URLs and e-mail addresses other than those in `keep`; also how many of each went. A Markdown link
    keeps its words."""
    gone: list[str] = []

    def removed(match: re.Match[str]) -> str:
        if match[0] in keep:
            return match[0]
        gone.append("email" if _EMAIL.fullmatch(match[0]) else "url")
        return ""

    def unlinked(match: re.Match[str]) -> str:
        if match[2] in keep:
            return match[0]
        gone.append("url")
        return match[1]

    text = _URL.sub(removed, _EMAIL.sub(removed, _MARKDOWN_LINK.sub(unlinked, text)))
    if gone:
        text = _HOLLOW.sub("", text)
        text = re.sub(r"[^\S\n]+([.,;:!?])", r"\1", re.sub(r"[^\S\n]{2,}", " ", text)).strip()
    return text, gone.count("url"), gone.count("email")


def links(text: str) -> frozenset[str]:
    """The URLs and e-mail addresses in a text."""
    return frozenset(_EMAIL.findall(text) + _URL.findall(text))


def words(text: str) -> list[str]:
    """Comparison tokens: NFKC, case folded; words, numbers and the signs that change a medical meaning (< > = + %)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def key_text(text: str) -> str:
    """The text that exact comparison uses: `words` joined by single spaces (or the folded text, if it has none)."""
    return " ".join(words(text)) or text.casefold().strip()


# ---------------------------------------------------------------------------------------------- junk

_NOTHING = {"n/a", "na", "n.a.", "none", "null", "nil", "nan", "-", "--", ".", "?", "...", "tbd", "test"}
_JUNK_QUESTIONS = _NOTHING | {
    "no abstract available", "no abstract", "abstract not available", "no title available", "[not available]",
    "not available", "question", "untitled", "erratum", "corrigendum", "retracted", "withdrawn", "see text",
}  # fmt: skip
_JUNK_ANSWERS = _NOTHING | {
    "answer", "answers", "answer:", "erratum", "corrigendum", "editor's note", "editors note", "editorial",
    "no abstract available", "not available", "no answer", "see text", "see above", "as above", "explanation",
    "reference", "references",
}  # fmt: skip
_NOTICE = re.compile(
    r"^\W*(?:(?:(?:published )?erratum|corrigendum|editor'?s note|expression of concern)\s*(?:[:\]]|-\s|to\b|in\b)"
    r"|(?:correction|retraction|withdrawn|withdrawal|retracted)\s*"
    r"(?:\]|notice\b|notification\b|(?:this )?article\b|to:))",
    re.IGNORECASE,
)
_FIGURE = re.compile(r"\[\s*(?:figure|table|image)\s*:?\s*see text\s*\]|<img\b", re.IGNORECASE)


def junk_question(text: str) -> str | None:
    """Reason to drop a question, or None: empty, a placeholder or notice, or one that needs a missing figure."""
    plain = text.strip().casefold().strip("\"'“”")
    if not plain:
        return "empty_question"
    if _FIGURE.search(text):
        return "needs_figure"
    bare = plain.strip("[]().! ")
    return "junk_question" if plain in _JUNK_QUESTIONS or bare in _JUNK_QUESTIONS or _NOTICE.match(text) else None


def junk_answer(text: str) -> str | None:
    """Reason to drop a free-text answer, or None."""
    plain = text.strip().casefold().strip("\"'“”")
    if not plain:
        return "empty_answer"
    bare = plain.strip("[]().! ")
    return "junk_answer" if plain in _JUNK_ANSWERS or bare in _JUNK_ANSWERS or _NOTICE.match(text) else None


# ---------------------------------------------------------------------------------------------- mangled answers

_L = r"(?P<letter>[A-Za-z])"
_REST = r"(?:\s*(?:i\.?\s?e\.?\s?,?|[.,:;)\]-]|viz\.?)+\s*(?P<rest>.*\S))?"
_OPEN, _CLOSE = r"[\[({'\"`*]*", r"[\])}'\"`*]*"
ANSWER_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(rf"^\s*{pattern}\s*[.,;]?\s*$", re.IGNORECASE | re.DOTALL))
    for name, pattern in (
        ("ans_dash", rf"ans(?:wer)?s?\.?\s*[-–=]+>?\s*{_OPEN}{_L}\b{_CLOSE}{_REST}"),
        ("ans_is", rf"(?:the\s+)?ans(?:wer)?\.?\s*(?:is|:)+\s*{_OPEN}{_L}\b{_CLOSE}{_REST}"),
        ("ans_letter", rf"ans(?:wer)?\.?\s*{_OPEN}{_L}\b{_CLOSE}{_REST}"),
        (
            "correct_is",
            rf"(?:the\s+)?(?:correct|right|best)\s+(?:answer|option|choice|ans\.?)\s*(?:is|:|-)*\s*"
            rf"{_OPEN}{_L}\b{_CLOSE}{_REST}",
        ),
        ("option_letter", rf"(?:option|choice|alternative)\s*[:.-]?\s*{_OPEN}{_L}\b{_CLOSE}{_REST}"),
        ("key_letter", rf"(?:correct\s+)?key\s*(?:is|:|-|=)\s*{_OPEN}{_L}\b{_CLOSE}{_REST}"),
        ("boxed", rf"\\boxed\{{(?:\\text\{{)?{_L}\}}*"),
        ("bold", rf"\*\*{_L}[.)]?\*\*{_REST}"),
        ("bracket", rf"[\[({{]\s*{_L}\s*[\])}}]{_REST}"),
        ("bracket_text", rf"[\[({{]\s*{_L}\s*[\])}}]\s*(?P<rest>\S.*)"),
        ("quoted", rf"['\"`]{_L}['\"`]{_REST}"),
        ("letter_ie", rf"{_L}\s+i\.?\s?e\.?\s?,?\s*(?P<rest>\S.*)"),
        ("letter_text", rf"{_L}\s*[.):\]-]\s*(?P<rest>.*)"),
        ("text_letter", rf"(?P<rest>\S.*?)\s*[\[(]\s*(?:option\s+)?{_L}\s*[\])]"),
    )
)


def repair_answer(text: str, options: dict[str, str]) -> tuple[str, str] | None:
    """(letter, pattern name) of a mangled answer such as "Ans-[B]" or "B i.e. All", or None when it can't be read.

    Nothing is guessed: the whole text must have one of the known shapes, the letter must be an option, and an
    option text that stands beside the letter must be that option's.
    """
    for name, pattern in ANSWER_PATTERNS:
        found = pattern.match(text)
        if not found:
            continue
        letter = found["letter"].upper()
        rest = (found.groupdict().get("rest") or "").strip()
        if letter in options and (not rest or _same_option(rest, options[letter])):
            return letter, name
    return None


def _same_option(rest: str, option: str) -> bool:
    """Whether one text is the other or its beginning, word by word ("All" is short for "All of the above")."""
    a, b = words(rest), words(option)
    short, long = (a, b) if len(a) <= len(b) else (b, a)
    return bool(short) and long[: len(short)] == short


_LEAD = re.compile(
    r"^\s*(?:the\s+)?(?:correct\s+)?ans(?:wer)?\.?[\s:=-]*(?:is\b)?[\s:=-]*[\[('\"]*(?P<letter>[A-Z])"
    r"(?:[\])'\"]+|(?=\s*i\.?e\b|[.,:;-]))\s*(?:i\.?\s?e\.?\s?,?|[.,:;-])*\s*",
    re.IGNORECASE,
)


def repair_explanation(explanation: str, answer: str) -> tuple[str, str | None]:
    """Explanation without a leading "Ans. is 'b' i.e.,"; emptied if that letter contradicts the answer.

    Returns the text and what was done: None, "explanation_lead_stripped" or "explanation_contradicts_answer".
    """
    found = _LEAD.match(explanation)
    if not found:
        return explanation, None
    if found["letter"].upper() != answer:
        return "", "explanation_contradicts_answer"
    return explanation[found.end() :].strip(), "explanation_lead_stripped"


# ---------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Cleaned:
    """`record` is None when dropped, with the `reason`; `changes` name what was done to a kept one."""

    record: Row | None
    reason: str | None = None
    changes: tuple[str, ...] = ()


def clean_record(record: Row) -> Cleaned:
    """Clean a question or dialogue. Records of other kinds come back as they are."""
    try:
        if isinstance(record, Question):
            return _clean_question(record)
        if isinstance(record, Dialogue):
            return _clean_dialogue(record)
    except _BadTable:
        return Cleaned(None, "html_table")
    return Cleaned(record)


class _BadTable(Exception):
    """A text with an HTML table that lines of text can't show."""


_HTML = re.compile(r"\bhtml\b", re.IGNORECASE)


def _untabled(text: str, changes: list[str]) -> str:
    """Text with simple HTML tables as lines of cells, outside code fences. Any other table is a `_BadTable`."""
    if not has_table(text):
        return text
    parts = [p if p.startswith("```") or not has_table(p) else flatten_tables(p) for p in _FENCE.split(text)]
    if None in parts:
        raise _BadTable
    fixed = "".join(p for p in parts if p is not None)
    changes += ["html_table_flattened"] * (fixed != text)
    return fixed


def _clean_text(text: str, changes: list[str], keep: frozenset[str] = frozenset()) -> str:
    fixed, urls, mails = strip_links(normalise(text), keep)
    changes += ["url_stripped"] * bool(urls) + ["email_stripped"] * bool(mails)
    return fixed


def _clean_question(record: Question) -> Cleaned:
    changes: list[str] = []
    question = _clean_text(_untabled(record.question, changes), changes)
    options = {letter: _clean_text(_untabled(text, changes), changes) for letter, text in record.options.items()}
    if reason := junk_question(question):
        return Cleaned(None, reason)
    if any(_FIGURE.search(text) for text in options.values()):
        return Cleaned(None, "needs_figure")
    if not all(options.values()):
        return Cleaned(None, "empty_option")
    gold = options[record.answer].casefold()
    if sum(text.casefold() == gold for text in options.values()) > 1:
        return Cleaned(None, "two_options_are_the_answer")
    try:
        explanation = _clean_text(_untabled(record.explanation, changes), changes)
    except _BadTable:  # the question stands without it
        explanation = ""
        changes.append("html_table_explanation_removed")
    if explanation and junk_answer(explanation):
        explanation = ""
        changes.append("junk_explanation_removed")
    explanation, repair = repair_explanation(explanation, record.answer)
    changes += [repair] if repair else []
    context = _clean_text(_untabled(record.context, changes), changes)
    kept = replace(record, question=question, options=options, context=context, explanation=explanation)
    return Cleaned(kept, changes=tuple(dict.fromkeys(changes)))


def _clean_dialogue(record: Dialogue) -> Cleaned:
    changes: list[str] = []
    keep: frozenset[str] = frozenset()
    if record.meta.get("form") != "question_answer":  # a link that an instruction names is what it is about
        keep = links("\n".join(normalise(m["content"]) for m in record.messages if m["role"] == "user"))
    texts = [m["content"] for m in record.messages]
    if not any(
        _HTML.search(m["content"]) for m in record.messages if m["role"] != "assistant"
    ):  # asked for HTML: leave
        texts = [_untabled(text, changes) for text in texts]
    messages: list[Message] = [
        {**m, "content": _clean_text(text, changes, keep)} for m, text in zip(record.messages, texts, strict=True)
    ]
    first = next(m["content"] for m in messages if m["role"] != "system")
    if reason := junk_question(first):
        return Cleaned(None, reason)
    for message in messages:
        if message["role"] == "assistant" and (reason := junk_answer(message["content"])):
            return Cleaned(None, reason)
        if not message["content"]:
            return Cleaned(None, "empty_turn")
    return Cleaned(replace(record, messages=messages), changes=tuple(dict.fromkeys(changes)))
