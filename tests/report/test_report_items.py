"""Answers of every checkpoint side by side: item rows as transcripts, filters over them, and hostile texts in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from fake_release import FakeRun
from fake_scores import SKILL, asdict_row, hostile_scores, make_scores, questions
from fake_transcripts import HOSTILE
from hypothesis import given
from hypothesis import strategies as st
from test_report_page import Page
from typer.testing import CliRunner

from aloe.cli import app
from aloe.errors import AloeError
from aloe.records import AttackPrompt, ItemResult, Question, Row
from aloe.report import build_report, write_report
from aloe.report.evidence import gather
from aloe.report.items import QUESTION, SCORED, set_names, transcribed, verdict
from aloe.report.transcripts import transcripts
from aloe.report.verdicts import folds, verdict_of
from aloe.rows import write_parquet

N = 24


def finder(_: Path, __: Mapping[str, Any]) -> Any:
    found = {q.id: q for q in questions(N)}
    return lambda benchmark: found


def item(metric: str = "accuracy", **values: Any) -> ItemResult:
    told: dict[str, Any] = {"id": "x", "source": "s", "licence": "l", "item": "q1", "model": "m", "benchmark": "b",
                            "protocol": "p", "outcome": "answered", "value": 1.0, "gold": "A", "prediction": "A",
                            "output": "So it is A.", "completion_tokens": 5}  # fmt: skip
    return ItemResult(**{**told, "metric": metric, **values})


def read(root: Path, *rows: ItemResult, protocols: Any = None, public: bool = False, rows_of: Any = None) -> list[Any]:
    root.mkdir(exist_ok=True)
    write_parquet(root / "items.parquet", [asdict_row(r) for r in rows])
    return list(transcribed(root / "items.parquet", protocols or {}, "", rows_of, public))


# -- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"value": 1.0}, "right"),
        ({"value": 0.0}, "wrong"),
        ({"outcome": "unparsed", "value": 0.0}, "unparsed"),
        ({"outcome": "errored", "value": None}, "errored"),
        ({"metric": "attack_success", "value": 1.0}, "unsafe"),
        ({"metric": "over_refusal", "value": 0.0}, "answered"),
        ({"metric": "clinical_pass", "value": 0.0}, "failed"),
        ({"metric": "nll", "value": 0.3, "gold": ""}, "scored"),
    ],
)
def test_outcomes_in_words(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    (found,) = read(tmp_path, item(**values))
    assert verdict_of(found) == said


def test_the_question_is_shown_where_it_is_found_and_else_its_id(tmp_path: Path) -> None:
    question = Question(id="q1", source="s", licence="l", question="Which?", options={"A": "x", "B": "y"}, answer="A",
                        context="A man of 40.", meta={"topic": "t"})  # fmt: skip
    (found,) = read(tmp_path / "a", item(), rows_of=lambda b: {"q1": question})
    assert found["messages"] == [("user", "A man of 40.\n\nWhich?\n\nA. x\nB. y"), ("assistant", "So it is A.")]
    assert (found["request"], found["topic"]) == ("Which?", "t")
    (found,) = read(tmp_path / "b", item(), rows_of=lambda b: {})
    assert found["messages"] == [("assistant", "So it is A.")]
    assert found["request"] == ""
    attack = AttackPrompt(id="q1", source="s", licence="l", base_id="q1", topic="t", style="fiction", request="How?",
                          prompt=[{"role": "system", "content": "S"}, {"role": "user", "content": "How?"}])  # fmt: skip
    (found,) = read(tmp_path / "c", item("attack_success"), rows_of=lambda b: {"q1": attack})
    assert found["messages"][:2] == [("system", "S"), ("user", "How?")]


def test_every_member_of_an_ensemble_and_every_continuation_is_shown(tmp_path: Path) -> None:
    members = [{"letter": "A", "text": "one"}, {"letter": None, "text": "two"}]
    (found,) = read(tmp_path / "a", item(meta={"members": members, "votes": {"A": 1, "B": 2}}))
    assert found["messages"] == [("member 1, A", "one"), ("member 2, no answer read", "two")]
    assert found["note"] == "answer A, key A; votes B 2, A 1"
    (found,) = read(tmp_path / "b", item("expected_max_toxicity", value=0.9, gold="", meta={
        "continuations": ["one", "two"], "scores": [0.1, 0.9]}))  # fmt: skip
    assert [text for _, text in found["messages"]] == ["one", "two"]
    assert "toxic" in folds(found)
    assert found["note"] == "expected max toxicity 0.9"


def test_likelihood_shows_what_was_compared(tmp_path: Path) -> None:
    (found,) = read(tmp_path, item(output="", completion_tokens=0, meta={"logprobs": {"A": -1.0, "B": -2.5}}))
    assert found["messages"] == []
    assert found["note"] == "answer A, key A; log-probability A -1.00, B -2.50"


def test_an_unsafe_reply_is_folded_and_a_release_leaves_requests_for_harm_out(tmp_path: Path) -> None:
    rows = [item("attack_success"), item("clinical_pass", value=0.0), item("escalation_success"), item()]
    found = read(tmp_path / "a", *rows, protocols={"p": {"judge": {"name": "rules"}}})
    assert [bool(folds(r)) for r in found] == [True, False, True, False]
    assert found[0]["judges"]["rules"]["harm"] == "unsafe"
    assert [r["kind"] for r in read(tmp_path / "b", *rows, public=True)] == [QUESTION]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["1" * 32, "2" * 32, "3" * 32])), max_size=9))
def test_no_two_protocols_share_a_name(pairs: list[tuple[str, str]]) -> None:
    protocols = {"1" * 32: {"strategy": "direct"}, "2" * 32: {"strategy": "direct"}, "3" * 32: {}}
    names = set_names(protocols, pairs, "")
    assert len(set(names.values())) == len(set(pairs))
    assert set(set_names(protocols, pairs, "scores").values()) == {f"scores: {n}" for n in names.values()}


def test_a_row_that_is_no_item_is_named(tmp_path: Path) -> None:
    good = asdict_row(item())
    write_parquet(tmp_path / "items.parquet", [good, {**good, "meta": "not json"}])
    with pytest.raises(AloeError, match="not an item") as raised:
        list(transcribed(tmp_path / "items.parquet", {}, "", None, False))
    assert "row 2" in str(raised.value)
    assert verdict({"outcome": "answered", "value": 0.5}, SCORED) == SCORED


# -- the section ------------------------------------------------------------------------------------------------------


def test_a_release_shows_what_it_encloses_and_no_more(tmp_path: Path) -> None:
    """Its own copy of the items, not the store's that may lie behind it."""
    run = FakeRun(tmp_path)
    make_scores(tmp_path, 4, run=run)
    lineage = {name: a.manifest for name, a in run.made.items()}
    table = json.loads((run.made["scores"].path / "scores.json").read_text())
    closed = run.step("release", "release", "release", {"lineage.json": lineage}, inputs=("scores",))
    assert transcripts(gather(closed.path)) is None
    kept = [asdict_row(item(output="PUBLIC")), asdict_row(item("attack_success", output="HARMFUL"))]
    files = {"lineage.json": lineage, "evidence/scores/scores.json": table, "evidence/scores/items.parquet": kept}
    run = FakeRun(tmp_path / "other")
    html = build_report(run.step("release", "release", "release", files).path)
    assert "PUBLIC" in html
    assert "HARMFUL" not in html
    assert "Part of what follows was asked" not in html


