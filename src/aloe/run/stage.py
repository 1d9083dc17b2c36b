"""One stage of curation on a plain file, with what it needs from outside: `aloe curate --only STAGE IN OUT`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aloe.contract import Ref
from aloe.data.alone import Surroundings, run_stage
from aloe.data.flow import StageRecord
from aloe.generate.engine import Engine
from aloe.run.context import EnginePool
from aloe.run.inputs import open_resource, sidecar_licence
from aloe.run.progress import Console


def curate_stage(stage: str, source: Path, target: Path, values: Mapping[str, Any], seed: int, quiet: bool) -> None:
    """Run `stage` on `source`, write `target`, and print what happened on the way."""
    console = Console(quiet)
    pool = EnginePool("float32", 16, target.parent / f".{target.name}.cache")

    def path(ref: str) -> Path:
        found = open_resource(ref, Ref((), "rows"), None).fetch().path
        assert found is not None
        return found

    def engine(ref: str) -> Engine:
        model = open_resource(ref, Ref((), "model"), None).fetch()
        assert model.path is not None
        assert model.digest is not None
        return pool.get(model.path, ref, model.digest)

    def told(record: StageRecord, found: bool) -> None:
        reasons = "".join(f", {why} {n}" for why, n in record.dropped.items())
        console.line(f"{record.stage}: {record.rows_in} rows in, {record.kept} kept{reasons} ({record.seconds:.1f} s)")

    around, licence = Surroundings(path, engine), sidecar_licence(source)
    stats = run_stage(stage, source, target, values, seed=seed, around=around, told=told, licence=licence)
    before, after = stats["before"], stats["after"]
    words = {when: set_["words"]["assistant"]["mean"] for when, set_ in (("before", before), ("after", after))}
    console.line(f"rows {before['rows']} -> {after['rows']}, words of an answer {words['before']} -> {words['after']}")
    print(target)
