"""From a place in a text where a name may begin, take the words that belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from aloe.data import phi_cues as cue
from aloe.data.phi_words import Lexicon, fold

_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Words:
    """A candidate: its span and its folded words, initials and particles left out."""

    start: int
    end: int
    words: tuple[str, ...]

    @property
    def first(self) -> str:
        return self.words[0]

    @property
    def last(self) -> str:
        return self.words[-1]


class NameReader:
    """Reads names in one text. `cased` says whether capitals tell something in it."""

    def __init__(self, text: str, words: Lexicon, cased: bool) -> None:
        self.text, self.lex, self.cased = text, words, cased

    def capital(self, at: int) -> bool:
        """Whether the character at this place is a capital letter."""
        return self.text[at : at + 1].isupper()

    def take(self, start: int, limit: int = 4, firm: bool = True, first_common: bool = False) -> Words | None:
        """The words of a name from `start` on, or None, also where they are the eponym of a disease.

        Args:
            firm: the cue is so strong that an unknown word is a name; otherwise a name list must hold each word.
            first_common: a capitalised everyday word may be the name ("Dr. Brown", "Dear Rose").
        """
        text, lex = self.text, self.lex
        words: list[str] = []
        pos = end = start
        while len(words) < limit:
            initial = cue.INITIAL.match(text, pos) if self.cased else None
            if initial and (words or self._more_after(initial.end())) and fold(initial[0]) not in ("i", "a"):
                words.append(initial[0])
                pos = end = initial.end()
                pos += text[pos : pos + 1] == " "  # two spaces end a sentence: "Dr. B.  Aspirin was given"
                continue
            m = cue.TOKEN.match(text, pos)
            if not m:
                break
            word, after = fold(m[0]), m.end() + 1
            if self._is_particle(word, m[0], after, bool(words)) and (words or firm) and word not in lex.stop:
                pos = after
                if words or self.capital(pos):
                    words.append(word)
                    continue
            if words and m[0].isupper() and len(m[0]) <= 3 and not lex.is_known(word) and not text[start:end].isupper():
                break  # "Gill DS", "Marburg HF": an abbreviation
            first = all(w in cue.PARTICLES for w in words)
            if not self._fits(word, m[0], first, firm, first_common):
                break
            words.append(word)
            end = m.end()
            gap = cue.GAP.match(text, end)
            if not gap:
                break
            pos = gap.end()
        kept = tuple(w for w in words if len(w.rstrip(".")) > 1 and w not in cue.PARTICLES)
        return Words(start, end, kept) if kept and not self.eponym_follows(end, kept[-1]) else None

    def _is_particle(self, word: str, raw: str, after: int, inside: bool) -> bool:
        """Whether a word is a "van" or "de" with a name after it."""
        if word not in cue.PARTICLES or not cue.TOKEN.match(self.text, after):
            return False
        return raw[0].isupper() or (not inside and not self.lex.is_known(word)) or self.capital(after)

    def _more_after(self, pos: int) -> bool:
        """Whether a capitalised word that can be a name follows an initial."""
        gap = cue.GAP.match(self.text, pos)
        m = cue.TOKEN.match(self.text, gap.end() if gap else pos)
        return bool(m and m[0][0].isupper() and not self.lex.is_plain(fold(m[0])))

    def _fits(self, word: str, raw: str, first: bool, firm: bool, first_common: bool) -> bool:
        """Whether a word can stand in the name at this place."""
        lex, capital = self.lex, raw[0].isupper()
        known = lex.is_known(word)
        if word in lex.allowed or len(word) < 2 or not (firm or known):
            return False
        if self.cased and not capital:
            return first and firm and lex.is_given(word) and len(word) > 2
        if word in lex.stop:
            return first and first_common and self.cased and word in lex.ambiguous and not raw.isupper()
        if word in lex.common or word in lex.organisations:
            return known and (first_common if first else self.cased)
        if lex.is_medical(word):
            if word in lex.medical:
                return first and first_common and self.cased and word in lex.ambiguous and not raw.isupper()
            return known or (firm and self.cased and not raw.isupper())
        if not self.cased:
            return known or ((first or len(word) > 3) and cue.VOWEL.search(word) is not None)
        return known or not any(len(p) > 3 and (p in lex.common or p in lex.medical) for p in word.split("-")[1:])

    def eponym_follows(self, end: int, last: str) -> bool:
        """Whether what ends at `end` in the folded word `last` is the eponym of a disease, sign or device."""
        m = cue.NEXT_WORDS.match(self.text, end, end + 60)
        following = [fold(w) for w in _LETTERS.findall(m[0])][:4] if m else []
        following = following[1:] if following[:1] == ["s"] else following
        nouns = self.lex.eponym_nouns
        near = bool(following) and following[0] in nouns
        return near or (len(following) > 1 and following[1] in nouns and last in self.lex.eponyms)

    # ------------------------------------------------------------------------------------------ judging words

    def other(self, word: str) -> bool:
        """Whether a folded word is an eponym or a place."""
        return word in self.lex.eponyms or word in self.lex.places

    def any_plain(self, words: Iterable[str]) -> bool:
        """Whether a list says of one of the words that it is no name, and no name list holds it."""
        return any(self.lex.is_listed_plain(w) and not self.lex.is_known(w) for w in words)

    def likely_pair(self, taken: Words) -> bool:
        """Two or three words, one of them in a name list, none listed as anything else but one eponym or place."""
        lex, words = self.lex, taken.words
        return (
            2 <= len(words) <= 3
            and any(lex.is_known(w) and w not in lex.eponyms for w in words)
            and sum(self.other(w) for w in words) < 2
            and not any(lex.is_listed_plain(w) for w in words)
            and taken.first not in lex.eponyms
        )
