"""The documentation says what the code does: parameter tables, links and examples are held to it."""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from aloe.cli import app
from aloe.contract import Hardware, Ref, Step
from aloe.generate.server_spec import ServerSpec
from aloe.licence import LICENCES
from aloe.recipe import EngineSettings, Head, Launch, Recipe, read_value
from aloe.run.slurm import Resources, Slurm
from aloe.steps import VERBS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {verb: DOCS / f"{verb.replace('_', '-')}.md" for verb in VERBS}
HEADER = ["name", "type", "default", "unit", "source", "meaning"]
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}

# -- what the code says ---------------------------------------------------------------------------------------------


def type_text(hint: Any) -> str:
    """A type as the tables write it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ref = next((m for m in hint.__metadata__ if isinstance(m, Ref)), None)
        limits = [text for m in hint.__metadata__ for text in bounds(m)]
        return f"reference to {' or '.join(ref.kinds)}" if ref else ", ".join([type_text(args[0]), *limits])
    if origin in (Union, UnionType):
        return " or ".join("null" if a is type(None) else type_text(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(f"`{a}`" for a in args)
    if origin is list:
        return f"list of {type_text(args[0])}"
    if origin is dict:
        return f"map from {type_text(args[0])} to {type_text(args[1])}"
    if origin is tuple and args[-1] is Ellipsis:
        return f"list of {type_text(args[0])}"
    if origin is tuple:
        return f"list of {len(args)} {type_text(args[0])}"
    return f"`{hint.__name__}`" if issubclass(hint, BaseModel) else str(hint.__name__)


def bounds(mark: Any) -> list[str]:
    """The limits in a piece of field metadata: `>= 1`, `at least 1`."""
    if isinstance(mark, FieldInfo):
        return [text for m in mark.metadata for text in bounds(m)]
    found = [f"{sign} {getattr(mark, name)}" for name, sign in BOUNDS.items() if getattr(mark, name, None) is not None]
    length = getattr(mark, "min_length", None)
    return [*found, *([f"at least {length}"] if length is not None else [])]


def models_in(cls: type[BaseModel]) -> list[type[BaseModel]]:
    """A step's class and every parameter group reached from its fields, in the order they are met."""
    found = [cls]
    for field in cls.model_fields.values():
        for inner in _classes(field.annotation):
            found += [c for c in models_in(inner) if c not in found]
    return found


def _classes(hint: Any) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [c for a in get_args(hint) for c in _classes(a)]


def expected_row(cls: type[BaseModel], name: str) -> tuple[str, str, Any]:
    """(name as written in a recipe, type with limits, default as plain value or `required`)."""
    field = cls.model_fields[name]
    hint = get_type_hints(cls, include_extras=True)[name]
    limits = [text for mark in field.metadata if not isinstance(mark, Ref) for text in bounds(mark)]
    default = "required" if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json", by_alias=True)
    default = list(default) if isinstance(default, tuple) else default
    if get_origin(hint) is Annotated and not any(isinstance(m, Ref) for m in hint.__metadata__):
        hint = get_args(hint)[0]  # the limits of the field itself come from its metadata
    return field.alias or name, ", ".join([type_text(hint), *limits]), default


# -- what the pages say ---------------------------------------------------------------------------------------------


