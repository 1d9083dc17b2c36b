"""What steps upstream trained or selected on: which styles, topics and base requests a red team still finds unseen.

`red_team_loop` measures every round on styles, topics and requests of its own and keeps a model by what it finds there.
`merge_search` chooses a merge by requests as well. A figure on these is optimistic afterwards, although nothing was
trained on them: they count as seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloe.contract import Context
from aloe.records import Preference
from aloe.rows import read_records
from aloe.safety.splits import holds

VERBS = ("red_team_pairs", "red_team_loop", "merge_search")
PAIRS = "rows.parquet"  # the preference pairs that such a step made, or trained on itself
LOOP = "loop.json"  # what a loop measured its rounds on
SEARCH = "search.json"  # what a merge was chosen by


@dataclass
class Seen:
    """Of the pairs that steps upstream made from harmful requests, and of what they chose a model by. `steps` are their
    names."""

    styles: set[str] = field(default_factory=set)
    topics: set[str] = field(default_factory=set)
    bases: set[str] = field(default_factory=set)
    steps: set[str] = field(default_factory=set)

    def unseen(self, styles: Iterable[str], topics: Iterable[str], bases: set[str]) -> dict[str, Any]:
        """What of these was neither trained nor selected on. A combination counts as seen when one of its parts is, and
        a style when it was seen in a combination."""
        parts = {part for s in self.styles for part in (s, *s.split("+"))}
        return {
            "styles": [s for s in styles if not holds(s, parts)],
            "topics": [t for t in topics if t not in self.topics],
            "trained_by": sorted(self.steps),
            "base_requests_seen_in_training": len(bases & self.bases),
        }


def held_out(ctx: Context) -> Seen:
    """What the steps that this one depends on trained and selected on."""
    seen = Seen()
    for name, manifest in ctx.manifests().items():
        if manifest.get("verb") not in VERBS:
            continue
        folder = ctx.folder(name)
        if manifest["verb"] == "merge_search":
            _selected((_told(folder / SEARCH).get("safety") or {}).get("selected_on"), name, seen)
            continue
        seen.steps.add(name)
        for pair in read_records(folder / PAIRS, Preference):
            if not pair.meta.get("benign"):
                seen.styles.add(str(pair.meta["style"]))
                seen.topics.add(str(pair.meta["topic"]))
                seen.bases.add(str(pair.meta["base_id"]))
        if (folder / LOOP).exists():  # pairs alone: nothing was chosen
            _selected(_told(folder / LOOP)["validation"], name, seen)
    return seen


def _told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _selected(told: Mapping[str, Any] | None, step: str, seen: Seen) -> None:
    """Add what a step chose its model by: a loop's rounds, a search's bound."""
    if told is None:  # a search without a bound, or one that was made before this was written down
        return
    seen.steps.add(step)
    seen.styles.update(map(str, told["styles"]))
    seen.topics.update(map(str, told["topics"]))
    seen.bases.update(map(str, told["base_requests"]))
