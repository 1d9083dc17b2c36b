"""Does decontamination find planted leaks, and spare what only looks like one? Recall, precision and time.

    python benchmarks/decontaminate.py [--quick] [--data DIR] [--out FILE] [--list FILE]

Rows are `train/*` below DIR, benchmarks `eval/*`. Measured are the lexical tiers (a and b); tier (c) has its own part.

- **Recall**: of each kind of leak, 300 rows made from benchmark items are put among the real rows: exact copies, copies
  with shuffled options, items reworded by rules (`rewording.py`: a development and a held-out rule set; at least two
  rules fired and 30% of the stem's word trigrams are gone), and items quoted inside a long real answer. A leak counts
  as found only when its own item (or another with the same text) is named.
- **False alarms**: hard negatives are planted too: siblings (one word of the stem turned into its opposite, another
  answer) and boilerplate (the closing question of an item after another item's case, with that one's options).
- **Precision**: every confirmed pair of the real rows was read and labelled by us: true when the row asks what the item
  asks and has its answer, so that whoever learned the row knows the item; a general question for a special one is
  false. `contamination_labels.csv` holds ids and labels, no text. The detector's constants were set while reading pairs
  of this pool, so a second one that was not looked at before is read too: 3,000 training questions taken as if they
  were a benchmark, against the other training rows (a keyed sample of 60 of its pairs; exact stems left out). A first
  sample of that kind, of other questions, had 55 true of 60 and led to one change (free text must hold a reworded stem
  in its question, or all options); the sample counted here was drawn and read after it, and changed nothing.
- **Peer**: what most pipelines do, a shared word 13-gram (Brown et al. 2020, arXiv 2005.14165, appendix C), on the same
  rows; its pairs are read as a keyed sample of 50.
- **Tier (c)**, with the packaged MiniLM and no judge: of the held-out rewordings told as plain exchanges (stem and
  answer, no options), how many the lexical tiers find and how many more are suspected, with 2,000 other items in the
  index; and the share of 1,000 real rows suspected, which is what a judge would have to read. Left out by --quick.
- **Time**: rows x items up to 200,000 x 10,000 (real rows with every tenth word exchanged), a fitted plane in rows and
  rows x items, its residuals, and 2,000,000 x 10,000 by extrapolation.

`--list FILE` writes the pairs that have no label, with texts, for reading. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rewording import DEVELOPMENT, HELD_OUT, RuleSet, sentences

import aloe
from aloe.data.clean import key_text
from aloe.data.decontaminate import Item, contamination, item
from aloe.data.rephrased import FLOOR, TOP_K, rephrased_hits
from aloe.data.sources import load_rows, source_name
from aloe.evaluate.stats import wilson
from aloe.generate.embed import Embedder
from aloe.keyed import rng, shuffled
from aloe.records import Dialogue, Question, Row
from aloe.run.execute import machine

SEED = 20
PER_KIND = 300
LABELS = Path(__file__).with_name("contamination_labels.csv")
ANTONYMS = {
    "increase": "decrease", "increased": "decreased", "increases": "decreases", "superior": "inferior",
    "anterior": "posterior", "medial": "lateral", "acute": "chronic", "left": "right", "most": "least",
    "highest": "lowest", "maximum": "minimum", "upper": "lower", "proximal": "distal", "artery": "vein",
    "positive": "negative", "male": "female", "early": "late", "first": "last", "external": "internal",
}  # fmt: skip
OPPOSITE = {**ANTONYMS, **{v: k for k, v in ANTONYMS.items()}}
Benchmarks = dict[str, list[Item]]


def records(folder: Path) -> dict[str, list[Row]]:
    """Rows of every file by its name. MTS-Dialog's own columns (dialogue, note) become a user and an assistant turn."""
    found: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        name = source_name(path.name)
        if name == "mts_dialog":
            with gzip.open(path, "rt", encoding="utf-8") as handle:
                raw = [r for r in map(json.loads, handle) if r["dialogue"] and r["note"]]
            found[name] = [dialogue(r["id"], name, r["dialogue"], r["note"]) for r in raw]
        else:
            found[name] = load_rows(path, source=name, ids="content" if folder.name == "train" else "own")[0]
    return found


