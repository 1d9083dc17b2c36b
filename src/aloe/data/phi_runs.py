"""Names by the lists alone: capitalised words in a row, and neighbours in text without capitals."""

from __future__ import annotations

from collections.abc import Iterator

from aloe.data import phi_cues as cue
from aloe.data.phi_take import NameReader, Words
from aloe.data.phi_words import fold

Span = tuple[str, int, int, str]  # kind, start, end, rule


class ListedNames(NameReader):
    """Finds names that no word around them announces."""

    def by_lists(self) -> Iterator[Span]:
        """Candidates, in text order."""
        yield from (self._capitalised() if self.cased else self._lower_case())

    def _capitalised(self) -> Iterator[Span]:
        """A listed given name with what follows it; a listed surname after an unknown word; any words before something
        that only people do."""
        text, lex = self.text, self.lex
        end_of_last = previous_end = -9
        run = 0  # capitalised words in a row; in a heading a capital tells nothing of an unknown word
        for m in cue.RUN.finditer(text):
            run = run + 1 if m.start() - previous_end <= 1 else 0
            previous_end = m.end()
            word = fold(m[0])
            if m.start() < end_of_last or word in cue.SAINTS:
                continue
            given = lex.is_given(word) and (m[0][1:].islower() or m[0].isupper() or "-" in m[0])
            if not given:
                if m[0].endswith(".") or word in lex.stop or (lex.is_plain(word) and word not in lex.ambiguous):
                    continue
                if run > 5 or text[m.end() : m.end() + 1] != " " or not self._name_goes_on(m.end() + 1):
                    continue
            taken = self.take(m.start(), first_common=word in lex.ambiguous)
            rule = self._person(taken, word, given) if taken and not self._in_a_place(taken) else None
            if taken and rule:
                yield "NAME", taken.start, taken.end, rule
                end_of_last = taken.end

    def _name_goes_on(self, pos: int) -> bool:
        return self.capital(pos) or self.text[pos : pos + 4].split(" ")[0] in cue.PARTICLES

    def _in_a_place(self, taken: Words) -> bool:
        """ "San" or "Fort" stands before the words, or "Hospital" after them."""
        before = self.text[max(0, taken.start - 14) : taken.start].rstrip(" ").rsplit(" ", 1)[-1].rstrip(".").lower()
        if before in cue.SAINTS and self.text[taken.start - 1 : taken.start] == " ":
            return True
        after = cue.NEXT_WORD.match(self.text, taken.end)
        return bool(after and after[1][0].isupper() and fold(after[1]) in self.lex.organisations)

    def _person(self, taken: Words, word: str, given: bool) -> str | None:
        """The rule by which capitalised words are a person, or None. `word` is the first as it stands in the text."""
        text, lex, last = self.text, self.lex, taken.last
        shouted = text[taken.start : taken.end].isupper()
        if len(taken.words) == 1:
            lone = (
                given and not shouted and len(word) > 2 and text[taken.start - 1 : taken.start] not in ("-", "'", "’")
            )
            return "given_name" if lone else None
        if given and (last in lex.surnames or not lex.is_plain(last)):
            return "given_and_surname"
        credential = cue.CREDENTIAL.match(text, taken.end) and last not in lex.places
        if (credential or cue.PERSON_AFTER.match(text, taken.end)) and not any(
            lex.is_plain(w) and not lex.is_known(w) for w in taken.words
        ):
            return "person_context"
        if shouted:
            return None
        if word in lex.ambiguous and last in lex.surnames and not self.other(last) and not lex.is_plain(last):
            return "ambiguous_and_surname"
        if self._starts_sentence(taken.start):
            return None
        strange = not any(lex.is_plain(w) or self.other(w) for w in taken.words[1:])
        if word in lex.ambiguous and word not in lex.common and word not in lex.places and strange:
            return "ambiguous_and_unknown"
        parts = [p for w in taken.words for p in w.split("-")]
        clean = not any(lex.is_plain(w) for w in taken.words) and not any(self.other(p) for p in parts)
        return "unknown_and_surname" if clean and last in lex.surnames and len(last) > 2 else None

    def _starts_sentence(self, start: int) -> bool:
        head = self.text[max(0, start - 3) : start].rstrip(" ")
        return not head or head[-1] in ".!?\n:;•-"

    def _lower_case(self) -> Iterator[Span]:
        """A listed given name alone or with a surname; two unknown words before something that only people do."""
        text, lex = self.text, self.lex
        before: tuple[str, int, int] | None = None
        for m in cue.LOWER_WORD.finditer(text):
            word, start, end = fold(m[0]), m.start(), m.end()
            if len(word) < 3 or word in lex.common or (start and text[start - 1] in "-'’/"):
                before = None
                continue
            if before and text[before[2] : start] == " " and not self.eponym_follows(end, word):
                unknown = len(word) > 4 and not lex.is_plain(word) and word not in lex.eponyms
                if before[0] in lex.given and (word in lex.surnames or unknown):
                    yield "NAME", before[1], end, "given_and_surname"
                elif cue.LOWER_PERSON.match(text, end) and not any(
                    lex.is_plain(w) or w in lex.eponyms for w in (before[0], word)
                ):
                    yield "NAME", before[1], end, "person_context"
            if word in lex.given and len(word) > 3 and not (before and before[0] in cue.SAINTS):
                yield "NAME", start, end, "given_name_lower"
            before = (word, start, end)
