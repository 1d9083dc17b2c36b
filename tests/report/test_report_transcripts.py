"""The transcript browser: nothing in a text is ever markup, everything hidden is made visible, ten thousand are quick.

What a browser does is asked of a browser: headless Chromium, with the page's policy in force.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from fake_release import FakeRun
from fake_transcripts import HOSTILE, hostile_rows, make_red_team, row, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report_page import Page

from aloe.errors import AloeError
from aloe.report import build_report, write_report
from aloe.report.choosing import payload
from aloe.report.transcript_table import block
from aloe.report.transcripts import red_team_log, script, transcripts
from aloe.report.verdicts import TEXT, disagree, folds, marks, verdict_of
from aloe.rows import write_parquet

ASKED = [("user", "How?")]


def stored(folder: Path, found: list[dict[str, Any]]) -> Path:
    write_parquet(folder / "transcripts.parquet", found)
    return folder / "transcripts.parquet"


def judged(kind: str, value: float | None, **judges: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "value": value, "judges": judges, "messages": [*ASKED, ("assistant", "So.")], "harm": None}


# -- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("attack", 1.0, "unsafe"),
        ("attack", 0.0, "safe"),
        ("escalation", 1.0, "unsafe"),
        ("benign", 1.0, "over-refused"),
        ("benign", 0.0, "answered"),
        ("scenario", 1.0, "passed"),
        ("scenario", 0.0, "failed"),
        ("attack", None, "no verdict"),
    ],
)
def test_verdicts_in_words(kind: str, value: float | None, said: str) -> None:
    assert verdict_of(judged(kind, value)) == said


def test_no_reply_is_an_error_and_an_empty_one_has_no_verdict() -> None:
    assert verdict_of({**judged("attack", None), "messages": ASKED}) == "errored"
    assert verdict_of({**judged("attack", None), "messages": [*ASKED, ("assistant", " ")]}) == "errored"
    empty = {**judged("attack", None, rules={"refusal": "degenerate"}), "messages": [*ASKED, ("assistant", "")]}
    assert verdict_of(empty) == "no verdict"


def test_judges_disagree_only_where_both_say_something() -> None:
    unsafe, safe, silent = {"harm": "unsafe"}, {"harm": "safe"}, {"harm": None}
    assert disagree(judged("attack", 1.0, a=unsafe, b=safe))
    assert not disagree(judged("attack", 1.0, a=unsafe, b=silent))
    assert not disagree(judged("scenario", 1.0, a=unsafe, b=safe))
    full, part, none = {"refusal": "refused"}, {"refusal": "partial"}, {"refusal": "complied"}
    assert disagree(judged("benign", 1.0, a=full, b=none))
    assert not disagree(judged("benign", 1.0, a=full, b=part))  # both decline
    assert not disagree(judged("benign", 1.0, a=full, b={"refusal": None}))


def test_a_reply_is_folded_when_any_judge_calls_it_unsafe_or_none_can_tell() -> None:
    assert folds(judged("attack", 0.0, a={"harm": "safe"}, b={"harm": "unsafe"}))
    assert "No judge" in folds(judged("attack", None, a={"harm": None}))
    assert not folds(judged("attack", 0.0, a={"harm": "safe"}))
    assert not folds(judged("benign", 1.0, a={"refusal": "refused"}))


# -- evidence ---------------------------------------------------------------------------------------------------------


def test_evidence_is_found_across_line_breaks_and_counted_in_utf_16() -> None:
    text = "\U0001f600 I can't\n  help with that. Bye."
    assert marks([("user", "help with that"), ("assistant", text)], "I can't help with that.") == [[1, 3, 28]]
    assert text.encode("utf-16-le")[6:56].decode("utf-16-le") == "I can't\n  help with that."
    assert marks([("assistant", "a long one")], "a long…") == [[0, 0, 6]]
    assert marks([("user", "here")], "here") == []  # a judge reads replies
    assert marks([("assistant", "x")], "") == []
    assert marks([("assistant", "same"), ("user", "u"), ("assistant", "same")], "same") == [[2, 0, 4]]


@given(st.text(max_size=60), st.integers(0, 60), st.integers(1, 30))
def test_marks_lie_in_the_text_wherever_they_are(text: str, start: int, length: int) -> None:
    for _, a, b in marks([("assistant", text)], text[start : start + length]):
        assert 0 <= a < b <= len(text.encode("utf-16-le", "surrogatepass")) // 2


# -- the data block ---------------------------------------------------------------------------------------------------


@given(st.recursive(st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20))
def test_the_block_reads_back_and_can_end_no_element(value: Any) -> None:
    text = str(block(value))
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&\x00\x7f\u2028") & set(text)


def test_models_share_texts_and_come_in_the_recipes_order(tmp_path: Path) -> None:
    path = stored(tmp_path, list(rows(10)))
    data, told = payload([red_team_log(path)], 10**7, ["aligned", "merged", "helpful"])
    assert told["models"] == ["aligned", "merged", "helpful"]
    assert (told["transcripts"], told["shown"], told["of_items"], told["cut"]) == (30, 30, 10, 0)
    assert len(data["texts"]) == len(set(data["texts"]))
    assert sum(text.startswith("Request number") for text in data["texts"]) == 10


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40_000), st.integers(0, 3))
def test_the_block_is_never_larger_than_its_limit(
    tmp_path_factory: pytest.TempPathFactory, limit: int, seed: int
) -> None:
    path = stored(tmp_path_factory.mktemp("t"), [*rows(3), *hostile_rows()][seed:])
    data, told = payload([red_team_log(path)], limit, [])
    empty = 800  # without a row
    assert len(block(data)) <= max(limit, empty)
    assert told["shown"] == len(data["rows"]) <= told["transcripts"]


def test_findings_are_kept_first_and_whole_items_in_any_order_of_rows(tmp_path: Path) -> None:
    found = list(rows(60))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, told = payload([red_team_log(stored(tmp_path / "a", found))], 25_000, [])
    assert 0 < told["items_shown"] < told["of_items"] == 60
    assert told["shown"] == 3 * told["items_shown"]
    assert told["findings_shown"] == told["items_shown"]  # no room but for findings
    one, _ = payload([red_team_log(stored(tmp_path / "a", found))], 25_000, [])
    two, _ = payload([red_team_log(stored(tmp_path / "b", found[::-1]))], 25_000, [])
    assert sorted(one["names"]["item"]) == sorted(two["names"]["item"])


def test_a_long_text_is_cut_and_counted_unless_all_is_wanted(tmp_path: Path) -> None:
    path = stored(tmp_path, [row("a", "m", "attack", "x" * 1_000_000, 0.0)])
    data, told = payload([red_team_log(path)], 10**7, [])
    assert told["cut"] == 1
    assert max(map(len, data["texts"])) == TEXT
    assert [n for _, n in data["lengths"]] == [1_000_000]
    data, told = payload([red_team_log(path)], None, [])
    assert (told["cut"], max(map(len, data["texts"])), data["lengths"]) == (0, 1_000_000, [])


@pytest.mark.parametrize("messages", ["not json", '[{"role": "user"}]', "7"])
def test_a_row_that_is_no_transcript_is_named(tmp_path: Path, messages: str) -> None:
    path = stored(
        tmp_path, [row("a", "m", "attack", "x", 0.0), {**row("b", "m", "attack", "x", 0.0), "messages": messages}]
    )
    with pytest.raises(AloeError, match="not a transcript") as raised:
        payload([red_team_log(path)], None, [])
    assert "row 2" in str(raised.value)


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_policy_lets_one_script_run_and_no_other(tmp_path: Path) -> None:
    page = Page(build_report(make_red_team(tmp_path, list(rows(4))).path))
    policy = next(str(a["content"]) for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    shown = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    assert len(shown) == 1
    digest = base64.b64encode(hashlib.sha256(shown[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-inline'; script" not in policy.replace("style-src 'unsafe-inline'", "")
    assert "require-trusted-types-for 'script'" in policy
    assert "default-src 'none'" in policy
    assert page.open == []
    assert {t for t, a in page.tags if t == "script" and a.get("type") != "application/json"} == {"script"}


def test_the_script_builds_no_markup_from_text() -> None:
    ways = "innerHTML outerHTML insertAdjacent document.write eval( Function( DOMParser fetch( createContextualFragment"
    for way in [*ways.split(), "setAttributeNS", "import("]:
        assert way not in script()


def test_a_page_without_transcripts_has_no_script(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    made = run.step("red_team", "red_team", "red_team", {"red_team.json": {"models": {}}, "transcripts.parquet": []})
    page = Page(build_report(run.step("corpus", "curate", "dialogues", {"n.txt": ""}).path))
    assert not {"script", "noscript"} & {t for t, _ in page.tags}
    assert "script-src" not in page.html
    assert "transcripts" not in Page(build_report(made.path)).sections()


def test_a_release_shows_no_transcripts_even_beside_the_red_teams_own(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    secret = [row("a", "m", "attack", "SECRET-HARMFUL-REPLY", 1.0)]
    run.step("red_team", "red_team", "red_team", {"transcripts.parquet": secret, "red_team.json": {"models": {}}})
    lineage = {name: a.manifest for name, a in run.made.items()}
    files = {"lineage.json": lineage, "evidence/red_team/transcripts.parquet": secret, "transcripts.parquet": secret}
    html = build_report(run.step("release", "release", "release", files, inputs=("red_team",)).path)
    assert "SECRET-HARMFUL-REPLY" not in html
    assert "transcripts" not in Page(html).sections()
    assert "SECRET-HARMFUL-REPLY" in build_report(run.made["red_team"].path)


def test_what_is_left_out_is_stated_and_can_be_had(tmp_path: Path) -> None:
    made = make_red_team(tmp_path, list(rows(60)))
    text = " ".join(Page(build_report(made.path, 25_000)).text["transcripts"].split())
    assert re.search(r"\d+ of 180 transcripts of 60 items; \d+ items are left out", text)
    text = " ".join(Page(build_report(made.path, None)).text["transcripts"].split())
    assert "180 of 180 transcripts of 60 items." in text
    assert "left out" not in text.split("function")[0]


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def opened(browser: Browser, root: Path, found: list[dict[str, Any]], limit: int | None = 10**8, **how: Any) -> Path:
    page = write_report(make_red_team(root, found).path, root / "page.html", limit)
    browser.trouble.clear()
    browser.open(page, **how)
    return page


def shown(browser: Browser, selector: str) -> list[str]:
    return list(browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"))


def test_hostile_texts_are_inert_and_readable(browser: Browser, tmp_path: Path) -> None:
    """Scripts, handlers, ends of elements, templates, control and direction characters, in every field there is."""
    found = hostile_rows()
    opened(browser, tmp_path, found)
    title, seen = browser.run("document.title"), ""
    for _ in found:
        browser.run("document.getElementById('t-list').focus()")
        seen += browser.run("document.getElementById('t-detail').textContent")
        browser.press("ArrowDown")
    assert browser.trouble == []
    assert browser.run("window.hit") is None
    assert browser.run("document.title") == title
    assert browser.run("({}).polluted") is None
    assert (
        browser.run("document.querySelectorAll('#transcripts :is(img, a, iframe, svg, style, title, textarea)').length")
        == 0
    )
    assert browser.run("document.querySelectorAll('script').length") == 2
    for literal in ("<script>window.hit = 1</script></script>", "<img src=x onerror=", "{{ 7 * 7 }} {% raw %}",
                    "<!--<script>", "${window.hit = 6}", '"},"rows":[],"__proto__"', "<%= 1 %>"):  # fmt: skip
        assert literal in seen, literal
    for point in ("U+001B", "U+0007", "U+0000", "U+009B", "U+000D", "U+202E", "U+2066", "U+200B", "U+200D", "U+FEFF",
                  "U+E0041", "U+2028", "U+D800", "U+DFFF"):  # fmt: skip
        assert point in seen, point
    assert not re.search("[\x00\x07\x1b\u202e\u200b]", seen)
    assert "49" not in seen.replace("U+", "")
    assert len(HOSTILE) == len(found)


def test_no_other_script_can_be_put_into_the_page(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, list(rows(2)))
    browser.run("""(() => {
        const made = document.createElement('script');
        try { made.textContent = 'window.hit = 9'; document.body.append(made) } catch (refused) {}
        try { document.body.innerHTML = '<b id=made>' } catch (refused) {} })()""")
    assert browser.run("window.hit") is None
    assert browser.run("document.getElementById('made')") is None
    assert browser.trouble  # the refusals are reported
    browser.trouble.clear()


def test_an_unsafe_reply_is_not_in_the_page_until_it_is_opened_and_evidence_is_marked(
    browser: Browser, tmp_path: Path
) -> None:
    judges = {"rules": {"refusal": "complied", "harm": "unsafe", "rule": "steps", "evidence": "The second sentence."}}
    opened(browser, tmp_path, [row("a", "m", "attack", "First.\nThe second\nsentence. Third.", 1.0, judges=judges)])
    detail = "document.getElementById('t-detail').textContent"
    assert "second" not in browser.run(detail)
    assert "A judge calls this reply unsafe." in browser.run(detail)
    browser.run("document.querySelector('.fold > summary').click()")
    assert shown(browser, "#t-detail mark") == ["The second\nsentence."]
    assert shown(browser, "#t-detail q") == ["The second sentence."]
    assert browser.trouble == []


def test_models_stand_side_by_side_under_what_they_share(browser: Browser, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "A"},
             {"role": "assistant", "content": "invented"}, {"role": "user", "content": "B"}]  # fmt: skip
    found = [
        row("a", m, "attack", f"{m} says no.", 0.0, messages=turns, style="fake_turns") for m in ("merged", "aligned")
    ]
    opened(browser, tmp_path, found)
    assert shown(browser, ".asked .who") == ["system", "user", "assistant (written by the attack)", "user"]
    assert shown(browser, ".answer h4") == ["merged", "aligned"]
    assert shown(browser, ".answer .said") == ["merged says no.", "aligned says no."]


def test_a_scenario_shows_what_was_expected_and_its_own_replies(browser: Browser, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "hm"}, {"role": "user", "content": "B"}]
    expected = [{"kind": "must_refer", "about": "a pharmacist", "met": True, "evidence": "Ask a pharmacist."},
                {"kind": "must_not_say", "about": "double it", "met": None, "evidence": ""}]  # fmt: skip
    opened(browser, tmp_path, [row("s", "m", "scenario", "Ask a pharmacist.", None, judges={}, messages=turns,
                                   expectations=expected)])  # fmt: skip
    assert shown(browser, ".answer .who") == ["reply", "user", "reply"]
    text = " ".join(shown(browser, ".judges li"))
    assert "met must refer: a pharmacist" in text
    assert "no verdict must not say: double it" in text
    assert shown(browser, "#t-detail mark") == ["Ask a pharmacist."]


def test_keys_move_through_the_list_and_the_focus_can_be_seen(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, list(rows(120)))
    browser.run("document.getElementById('t-list').focus()")
    active = "document.getElementById('t-list').getAttribute('aria-activedescendant')"
    for key, place in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("PageDown", 51), ("End", 119), ("Home", 0)):
        browser.press(key)
        assert browser.run(active) == f"t-item-{place}", key
        assert browser.run(f"document.querySelector('[aria-selected=\"true\"]').id === {active}")
        assert browser.run(f"document.getElementById({active}).getAttribute('aria-posinset')") == str(place + 1)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "t-detail"
    assert browser.run(outline) == "solid"
    browser.press("Escape")
    assert browser.run("document.activeElement.id") == "t-list"
    assert browser.trouble == []


def pick(browser: Browser, field: str, name: str) -> str:
    """Choose a filter's option by its name; returns the status line."""
    browser.run(f"""(() => {{ const s = document.getElementById('t-{field}');
        s.value = [...s.options].find(o => o.textContent.startsWith({json.dumps(name)})).value;
        s.dispatchEvent(new Event('change')) }})()""")
    return str(browser.run("document.getElementById('t-status').textContent"))


