"""The training section: budget, curves with their marks, time, memory, masks, packing, replies; nothing harmful."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fake_release import FakeRun
from fake_training import HARM, figures, lines, make_training, pair_preview, preview, timing
from test_report_page import Page

from aloe.report import build_report, write_report
from aloe.report.charts import Curve, curves
from aloe.report.training_charts import packed_rows, stack


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return make_training(tmp_path_factory.mktemp("trained"))


def page_of(made: FakeRun, step: str) -> Page:
    return Page(build_report(made.store.root / step))


@pytest.fixture(scope="module")
def sft(made: FakeRun) -> Page:
    return page_of(made, "sft")


@pytest.fixture(scope="module")
def helpful(made: FakeRun) -> Page:
    return page_of(made, "helpful")


def words(page: Page, section: str) -> str:
    """A section's text, one space between pieces, pictures left out."""
    part = page.html[page.html.index(f'<section id="{section}">') :].partition("</section>")[0]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", "", part, flags=re.S))).split())


def label(page: Page, beginning: str) -> str:
    found = [a["aria-label"] or "" for t, a in page.tags if t == "svg"]
    return next(said for said in found if said.startswith(beginning))


# -- what it states -----------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_reachable(sft: Page, helpful: Page) -> None:
    for page in (sft, helpful):
        assert page.open == []
        assert {"training", "previews"} <= page.sections()
        assert {"#training", "#previews"} <= {a.get("href") for t, a in page.tags if t == "a"}


def test_the_token_budget(sft: Page, helpful: Page) -> None:
    assert "rows 960 steps 120 tokens 240,000 trained tokens 84,000 (35.0%) padding 3.1%" in words(sft, "training")
    # no totals in this one's summary: they are added up over its steps, and padding is unknown
    text = words(helpful, "training")
    assert "rows 960 steps 120 tokens 240,000 trained tokens 84,000 (35.0%) chunks" in text
    assert "padding" not in text


def test_loss_has_held_out_rows_and_where_the_run_was_taken_up(sft: Page) -> None:
    said = label(sft, "sft: loss")
    assert "training: 2." in said
    assert "held-out rows: 3.1 at 0, " in said
    assert "resumed at 40; resumed at 80" in said
    assert "taken up again after step 40, 80" in words(sft, "training")
    assert "trained tokens: 175 at 0, 175 at 119" in label(sft, "sft: tokens a second")


def test_preferences_have_zero_lines_the_warning_and_chunks(helpful: Page) -> None:
    drift = label(helpful, "helpful: drift")
    assert drift.endswith("warning at 70")
    assert label(helpful, "helpful: reward margin").count("held-out rows") == 1
    assert "chunk 2 at 24; chunk 3 at 48; chunk 4 at 72; chunk 5 at 96" in label(helpful, "helpful: loss")
    figures_ = re.findall(r"<figcaption>([^<]*)</figcaption>(.*?)</figure>", helpful.html, flags=re.S)
    zero = {name.split(",")[0] for name, svg in figures_ if 'class="level"' in svg}
    assert zero == {"reward margin", "rewards", "drift of the chosen answers"}
    assert "lost 0.021 nats a token" in words(helpful, "training")
    assert "5: 24, 24, 24, 24, 24 steps" in words(helpful, "training")


def test_where_time_went(sft: Page, helpful: Page) -> None:
    text = words(sft, "training")
    assert "1 data 6 1.2% 0.05 2 forward 120 25.0% 1 3 backward 300 62.5% 2.5 4 optimiser 48 10.0% 0.4 5 other" in text
    assert "3. backward 62.5%" in label(sft, "sft: where time went")
    assert "Where time went" not in words(helpful, "training")  # its steps state no phases
    assert "tokens: 300 at 0" in label(helpful, "helpful: tokens a second") or "300 at 0" in label(
        helpful, "helpful: tok"
    )


