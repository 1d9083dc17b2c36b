"""The near-duplicate stage against datatrove's and text-dedup's MinHash: rows/s, F1, peak memory, growth with rows.

    python benchmarks/dedup.py [--quick] [--out FILE] [--rows N] [--peer-rows N] [--rounds N] [--workers N] [--work DIR]

Sets, from `near_duplicates.py`: the 36,000 real rows of MedQuAD, doctor_forum and medical_mcq, and N rows made from
them by keyed perturbation (a million; quick: 20,000 for all, 100,000 for ours alone). Peers run from `peers.sh`'s
environments, each side in a process of its own, with the same number of workers, alternating; a side's time is from the
opened file to the written file of kept rows, imports left out. Where `--peer-rows` is under N, peers are timed on that
many made rows, and ours on the same ones beside them; the result says so.

Checked before timing: that all sides have the same shingles (ours and a plain count of word 5-grams agree on every row
of a sample; peers' tokenisers are set so that they cut the same words), and that the truth of a small made set, known
by construction, is what an exact join over all its pairs gives.

F1 counts rows removed, whichever row of a cluster a side keeps: of a true cluster of k rows k - 1 should go. r of them
gone count min(r, k - 1) right, r - min(r, k - 1) wrong, k - 1 - min(r, k - 1) missed. Truth is measured exact Jaccard
similarity at 0.72 (`near_duplicates.py`). `ratio` is the smallest over sets and peers of the median over rounds of
ours / peer in rows/s; `spread` the range of that quotient over its rounds. Peak memory is the resident size of the
side's whole process tree, sampled; pages shared by forked processes count once in each.

Exit code 1 if a figure misses its target: ratio 3, F1 under a peer's, 3 GB at the largest set, and, but for `--quick`,
time per row growing by 1.15 from a tenth of the rows to all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import near_duplicates
import numpy as np
import psutil

from aloe.data.dedup import Document
from aloe.data.dedup import near_duplicates as near
from aloe.data.shingles import hashed
from aloe.run.execute import machine

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("ALOE_PEERS", Path.home() / ".cache" / "aloe-peers"))
NAMES = ("text-dedup", "datatrove")
RATIO, MEMORY_GB, GROWTH = 3.0, 3.0, 1.15  # targets


# ---------------------------------------------------------------------------------------------- our side


class Rows(Sequence[Document]):
    """The documents of a file of rows, made as they are read, none kept. Texts go in as they stand: the stage cuts
    them into words itself, as the peers do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as handle:
            self.starts = np.cumsum([0, *map(len, handle)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Document]:
        with open(self.path, encoding="utf-8") as handle:
            yield from map(self._document, handle)

    def __getitem__(self, i: int) -> Document:  # type: ignore[override]
        with open(self.path, "rb") as handle:
            handle.seek(self.starts[i])
            return self._document(handle.readline().decode())

    @staticmethod
    def _document(line: str) -> Document:
        row = json.loads(line)
        text = row["text"]
        return Document(id=row["id"], family="qa", exact=text, texts={"full": text}, length=len(text))


def ours(folder: Path, out: Path, workers: int) -> dict[str, Any]:
    """Remove near-duplicates; write the rows that stay."""
    began = time.perf_counter()
    found = near(Rows(folder / "rows.jsonl"), qa=near_duplicates.THRESHOLD, scratch=out, workers=workers)
    gone = {d.index for d in found.duplicates}
    with open(folder / "rows.jsonl", "rb") as rows, open(out / "kept.jsonl", "wb") as kept:
        kept.writelines(line for k, line in enumerate(rows) if k not in gone)
    seconds = time.perf_counter() - began
    with open(out / "kept.jsonl", "rb") as kept:
        (out / "kept.txt").write_text("\n".join(json.loads(line)["id"] for line in kept))
    return {
        "seconds": seconds, "candidates": found.candidates, "confirmed": found.confirmed,
        "large_buckets": found.large_buckets, "scheme": found.scheme,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- measuring


def side(name: str, folder: Path, work: Path, workers: int) -> dict[str, Any]:
    """Run one side on a folder of rows: seconds, rows/s, peak memory, precision, recall, F1."""
    shutil.rmtree(out := work / "out", ignore_errors=True)
    out.mkdir(parents=True)
    python = sys.executable if name == "ours" else str(PEERS / name / "bin" / "python")
    script = [str(HERE / "dedup.py"), "--side"] if name == "ours" else [str(HERE / "dedup_peers.py"), name]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": str(workers)}
    with open(work / "log.txt", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [python, *script, str(folder), str(out), str(workers)],
            stdout=subprocess.PIPE, stderr=log, text=True, cwd=out, env={**os.environ, **threads},
        )  # fmt: skip
        peak = Peak(process.pid)
        printed, _ = process.communicate()
        peak.stop()
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"{name} failed on {folder.name}: {log.read()[-2000:]}")
    result = json.loads(printed.strip().splitlines()[-1])
    truth = np.load(folder / "truth.npy")
    kept = np.array([int(k) for k in (out / "kept.txt").read_text().split()])
    shutil.rmtree(out)
    return {
        **result, "rows_per_s": len(truth) / result["seconds"], "peak_gb": peak.bytes / 1e9, **score(truth, kept),
    }  # fmt: skip


class Peak(threading.Thread):
    """Largest resident size of a process and its children, ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes, self._process, self._over = 0, psutil.Process(pid), threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.1):
            total = 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    total += process.memory_info().rss
            except psutil.Error:  # one of them ended meanwhile
                pass
            self.bytes = max(self.bytes, total)

    def stop(self) -> None:
        self._over.set()
        self.join()


def score(truth: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of the removed rows; see the module's docstring."""
    names, cluster = np.unique(truth, return_inverse=True)
    size = np.bincount(cluster, minlength=len(names))
    gone = size - np.bincount(cluster[kept], minlength=len(names))
    right = np.minimum(gone, size - 1).sum()
    precision, recall = right / max(gone.sum(), 1), right / max((size - 1).sum(), 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-12)
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def prepare(folder: Path, rows: int | None, workers: int) -> Path:
    """The real set (`rows` None) or a made one, unless it is there, with its rows also in one part per worker."""
    name = folder / ("real" if rows is None else f"made-{rows}")
    if not (name / "truth.npy").exists():
        if rows is None:
            near_duplicates.real(name)
        else:
            near_duplicates.make(name, rows, workers)
    shutil.rmtree(name / "parts", ignore_errors=True)
    (name / "parts").mkdir()
    count = len(np.load(name / "truth.npy"))
    with open(name / "rows.jsonl", "rb") as lines:
        for k in range(workers):
            with open(name / "parts" / f"{k:02}.jsonl", "wb") as part:
                for _ in range(count * (k + 1) // workers - count * k // workers):
                    part.write(lines.readline())
    return name


def check(folder: Path) -> dict[str, int]:
    """That hashed shingles are word 5-grams, and that truth by construction is truth by exact join."""
    texts = [json.loads(line)["text"] for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]
    found = hashed(texts[:2000])
    for k, text in enumerate(texts[:2000]):
        plain = len(near_duplicates.grams(text.split()))
        if len(set(found.values[found.offsets[k] : found.offsets[k + 1]].tolist())) != plain:
            raise SystemExit(f"row {k}: our shingles are not its word 5-grams")
    joined = near_duplicates.components(len(texts), near_duplicates.exact_join(texts))
    truth = np.load(folder / "truth.npy")
    if partition(joined) != partition(truth):
        raise SystemExit("the made set's truth is not what an exact join gives")
    return {"rows": len(texts), "duplicates": len(texts) - len(np.unique(truth))}


def partition(labels: np.ndarray) -> set[tuple[int, ...]]:
    """The clusters of two rows and more."""
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    return {tuple(part.tolist()) for part in np.split(order, cuts) if len(part) > 1}


# ---------------------------------------------------------------------------------------------- the benchmark


def compare(folder: Path, work: Path, rounds: int, workers: int) -> dict[str, Any]:
    """All sides on one set, alternating; the order turns with each round."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *NAMES)}
    for k in range(rounds):
        for name in list(runs)[:: 1 if k % 2 == 0 else -1]:
            runs[name].append(side(name, folder, work, workers))
            report(f"{folder.name} round {k + 1}: {name}", runs[name][-1])
    quotients = {
        name: [a["rows_per_s"] / b["rows_per_s"] for a, b in zip(runs["ours"], runs[name], strict=True)]
        for name in NAMES
    }
    return {
        "rows": len(np.load(folder / "truth.npy")), "rounds": rounds, **{name: summary(r) for name, r in runs.items()},
        "ratio": {name: statistics.median(q) for name, q in quotients.items()},
        "spread": {name: [min(q), max(q)] for name, q in quotients.items()},
    }  # fmt: skip


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of time, the largest memory; the scores, which don't vary."""
    last = {k: v for k, v in runs[-1].items() if k != "scheme"}
    seconds = statistics.median(r["seconds"] for r in runs)
    speed = statistics.median(r["rows_per_s"] for r in runs)
    return {**last, "seconds": seconds, "rows_per_s": speed, "peak_gb": max(r["peak_gb"] for r in runs)}


def growth(small: Path, large: Path, work: Path, rounds: int, workers: int) -> dict[str, Any]:
    """Ours on two sizes, alternating: time per row of the large one over that of the small one."""
    runs: dict[Path, list[dict[str, Any]]] = {small: [], large: []}
    for _ in range(rounds):
        for folder in runs:
            runs[folder].append(side("ours", folder, work, workers))
            report(f"{folder.name}: ours", runs[folder][-1])
    a, b = summary(runs[small]), summary(runs[large])
    return {"small": a, "large": b, "per_row": a["rows_per_s"] / b["rows_per_s"], "target": GROWTH}


def report(what: str, result: dict[str, Any]) -> None:
    print(
        f"{what}: {result['seconds']:.1f} s, {result['rows_per_s']:.0f} rows/s, {result['peak_gb']:.2f} GB, "
        f"F1 {result['f1']:.4f}",
        file=sys.stderr,
        flush=True,
    )


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything, as the JSON that is printed and stored."""
    rows, small = (100_000, 20_000) if args.quick else (args.rows, max(args.rows // 10, 20_000))
    peer_rows = small if args.quick else min(args.peer_rows or rows, rows)
    data = args.work or work
    checked = check(prepare(data, 20_000, args.workers))
    sets = {f"made_{peer_rows}": compare(prepare(data, peer_rows, args.workers), work, args.rounds, args.workers)}
    if not args.quick:
        sets["real"] = compare(prepare(data, None, args.workers), work, args.rounds, args.workers)
    two = (prepare(data, n, args.workers) for n in (small, rows))
    scaling = growth(*two, work, args.rounds, args.workers)
    ratio, name, where = min((s["ratio"][peer], peer, key) for key, s in sets.items() for peer in NAMES)
    worst = sets[where]
    return {
        "name": "dedup", "unit": "rows/s", "quick": args.quick, "workers": args.workers,
        "ours": round(worst["ours"]["rows_per_s"]), "peer": name, "peer_version": worst[name]["version"],
        "ratio": round(ratio, 2), "spread": [round(x, 2) for x in worst["spread"][name]],
        "set": where, "peers_timed_on_made_rows": peer_rows, "rows": rows,
        "f1": {key: {side: round(s[side]["f1"], 5) for side in ("ours", *NAMES)} for key, s in sets.items()},
        "peak_gb": round(scaling["large"]["peak_gb"], 3), "growth": round(scaling["per_row"], 3),
        "checked": checked, "sets": sets, "scaling": scaling, "machine": machine(),
    }  # fmt: skip


def missed(result: dict[str, Any]) -> list[str]:
    """Targets that the result misses."""
    found = [f"ratio {result['ratio']}"] if result["ratio"] < RATIO else []
    found += [f"F1 on {key} {f1}" for key, f1 in result["f1"].items() if f1["ours"] < max(f1.values())]
    found += [f"peak {result['peak_gb']} GB"] if result["peak_gb"] >= MEMORY_GB else []
    found += [f"growth {result['growth']}"] if result["growth"] > GROWTH and not result["quick"] else []
    return found


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(ours(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under five minutes on two cores")
    parser.add_argument("--out", type=Path, help="also write the result here")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large made set")
    parser.add_argument("--peer-rows", type=int, help="made rows that peers are timed on; default: all")
    parser.add_argument("--rounds", type=int, help="default: 3, quick 1")
    parser.add_argument("--workers", type=int, default=2, help="of each side")
    parser.add_argument("--work", type=Path, help="keep the sets here, and use those that are there")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    for name in NAMES:
        if not (PEERS / name / ".ready").exists():
            raise SystemExit(f"{name} is not installed below {PEERS}: run `make peers`")
    with tempfile.TemporaryDirectory() as work:
        result = measure(args, Path(work))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    if misses := missed(result):
        raise SystemExit(f"missed: {'; '.join(misses)}")


if __name__ == "__main__":
    main()
