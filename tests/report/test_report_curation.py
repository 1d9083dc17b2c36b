"""The curation section: every part, proportions of the flow, marked matches, no personal data, nothing unescaped."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_curation import DROPPED, FORMER, LATTER, SECRET, SOURCES, curation_record
from fake_release import STORED, FakeRun, make_release
from hypothesis import given
from hypothesis import strategies as st
from test_report_page import Page

from aloe.report import build_report, write_report
from aloe.report.curation import LEAD, WINDOW, curation, matching
from aloe.report.curation_charts import (
    BAND,
    BAND_LEFT,
    LEAST,
    Bar,
    Bin,
    Passage,
    bars,
    compact,
    histogram,
    rows_flow,
)


def curated(root: Path, record: dict[str, Any]) -> FakeRun:
    run = FakeRun(root)
    ledger = [
        {"stage": s["stage"], "in": s["rows_in"], "kept": s["kept"], "dropped": s["dropped"]} for s in record["stages"]
    ]
    dropped = [{"id": "medquad:p1", "stage": "phi", "reason": "phi", "row": {"question": f"I am {SECRET}."}}]
    run.step("corpus", "curate", "dialogues", {"curation.json": record, "dropped.parquet": dropped}, ledger=ledger)
    return run


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return curation_record()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]) -> Path:
    return curated(tmp_path_factory.mktemp("curated"), record).store.root / "corpus"


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(build_report(folder))


def words(page: Page) -> str:
    """The section's text, one space between cells, pictures left out."""
    section = page.html[page.html.index('<section id="curation">') :].partition("</section>")[0]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", "", section, flags=re.S))).split())


# -- the section --------------------------------------------------------------------------------------------------


def test_the_section_stands_for_the_ledger_and_is_well_formed(page: Page) -> None:
    assert page.open == []
    assert "curation" in page.sections()
    assert "data" not in page.sections()  # it would say the same again
    assert any(a.get("href") == "#curation" for t, a in page.tags if t == "a")


def test_every_stage_and_reason_is_in_picture_and_table(page: Page) -> None:
    label = next(a["aria-label"] or "" for t, a in page.tags if t == "svg" and "rows" in (a.get("class") or "").split())
    table = words(page)
    assert "40,133 rows read" in label
    for stage, reasons in DROPPED.items():
        assert f"{stage.replace('_', ' ')}: " in label
        for reason, n in reasons.items():
            assert f"{reason.replace('_', ' ')} {n:,}" in label
            assert f"{reason.replace('_', ' ')} {n:,}" in table
    assert "22,092 (55.0%)" in table
    assert "2.5 s" in table


def test_the_picture_and_wide_tables_scroll_by_themselves(page: Page) -> None:
    depth, inside = [], []
    for line in re.findall(r"<(/?)(div|table|svg)([^>]*)>", page.html[page.html.index('id="curation"') :]):
        if line[1] == "div":
            depth.append("scroll" in line[2]) if not line[0] else depth.pop()
        elif not line[0] and (line[1] == "table" or "chart rows" in line[2]):
            inside.append(any(depth))
        if not depth and "ledger" in line[2]:
            break
    assert len(inside) > 10
    assert all(inside)


def test_five_examples_a_reason_with_place_and_evidence(page: Page) -> None:
    text = words(page)
    for by_reason in DROPPED.values():
        for reason, n in by_reason.items():
            assert len(re.findall(rf"medquad:{reason}\d", text)) == min(n, 5)
    assert "jaccard 0.81, survivor medquad:s1" in text
    assert "medquad.jsonl:6" in text
    stages = [text.index(f"{stage.replace('_', ' ')}: {min(r).replace('_', ' ')}") for stage, r in DROPPED.items() if r]
    assert stages == sorted(stages)  # in the order in which rows meet them


def test_no_personal_data_is_on_the_page_but_counts_are(page: Page) -> None:
    for part in (SECRET, *SECRET.split(", ")):
        assert part not in page.html
    text = words(page)
    assert text.count("withheld: it holds personal data") == 5
    assert "260 rows with findings; dropped." in text
    assert "doctor_forum 240 181 22 9 3" in text
    assert "mts_dialog 2 0 0 0 0" in text


def test_lengths_licences_quality_tasks_and_mix(page: Page) -> None:
    text = words(page)
    assert "user 41.27 → 24.76" in text
    assert "cc-by-nc-4.0 the strictest 999 1,092 4.9%" in text
    assert "1,190 rows dropped whose similarity to a better one is above 0.9" in text
    assert "Templates (30)" in text
    labels = " ".join(a["aria-label"] or "" for t, a in page.tags if t == "svg")
    assert "question answering 9,000 · 40.7%" in labels
    for source in SOURCES:
        assert source in text
    assert "words of the assistant's turns, rows by words" in labels
    assert "quality scores" in labels


