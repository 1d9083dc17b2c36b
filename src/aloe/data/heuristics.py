"""An offline quality score from measured features: no model, no fitting, one row at a time.

Each feature is a number in [0, 1], 1 meaning that nothing is wrong, and the score is their weighted geometric mean, so
that one bad part can't be made good by nine fine ones. Features and weights are ours. They were chosen while looking
at half of the rows of public medical and general sets; `benchmarks/quality.py` measures on the other half how well
the score tells a row from damaged copies of itself.

What it can't see: whether the medicine is right. A reversed finding, a tenfold dose or another drug's name leaves the
score where it was. It finds noise, not errors, and it rewards the form of edited prose: short factual answers, lists
and terse expert notes rank low without being worse. Answers that decline on purpose (safety data) look like failures.

Features, of an answer in the light of its question:

| feature | 1 | towards 0 |
|---|---|---|
| length | 60 words or more | a word or two (saturating) |
| relevance | takes up the question's content words | shares none of them |
| repetition | no word 4-gram twice, no copy of the question | mostly repeats itself or the question |
| boilerplate | none | greetings, "consult a doctor", site text, placeholders |
| refusal | answers | "As an AI model, I can't ..." |
| noise | prose | symbols, digits, capitals |
| words | words | strings without vowels, endless tokens, little text |
| order | function words in possible order | "the of", "is the and": shuffled words |
| sentences | capitals after full stops, stops now and then | no punctuation, no capitals |
| complete | ends as a text ends, brackets closed | breaks off |
| language | the question's language | another one, unasked |
| encoding | clean | replacement characters, mojibake, entities |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from aloe.data import heuristic_lists
from aloe.data.heuristic_lists import (
    BOILERPLATE,
    BOILERPLATE_OF,
    BREAKS,
    CJK,
    CLOSED,
    DAMAGE,
    DANGLING,
    DECLINES,
    ENGLISH,
    FUNCTION_WORDS,
    LIST_ITEM,
    LOST,
    NAMES_A_LANGUAGE,
    NOT_IN_A_ROW,
    ODD_WORD,
    PLACEHOLDER,
    REFUSAL,
    STOP,
    SUSPECT,
    VERDICT,
    WORD,
)
from aloe.data.quality import Scored, exchanges
from aloe.digests import digest_file, digest_json
from aloe.generate.engine import Tick
from aloe.records import Row

VERSION = 1
WEIGHTS: dict[str, float] = {
    "length": 0.10, "relevance": 0.16, "repetition": 0.13, "boilerplate": 0.05, "refusal": 0.06, "noise": 0.06,
    "words": 0.06, "order": 0.10, "sentences": 0.08, "complete": 0.09, "language": 0.05, "encoding": 0.06,
}  # fmt: skip
OF_AN_ANSWER = ("length", "relevance", "boilerplate", "refusal", "complete", "language")  # need a written answer
FLOOR = 0.05  # least value of a feature in the mean: a single one can't send a row to 0

_PLAIN: set[str] = set()  # words known not to be odd; saves most of the time, and what it holds changes no result
_ASCII = [chr(b) for b in range(128)]
_WIDE = bytes(range(128, 256))  # bytes of characters beyond ASCII count as letters


def _all_but(signs: str, keep_wide: bool = False) -> bytes:
    """The bytes to delete so that `signs` remain."""
    return bytes(ord(c) for c in _ASCII if c not in signs) + (b"" if keep_wide else _WIDE)


_SPACES = "".join(c for c in _ASCII if c.isspace())
_LETTERS = "".join(c for c in _ASCII if c.isalpha())
_POINTS = ".,;:'\"()-!?/"
_SYMBOLS = "".join(c for c in _ASCII if not (c.isalnum() or c in _SPACES or c in _POINTS))
_TO_INKED, _TO_LETTERS = _SPACES.encode(), _all_but(_LETTERS, keep_wide=True)
_TO_CAPITALS, _TO_DIGITS = _all_but(_LETTERS[:26]), _all_but("0123456789")
_TO_SYMBOLS = _all_but(_SYMBOLS)
_TO_SUSPECT = _all_but("&\\" + "".join(c for c in _ASCII if ord(c) < 32 and c not in _SPACES) + "\x7f")
_TO_WORDS = bytes(ord(chr(b).lower()) if b < 128 and (chr(b).isalnum() or b == 95) else 32 for b in range(256))


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    if text.isascii():  # the same as below, several times faster
        return text.encode().translate(_TO_WORDS).decode().split()
    return WORD.findall(text.lower())


def ramp(value: float, good: float, bad: float) -> float:
    """1 at `good` and beyond, 0 at `bad` and beyond, linear between."""
    return min(1.0, max(0.0, (value - bad) / (good - bad)))


# ---------------------------------------------------------------------------------------------- features


def features(question: str, answer: str) -> dict[str, float]:
    """Features by name. A bare choice ("Answer: C", "yes") has no text to judge: the question's is measured instead,
    and the features that need a written answer are left out."""
    answer = VERDICT.sub("", answer).strip() if "Answer:" in answer else answer.strip()
    closed = len(answer) <= 24 and CLOSED.fullmatch(answer) is not None
    text = question if closed else answer
    raw = text.encode("utf-8", "replace")
    words = words_of(text)
    vocabulary = set(words)
    asked = [] if closed else words_of(question)
    found = {
        "repetition": _repetition(words, asked),
        "noise": _noise(raw),
        "words": _wordlike(raw, words, vocabulary),
        "order": _order(words),
        "sentences": _sentences(text, len(words)),
        "encoding": _encoding(text, raw),
    }
    if not closed:
        lowered = text.lower()
        count = len(words) if text.isascii() else len(words) + len(CJK.findall(text)) / 2
        found["length"] = 1 - math.exp(-count / 20)
        found["relevance"] = _relevance(asked, words)
        found["boilerplate"] = _boilerplate(lowered, vocabulary)
        found["refusal"] = _refusal(lowered[:300], len(words))
        found["complete"] = _complete(text)
        found["language"] = _language(question, asked, text, words)
    return {name: found[name] for name in WEIGHTS if name in found}


def combine(found: dict[str, float]) -> float:
    """Weighted geometric mean of the features there are, each at least `FLOOR`; in (0, 1]."""
    total = math.fsum(WEIGHTS[name] for name in found)
    return math.exp(math.fsum(WEIGHTS[n] * math.log(max(v, FLOOR)) for n, v in found.items()) / total)


def _repetition(words: list[str], question: list[str]) -> float:
    """Share of word 4-grams that stood before, and, for answers that hold the question, how much they add."""
    if len(words) < 8:
        return 1.0
    grams = list(zip(words, words[1:], words[2:], words[3:]))
    different = set(grams)
    repeated = 1 - len(different) / len(grams)
    score = ramp(repeated, 0.05, 0.6)
    if len(question) >= 8:
        copied = len(different & set(zip(question, question[1:], question[2:], question[3:]))) / len(different)
        score *= ramp(copied, 0.5, 1.0)
    return score


def _noise(raw: bytes) -> float:
    inked = max(1, len(raw.translate(None, _TO_INKED)))
    letters = len(raw.translate(None, _TO_LETTERS))
    capitals = ramp(len(raw.translate(None, _TO_CAPITALS)) / letters, 0.25, 0.7) if letters >= 20 else 1.0
    symbols, digits = len(raw.translate(None, _TO_SYMBOLS)), len(raw.translate(None, _TO_DIGITS))
    return ramp(symbols / inked, 0.03, 0.25) * ramp(digits / inked, 0.3, 0.7) * capitals


def _wordlike(raw: bytes, words: list[str], vocabulary: set[str]) -> float:
    if not words:
        return 0.0
    odd = _odd_words(vocabulary)
    share = sum(w in odd for w in words) / len(words) if odd else 0.0
    written = sum(map(len, words)) if raw.isascii() else len("".join(words).encode("utf-8", "replace"))
    return ramp(share, 0.03, 0.25) * ramp(written / max(1, len(raw.translate(None, _TO_INKED))), 0.75, 0.4)


def _odd_words(vocabulary: set[str]) -> set[str]:
    """Words with no vowel in five letters or more, a letter four times running, or no end."""
    odd = {w for w in vocabulary - _PLAIN if ODD_WORD.fullmatch(w)}
    if len(_PLAIN) > 1 << 17:
        _PLAIN.clear()
    _PLAIN.update(vocabulary - odd)
    return odd


def _order(words: list[str]) -> float:
    """Function words in a row that English never has. Other languages and short texts pass."""
    if len(words) < 6:
        return 1.0
    wrong = sum(map(NOT_IN_A_ROW.__contains__, pairwise(words)))
    return ramp(wrong / len(words), 0.005, 0.035) if wrong else 1.0


def _sentences(text: str, words: int) -> float:
    """Capitals after full stops, and a break at least every 40 words or so. Scripts without case pass the first."""
    nexts = STOP.findall(text)
    small = sum(letter.islower() for letter in nexts)
    capitals = ramp(small / len(nexts), 0.1, 0.8) if nexts else 1.0
    first = next((c for c in text if c.isalpha()), "A")
    capitals *= 0.7 if first.islower() and words > 3 else 1.0
    breaks = sum(map(text.count, BREAKS)) if words > 30 else 1
    return capitals * ramp(words / max(1, breaks), 40, 100)


def _encoding(text: str, raw: bytes) -> float:
    suspect = raw.translate(None, _TO_SUSPECT) or (not raw.isascii() and SUSPECT.search(text))
    hits = len(DAMAGE.findall(text)) if suspect else 0
    hits += len(LOST.findall(text)) if "?" in text else 0
    return math.exp(-hits / 4 - 150 * hits / max(100, len(text))) if hits else 1.0


def _relevance(question: list[str], answer: list[str]) -> float:
    """Weight of the question's content words (by their first five letters; longer words say more) that the answer
    takes up, of what the question offers or 18 letters, whichever is less. A question without any passes."""
    offered: dict[str, int] = {}
    for word in question:
        if len(word) > 2 and word not in ENGLISH:
            offered[word[:5]] = max(offered.get(word[:5], 0), min(len(word), 10) - 2)
    wanted = min(sum(offered.values()), 18)
    if not wanted:
        return 1.0
    text = f" {' '.join(answer)}"
    taken = sum(weight for stem, weight in offered.items() if f" {stem}" in text)
    return 0.15 + 0.85 * min(1.0, taken / wanted)


def _boilerplate(lowered: str, vocabulary: set[str]) -> float:
    found = list(PLACEHOLDER.finditer(lowered)) if ">" in lowered or "[" in lowered else []
    for n in {BOILERPLATE_OF[word] for word in BOILERPLATE_OF.keys() & vocabulary}:
        found += [m for m in BOILERPLATE[n].finditer(lowered) if not lowered[m.start() - 1 : m.start()].isalnum()]
    return 1 - min(1.0, 3 * sum(len(m[0]) for m in found) / len(lowered)) if found else 1.0


def _refusal(head: str, words: int) -> float:
    if not any(map(head.__contains__, DECLINES)) or not REFUSAL.search(head):
        return 1.0
    return 0.0 if words < 80 else 0.5


def _complete(text: str) -> float:
    """How a text ends, and whether its brackets and fences are closed."""
    last = text[-1:]
    if text.endswith(("...", "…")):
        ending = 0.3
    elif not last:
        ending = 0.0
    elif last in ".!?:;)]}\"'”’>*|`。！？" or last.isdigit():
        ending = 1.0
    elif last in ",-–(/&+=":
        ending = 0.0
    else:
        line = text[text.rfind("\n") + 1 :]
        listed = "\n" in text and (LIST_ITEM.match(line) is not None or len(line) < 60)
        ending = 0.7 if listed else 0.4
        if line.rsplit(maxsplit=1)[-1].lower() in DANGLING:
            ending = 0.0
    if text.count("(") > text.count(")") or text.count("[") > text.count("]"):
        ending *= 0.6
    return ending * (0.4 if text.count("```") % 2 else 1.0)


def _language(question: str, asked: list[str], answer: str, words: list[str]) -> float:
    """1, or 0 where the answer is surely in another language than the question, and nobody asked for one."""
    if len(words) < 6:
        return 1.0
    if sum(map(ENGLISH.__contains__, words)) >= 0.25 * len(words) and len(ENGLISH.intersection(asked)) >= 2:
        return 1.0
    here, there = guess_language(answer, words), guess_language(question, asked)
    if here is None or there is None or here == there or NAMES_A_LANGUAGE.search(question):
        return 1.0
    return 0.0


def guess_language(text: str, words: Sequence[str]) -> str | None:
    """`en`, `es`, `fr`, `de`, `it` or `pt` by function words, `other script` for mostly non-Latin letters, or None
    where it isn't clear."""
    if not text.isascii():
        letters = [c for c in text[:2000] if c.isalpha()]
        if letters and sum(c > "\u024f" for c in letters) > 0.5 * len(letters):
            return "other script"
    counts = sorted(((sum(map(own.__contains__, words)), name) for name, own in FUNCTION_WORDS.items()), reverse=True)
    (best, name), (second, _) = counts[0], counts[1]
    return name if best >= max(3, 0.12 * len(words)) and best >= 1.5 * second else None