def test_filters_hold_together_and_clear(browser: Browser, tmp_path: Path) -> None:
    found = list(rows(60))
    opened(browser, tmp_path, found)
    unsafe = {r["item"] for r in found if r["kind"] == "attack" and r["value"] == 1.0}
    mine = {r["item"] for r in found if r["kind"] == "attack" and r["value"] == 1.0 and r["model"] == "aligned"}
    assert pick(browser, "verdict", "unsafe") == f"{len(unsafe)} of 60 items"
    assert pick(browser, "model", "aligned") == f"{len(mine)} of 60 items"  # of one and the same transcript
    fiction = {r["item"] for r in found if r["item"] in mine and r["style"] == "fiction"}
    assert pick(browser, "style", "fiction") == f"{len(fiction)} of 60 items"
    browser.run("document.getElementById('t-clear').click()")
    assert browser.run("document.getElementById('t-status').textContent") == "60 items"
    odd = {r["item"] for r in found if disagree({**r, "judges": json.loads(r["judges"])})}
    browser.run("document.getElementById('t-disagree').click()")
    assert browser.run("document.getElementById('t-status').textContent") == f"{len(odd)} of 60 items"


def search(browser: Browser, text: str) -> tuple[str, float]:
    """Type into the search box; (status line, milliseconds until the list shows it, the pause for typing included)."""
    found = browser.run(f"""(async () => {{
        const box = document.getElementById('t-search'), status = document.getElementById('t-status');
        status.textContent = ''; box.value = {json.dumps(text)};
        const start = performance.now();
        box.dispatchEvent(new Event('input'));
        while (!status.textContent) await new Promise(done => setTimeout(done, 1));
        await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        return [status.textContent, performance.now() - start] }})()""")
    return str(found[0]), float(found[1])


