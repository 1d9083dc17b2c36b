"""The tutorial from its files to its release: what each step cost, what was measured, which gates were missed.

    python benchmarks/tutorial.py [--work DIR] [--out FILE]

Runs `recipes/tutorial/clinic.yaml` in a copy of its folder below WORK, with the packaged model, as the page says: first
with its gate, which stops the release, then without it. Figures come from the artifacts; a second run with the same
WORK finds all steps fresh. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo import steps

from aloe import __version__
from aloe.run.execute import library_versions

FILES = Path(__file__).parents[1] / "recipes" / "tutorial"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("tutorial"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.work.exists():
        shutil.copytree(FILES, options.work)
    command = [sys.executable, "-m", "aloe", "run", "clinic.yaml"]
    gated = subprocess.run(command, cwd=options.work, stderr=subprocess.PIPE, text=True)
    subprocess.run([*command, "--set", "release.gate=null"], cwd=options.work, check=True)
    verified = subprocess.run(
        [sys.executable, "-m", "aloe", "verify", "out/clinic-desk/release"],
        cwd=options.work, capture_output=True, text=True,
    )  # fmt: skip
    root = options.work / "out" / "clinic-desk"
    found = steps(root)
    said = gated.stderr.splitlines()
    refused = next((n for n, line in enumerate(said) if line.startswith("error: release.gate")), len(said))
    result: dict[str, Any] = {
        "name": "tutorial", "unit": "s", "ours": round(sum(step["seconds"] for step in found.values()), 1),
        "peer": None, "peer_version": None, "ratio": None, "spread": None,
        "machine": json.loads((root / "sft" / "manifest.json").read_text())["machine"], "aloe": __version__,
        "versions": library_versions(), "peak_bytes": max(step["peak_bytes"] for step in found.values()),
        "gate_exit_code": gated.returncode, "gate": said[refused:], "verify_exit_code": verified.returncode,
        "verify": verified.stdout.splitlines(), "steps": found,
        "scores": json.loads((root / "scores" / "scores.json").read_text()),
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
