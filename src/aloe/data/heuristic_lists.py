"""Word lists and patterns of the offline quality score (`heuristics.py`): function words, boilerplate, refusals and
damage. Ours, and for English; other languages are only told apart."""

from __future__ import annotations

import re

WORD = re.compile(r"\w+")
CLOSED = re.compile(r"(?:the\s+)?(?:answer\s*(?:is)?\s*:?\s*)?[\[(]?(?:[A-J]|yes|no|maybe)[\])]?\.?", re.IGNORECASE)
VERDICT = re.compile(r"\n\s{0,3}Answer:\s{0,3}\S{1,3}\s{0,3}$")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

# ---------------------------------------------------------------------------------------------- words of function

_ENGLISH = (
    "a about after all also an and any are as at be because been before being between both but by can could did do "
    "does doing during each for from had has have having he her his how i if in into is it its may me might more most "
    "must my no nor not of on only or other our out over own same she should so some such than that the their them "
    "then there these they this those through to under until up very was we were what when where which while who whom "
    "why will with would you your"
)
ENGLISH = frozenset(_ENGLISH.split())
_OTHERS = {
    "es": "el los las del una por con para que como pero más está son también muy cuando según entre sin sobre",
    "fr": "le les des du une par avec pour que qui dans sur est sont mais aussi très quand selon entre sans ce cette",
    "de": "der das den dem des ein eine und ist sind mit für von auf nicht auch wenn oder bei wird werden durch nach",
    "it": "il gli della delle dei una con per che come sono anche molto quando secondo tra senza nel nella di è",
    "pt": "os das dos uma com para que como mas também muito quando segundo entre sem não são pelo pela em na no",
}
FUNCTION_WORDS: dict[str, frozenset[str]] = {"en": ENGLISH} | {k: frozenset(v.split()) for k, v in _OTHERS.items()}
NAMES_A_LANGUAGE = re.compile(
    r"\b(?:translat\w+|spanish|french|german|italian|portuguese|chinese|japanese|arabic|russian|language|traduc\w+|"
    r"español|français|deutsch|italiano|português|english|inglés|anglais)\b",
    re.IGNORECASE,
)
_DETERMINERS = "the an my your their its our every"
_PREPOSITIONS = "of from at with for into"
_MODALS = "can could may might must shall should will would"
_AFTER_NO_DETERMINER = (
    "the a an of in on at to for from with by and or but is are was were has have had be been can may will should "
    "would could it they he she we you if because when which that as not"
)
_IMPOSSIBLE = (
    (_DETERMINERS, _AFTER_NO_DETERMINER),
    (_PREPOSITIONS, "of is are was were and or but can may will should would could been be if"),
    ("of to", "of to by with from for and or but is are was were"),
    (_MODALS, "of the a an is are was were and or has had been with for to from by may can will should would could"),
    ("is are was were", "of is are was were can may will should would could have has and or"),
    ("and or but", "and or of but"),
)
NOT_IN_A_ROW = frozenset((a, b) for first, second in _IMPOSSIBLE for a in first.split() for b in second.split())

# ---------------------------------------------------------------------------------------------- patterns

