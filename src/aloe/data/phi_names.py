"""Names of people: by the words around them (title, greeting, signature, field, kin), then by name lists.

A word that is a name and something else too (May, Rose, Grant; Parkinson, Hodgkin; Florence; Yasmin) is a name only
where its surroundings say so. In text without capitals, as forums write it, an unknown word is a name only after a
strong cue: there "we saw ingvarsson" is missed.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate

from aloe.data import phi_cues as cue
from aloe.data.phi_runs import ListedNames, Span
from aloe.data.phi_words import Lexicon, fold

_SOFT_CLOSINGS = ("best", "love", "take", "thanks", "thank", "cheers", "yours", "from", "with")
_NO_TITLES = ("MS", "MR", "SR")  # multiple sclerosis, magnetic resonance


class NameSearch(ListedNames):
    """One text's search for names."""

    def __init__(self, text: str, words: Lexicon, cased: bool) -> None:
        super().__init__(text, words, cased)
        self.places: dict[str, list[int]] = {}
        self._walk()

    def _walk(self) -> None:
        """Note every place where a name may begin after a word that some cue ends with."""
        text, places = self.text, self.places
        for m in (cue.CAPITAL_START if self.cased else cue.WORD_START).finditer(text):
            start = m.start()
            before = text[start - 18 if start > 18 else 0 : start].split()
            while len(before) > 1 and before[-1] in cue.PARTICLES and self.cased:  # "Dr. van der Berg" begins at "van"
                start -= len(before.pop()) + 1
            if before:
                for name in cue.CUES_OF.get(before[-1].strip(cue.EDGES).lower(), ()):
                    places.setdefault(name, []).append(start)

    def _cues(self, name: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Matches of a cue pattern that end where a name may begin."""
        for start in self.places.get(name, ()):
            for m in pattern.finditer(self.text, max(0, start - cue.WINDOW), start):
                if m.end() == start:
                    yield m

    def spans(self) -> Iterator[Span]:
        """Every candidate name; spans may overlap."""
        yield from self._titles()
        yield from self._title_words()
        yield from self._greetings()
        yield from self._sign_offs()
        yield from self._dash_signatures()
        yield from self._introductions()
        yield from self._fields()
        yield from self._by()
        yield from self._kin()
        yield from self.by_lists()

    def _titles(self) -> Iterator[Span]:
        lex = self.lex
        for m in self._cues("title", cue.STRONG_TITLE):
            taken = None if self._no_title(m) else self.take(m.end(), first_common=True)
            if taken and (self.cased or lex.is_known(taken.first) or not lex.is_plain(taken.first)):
                yield "NAME", taken.start, taken.end, "title"

    def _no_title(self, m: re.Match[str]) -> bool:
        """Whether the word is a disease, an image, a review or the initial of a species, and no title."""
        title = m[0].strip()
        word, stopped = title.rstrip("."), title.endswith(".")
        if word in _NO_TITLES and not stopped:
            return not self.text[m.end() : m.end() + 12].split(" ")[0].isupper()
        if word.lower() in ("rev", "hon", "sr") and not stopped:
            return True
        if word.lower() in ("sr", "hon", "rev", "mx", "mme", "ms"):
            return not (self.cased and word[0].isupper() and not word.isupper())
        return word == "M" and not self.lex.is_known(fold(self.text[m.end() : m.end() + 30].split(" ")[0].strip(".,;")))

    def _title_words(self) -> Iterator[Span]:
        """ "Doctor Brown", "Miss Dey"; in text without capitals only with a listed name."""
        lex = self.lex
        for m in self._cues("soft", cue.SOFT_TITLE):
            if self.cased and not self.capital(m.end()):
                continue
            word = cue.TOKEN.match(self.text, m.end())
            surname = bool(word) and fold(word[0]) in lex.surnames and fold(word[0]) not in lex.stop  # type: ignore[index]
            taken = self.take(m.end(), firm=self.cased, first_common=surname and self.cased)
            if taken and not lex.is_known(taken.first) and self.text[taken.start : taken.end].isupper():
                continue  # "its cousin RNA"
            if taken and (self.cased or lex.is_given(taken.first) or taken.first in lex.surnames):
                yield "NAME", taken.start, taken.end, "title_word"

    def _greetings(self) -> Iterator[Span]:
        lex = self.lex
        for m in self._cues("greeting", cue.GREETING):
            taken = self.take(m.end(), limit=3, first_common=True)
            if not taken or not cue.GREETING_END.match(self.text, taken.end):
                continue
            first = taken.first
            everyday = first in lex.common and first not in lex.ambiguous and first not in lex.surnames
            if not (everyday or first in lex.stop or first in lex.medical or first in lex.organisations):
                yield "NAME", taken.start, taken.end, "greeting"

    def _sign_offs(self) -> Iterator[Span]:
        lex, text = self.lex, self.text
        for m in self._cues("sign", cue.SIGN_OFF):
            closing = m[0][: m.start(1) - m.start()].lower()
            soft = closing.split(" ")[0] in _SOFT_CLOSINGS and "regards" not in closing
            spaced = not m[1].strip()  # no comma, stop or line break between closing and name
            if soft and spaced and closing not in ("thanks", "thank you", "cheers"):
                continue
            taken = self.take(m.end(), first_common=not spaced or self.cased)
            if not taken or not (cue.CREDENTIAL.match(text, taken.end) or cue.END.match(text, taken.end)):
                continue
            first = taken.first
            plain = lex.is_listed_plain(first) if self.cased and m[0][0].isupper() else lex.is_plain(first)
            if plain and first not in lex.ambiguous:
                continue
            unsure = ((soft or not self.cased) and not lex.is_known(first)) or first in lex.common
            if not unsure or cue.LINE_END.match(text, taken.end):
                yield "NAME", taken.start, taken.end, "sign_off"

    def _dash_signatures(self) -> Iterator[Span]:
        """ "- Ann Smith" at the end of a line. Lists look the same, so a name list must know a word of it."""
        for m in cue.DASH_END.finditer(self.text):
            taken = self.take(m.end(), limit=3)
            if not taken or taken.first in self.lex.common or not cue.LINE_END.match(self.text, taken.end):
                continue
            if taken.end - taken.start < 4 and self.text[taken.start : taken.end].isupper():
                continue
            if self.lex.is_known(taken.first) or self.likely_pair(taken):
                yield "NAME", taken.start, taken.end, "dash_signature"

    def _introductions(self) -> Iterator[Span]:
        for m in self._cues("intro", cue.INTRO):
            sure = m[1].lower().startswith(cue.SURE_INTROS)
            taken = self.take(m.end(), first_common=sure)
            if taken and self._introduced(taken.words, m, taken.end, sure):
                yield "NAME", taken.start, taken.end, "introduction"

    def _introduced(self, words: tuple[str, ...], m: re.Match[str], end: int, sure: bool) -> bool:
        lex, first = self.lex, words[0]
        if sure:
            return first not in lex.common or first in lex.ambiguous or first in lex.surnames
        if not self.cased:
            return lex.is_given(first) and bool(cue.INTRO_END.match(self.text, end))
        if not self.capital(m.end()):
            return False
        if lex.is_given(first) or (len(words) > 1 and words[-1] in lex.surnames and not lex.is_plain(first)):
            return True
        unknown = not lex.is_listed_plain(first) and not self.other(first) and len(first) > 2
        shouted = self.text[m.end() : end].isupper()
        return (
            unknown and not shouted and m[1].lower() in ("i am", "i'm") and bool(cue.AFTER_I_AM.match(self.text, end))
        )

    def _fields(self) -> Iterator[Span]:
        """ "Patient name: Doe, Jane". Speakers of a dialogue look like fields, so most labels need a likely name."""
        lex, text = self.lex, self.text
        for m in self._cues("field", cue.FIELD):
            sure = bool(cue.NAME_FIELD.match(m[1]))
            title = cue.STRONG_TITLE.match(text, m.end())
            taken = self.take(title.end() if title else m.end(), limit=5, first_common=sure)
            if not taken:
                continue
            first, end = taken.first, taken.end
            comma = cue.SURNAME_FIRST.match(text, end)
            if sure or title:
                if lex.is_listed_plain(first) and not lex.is_known(first):
                    continue
            elif not (
                (lex.is_given(first) and cue.FIELD_END.match(text, end))
                or self._pair_in_field(taken.words, end)
                or (comma and lex.is_known(first) and len(first) > 2)
            ):
                continue
            if not (self.cased or sure or lex.is_given(first) or cue.LOWER_PERSON.match(text, end)):
                continue
            if comma and len(taken.words) <= 2 and not cue.CREDENTIAL.match(text, end):  # "Doe, Jane"
                rest = self.take(comma.end(), limit=2)
                end = rest.end if rest and not lex.is_plain(rest.first) else end
            yield "NAME", taken.start, end, "field"

    def _pair_in_field(self, words: tuple[str, ...], end: int) -> bool:
        if len(words) < 2 or self.any_plain(words):
            return False
        known = self.lex.is_known(words[0]) or self.lex.is_known(words[-1])
        return bool(known or cue.PERSON_AFTER.match(self.text, end) or cue.PAIR_FIELD_END.match(self.text, end))

    def _by(self) -> Iterator[Span]:
        """ "seen by", "spoke with": a given name, or two words that nothing speaks against."""
        for m in self._cues("by", cue.BY):
            taken = self.take(m.end(), limit=4 if self.cased else 3)
            if not taken or (self.cased and not self.capital(m.end())):
                continue
            if self.cased:
                strange = not self.any_plain(taken.words) and not all(self.other(w) for w in taken.words)
                found = self.lex.is_given(taken.first) or (len(taken.words) > 1 and strange)
            else:
                found = self.likely_pair(taken)
            if found:
                yield "NAME", taken.start, taken.end, "by"

    def _kin(self) -> Iterator[Span]:
        """ "my husband John", "our cardiologist, Kwame Osei"."""
        lex = self.lex
        for m in self._cues("kin", cue.KIN):
            taken = self.take(m.end(), limit=3)
            if not taken:
                continue
            first, definite = taken.first, m[0][:4].lower() == "the "
            if self.cased:
                unknown = not lex.is_listed_plain(first) and (first in lex.ambiguous or not self.other(first))
                if lex.is_given(first) or (unknown and not definite and self.capital(m.end())):
                    yield "NAME", taken.start, taken.end, "kin"
            elif lex.is_given(first) and len(first) > 2:
                sure = len(taken.words) > 1 and (taken.words[1] in lex.surnames or lex.is_given(taken.words[1]))
                yield "NAME", taken.start, taken.end if sure else taken.start + len(first), "kin"
            elif not definite and not cue.PROFESSION.search(m[0]) and self._lower_kin(m.end(), first):
                yield "NAME", m.end(), m.end() + len(first), "kin"

    def _lower_kin(self, start: int, word: str) -> bool:
        """Whether an unknown word stands between "my husband" and a verb or comma, in text without capitals."""
        end = start + len(word)
        unknown = not self.lex.is_plain(word) and not self.other(word) and len(word) > 3
        return unknown and fold(self.text[start:end]) == word and bool(cue.AFTER_LOWER_KIN.match(self.text, end))


def names(text: str, words: Lexicon, cased: bool) -> Iterator[Span]:
    """Names of people in `text`, and every further mention of the words of a name found by its surroundings."""
    search = NameSearch(text, words, cased)
    found = list(search.spans())
    yield from found
    mentioned = {
        part
        for _, start, end, rule in found
        if rule not in cue.WEAK_RULES
        for part in cue.MENTION.findall(text, start, end)
        if _stands_alone(fold(part), search) and (cased or words.is_known(fold(part)))
    }
    if not mentioned:
        return
    covered = sorted((start, end) for _, start, end, _ in found)
    furthest = list(accumulate((end for _, end in covered), max))
    for m in cue.MENTION.finditer(text):
        if m[0] in mentioned and not search.eponym_follows(m.end(), fold(m[0])):
            at = bisect(covered, (m.start(), len(text)))
            if at == 0 or furthest[at - 1] < m.end():
                yield "NAME", m.start(), m.end(), "mentioned_again"


def _stands_alone(word: str, search: NameSearch) -> bool:
    """Whether a word of a name found once is a name wherever it stands."""
    return len(word) >= 4 and not (search.lex.is_plain(word) or search.other(word) or word in search.lex.ambiguous)
