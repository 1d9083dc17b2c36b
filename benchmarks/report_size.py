"""How large the report's page gets with ten thousand items, and how quickly its browser of transcripts answers.

    python benchmarks/report_size.py [--quick] [--out FILE]

Two pages are made: one of a red team (ten thousand prompts, three models), one of scores (ten thousand questions, four
checkpoints side by side). Each is opened in headless Chromium as written, at a desktop's and a phone's width, and
asked: a search (the 120 ms that it waits for more typing included), a filter, a key. Texts are those of the tests,
harmless and invented. There is no peer, as no other tool shows the same; the bound beside each figure is ours. Beside
wall time stands the processor time of the page's main thread, which a busy machine distorts less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "report"))

from chromium import Browser  # noqa: E402
from fake_release import FakeRun  # noqa: E402
from fake_transcripts import FILLER, make_red_team, rows  # noqa: E402

from aloe import __version__  # noqa: E402
from aloe.digests import digest_text  # noqa: E402
from aloe.report import write_report  # noqa: E402
from aloe.run.execute import machine  # noqa: E402

BOUNDS = {"search_ms": 1000.0, "filter_ms": 1000.0, "key_ms": 100.0, "load_ms": 4000.0}
CHECKPOINTS = ("base", "sft", "merged", "aligned")
SEARCHES = ("pharmacist", "4711", "nurse tell 33", "zzz", "")
SEARCH = """(async () => {
  const box = document.getElementById('t-search'), status = document.getElementById('t-status'), taken = [];
  for (const text of %s) {
    status.textContent = ''; box.value = text;
    const start = performance.now();
    box.dispatchEvent(new Event('input'));
    while (!status.textContent) await new Promise(done => setTimeout(done, 1));
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    taken.push([text, performance.now() - start, status.textContent]);
  }
  return taken })()"""
FILTER = """(() => {
  const select = document.getElementById('t-verdict'), taken = [];
  for (const option of [...select.options]) {
    const start = performance.now();
    select.value = option.value; select.dispatchEvent(new Event('change')); void document.body.offsetHeight;
    taken.push(performance.now() - start);
  }
  document.getElementById('t-clear').click();
  return taken })()"""
START = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


def score_rows(n: int) -> Iterator[dict[str, Any]]:
    """`n` questions, each answered by every checkpoint."""
    for at in range(n):
        for place, model in enumerate(CHECKPOINTS):
            right = int(digest_text(f"{at} {model}")[:4], 16) < (place + 2) * 10_000
            text = f"{model} on case {at}. {FILLER} {FILLER[: at * 37 % 180]} Answer: {'A' if right else 'B'}"
            meta = {"topic": ("triage", "dosing", "pregnancy")[at % 3]}
            yield {
                "id": f"{model}{at}", "source": "invented", "licence": "cc0-1.0", "meta": json.dumps(meta),
                "item": f"q{at:05d}", "model": model, "benchmark": "exam", "metric": "accuracy", "protocol": "p",
                "outcome": "answered", "value": float(right), "gold": "A", "prediction": "A" if right else "B",
                "output": text, "prompt_tokens": 90, "completion_tokens": 60,
            }  # fmt: skip


def make(kind: str, root: Path, items: int) -> Path:
    """The artifact whose page is measured."""
    if kind == "red_team":
        return make_red_team(root, list(rows(items))).path
    table = {"models": list(CHECKPOINTS), "benchmarks": ["exam"], "scores": []}
    files = {"scores.json": table, "items.parquet": list(score_rows(items))}
    run = FakeRun(root)
    return run.step("scores", "evaluate", "scores", files, parameters={"models": list(CHECKPOINTS)}).path


def written(kind: str, items: int, limited: bool, root: Path) -> dict[str, Any]:
    """Time, memory and size of a page, made in a process of its own so that its memory is its own."""
    process = subprocess.run(
        [sys.executable, __file__, "--one", kind, str(items), str(int(limited)), str(root)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(process.stdout.splitlines()[-1]))


def write_one(kind: str, items: int, limited: bool, root: Path) -> None:
    """The child of `written`."""
    folder = make(kind, root / "made", items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.perf_counter(), time.process_time()
    page = write_report(folder, root / "page.html", *([] if limited else [None]))
    wall, processor = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {"wall_seconds": wall, "processor_seconds": processor, "page_bytes": page.stat().st_size,
            "peak_memory_bytes": peak * 1024, "peak_memory_before_bytes": before * 1024}  # fmt: skip
    print(json.dumps(told))


def used(browser: Browser) -> float:
    """Processor seconds that the page's main thread has taken."""
    found = browser.send("Performance.getMetrics")["metrics"]
    return float(next(m["value"] for m in found if m["name"] == "TaskDuration"))