def test_contamination_by_source_and_benchmark_with_both_texts(page: Page) -> None:
    text = words(page)
    assert "medical_mcq 6 of 13,911 463 candidates, 34 suspected 7 of 13,911 278 candidates" in text
    assert "3 of 37 findings; contamination.json has all." in text
    marked = re.findall(r"<mark>(.*?)</mark>", page.html, flags=re.S)
    assert marked[:2] == [FORMER.removesuffix("?"), FORMER.removesuffix("?")]
    assert "Double the dose" in text
    assert not any("Double the dose" in m for m in marked)


def test_clusters_show_sizes_and_members(page: Page) -> None:
    text = words(page)
    assert "1,702 clusters of 4,082 rows together" in text
    assert "medquad:s1 and 211 like it" in text
    labels = " ".join(a["aria-label"] or "" for t, a in page.tags if t == "svg")
    assert "2 rows 1,399 · 82.2%; 3 210" in labels
    assert "6 to 10 12" in labels
    assert "over 100 rows 2" in labels


def test_text_of_rows_is_escaped_and_controls_are_shown_as_replaced(page: Page) -> None:
    section = page.html[page.html.index('id="curation"') :]
    assert "<script" not in page.html
    assert not {t for t, _ in page.tags} & {"script", "img"}
    assert section.count("&lt;script&gt;alert") > 20
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page.html)
    assert "\N{REPLACEMENT CHARACTER}" in section
    assert "\\N{" not in page.html
    for _, attributes in page.tags:
        assert not {k for k in attributes if k == "style" or k.startswith("on")}


def test_hostile_names_everywhere(record: dict[str, Any], tmp_path: Path) -> None:
    """Names of sources, stages, reasons, benchmarks, tasks and licences may come from files too."""
    evil = renamed(copy.deepcopy(record))
    html = build_report(curated(tmp_path, evil).store.root / "corpus")
    assert Page(html).open == []
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;") > 200


FIELDS = set(
    re.findall(
        r"\w+",
        """
    stages stage rows_in kept dropped by_source seconds examples before after user words mean median
    p95 max histogram from to rows licences tasks assistant clusters count sizes largest survivor
    text size members id similarity hits contamination table candidates contaminated suspected
    row_id source benchmark tier item_id row_text item_text total_hits phi mode rows_with by_kind
    quality scorer drop_share threshold unscored diversity max_similarity templates mix weight share
    licence where detail evidence
    """,
    )
)