# ---------------------------------------------------------------------------------------------- the scorer


class HeuristicScorer:
    """Scores each row by itself: the mean over its exchanges, in (0, 1]; `parts` are the features' means."""

    name = "heuristics"
    pure = True  # no model: rows may be scored in any process

    def __init__(self) -> None:
        # Code, lists and patterns are the method: the digest is of their text.
        files = [digest_file(Path(file)) for file in (__file__, heuristic_lists.__file__)]
        self.digest = digest_json({"scorer": self.name, "version": VERSION, "weights": WEIGHTS, "source": files})

    def score(self, records: Sequence[Row], tick: Tick | None = None) -> list[Scored]:
        """One `Scored` per record, in order."""
        found = []
        for record in records:
            found.append(self._score_one(record))
            if tick:
                tick(1, 0)
        return found

    def _score_one(self, record: Row) -> Scored:
        pairs = exchanges(record)
        if not pairs:
            return Scored(None, why="no answered turn: nothing follows a user's turn")
        measured = [features(user, answer) for user, answer in pairs]
        if len(measured) == 1:
            return Scored(combine(measured[0]), measured[0])
        names = [n for n in WEIGHTS if any(n in m for m in measured)]
        parts = {n: _mean([m[n] for m in measured if n in m]) for n in names}
        return Scored(_mean([combine(m) for m in measured]), parts)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