def asked(browser: Browser, page: Path, width: int) -> dict[str, Any]:
    """What the browser of transcripts takes on one page."""
    browser.trouble.clear()
    browser.open(page, width, 900)
    load = float(browser.run(START))
    before = used(browser)
    searches = browser.run(SEARCH % json.dumps(SEARCHES))
    between = used(browser)
    filters = browser.run(FILTER)
    after = used(browser)
    browser.run("document.getElementById('t-list').focus()")
    keys = []
    for key in ("ArrowDown",) * 20 + ("PageDown",) * 8 + ("End", "Home"):
        begin = time.perf_counter()
        browser.press(key)
        browser.run("document.body.offsetHeight")
        keys.append((time.perf_counter() - begin) * 1000)
    assert browser.trouble == [], browser.trouble
    return {
        "width": width,
        "load_ms": load,
        "search_ms": statistics.median(ms for _, ms, _ in searches),
        "search_ms_worst": max(ms for _, ms, _ in searches),
        "searches": [{"text": text, "ms": ms, "status": said} for text, ms, said in searches],
        "search_processor_ms": (between - before) * 1000 / len(searches),
        "filter_processor_ms": (after - between) * 1000 / (len(filters) + 1),
        "filter_ms": statistics.median(filters),
        "filter_ms_worst": max(filters),
        "key_ms": statistics.median(keys),
        "key_ms_worst": max(keys),
        "list_elements": browser.run("document.querySelectorAll('#t-list li').length"),
        "heap_bytes": browser.run("performance.memory.usedJSHeapSize"),
        "page_scrolls_sideways": browser.run("document.documentElement.scrollWidth") > width,
    }


def measured(kind: str, items: int, limited: bool, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        root = Path(place)
        told = written(kind, items, limited, root)
        rounds: list[list[dict[str, Any]]] = []
        with Browser(root / "profile") as browser:
            browser.send("Performance.enable", timeDomain="threadTicks")
            for _ in range(repeats):
                rounds.append([asked(browser, root / "page.html", width) for width in (1280, 390)])
            notes = browser.run("[...document.querySelectorAll('#transcripts .note')].map(e => e.textContent)")
        shown = next(note for note in notes if " transcripts of " in note)
        return {"kind": kind, "items": items, "limited": limited, "shown": " ".join(shown.split()), **told,
                "at": [typical(found) for found in zip(*rounds, strict=True)]}  # fmt: skip


def typical(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The repeat with the median search time."""
    return sorted(found, key=lambda one: one["search_ms"])[len(found) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "report_size.json")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, items, limited, root = options.one
        return write_one(kind, int(items), limited == "1", Path(root))
    items, repeats = (1000, 1) if options.quick else (10_000, 3)
    pages = [measured(kind, items, limited, repeats) for kind in ("red_team", "scores") for limited in (True, False)]
    worst = {field: max(at[field] for page in pages for at in page["at"]) for field in BOUNDS}
    result = {
        "name": "report_size", "unit": "milliseconds a search", "ours": worst["search_ms"], "peer": "bound",
        "peer_version": None, "peer_value": BOUNDS["search_ms"], "ratio": BOUNDS["search_ms"] / worst["search_ms"],
        "spread": [min(at["search_ms"] for p in pages for at in p["at"]), worst["search_ms"]], "worst": worst,
        "bounds": BOUNDS, "held": {k: worst[k] <= BOUNDS[k] for k in BOUNDS}, "pages": pages,
        "load": os.getloadavg()[0], "machine": machine(), "aloe": __version__,
    }  # fmt: skip
    if not options.quick:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
