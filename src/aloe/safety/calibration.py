"""How often a judge is right, on replies that people labelled, and what that does to a rate it reports.

A calibration is four counts. The packaged ones (`calibrations.json`) are those of the packaged judges on a public set
they were not made from; `aloe judge calibrate` makes one from labels of your own. Neither knows your target model: a
judge's errors depend on who wrote the replies, so a correction is worth as much as the set is like what is judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, get_args

from aloe.errors import AloeError
from aloe.evaluate.intervals import wilson
from aloe.evaluate.judge_error import rogan_gladen
from aloe.safety.judging import Of
from aloe.schema import LATEST, check_object


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A judge against people: positives (unsafe, or declined in full or part) found and missed, negatives recognised
    and taken for positives. Replies without a verdict are in none of the four but in `unjudged`.

    Args:
        judge: its name.
        of: the question, `harm` or `refusal`.
        set: the labelled set, in words.
        digest: of the labelled rows.
        licence: of the set.
        identity: the judge as it was measured (`Judge.identity`).
    """

    judge: str
    of: Of
    tp: int
    fn: int
    tn: int
    fp: int
    set: str
    digest: str
    licence: str = "unknown"
    unjudged: int = 0
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def sensitivity(self) -> float:
        return self.tp / (self.tp + self.fn)

    @property
    def specificity(self) -> float:
        return self.tn / (self.tn + self.fp)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Wilson intervals of sensitivity and specificity."""
        return {
            "sensitivity": wilson(self.tp, self.tp + self.fn),
            "specificity": wilson(self.tn, self.tn + self.fp),
        }

    def caution(self, identity: Mapping[str, Any]) -> str | None:
        """Why this calibration may not speak for the judge in hand, or None: another name, version or model."""
        if identity.get("name") != self.judge:
            return f"the calibration is of the judge {self.judge!r}, not of {identity.get('name')!r}"
        other = [k for k, v in self.identity.items() if identity.get(k) != v]
        return f"the calibration was made with another {', '.join(sorted(other))} of this judge" if other else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def corrected(rate: Mapping[str, Any], calibration: Calibration) -> dict[str, Any] | None:
    """`rate` ({successes, n}) without the judge's errors (`rogan_gladen`): {value, low, high, apparent, sensitivity,
    specificity, usable, calibration}. None where nothing was judged. `usable` False: the judge is no better than a coin
    on the labelled set, and the interval is (0, 1)."""
    if not rate["n"]:
        return None
    c = calibration
    found = rogan_gladen(int(rate["successes"]), int(rate["n"]), tp=c.tp, fn=c.fn, tn=c.tn, fp=c.fp)
    return {**asdict(found), "calibration": calibration.as_dict()}


def packaged(judge: str, of: Of = "harm") -> Calibration | None:
    """The packaged calibration of a judge, or None: none was measured."""
    return next((c for c in _packaged() if c.judge == judge and c.of == of), None)


@cache
def _packaged() -> tuple[Calibration, ...]:
    text = (files("aloe.safety") / "calibrations.json").read_text(encoding="utf-8")
    return _parse(json.loads(text), "calibrations.json")


def load(path: Path | str, judge: str, of: Of = "harm") -> Calibration:
    """The calibration of `judge` in a file that `aloe judge calibrate` wrote.

    Raises:
        AloeError: no such file, not such a file, or none of that judge and question in it.
    """
    place = Path(path)
    fix = f"make one: aloe judge calibrate LABELLED.jsonl --judge {judge} -o {place.name}"
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AloeError("there is no such calibration", where=str(place), fix=fix) from None
    except (OSError, UnicodeDecodeError, ValueError) as cause:
        raise AloeError(f"this is no calibration: {cause}", where=str(place), fix=fix) from None
    found = _parse(content, str(place))
    for calibration in found:
        if calibration.judge == judge and calibration.of == of:
            return calibration
    held = ", ".join(f"{c.judge} ({c.of})" for c in found) or "nothing"
    raise AloeError(f"holds no calibration of the judge {judge!r} on {of}, but {held}", where=str(place), fix=fix)


def save(path: Path, calibrations: list[Calibration], report: Mapping[str, Any] | None = None) -> None:
    """Write calibrations, with the report they come from beside them."""
    content = {
        "format": LATEST["calibration"],
        "calibrations": [c.as_dict() for c in calibrations],
        **dict(report or {}),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def _parse(content: Any, where: str) -> tuple[Calibration, ...]:
    check_object("calibration", content, where, "format")
    if not isinstance(content, dict) or "format" not in content or "calibrations" not in content:
        raise AloeError("this is no calibration file", where=where, fix="write it with aloe judge calibrate -o")
    return tuple(_one(row, f"{where}: calibrations[{i}]") for i, row in enumerate(content["calibrations"]))


def _one(row: Any, where: str) -> Calibration:
    fix = "write the file with aloe judge calibrate -o, and don't edit the counts"
    try:
        found = Calibration(**row)
    except TypeError as cause:
        raise AloeError(f"a calibration's fields don't fit: {cause}", where=where, fix=fix) from None
    counts = (found.tp, found.fn, found.tn, found.fp, found.unjudged)
    if any(not isinstance(c, int) or isinstance(c, bool) or c < 0 for c in counts):
        raise AloeError(f"counts are whole numbers from 0: {counts}", where=where, fix=fix)
    if found.of not in get_args(Of):
        raise AloeError(f"no judge is asked about {cast('str', found.of)!r}", where=where, fix="harm or refusal")
    if not found.tp + found.fn or not found.tn + found.fp:
        raise AloeError("the labelled set had one class only", where=where, fix="calibrate on a set with both")
    return found
