"""The demo as a user runs it: wall time and peak memory of the first run, of the second, and of one edited field.

    python benchmarks/demo.py [--quick] [--reproduce] [--out FILE]

Every run is the command line in a process of its own; memory is the peak resident size of that process and its
children as the kernel counts it. `--quick` plans only and runs nothing (the whole run takes about ten minutes).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from aloe import __version__
from aloe.recipe import Recipe
from aloe.run.execute import library_versions, machine

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "demo.yaml"


def timed(*arguments: str, env: dict[str, str], codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run `aloe` with these arguments; seconds, peak resident bytes, standard output."""
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as captured:
        process = subprocess.Popen([sys.executable, "-m", "aloe", *arguments], env=env, stdout=captured)
        _, status, usage = os.wait4(process.pid, 0)
        captured.seek(0)
        text = captured.read()
    if os.waitstatus_to_exitcode(status) not in codes:
        raise SystemExit(f"aloe {' '.join(arguments)} failed")
    return {"seconds": time.monotonic() - begin, "peak_bytes": usage.ru_maxrss * 1024, "output": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--reproduce", action="store_true", help="run the release's recipe again, too, and compare")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="folder to work in and leave behind, instead of a temporary one")
    options = parser.parse_args()
    kept = nullcontext(str(options.keep)) if options.keep else tempfile.TemporaryDirectory(dir=ROOT)
    with kept as folder:
        env = {**os.environ, "ALOE_HOME": str(Path(folder) / "home")}
        out = ["--out", str(Path(folder) / "out")]
        recipe = str(RECIPE)
        plan = timed("plan", recipe, *out, env=env)
        result: dict[str, Any] = {
            "name": "demo", "unit": "seconds", "ours": plan["seconds"], "peer": None, "peer_version": None,
            "ratio": None,
            "spread": None, "machine": machine(), "aloe": __version__, "versions": library_versions(),
            "plan_seconds": plan["seconds"],
        }  # fmt: skip
        if not options.quick:
            first, second = timed("run", recipe, *out, env=env), timed("run", recipe, *out, env=env)
            root = Path(folder) / "out" / Recipe.load(RECIPE).head.family
            made = {
                "steps": steps(root),
                "scores": json.loads((root / "scores" / "scores.json").read_text()),
                "comparisons": json.loads((root / "scores" / "comparisons.json").read_text()),
            }
            edit = "aligned.beta=0.2"
            edited_plan = timed("plan", recipe, *out, "--set", edit, env=env)
            edited = timed("run", recipe, *out, "--set", edit, env=env)
            result |= {
                "ours": first["seconds"],
                "first_run": {k: first[k] for k in ("seconds", "peak_bytes")},
                "second_run": {k: second[k] for k in ("seconds", "peak_bytes")},
                "edited_run": {"edit": edit, **{k: edited[k] for k in ("seconds", "peak_bytes")}},
                "edited_plan": edited_plan["output"].splitlines(),
                **made,
                "printed": [line.replace(str(Path(folder)) + "/", "") for line in first["output"].splitlines()],
            }
            if options.reproduce:  # the release is that of the edited run now
                told = Path(folder) / "reproduced.json"
                again = ["--out", str(Path(folder) / "again"), "--json", str(told)]
                timed(
                    "reproduce", str(root / "release"), *again, env=env, codes=(0, 1)
                )  # 1: something came out otherwise
                result["reproduced"] = json.loads(told.read_text())
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))


def steps(root: Path) -> dict[str, Any]:
    """What each step's manifest says of its cost."""
    found = {}
    for link in sorted(root.iterdir()):
        path = link / "manifest.json"
        if path.exists():
            m = json.loads(path.read_text())
            found[m["step"]] = {
                "verb": m["verb"], "seconds": m["wall_seconds"], "peak_bytes": m["peak_memory_bytes"],
                "tokens": m["tokens"],
            }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
