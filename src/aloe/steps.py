"""The table of verbs: the product's table of contents, in the order of the papers' sections."""

from __future__ import annotations

from aloe.contract import Step
from aloe.data.curate import Curate
from aloe.evaluate.step import Evaluate
from aloe.merge.step import Merge
from aloe.release.step import Release
from aloe.safety.pairs import RedTeamPairs
from aloe.safety.red_team import RedTeam
from aloe.synthesize.cot import Synthesize
from aloe.synthesize.preferences import PreferencePairs
from aloe.synthesize.rewrite import Rewrite
from aloe.train.dpo import Dpo
from aloe.train.sft import Sft

VERBS: dict[str, type[Step]] = {
    step.verb: step
    for step in (
        Curate, Synthesize, Rewrite, PreferencePairs, Sft, Merge, Dpo, RedTeamPairs, Evaluate, RedTeam, Release,
    )
}  # fmt: skip
