"""Coverage-guided fuzzing of the readers of untrusted input, with atheris.

    ~/.cache/aloe-peers/fuzz/bin/python benchmarks/fuzz/run.py TARGET [--seconds 60] [--corpus DIR] [--memory-mb 2048]

Atheris lives in an environment of its own (`python -m venv`, `pip install atheris`, and a `.pth` file that names this
project's site-packages); the product needs none of it. Each run starts from `seeds.py` and from what is kept in
`tests/hostile/corpus/TARGET`, and stops at the first finding, which libFuzzer writes as `crash-*` into the current
folder: mend it, then keep it in the corpus. The last line printed is one JSON object: inputs tried, seconds, coverage
(libFuzzer's count of edges reached in the product's own code).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / "tests" / "hostile" / "corpus"


def fuzz(target: str, arguments: list[str]) -> None:
    """In a process of its own: libFuzzer never comes back."""
    import atheris

    with atheris.instrument_imports(include=["aloe"]):
        from targets import check

    atheris.Setup([sys.argv[0], *arguments], lambda data: check(target, data))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="Folder that grows with what reaches new code; kept between runs.")
    parser.add_argument("--memory-mb", type=int, default=2048)
    parser.add_argument("--inside", nargs="*", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.inside is not None:
        fuzz(given.target, [*given.inside, *rest])
    sys.path.insert(0, str(HERE))
    from seeds import seeds

    corpus = given.corpus or Path(tempfile.mkdtemp(prefix=f"aloe-fuzz-{given.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds()[given.target]):
        (corpus / f"seed-{i}").write_bytes(seed)
    for kept in sorted((KEPT / given.target).glob("*")):
        (corpus / f"kept-{kept.name}").write_bytes(kept.read_bytes())
    start = time.monotonic()
    limits = [f"-max_total_time={given.seconds}", f"-rss_limit_mb={given.memory_mb}", "-timeout=30", "-max_len=65536"]
    command = [sys.executable, __file__, given.target, "--inside", str(corpus), *limits]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env={**os.environ, "PYTHONPATH": str(HERE)}
    )
    lines = done.stderr.splitlines() + done.stdout.splitlines()
    counts = [m for line in lines if (m := re.search(r"#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)", line))]
    if done.returncode:
        print("\n".join(lines[-40:]))
    tried, edges = (int(counts[-1][1]), int(counts[-1][2])) if counts else (0, 0)
    print(json.dumps({
        "target": given.target, "inputs": tried, "seconds": round(time.monotonic() - start, 1), "edges": edges,
        "kept": int(counts[-1][4]) if counts else 0, "finding": bool(done.returncode),
    }))  # fmt: skip
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