def test_memory_plan_against_the_measured_peak(sft: Page, helpful: Page) -> None:
    text = words(sft, "training")
    assert (
        "3.45 GB planned for each device, 2.95 GB measured at the peak (85.6% of the plan); 15.00 GB could be had"
        in text
    )
    assert "1 AdamW's moments 1.08 GB 2 activations 543.00 MB" in text
    assert label(sft, "sft: memory plan").endswith("; measured peak 2.95 GB")
    assert "Memory: planned" not in words(helpful, "training")


def test_masks_are_marked_and_branches_named(sft: Page, helpful: Page) -> None:
    assert re.findall(r'<mark class="trained">([^<]*)</mark>', sft.html)[1] == "Get well.&lt;|im_end|&gt;"
    style = sft.html[: sft.html.index("</style>")]
    assert re.search(r"mark\.trained \{[^}]*underline", style)  # not by colour alone
    text = words(helpful, "previews")
    assert re.search(r"prompt .*headache.* chosen .*Drink water.* rejected .*Ignore it", text)
    assert "60 tokens, 20 trained" in words(sft, "previews")
    assert "<h5>" not in sft.html  # a dialogue has no branches to name


def test_packing_is_told_and_in_proportion(sft: Page) -> None:
    said = label(sft, "sft: the first packed rows")
    assert "packed row 1: 3 examples, 384 tokens, 4 padding: 200 (100 trained), 120 (30 trained)" in said
    assert "packed row 2: 8 examples, 192 tokens, no padding" in said
    svg = str(packed_rows(preview("x")["packing"], "t"))
    boxes = [float(w) for w in re.findall(r'<rect class="boxed" x="[\d.]+" y="20" width="([\d.]+)"', svg)]
    assert [(b + 2) / (boxes[0] + 2) for b in boxes] == pytest.approx([1, 0.6, 0.3], abs=0.01)
    filled = [float(w) for w in re.findall(r'<rect x="[\d.]+" y="20" width="([\d.]+)" height="18" class="fill0"', svg)]
    assert [f / b for f, b in zip(filled, boxes, strict=True)] == pytest.approx([0.5, 0.25, 1], abs=0.01)
    assert svg.count('class="padding"') == 2
    assert str(packed_rows([], "t")) == ""


def test_replies_by_prompt_over_the_run(sft: Page) -> None:
    text = words(sft, "training")
    assert text.count("Reply 0 after") == 6
    for step in (0, 24, 48, 72, 96, 120):
        assert f"Reply 2 after {step} steps" in text
    assert "system: Be brief. user: Is fever dangerous?" in text
    assert "step 0 cut at the length Reply 1" in text
    assert "Some of 33 replies; samples.jsonl has all." in text


# -- what it doesn't show -----------------------------------------------------------------------------------------


def test_texts_of_a_red_teams_pairs_and_replies_are_withheld(made: FakeRun, tmp_path: Path) -> None:
    page = page_of(made, "aligned")
    assert HARM not in page.html
    assert words(page, "training").count("Withheld: the pairs of attacks") == 1
    assert words(page, "previews").count("Withheld: the pairs of attacks") == 1
    assert "2 examples, 150 tokens" in label(page, "aligned: the first packed rows")  # counts are no texts
    shutil.copytree(made.store.root / "aligned", tmp_path / "away")
    away = Page(build_report(tmp_path / "away"))  # the pairs' step is unknown now, so they may be a red team's
    assert HARM not in away.html
    assert "Withheld" in words(away, "previews")


def test_texts_are_escaped(sft: Page) -> None:
    assert "<script" not in sft.html
    assert not {t for t, _ in sft.tags} & {"script", "img"}
    assert sft.html.count("&lt;script&gt;alert") > 15
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", sft.html)
    for _, attributes in sft.tags:
        assert not {k for k in attributes if k == "style" or k.startswith("on")}


PARTS: list[tuple[str, Any]] = [
    ("evals.jsonl", "held-out rows"),
    ("logs/timing.jsonl", "Where time went"),
    ("samples.jsonl", "Replies during training"),
    ("preview.json", "The first packed rows"),
]


