"""Tier (c) of decontamination: benchmark items in other words ("rephrased samples").

Yang et al. 2023, "Rethinking Benchmark and Contamination for Language Models with Rephrased Samples"
(arXiv 2311.04850): a paraphrase passes every n-gram filter, so look for the nearest items by embedding, and let a
strong model say whether the two are one question. Two steps here: `candidates` finds the pairs (exact top-k by cosine
above a floor), `judge` asks an engine about each. Without a judge a pair stays *suspected*: cosine alone does not tell
a paraphrase from a sibling question, so suspects are listed and not dropped. A reply that can't be read and a request
that failed leave a pair suspected too, counted apart; neither makes a row clean or dirty.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from aloe.data.decontaminate import CHUNK, Hit, Item, Report, chunks
from aloe.generate.engine import Engine, Request, Sampling
from aloe.records import Message

Floats = npt.NDArray[np.float32]
Label = Literal["rephrased", "different", "unparsed", "errored"]
TOP_K, FLOOR = 3, 0.8  # items looked at for each row; cosine of MiniLM vectors below which a pair is no suspect; ours
BLOCK = 1024  # rows, and items, multiplied at a time
SLACK = 1e-5  # over the rounding of a float32 dot product of unit rows, by far
BATCH = 512  # pairs judged at a time
WORDS = 400  # of a text that the judge is shown

# The question of Yang et al. in our words: is one a rephrasing of the other, True or False?
PROMPT = """Here are two exam questions. Decide whether one of them is the other in different words.

They are when both ask for the same fact about the same subject or case, so that whoever has learned the first one with
its answer can answer the second one from memory. Wording, length, the order of sentences or options, wrong options and
details without bearing on the answer may differ. They are not when they only share a topic, a form or their options,
or when one asks for the opposite, a neighbouring or a more general fact.

Question 1:
{first}

Question 2:
{second}

Reply with one word: True if one is the other in different words, False if not."""
_VERDICT = re.compile(r"^[\s*_\"'`(\[]*(true|false|yes|no)\b", re.IGNORECASE)
_BOTH = (re.compile(r"\b(?:true|yes)\b", re.IGNORECASE), re.compile(r"\b(?:false|no)\b", re.IGNORECASE))
_SURE: dict[str, Label] = {"true": "rephrased", "yes": "rephrased", "false": "different", "no": "different"}


class Encoder(Protocol):
    """Anything that embeds texts as float32 rows of length 1."""

    def encode(self, texts: Sequence[str]) -> Floats: ...


@dataclass(frozen=True)
class Pair:
    """Row and item by index, and the cosine of their vectors."""

    row: int
    item: int
    cosine: float


@dataclass(frozen=True)
class Verdict:
    """What the judge said of a pair; `reply` is its text, `error` why there is none."""

    label: Label
    reply: str
    error: str = ""


@dataclass
class Rephrased:
    """`hits` are confirmed by the judge; `suspected` are not refuted: no judge, an unreadable reply or an error.
    `verdicts` holds a label for each judged pair (row, benchmark, item); `table` counts pairs by source, benchmark and
    label ("suspected" where there is no judge)."""

    hits: list[Hit] = field(default_factory=list)
    suspected: list[Hit] = field(default_factory=list)
    verdicts: dict[tuple[int, str, int], Verdict] = field(default_factory=dict)
    table: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- candidates


def candidates(rows: Floats, items: Floats, k: int = TOP_K, floor: float = FLOOR, *, block: int = BLOCK) -> list[Pair]:
    """The `k` items nearest to each row with a cosine of at least `floor`, by row, nearest first.

    Exact: the matrix product only proposes; cosines are exactly rounded dot products, ties go to the lower item, and
    nothing depends on `block`. Memory beyond the inputs is about 4 x block^2 bytes and the pairs above the floor.

    Args:
        rows: (n, d) float32, each of length 1.
        items: (m, d) float32, each of length 1.

    Raises:
        ValueError: shapes that don't fit, or k or block below 1.
    """
    if rows.ndim != 2 or items.ndim != 2 or rows.shape[1] != items.shape[1]:
        raise ValueError(f"vectors of shape {rows.shape} and {items.shape} can't be compared")
    if k < 1 or block < 1:
        raise ValueError("k and block must be 1 or more")
    found: list[Pair] = []
    for start in range(0, len(rows), block):
        found += _nearest(rows[start : start + block], items, start, k, floor, block)
    return found


def _nearest(rows: Floats, items: Floats, start: int, k: int, floor: float, block: int) -> Iterable[Pair]:
    """Top k of a block of rows. The k best so far raise each row's floor from one block of items to the next."""
    bars = np.full(len(rows), floor - SLACK, dtype=np.float64)
    near: list[list[tuple[float, int]]] = [[] for _ in range(len(rows))]
    for first in range(0, len(items), block):
        cosines = rows @ items[first : first + block].T
        for i, j in zip(*(axis.tolist() for axis in np.nonzero(cosines >= bars[:, None]))):
            near[i].append((float(cosines[i, j]), first + j))
        for i in np.flatnonzero([len(found) > 4 * k for found in near]).tolist():
            near[i].sort(reverse=True)
            bars[i] = max(bars[i], near[i][k - 1][0] - 2 * SLACK)
            near[i] = [found for found in near[i] if found[0] >= bars[i]]
    for i, proposed in enumerate(near):
        exact = sorted((-_cosine(rows[i], items[j]), j) for _, j in proposed)
        yield from (Pair(start + i, j, -c) for c, j in exact[:k] if -c >= floor)


def _cosine(a: Floats, b: Floats) -> float:
    """Dot product of two float32 rows, rounded once: products of float32 are exact in float64, and so is `fsum`."""
    return math.fsum((a.astype(np.float64) * b.astype(np.float64)).tolist())


