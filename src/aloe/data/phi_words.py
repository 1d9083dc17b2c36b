"""The word lists behind the search for names: loaded once from `lists/`, folded to plain lower-case letters.

Every list is our own (CC0) and plain text: words apart, `#` a comment, `## title` a section.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# Endings of generic drug names and of diseases, and of the people and practices of medicine. Chosen so that hardly a
# given name or surname carries one; a word with such an ending is a name only if a name list holds it.
MEDICAL_ENDINGS = re.compile(
    r"(?:itis|osis|oses|oma|omas|omata|emia|aemia|emias|uria|pathy|pathies|plegia|paresis|trophy"
    r"|plasia|penia|algia|ectomy|otomy|ostomy|"
    r"oscopy|plasty|rrhea|rrhoea|rrhage|sclerosis|stenosis|ism|isms|logy|logist|logists|iatry|iatrist|iatrics|"
    r"[aeiou]mab|tinib|ciclib|rafenib|prazole|sartan|statin|vastatin|olol|dipine|azepam|azolam|cillin|cycline|"
    r"mycin|micin|oxacin|conazole|vir|virine|gliptin|gliflozin|glutide|glitazone|formin|setron|triptan|caine|"
    r"barbital|profen|oxicam|dronate|parin|xaban|platin|rubicin|taxel|bicin|trexate|purine|pril|idone|azole|"
    r"afil|asone|olone|onide|amide|azine|oxetine|pramine|triptyline|zepine|thiazide|semide|lukast|phylline|"
    r"coccus|bacter|bacterium|bacilli|virus|plasma|spirosis|iasis|asis|otic|emic|opia|opsia|genic|pathic|"
    r"tion|tions|sion|ness|ment|ments|ing|ings|able|ible|ical|ically|ous|ally|ology)$"
)
_SECTION = "words"


def fold(word: str) -> str:
    """Lower case without accents: the form in which words are compared. Typographic apostrophes become plain."""
    if word.isascii():
        return word.lower()
    plain = unicodedata.normalize("NFD", word.replace("’", "'").lower())
    return "".join(c for c in plain if not unicodedata.combining(c)).translate({0x142: "l", 0xF8: "o", 0x131: "i"})


def read_list(name: str) -> dict[str, frozenset[str]]:
    """The sections of `lists/<name>.txt`, words folded; words before the first `## title` are the section `words`."""
    sections: dict[str, set[str]] = {_SECTION: set()}
    current = sections[_SECTION]
    for line in (files("aloe.data") / "lists" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            current = sections.setdefault(line[3:].strip(), set())
        elif not line.startswith("#"):
            current.update(fold(w) for w in line.split())
    return {title: frozenset(words) for title, words in sections.items()}


@dataclass(frozen=True)
class Lexicon:
    """What is known of words. All sets hold folded words.

    given: seldom anything but a given name. ambiguous: a given name and a word, place or drug too. surnames: support
    for a given name, never a finding alone. allowed: eponyms, drugs, diseases and the user's own words.
    """

    given: frozenset[str]
    ambiguous: frozenset[str]
    surnames: frozenset[str]
    common: frozenset[str]
    stop: frozenset[str]
    eponyms: frozenset[str]
    eponym_nouns: frozenset[str]
    medical: frozenset[str]
    places: frozenset[str]
    organisations: frozenset[str]
    allowed: frozenset[str]

    def is_medical(self, word: str) -> bool:
        """Whether a folded word is a drug, a disease, the user's own allowed word, or ends like one."""
        return word in self.medical or word in self.allowed or bool(MEDICAL_ENDINGS.search(word))

    def is_listed_plain(self, word: str) -> bool:
        """Whether a list, not the ending alone, says that a folded word is no name."""
        return word in self.common or word in self.organisations or word in self.medical or word in self.allowed

    def is_plain(self, word: str) -> bool:
        """Whether a folded word is no name on its face: an everyday, medical or institutional word."""
        return self.is_listed_plain(word) or (bool(MEDICAL_ENDINGS.search(word)) and not self.is_known(word))

    def is_given(self, word: str) -> bool:
        """A given name that needs no other evidence; for a hyphened one, each part is a given name."""
        if word in self.given:
            return word not in self.allowed
        return "-" in word and all(p in self.given or p in self.ambiguous for p in word.split("-"))

    def is_known(self, word: str) -> bool:
        """Whether any name list holds the folded word."""
        return word in self.given or word in self.ambiguous or word in self.surnames or self.is_given(word)


@cache
def lexicon(allow: frozenset[str] = frozenset()) -> Lexicon:
    """The lists of the package; `allow` are further words (folded here) that are never part of a name."""
    given, ambiguous = read_list("given_names")[_SECTION], read_list("ambiguous_names")[_SECTION]
    eponyms, places = read_list("eponyms"), read_list("places")
    medical = read_list("drugs")[_SECTION] | read_list("diseases")[_SECTION]
    allowed = frozenset(fold(w) for phrase in allow for w in phrase.split())
    common = read_list("common_words")[_SECTION]
    strong = given - ambiguous - common - eponyms["names"] - places["places"] - medical - allowed
    return Lexicon(
        given=strong,
        ambiguous=(ambiguous | given) - strong - allowed,
        surnames=read_list("surnames")[_SECTION] - allowed,
        common=common,
        stop=read_list("stop_words")[_SECTION],
        eponyms=eponyms["names"],
        eponym_nouns=eponyms["nouns"],
        medical=medical,
        places=places["places"],
        organisations=read_list("organisations")["words"],
        allowed=allowed,
    )


@cache
def public_hosts() -> tuple[str, ...]:
    """Ends of host names whose pages are public reference, not about a person."""
    return tuple(sorted(read_list("organisations")["hosts"]))


@cache
def states() -> frozenset[str]:
    """Folded names and codes of states and provinces that stand before a postal code."""
    return read_list("places")["states"]
