"""`aloe merge CONFIG OUT`: a merge from one file, ours or mergekit's, into one folder; and what it would do.

The merge runs as a recipe of one step, as every verb alone does, beside OUT; the finished artifact, a Hugging Face
model folder with its manifest, is then put in OUT's place. A run that was killed leaves OUT as it was, and
goes on when the same command is given again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aloe.contract import Ref
from aloe.errors import AloeError
from aloe.merge import mergekit
from aloe.merge.explain import Planned, explain
from aloe.merge.step import Merge
from aloe.merge.stream import MergeJob
from aloe.recipe_file import parse_yaml, read_text


def split(parameters: Sequence[str]) -> tuple[Path | None, Path | None, list[str]]:
    """CONFIG, OUT and key=value parts of the command's arguments, which may stand without CONFIG or OUT."""
    plain = [part for part in parameters if "=" not in part or Path(part).exists()]
    settings = [part for part in parameters if part not in plain]
    if len(plain) > 2:
        fix = "aloe merge CONFIG OUT [key=value ...]"
        raise AloeError(f"{plain[2]!r} is one file too many", fix=fix)
    config, out = (*[Path(part) for part in plain], None, None)[:2]
    if config is not None and not config.is_file():
        fix = "name a YAML file of ours or mergekit's, or give the parameters as key=value"
        raise AloeError("no such file", where=str(config), fix=fix)
    return config, out, settings


def read_config(file: Path) -> dict[str, Any]:
    """The parameters of a merge from a YAML file of ours or mergekit's; what mergekit means otherwise is said."""
    value, lines = parse_yaml(read_text(file), str(file))
    if not isinstance(value, dict):
        fix = "docs/merge.md lists the keys of a merge; mergekit's YAML is read, too"
        raise AloeError("expected a map of parameters", where=str(file), fix=fix)
    if not mergekit.is_mergekit(value):
        return value
    converted = mergekit.read(value, str(file), lines)
    for note in converted.notes:
        print(f"note: {note}", file=sys.stderr)
    if converted.layers_needed is not None:
        mergekit.check_depth(converted, _layers(converted.parameters["base"]), str(file))
    return dict(converted.parameters)


def _layers(base: str) -> int:
    config = json.loads((_folder(base)[0] / "config.json").read_text(encoding="utf-8"))
    return int(config.get("num_hidden_layers") or config.get("n_layer") or 0)


def _folder(ref: str) -> tuple[Path, str]:
    from aloe.run.inputs import open_resource

    resource = open_resource(ref, Ref(("model",), "model", adapters=True), None).fetch()
    if resource.path is None or resource.digest is None:
        raise AloeError(f"{ref!r} is a server, which has no weights here", where="merge", fix="name a model folder")
    return resource.path, resource.digest


def explanation(values: Mapping[str, Any], seed: int) -> str:
    """What each tensor will get, without merging anything."""
    step = Merge.model_validate(dict(values))
    folders = {ref: _folder(ref) for ref in [step.base, *step.models]}
    base, _ = folders.pop(step.base) if step.base not in step.models else folders[step.base]
    paths, digests = ({ref: found[i] for ref, found in folders.items()} for i in (0, 1))
    job = MergeJob(step.numbers(), base, paths, digests, seed)  # type: ignore[arg-type]
    tensors = [
        Planned(
            name,
            shape,
            (job.base.tensors[name].dtype, *(model.tensors[name].dtype for model in job.models)),
            job.plans.get(name),
        )
        for name, (_, shape) in job.layout.items()
    ]
    return explain(tensors, method=step.method, base=step.base, models=job.refs, dtype=step.dtype)


def check_target(target: Path) -> None:
    """Refuse a place that holds anything but an earlier merge."""
    if not target.exists():
        if not target.parent.is_dir():
            raise AloeError("no such folder", where=str(target.parent), fix="make it, or choose another place")
        return
    if not target.is_dir():
        raise AloeError("this is a file", where=str(target), fix="name a new folder")
    if any(target.iterdir()) and not _is_earlier(target):
        what = "the folder exists and isn't an earlier merge of aloe"
        raise AloeError(what, where=str(target), fix="name a new folder, or empty this one")


def _is_earlier(target: Path) -> bool:
    try:
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        return manifest["verb"] in ("merge", "merge_search")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def workshop(target: Path) -> Path:
    """Where the artifact of a target is made: a hidden folder beside it, on the same disk."""
    return target.resolve().with_name(f".{target.resolve().name}.making")


def put_in_place(made: Path, target: Path) -> None:
    """Make a finished artifact the target, in one rename, and clear up."""
    target, room = target.resolve(), workshop(target)
    if target.exists():
        old = room / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(made, target)
    shutil.rmtree(room, ignore_errors=True)