# ---------------------------------------------------------------------------------------------- judge


def parse(reply: str) -> Label:
    """The verdict that a reply begins with. A reply that begins otherwise, or holds both answers, is `unparsed`."""
    found = _VERDICT.match(reply)
    if found is None or all(pattern.search(reply) for pattern in _BOTH):
        return "unparsed"
    return _SURE[found[1].casefold()]


def judge(
    engine: Engine, pairs: Sequence[tuple[str, str, str]], *, seed: int = 0, max_new_tokens: int = 8
) -> list[Verdict]:
    """Ask about pairs (key, first text, second text), greedily; one verdict each, in order."""
    requests = [
        Request(
            key=key,
            messages=(_message(PROMPT.format(first=_cut(first), second=_cut(second))),),
            sampling=Sampling(max_new_tokens=max_new_tokens),
            seed=seed,
        )
        for key, first, second in pairs
    ]
    replies = engine.generate(requests)
    if [r.key for r in replies] != [r.key for r in requests]:
        raise ValueError("the engine's replies are not in the order of the requests")
    return [
        Verdict("errored", "", reply.error) if reply.error is not None else Verdict(parse(reply.text), reply.text)
        for reply in replies
    ]


def _message(text: str) -> Message:
    return {"role": "user", "content": text}


def _cut(text: str) -> str:
    words = text.split()
    return " ".join(words[:WORDS])


def shown(item: Item) -> str:
    """What the judge sees of a row or item: the question, its options, its answer (free text as it stands)."""
    if not item.options:
        return item.text
    return f"{item.stem}\nOptions: {'; '.join(item.options)}\nAnswer: {item.gold}"


def embedded(item: Item) -> str:
    """What is embedded of a row or item: the question and its answer, so that copies with other distractors meet."""
    return f"{item.stem} {item.gold}".strip()


# ---------------------------------------------------------------------------------------------- both


def rephrased_hits(
    rows: Sequence[Item],
    benchmarks: Mapping[str, Sequence[Item]],
    encoder: Encoder,
    engine: Engine | None = None,
    *,
    k: int = TOP_K,
    floor: float = FLOOR,
    known: Collection[Hit] = (),
    seed: int = 0,
    chunk: int = CHUNK,
) -> Rephrased:
    """Find, and with an engine judge, rephrased items in training rows.

    Args:
        rows: read once, in order, `chunk` at a time; may be lazy. Vectors of a chunk are all that is kept of it.
        benchmarks: by name; their vectors are held in memory.
        encoder: gives float32 rows of length 1.
        engine: the judge; None leaves every candidate suspected.
        known: hits of the lexical tiers; their pairs are not asked about again.
    """
    flat = [(name, j) for name, items in benchmarks.items() for j in range(len(items))]
    every = [other for items in benchmarks.values() for other in items]
    done = {(hit.row, hit.benchmark, hit.item) for hit in known}
    result = Rephrased()
    counts: Counter[tuple[str, str, str]] = Counter()
    waiting: list[tuple[Hit, Item, Item]] = []
    if not every:
        return result
    vectors = encoder.encode([embedded(other) for other in every])
    for start, part in chunks(rows, chunk):
        for pair in candidates(encoder.encode([embedded(row) for row in part]), vectors, k, floor):
            name, j = flat[pair.item]
            if (start + pair.row, name, j) not in done:
                hit = Hit(start + pair.row, name, j, "rephrased", pair.cosine)
                waiting.append((hit, part[pair.row], every[pair.item]))
        while len(waiting) >= BATCH:
            _settle(waiting[:BATCH], engine, seed, result, counts)
            waiting = waiting[BATCH:]
    _settle(waiting, engine, seed, result, counts)
    for (source, name, label), count in sorted(counts.items()):
        result.table.setdefault(source, {}).setdefault(name, {})[label] = count
    return result


def _settle(
    batch: Sequence[tuple[Hit, Item, Item]],
    engine: Engine | None,
    seed: int,
    result: Rephrased,
    counts: Counter[tuple[str, str, str]],
) -> None:
    if engine is None:
        result.suspected += [hit for hit, _, _ in batch]
        counts.update((row.source, hit.benchmark, "suspected") for hit, row, _ in batch)
        return
    asked = [(f"{row.id}|{hit.benchmark}|{other.id}", shown(row), shown(other)) for hit, row, other in batch]
    for (hit, row, _), verdict in zip(batch, judge(engine, asked, seed=seed) if asked else [], strict=True):
        result.verdicts[hit.row, hit.benchmark, hit.item] = verdict
        counts[row.source, hit.benchmark, verdict.label] += 1
        if verdict.label == "rephrased":
            result.hits.append(hit)
        elif verdict.label != "different":
            result.suspected.append(hit)


def merged(report: Report, found: Rephrased, sources: Mapping[int, str]) -> Report:
    """A lexical report with the confirmed rephrased hits: `contaminated` counts rows of both, and the labels of tier
    (c) stand beside it. `sources` names the source of each row in `found.hits`."""
    table = {s: {name: dict(cells) for name, cells in by.items()} for s, by in report.table.items()}
    seen = {(hit.row, hit.benchmark) for hit in report.hits}
    for row, name in sorted({(hit.row, hit.benchmark) for hit in found.hits} - seen):
        table[sources[row]][name]["contaminated"] += 1
    for source, by in found.table.items():
        for name, labels in by.items():
            table[source][name].update(labels)
    order = {name: place for by in report.table.values() for place, name in enumerate(by)}
    hits = sorted([*report.hits, *found.hits], key=lambda hit: (order[hit.benchmark], hit.row, hit.item))
    return Report(hits, table)
