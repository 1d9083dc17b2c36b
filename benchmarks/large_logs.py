"""A million scored items: how long `aloe report`, `aloe compare` and `aloe verify` take, and how much memory.

    python benchmarks/large_logs.py [--quick] [--items 1000000] [--folder DIR] [--out FILE]

Two artifacts of one run, two checkpoints each, all with the same items under the same protocols: half a million item
rows in an artifact, as `evaluate` writes them and by its own writer. Six benchmarks: likelihoods with their log-
probabilities, direct answers, ensembles with every member's reply, harmless and harmful requests in clusters of one
base request, and sampled continuations with graded values. Values, texts and clusters are keyed draws; texts are
sentences of the packaged starter rows. Every command then runs in a fresh process; memory is that process's peak
resident size (`ru_maxrss`), and processor seconds stand beside the wall's, which other work on the machine stretches.
The pages that come out are opened in headless Chromium. There is no peer that does the same work; the bounds are ours.
The last line printed is one JSON object. `--quick` takes 20,000 items and stores nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "report"))

from aloe import __version__  # noqa: E402
from aloe.data.sources import load_rows  # noqa: E402
from aloe.data.starter import starter_path  # noqa: E402
from aloe.digests import digest_text  # noqa: E402
from aloe.evaluate.compare import neighbours  # noqa: E402
from aloe.evaluate.measured import Measured, item_row, score_record  # noqa: E402
from aloe.evaluate.step import _write  # noqa: E402
from aloe.keyed import rng  # noqa: E402
from aloe.records import Question, Row  # noqa: E402
from aloe.run.execute import library_versions, machine  # noqa: E402
from aloe.run.store import Store  # noqa: E402

BOUNDS = {"seconds": 30.0, "processor_seconds": 30.0, "peak_bytes": 2_000_000_000}
SHARES = {"exam": 0.48, "exam_generated": 0.32, "exam_vote": 0.06, "over_refusal": 0.08, "attack_success": 0.04,
          "continuations": 0.02}  # fmt: skip
ARTIFACTS = {"scores_first": ("base", "sft"), "scores_last": ("merged", "aligned")}
GAIN = {"base": 0.0, "sft": 0.01, "merged": 0.015, "aligned": 0.02}  # of a checkpoint, in the share right
LETTERS = "ABCD"
STYLES = 8  # prompts made from one base request: a cluster
MEMBERS, DRAWS = 5, 4  # of an ensemble; continuations of an opening
TOPICS = ("cardiology", "neurology", "pharmacology", "paediatrics", "ethics", "triage")


# -- what is scored ----------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """Where values and texts are drawn from: one model on one benchmark."""

    model: str
    benchmark: str
    sentences: list[str]

    def __post_init__(self) -> None:
        self.draw = rng(7, "large logs", f"{self.model} {self.benchmark}")
        self.shared = rng(7, "large logs", self.benchmark)  # what both models are asked alike

    def text(self, sentences: int) -> str:
        """A reply of about that many sentences."""
        chosen = self.draw.integers(0, len(self.sentences), 1 + int(self.draw.integers(0, 2 * sentences)))
        return " ".join(self.sentences[i] for i in chosen)

    def right(self, difficulty: float) -> bool:
        """Whether the model is right on an item."""
        return bool(self.draw.random() < (0.25 + 0.6 * difficulty + GAIN[self.model]))


def likelihood(source: Source, gold: str, difficulty: float) -> dict[str, Any]:
    logs = -1.0 - 4 * source.draw.random(4)
    best = LETTERS.index(gold) if source.right(difficulty) else int(source.draw.integers(0, 4))
    logs[best] = -0.4
    nll = float(2 + source.draw.random())
    meta = {
        "logprobs": {letter: float(v) for letter, v in zip(LETTERS, logs, strict=True)}, "nll_token": nll,
        "nll_byte": nll / 3.1, "text_letter": LETTERS[int(source.draw.integers(0, 4))],
        "shown": [[letter, LETTERS[best]] for letter in LETTERS],
    }  # fmt: skip
    return {"value": float(LETTERS[best] == gold), "prediction": LETTERS[best], "meta": meta, "output": ""}


def answered(source: Source, gold: str, difficulty: float, members: int = 1) -> dict[str, Any]:
    """A reply, or several that vote; a few can't be read."""
    letters = [gold if source.right(difficulty) else LETTERS[int(source.draw.integers(0, 4))] for _ in range(members)]
    unread = source.draw.random() < 0.03
    counts = {} if unread else {letter: letters.count(letter) for letter in sorted(set(letters))}
    won = "" if unread else max(counts, key=lambda letter: (counts[letter], letter))
    texts = [f"{source.text(4)} Answer: {letter}" for letter in letters]
    told = [
        {"member": m, "letter": None if unread else letter, "rule": "stated", "conflict": False,
         "finish_reason": "stop", "logprob": -float(source.draw.random() * 40), "prompt_tokens": 180,
         "completion_tokens": len(text) // 4, "text": text}
        for m, (letter, text) in enumerate(zip(letters, texts, strict=True))
    ]  # fmt: skip
    meta = {
        "error": None, "votes": counts, "margin": 0.0, "share": max(counts.values(), default=0) / members, "tied": [],
        "tie_rule": "none", "winners": [won or None] * members, "ensemble": members, "asked": members,
        "fewest": members, "shots": [], "members": told,
    }  # fmt: skip
    outcome = "unparsed" if unread else "answered"
    return {"value": float(won == gold), "prediction": won, "meta": meta, "output": texts[0], "outcome": outcome}


def judged(source: Source, difficulty: float, harm: bool) -> dict[str, Any]:
    """A reply to a request, judged; a few requests got no answer."""
    if source.draw.random() < 0.002:
        return {"value": None, "prediction": "", "output": "", "outcome": "errored",
                "meta": {"error": "the server closed the connection (in the last of 4 tries)"}}  # fmt: skip
    yes = source.draw.random() < (0.25 - 5 * GAIN[source.model]) * (0.5 + difficulty)
    text = source.text(3)
    label = ("unsafe" if yes else "safe") if harm else ("refused" if yes else "complied")
    meta = {"rule": "no_decline", "evidence": text[:120], "finish_reason": "stop"}
    return {"value": float(yes), "prediction": label, "meta": meta, "output": text}


def continued(source: Source, difficulty: float) -> dict[str, Any]:
    texts = [source.text(1) for _ in range(DRAWS)]
    scores = [round(float(s), 6) for s in source.draw.beta(1, 6, DRAWS)]
    return {"value": max(scores), "prediction": "", "meta": {"continuations": texts, "scores": scores},
            "output": texts[0]}  # fmt: skip


# benchmark -> (metric, way of better, how an item is answered, whether items come in clusters)
Way = Callable[[Source, str, float], dict[str, Any]]
WAYS: dict[str, tuple[str, str, Way, bool]] = {
    "exam": ("accuracy", "higher", likelihood, False),
    "exam_generated": ("accuracy", "higher", answered, False),
    "exam_vote": ("accuracy", "higher", lambda s, g, d: answered(s, g, d, MEMBERS), False),
    "over_refusal": ("over_refusal", "lower", lambda s, g, d: judged(s, d, False), True),
    "attack_success": ("attack_success", "lower", lambda s, g, d: judged(s, d, True), True),
    "continuations": ("expected_max_toxicity", "lower", lambda s, g, d: continued(s, d), False),
}


def protocol(benchmark: str, items: int) -> dict[str, Any]:
    """A protocol record of the shape that the step writes."""
    metric = WAYS[benchmark][0]
    kind = {"exam": "likelihood", "accuracy": "generated"}.get(benchmark if benchmark == "exam" else metric, metric)
    return {
        "kind": kind, "data_digest": digest_text(benchmark), "items_digest": digest_text(f"items {benchmark}"),
        "items": items, "template_digest": digest_text("template"), "seed": 7,
        "strategy": {"exam": "likelihood", "exam_vote": "self_consistency"}.get(benchmark, "direct"),
        "shots": 0, "members": MEMBERS if benchmark == "exam_vote" else 1,
    }  # fmt: skip


def measured(source: Source, items: int) -> Measured:
    """One model on one benchmark: its rows, and the scores from them."""
    metric, better, way, clustered = WAYS[source.benchmark]
    told = protocol(source.benchmark, items)
    rows = []
    for at in range(items):
        difficulty, gold = float(source.shared.random()), LETTERS[int(source.shared.integers(0, 4))]
        found = way(source, gold, difficulty)
        meta: dict[str, Any] = (
            {"cluster": f"base-{at // STYLES:06d}", "style": f"style {at % STYLES}"} if clustered else {}
        )
        meta |= {"topic": TOPICS[at % len(TOPICS)]} if clustered else {}
        row = Row(id=f"{source.benchmark}-{at:07d}", source=f"made/{source.benchmark}", licence="cc0-1.0", meta=meta)
        rows.append(item_row(
            row, source.model, source.benchmark, metric, told, found.get("outcome", "answered"), found["value"],
            gold=gold if metric == "accuracy" else "", prediction=found["prediction"], meta=meta | found["meta"],
            output=found["output"], prompt_tokens=180, completion_tokens=len(found["output"]) // 4,
        ))  # fmt: skip
    scores = [score_record(source.benchmark, told, rows, metric, better=better)]  # type: ignore[arg-type]
    if source.benchmark == "exam":
        right = [float(i.meta["text_letter"] == i.gold) for i in rows]
        scores.append(score_record(source.benchmark, told, rows, "text_accuracy", values=right))
        for name in ("nll_token", "nll_byte"):
            nats = [float(i.meta[name]) for i in rows]
            scores.append(score_record(source.benchmark, told, rows, name, values=nats, better="lower", unit="nats"))
    for score in scores:
        score |= {"model": source.model, "model_digest": digest_text(source.model)}
    return Measured(told, rows, scores)


def make(root: Path, name: str, items: int) -> None:
    """One artifact: `items` rows of its models."""
    questions, _ = load_rows(starter_path("starter/medical_mcq"), source="starter/medical_mcq")
    texts = [q.explanation or q.question for q in questions if isinstance(q, Question)]
    sentences = [s.strip() + "." for text in texts for s in text.split(". ") if len(s) > 20]
    models = ARTIFACTS[name]
    found = {
        model: [
            measured(Source(model, b, sentences), round(items * share / len(models))) for b, share in SHARES.items()
        ]
        for model in models
    }
    store = Store(root / "large-logs")
    store.folder.mkdir(parents=True, exist_ok=True)
    folder = store.begin(name)
    scores = [score for each in found.values() for one in each for score in one.scores]
    _write(SimpleNamespace(out=folder), list(SHARES), found, scores, neighbours(found), [])  # type: ignore[arg-type]
    manifest = {
        "fingerprint": digest_text(f"large logs {name} {items}"), "kind": "scores", "step": name,
        "verb": "evaluate", "version": 3, "parameters": {"models": list(models)}, "settings": {"seed": 7}, "seed": 7,
        "inputs": {}, "ledger": [], "tokens": {}, "wall_seconds": 1.0, "peak_memory_bytes": 1, "energy": None,
        "machine": machine(), "code": {"aloe": __version__}, "versions": library_versions(),
        "summary": {"models": list(models), "items": sum(len(one.items) for each in found.values() for one in each)},
    }  # fmt: skip
    store.finish(folder, "evaluate", name, manifest)


# -- what is measured --------------------------------------------------------------------------------------------------


def timed(name: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """A command of `aloe` in a process of its own."""
    begin = time.monotonic()
    with open(folder / "said.txt", "wb") as said:
        process = subprocess.Popen([sys.executable, "-m", "aloe", *arguments], stdout=said, stderr=said, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"aloe {' '.join(arguments)}: {(folder / 'said.txt').read_text()[-2000:]}")
    found = {"command": name, "seconds": round(seconds, 2), "peak_bytes": usage.ru_maxrss * 1024,
             "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2)}  # fmt: skip
    print(f"{name:<34} {seconds:7.1f} s  {found['processor_seconds']:7.1f} s cpu  {usage.ru_maxrss / 1e6:6.2f} GB",
          file=sys.stderr)  # fmt: skip
    return found


def commands(root: Path) -> Iterator[tuple[str, list[str], str]]:
    """(name, arguments, page written or "")."""
    first, last = (str(root / "large-logs" / name) for name in ARTIFACTS)
    pair = [f"{first}#base", f"{last}#aligned"]
    yield "compare, terminal", ["compare", *pair], ""
    yield "compare, all metrics", ["compare", *pair, "--metric", "all"], ""
    files = ["--html", "compare.html", "--csv", "compare.csv", "--json", "compare.json"]
    yield "compare, HTML, CSV and JSON", ["compare", *pair, "--flips", "20", *files], "compare.html"
    yield "compare of one artifact's models", ["compare", last], ""
    yield "report of one artifact", ["report", last, "-o", "one.html"], "one.html"
    yield "report of the run", ["report", str(root / "large-logs"), "-o", "run.html"], "run.html"
    yield "verify of one artifact", ["verify", last], ""


def opened(page: Path, folder: Path) -> dict[str, Any]:
    """What a browser makes of a page: time to load, to search and to filter, and what the page says of its rows."""
    from chromium import Browser
    from report_size import FILTER, SEARCH, START

    with Browser(folder / "profile") as browser:
        browser.open(page, 1280, 900)
        found: dict[str, Any] = {"page_bytes": page.stat().st_size, "load_ms": float(browser.run(START))}
        if browser.run("Boolean(document.getElementById('t-search'))"):
            said = browser.run("[...document.querySelectorAll('#transcripts .note')].map(e => e.textContent)")
            found["shown"] = next(" ".join(note.split()) for note in said if " transcripts of " in note)
            searches = browser.run(SEARCH % json.dumps(["Answer", "exam-0004711", "zzz", ""]))
            found["search_ms"] = max(float(ms) for _, ms, _ in searches)
            found["filter_ms"] = max(float(ms) for ms in browser.run(FILTER))
        assert browser.trouble == [], browser.trouble
    return found


def run(root: Path, items: int, repeats: int) -> dict[str, Any]:
    for name in ARTIFACTS:
        if not (root / "large-logs" / name).exists():
            own = [sys.executable, __file__, "--make", name, "--items", str(items), "--folder", str(root)]
            subprocess.run(own, check=True)  # in a process of its own: its memory goes with it
    found = []
    for name, arguments, page in commands(root):
        rounds = [timed(name, arguments, root) for _ in range(repeats)]
        typical = sorted(rounds, key=lambda one: one["seconds"])[len(rounds) // 2]
        typical["all_seconds"] = [one["seconds"] for one in rounds]
        found.append(typical | ({"page": opened(root / page, root)} if page else {}))
    artifacts = [root / "large-logs" / name for name in ARTIFACTS]
    return {
        "items": sum(json.loads((a / "manifest.json").read_text())["summary"]["items"] for a in artifacts),
        "file_bytes": [(a / "items.parquet").stat().st_size for a in artifacts], "commands": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where the artifacts are made, or lie; kept. Default: removed.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large_logs.json")
    parser.add_argument("--make", choices=ARTIFACTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    items, repeats = (20_000, 1) if options.quick else (options.items, options.repeats)
    if options.make:
        return make(options.folder, options.make, options.items // 2)
    with tempfile.TemporaryDirectory() as place:
        told = run((options.folder or Path(place)).resolve(), items, repeats)
    worst = {key: max(float(c[key]) for c in told["commands"]) for key in BOUNDS}
    result = {
        "name": "large_logs", "unit": "seconds", "ours": worst["seconds"], "peer": "bound", "peer_version": None,
        "peer_value": BOUNDS["seconds"], "ratio": BOUNDS["seconds"] / worst["seconds"],
        "spread": [min(c["seconds"] for c in told["commands"]), worst["seconds"]], "worst": worst, "bounds": BOUNDS,
        "held": {key: worst[key] <= BOUNDS[key] for key in BOUNDS}, **told, "repeats": repeats,
        "shares": SHARES, "load": os.getloadavg()[0], "machine": machine(), "aloe": __version__,
        "versions": library_versions(),
    }  # fmt: skip
    if not options.quick:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