def tables(text: str) -> dict[str, list[list[str]]]:
    """Parameter tables of a page by the heading above them: {heading: rows of cells}."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    inside = False
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))] if line.startswith("|") else []
        if cells == HEADER:
            assert heading not in found, f"two parameter tables under {heading!r}"
            found[heading], inside = [], True
        elif not cells:
            inside = False
        elif inside and not set(line) <= set("|-: "):
            found[heading].append(cells)
    return found


def table_of(page: Path, cls: type[BaseModel]) -> list[list[str]]:
    """The table of a class: under `Parameters` for a step itself, under a heading with its name for a group."""
    found = tables(page.read_text(encoding="utf-8"))
    if issubclass(cls, Step):
        return found["Parameters"]
    [rows] = [rows for heading, rows in found.items() if heading.startswith(f"`{cls.__name__}`")]
    return rows


def code(cell: str) -> str:
    """The text of a cell that is one code span."""
    assert re.fullmatch(r"`[^`]+`", cell), f"{cell!r} is not one code span"
    return cell[1:-1]


CLASSES = [(verb, cls) for verb, step in VERBS.items() for cls in models_in(step)]
HEADS = [
    *((DOCS / "recipe.md", cls) for cls in (Head, EngineSettings, Launch, Hardware)),
    (DOCS / "servers.md", ServerSpec),
    *((DOCS / "launch.md", cls) for cls in (Slurm, Resources)),
]
TABLES = [*((PAGES[verb], cls) for verb, cls in CLASSES), *HEADS]


@pytest.mark.parametrize(("page", "cls"), TABLES, ids=lambda x: x.stem if isinstance(x, Path) else x.__name__)
def test_parameter_table_is_the_class(page: Path, cls: type[BaseModel]) -> None:
    rows = table_of(page, cls)
    expected = {row[0]: row for row in (expected_row(cls, name) for name in cls.model_fields)}
    assert [code(r[0]) for r in rows] == list(expected)
    for row in rows:
        assert len(row) == len(HEADER), row
        assert all(row), f"{row[0]} has an empty cell"
        name, kind, default = expected[code(row[0])]
        assert row[1] == kind, f"{name}: the code has type {kind!r}"
        stated = "required" if row[2] == "required" else read_value(code(row[2]))
        assert stated == default, f"{name}: the code has default {default!r}"


@pytest.mark.parametrize("verb", VERBS)
def test_page_has_no_other_parameter_tables(verb: str) -> None:
    assert len(tables(PAGES[verb].read_text(encoding="utf-8"))) == len(models_in(VERBS[verb]))


def test_every_verb_has_a_page_and_a_link_from_the_recipe_page() -> None:
    recipe = (DOCS / "recipe.md").read_text(encoding="utf-8")
    for page in PAGES.values():
        assert page.is_file(), page.name
        assert f"]({page.name})" in recipe


def test_recipe_page_names_the_fields_in_every_fingerprint() -> None:
    text = (DOCS / "recipe.md").read_text(encoding="utf-8")
    for fields in {step.recipe_fields for step in VERBS.values()}:
        verbs = [f"`{verb}`" for verb, step in VERBS.items() if step.recipe_fields == fields]
        assert f"| {', '.join(verbs)} | {', '.join(f'`{f}`' for f in fields)} |" in text


def test_licences_page_has_the_table() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| (.*?) \| (.*?) \|$", (DOCS / "licences.md").read_text(), re.M)
    assert [row[0] for row in rows] == list(LICENCES)
    for name, code, duties, alike in rows:
        one = LICENCES[name]
        assert code == one.spdx
        assert duties == (", ".join(sorted(one.duties)) or "none"), name
        assert alike == (", ".join(f"`{n}`" for n in sorted(one.share_alike)) or "-"), name
    assert "](licences.md)" in (DOCS / "release.md").read_text()


def test_commands_page_has_every_command_and_option() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    for name, command in cast("Any", get_command(app)).commands.items():
        assert f"aloe {name} " in text or f"aloe {name}\n" in text, name
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else []:
                assert option in text, f"aloe {name} {option}"


# -- examples -------------------------------------------------------------------------------------------------------


def yaml_blocks(path: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


EXAMPLES = [
    (path.name, verb, text)
    for path in PAGES.values()
    for text in (yaml_blocks(path) if path.is_file() else [])
    for verb in VERBS
    if text.startswith(f"{verb}:")
]


@pytest.mark.parametrize(("page", "verb", "text"), EXAMPLES, ids=lambda x: x.split("\n")[0])
def test_example_is_valid(page: str, verb: str, text: str) -> None:
    values = read_value(text)
    assert list(values) == [verb]
    VERBS[verb].model_validate(values[verb])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_page_has_an_example_of_its_verb(verb: str) -> None:
    assert any(page == PAGES[verb].name and found == verb for page, found, _ in EXAMPLES)


def test_recipe_example_is_a_recipe() -> None:
    text, names = yaml_blocks(DOCS / "recipe.md")
    assert Recipe.parse(read_value(text)).order == ["corpus", "tuned"]
    named = text.replace("max_tokens: 512", "max_tokens: 512, max_rows: 200").replace(
        "starter/general", "data/exam_rows"
    )
    named = named.replace("base: smollm2-135m-instruct", "base: models/large")
    assert '"Qwen/Qwen2.5-Coder' in Recipe.parse(read_value(named + names)).steps["tuned"].model_dump_json()


# -- links ----------------------------------------------------------------------------------------------------------

MARKDOWN = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])


def prose(text: str) -> str:
    """A page without its code, where brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+\s+(.*?)\s*$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", t.replace("`", "").lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.name)
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = path.parent / name if name else path
        assert place.exists(), f"{path.name} links to {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{path.name} links to {target}: there is no such heading"
