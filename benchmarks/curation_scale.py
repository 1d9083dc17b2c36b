"""The whole of curation on real files, stage by stage, and how time and memory grow with rows.

    python benchmarks/curation_scale.py [--quick] [--data DIR] [--rows 100000,1000000] [--short 5000000] [--out FILE]

First the training files below DIR (`train/*.jsonl.gz`) against its benchmarks (`eval/*.jsonl.gz`), every stage on that
needs no model server: clean, personal data (redacted), exact and near duplicates, decontamination, heuristic quality,
templates, mix. Then larger sets, made from the same files by keyed perturbation with known duplicates
(`near_duplicates.py`), through the same stages; those of `--short` are cut to 64 words, the length of an exam question,
so that five million of them and their stages fit on a small disk. Each run is the command line in a process of its own,
in an empty cache. `peak_bytes` is the largest resident size of one process as the kernel counts it, `all_own_bytes`
that of the run and its workers together, each without the pages it shares. No peer does the same work end to end, so
there is no ratio; the stages with a peer have benchmarks of their own. The last line printed is one JSON object.
`--quick` takes 20,000 rows only; `--only-made` leaves the real files out and keeps what OUT says of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from near_duplicates import make

from aloe import __version__
from aloe.run.execute import library_versions, machine

ROOT = Path(__file__).parents[1]
FILES = ("medical_mcq", "medquad", "doctor_forum", "mts_dialog", "general_instructions", "general_math")
ASKED = 12  # words of a made row that become its question
SHORT = 64  # words that a short row has at most
STAGE = re.compile(r"^  (\w+): \d+ rows")  # the line that a run says when a stage is done
BENCHMARKS = ("medmcqa_validation", "mmlu_medical_test", "pubmedqa_test", "mmlu_general_test", "gsm8k_test")


def cores() -> int:
    """Cores that this run may use, which `taskset` may leave fewer of than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recipe(sources: dict[str, dict[str, Any]], against: list[str]) -> dict[str, Any]:
    """One curate step with every stage that needs no model."""
    step = {
        "sources": sources, "decontaminate": {"against": against}, "phi": {"mode": "redact"},
        "quality": {"scorer": "heuristics", "drop_share": 0.1}, "max_dropped_share": 0.9,
    }  # fmt: skip
    return {"family": "curation-scale", "licence": "cc-by-nc-4.0", "seed": 7, "steps": {"corpus": {"curate": step}}}


class Memory:
    """Peaks of a process's memory, looked at twice a second, by stage: `own_bytes` is what only that process has,
    `resident_bytes` counts pages of mapped files too, which the kernel takes back when others need them, and
    `all_own_bytes` adds what only its workers have."""

    def __init__(self, pid: int) -> None:
        self.peaks: dict[str, dict[str, int]] = {}
        self._now: dict[str, int] = {}
        self._process, self._ended = psutil.Process(pid), False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended:
            with contextlib.suppress(psutil.Error):
                m = self._process.memory_info()
                own = m.rss - m.shared
                found = {"own_bytes": own, "resident_bytes": m.rss, "all_own_bytes": own + self._workers()}
                self._now = {name: max(self._now.get(name, 0), value) for name, value in found.items()}
            time.sleep(0.5)

    def _workers(self) -> int:
        total = 0
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                m = child.memory_info()
                total += m.rss - m.shared
        return total

    def stage_ended(self, name: str) -> None:
        """What was seen since the last stage is this one's."""
        self.peaks[name], self._now = self._now, {}

    def stop(self) -> None:
        """End the watching."""
        self._ended = True
        self._thread.join()


