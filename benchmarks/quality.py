"""Does the offline quality score see damage, and how fast are it and the diversity filter?

    python benchmarks/quality.py [--quick] [--data DIR] [--out FILE]

Reads MedQuAD, the doctor forum and the general instructions below DIR. Each clean row is compared with a damaged copy
of another clean row of its set (keyed damage, `DAMAGE` below); the figure is the area under the ROC curve (0.5: blind,
1: perfect), with its Hanley-McNeil interval, beside that of answer length alone. The features were chosen while
looking at the `development` half of the rows, by a hash of their ids; the `held_out` half was only measured.
`another_number` and `reversed_finding` make the medicine wrong and leave the form: there the score should be blind,
and the figures say so. The diversity filter runs on synthetic unit vectors (384 dimensions, isotropic, half of them
near-copies of the others), which is its worst case, on the MiniLM embeddings of real questions, and on vectors drawn
with the mean and covariance of those, with and without its screen; `OMP_NUM_THREADS` says on how many threads. The last
line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

import aloe
from aloe.data.diversity import Diversity, diverse
from aloe.data.heuristics import WEIGHTS, HeuristicScorer
from aloe.data.quality import bottom, quantiles
from aloe.data.templates import exchange
from aloe.generate.embed import Embedder
from aloe.keyed import rng
from aloe.records import Dialogue, row_id
from aloe.run.execute import machine

SETS = ("medquad", "doctor_forum", "general_instructions")
CURATED = ("medquad", "general_instructions")
SEED = 7
Pair = tuple[str, str]


def read(path: Path) -> list[Dialogue]:
    """Question-answer rows, equal ones once. Ids are of the content: MedQuAD's own ids repeat."""
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    found = {}
    for r in rows:
        if r["question"].strip() and r["answer"].strip():
            found.setdefault(
                row_id([r["question"], r["answer"]]),
                Dialogue(
                    id=row_id([r["question"], r["answer"]]), source=path.name.split(".")[0], licence=r["licence"],
                    messages=exchange(r["question"], r["answer"]), meta={"original_id": r["id"]},
                ),
            )  # fmt: skip
    return list(found.values())


def half(row: Dialogue) -> str:
    digest = hashlib.blake2b(row.meta["original_id"].encode()).digest()
    return "development" if digest[0] % 2 == 0 else "held_out"


# ------------------------------------------------------------------------------------------------ damage


