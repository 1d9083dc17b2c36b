"""How well is personal health information found? Planted identifiers in real text, with Wilson intervals.

    python benchmarks/phi.py [--quick] [--data DIR] [--out FILE] [--split test|development] [--list-natural FILE]

Identifiers of every kind, made from `phi_people.txt` and `phi_plant.py`, are put into rows of `train/doctor_forum`,
`train/medquad` and `train/mts_dialog` below DIR: in a greeting, a signature, a field or between two sentences
(`phi_frames.txt`). Rows, people and part of the sentences are split in two by key. Rules and lists were tuned on the
`development` part; `first_run` in the result is what the unseen `test` part gave, before a few last changes. What is
found beside the planted identifiers was read by hand: `phi_judged.json` holds the labels by (row, field, start, end),
without the text. `phi_names.txt` are 500 drug, disease and eponym names, written before the rules and lists, of which
none may be redacted. Speed is measured on one core beside Presidio's, where that peer is installed.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aloe
from aloe.data.phi import Finding, find, redact
from aloe.data.phi_words import fold, lexicon
from aloe.evaluate.stats import wilson
from aloe.keyed import rng
from aloe.run.execute import machine

sys.path.insert(0, str(Path(__file__).parent))
from phi_peer import PEERS, Presidio
from phi_plant import HERE, SEED, Plant, Planted, half, people, plant

RIGHT = ("person", "public", "placeholder")  # labels of findings that are of their kind
FILES = {"doctor_forum": ("question", "answer"), "medquad": ("answer",), "mts_dialog": ("dialogue", "note")}


def rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def corpus(data: Path, split: str) -> list[tuple[str, str, str, str]]:
    """(row id, field, source, text) of one part, every text once."""
    texts, seen = [], set()
    for source, fields in FILES.items():
        for number, row in enumerate(rows(data / "train" / f"{source}.jsonl.gz")):
            for name in fields:
                text = row.get(name)
                row_id = f"{row['id']}#{number}"
                if text and len(text) > 30 and text not in seen and half(row_id) == split:
                    seen.add(text)
                    texts.append((row_id, name, source, text))
    return texts


# ---------------------------------------------------------------------------------------------- measuring


def share(hits: int, n: int) -> dict[str, float | int]:
    low, high = wilson(hits, n)
    return {"value": hits / n if n else float("nan"), "low": low, "high": high, "hits": hits, "n": n}


def covered(p: Plant, text: str, spans: Iterable[tuple[int, int]]) -> bool:
    """Whether every letter and digit of the identifier lies in some finding."""
    hidden: set[int] = set()
    for a, b in spans:
        hidden.update(range(max(a, p.start), min(b, p.end)))
    return all(i in hidden for i in range(p.start, p.end) if text[i].isalnum())


def recall(sets: list[Planted], found: list[list[tuple[str, int, int]]]) -> dict[str, Any]:
    """Share of planted identifiers wholly covered; by kind, frame, listing and case of the name, source."""
    hits: dict[str, Counter[str]] = defaultdict(Counter)
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    same_kind = exact = 0
    for s, spans in zip(sets, found, strict=True):
        for p in s.plants:
            hit = covered(p, s.text, [(a, b) for _, a, b in spans])
            groups = [
                ("all", "all"),
                ("kind", p.kind),
                ("source", s.source),
                ("frame", "new" if p.new_frame else "seen"),
            ]
            if p.kind == "NAME":
                groups.append(("name", "some_word_unlisted" if p.unlisted else "all_words_listed"))
            groups.append(("case", "lower" if p.lower else "as_written"))
            for group, value in groups:
                totals[group][value] += 1
                hits[group][value] += hit
            same_kind += hit and any(k == p.kind and a < p.end and b > p.start for k, a, b in spans)
            exact += any(a == p.start and b == p.end for _, a, b in spans)
    out: dict[str, Any] = {
        g: {v: share(hits[g][v], n) for v, n in sorted(c.items())} for g, c in totals.items() if g != "all"
    }
    n = totals["all"]["all"]
    return {
        "overall": share(hits["all"]["all"], n),
        "of_the_same_kind": share(same_kind, n),
        "same_span": share(exact, n),
        **{f"by_{g}": v for g, v in out.items()},
    }


def beside(s: Planted, spans: list[tuple[str, int, int]]) -> list[tuple[str, int, int, int, int]]:
    """Findings that touch no planted identifier: (kind, start, end, start and end in the row)."""
    rest = []
    for kind, a, b in spans:
        if not any(a < p.end and b > p.start for p in s.plants):
            here, there, _ = max((x for x in s.pieces if x[0] <= a), default=s.pieces[0])
            rest.append((kind, a, b, a - here + there, b - here + there))
    return rest


def in_order(findings: Iterable[Finding]) -> list[tuple[str, int, int]]:
    return [(f.kind, f.start, f.end) for f in findings]


NAME_FRAMES = (
    "{n}",
    "{n} is what I have.",
    "The patient has {n}.",
    "She was treated for {n} last year.",
    "My doctor says it is {n}.",
    "Is {n} serious?",
    "I take it for {n}, once a day.",
    "History of {n}.",
    "Diagnosis: {n}",
    "- {n}\n- hypertension",
    "Hi, {n} runs in my family.",
    "Thanks, {n} is better now.",
    "My mother has {n} and my father had {n}.",
    "This is {n}.",
    "It's {n}, I think.",
    "Known as {n} in the books.",
    "Dear doctor, {n} is back.",
    "Doctor: {n} is possible.\nPatient: {n}? Really?",
    "Assessment: {n}; plan: review.",
    "{n} and diabetes were compared in 2019.",
    "We saw {n} in the clinic, {n} in the ward.",
    "the {n} question",
    "Signs of {n} include pain.",
    "Referred by my GP for {n}.",
    "Best for {n}: rest.",
)


def protected(search: Callable[[list[str]], list[list[tuple[str, int, int]]]], quick: bool) -> dict[str, Any]:
    """Which of the 500 names are ever touched by a finding, over frames and forms."""
    words, section, items = lexicon(), "", []
    for line in (HERE / "phi_names.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line and not line.startswith("#"):
            items.append((section, line))
    known = words.eponyms | words.medical | words.common
    texts, owners, places = [], [], []
    for section, name in items:
        for frame in NAME_FRAMES[:6] if quick else NAME_FRAMES:
            for form in (name, name.upper(), name.lower(), name[0].upper() + name[1:].lower()):
                texts.append(frame.replace("{n}", form))
                owners.append((section, name))
                places.append([(m.start(), m.start() + len(form)) for m in re.finditer(re.escape(form), texts[-1])])
    touched: dict[str, Counter[str]] = defaultdict(Counter)
    for owner, there, spans in zip(owners, places, search(texts), strict=True):
        if any(a < end and b > start for _, a, b in spans for start, end in there):
            touched[owner[0]][owner[1]] += 1
    outside = [n for _, n in items if not all(fold(w) in known for w in re.findall(r"[^\W\d_]+", n))]
    lists = words.eponyms | words.medical
    outside_lists = [n for _, n in items if not any(fold(w) in lists for w in re.findall(r"[^\W\d_]+", n))]
    bad = {n for c in touched.values() for n in c}
    return {
        "names": len(items),
        "texts": len(texts),
        "redacted": len(bad),
        "redacted_names": sorted(bad),
        "texts_with_a_finding": sum(sum(c.values()) for c in touched.values()),
        "outside_the_allow_lists_and_untouched": f"{sum(n not in bad for n in outside_lists)} of {len(outside_lists)}",
        "with_a_word_in_no_list_and_untouched": f"{sum(n not in bad for n in outside)} of {len(outside)}",
    }


def kilobyte_rows(data: Path, n: int) -> list[str]:
    """Texts of about 1 KB: real answers, cut at a sentence."""
    texts = []
    for row in rows(data / "train" / "medquad.jsonl.gz"):
        text = row["answer"] or ""
        if len(text) > 900:
            texts.append(text[: text.rfind(".", 800, 1200) + 1 or 1024])
        if len(texts) == n:
            break
    return texts


def speed(texts: list[str], peer: Presidio | None, turns: int) -> dict[str, Any]:
    """Rows a second on one core, ours and the peer's in turn, on the same rows."""
    ours, theirs = [], []
    few = texts[:: max(1, len(texts) // 100)]
    for _ in range(turns):
        began = time.process_time()
        for t in texts:
            find(t)
        ours.append(len(texts) / (time.process_time() - began))
        if peer:
            peer(few)
            theirs.append(len(few) / peer.seconds)
    return {
        "unit": "rows of about 1 KB a second, one core",
        "mean_bytes": statistics.mean(len(t.encode()) for t in texts),
        "ours": statistics.median(ours),
        "spread": [min(ours), max(ours)],
        "peer": statistics.median(theirs) if theirs else None,
        "ratio": statistics.median(ours) / statistics.median(theirs) if theirs else None,
    }


def large_rows() -> dict[str, float]:
    """Seconds for single rows of 1 and 5 MB made to make a careless pattern backtrack."""
    cases = {
        "capitals": "A" * 10,
        "names": "Aa Bb ",
        "digits": "1 ",
        "dashes": "1-",
        "streets": "1 Aa ",
        "at": "a@",
        "dots": "a.",
        "dr": "dr ",
        "dear": "Dear Aa ",
        "plus": "+1 1 ",
        "quotes": "O'",
        "word": "a",
    }
    out = {}
    for name, unit in cases.items():
        for size in (1, 5):
            text = unit * (size * 1_000_000 // len(unit))
            began = time.perf_counter()
            find(text)
            out[f"{name}_{size}MB"] = round(time.perf_counter() - began, 2)
    return out


def judged() -> tuple[dict[tuple[str, str, int, int], str], dict[str, Any]]:
    """Labels by (row, field, start, end), and what the first run over the test part gave."""
    data = json.loads((HERE / "phi_judged.json").read_text(encoding="utf-8"))
    return {(r["row"], r["field"], r["start"], r["end"]): r["label"] for r in data["labels"]}, data["first_run"]


def measure(data: Path, split: str, quick: bool, listing: Path | None) -> dict[str, Any]:
    texts = corpus(data, split)
    names = people(split)
    g = rng(SEED, "phi sample", split)
    chosen = []
    per_source = 300 if quick else 1500
    for source in FILES:
        pool = [t for t in texts if t[2] == source]
        chosen += [pool[i] for i in sorted(g.choice(len(pool), min(per_source, len(pool)), replace=False))]
    sets = [plant(*t, split, names) for t in chosen]
    found = [in_order(find(s.text)) for s in sets]
    for s, spans in zip(sets, found, strict=True):
        again = find(redact(s.text, [Finding(k, a, b, "", "") for k, a, b in spans]))
        assert not again, (s.row, again)

    labels, first_run = judged()
    natural: Counter[str] = Counter()
    for s, spans in zip(sets, found, strict=True):
        natural.update(labels.get((s.row, s.field, a, b), "unjudged") for _, _, _, a, b in beside(s, spans))
    hits = sum(len(spans) for spans in found) - sum(natural.values())
    right = sum(natural[k] for k in RIGHT)
    plain, plain_labels, unjudged = Counter[str](), Counter[str](), []
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for row, name, source, text in texts if not quick else chosen:
        for f in find(text):
            label = labels.get((row, name, f.start, f.end), "unjudged")
            plain[source] += 1
            plain_labels[label] += 1
            by_kind[f.kind][label] += 1
            if label == "unjudged" or listing:
                context = text[max(0, f.start - 50) : f.start] + "<<" + f.text + ">>" + text[f.end : f.end + 40]
                unjudged.append(
                    {
                        "row": row,
                        "field": name,
                        "start": f.start,
                        "end": f.end,
                        "kind": f.kind,
                        "rule": f.rule,
                        "label": label,
                        "context": context,
                    }
                )
    if listing:
        listing.write_text("\n".join(json.dumps(u, ensure_ascii=False) for u in unjudged) + "\n", encoding="utf-8")
        missed = [
            {
                "kind": p.kind,
                "text": p.text,
                "lower": p.lower,
                "context": s.text[max(0, p.start - 40) : p.end + 30],
                "got": [(k, s.text[a:b]) for k, a, b in spans if a < p.end + 20 and b > p.start - 20],
            }
            for s, spans in zip(sets, found, strict=True)
            for p in s.plants
            if not covered(p, s.text, [(a, b) for _, a, b in spans])
        ]
        listing.with_suffix(".missed").write_text(
            "\n".join(json.dumps(m, ensure_ascii=False) for m in missed) + "\n", encoding="utf-8"
        )

    try:
        peer: Presidio | None = Presidio()
        why = None
    except (FileNotFoundError, RuntimeError) as cause:
        peer, why = None, f"presidio isn't installed under {PEERS.name}: {type(cause).__name__}"
    ours = recall(sets, found)
    result: dict[str, Any] = {
        "name": "phi",
        "unit": "share of planted identifiers wholly covered",
        "split": split,
        "rows": len(sets),
        "ours": ours["overall"]["value"],
        "recall": ours,
        "precision": {
            "of_its_kind": share(hits + right, hits + right + natural["wrong"]),
            "a_person's": share(hits + natural["person"], hits + right + natural["wrong"]),
            "findings_beside": dict(natural),
        },
        "unplanted_text": {
            "rows": len(texts if not quick else chosen),
            "findings_by_source": dict(plain),
            "labels": dict(plain_labels),
            "labels_by_kind": {k: dict(v) for k, v in sorted(by_kind.items())},
            "of_its_kind": share(sum(plain_labels[k] for k in RIGHT), sum(plain_labels[k] for k in (*RIGHT, "wrong"))),
            "wrong_per_1000_rows": 1000 * plain_labels["wrong"] / len(texts if not quick else chosen),
        },
        "first_run": first_run,
        "protected_names": protected(lambda ts: [in_order(find(t)) for t in ts], quick),
        "speed": speed(kilobyte_rows(data, 300 if quick else 2000), peer, 3 if quick else 5),
        "large_rows_seconds": large_rows() if split == "test" and not quick else {},
    }
    if peer:
        step = 9 if quick else 5
        few, few_found = sets[::step], found[::step]
        theirs = peer([s.text for s in few])
        mine = recall(few, few_found)
        peer_recall = recall(few, theirs)
        result["peer_detail"] = {
            "rows": len(few),
            "recall": peer_recall,
            "ours_on_the_same_rows": mine["overall"],
            "findings_beside_per_1000_rows": 1000 * sum(len(beside(s, x)) for s, x in zip(few, theirs)) / len(few),
            "ours_beside_per_1000_rows": 1000 * sum(len(beside(s, x)) for s, x in zip(few, few_found)) / len(few),
            "protected_names": {k: v for k, v in protected(peer, True).items() if k != "redacted_names"},
            "note": "default English recognisers, spaCy en_core_web_sm, score >= 0.35; its nationality and "
            "organisation findings are left out; a finding of any kind counts, if it covers the identifier wholly",
        }
        result |= {
            "ours": mine["overall"]["value"],
            "peer": peer_recall["overall"]["value"],
            "peer_name": "presidio-analyzer",
            "peer_version": peer.version,
            "ratio": mine["overall"]["value"] / peer_recall["overall"]["value"],
        }
    else:
        result |= {"peer": None, "peer_version": None, "ratio": None, "peer_missing": why}
    return {
        **result,
        "spread": [ours["overall"]["low"], ours["overall"]["high"]],
        "version": aloe.__version__,
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="also write the result here")
    parser.add_argument("--quick", action="store_true", help="a fifth of the rows, fewer frames")
    parser.add_argument("--split", choices=("test", "development"), default="test")
    parser.add_argument(
        "--list-natural", type=Path, help="write what was found beside the planted, with its surroundings"
    )
    args = parser.parse_args()
    result = measure(args.data, args.split, args.quick, args.list_natural)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