def curate(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the recipe; seconds, peak resident bytes, and what its manifest says."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    env = {**os.environ, "ALOE_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "aloe", "run", str(path), "--out", str(folder / "out")]
    begin = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    memory = Memory(process.pid)
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        if told := STAGE.match(line):
            memory.stage_ended(told[1])
    memory.stage_ended("end")  # files of the artifact
    memory.stop()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("curation failed")
    artifact = folder / "out" / "curation-scale" / "corpus"
    summary = json.loads((artifact / "manifest.json").read_text("utf-8"))["summary"]
    stages = json.loads((artifact / "stats.json").read_text("utf-8"))["stages"]
    return {
        "rows_read": summary["rows_read"], "rows": summary["rows"], "contaminated": summary["contaminated"],
        "seconds": round(seconds, 2), "rows_per_second": round(summary["rows_read"] / seconds, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
        "all_own_bytes": max(peak.get("all_own_bytes", 0) for peak in memory.peaks.values()),
        "stages": {
            name: {
                "seconds": seconds, "rows_in": stages[name]["rows_in"], "kept": stages[name]["kept"],
                "dropped": stages[name]["dropped"], **memory.peaks.get(name, {}),
            }
            for name, seconds in summary["seconds"].items()
        },
    }  # fmt: skip


def real(data: Path, folder: Path, limit: int | None) -> dict[str, Any]:
    """The real files."""
    sources = {str(data / "train" / f"{name}.jsonl.gz"): {"ids": "content"} for name in FILES}
    if limit:
        sources = {path: {**options, "limit": limit} for path, options in sources.items()}
    return curate(recipe(sources, [str(data / "eval" / f"{n}.jsonl.gz") for n in BENCHMARKS]), folder)


def made(data: Path, folder: Path, rows: int, most: int | None = None) -> dict[str, Any]:
    """A perturbed set of this many rows, cut to `most` words."""
    make(folder, rows, cores())
    path = folder / "made.jsonl"
    with open(folder / "rows.jsonl", encoding="utf-8") as lines, open(path, "w", encoding="utf-8") as out:
        for line in lines:
            row = json.loads(line)
            words = row["text"].split()[:most]  # an exchange, so that every stage has both sides to look at
            asked, said = " ".join(words[:ASKED]), " ".join(words[ASKED:])
            out.write(json.dumps({"id": row["id"], "question": asked, "answer": said}) + "\n")
    (folder / "rows.jsonl").unlink()  # the disk is for what is measured
    result = curate(recipe({str(path): {}}, [str(data / "eval" / f"{n}.jsonl.gz") for n in BENCHMARKS]), folder)
    cut = f", cut to {most} words" if most else ""
    return {"set": f"{rows} rows by keyed perturbation of the real files{cut}", **result}


def show(name: str, result: dict[str, Any]) -> None:
    """Stage times as a table."""
    print(
        f"{name}: {result['rows_read']} rows in {result['seconds']:.1f} s, {result['peak_bytes'] / 1e9:.2f} GB "
        f"at peak, {result['all_own_bytes'] / 1e9:.2f} GB with workers"
    )
    for stage, s in result["stages"].items():
        print(f"  {stage:<14} {s['seconds']:>8.1f} s  {s['rows_in']:>9} in {s['kept']:>9} kept  {s['dropped'] or ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", default="100000,1000000", help="sizes of the made sets; empty for none")
    parser.add_argument("--short", default="", help="sizes of the made sets of short rows")
    parser.add_argument(
        "--only-made", action="store_true", help="keep what --out holds of the real files and other sets"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.data.exists():
        raise SystemExit(f"no data in {options.data}: give --data")
    if options.only_made and not (options.out and options.out.exists()):
        raise SystemExit("--only-made adds to a file that is there: give --out")
    sets = [
        (int(n), most) for asked, most in ((options.rows, None), (options.short, SHORT)) for n in asked.split(",") if n
    ]
    before = json.loads(options.out.read_text("utf-8")) if options.only_made else {}
    first, grown = before.get("real"), before.get("made", [])
    with tempfile.TemporaryDirectory() as folder:
        if first is None:
            (Path(folder) / "real").mkdir()
            first = real(options.data, Path(folder) / "real", 4000 if options.quick else None)
            show("real files", first)
        for rows, most in sets if not options.quick else ():
            place = Path(folder) / str(rows)
            place.mkdir()
            found = made(options.data, place, rows, most)
            shutil.rmtree(place)
            grown = [*(old for old in grown if old["set"] != found["set"]), found]
            show(f"made, {rows}", found)
    result = {
        "name": "curation_scale", "unit": "rows/s", "ours": first["rows_per_second"], "peer": None,
        "peer_version": None, "ratio": None, "spread": None, "machine": {**machine(), "cores_used": cores()},
        "aloe": __version__, "versions": library_versions(), "quick": options.quick, "real": first, "made": grown,
    }  # fmt: skip
    text = json.dumps(result, ensure_ascii=False)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
