"""Keep what this aloe writes, for the tests of all later ones: `make fixture` at every release.

    python benchmarks/upgrade_fixture.py [--out FILE]

Runs the demo's steps on the fault tests' rows (`faults/tiny.py`) and a model smaller still, and packs the family's
artifacts with their weights, its request ledger, the recipe with its inputs, an exemplar store, a calibration and sizes
chosen by a budget. `tests/test_upgrades.py` opens every such archive with the aloe of the day. One that was released is
never made again: its bytes are what users have.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "faults"))

import tiny

from aloe import __version__
from aloe.schema import LATEST

OUT = tiny.ROOT / "tests" / "fixtures"
MOST = 300_000  # bytes of an archive
BUDGET = 7200.0  # seconds, for the choice of sizes
SMALLER = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
           "num_key_value_heads": 2}  # fmt: skip
LESSONS = 400
KEPT = ("requests.sqlite",)  # of `.cache`; the rest is made again from what made it


def small_model() -> None:
    """Have `tiny` make a model of a tenth of the size, and teach it longer."""
    import transformers

    usual = transformers.LlamaConfig

    def config(**given: Any) -> Any:
        return usual(**{**given, **SMALLER})

    transformers.LlamaConfig = config  # type: ignore[assignment,misc]
    tiny.LESSONS = LESSONS


def make(root: Path) -> None:
    """Write everything below `root`, with references that name no place on this machine."""
    small_model()
    recipe = tiny.tiny_recipe(root / "in")
    text = recipe.read_text(encoding="utf-8").replace(f"{root / 'in'}/", "")
    recipe.write_text(text, encoding="utf-8")
    aloe = [sys.executable, "-m", "aloe"]
    calls = [
        [*aloe, "run", "in/recipe.yaml", "--out", "out", "--quiet"],
        [*aloe, "exemplars", "build", "in/rows/medical_mcq.jsonl", "exemplars", "--embedder", "tfidf"],
    ]
    for call in calls:
        subprocess.run(call, cwd=root, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    calibrate(root / "calibration.json")
    choose_sizes(root)
    about = {"aloe": __version__, "schemas": LATEST}
    (root / "about.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def calibrate(path: Path) -> None:
    """The rule judge's packaged counts as a file of a user's own."""
    from aloe.safety.calibration import packaged, save

    found = packaged("rules")
    assert found is not None
    save(path, [found])


def choose_sizes(root: Path) -> None:
    """A choice of `--budget`, by the code that makes it."""
    from aloe.recipe import Recipe
    from aloe.run.sizing import sized

    recipe = root / "in" / "recipe.yaml"
    ranges = {"helpful.max_pairs": (4, 12)}
    sized(lambda given: Recipe.load(recipe, given), ranges, BUDGET, root / "sizes", where=str(recipe))


def pack(root: Path, out: Path) -> int:
    """Write the archive: sorted, without times and owners; its bytes."""
    with tarfile.open(out, "w:xz", preset=9) as archive:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            cached = ".cache" in name.parts and path.name not in KEPT
            if cached or path.name == "lock" or (path.is_dir() and not path.is_symlink()):
                continue
            entry = archive.gettarinfo(path, str(name))
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            archive.addfile(entry, io.BytesIO(path.read_bytes()) if entry.isreg() else None)
    return out.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT / f"aloe-{__version__}.tar.xz")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="aloe-fixture-") as aside:
        make(Path(aside))
        size = pack(Path(aside), options.out)
    print(f"{options.out}: {size:,} bytes")
    if size > MOST:
        print(f"over {MOST:,} bytes: make the model or the rows fewer", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
