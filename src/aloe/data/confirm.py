"""Does a training row hold a benchmark item? One pair at a time, from their words: similarity and the bar to reach.

Two multiple-choice questions are compared by what they ask (stem), what they offer (options) and what they answer
(gold). Stems are bags of folded content words weighted by inverse document frequency; a word without its equal is
matched softly by its letters (benchmarks are full of typing and scanning errors: "diveiculum"). Sibling questions
("superior" / "inferior", "most" / "least common") share almost all words, so a different answer raises the bar.
In free text the item's words must stand together, and in short items beside the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from aloe.data.overlap import FRAME, Index, Item, content, fold

OTHER_ANSWER = 0.97  # bar for two questions whose gold answers differ: the same item wrongly keyed, and no sibling
CONTAINED = 0.8  # share of a stem (word trigrams, or content words beside the answer) that free text must hold
TYPO = 0.5  # letters two words must share (trigram Jaccard) to count as one word misspelt
SAME = 0.6  # the same for two answers
STEM = 0.45  # two stems less alike than this ask two things, whatever their options
CASE = 0.6  # the same for two long stems: case histories share much that says nothing
STEM_SHARE = 0.6  # weight of the stems in the similarity of two questions, the rest is the options'
PLAIN = 0.9  # stems as alike as this, with one answer, are one item whatever else is offered
TELLING = 5  # naming words that a stem (or its options) needs to be looked for in free text
LONG = 8  # naming words with which a stem tells the item by itself, and can be found in other words
UNTOLD = CONTAINED - 0.01  # at most this where the words are there and what tells the item is not
REACH = 6  # words apart that two neighbours of a stem may end up when it is reworded
ORDER = 0.5  # share of a stem's neighbouring content words that stay near each other when it is reworded
SLACK = 10  # words by which the window of a reworded stem exceeds twice its length
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_GENERIC = frozenset(("yes", "no", "maybe", "true", "false", "none", "all", "above", "both", "neither"))


@lru_cache(maxsize=1 << 16)
def letters(text: str, n: int = 3) -> frozenset[str]:
    """Character n-grams of a text, its ends marked."""
    padded = f" {text} "
    return frozenset(padded[k : k + n] for k in range(max(1, len(padded) - n + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a & b| / |a | b|; two empty sets are equal."""
    common = len(a & b)
    union = len(a) + len(b) - common
    return common / union if union else 1.0


@dataclass(frozen=True)
class _Answer:
    """An option or answer: its letters and its numbers. Answers with other numbers are other answers."""

    text: str
    letters: frozenset[str]
    numbers: tuple[str, ...]


def _answer(text: str) -> _Answer:
    folded = " ".join(fold(w) for w in text.split())
    return _Answer(folded, letters(folded), tuple(sorted(_DIGITS.findall(folded))))


def _same(a: _Answer, b: _Answer) -> float:
    if a.text == b.text:
        return 1.0
    return jaccard(a.letters, b.letters) if a.numbers == b.numbers else 0.0


class _Side:
    """A row or item, prepared for comparison with questions and, as an item, for the search in texts."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.content = content(item.stem)
        self.stem = tuple(dict.fromkeys(self.content))
        self.options = tuple(_answer(o) for o in item.options)
        self.gold = _answer(item.gold)
        self.telling_options = sum(len(o.text) > 2 and o.text not in _GENERIC for o in self.options) >= 2

    @cached_property
    def names(self) -> frozenset[str]:
        """The stem's words that name things: no numbers, letters and abbreviations of two."""
        return frozenset(w for w in self.stem if len(w) > 2 and w.isalpha())

    @cached_property
    def numbers(self) -> frozenset[str]:
        return frozenset(w for w in self.stem if w[0].isdigit())

    @cached_property
    def answer(self) -> frozenset[str]:
        return frozenset(content(self.item.gold)) - _GENERIC

    @cached_property
    def offered(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(w for o in self.item.options for w in content(o)))

    @cached_property
    def length(self) -> int:
        return len(self.item.stem.split())

    @cached_property
    def trigrams(self) -> dict[str, list[str]]:
        """The stem's word trigrams (the whole stem, where it is shorter) and the content words of each."""
        tokens = self.item.stem.split()
        runs = [tokens[k : k + 3] for k in range(max(1, len(tokens) - 2))]
        return {" ".join(run): [fold(w) for w in run if w not in FRAME] for run in runs}