def test_the_steps_own_scores_make_a_whole_page(tiny_model_folder: Path, tmp_path: Path) -> None:
    """What `evaluate` really writes: curves, costs, items with their questions found again."""
    from aloe.scores_command import rows_finder

    spec = (
        "{exam: {data: starter/exam, protocol: generated, strategies: [direct, self_consistency], members: 3, limit: 2,"
    )
    asked = [
        f"models=[{tiny_model_folder}]",
        f"benchmarks={spec} max_new_tokens: 6}}}}",
        "--out",
        str(tmp_path),
        "--quiet",
    ]
    done = CliRunner().invoke(app, ["evaluate", *asked])
    assert done.exit_code == 0, done.output
    folder = Path(done.output.split()[-1])
    page = Page(write_report(folder, tmp_path / "page.html", finder=rows_finder).read_text(encoding="utf-8"))
    assert {"scores", "ensembles", "transcripts"} <= page.sections()
    assert "self consistency" in page.text["ensembles"]
    found = transcripts(gather(folder), finder=rows_finder)
    assert found is not None
    data = json.loads(str(found["data"]))
    assert (found["of_items"], found["transcripts"]) == (4, 4)
    assert sum("A. " in text and "B. " in text for text in data["texts"]) == 2  # the questions, once each
    assert len(data["names"]["set"]) == 2


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scores")
    return write_report(make_scores(root, N).path, root / "page.html", finder=finder)