def renamed(value: Any) -> Any:
    """Markup on every text, and on every name that isn't a field of the record."""
    if isinstance(value, dict):
        return {k if k in FIELDS or k.isdigit() else f"{k} {STORED}": renamed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [renamed(v) for v in value]
    return f"{value} {STORED}" if isinstance(value, str) else value


PARTS = ("examples", "before", "after", "clusters", "contamination", "phi", "quality", "diversity", "templates",
         "tasks", "mix", "licences", "licence")  # fmt: skip


@pytest.mark.parametrize("part", [*PARTS, "stages", "all"])
@pytest.mark.parametrize("how", ["null", "absent", "empty"])
def test_what_is_missing_is_left_out(record: dict[str, Any], part: str, how: str, tmp_path: Path) -> None:
    less = copy.deepcopy(record)
    for name in PARTS if part == "all" else (part,):
        if how == "absent":
            del less[name]
        else:
            less[name] = None if how == "null" or isinstance(less[name], str) else type(less[name])()
    run = FakeRun(tmp_path)
    run.step("corpus", "curate", "dialogues", {"curation.json": less})
    page = Page(build_report(run.store.root / "corpus"))
    assert page.open == []
    assert "curation" in page.sections()
    heading = {"quality": "Quality", "clusters": "Near-duplicate", "contamination": "Contamination by",
               "phi": "Personal", "stages": "Rows through", "examples": "Dropped rows"}.get(part)  # fmt: skip
    assert heading is None or heading not in words(page).replace("Quality and diversity", "")
    assert part != "all" or {t for t, a in page.tags if t == "svg" and a.get("class") == "chart"} == set()


def test_looking_for_nothing_is_said(record: dict[str, Any]) -> None:
    off = {"mode": "off", "rows_with": 0, "by_kind": {}, "by_source": {}}
    shown = curation({**record, "phi": off})
    assert shown["personal"]["mode"] == "off"
    assert "rows with personal data" not in dict(shown["facts"])


def test_a_release_shows_the_curation_of_its_steps(tmp_path: Path, record: dict[str, Any]) -> None:
    made = make_release(tmp_path / "plain")
    assert "curation" not in Page(build_report(made.store.root / "release")).sections()
    run = curated(tmp_path / "curated", record)
    lineage = {"corpus": run.made["corpus"].manifest}
    run.step("release", "release", "release", {"lineage.json": lineage}, inputs=("corpus",), summary={"name": "x"})
    page = Page(build_report(run.store.root / "release"))
    assert "40,133" in page.text["curation"]
    away = shutil.copytree(run.store.root / "release", tmp_path / "away")
    assert "curation" not in Page(build_report(away)).sections()  # its files stayed behind
    assert "junk answer 209" in " ".join(Page(build_report(away)).text["data"].split())  # the lineage has the counts


# -- flow ---------------------------------------------------------------------------------------------------------


def rects(svg: str, class_: str) -> list[tuple[float, ...]]:
    found = re.findall(rf'<rect x="([-\d.]+)" y="([-\d.]+)" width="([-\d.]+)" height="([-\d.]+)" class="{class_}"', svg)
    return [tuple(map(float, values)) for values in found]


def leaks(svg: str) -> list[tuple[float, float, float]]:
    """(left, right, thickness at the end) of every ribbon."""
    found = []
    for path in re.findall(r'<path d="(M[^"]*Z)" class="leak', svg):
        numbers = [float(n) for n in re.findall(r"[-\d.]+", path)]
        xs, ys = numbers[0::2], numbers[1::2]
        found.append((xs[-1], xs[0], ys[5] - ys[4]))
    return found


def test_widths_are_in_proportion_to_rows() -> None:
    svg = str(rows_flow([Passage("load", 1000, 750, {"a": 200, "b": 50}), Passage("mix", 750, 750, {})]))
    streams = rects(svg, "stream")
    assert [w for _, _, w, _ in streams] == [0.75 * BAND, 0.75 * BAND]
    assert [(r - left, thick) for left, r, thick in leaks(svg)] == [(20.0, 20.0), (5.0, 5.0)]
    (a_left, a_right, _), (b_left, b_right, _) = leaks(svg)
    assert (b_left, b_right, a_left, a_right) == tuple(BAND_LEFT + BAND * n / 1000 for n in (750, 800, 800, 1000))


def test_one_row_of_two_million_can_be_seen() -> None:
    svg = str(rows_flow([Passage("load", 2_000_000, 1_999_999, {"odd": 1})]))
    ((left, right, thick),) = leaks(svg)
    assert right - left == pytest.approx(LEAST, abs=0.1)
    assert thick == pytest.approx(LEAST, abs=0.1)
    assert "1 · &lt; 0.1%" in svg
    assert rects(str(rows_flow([Passage("x", 2_000_000, 1, {"most": 1_999_999})])), "stream")[0][2] == LEAST


@given(
    drops=st.lists(
        st.dictionaries(st.sampled_from("abcdefghijklmn"), st.integers(0, 10**6), max_size=14), min_size=1, max_size=12
    ),
    left=st.integers(0, 10**6),
)
def test_no_label_covers_another_and_nothing_leaves_the_picture(drops: list[dict[str, int]], left: int) -> None:
    rows, passages = left + sum(sum(d.values()) for d in drops), []
    for n, dropped in enumerate(drops):
        passages.append(Passage(f"stage_{n}", rows, rows - sum(dropped.values()), dropped))
        rows = passages[-1].kept
    svg = str(rows_flow(passages))
    if not passages[0].rows_in:
        assert svg == ""
        return
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())  # type: ignore[union-attr]
    assert "nan" not in svg.lower()
    labels = [(float(x), float(y)) for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"><tspan>', svg)]
    assert all(b[1] - a[1] >= 15 for a, b in pairwise(labels))
    for path in re.findall(r'<path d="(M[^"]*Z)"', svg):
        numbers = [float(n) for n in re.findall(r"[-\d.]+", path)]
        assert all(BAND_LEFT - 0.1 <= x <= width for x in numbers[0::2])
        assert all(0 <= y <= height for y in numbers[1::2])
    stations = rects(svg, "station")
    assert len(stations) == len(passages) + 1
    assert all(b[1] - a[1] >= 40 for a, b in pairwise(stations))


def test_many_reasons_end_in_one_that_counts_the_rest() -> None:
    svg = str(rows_flow([Passage("load", 1000, 900, {f"r{n:02}": 1 + n for n in range(13)} | {"z": 9})]))
    assert len(leaks(svg)) == 8
    assert "7 other reasons" in svg
    total = sum(int(n) for n in re.findall(r'dx="8" class="tick">(\d+) ·', svg))
    assert total == sum(range(1, 14)) + 9


# -- other charts -------------------------------------------------------------------------------------------------


def test_bars_and_histograms_are_in_proportion() -> None:
    svg = str(bars([Bar("a", 30, 0.5), Bar("b", 10, 0.5), Bar("c", 0)], "t"))
    long, half, none = [w for _, _, w, _ in [tuple(map(float, r)) for r in re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)]]  # fmt: skip
    assert long == pytest.approx(3 * half, abs=0.05)
    assert none == 0
    assert svg.count('class="mark"') == 2
    assert "meant to be 50.0%" in svg
    assert str(bars([Bar("a", 0)], "t")) == str(histogram([Bin(0, 1, 0)], "t", "x")) == ""
    svg = str(histogram([Bin(0, 1, 10, 20), Bin(1, 2, 20, 20), Bin(2, 4, 0, 5)], "t", "x", below=1.0))
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights == [65.0, 130.0, 0.0]
    assert re.findall(r'class="(lost1|fill0)"', svg) == ["lost1", "fill0", "fill0"]
    assert [compact(v) for v in (0, 0.25, 950, 1024, 16_384, 250_000, 2e6)] == [
        "0",
        "0.25",
        "950",
        "1k",
        "16k",
        "250k",
        "2M",
    ]


