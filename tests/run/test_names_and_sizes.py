"""Names for rows and models in a recipe, and sizes that fit a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import aloe.run.estimate as estimate_module
import aloe.run.sizing as sizing_module
from aloe.cli import app
from aloe.errors import AloeError
from aloe.recipe import Recipe
from aloe.recipe_names import ranges_of, seconds_of
from aloe.rows import write_jsonl
from aloe.run.estimate import Guess
from aloe.run.sizing import FILE, sized

RECIPE = """\
family: named
licence: cc0-1.0
models: {base: smollm2-135m-instruct}
data:
  sets:
    questions: {file: sub/questions.jsonl, hub: org/questions, preset: medmcqa}
    requests: {file: requests.jsonl, hub: org/requests}
budget:
  tuned.max_rows: [10, 110]
  scores.benchmarks.exam.limit: [5, 55]
steps:
  corpus:
    curate: {sources: {data/questions: {weight: 1.0}}}
  tuned:
    sft: {base: models/base, data: corpus, max_rows: 10, epochs: 1}
  scores:
    evaluate:
      models: [models/base, tuned]
      benchmarks:
        exam: {data: data/questions, limit: 5}
        asked: {data: data/requests, protocol: attack_success, limit: 5}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "rows" / "sub").mkdir(parents=True)
    asked = {"id": "q", "question": "Which?", "options": {"A": "a", "B": "b"}, "answer": "A", "licence": "cc0-1.0"}
    write_jsonl(tmp_path / "rows" / "sub" / "questions.jsonl", [asked])
    write_jsonl(tmp_path / "rows" / "requests.jsonl", [{"id": "r", "request": "Do it", "topic": "t"}])
    return tmp_path / "recipe.yaml"


def test_a_folder_gives_files_and_none_the_hub(place: Path) -> None:
    folder = str(place.parent / "rows")
    steps: Any = Recipe.load(place, [f"data.folder={folder}"]).steps
    assert steps["corpus"].sources[0].rows == f"{folder}/sub/questions.jsonl"
    assert steps["corpus"].sources[0].preset is None  # the file has our columns, or states a shape of its own
    assert steps["scores"].benchmarks["asked"].data == f"{folder}/requests.jsonl"
    assert steps["scores"].models == ["smollm2-135m-instruct", "tuned"]
    hub: Any = Recipe.load(place).steps
    assert (hub["corpus"].sources[0].rows, hub["corpus"].sources[0].preset) == ("org/questions", "medmcqa")
    assert hub["scores"].benchmarks["exam"].data == "org/questions"


def test_a_folder_beside_the_recipe_is_found_from_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    steps: Any = Recipe.load(place, ["data.folder=rows"]).steps
    assert Path(steps["scores"].benchmarks["exam"].data).is_file()


def test_names_leave_no_trace(place: Path) -> None:
    """A recipe with names is the recipe in which they are written out, to the last fingerprint."""
    recipe = Recipe.load(place)
    plain = RECIPE[: RECIPE.index("models:")] + RECIPE[RECIPE.index("steps:") :]
    plain = plain.replace("{data/questions: {weight: 1.0}}", "{org/questions: {weight: 1.0, preset: medmcqa}}")
    stands_for = {"data/questions": "org/questions", "data/requests": "org/requests"}
    for name, ref in {**stands_for, "models/base": "smollm2-135m-instruct"}.items():
        plain = plain.replace(name, ref)
    (place.parent / "plain.yaml").write_text(plain)
    assert recipe.dump(recipe.order) == Recipe.load(place.parent / "plain.yaml").dump(recipe.order)


def test_another_model_in_the_place_of_a_named_one(place: Path) -> None:
    steps: Any = Recipe.load(place, ["models.base=org/larger"]).steps
    assert steps["tuned"].base == "org/larger"


def refused(place: Path, old: str, new: str, *overrides: str) -> str:
    text = place.read_text()
    assert old in text
    place.write_text(text.replace(old, new, 1))
    with pytest.raises(AloeError) as caught:
        Recipe.load(place, overrides)
    return str(caught.value)


def test_a_file_that_is_not_in_the_folder(place: Path) -> None:
    said = refused(place, "file: requests.jsonl", "file: other.jsonl", f"data.folder={place.parent / 'rows'}")
    assert "'requests' is not there" in said
    assert "recipe.yaml:7" in said


def test_a_set_on_no_hub_needs_a_folder(place: Path) -> None:
    said = refused(place, "file: requests.jsonl, hub: org/requests", "file: requests.jsonl")
    assert "'requests' is on no hub" in said
    assert "--data" in said


def test_a_misspelled_field_of_a_set(place: Path) -> None:
    assert "recipe.yaml:7" in refused(place, "hub: org/requests}", "hup: org/requests}")


@pytest.mark.parametrize("range_", ["[10]", "[0, 5]", "[9, 3]", "7", "[1.5, 3]", "[true, 3]"])
def test_a_range_that_is_none(place: Path, range_: str) -> None:
    said = refused(place, "tuned.max_rows: [10, 110]", f"tuned.max_rows: {range_}")
    assert "budget.tuned.max_rows" in said


