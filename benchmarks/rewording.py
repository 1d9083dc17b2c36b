"""Rules that reword an exam question: the planted leaks of `decontaminate.py`. Our own text.

Two rule sets. `DEVELOPMENT` was used while the detector was written; `HELD_OUT` has other phrases, other synonyms and
other ways of moving clauses, was written before the detector was first run on either, and was not used to change it.
Neither was written with the detector's word lists at hand. Each set does what a person does who disguises a question:
exam phrasing and medical terms get synonyms, numbers become words and back, active turns passive, clauses and
sentences change places, fillers go, options change order (and wording).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aloe.keyed import rng
from aloe.records import Question

Rule = Callable[[str], str]
UNITS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
TENS = dict(
    zip(range(20, 100, 10), re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety"), strict=True)
)


def spelled(number: int) -> str:
    """0 to 99 in words."""
    if number < 20:
        return UNITS[number]
    ten, one = number // 10 * 10, number % 10
    return f"{TENS[ten]} {UNITS[one]}" if one else TENS[ten]


def digits_to_words(text: str) -> str:
    """Whole numbers of one or two digits become words; decimals, ranges and values with units of measure stay."""
    return re.sub(
        r"(?<![\d.,/-])\b(\d{1,2})\b(?![\d.,/%°]|\s?(?:mg|ml|mm|kg|g\b|cm|mmol|mEq))",
        lambda m: spelled(int(m[1])),
        text,
    )


def words_to_digits(text: str) -> str:
    """Number words up to nineteen become digits, but for "one" and "zero", which are seldom numbers."""
    table = {w: str(n) for n, w in enumerate(UNITS) if n > 1}
    return re.sub(r"\b(" + "|".join(table) + r")\b", lambda m: table[m[1].lower()], text, flags=re.IGNORECASE)


def phrases(table: Mapping[str, str]) -> Rule:
    """Replace whole phrases (regular expressions), longest first, in one pass: no replacement is replaced again."""
    ordered = sorted(table, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?P<r{k}>\b(?:{p})\b)" for k, p in enumerate(ordered)), re.IGNORECASE)

    def swap(match: re.Match[str]) -> str:
        return table[ordered[int(str(match.lastgroup)[1:])]]

    return lambda text: pattern.sub(swap, text)


def turned(*pairs: tuple[str, str]) -> Rule:
    """Apply the first regular expression that fits, once per sentence."""
    compiled = [(re.compile(pattern, re.IGNORECASE), form) for pattern, form in pairs]

    def one(sentence: str) -> str:
        for pattern, form in compiled:
            if pattern.search(sentence):
                return pattern.sub(form, sentence, count=1)
        return sentence

    return lambda text: " ".join(one(s) for s in sentences(text))


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.?!])\s+(?=[A-Z])", text.strip()) if s]


def question_first(text: str) -> str:
    """The last sentence of a case goes to its front."""
    parts = sentences(text)
    return " ".join([parts[-1], *parts[:-1]]) if len(parts) > 1 else text


def rotated(text: str) -> str:
    """The middle sentences of a case change places, second half first; opening and question stay."""
    parts = sentences(text)
    if len(parts) < 4:
        return text
    middle = parts[1:-1]
    half = len(middle) // 2
    return " ".join([parts[0], *middle[half:], *middle[:half], parts[-1]])


def leading_clause_last(text: str) -> str:
    """ "In X, Y?" becomes "Y in X?" in a question of one sentence."""
    found = re.fullmatch(r"(In|During|After|For|When|If)\s([^,.?]{4,90}),\s(.{8,}?)([?:.]?)", text.strip())
    return f"{found[3]} {found[1].lower()} {found[2]}{found[4]}" if found else text


def lists_turned(text: str) -> str:
    """ "a, b and c" becomes "c, b and a"; "a and b" stays where a word more could belong to either."""
    return re.sub(r"\b([\w-]+), ([\w-]+),? (and|or) ([\w-]+)\b", r"\4, \2 \3 \1", text)


@dataclass(frozen=True)
class RuleSet:
    """Named rules, applied in order to stems; `options` are those that options get too."""

    name: str
    rules: Mapping[str, Rule]
    options: tuple[str, ...]

    def reword(self, question: Question, seed: int) -> tuple[Question, tuple[str, ...]]:
        """The question in other words, options in another order, and which rules changed it."""
        stem, fired = question.question, []
        for name, rule in self.rules.items():
            changed = re.sub(r"\s+", " ", rule(stem)).strip()
            if changed != stem:
                fired.append(name)
            stem = changed
        texts = {}
        for letter, option in question.options.items():
            texts[letter] = option
            for name in self.options:
                texts[letter] = self.rules[name](texts[letter])
        letters = list(question.options)
        order = reordered(letters, seed, question.id)
        options = {letter: texts[old] for letter, old in zip(letters, order, strict=True)}
        answer = letters[order.index(question.answer)]
        return replace(question, question=stem or question.question, options=options, answer=answer), tuple(fired)


def reordered(letters: list[str], seed: int, key: str) -> list[str]:
    """A keyed order of the letters that is not their own."""
    order = [letters[int(k)] for k in rng(seed, "option-order", key).permutation(len(letters))]
    return order if order != letters else [*letters[1:], letters[0]]


DEVELOPMENT = RuleSet(
    "development",
    {
        "except": turned(
            (r"^(?:all|each) of the following (?:are|is) (?:true|correct) (?:about|of|regarding|for) (.+?),? "
             r"except[:?.]*$", r"Which one of these is untrue of \1?"),
            (r"^(?:all|each) of the following (.+?),? except[:?.]*$", r"Which one of these does not fit: \1?"),
            (r"^all (?:are|is) (.+?),? except[:?.]*$", r"Which one of these does not fit: \1?"),
            (r"^which of the following is not (.+?)[:?.]*$", r"All of these are \1, with one exception. Find it."),
        ),
        "voice": turned(
            (r"^(.{4,60}?) (?:is|are) (?:usually |commonly |mainly )?caused by[:?.]*$", r"What causes \1?"),
            (r"^(.{4,60}?) (?:is|are) supplied by[:?.]*$", r"What supplies \1?"),
            (r"^(.{4,60}?) (?:is|are) (?:seen|found|present) in[:?.]*$", r"Where does one see \1?"),
            (r"^(.{4,60}?) (?:is|are) produced by[:?.]*$", r"What produces \1?"),
            (r"^(.{4,60}?) (?:is|are) used (?:for|in)[:?.]*$", r"What is the use of \1?"),
            (r"^what causes (.+?)[:?.]*$", r"\1 is brought about by"),
            (r"\bwas (?:given|treated with|prescribed) ([\w -]{3,40}?)(?=[,.])", r"received \1"),
        ),
        "frame": phrases({
            "which of the following statements": "what statement", "which of the following": "which one",
            "which one of the following": "what", "all of the following": "every one of these",
            "is the most likely diagnosis": "diagnosis fits best",
            "the most likely diagnosis": "the probable diagnosis",
            "most likely": "probably", "is true about": "holds for", "is true regarding": "holds for",
            "true about": "right for", "most common": "commonest", "is characterised by": "is marked by",
            "is characterized by": "is marked by", "is associated with": "goes along with",
            "associated with": "linked to", "presents? with": "comes in with", "presented with": "came in with",
            "presents? to": "comes to", "complains of": "reports", "complaining of": "reporting",
            "history of": "past record of", "drug of choice": "preferred drug",
            "treatment of choice": "preferred therapy",
            "investigation of choice": "preferred test", "next best step in management": "best thing to do now",
            "most appropriate next step in management": "best thing to do now", "physical examination": "examination",
            "laboratory (?:studies|tests|values)": "blood tests", "shows?": "reveals", "showed": "revealed",
            "because of": "on account of", "is brought to": "is taken to", "is defined as": "means",
        }),
        "terms": phrases({
            "myocardial infarction": "heart attack", "hypertension": "high blood pressure", "renal": "kidney",
            "hepatic": "liver", "pulmonary": "lung", "cardiac": "heart", "fever": "raised temperature",
            "dyspnea": "shortness of breath", "dyspnoea": "shortness of breath", "carcinoma": "cancer",
            "tumou?r": "growth", "fracture": "break", "physician": "doctor", "treatment": "therapy",
            "causes?": "brings about", "decreased": "lowered", "increased": "raised", "decrease": "fall",
            "increase": "rise", "children": "young patients", "infant": "baby", "newborn": "neonate",
            "haemorrhage": "bleeding", "hemorrhage": "bleeding", "oedema": "swelling", "edema": "swelling",
            "man": "male", "woman": "female", "patient": "person", "anterior": "front", "posterior": "rear",
            "emergency department": "emergency room", "cells?": "cell bodies", "blood vessels?": "vessels",
            "disease": "disorder", "diagnosed with": "found to have", "examined": "looked at", "enzyme": "catalyst",
            "teeth": "dentition", "muscles": "musculature", "artery": "arterial trunk", "therapy": "treatment",
        }),
        "numbers": digits_to_words,
        "clauses": lambda text: leading_clause_last(question_first(text)),
        "fillers": phrases({"the": "", "usually": "", "commonly": "", "generally": "", "typically": "", "also": "",
                            "currently": "", "that": "", "very": "", "mainly": ""}),
    },
    options=("terms", "numbers"),
)  # fmt: skip

HELD_OUT = RuleSet(
    "held_out",
    {
        "except": turned(
            (r"^(?:all|each) of the following (.+?),? except[:?.]*$", r"\1: point out the wrong choice."),
            (r"^all (.+?),? except[:?.]*$", r"\1: point out the wrong choice."),
            (r"^which of the following (?:is|are) not (?:an? |the )?(.+?)[:?.]*$",
             r"\1: which choice fails to belong?"),
            (r"^which of the following is (?:true|correct) (?:about|regarding|of) (.+?)[:?.]*$",
             r"Regarding \1, select the accurate choice."),
        ),
        "voice": turned(
            (r"^the most common cause of (.+?) is[:?.]*$", r"\1 most often results from"),
            (r"^the most common (.+?) of (.+?) is[:?.]*$", r"\2 has as its leading \1"),
            (r"^most common (.+?) (?:of|in) (.+?)(?: is)?[:?.]*$", r"In \2, the leading \1 would be"),
            (r"^(.{4,60}?) (?:is|are) (?:caused|produced|secreted|supplied|innervated) by[:?.]*$",
             r"Name the origin of \1."),
            (r"^(.{4,60}?) (?:is|are) (?:seen|found|used|present) in[:?.]*$", r"Name the setting for \1."),
            (r"^which (?:of the following )?(\w+) (?:is|are) (.+?)[:?.]*$", r"Identify the \1 being \2."),
            (r"^an? (\d+)[- ]years?[- ]old (\w+) (?:presents? (?:to [\w ]+? )?|comes (?:to [\w ]+? )?|presented )"
             r"with (.+?)\.", r"\3 troubles a \2 aged \1."),
            (r"^an? (\d+)[- ]years?[- ]old (\w+)", r"Someone (\2, age \1)"),
        ),
        "frame": phrases({
            "which of the following": "identify what", "which one": "identify what", "most likely": "best supported",
            "most appropriate": "wisest", "best next step": "wisest move", "next step in management": "management now",
            "is true": "is accurate", "are true": "are accurate", "following": "listed", "except": "save for",
            "history of": "background of", "comes to the physician": "sees a clinician",
            "comes to the office": "visits the clinic", "brought to the": "taken into the", "presents": "arrives",
            "examination": "inspection", "reveals": "discloses", "shows": "discloses", "due to": "owing to",
            "associated with": "tied to", "characteri[sz]ed by": "typified by", "characteristic of": "typical for",
            "feature of": "sign in", "used for": "employed in", "used in": "employed for", "because of": "owing to",
            "complains of": "mentions", "diagnosis": "condition", "likely": "plausible", "regarding": "on",
            "occurs in": "arises in", "found in": "met in", "responsible for": "behind",
            "is known as": "goes by the name",
        }),
        "terms": phrases({
            "blood pressure": "BP", "intravenous": "IV", "electrocardiogram": "ECG", "tuberculosis": "TB",
            "urinary tract infection": "UTI", "white blood cells?": "leukocytes", "red blood cells?": "erythrocytes",
            "central nervous system": "CNS", "stroke": "cerebrovascular accident", "cancer": "malignancy",
            "carcinoma": "malignancy", "kidney": "renal organ", "heart": "cardiac organ", "bleeding": "haemorrhage",
            "drug": "medication", "drugs": "medications", "treatment": "management", "symptoms?": "complaints",
            "pain": "ache", "swelling": "enlargement", "fever": "pyrexia", "child": "youngster",
            "children": "youngsters",
            "boy": "lad", "girl": "lass", "man": "gentleman", "woman": "lady", "patient": "individual",
            "physician": "clinician", "infection": "infectious process", "deficiency": "lack",
            "syndrome": "symptom complex",
            "increased": "elevated", "decreased": "reduced", "elevated": "high", "reduced": "low", "cough": "coughing",
            "nerve": "neural branch", "artery": "arterial vessel", "muscle": "muscular unit", "bone": "osseous part",
            "tooth": "dental unit", "gland": "glandular organ", "vomiting": "emesis", "rash": "skin eruption",
        }),
        "numbers": words_to_digits,
        "spelling": phrases({"anaemia": "anemia", "oesophag(?=us)": "esophag", "anemia": "anaemia", "tumor": "tumour",
                             "haemorrhage": "hemorrhage", "leukaemia": "leukemia", "leukemia": "leukaemia",
                             "diarrhea": "diarrhoea", "diarrhoea": "diarrhea", "estrogen": "oestrogen",
                             "pediatric": "paediatric", "edema": "oedema", "color": "colour", "fetus": "foetus"}),
        "lists": lists_turned,
        "order": rotated,
        "fillers": phrases({"a": "", "an": "", "then": "", "often": "", "there is": "", "in which": "where",
                            "has been": "was", "over the past": "for", "for the past": "for", "he has": "",
                            "she has": "", "he is": "", "she is": "", "his": "", "her": ""}),
    },
    options=("terms", "numbers", "spelling"),
)  # fmt: skip