@pytest.mark.parametrize(("left_out", "said"), PARTS)
def test_a_part_without_its_file_is_not_there(tmp_path: Path, left_out: str, said: str) -> None:
    files: dict[str, Any] = {
        "metrics.jsonl": lines(figures(s) for s in range(9)),
        "evals.jsonl": lines({"step": s, "loss": 1.0} for s in (0, 9)),
        "logs/timing.jsonl": lines(timing(s) for s in range(9)),
        "samples.jsonl": lines([{"step": 1, "prompt": "p", "reply": "r"}]),
        "preview.json": preview("x"),
    }
    run = FakeRun(tmp_path)
    run.step("whole", "sft", "model", files)
    del files[left_out]
    run.step("part", "sft", "model", files)
    whole, part = (Page(build_report(run.store.root / name)) for name in ("whole", "part"))
    assert said in whole.html
    assert said not in part.html
    assert part.open == []


def test_odd_records_do_not_break_it(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    odd = [{"step": 0, "loss": float("nan"), "lr": None}, {"loss": "high"}, {"step": 2, "loss": 1.0}]
    run.step(
        "odd",
        "dpo",
        "model",
        {
            "metrics.jsonl": "\n".join(json.dumps(x) for x in odd),
            "evals.jsonl": "{}",
            "logs/timing.jsonl": lines([{}, {"data_s": 0, "forward_s": 0, "backward_s": 0, "optimizer_s": 0}]),
            "samples.jsonl": lines([{}]),
            "preview.json": {"rows": [{"key": "k", "tokens": 1, "trained": 0, "parts": []}], "packing": []},
        },
        summary={"memory": {"plan": None}, "chunks": [3], "resumed_from": None, "warnings": None},
        peak_memory_bytes=None,
    )
    page = page_of(run, "odd")
    assert page.open == []
    assert "Where time went" not in page.html
    assert "chunks" not in words(page, "training")


def test_an_old_preview_is_shown_where_there_is_no_new_one(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.step("sft", "sft", "model", {"metrics.jsonl": lines([figures(0)]), "preview.txt": "head ⟦x⟧\n=== k\nuser ⟦Hi⟧"})
    assert re.findall(r'<mark class="trained">([^<]*)</mark>', page_of(run, "sft").html) == ["Hi"]
    assert pair_preview("a", "b")["rows"][0]["parts"][1]["trained"]


# -- charts -------------------------------------------------------------------------------------------------------


def test_a_stack_is_in_proportion_and_its_mark_may_lie_beyond() -> None:
    svg = str(stack([("a", 3.0, "3"), ("b", 1.0, "1"), ("c", 0.0, "0")], "t", (8.0, "peak")))
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert len(widths) == 2
    assert (widths[0] + 1) / (widths[1] + 1) == pytest.approx(3)
    mark = float(re.search(r'<line x1="([\d.]+)"', svg)[1])  # type: ignore[index]
    assert mark - 1 == pytest.approx(2 * (widths[0] + widths[1] + 2), abs=0.1)
    assert str(stack([("a", 0.0, "0")], "t")) == ""


def test_levels_widen_the_axis_and_marks_outside_are_left_out() -> None:
    points = [(0.0, 5.0), (10.0, 6.0)]
    svg = str(curves([Curve("l", points)], "t", "step", [(0.0, "zero")], [(4.0, "here"), (40.0, "there")]))
    assert ">0</text>" in svg
    assert ">zero</text>" in svg
    assert svg.count('class="event"') == 1
    assert "here at 4" in svg
    assert "there" not in svg
    assert ">0</text>" not in str(curves([Curve("l", [(1.0, 5.0), (10.0, 6.0)])], "t", "step"))


# -- in a browser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_lays_it_out_without_overflow(made: FakeRun, tmp_path: Path, width: int) -> None:
    """At a desk's and a phone's width no part but the containers that scroll is wider than the page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    page = write_report(made.store.root / "sft", tmp_path / "page.html").read_text(encoding="utf-8")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("<details>", "<details open>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="f" src="page.html" style="width:{width}px;height:900px;border:0"></iframe><p id="out">none</p>'
        "<script>onload = () => { const d = document.getElementById('f').contentDocument; const w = d.documentElement;"
        "const wide = [...d.querySelectorAll('#training *, #previews *')].filter(e => !e.closest('.scroll') &&"
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
