"""Phrases that give a writer away: that it was told the answer, or that it had a text before it to rewrite.

Two tables of named patterns, English, read on cleaned text (no markdown, plain quotes). They look for talk *about* the
answer, the notes or the task. Clinical wording with the same words must pass: "adrenaline is given into the thigh", "as
indicated by the troponin", "of the given options", "dissolved in the solution", "the gold standard". A table is a list:
a leak in words that it does not know passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aloe.prompting.extract import clean

_KNOWN = r"(?:given|provided|stated|supplied|indicated|listed|marked|specified|mentioned|told|known)"
_CORRECT = r"(?:correct|right|gold|reference|known|intended|expected|official)"
_THING = r"(?:answer|option|choice)"
_LETTER = r"(?:option\s+|choice\s+)?[\"'(\[]*[A-J][\"')\]]*"
_SINCE = r"(?:since|because|given\s+that|knowing\s+that|seeing\s+that|considering\s+that|as)"
_WE = r"(?:we|i|you)"


def _table(**patterns: str) -> Mapping[str, re.Pattern[str]]:
    return {name: re.compile(pattern, re.IGNORECASE) for name, pattern in patterns.items()}


# The writer was shown the gold answer and notes (`synthesize`, mode explain).
LABEL_LEAKS = _table(
    given_answer=(
        # "of the given options" is what any candidate could write: the plural passes, but for answers and notes
        rf"\b(?:{_KNOWN}|gold|reference|official|predetermined|pre-?selected)\s+(?:{_CORRECT}\s+)?"
        r"(?:(?:answer|option|choice|label|explanation|rationale)\b(?!\s+(?:choices|options|lists?)\b)|answers\b|"
        r"answer\s+key|notes?\b)"
        r"|\b(?:given|provided|reference|gold|supplied)\s+(?:correct\s+)?solution\b(?!\s+of\b)"
    ),
    answer_was_given=(
        rf"\b{_CORRECT}\s+{_THING}\s+(?:is|was|has\s+been|being)\s+(?:already\s+|also\s+)?{_KNOWN}\b"
        rf"|\b{_THING}\s+(?:is|was|has\s+been)\s+(?:already\s+)?{_KNOWN}\s+(?:as|to\s+be|in|by|above|here|to\s+us)\b"
        rf"|\banswer\s+(?:that\s+(?:is|was)\s+|we\s+(?:are|were)\s+)?(?:given|provided|supplied)\s+"
        r"(?:is|was|as|here|above|to\s+(?:me|us))\b"
        rf"|\b{_THING}(?:\s+[A-J])?\s+(?:is\s+|was\s+)?(?:marked|labelled|labeled|flagged|listed|given)\s+as\s+(?:the\s+)?"
        r"(?:correct|right|answer)\b"
    ),
    as_stated=(
        r"\bas\s+(?:is\s+|was\s+|already\s+|previously\s+)*(?:stated|given|provided|supplied|told)"
        r"(?=\s*[,.;:)\]]|\s*\Z|\s+(?:above|here)?\s*,?\s*(?:the\s+)?(?:correct|right|answer|option)\b)"
        rf"|\bas\s+(?:is\s+|was\s+|already\s+)*{_KNOWN}\s*,?\s*(?:that\s+)?(?:the\s+)?"
        rf"(?:(?:in|by)\s+the\s+(?:answer|notes?|key|solution|prompt|explanation)|{_CORRECT}\s+{_THING})\b"
    ),
    according_to_notes=(
        r"\b(?:according\s+to|based\s+on|as\s+per|per|following|using|from|in)\s+(?:the|these|those|your)\s+"
        r"(?:(?:provided|given|reference|supplied|accompanying|attached|teacher's|correct|gold)\s+)?"
        r"(?:notes?|answer\s+key|answer|key|rationale)\b(?!\s+(?:choices|options|lists?|features?|findings?))"
        r"|\b(?:according\s+to|based\s+on|as\s+per)\s+the\s+(?:solution|explanation)\b"
    ),
    notes_say=(
        r"\bthe\s+(?:notes?|answer\s+key|explanation)\s+(?:also\s+)?(?:says?|states?|mentions?|tells?|indicates?|"
        r"explains?|points?\s+out|suggests?|confirms?|gives?)\b"
        r"|\b(?:the\s+)?(?:prompt|user|instructions?|task)\s+(?:says?|states?|tells?|gives?|provides?|asks?\s+me|wants?)\b"
        r"|\bthe\s+question\s+(?:says|states|tells\s+us|gives|provides|indicates)\s+(?:that\s+)?(?:us\s+)?the\s+"
        rf"(?:correct\s+|right\s+)?{_THING}\b(?!\s+(?:choices|options))"
    ),
    prompt_label=r"\bcorrect\s+option\s*:",
    since_correct=(
        rf"\b{_SINCE}\s+(?:{_WE}\s+(?:already\s+)?(?:know|are\s+told|were\s+told|have\s+been\s+told)\s+(?:that\s+)?)?"
        rf"the\s+(?:correct|right)\s+{_THING}\s+(?:is|was|must\s+be)\b"
        rf"|\b{_SINCE}\s+the\s+answer\s+(?:is|was)\s+(?:given|known|stated|already|{_LETTER}(?!\w))"
    ),
    circular=(
        rf"\b(?:since|because|given\s+that|knowing\s+that)\s+{_LETTER}\s+(?:is|was)\s+(?:the\s+|already\s+)?"
        r"(?:correct|right|given|stated|marked|answer)\b"
    ),
    was_told=(
        rf"\b{_WE}(?:'ve|'re|\s+are|\s+were|\s+am|\s+was|\s+have\s+been)?\s+(?:already\s+)?(?:told|given|informed|"
        r"provided)\s+(?:us\s+|me\s+|with\s+)?(?:that\s+)?(?:the\s+)(?:correct\s+|right\s+)?(?:answer|option|solution|"
        r"notes)\b(?!\s+(?:choices|options))"
        r"|\bwe\s+(?:already\s+)?know\s+(?:that\s+)?(?:the\s+)?(?:correct\s+|right\s+)?(?:answer|option)\s+(?:is|to\s+be)\b"
        r"|\byou\s+(?:gave|said|told|provided|mentioned|stated|indicated)\b"
    ),
    matches_the_key=(
        rf"\b(?:match|matches|align|aligns|agree|agrees|consistent|in\s+line|accord|accords|in\s+accordance)\s+(?:with\s+)?"
        rf"the\s+(?:{_CORRECT}|given|provided|stated)\s+(?:{_THING}|label|key)\b"
        rf"|\b(?:justify|justifies|justifying|support|supports|supporting|arrive\s+at|reach)\s+the\s+(?:{_CORRECT}|given|"
        rf"provided|stated)\s+{_THING}\b"
        r"|\bwork(?:ing|s)?\s+backwards?\b|\bground[\s-]truth\b|\banswer\s+key\b"
    ),
)

# The writer was shown an answer to explain (`rewrite`).
SOURCE_LEAKS = _table(
    original_answer=(
        r"\b(?:the|your|this|that|our)\s+(?:original|source|reference|provided|given|above|previous|initial|existing|"
        r"supplied|short(?:er)?)\s+(?:answer|text|reply|passage)\b"
        r"|\b(?:the|your|this|that)\s+(?:original|source|provided|given|above|supplied)\s+(?:response|statement|"
        r"information|material|content)\b"
        r"|\b(?:answer|text|information|passage|material)\s+(?:you\s+)?(?:provided|supplied|given\s+(?:above|here))\b"
    ),
    answer_says=(
        r"\bthe\s+(?:answer|text|passage|source|excerpt)\s+(?:also\s+)?(?:says?|states?|mentions?|explains?|notes?|"
        r"tells?|lists?|describes?|points?\s+out|does\s+not\s+(?:say|state|mention))\b"
        r"|\b(?:according\s+to|based\s+on|as\s+(?:stated|mentioned|said|noted|described|given)\s+in)\s+the\s+"
        r"(?:answer|text|passage|source|original|context|material|information\s+(?:above|provided|given))\b"
    ),
    about_rewriting=(
        r"\b(?:rewritten|rewrite|rewriting|reworded|rephrased|paraphrased)\b"
        r"|\b(?:here(?:'s|\s+is)|below\s+is)\s+(?:the|an?|my|your)\s+(?:\w+[\s,-]+){0,4}"
        r"(?:answer|version|explanation|response|reply)\b"
        r"|\b(?:explained|expanded|improved|revised|updated|final|detailed)\s+(?:answer|version)\s*:"
        r"|\bI(?:'ve|\s+have)\s+(?:explained|expanded|kept|preserved|added|included|used)\b"
    ),
    assistant_talk=(
        r"\bas\s+an?\s+(?:AI|artificial\s+intelligence|language\s+model|assistant)\b"
        r"|\bI(?:'m|\s+am)\s+(?:just\s+)?an?\s+(?:AI|language\s+model|assistant)\b"
        r"|\A\s*(?:sure|certainly|of\s+course|absolutely)\s*[!,.]"
        r"|\b(?:let\s+me\s+know\s+if|I\s+hope\s+this\s+(?:helps|answers)|feel\s+free\s+to\s+ask)\b"
    ),
)


@dataclass(frozen=True)
class Leak:
    """Which pattern was found, and the words it was found in."""

    rule: str
    phrase: str


def find_leak(text: str, table: Mapping[str, re.Pattern[str]], allowed: str = "") -> Leak | None:
    """The first pattern of `table` found in `text`, in the table's order; a phrase that stands in `allowed` (the text
    that was to be rewritten) is none."""
    plain, own = clean(text), clean(allowed).casefold()
    for rule, pattern in table.items():
        for match in pattern.finditer(plain):
            if not own or match[0].casefold() not in own:
                return Leak(rule, " ".join(match[0].split()))
    return None