# -- matches ------------------------------------------------------------------------------------------------------


def marked(pieces: list[tuple[str, bool]]) -> list[str]:
    return [text for text, matches in pieces if matches]


def test_matching_runs_and_reordered_options_are_marked() -> None:
    row, item = matching(LATTER, FORMER)
    assert marked(row) == marked(item) == [FORMER.removesuffix("?")]
    row, item = matching("Drug of choice?\nA. Heparin\nB. Warfarin", "Drug of choice?\n(A) Warfarin\n(B) Aspirin")
    assert "".join(marked(row)) == "Drug of choiceWarfarin"
    assert "".join(marked(item)) == "Drug of choice?\n(A) Warfarin"
    assert matching("one two three", "four five six") == ([("one two three", False)], [("four five six", False)])
    assert marked(matching("Fever.", "FEVER")[0]) == ["Fever"]
    assert matching("", "x") == ([], [("x", False)])


def test_a_match_deep_in_a_long_text_is_shown() -> None:
    long = "Lorem " * 2000 + FORMER + " ipsum" * 2000
    row, _ = matching(long, FORMER)
    shown = "".join(text for text, _ in row)
    assert marked(row) == [FORMER.removesuffix("?")]
    assert len(shown) <= WINDOW + 4
    assert shown.index(FORMER) <= LEAD + 2
    assert shown.startswith("… ")
    assert shown.endswith(" …")


@given(st.text(max_size=60), st.text(max_size=60))
def test_pieces_put_together_are_the_texts(first: str, second: str) -> None:
    row, item = matching(first, second)
    assert "".join(t for t, _ in row) == first
    assert "".join(t for t, _ in item) == second
    assert marked(matching(first, first)[0]) == [] if not re.search(r"\w", first) else marked(matching(first, first)[0])


# -- in a browser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_lays_it_out_without_overflow(folder: Path, tmp_path: Path, width: int) -> None:
    """At a desk's and a phone's width no part but the containers that scroll is wider than the page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    page = write_report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("<details>", "<details open>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="f" src="page.html" style="width:{width}px;height:900px;border:0"></iframe><p id="out">none</p>'
        "<script>onload = () => { const d = document.getElementById('f').contentDocument; const w = d.documentElement;"
        "const wide = [...d.querySelectorAll('#curation *')].filter(e => !e.closest('.scroll') &&"
        " e.getBoundingClientRect().right > w.clientWidth + 1).map(e => e.tagName + '.' + e.className);"
        "document.getElementById('out').textContent ="
        " 'wide:' + w.scrollWidth + ':' + w.clientWidth + ':' + wide; }</script>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]  # fmt: skip
    done = subprocess.run([browser, *flags, outer.as_uri()], check=True, capture_output=True, text=True, timeout=120)
    found = re.search(r"wide:(\d+):(\d+):([^<]*)", done.stdout)
    assert found, done.stdout[-500:]
    assert int(found[1]) <= int(found[2]), found[3]
    assert found[3] == ""
