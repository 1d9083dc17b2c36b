"""Whether a rewritten answer keeps to the answer it was made from. Pure: texts in, reasons and measures out.

What is held fast is what can be read off without understanding: quantities (none lost, none added), polarity (what the
original denies is denied, and what it affirms is not) and the original's content words. It is a net for the errors that
matter most in medicine, not a proof: a wrong statement in new words passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from aloe.data.clean import links, words
from aloe.synthesize.accept import containment, repetitive
from aloe.synthesize.leaks import SOURCE_LEAKS, find_leak
from aloe.synthesize.quantities import Quantity, quantities
from aloe.synthesize.vocabulary import COMMON_WORDS, FUNCTION_WORDS

MAX_COPY = 0.9  # share of the rewritten text's word trigrams that may stand in the original answer; ours
MAX_ASKED = 0.7  # and in the question
_NEGATOR = re.compile(
    r"\b(?:not|no|never|none|without|neither|nor|cannot|avoid(?:s|ed|ing)?|contra-?indicated|contraindications?|"
    r"except|exclud(?:e|es|ed|ing)|absen(?:t|ce)|lack(?:s|ed|ing)?|free\s+of|unlikely|rarely|unsafe|"
    r"refrain|don't|doesn't|didn't|isn't|aren't|wasn't|weren't|can't|won't|shouldn't|mustn't|"
    r"needn't|couldn't|wouldn't|hasn't|haven't|dont|doesnt|cant)\b",
    re.IGNORECASE,
)
_NOT_ONLY = re.compile(r"\bnot\s+(?:only|just|merely)\b|\bno\s+(?:matter|doubt|longer)\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[.!?;:,\n()]+|\b(?:but|however|although|though|while|whereas|because|since|so|which|who|that|when|if|and|or|unless"
    r"|until|after|before)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fidelity:
    """`reasons` against a rewritten answer, strongest first (empty: accepted), what they rest on, and the measures."""

    reasons: tuple[str, ...]
    measures: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return not self.reasons


def compare(
    text: str,
    question: str,
    answer: str,
    *,
    truncated: bool,
    min_words: int,
    max_words: int,
    min_terms: float,
    min_negations: float = 1.0,
) -> Fidelity:
    """Judge a rewritten answer.

    Args:
        text: what the writer wrote.
        question: the user's turn.
        answer: the original answer, whose facts must stay.
        truncated: the reply was cut by the length limit.
        min_words: fewest words, where the original is not longer still.
        max_words: most words.
        min_terms: share of the original's content words that must be kept, in [0, 1].
        min_negations: share of the original's denials that must be found again, in [0, 1].
    """
    count, original = len(words(text)), len(words(answer))
    numbers, polarity = _quantities(text, question, answer), _polarity(text, answer)
    kept, all_terms = terms(answer) & terms(text), terms(answer)
    share = len(kept) / len(all_terms) if all_terms else 1.0
    leak = find_leak(text, SOURCE_LEAKS, allowed=answer)
    added_links = links(text) - links(answer) - links(question)
    copied = containment(text, answer, 3)
    found: dict[str, str] = {
        "truncated": "cut" if truncated else "",
        "adds_a_quantity": ", ".join(map(str, numbers.added)),
        "loses_a_quantity": ", ".join(map(str, numbers.lost)),
        "turns_a_negation": ", ".join(polarity.turned),
        "loses_a_negation": "; ".join(polarity.lost) if polarity.share < min_negations else "",
        "loses_terms": ", ".join(sorted(all_terms - kept)[:20]) if share < min_terms else "",
        "leaks_the_source": f"{leak.rule}: {leak.phrase}" if leak else "",
        "too_short": f"{count} words" if count < min(min_words, 2 * original) or 2 * count < original else "",
        "too_long": f"{count} words" if count > max_words else "",
        "copies_the_answer": f"{copied:.2f}" if copied > MAX_COPY else "",
        "copies_the_question": "yes" if containment(text, question, 3) > MAX_ASKED else "",
        "adds_a_link": ", ".join(sorted(added_links)),
        "repeats_itself": "yes" if repetitive(text) else "",
    }
    evidence = {reason: shown for reason, shown in found.items() if shown}
    measures = {
        "words": float(count),
        "growth": count / original if original else 0.0,
        "copied": copied,
        "quantities_kept": numbers.share,
        "negations_kept": polarity.share,
        "terms_kept": share,
        "new_terms": len(terms(text) - all_terms) / max(len(terms(text)), 1),
    }
    return Fidelity(tuple(evidence), {name: round(value, 4) for name, value in measures.items()}, evidence)


# ------------------------------------------------------------------------------------------ quantities


@dataclass(frozen=True)
class _Numbers:
    lost: list[Quantity]
    added: list[Quantity]
    share: float  # of the original's quantities that are kept


def _quantities(text: str, question: str, answer: str) -> _Numbers:
    """Every quantity of the answer must be there with its unit, and none that neither answer nor question has.

    A bare number may gain nothing: "5" is not "5 mg".
    """
    before, after = set(quantities(answer)), set(quantities(text))
    lost = sorted(before - after)
    added = sorted(after - before - set(quantities(question)))
    return _Numbers(lost, added, 1 - len(lost) / len(before) if before else 1.0)


# ------------------------------------------------------------------------------------------ polarity


@dataclass(frozen=True)
class _Clause:
    affirmed: bool
    words: str
    terms: frozenset[str]  # of `terms`: for what is said of them
    content: frozenset[str]  # every content word, common ones too: to find the same denial again


@dataclass(frozen=True)
class _Polarity:
    turned: list[str]
    lost: list[str]
    share: float  # of the original's denials that are found again


def _polarity(text: str, answer: str) -> _Polarity:
    """Terms whose polarity is the opposite one, and denials that are gone.

    A term is turned when every clause of one text denies it and every clause of the other affirms it; one of which
    both are said ("not in children, but in adults") is left alone. A denial of the original is found again in a
    clause that denies something and shares a content word with it.
    """
    mine, theirs = _clauses(answer), _clauses(text)
    before, after = _said(mine), _said(theirs)
    both = before.keys() & after.keys()
    turned = sorted(term for term in both if len(before[term]) == len(after[term]) == 1 and before[term] != after[term])
    denials = [clause for clause in mine if not clause.affirmed and clause.content]
    denied = frozenset[str]().union(*(clause.content for clause in theirs if not clause.affirmed))
    lost = [clause.words for clause in denials if not clause.content & denied]
    return _Polarity(turned, lost, 1 - len(lost) / len(denials) if denials else 1.0)


def _clauses(text: str) -> list[_Clause]:
    """Clauses with their polarity: denied when an odd number of negators stands in them ("do not avoid" takes two)."""
    plain = _NOT_ONLY.sub(" ", text.replace("’", "'"))
    plain = re.sub(r"\bwithout\b", ", without", plain, flags=re.IGNORECASE)  # denies what follows it, nothing before
    found = []
    for clause in _CLAUSE.split(plain):
        rest = _NEGATOR.sub(" ", clause)
        affirmed = len(_NEGATOR.findall(clause)) % 2 == 0
        content = frozenset(stem(w) for w in words(rest) if len(w) >= 3 and w.isalpha() and w not in FUNCTION_WORDS)
        found.append(_Clause(affirmed, " ".join(clause.split()), terms(rest), content))
    return found


def _said(clauses: list[_Clause]) -> Mapping[str, set[bool]]:
    """{term: {True if a clause affirms it, False if one denies it}}."""
    found: dict[str, set[bool]] = {}
    for clause in clauses:
        for term in clause.terms:
            found.setdefault(term, set()).add(clause.affirmed)
    return found


# ------------------------------------------------------------------------------------------ terms


def terms(text: str) -> frozenset[str]:
    """Stems of the content words of a text: what is neither a function word nor a word of every answer."""
    return frozenset(
        stem(w)
        for w in words(text)
        if len(w) >= 4 and w.isalpha() and w not in FUNCTION_WORDS and w not in COMMON_WORDS
    )


_ENDINGS = (
    "ations", "ation", "ically", "ingly", "ments", "ment", "ness", "ities", "ity", "ions", "ion", "ical", "ally",
    "ings", "ing", "edly", "ies", "ied", "ous", "ive", "als", "al", "ers", "er", "ed", "es", "ly", "ic", "s", "e", "y",
)  # fmt: skip


def stem(word: str) -> str:
    """A word without its ending, at least four letters long: "infections", "infected" and "infection" meet."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word