_REST = r"\b[^.\n]{0,40}"
# By the words of which every match holds one, so that text without them isn't searched; each opens with plain letters,
# which `re` finds fastest.
_BOILERPLATE_BY_WORDS = {
    "hope": rf"hope (?:this|it|i|that|these) (?:helps?|has helped|answers?|have (?:helped|answered)){_REST}",
    "doubt doubts query queries question questions information clarification": (
        rf"for (?:any |further |more )+(?:doubts?|query|queries|questions?|information|clarification){_REST}"
    ),
    "consult": r"consult (?:a|an|your|any) [\w ]{0,30}(?:online|doctor|physician|specialist)",
    "revert": rf"revert back{_REST}",
    "thanks thank": rf"thank(?:s| you)(?: for (?:your|the|asking|using|contacting|posting|choosing){_REST})?",
    "wish wishing": rf"wish(?:ing)?(?: you)? (?:good|best|a|all){_REST}",
    "wishes": r"best wishes",
    "regards": r"regards",
    "care": r"take care(?= *(?:[.!]|$))",
    "luck": rf"good luck{_REST}",
    "free": rf"feel free to (?:ask|contact|write){_REST}",
    "know": rf"let me know if{_REST}",
    "click": rf"click (?:here|on|the){_REST}",
    "reserved": r"all rights reserved",
    "terms": r"terms of (?:use|service)",
    "privacy": r"privacy policy",
    "subscribe": r"subscribe (?:to|now|here)",
    "sign": r"sign up (?:for|to|now)",
    "more": r"read more",
    "share": r"share this(?: page| article)?",
    "us": rf"follow us{_REST}",
    "updated reviewed": rf"last (?:updated|reviewed){_REST}",
    "top": r"back to top",
    "lorem": r"lorem ipsum",
    "coming": r"coming soon",
    "welcome": rf"welcome to{_REST}",
    "dear": r"dear (?:user|sir|madam|patient|friend)",
}
BOILERPLATE = [re.compile(rf"{pattern}(?!\w)") for pattern in _BOILERPLATE_BY_WORDS.values()]
BOILERPLATE_OF = {word: n for n, held in enumerate(_BOILERPLATE_BY_WORDS) for word in held.split()}
PLACEHOLDER = re.compile(
    r"<(?:link|url|email|name|date|image)>|-->|\[(?:deleted|removed|link|image|edit|insert[^\]]{0,80})\]"
)
# One of these stands in every refusal.
DECLINES = ("as a", "sorry", "afraid", "able", "cannot", "can't", "can’t", "won't", "won’t", "will not", "no ")
REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial|large|language|virtual|machine)\b[\w -]{0,30}(?:model|assistant|intelligence)?"
    r"|\bi(?:['’]?m| am) (?:sorry|afraid|unable|not able|just an? ai|an ai)\b[^.\n]{0,60}"
    r"(?:can(?:no|['’])?t|unable|not able|assist|help|provide|answer|fulfil)"
    r"|\bi (?:cannot|can['’]?t|am unable to|won['’]t|will not) (?:assist|help|provide|answer|fulfil|comply|generate)"
    r"|\b(?:no (?:input|context|text|information) (?:was |is )?(?:provided|given|available))\b",
    re.IGNORECASE,
)
SUSPECT = re.compile("[\u0080-\u009f\ue000-\uf8ff\ufffdÃÂâï]")
DAMAGE = re.compile(
    r"[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\ue000-\uf8ff\ufffd]"
    r"|[ÃÂ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]|â€|ï¿½|ï»¿"
    r"|&(?:#\d+|#x[0-9a-f]+|nbsp|amp|lt|gt|quot|apos);|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}",
    re.IGNORECASE,
)
LOST = re.compile(r"(?<=[a-z])\?(?=[a-z])|\?{3,}")  # what a lossy conversion leaves of a letter
STOP = re.compile(r"[.!?][\"')\]”’]*\s+[\"'(\[“‘]*(\w)")  # gives the letter after a full stop
BREAKS = ("\n", ". ", "? ", "! ", "; ", ": ")
LIST_ITEM = re.compile(r"^\s*(?:[-*•–·]|\d{1,2}[.)]|[A-Za-z][.)])\s+\S")
ODD_WORD = re.compile(r"[b-df-hj-np-tv-xz]{5,}|\w{27,}|\w*([a-z])\1{3}\w*")
_ENDS_NOTHING = (
    "the a an of in on at to for from with by and or but if because which that than as is are was were be been has "
    "have can may will should would could your their its his her our my this these those such not very"
)
DANGLING = frozenset(_ENDS_NOTHING.split())