def truncated(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    """Cut off after 20-80% of the words."""
    spans = [m.end() for m in re.finditer(r"\S+", answer)]
    return question, answer[: spans[int(len(spans) * draw.uniform(0.2, 0.8))]]


def shuffled_words(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    words = answer.split()
    return question, " ".join(words[i] for i in draw.permutation(len(words)))


def another_rows_answer(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    return question, other[1]


def repeated_sentences(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    """One to three of the sentences stand two to four times more."""
    parts = re.split(r"(?<=[.!?])\s+", answer)
    for _ in range(int(draw.integers(1, 4))):
        at = int(draw.integers(len(parts)))
        parts[at:at] = [parts[at]] * int(draw.integers(2, 5))
    return question, " ".join(parts)


def garbled_characters(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    """One character in 50 read in a wrong encoding: mojibake, a replacement character or a question mark."""
    chars = list(answer)
    count = max(2, len(chars) // 50)
    for at in draw.choice(len(chars), size=min(count, len(chars)), replace=False).tolist():
        chars[at] = ("Ã©", "â€™", "\ufffd", "?", "Â ")[int(draw.integers(5))]
    return question, "".join(chars)


def no_punctuation(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    return question, re.sub(r"[^\w\s]", "", answer)


def lower_case_scrawl(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    """All lower case, a tenth of the letters dropped."""
    keep = draw.random(len(answer)) > 0.1
    return question, "".join(c for c, k in zip(answer.lower(), keep.tolist(), strict=True) if k or c.isspace())


def site_text(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    """A forum's greeting and closing around the answer."""
    return question, (
        f"Hello and welcome to the forum. Thank you for your query. {answer} Hope this helps. For further "
        "information consult a doctor online. Best regards, take care."
    )


def copied_question(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    return question, question


def another_number(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    """Wrong medicine: every number made ten times itself. Rows without a number are left out."""
    changed = re.sub(r"\d+", lambda m: m[0] + "0", answer)
    return question, changed if changed != answer else ""


FLIPS = {
    "increase": "decrease", "increases": "decreases", "increased": "decreased", "high": "low", "higher": "lower",
    "common": "rare", "rare": "common", "can": "cannot", "is": "is not", "are": "are not", "more": "less",
    "before": "after", "always": "never", "safe": "dangerous", "severe": "mild", "mild": "severe",
}  # fmt: skip


def reversed_finding(question: str, answer: str, other: Pair, draw: np.random.Generator) -> Pair:
    """Wrong medicine: statements turned into their opposites. Rows without one of the words are left out."""
    changed = re.sub(r"\w+", lambda m: FLIPS.get(m[0], m[0]), answer)
    return question, changed if changed != answer else ""


Damage = Callable[[str, str, Pair, np.random.Generator], Pair]
DAMAGE: dict[str, Damage] = {
    f.__name__: f
    for f in (
        truncated, shuffled_words, another_rows_answer, repeated_sentences, garbled_characters, no_punctuation,
        lower_case_scrawl, site_text, copied_question, another_number, reversed_finding,
    )
}  # fmt: skip


def texts(row: Dialogue) -> Pair:
    return row.messages[0]["content"], row.messages[1]["content"]


def damaged(rows: list[Dialogue], name: str) -> list[Dialogue]:
    """Damaged copies. The other row, for swaps, is one whose answer differs."""
    out = []
    for i, row in enumerate(rows):
        draw = rng(SEED, f"damage:{name}", row.id)
        other = texts(rows[(i + int(draw.integers(1, len(rows)))) % len(rows)])
        question, answer = texts(row)
        new_question, new_answer = DAMAGE[name](question, answer, other, draw)
        if new_answer.strip() and new_answer != answer:
            out.append(
                Dialogue(id=row.id, source=row.source, licence=row.licence, messages=exchange(new_question, new_answer))
            )
    return out


# ------------------------------------------------------------------------------------------------ measures


def auc(good: list[float], bad: list[float]) -> dict[str, float | int]:
    """Chance that a good row scores above a bad one (ties count half), Hanley-McNeil 95% interval."""
    n, m = len(good), len(bad)
    area = (float(rankdata([*good, *bad])[:n].sum()) - n * (n + 1) / 2) / (n * m)
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    spread = 1.96 * math.sqrt(
        max(0.0, area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)) / (n * m)
    )
    return {
        "value": round(area, 4), "low": round(max(0.0, area - spread), 4), "high": round(min(1.0, area + spread), 4),
        "good": n, "bad": m,
    }  # fmt: skip


def scores(rows: list[Dialogue]) -> list[float]:
    return [s.score for s in HeuristicScorer().score(rows) if s.score is not None]


def lengths(rows: list[Dialogue]) -> list[float]:
    return [float(len(texts(r)[1].split())) for r in rows]


def spoilt(row: Dialogue) -> bool:
    """Which of the rows are damaged: by hash, since neighbours in a file differ in kind."""
    return hashlib.blake2b(row.id.encode()).digest()[1] % 2 == 0


def damage_table(rows: list[Dialogue]) -> dict[str, Any]:
    """The rows are halved once more: one half stays clean, the other is damaged, so no row meets its own copy."""
    table = {}
    for name in DAMAGE:
        able = {r.id for r in damaged(rows, name)}  # the damage changes them: like is compared with like
        clean = [r for r in rows if r.id in able and not spoilt(r)]
        bad = damaged([r for r in rows if r.id in able and spoilt(r)], name)
        table[name] = {
            "score": auc(scores(clean), scores(bad)),
            "length_alone": auc(lengths(clean), lengths(bad))["value"],
        }
    return table


def sets_table(sets: dict[str, list[Dialogue]]) -> dict[str, Any]:
    """How the sets score as they are, and whom the bottom tenth of all of them together takes."""
    found = {name: scores(rows) for name, rows in sets.items()}
    pool = [(f"{name}:{i}", s) for name, values in found.items() for i, s in enumerate(values)]
    _, lowest = bottom([s for _, s in pool], [i for i, _ in pool], 0.1)
    taken = {name: sum(pool[i][0].startswith(f"{name}:") for i in lowest) for name in sets}
    return {
        "rows": {name: len(values) for name, values in found.items()},
        "score": {name: {q: round(v, 4) for q, v in quantiles(values).items()} for name, values in found.items()},
        "bottom_tenth_takes": {name: round(taken[name] / len(found[name]), 4) for name in sets},
        "curated_above_forum": {name: auc(found[name], found["doctor_forum"]) for name in CURATED},
    }


def speed(sets: dict[str, list[Dialogue]], repeats: int) -> dict[str, Any]:
    """Rows per second of one core (processor time, so that a busy machine does not count), best of `repeats`."""
    rows = [r for name in SETS for r in sets[name]]
    rates = []
    for _ in range(repeats):
        began = time.process_time()
        HeuristicScorer().score(rows)
        rates.append(len(rows) / (time.process_time() - began))
    words = sum(len(texts(r)[1].split()) for r in rows) / len(rows)
    return {
        "rows_per_second": round(max(rates)), "spread": [round(min(rates)), round(max(rates))], "rows": len(rows),
        "answer_words": round(words, 1),
    }  # fmt: skip


def synthetic(count: int, dimension: int = 384) -> np.ndarray:
    """Isotropic unit rows; half of them are copies of the others, at similarities between 0.8 and 1."""
    draw = rng(SEED, "vectors", count)
    rows = draw.standard_normal((count, dimension), dtype=np.float32)
    first = count // 2
    noise = draw.standard_normal((count - first, dimension), dtype=np.float32)
    rows[first:] = rows[: count - first] + draw.uniform(0, 0.75, (count - first, 1)).astype(np.float32) * noise
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def resembling(real: np.ndarray, count: int) -> np.ndarray:
    """Unit rows drawn with the mean and covariance of real embeddings."""
    root = np.linalg.cholesky(np.cov(real.T) + 1e-9 * np.eye(real.shape[1]))
    draw = rng(SEED, "resembling", count).standard_normal((count, real.shape[1]))
    rows = (real.mean(axis=0) + draw @ root.T).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def growth(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """A curve with its exponent and what it says of two million rows, at the quadratic growth of the limit."""
    first, last = curve[0], curve[-1]
    exponent = math.log(last["seconds"] / first["seconds"]) / math.log(last["rows"] / first["rows"])
    hours = last["seconds"] * (2_000_000 / last["rows"]) ** 2 / 3600
    return {"curve": curve, "exponent": round(exponent, 2), "two_million_rows_hours_quadratic": round(hours, 1)}


def timed(data: np.ndarray, screen: int | None) -> tuple[Diversity, dict[str, Any]]:
    began = time.perf_counter()
    found = diverse(data, range(len(data)), screen=screen)
    seconds = time.perf_counter() - began
    return found, {"rows": len(data), "kept": len(found.kept), "seconds": round(seconds, 3)}


def diversity(sets: dict[str, list[Dialogue]], sizes: tuple[int, ...], questions: int) -> dict[str, Any]:
    """Seconds by size; the exponent says how the time grows (2: quadratic). Plain and screened must keep the same rows
    and give the same reasons before their times are told."""
    worst = [timed(synthetic(size), 0)[1] for size in sizes]
    asked = list(dict.fromkeys(texts(r)[0] for name in SETS for r in sets[name][: questions // 2]))[:questions]
    began = time.perf_counter()
    data = Embedder().encode(asked)
    embedding = time.perf_counter() - began
    plain, plain_times = timed(data, 0)
    if timed(data, 64)[0] != plain:
        raise SystemExit("the screened filter does not equal the plain one")
    drawn, screened = [], []
    for size in sizes:
        like = resembling(data, size)
        (one, one_times), (two, two_times) = timed(like, 0), timed(like, None)
        if one != two:
            raise SystemExit("the screened filter does not equal the plain one")
        drawn.append(one_times)
        screened.append(two_times)
    return {
        "synthetic": growth(worst),
        "questions": plain_times | {"embedding_seconds": round(embedding, 1)},
        "drawn_like_questions": growth(drawn),
        "drawn_like_questions_screened": growth(screened),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }


def measure(data: Path, quick: bool) -> dict[str, Any]:
    sets = {name: read(data / "train" / f"{name}.jsonl.gz") for name in SETS}
    rate = speed(sets, 2 if quick else 5)
    cap = 1500 if quick else None
    halves = {
        part: {name: [r for r in sets[name] if half(r) == part][:cap] for name in SETS}
        for part in ("development", "held_out")
    }
    return {
        "name": "quality",
        "unit": "rows/s of one core; area under the ROC curve",
        "ours": rate["rows_per_second"],
        "peer": None,
        "peer_version": None,
        "ratio": None,
        "spread": rate["spread"],
        "scorer": {"name": HeuristicScorer.name, "digest": HeuristicScorer().digest, "weights": WEIGHTS},
        "speed": rate,
        "damage_held_out": {name: damage_table(halves["held_out"][name]) for name in CURATED},
        "damage_development": {name: damage_table(halves["development"][name]) for name in CURATED},
        "sets_held_out": sets_table(halves["held_out"]),
        "diversity": diversity(
            sets, (2_500, 5_000, 10_000) if quick else (10_000, 20_000, 40_000), 2_000 if quick else 6_000
        ),
        "quick": quick,
        "version": aloe.__version__,
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="fewer rows and smaller vectors")
    parser.add_argument("--out", type=Path, help="also write the result here")
    args = parser.parse_args()
    result = measure(args.data, args.quick)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
