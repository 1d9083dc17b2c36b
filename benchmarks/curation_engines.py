"""Which engine should spread a curation over machines: files and jobs (`aloe.data.crew`, started by submitit), or Ray?

    python benchmarks/curation_engines.py [--quick] [--rows 16384] [--out FILE]

Both give the same work, the search for personal data in batches of rows that lie in a spool, to two workers on this
machine; one process does it too, and all results must be equal. Measured for each: seconds until the first result is
there, processor seconds of all processes together (wall time says little where workers share cores), and the memory
that the processes have beside the caller's (unique set size, at most seen). Ray is installed for this only. The last
line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from curation_scale import FILES, cores

from aloe import __version__
from aloe.data import crew, flow, phi, stages
from aloe.data.sources import Dropped, read_rows
from aloe.data.spool import BATCH, Item, Spool, SpoolWriter, View
from aloe.run.execute import library_versions, machine
from aloe.run.job import work

ROOT = Path(__file__).parents[1]
WORKERS = 2


def rows(data: Path, folder: Path, count: int) -> View:
    """A spool of the first real rows."""
    made = 0
    with SpoolWriter(folder / "rows.arrow") as writer:
        for name in FILES:
            for row in read_rows(data / "train" / f"{name}.jsonl.gz", source=name, ids="content"):
                if not isinstance(row, Dropped) and made < count:
                    writer.put(Item(row, name, 0))
                    made += 1
    return View(Spool(folder / "rows.arrow"))


LOOK = partial(flow._all, partial(stages._identified, kinds=tuple(phi.KINDS), allow=(), redact=True))


class Watch:
    """Processor seconds and memory of the processes below this one, Ray's daemons among them."""

    def __init__(self) -> None:
        self.before = {p.pid for p in psutil.process_iter()}
        self.peak, self._seconds, self._ended = 0, dict[int, float](), False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        mark = ("ray", "submitit", "aloe.data.crew")
        while not self._ended:
            total = 0
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if process.pid not in self.before and any(m in " ".join(process.cmdline()) for m in mark):
                        total += process.memory_full_info().uss
                        times = process.cpu_times()
                        self._seconds[process.pid] = times.user + times.system
            self.peak = max(self.peak, total)
            time.sleep(0.2)

    def stop(self) -> float:
        self._ended = True
        self._thread.join()
        return sum(self._seconds.values())


def measured(run: Callable[[], Iterator[Any]]) -> dict[str, Any]:
    """Run one way; its results and figures."""
    watch, mine = Watch(), time.process_time()
    begin = time.monotonic()
    results, first = [], None
    for result in run():
        first = first or time.monotonic() - begin
        results.append(result)
    wall = time.monotonic() - begin
    others = watch.stop()
    own = time.process_time() - mine
    return {
        "results": results, "first_result_seconds": round(first or 0, 2), "wall_seconds": round(wall, 2),
        "cpu_seconds": round(own + others, 2), "cpu_seconds_of_caller": round(own, 2), "workers_bytes": watch.peak,
    }  # fmt: skip


def by_crew(view: View, folder: Path) -> Iterator[Any]:
    """Two jobs of submitit's local executor, and the lead, which works too while it waits."""
    import submitit

    place = folder / "crew"
    place.mkdir()
    jobs = submitit.LocalExecutor(folder / "jobs")
    jobs.update_parameters(timeout_min=30)
    lead = crew.Crew(place)
    sent = jobs.map_array(work, [str(place)] * WORKERS)
    deadline = time.monotonic() + 120
    while len(list(place.glob("alive-*"))) < WORKERS and time.monotonic() < deadline:
        time.sleep(0.05)  # counted: it is what starting takes
    yield from lead.map(LOOK, view)
    lead.close()
    for job in sent:
        job.result()


def by_ray(view: View, folder: Path) -> Iterator[Any]:
    """Two workers of a Ray started here, given numbers of batches; they read the same spool."""
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="error")
    place = folder / "ray"
    place.mkdir()
    crew.write_work(place, LOOK, view)
    batch = ray.remote(lambda number: crew.opened(place)(number))
    waiting = [batch.remote(number) for number in range(-(-len(view) // BATCH))]
    for reference in waiting:
        yield ray.get(reference)
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, default=8 * BATCH)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import ray
    import submitit

    os.environ["SLURM_CPUS_PER_TASK"] = "1"  # a process for each of the two workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        view = rows(options.data, folder, 4 * BATCH if options.quick else options.rows)
        found = {
            "alone": measured(lambda: map(LOOK, view.batches())),
            "crew": measured(partial(by_crew, view, folder)),
            "ray": measured(partial(by_ray, view, folder)),
        }
    answers = {name: f.pop("results") for name, f in found.items()}
    if not answers["alone"] == answers["crew"] == answers["ray"]:
        raise SystemExit("the ways don't find the same")
    ours, peer = found["crew"], found["ray"]
    result = {
        "name": "curation_engines", "unit": "cpu seconds", "ours": ours["cpu_seconds"], "peer": peer["cpu_seconds"],
        "peer_version": f"ray {ray.__version__}", "ratio": round(peer["cpu_seconds"] / ours["cpu_seconds"], 3),
        "spread": None, "rows": len(view), "workers": WORKERS, "submitit": submitit.__version__,
        "machine": {**machine(), "cores_used": cores()}, "aloe": __version__, "versions": library_versions(),
        "quick": options.quick, "ways": found,
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