def test_search_finds_every_word_in_requests_and_replies(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, list(rows(40)))
    assert search(browser, "request NUMBER 17:")[0] == "1 of 40 items"
    assert search(browser, "reply aligned 23")[0] == "1 of 40 items"
    assert search(browser, "no such thing at all")[0] == "0 of 40 items"
    assert shown(browser, "#t-detail") == ["Nothing matches."]
    assert search(browser, "item00007")[0] == "1 of 40 items"
    assert search(browser, "")[0] == "40 items"
    assert browser.trouble == []


def test_ten_thousand_transcripts_stay_responsive(browser: Browser, tmp_path: Path) -> None:
    """Filtering takes 50 ms on a laptop; the bound leaves room for a machine that does other work, too."""
    page = opened(browser, tmp_path, list(rows(3334)), 16_000_000)
    assert page.stat().st_size < 17_000_000
    assert browser.run("document.getElementById('t-status').textContent") == "3,334 items"
    assert browser.run("document.querySelectorAll('#t-list li').length") == 50
    taken = [search(browser, text) for text in ("pharmacist", "4711 nothing", "reply 3333", "")]
    assert [status for status, _ in taken][1:] == ["0 of 3,334 items", "1 of 3,334 items", "3,334 items"]
    assert sorted(ms for _, ms in taken)[1] < 1500
    browser.run("document.getElementById('t-list').focus()")
    browser.press("End")
    assert browser.run("document.querySelector('[aria-selected=\"true\"]').getAttribute('aria-posinset')") == "3334"
    assert browser.trouble == []


