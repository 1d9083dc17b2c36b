"""The house rules that a test can hold: import directions, read parameters, file sizes, names."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from aloe.contract import Step
from aloe.steps import VERBS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "aloe"
FOUNDATION = {
    "errors", "terminal", "keyed", "digests", "records", "turns", "rows", "json_file", "yaml_text", "manifest_file",
    "contract", "licence", "licence_file", "schema", "__init__",
}  # fmt: skip
# What each room may import beside the foundation and itself. Written out, so that a new direction is a decision.
MAY_IMPORT: dict[str, set[str]] = {
    "models": set(),
    "generate": {"models"},
    "data": {"generate"},
    "prompting": {"generate"},
    "synthesize": {"data", "generate", "prompting"},
    "train": {"models"},
    "merge": {"models"},
    "evaluate": {"prompting", "generate", "data", "recipe_file"},  # benchmark files are read as recipes are
    "safety": {"evaluate", "generate", "data", "recipe_file"},  # risk registers are read as recipes are
    "search": {"merge", "evaluate", "safety", "generate", "models", "data"},
    "hardening": {"safety", "train", "evaluate", "generate", "data", "models"},
    "release": {"merge", "evaluate", "models"},
    "report": set(),
    "run": {"models", "generate"},
    # The top of the house: these see everything.
    "recipe": {"*"},
    "recipe_names": {"recipe_file"},
    "recipe_sizes": {"*"},
    "recipe_file": set(),
    "steps": {"*"},
    "cli": {"*"},
    "commands": {"*"},
    "merge_command": {"*"},
    "ask_command": {"*"},
    "chat_command": {"*"},
    "reproduce_command": {"*"},
    "push_command": {"*"},
    "clean_command": {"*"},
    "prompts_command": {"*"},
    "exemplars_command": {"*"},
    "benchmarks_command": {"*"},
    "compare_command": {"*"},
    "judge_command": {"*"},
    "risk_command": {"*"},
    "red_team_command": {"*"},
    "licences_command": {"*"},
    "compare_page": {"*"},
    "scores_command": {"*"},
    "worker": {"*"},
    "__main__": {"*"},
}
# One line each for a direction that a table of rooms can't express, with its reason.
EXCEPTIONS = {
    ("run/summary.py", "evaluate"): "prints the score table that the card prints",
    ("run/stage.py", "data"): "runs one stage of curation on a plain file",
    ("release/step.py", "safety"): "renders the pure risk register of `safety/risk.py` and `safety/table.py`",
    ("release/card.py", "safety"): "escapes a register's texts as the register itself does",
    ("release/gate.py", "safety"): "limits are on the register's levels",
    ("release/gate_checks.py", "safety"): "reads rates as the pure risk register does, so that both name one figure",
    ("release/verify_safety.py", "safety"): "computes red-team tables and the register again with the pure functions",
    ("report/safety.py", "safety"): "shows the pure table of `safety/table.py`, the one that the card prints",
    ("report/risks.py", "safety"): "heads a risk as the pure register of `safety/risk_render.py` does",
    ("evaluate/toxicity.py", "models"): "checks a classifier's tokenizer as a model's is",
}


def room_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, at its top or inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "aloe" else [f"aloe.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("aloe.")}
    return rooms


SOURCES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room in FOUNDATION:
        assert imported_rooms(path) <= FOUNDATION
        return
    allowed = MAY_IMPORT[room]
    extra = imported_rooms(path) - allowed - FOUNDATION - {room}
    excused = {r for r in extra if (path.relative_to(SOURCE).as_posix(), r) in EXCEPTIONS}
    assert "*" in allowed or not extra - excused, f"{path.name} imports {sorted(extra - excused)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_files_are_rooms_one_can_oversee(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420
    assert not re.fullmatch(r"(utils?|helpers?|common|misc)\.py", path.name)
    assert ast.get_docstring(ast.parse(path.read_text())) or not path.read_text().strip(), "no module docstring"


def models_in(step: type[Step]) -> list[type[BaseModel]]:
    """A step's class and every parameter group inside it, wherever that is declared."""
    found: list[type[BaseModel]] = []
    todo: list[object] = [step]
    while todo:
        hint = todo.pop()
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            if hint not in found:
                found.append(hint)
                todo += [f.annotation for f in hint.model_fields.values()]
        else:
            todo += get_args(hint)
    return found


FIELDS = [(v, c, n) for v, s in VERBS.items() for c in models_in(s) for n in c.model_fields]


@pytest.mark.parametrize(("verb", "cls", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_declared_field_is_read(verb: str, cls: type[BaseModel], name: str) -> None:
    """A parameter that nothing reads is a lie to whoever sets it."""
    # A verb that takes over another one's parameters, or a group of them, has them read there, too.
    steps = [c for c in VERBS[verb].__mro__ if issubclass(c, Step) and c is not Step]
    rooms = {SOURCE / c.__module__.split(".")[1] for c in (*steps, cls)}
    reads = 0
    for path in (p for room in rooms for p in room.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load):
                reads += 1
    assert reads, f"{cls.__name__}.{name} is declared in {verb} and never read"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_documents_itself(verb: str) -> None:
    step = VERBS[verb]
    assert step.__doc__
    assert step.version >= 1
    assert "run" in vars(step)


def test_verbs_have_a_page_each() -> None:
    for verb in VERBS:
        assert (ROOT / "docs" / f"{verb.replace('_', '-')}.md").exists(), f"docs/{verb}.md is missing"


def test_no_file_speaks_of_other_things_than_the_project() -> None:
    import subprocess

    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/wor[k]/|issue #\d|sub[a]gent|huggingface\.co/\S+\.(bin|pt)\b")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".j2", ".sh"} and path.exists():
            assert not pattern.search(path.read_text(encoding="utf-8")), name