def test_models_must_be_a_map(place: Path) -> None:
    assert "map of names to models" in refused(place, "{base: smollm2-135m-instruct}", "[smollm2-135m-instruct]")


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("45min", 2700), ("30s", 30), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "two hours", "0h", "-1h", "1h 30m"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(AloeError, match="no length of time"):
        seconds_of(text)


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def second_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row and every item takes a second."""

    def guess(recipe: Any, step: Any, name: str) -> Guess:
        if name == "tuned":
            return Guess(seconds=float(step.max_rows))
        return Guess(seconds=float(step.benchmarks["exam"].limit)) if name == "scores" else Guess()

    monkeypatch.setattr(sizing_module, "by_arithmetic", guess)


def choose(place: Path, seconds: float, keep: bool = True) -> dict[str, Any]:
    _, told = sized(
        lambda more: Recipe.load(place, more), ranges_of(place), seconds, place.parent / "out", where="r", keep=keep
    )
    return told


@pytest.mark.usefixtures("second_an_item")
def test_the_largest_share_that_fits(place: Path) -> None:
    told = choose(place, 90)
    assert told["values"] == {"tuned.max_rows": 60, "scores.benchmarks.exam.limit": 30}
    assert told["estimated_seconds"] == 90


@pytest.mark.usefixtures("second_an_item")
def test_no_budget_is_overrun_and_none_is_wasted() -> None:
    """For any time: what is chosen fits, and one more step of the share would not (or all of it is taken)."""

    @settings(max_examples=20, deadline=None)
    @given(st.integers(15, 400))
    def holds(seconds: int) -> None:
        found = sizing_module._chosen(
            lambda more: Recipe.parse(_with(more)), {"tuned.max_rows": (10, 110)}, seconds, "r"
        )
        rows = found["values"]["tuned.max_rows"]
        assert rows + 5 <= seconds
        assert rows == 110 or rows + 1 + 5 > seconds - 1

    def _with(more: list[str]) -> Any:
        from aloe.recipe import _override
        from aloe.recipe_file import parse_yaml

        raw, _ = parse_yaml(RECIPE, "r")
        for assignment in more:
            _override(raw, assignment)
        return raw

    holds()


@pytest.mark.usefixtures("second_an_item")
def test_everything_where_there_is_time(place: Path) -> None:
    assert choose(place, 10_000)["values"] == {"tuned.max_rows": 110, "scores.benchmarks.exam.limit": 55}


@pytest.mark.usefixtures("second_an_item")
def test_too_little_time_says_how_much_is_needed(place: Path) -> None:
    with pytest.raises(AloeError, match="more than the budget"):
        choose(place, 14)


@pytest.mark.usefixtures("second_an_item")
def test_a_choice_is_kept_for_the_next_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose(place, 90)
    monkeypatch.setattr(sizing_module, "by_arithmetic", lambda *_: Guess(seconds=1e9))  # the machine got slower
    assert choose(place, 90) == first
    stored = json.loads((place.parent / "out" / FILE).read_text())
    assert stored["values"] == first["values"]
    with pytest.raises(AloeError):
        choose(place, 91)  # another budget is chosen for anew


@pytest.mark.usefixtures("second_an_item")
def test_a_plan_writes_nothing(place: Path) -> None:
    choose(place, 90, keep=False)
    assert not (place.parent / "out").exists()


def test_a_damaged_choice_is_made_anew(place: Path, second_an_item: None) -> None:
    (place.parent / "out").mkdir()
    (place.parent / "out" / FILE).write_text("{")
    assert choose(place, 90)["values"]["tuned.max_rows"] == 60


def test_a_recipe_without_ranges_says_so(place: Path) -> None:
    with pytest.raises(AloeError, match="nothing of what may shrink"):
        sized(lambda more: None, {}, 60.0, place.parent, where="recipe.yaml")


def test_the_commands_take_both(place: Path, second_an_item: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "_flops", lambda precision: 1e11)
    out, rows = str(place.parent / "out"), str(place.parent / "rows")
    arguments = ["plan", str(place), "--data", rows, "--budget", "90s", "--out", out]
    done = CliRunner().invoke(app, [*arguments, "--full"])
    assert done.exit_code == 0, done.output
    assert "max_rows: 60" in done.output
    assert "sub/questions.jsonl" in done.output
    done = CliRunner().invoke(app, [*arguments, "--full", "--set", "tuned.max_rows=7"])
    assert "max_rows: 7" in done.output  # what is set by hand stays


def test_data_for_a_recipe_that_names_no_sets(place: Path) -> None:
    place.write_text(RECIPE.replace("data:\n  sets:", "dat:\n  sets:"))
    done = CliRunner().invoke(app, ["plan", str(place), "--data", "rows"])
    assert isinstance(done.exception, AloeError)
    assert "names no sets" in str(done.exception)
