"""The search from parameters to files, over real tiny models: what is streamed is what would be written, a search that
is taken up again computes nothing twice, and the merge that is taken is the `merge` step's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_search import QUESTIONS, REQUESTS, SEARCH, FakeContext
from pydantic import ValidationError

from aloe.contract import references
from aloe.errors import AloeError
from aloe.evaluate.benchmarks import BenchmarkSpec
from aloe.evaluate.measured import Asked, base_protocol
from aloe.evaluate.runs import run_likelihood
from aloe.evaluate.stats import wilson
from aloe.generate.local import LocalEngine
from aloe.merge.step import Merge
from aloe.models.load import load
from aloe.search import loop, weights
from aloe.search.config import search_parameters
from aloe.search.frontier import paired
from aloe.search.measure import Measure, parts_of
from aloe.search.step import MergeSearch, make_job
from aloe.search.trials import Journal


def step(**changes: Any) -> MergeSearch:
    return MergeSearch.model_validate({**SEARCH, **changes})


@pytest.fixture(scope="module")
def ran(search_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeContext, dict[str, Any]]:
    ctx = FakeContext(tmp_path_factory.mktemp("ran"), search_files)
    return ctx, step().run(ctx)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        ({}, "float32"),
        ({"dtype": "bfloat16"}, "float32"),
        ({"dtype": "bfloat16", "method": "ties"}, "bfloat16"),
        ({}, "bfloat16"),
    ],
)
def test_weights_put_in_place_are_those_of_the_merge_loaded_from_disk(
    change: dict[str, Any], precision: str, ctx: FakeContext, search_files: dict[str, Path]
) -> None:
    merge = {**step().written(), **change}
    make_job(ctx, merge).write(ctx.out)  # type: ignore[arg-type]
    expected = load(ctx.out, precision).model.state_dict()
    model = load(search_files["base"], precision).model
    job = make_job(ctx, merge)  # type: ignore[arg-type]
    assert weights.fits(model, job)
    weights.fill(model, job)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_the_merge_that_is_taken_is_what_merge_writes(
    ran: tuple[FakeContext, dict[str, Any]], search_files: dict[str, Path], tmp_path: Path
) -> None:
    ctx, summary = ran
    other = FakeContext(tmp_path, search_files)
    Merge.model_validate(summary["merge"]).run(other)  # type: ignore[arg-type]
    names = {p.name for p in other.out.iterdir()}
    assert {"model.safetensors", "merge.json", "config.json"} <= names
    assert {p.name for p in ctx.out.iterdir()} == names | {"search.json", "logs"}
    for name in names:
        assert (ctx.out / name).read_bytes() == (other.out / name).read_bytes(), name


def test_every_trial_is_recorded_with_scores_and_intervals(ran: tuple[FakeContext, dict[str, Any]]) -> None:
    ctx, summary = ran
    told = ctx.record()
    assert [t["trial"] for t in told["trials"]] == list(range(5))
    assert [t["origin"] for t in told["trials"]] == ["as written", "equal weights", "random", "random", "random"]
    assert told["trials"][0]["point"] == {"weight.sft": 0.6, "weight.chat": 0.4, "density.*": 0.5}
    assert [m["weight"] for m in told["trials"][1]["models"].values()] == [0.5, 0.5]
    for trial in told["trials"]:
        score = trial["scores"]["accuracy"]
        assert score["n"] == QUESTIONS // 2
        hits = round(score["value"] * score["n"])
        assert (score["low"], score["high"]) == pytest.approx(wilson(hits, score["n"]), abs=1e-5)
        assert trial["scores"]["refusal_likelihood"]["n"] == REQUESTS // 2
        assert 0 < trial["scores"]["openings"]["value"] < 1
    assert [r["name"] for r in told["references"]] == ["base", "sft", "chat"]
    best = max(told["trials"], key=lambda t: (t["scores"]["accuracy"]["value"], -t["scores"]["nll_byte"]["value"]))
    assert told["chosen"] == best["trial"] == summary["search"]["chosen"]
    lines = [json.loads(x) for x in (ctx.out / "logs" / "timing.jsonl").read_text().splitlines()]
    assert [x["name"] for x in lines] == ["base", "sft", "chat", *(f"trial {i}" for i in range(5))]
    [(_, total, bar), *_] = ctx.bars
    assert total == bar.done == 8


def test_parts_share_no_item_and_held_out_figures_come_from_the_other_part(
    ran: tuple[FakeContext, dict[str, Any]],
) -> None:
    told = ran[0].record()
    for kind, count in (("questions", QUESTIONS), ("requests", REQUESTS)):
        seen, held = set(told["items"]["search"][kind]), set(told["items"]["held_out"][kind])
        assert not seen & held
        assert len(seen | held) == count
    assert told["held_out"]["scores"]["accuracy"]["n"] == QUESTIONS - QUESTIONS // 2
    against = {c["against"] for c in told["held_out"]["comparisons"]}
    assert {"base", "sft", "chat"} <= against
    assert all(c["verdict"] in ("better", "worse", "no difference") for c in told["held_out"]["comparisons"])


def test_scores_are_those_of_evaluate_on_the_written_merge(
    ran: tuple[FakeContext, dict[str, Any]], search_files: dict[str, Path], tmp_path: Path
) -> None:
    told = ran[0].record()
    ctx = FakeContext(tmp_path, search_files)
    values = step().written()
    for ref, part in told["trials"][3]["models"].items():
        values["models"][ref] = part
    make_job(ctx, values).write(ctx.out)  # type: ignore[arg-type]
    engine = LocalEngine(load(ctx.out, "float32"), "x", "digest")
    rows = parts_of(ctx, step().benchmark, None)["search"].questions  # type: ignore[arg-type]
    spec = BenchmarkSpec(data="exam", rotations=2)
    base = base_protocol(spec.protocol, engine, rows, "", 7)
    [measured] = run_likelihood(Asked(engine, "b", "m", spec, rows, base))
    for score in measured.scores:
        found = told["trials"][3]["scores"][score["metric"]]
        assert found["value"] == pytest.approx(score["value"], rel=1e-4)
        assert (found["low"], found["high"]) == pytest.approx((score["low"], score["high"]), rel=1e-4, abs=1e-5)


def test_the_base_and_each_input_by_itself_are_measured_as_they_are(
    ran: tuple[FakeContext, dict[str, Any]], search_files: dict[str, Path], ctx: FakeContext
) -> None:
    told = ran[0].record()
    measure = Measure(step().benchmark, step().safety, "", 7)
    parts = parts_of(ctx, step().benchmark, step().safety)  # type: ignore[arg-type]
    for reference in told["references"]:
        items = measure(LocalEngine(load(search_files[reference["name"]]), "x", ""), "x", parts["search"])
        for metric, values in items.items():
            mean = loop.mean(values)
            assert reference["scores"][metric]["value"] == pytest.approx(mean, rel=1e-4), (reference["name"], metric)


def counting(monkeypatch: pytest.MonkeyPatch, fail_at: int = 1 << 30) -> list[str]:
    """Count what is measured; raise as a kill would at measurement `fail_at`."""
    done: list[str] = []
    whole = Measure.__call__

    def once(self: Measure, engine: Any, name: str, part: Any) -> Any:
        if len(done) == fail_at:
            raise KeyboardInterrupt
        done.append(name)
        return whole(self, engine, name, part)

    monkeypatch.setattr(Measure, "__call__", once)
    return done


@pytest.mark.parametrize("strategy", ["random", "bayes"])
def test_a_search_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    strategy: str, ctx: FakeContext, search_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if strategy == "bayes":
        pytest.importorskip("optuna")
        monkeypatch.setattr("aloe.search.propose.STARTUP", 3)
    search = step(strategy=strategy, budget=7, benchmark={"data": "exam", "rotations": 1, "limit": 4})
    with monkeypatch.context() as patch:
        done = counting(patch, fail_at=13)  # three references and two starts on both parts, then three trials
        with pytest.raises(KeyboardInterrupt):
            search.run(ctx)  # type: ignore[arg-type]
    assert len(done) == 13
    [journal] = (ctx.cache / "merge-search").glob("*.jsonl")
    with open(journal, "a") as file:
        file.write('{"key": "torn')  # the line that was being written
    with monkeypatch.context() as patch:
        rest = counting(patch)
        search.run(ctx.again())  # type: ignore[arg-type]
    assert rest[:2] == ["trial 5", "trial 6"]
    assert len(rest) <= 3  # and what was taken, on held-out items
    assert len(Journal(journal)._found) == len(done) + len(rest)
    other = FakeContext(tmp_path / "whole", search_files)
    search.run(other)  # type: ignore[arg-type]
    assert other.record() == ctx.record()
    with monkeypatch.context() as patch:
        again = counting(patch)
        patch.setattr(weights, "load", None)  # not even the base is loaded
        search.run(ctx.again())  # type: ignore[arg-type]
    assert again == []
    assert other.record() == ctx.record()


def test_a_larger_budget_and_another_score_reuse_what_was_measured(
    ctx: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(budget=3).run(ctx)  # type: ignore[arg-type]
    done = counting(monkeypatch)
    step(budget=4, score="nll_byte").run(ctx.again())  # type: ignore[arg-type]
    assert set(done) <= {"trial 3", f"trial {ctx.record()['chosen']}"}
    assert done[0] == "trial 3"


def test_the_bound_decides_and_what_breaks_it_stays_in_the_record(
    ctx: FakeContext, ran: tuple[FakeContext, dict[str, Any]]
) -> None:
    before = ran[0].record()
    values = sorted(t["scores"]["refusal_likelihood"]["value"] for t in before["trials"])
    bound = (values[-1] + values[-2]) / 2  # one trial alone keeps it
    ctx.cache = ran[0].cache
    step(safety={"requests": "harmful", "bound": bound}).run(ctx)  # type: ignore[arg-type]
    told = ctx.record()
    assert [t["feasible"] for t in told["trials"]].count(True) == 1
    assert told["trials"][told["chosen"]]["feasible"]
    assert told["trials"][told["chosen"]]["scores"]["refusal_likelihood"]["value"] == values[-1]
    assert len(told["trials"]) == 5
    assert told["frontier"] == before["frontier"]  # of all trials, whether they keep the bound or not


def test_no_trial_within_the_bound_is_an_error_that_keeps_the_record(
    ctx: FakeContext, ran: tuple[FakeContext, dict[str, Any]]
) -> None:
    ctx.cache = ran[0].cache
    with pytest.raises(AloeError, match="none of 5 merges keeps the safety bound") as caught:
        step(safety={"requests": "harmful", "bound": 0.999}).run(ctx)  # type: ignore[arg-type]
    assert caught.value.where == "merge_search.safety"
    [kept] = (ctx.cache / "merge-search").glob("*.search.json")
    assert str(kept) in str(caught.value.fix)
    assert json.loads(kept.read_text())["chosen"] is None
    assert not (ctx.out / "model.safetensors").exists()


def test_harm_is_judged_from_replies_and_lower_is_better(ctx: FakeContext) -> None:
    safety = {"requests": "harmful", "metric": "attack_success", "max_new_tokens": 6, "limit": 4}
    step(safety=safety, budget=2).run(ctx)  # type: ignore[arg-type]
    told = ctx.record()
    assert told["safety"]["better"] == "lower"
    assert told["safety"]["bound"] == told["references"][0]["scores"]["attack_success"]["value"] == 0.0
    assert told["trials"][0]["scores"]["attack_success"]["n"] == 2
    chosen_by = told["safety"]["selected_on"]
    assert len(chosen_by["base_requests"]) == 2  # those of the search's part alone
    assert set(chosen_by["base_requests"]) <= {i.partition("#")[0] for i in told["items"]["search"]["requests"]}
    assert chosen_by["topics"]


def test_a_search_without_a_bound_takes_the_best_score(ctx: FakeContext) -> None:
    step(safety=None, budget=4, strategy="grid").run(ctx)  # type: ignore[arg-type]
    told = ctx.record()
    assert told["safety"] is None
    assert told["frontier"]
    assert told["chosen"] in told["frontier"] or told["frontier"] != [told["chosen"]]
    assert [t["origin"] for t in told["trials"]] == ["as written", "equal weights", "grid", "grid"]


def test_a_merge_that_overflows_is_a_failed_trial(ctx: FakeContext) -> None:
    space = {"lambda": [1e37, 1e39]}
    step(space=space, strategy="grid", budget=3).run(ctx)  # type: ignore[arg-type]
    trial = ctx.record()["trials"][2]
    assert trial["scores"] is None
    assert not trial["feasible"]
    assert trial["error"]
    assert ctx.record()["chosen"] in (0, 1)


def test_where_the_model_cannot_be_filled_trials_go_over_the_disk_with_the_same_record(
    ctx: FakeContext, ran: tuple[FakeContext, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "fits", lambda model, job: False)
    step(budget=2).run(ctx)  # type: ignore[arg-type]
    expected, found = ran[0].record(), ctx.record()
    assert (expected["streamed"], found["streamed"]) == (True, False)
    assert found["references"] == expected["references"]
    assert [t["scores"] for t in found["trials"]] == [t["scores"] for t in expected["trials"][:2]]
    assert not list((ctx.cache / "merge-search").glob("*.model"))


def test_a_model_with_other_tensors_than_the_merge_does_not_fit(ctx: FakeContext) -> None:
    job = make_job(ctx, step().written())  # type: ignore[arg-type]
    model = load(ctx.path("base")).model
    assert weights.fits(model, job)
    model.extra = torch.nn.Parameter(torch.zeros(3))
    assert not weights.fits(model, job)
    del model.extra
    model.model.norm.weight = torch.nn.Parameter(torch.zeros(3))
    assert not weights.fits(model, job)


def test_references_are_models_benchmark_and_requests() -> None:
    assert [value for _, value, _ in references(step())] == ["base", "sft", "chat", "exam", "harmful"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"space": {}}, "nothing to search"),
        ({"space": {"weight": {"sfft": [0, 1]}}}, "no model 'sfft'"),
        ({"space": {"normalize": [True, False], "rescale": ["none", "l1"]}, "strategy": "grid"}, "a grid over these"),
        ({"budget": 1}, "greater than or equal to 2"),
    ],
)
def test_a_space_that_fits_no_merge_is_refused_when_the_step_is_made(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        step(**({"budget": 4} | change))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"space": {"density": {"sft": [0.1, 1.2]}}}, "merge_search.space.density.sft"),
        ({"method": "task_arithmetic", "models": {"sft": {}, "chat": {}}}, "merge_search.space.density.*"),
    ],
)
def test_a_range_that_the_method_refuses_or_would_ignore_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(AloeError) as caught:
        step(**change)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda f: {**f, "harmful": f["exam"]}, "harmful|attack|request|row"),
        (lambda f: {**f, "sft": f["exam"].parent}, "config.json"),
    ],
)
def test_bad_inputs_are_found_before_a_model_is_loaded(
    change: Callable[[dict[str, Path]], dict[str, Path]], what: str, ctx: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx.files = change(ctx.files)
    monkeypatch.setattr(ctx, "digest", lambda ref: ref)
    monkeypatch.setattr(weights, "load", None)
    with pytest.raises(AloeError, match=what):
        step().run(ctx)  # type: ignore[arg-type]


def test_a_merge_and_what_to_search_become_the_steps_parameters() -> None:
    merge = {key: SEARCH[key] for key in ("method", "base", "models")}
    flat = {"weight": {"sft": [0, 1]}, "benchmark": "exam", "budget": 3, "strategy": "grid"}
    values = search_parameters(merge, flat)
    assert values["space"] == {"weight": {"sft": [0, 1]}}
    assert values["benchmark"] == {"data": "exam"}
    assert MergeSearch.model_validate(values).budget == 3
    nested = search_parameters(merge, {"space": {"t": [0, 1]}, "lambda": [0.5, 1], "benchmark": {"data": "exam"}})
    assert nested["space"] == {"t": [0, 1], "lambda": [0.5, 1]}


@pytest.mark.parametrize(
    ("search", "where", "what"),
    [
        ({"benchmark": "exam", "densty": {"*": [0, 1]}}, "search.densty", "did you mean 'density'"),
        ({"density": {"*": [0.2, 1]}}, "search.benchmark", "needs a benchmark"),
        ({"benchmark": "exam", "t": [0, 1], "space": {"t": [0, 1]}}, "search.space.t", "given twice"),
        ({"benchmark": "exam", "method": "ties"}, "search.method", "has no 'method'"),
    ],
)
def test_what_no_search_has_is_refused_by_name(search: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(AloeError, match=what) as caught:
        search_parameters({"method": "ties"}, search)
    assert caught.value.where == where


def test_paired_comparison_of_the_record_is_the_one_of_the_items(ran: tuple[FakeContext, dict[str, Any]]) -> None:
    ctx, _ = ran
    told = ctx.record()
    [path] = list((ctx.cache / "merge-search").glob("*.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    items = {x["name"]: x["items"] for x in lines if x["part"] == "held_out"}
    chosen = f"trial {told['chosen']}"
    expected = paired(items["base"]["accuracy"], items[chosen]["accuracy"], {})
    [found] = [c for c in told["held_out"]["comparisons"] if (c["against"], c["metric"]) == ("base", "accuracy")]
    assert found["difference"] == pytest.approx(expected["difference"], rel=1e-5)
    assert found["p_value"] == pytest.approx(expected["p_value"], rel=1e-5)