class _Text:
    """All that a row says, prepared for the search of items in it. `opening` is how the row begins: its stem."""

    def __init__(self, text: str, opening: str) -> None:
        self.opening, self._text = opening, f" {text} "

    @cached_property
    def opening_text(self) -> _Text:
        """The row's question alone."""
        return _Text(self.opening, self.opening)

    def says(self, words: str) -> bool:
        """Do these words stand in the text, one after the other?"""
        return f" {words} " in self._text

    def follow(self, stem: str, options: tuple[str, ...], reach: int) -> bool:
        """Do all options stand within `reach` words behind the stem, where it first stands?"""
        _, found, rest = self._text.partition(f" {stem} ")
        near = f" {' '.join(rest.split(None, reach)[:reach])} "
        return bool(found) and all(f" {o} " in near for o in options)

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Where each folded content word stands."""
        places: dict[str, list[int]] = {}
        for place, word in enumerate(self._text.split()):
            if word not in FRAME:
                places.setdefault(fold(word), []).append(place)
        return places

    def near(self, a: str, b: str) -> bool:
        """Do two words stand within `REACH` words of each other somewhere?"""
        return any(abs(x - y) <= REACH for x in self.places.get(a, ()) for y in self.places.get(b, ()))


class Comparison:
    """Compares pairs of rows and items of one `Index`; items stay prepared, of the rows only the last."""

    def __init__(self, index: Index) -> None:
        self._weights, self._unknown = index.weights, index.unknown
        self._items: dict[int, _Side] = {}
        self._all = index.items
        self._row: Item | None = None
        self._side: _Side | None = None
        self._text: _Text | None = None

    def __call__(self, row: Item, j: int, bar: float) -> tuple[float, float]:
        """(similarity in [0, 1], bar it must reach) of a row and item `j`; `bar` is that of two questions."""
        if row is not self._row:
            self._row, self._side, self._text = row, None, None
        if j not in self._items:
            self._items[j] = _Side(self._all[j])
        other = self._items[j]
        best = (0.0, 1.0)
        if row.options and other.options:
            self._side = self._side or _Side(row)
            best = self._questions(self._side, other, bar)
            if best[0] >= best[1] or len(row.text) <= len(row.question) + 1:
                return best
        if self._text is None:  # of a question, what it says beside itself: its context and explanation
            self._text = _Text(row.text[len(row.question) :] if row.options else row.text, row.stem)
        if not row.options:
            self._side = self._side or _Side(row)
        held = self._held(self._text, other, None if row.options else self._side), max(bar, CONTAINED)
        return max(best, held, key=lambda found: (found[0] >= found[1], found[0] - found[1]))

    # ------------------------------------------------------------------------------------------ two questions

    def _questions(self, row: _Side, other: _Side, bar: float) -> tuple[float, float]:
        if row.item.stem == other.item.stem and row.options == other.options:
            return 1.0, bar
        options = _options(row.options, other.options)
        if not _agree(row, other, options):
            exact = jaccard(frozenset(row.item.stem.split()), frozenset(other.item.stem.split()))
            return min(exact, options), max(bar, OTHER_ANSWER)
        stem = self._stems(row.stem, other.stem)
        if not (row.telling_options and other.telling_options):
            return stem, max(bar, PLAIN)
        mixed = STEM_SHARE * stem + (1 - STEM_SHARE) * options
        if stem < (STEM if min(len(row.names), len(other.names)) < 2 * LONG else CASE):
            return min(mixed, stem), bar
        return (max(mixed, stem), bar) if stem >= PLAIN and len(other.stem) > 1 else (mixed, bar)

    def _stems(self, a: tuple[str, ...], b: tuple[str, ...]) -> float:
        """Share of both stems' weight that is matched, exactly or softly (a weighted Dice coefficient)."""
        left, right = set(a), set(b)
        total = matched = 0.0
        for words, others in ((a, right - left), (b, left - right)):
            rest = [letters(o) for o in others if len(o) >= 4]
            for word in words:
                weight = self._weight(word)
                total += weight
                matched += weight * (1.0 if word in left and word in right else _soft(word, rest))
        return matched / total if total else 1.0

    def _weight(self, word: str) -> float:
        return self._weights.get(word, self._unknown)

    # ------------------------------------------------------------------------------------------ free text

    def _held(self, text: _Text, other: _Side, row: _Side | None) -> float:
        """Share of the item that a text holds in one place; 0 where what it holds does not tell the item.

        Word for word: word trigrams of the stem, by the weight of their content. A stem of few words tells no item,
        and is looked for together with its options or its answer.
        """
        literal = self._literal(text, other) if other.stem else 0.0
        if len(other.names) < TELLING:
            return literal if literal >= CONTAINED and self._told(text, other) else 0.0
        if literal >= CONTAINED and (len(other.names) >= LONG or not other.answer or self._answered(text, other)):
            return literal
        retold = self._retold(text, other, row) if len(other.names) >= LONG else 0.0
        return max(retold, min(literal, UNTOLD))

    def _retold(self, text: _Text, other: _Side, row: _Side | None) -> float:
        """Share of a long stem's content that stands in a window of twice its length, its order roughly kept: in the
        row's question with the answer in the text, or anywhere with all options. 0 where one of these fails: an
        encyclopaedia's article holds the words of many questions on its subject, and their answers."""
        asked = text.opening_text
        if other.options and all(text.says(o) for o in other.item.options):
            asked = text
        elif not (self._answered(text, other) if other.answer else row and row.numbers == other.numbers):
            return 0.0
        share = self._window(asked, other.stem, 2 * other.length)
        pairs = list(zip(other.content, other.content[1:]))
        if share < CONTAINED or sum(asked.near(x, y) for x, y in pairs) < ORDER * len(pairs):
            return 0.0
        if not other.answer and row and self._stems(row.stem, other.stem) < CONTAINED:
            return 0.0  # a problem without options: its siblings tell another story with the same numbers
        return share

    def _told(self, text: _Text, other: _Side) -> bool:
        """Does the text that holds a short stem tell which item it is? As that very question with its answer, or by
        all its options: right behind the whole stem, or near it where there are words enough to go by."""
        if text.opening == other.item.stem and len(other.stem) > 1 and other.answer:
            return self._answered(text, other)
        if not other.item.options or not all(text.says(o) for o in other.item.options):
            return False
        length = len(other.item.question.split())
        if other.length >= TELLING and text.follow(other.item.stem, other.item.options, 2 * length):
            return True
        words = tuple(dict.fromkeys((*other.stem, *other.offered)))
        names = sum(len(w) > 2 and w.isalpha() for w in words)
        return names >= TELLING and self._window(text, words, 2 * length) >= CONTAINED

    def _answered(self, text: _Text, other: _Side) -> bool:
        return bool(other.answer) and other.answer <= text.places.keys()

    def _literal(self, text: _Text, other: _Side) -> float:
        total = held = 0.0
        for trigram, words in other.trigrams.items():
            weight = sum(self._weight(w) for w in words)
            total += weight
            held += weight * (weight > 0 and text.says(trigram))
        return held / total if total else 0.0

    def _window(self, text: _Text, words: tuple[str, ...], length: int) -> float:
        """Largest share (by weight) of `words` that stand within `length` + `SLACK` words of the text."""
        total = sum(self._weight(w) for w in words)
        places = sorted((p, w) for w in words for p in text.places.get(w, ()))
        counts: dict[str, int] = {}
        held = best = 0.0
        first = 0
        for place, word in places:
            counts[word] = counts.get(word, 0) + 1
            held += self._weight(word) * (counts[word] == 1)
            while places[first][0] < place - length - SLACK:
                gone = places[first][1]
                counts[gone] -= 1
                held -= self._weight(gone) * (counts[gone] == 0)
                first += 1
            best = max(best, held)
        return best / total if total else 0.0