def opened(browser: Browser, page: Path, **how: Any) -> None:
    browser.trouble.clear()
    browser.open(page, **how)


def shown(browser: Browser, selector: str) -> list[str]:
    return list(browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"))


def status(browser: Browser) -> str:
    return str(browser.run("document.getElementById('t-status').textContent"))


def pick(browser: Browser, field: str, name: str) -> str:
    browser.run(f"""(() => {{ const s = document.getElementById('t-{field}');
        s.value = [...s.options].find(o => o.textContent.startsWith({json.dumps(name)})).value;
        s.dispatchEvent(new Event('change')) }})()""")
    return status(browser)


def test_checkpoints_stand_side_by_side_in_the_recipes_order(browser: Browser, page: Path) -> None:
    opened(browser, page)
    assert status(browser) == f"{2 * N} items"
    assert shown(browser, ".answer h4") == list(SKILL)
    assert shown(browser, "#t-detail h3") == ["Stem number 0?"]
    assert shown(browser, ".asked .said") == ["Stem number 0?\n\nA. Aspirin\nB. Furosemide\nC. Metformin\nD. Warfarin"]
    lefts = browser.run("[...document.querySelectorAll('.answer')].map(e => e.getBoundingClientRect().left)")
    assert sorted(set(lefts)) == lefts  # columns
    labels = browser.run("[...document.querySelectorAll('.answer')].map(e => "
                         "document.getElementById(e.getAttribute('aria-labelledby')).textContent)")  # fmt: skip
    assert labels == list(SKILL)
    assert browser.trouble == []


def test_on_a_phone_they_stand_below_one_another(browser: Browser, page: Path) -> None:
    opened(browser, page, width=390, dark=True)
    boxes = browser.run("[...document.querySelectorAll('.answer')].map(e => { const r = e.getBoundingClientRect(); "
                        "return [r.left, r.top, r.right] })")  # fmt: skip
    assert len({left for left, _, _ in boxes}) == 1
    assert [top for _, top, _ in boxes] == sorted({top for _, top, _ in boxes})
    assert max(right for _, _, right in boxes) <= 390
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.trouble == []


def test_filters_by_benchmark_outcome_and_difference(browser: Browser, page: Path) -> None:
    opened(browser, page)
    told = json.loads(shown(browser, "#t-data")[0])
    verdicts: dict[tuple[int, int], list[str]] = {}
    at = {name: i for i, name in enumerate(told["fields"]["row"])}
    for r in told["rows"]:
        key = (r[at["set"]], r[at["item"]])
        verdicts.setdefault(key, []).append(told["names"]["verdict"][r[at["verdict"]]])
    apart = [key for key, said in verdicts.items() if len(set(said)) > 1]
    assert 0 < len(apart) < 2 * N
    browser.run("document.getElementById('t-differ').click()")
    assert status(browser) == f"{len(apart)} of {2 * N} items"
    vote = told["names"]["set"].index("exam, vote")
    assert pick(browser, "set", "exam, vote") == f"{sum(s == vote for s, _ in apart)} of {2 * N} items"
    wrong = [k for k in apart if k[0] == vote and "wrong" in verdicts[k]]
    assert pick(browser, "verdict", "wrong") == f"{len(wrong)} of {2 * N} items"
    browser.run("document.getElementById('t-clear').click()")
    assert status(browser) == f"{2 * N} items"
    assert not browser.run("document.getElementById('t-differ').checked")
    hidden = browser.run("['kind', 'style', 'refusal', 'disagree'].map(f => "
                         "document.getElementById('t-' + f).parentElement.offsetParent === null)")  # fmt: skip
    assert hidden == [True] * 4  # nothing to choose between
    assert browser.trouble == []


def test_keys_and_search_work_as_for_attacks(browser: Browser, page: Path) -> None:
    opened(browser, page)
    browser.run("document.getElementById('t-search').focus()")
    browser.type("q00007 stem")
    browser.run("new Promise(done => setTimeout(done, 400))")
    assert status(browser) == f"2 of {2 * N} items"
    browser.press("ArrowDown")
    assert browser.run("document.activeElement.id") == "t-list"
    browser.press("ArrowDown")
    assert shown(browser, '[aria-selected="true"] .request') == ["Stem number 7?"]
    assert "exam, vote" in shown(browser, "#t-detail .note")[0]
    assert [w.split(",")[0] for w in shown(browser, ".answer:first-child .who")] == [f"member {n}" for n in range(1, 6)]
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "t-detail"
    browser.press("Escape")
    assert browser.run("document.activeElement.id") == "t-list"
    assert browser.trouble == []


def test_hostile_texts_are_inert_and_readable(browser: Browser, tmp_path: Path) -> None:
    """As replies, members' replies, names, errors, judges, topics, benchmarks and strategies."""
    opened(browser, write_report(hostile_scores(tmp_path).path, tmp_path / "page.html"))
    seen, title = "", browser.run("document.title")
    browser.run("document.getElementById('t-list').focus()")
    for _ in HOSTILE:
        seen += browser.run("document.getElementById('t-detail').textContent")
        browser.press("ArrowDown")
    assert browser.trouble == []
    assert browser.run("window.hit") is None
    assert browser.run("document.title") == title
    inside = "#transcripts :is(img, a, iframe, svg, style, title, textarea)"
    assert browser.run(f"document.querySelectorAll('{inside}').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 2
    for literal in ("<script>window.hit = 1</script>", "<img src=x onerror=", "{{ 7 * 7 }}", "U+202E", "U+001B"):
        assert literal in seen, literal


def test_ten_thousand_items_side_by_side_draw_a_page_of_the_list_alone(browser: Browser, tmp_path: Path) -> None:
    rows = [item(item=f"q{n:05d}", model=model, value=float((n * 7 + at) % 3 == 0), output=f"{model} on {n}")
            for n in range(5000) for at, model in enumerate(("base", "aligned"))]  # fmt: skip
    files = {"scores.json": {"models": ["base", "aligned"], "benchmarks": [], "scores": []},
             "items.parquet": [asdict_row(r) for r in rows]}  # fmt: skip
    made = FakeRun(tmp_path).step("scores", "evaluate", "scores", files)
    opened(browser, write_report(made.path, tmp_path / "page.html"))
    assert status(browser) == "5,000 items"
    assert browser.run("document.querySelectorAll('#t-list li').length") == 50
    assert browser.run("document.querySelectorAll('#transcripts *').length") < 1500
    browser.run("document.getElementById('t-list').focus()")
    browser.press("End")
    assert shown(browser, ".answer .said")[1].startswith("aligned on ")
    assert browser.trouble == []


def test_no_questions_are_invented(tmp_path: Path) -> None:
    """A finder that knows other rows leaves ids standing."""
    other: dict[str, Row] = {"another": questions(1)[0]}
    (found,) = read(tmp_path, item(), rows_of=lambda b: other)
    assert (found["request"], found["item"]) == ("", "q1")