def dialogue(name: str, source: str, asked: str, said: str) -> Dialogue:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return Dialogue(id=name, source=source, licence="unknown", messages=turns)


# ---------------------------------------------------------------------------------------------- planted rows


def shuffle_options(q: Question) -> Question:
    letters = list(q.options)
    order = [letters[int(k)] for k in rng(SEED, "shuffle", q.id).permutation(len(letters))]
    order = order if order != letters else order[1:] + order[:1]
    return replace(q, options=dict(zip(letters, (q.options[x] for x in order))), answer=letters[order.index(q.answer)])


def reworded(pool: Sequence[Question], rules: RuleSet) -> list[tuple[Question, str]]:
    """Items that the rules really change: (reworded, id of the item)."""
    found = []
    for q in pool:
        new, fired = rules.reword(q, SEED)
        if len(fired) >= 2 and survivors(q.question, new.question) <= 0.7:
            found.append((new, q.id))
    return found


def survivors(old: str, new: str) -> float:
    """Share of the old text's word trigrams that the new one has."""
    a, b = (key_text(t).split() for t in (old, new))
    grams = [set(zip(t, t[1:], t[2:])) for t in (a, b)]
    return len(grams[0] & grams[1]) / len(grams[0]) if grams[0] else 1.0


def embedded(q: Question, host: Row) -> Dialogue:
    """The item, with options and answer, quoted in the middle of a real dialogue's last answer."""
    assert isinstance(host, Dialogue)
    said = sentences(host.messages[-1]["content"])
    options = " ".join(f"{letter}) {text}" for letter, text in shuffle_options(q).options.items())
    quote = f"An exam asked this once: {q.question} {options} They wanted {q.options[q.answer]}."
    half = len(said) // 2
    text = " ".join([*said[:half], quote, *said[half:]])
    return dialogue(q.id, "planted", host.messages[0]["content"], text)


def told(q: Question) -> Dialogue:
    """A question as a plain exchange: the stem, and the answer in a sentence."""
    return dialogue(q.id, "planted", q.question, f"The answer is {q.options[q.answer]}.")


def siblings(pool: Sequence[Question]) -> list[tuple[Question, str]]:
    """One word of the stem turned into its opposite, another answer."""
    pattern = re.compile(r"\b(" + "|".join(OPPOSITE) + r")\b", re.IGNORECASE)
    found = []
    for q in pool:
        if len(q.question.split()) <= 30 and pattern.search(q.question):  # in a long case one word changes nothing
            stem = pattern.sub(lambda m: OPPOSITE[m[1].lower()], q.question, count=1)
            letters = list(q.options)
            answer = letters[(letters.index(q.answer) + 1) % len(letters)]
            found.append((replace(shuffle_options(replace(q, answer=answer)), question=stem), q.id))
    return found


def boilerplate(pool: Sequence[Question]) -> list[tuple[Question, str]]:
    """The closing question of an item after the case of another, with that one's options."""
    cases = [q for q in pool if len(sentences(q.question)) >= 3]
    found = []
    for q, other in zip(cases, cases[1:] + cases[:1]):
        if len(sentences(q.question)[-1].split()) >= 8:
            stem = " ".join([*sentences(other.question)[:-1], sentences(q.question)[-1]])
            found.append((replace(other, question=stem), q.id))
    return found