def _soft(word: str, others: list[frozenset[str]]) -> float:
    """Likeness of a word to the most similar of others (their letters), 0 below `TYPO`."""
    if len(word) < 4 or not word.isalpha():
        return 0.0
    mine = letters(word)
    size = len(mine)
    near = [jaccard(mine, theirs) for theirs in others if TYPO * size <= len(theirs) <= size / TYPO]
    best = max(near, default=0.0)
    return best if best >= TYPO else 0.0


def _options(a: tuple[_Answer, ...], b: tuple[_Answer, ...]) -> float:
    """Mean similarity of each option to its best match on the other side, the worse of both directions."""
    table = [[_same(x, y) for y in b] for x in a]
    ours = sum(max(line) for line in table) / len(a)
    theirs = sum(max(line[k] for line in table) for k in range(len(b))) / len(b)
    return min(ours, theirs)


def _agree(row: _Side, other: _Side, options: float) -> bool:
    """Is the row's gold answer the item's? By its own likeness, or because no other option is more like it."""
    same = _same(row.gold, other.gold)
    rivals = [_same(row.gold, o) for o in other.options if o.text != other.gold.text]
    rivals += [_same(o, other.gold) for o in row.options if o.text != row.gold.text]
    if same >= max(rivals, default=0.0):
        return same >= SAME or (options >= SAME and same > 0.2)
    return False
