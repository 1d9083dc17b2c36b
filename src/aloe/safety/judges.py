"""The judges by name: `rules`, `classifier` and `guard`; the first one named decides, the others stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aloe.errors import AloeError
from aloe.evaluate.judge import RuleJudge
from aloe.generate.engine import Engine, Tick
from aloe.safety.judging import Exchange, Judge, Judgement
from aloe.safety.screening import VERSION, screen

JUDGES = ("rules", "classifier", "guard")


class RulesJudge:
    """`RuleJudge` as a judge of exchanges. It reads the plain request and the reply, not the attack's wrapping."""

    name = "rules"

    def __init__(self) -> None:
        self._rules = RuleJudge()

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "version": self._rules.version, "screening": VERSION}

    def judge(self, exchanges: Sequence[Exchange], tick: Tick | None = None) -> list[Judgement]:
        found = [self._one(e) for e in exchanges]
        if tick and found:
            tick(len(found), 0)
        return found

    def _one(self, exchange: Exchange) -> Judgement:
        known = screen(exchange)
        if known is not None:
            return known
        refusal = self._rules.refusal(exchange.request, exchange.reply)
        harm = self._rules.harm(exchange.request, exchange.reply)
        rule = refusal.rule if refusal.label == "refused" else f"{refusal.rule}, {harm.rule}"
        return Judgement(refusal=refusal.label, harm=harm.label, rule=rule, evidence=refusal.evidence)


def open_judges(
    open_engine: Callable[[str], Engine],
    names: Sequence[str],
    guard: str | None = None,
    guard_format: str | None = None,
) -> list[Judge]:
    """The judges that `names` lists, in that order. A guard is opened when it is first asked, not here.

    Raises:
        AloeError: no name, a name twice or unknown; `guard` without its model and format, or those without it.
    """
    wanted = list(names)
    if not wanted:
        raise AloeError("no judge is named", where="judges", fix=f"name at least one of {', '.join(JUDGES)}")
    for i, name in enumerate(wanted):
        if name not in JUDGES:
            raise AloeError(f"no judge is called {name!r}", where="judges", fix=f"choose from {', '.join(JUDGES)}")
        if name in wanted[:i]:
            raise AloeError(f"judge {name!r} is named twice", where="judges", fix="name it once")
    if "guard" in wanted and (guard is None or guard_format is None):
        raise AloeError(
            "the judge 'guard' needs a model and its format",
            where="guard" if guard is None else "guard_format",
            fix="set guard to the model and guard_format to llama_guard_3, wildguard or shieldgemma",
        )
    if "guard" not in wanted and (guard is not None or guard_format is not None):
        raise AloeError(
            "a guard model is set that no judge uses",
            where="guard" if guard is not None else "guard_format",
            fix="add guard to judges, or leave guard and guard_format out",
        )
    return [_open(name, open_engine, guard, guard_format) for name in wanted]


def _open(name: str, open_engine: Callable[[str], Engine], guard: str | None, guard_format: str | None) -> Judge:
    if name == "rules":
        return RulesJudge()
    if name == "classifier":
        from aloe.safety.classifier import load_packaged

        return load_packaged()
    from aloe.safety.guards import GuardJudge

    return GuardJudge(lambda: open_engine(str(guard)), str(guard_format))


def try_out(judges: Sequence[Judge]) -> None:
    """Ask guard models about two short replies, before hours of attacks whose replies they are to judge.

    Raises:
        AloeError: a guard can't be reached or read.
    """
    for judge in judges:
        if hasattr(judge, "try_out"):
            judge.try_out()