def plant(evals: Mapping[str, Sequence[Row]], hosts: Sequence[Row], count: int) -> dict[str, list[tuple[Item, str]]]:
    """(row, id of its item) by kind of leak or of negative."""
    every = [q for name in sorted(evals) for q in evals[name] if isinstance(q, Question) and not q.context]
    pool = [q for q in shuffled(every, SEED, "plant", [q.id for q in every]) if len(key_text(q.question)) >= 20]
    long = [h for h in hosts if isinstance(h, Dialogue) and len(h.messages[-1]["content"].split()) >= 150]
    long = shuffled(long, SEED, "hosts", [h.id for h in long])
    kinds: dict[str, list[tuple[Row, str]]] = {
        "exact": [(q, q.id) for q in pool],
        "option_shuffled": [(shuffle_options(q), q.id) for q in pool],
        "embedded": [(embedded(q, host), q.id) for q, host in zip(pool, long)],
        "reworded": list(reworded(pool, DEVELOPMENT)),
        "reworded_held_out": list(reworded(pool, HELD_OUT)),
        "reworded_told": [(told(q), name) for q, name in reworded(pool, HELD_OUT)],
        "sibling": list(siblings(pool)),
        "boilerplate": list(boilerplate(pool)),
    }
    planted = {}
    for kind, rows in kinds.items():
        chosen = [(replace(r, id=f"{kind}:{name}", source="planted"), name) for r, name in rows[:count]]
        planted[kind] = [(item(r), name) for r, name in chosen]
    return planted


def found_of(rows: Sequence[tuple[Item, str]], benchmarks: Benchmarks) -> list[bool]:
    """For each planted row: is its own item named (or one with the same text)?"""
    texts = {other.id: (other.stem, other.options) for items in benchmarks.values() for other in items}
    named: dict[int, set[Any]] = {}
    for hit in contamination([row for row, _ in rows], benchmarks).hits:
        other = benchmarks[hit.benchmark][hit.item]
        named.setdefault(hit.row, set()).add((other.stem, other.options))
    return [texts[name] in named.get(i, ()) for i, (_, name) in enumerate(rows)]


# ---------------------------------------------------------------------------------------------- precision


def shared_13grams(rows: Sequence[Item], benchmarks: Benchmarks) -> list[tuple[str, str]]:
    """(row id, item id) of every pair that shares a word 13-gram of the item's question."""
    table: dict[tuple[str, ...], list[str]] = {}
    for items in benchmarks.values():
        for other in items:
            tokens = other.question.split()
            for gram in {tuple(tokens[k : k + 13]) for k in range(len(tokens) - 12)}:
                table.setdefault(gram, []).append(other.id)
    pairs: set[tuple[str, str]] = set()
    for row in rows:
        tokens = row.text.split()
        for k in range(len(tokens) - 12):
            pairs.update((row.id, name) for name in table.get(tuple(tokens[k : k + 13]), ()))
    return sorted(pairs)


def labels() -> dict[tuple[str, str], bool]:
    """{(row id, item id): does the row hold the item?}, as read."""
    if not LABELS.exists():
        return {}
    with LABELS.open(encoding="utf-8", newline="") as handle:
        return {(r["row_id"], r["item_id"]): r["holds"] == "true" for r in csv.DictReader(handle)}