def test_a_reply_of_a_megabyte_is_folded_and_opens_in_steps(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, [row("a", "m", "attack", "word \u202e" * 170_000, 0.0)], None)
    length = "document.querySelector('.answer .said').textContent.length"
    first = browser.run(length)
    assert first < 12_000
    browser.run("document.querySelector('.more').click()")
    assert first < browser.run(length) < 300_000
    assert "more characters" in browser.run("document.querySelector('.more').textContent")
    assert browser.run("document.getElementById('t-detail').scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("width", [1280, 700, 390])
def test_it_is_laid_out_without_overflow(browser: Browser, tmp_path: Path, width: int) -> None:
    """Nothing but the containers that scroll is wider than the page."""
    opened(browser, tmp_path, list(rows(12)), width=width, dark=width == 700)
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = browser.run("""(() => { document.querySelectorAll('details').forEach(d => d.open = true);
        const right = document.documentElement.clientWidth + 1;
        return [...document.querySelectorAll('#safety *, #transcripts *')].filter(e =>
            !e.closest('.scroll, .answers, svg') && e.getBoundingClientRect().right > right
        ).map(e => e.tagName + e.className) })()""")
    assert wide == []
    assert browser.trouble == []


def test_functions_without_a_file_say_none(tmp_path: Path) -> None:
    from aloe.report.evidence import gather

    run = FakeRun(tmp_path)
    assert transcripts(gather(run.step("corpus", "curate", "dialogues", {"n.txt": ""}).path)) is None