def precision(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Share of labelled pairs that are true; pairs without a label are counted, not guessed."""
    known, pairs = labels(), list(pairs)
    return {"pairs": len(pairs), "unlabelled": sum(p not in known for p in pairs),
            **rate([known[p] for p in pairs if p in known])}  # fmt: skip


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    if not hits:
        return {"value": None, "low": None, "high": None, "successes": 0, "n": 0}
    low, high = wilson(sum(hits), len(hits))
    return {"value": sum(hits) / len(hits), "low": low, "high": high, "successes": sum(hits), "n": len(hits)}


def real_pairs(rows: Sequence[Item], benchmarks: Benchmarks) -> list[tuple[str, str]]:
    report = contamination(rows, benchmarks)
    return [(rows[h.row].id, benchmarks[h.benchmark][h.item].id) for h in report.hits]


def second_pool(rows: Sequence[Item]) -> tuple[int, list[tuple[str, str]]]:
    """How many pairs are confirmed when 3,000 training questions play the benchmark, and 60 of them to be read."""
    questions = [row for row in rows if row.options]
    played = shuffled(questions, SEED, "second pool", [row.id for row in questions])[:3000]
    names = {row.id for row in played}
    rest = [row for row in rows if row.id not in names]
    hits = [h for h in contamination(rest, {"played": played}).hits if h.tier != "exact_stem"]
    pairs = [(rest[h.row].id, played[h.item].id) for h in hits]
    return len(pairs), shuffled(pairs, SEED, "second pairs", [f"{a}|{b}" for a, b in pairs])[:60]


def write_unlabelled(path: Path, pairs: Iterable[tuple[str, str]], rows: Iterable[Item], items: Iterable[Item]) -> None:
    """Pairs without a label as JSON lines with their texts, for reading."""
    left, right, known = {r.id: r for r in rows}, {o.id: o for o in items}, labels()
    with path.open("a", encoding="utf-8") as handle:
        for row, name in pairs:
            if (row, name) not in known:
                a, b = left[row], right[name]
                handle.write(json.dumps([row, name, a.question[:600], a.gold, b.question[:600], b.gold]) + "\n")


# ---------------------------------------------------------------------------------------------- tier (c)


def tier_c(told: Sequence[tuple[Item, str]], rows: Sequence[Item], items: Sequence[Item]) -> dict[str, Any]:
    """Recall of the lexical tiers, of suspicion by embedding, and of both, on rewordings told without options."""
    names = {name for _, name in told}
    others = [o for o in shuffled(list(items), SEED, "tier c", [o.id for o in items]) if o.id not in names][:2000]
    index = {"benchmark": [*(o for o in items if o.id in names), *others]}
    encoder = Embedder()
    lexical = found_of(told, index)
    found = rephrased_hits([row for row, _ in told], index, encoder)
    named: dict[int, set[str]] = {}
    for hit in found.suspected:
        named.setdefault(hit.row, set()).add(index["benchmark"][hit.item].id)
    suspected = [name in named.get(i, ()) for i, (_, name) in enumerate(told)]
    real = shuffled(list(rows), SEED, "tier c rows", [row.id for row in rows])[:1000]
    raised = {hit.row for hit in rephrased_hits(real, index, encoder).suspected}
    return {
        "k": TOP_K, "floor": FLOOR, "items": len(index["benchmark"]), "lexical": rate(lexical),
        "suspected": rate(suspected), "either": rate([a or b for a, b in zip(lexical, suspected, strict=True)]),
        "real_rows_suspected": rate([i in raised for i in range(len(real))]),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- time


def scaled(rows: Sequence[Item], count: int) -> list[Item]:
    """`count` rows: real ones over and over, every tenth word exchanged for another row's."""
    made, rows = [], shuffled(rows, SEED, "scale", [row.id for row in rows])
    for n in range(count):
        draw = rng(SEED, "scale", n)
        row, other = rows[n % len(rows)], rows[int(draw.integers(len(rows)))].text.split() or ["x"]
        start, texts = int(draw.integers(10)), []
        for text in (row.stem, row.text):
            tokens = text.split()
            tokens[start::10] = [other[k % len(other)] for k in range(len(tokens[start::10]))]
            texts.append(" ".join(tokens))
        question = f"{texts[0]} {' '.join(row.options)}" if row.options else texts[0]
        made.append(replace(row, id=str(n), stem=texts[0], text=texts[1], question=question))
    return made


def timing(rows: Sequence[Item], items: Sequence[Item], sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Seconds for each (rows, items), and the plane seconds = a + b rows + c rows x items through them."""
    big = scaled(rows, max(n for n, _ in sizes))
    order = shuffled(list(items), SEED, "items", [f"{i}" for i in range(len(items))])
    points = []
    for n, m in sizes:
        start = time.process_time()
        contamination(big[:n], {"benchmark": order[:m]})
        points.append({"rows": n, "items": m, "cpu_seconds": time.process_time() - start, "load": os.getloadavg()[0]})
    design = np.array([[1.0, p["rows"], p["rows"] * p["items"]] for p in points])
    seconds = np.array([p["cpu_seconds"] for p in points])
    weights = 1.0 / seconds  # relative residuals: the small runs count as much as the large
    fit, *_ = np.linalg.lstsq(design * weights[:, None], seconds * weights, rcond=None)
    residuals = design @ fit / seconds - 1
    return {
        "points": points, "seconds_per_row": fit[1], "seconds_per_row_and_item": fit[2], "constant": fit[0],
        "relative_residuals": residuals.tolist(), "largest_residual": float(np.abs(residuals).max()),
        "extrapolated": {"rows": 2_000_000, "items": 10_000, "cpu_hours": float(fit @ [1, 2e6, 2e10]) / 3600},
        "clock": "processor time of one process, index building included",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- all


def measure(data: Path, quick: bool, listing: Path | None) -> dict[str, Any]:
    train, evals = records(data / "train"), records(data / "eval")
    rows = [item(r) for name in train for r in train[name]]
    benchmarks = {name: [item(r) for r in found] for name, found in evals.items()}
    count = 60 if quick else PER_KIND
    planted = plant(evals, [r for name in train for r in train[name]], count)
    flagged = {kind: rate(found_of(found, benchmarks)) for kind, found in planted.items()}
    pairs = real_pairs(rows, benchmarks)
    fresh_pairs, fresh = second_pool(rows)
    grams = shared_13grams(rows, benchmarks)
    sample = shuffled(grams, SEED, "13-grams", [f"{a}|{b}" for a, b in grams])[:50]
    if listing:
        every = [other for items in benchmarks.values() for other in items]
        listing.unlink(missing_ok=True)
        write_unlabelled(listing, [*pairs, *fresh, *sample], rows, [*every, *rows])
    ours, peer = precision(pairs), precision(sample)
    sizes = [(12_500, 1_000), (25_000, 1_000), (12_500, 10_000), (25_000, 10_000)]
    if not quick:
        sizes = [(n, m) for n in (25_000, 50_000, 100_000, 200_000) for m in (1_000, 3_000, 10_000)]
    pool = [other for items in benchmarks.values() for other in items]
    negatives = ("sibling", "boilerplate")
    return {
        "name": "decontaminate",
        "unit": "share of flagged pairs (training row, benchmark item) in which the row holds the item",
        "ours": ours["value"], "peer": peer["value"], "peer_version": "shared word 13-gram",
        "ratio": ours["value"] / peer["value"] if ours["value"] and peer["value"] else None,
        "spread": {"ours": [ours["low"], ours["high"]], "peer": [peer["low"], peer["high"]]},
        "rows": len(rows), "items": sum(map(len, benchmarks.values())), "quick": quick,
        "recall": {kind: v for kind, v in flagged.items() if kind not in negatives},
        "false_alarms": {kind: flagged[kind] for kind in negatives},
        "precision": {
            "real_pool": ours, "second_pool": {**precision(fresh), "pairs": fresh_pairs}, "thirteen_grams": peer,
        },
        "thirteen_grams": {"pairs": len(grams), "rows": len({a for a, _ in grams}), "read": len(sample)},
        "trigrams_left": {
            kind: float(np.mean([kept_trigrams(row, name, benchmarks) for row, name in planted[kind]]))
            for kind in ("reworded", "reworded_held_out")
        },
        "tier_c": None if quick else tier_c(planted["reworded_told"], rows, pool),
        "time": timing(rows, pool, sizes),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "version": aloe.__version__,
        "machine": machine(),
    }  # fmt: skip


def kept_trigrams(row: Item, name: str, benchmarks: Benchmarks) -> float:
    other = next(o for items in benchmarks.values() for o in items if o.id == name)
    return survivors(other.stem, row.stem)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 leaks of each kind, short time curve")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="also write the result here")
    parser.add_argument("--list", type=Path, help="write confirmed pairs without a label here, with texts")
    args = parser.parse_args()
    result = measure(args.data, args.quick, args.list)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
