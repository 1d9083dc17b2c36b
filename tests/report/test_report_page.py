"""The report: self-contained, escaped, complete for a release, silent about what isn't there, refusing edited files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from fake_release import FakeRun, make_release
from fake_results import CHECKPOINTS, STYLES, TOPICS

import aloe.report
from aloe.errors import AloeError
from aloe.report import build_report, write_report
from aloe.report.charts import Curve, Dot, clip, curves, dots, ledger_bar, short, ticks
from aloe.report.flow import Node, flow

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags with attributes, text by section, and whether every tag is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.text, self.open = html, [], {}, []
        self.section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data

    def sections(self) -> set[str]:
        return {a["id"] for t, a in self.tags if t == "section"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return make_release(tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def page(made: FakeRun) -> Page:
    return Page(build_report(made.store.root / "release"))


# -- the page itself ----------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_has_every_section(page: Page) -> None:
    assert page.open == []
    assert page.html.startswith("<!DOCTYPE html>")
    assert page.sections() == {
        "recipe",
        "scores",
        "ensembles",
        "safety",
        "risks",
        "training",
        "data",
        "merges",
        "previews",
        "protocols",
        "inputs",
        "ledger",
        "digests",
    }
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"].removeprefix("#") for t, a in page.tags if t == "a"} <= targets


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert not {t for t, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        assert not {k for k in attributes if k == "src" or k.startswith("on") or k == "style"}
        assert attributes.get("href", "#").startswith("#")
    style = page.html[page.html.index("<style>") : page.html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy or "")


def test_text_of_models_and_data_is_escaped(page: Page) -> None:
    assert "<script>alert" not in page.html
    assert page.html.count("&lt;script&gt;alert") > 5
    assert "<b>violation" not in page.html
    assert "<b>violation</b>" in page.text["safety"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page.html)


def test_templates_never_switch_escaping_off() -> None:
    for template in (Path(aloe.report.__file__).parent / "templates").glob("*.j2"):
        text = template.read_text(encoding="utf-8")
        assert "|safe" not in text.replace(" ", "")
        assert "autoescape" not in text


def test_light_and_dark_and_phone(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.html
    assert any(a.get("name") == "viewport" for _, a in page.tags)
    charts = [a for t, a in page.tags if t == "svg"]
    assert len(charts) > 20
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_can_be_told_from_the_background(page: Page, scheme: int) -> None:
    """WCAG 2: text 4.5 to 1, graphical objects 3 to 1."""
    found = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", page.html.split(":root {")[scheme + 1]))
    graphics = dict.fromkeys(("kept", "lost1", *(f"s{n}" for n in range(6))), 3.0)
    for name, least in {"fg": 7.0, "soft": 4.5, "link": 4.5, **graphics}.items():
        assert _contrast(found[name], found["bg"]) >= least, name


def _contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# -- what a release shows -----------------------------------------------------------------------------------------


def test_the_head_states_family_model_code_and_machine(page: Page) -> None:
    head = page.text[""]
    for word in (
        "Aloe-Fake-demo",
        "aligned",
        "aloe 0.1.0 0123456789ab with uncommitted changes",
        "Example 3000, 2 cores",
        "cc-by-nc-4.0",
    ):
        assert word in head
    assert "begun" not in head  # the manifest says no time


def test_the_graph_names_every_step_its_time_and_how_it_is_known(page: Page) -> None:
    text = page.text["recipe"]
    for step in ("corpus", "reasoning", *CHECKPOINTS[1:], "attacks", "scores", "red_team", "release"):
        assert step in text
    assert "synthesize · 1 h 7 min" in text
    for state in ("evidence enclosed", "artifact in the store", "this artifact"):
        assert state in text
    label = next(a["aria-label"] for t, a in page.tags if t == "svg" and "flow" in (a.get("class") or ""))
    assert "aligned from attacks, helpful" in (label or "")


def test_scores_show_value_interval_and_n_and_gaps_as_gaps(page: Page) -> None:
    text = " ".join(page.text["scores"].split())
    assert "45.0% [36.4 to 53.9] n = 120" in text
    assert "2 unparsed, counted as wrong" in text
    assert "not run" in text  # the base under medprompt
    assert "0.82 [0.770 to 0.870]" in text
    assert "not compared: the two were scored under different protocols" in text
    assert "+5.0" in text
    labels = [a["aria-label"] or "" for t, a in page.tags if t == "svg"]
    assert any("aligned: 45.0%, 95% interval 36.4% to 53.9%, n = 120" in label for label in labels)


def test_red_team_has_over_refusal_beside_attack_success_in_the_recipes_order(page: Page) -> None:
    text = page.text["safety"]
    assert text.index("Attack success") < text.index("Over-refusal")
    assert text.index("merged") < text.index("helpful") < text.index("aligned")
    for group in (*STYLES, *TOPICS):
        assert group.replace("_", " ") in text
    assert "24 base requests" in text
    assert "p: exact McNemar" in text


def test_training_curves_warnings_and_thinning(page: Page) -> None:
    text = page.text["training"]
    assert "700 steps. A point is the mean of 3 steps." in " ".join(text.split())
    assert "reward margin" in text
    assert "accuracy: chosen above rejected" in text
    assert "chosen answers have lost 0.020 nats" in text


def test_data_flow_shows_five_dropped_rows_a_stage_over_all_reasons(page: Page) -> None:
    text = " ".join(page.text["data"].split())
    assert "empty 4, junk answer 9" in text
    at = text.index("Dropped at clean: examples")
    rows = text[at : text.index("Dropped at", at + 10)]
    assert rows.count("How many hours") == 5
    assert rows.count("junk answer") == 2
    assert "jaccard 0.81" in text


def test_harmful_replies_of_a_preview_are_withheld(page: Page) -> None:
    assert "SECRET-HARMFUL-REPLY" not in page.html
    assert "Withheld: the pairs of attacks" in page.text["previews"]
    assert any(t == "mark" for t, _ in page.tags)


def test_risks_inputs_energy_and_digests(page: Page, made: FakeRun) -> None:
    assert "very high" in page.text["risks"]
    assert "Not stated: intensity" in page.text["ledger"]
    assert "Carbon: unknown" in page.text["ledger"]
    assert "not metered" in page.text["ledger"]
    assert "no, it measured it" in page.text["inputs"]
    assert "134,515,008" in page.text["merges"]
    for artifact in made.made.values():
        assert artifact.content_digest in page.text["digests"]


def test_the_page_is_the_same_twice(made: FakeRun, page: Page) -> None:
    assert build_report(made.store.root / "release") == page.html


# -- other artifacts, absent and edited evidence ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "there", "absent"),
    [
        ("scores", {"scores", "protocols", "safety"}, {"training", "transcripts", "risks"}),
        ("red_team", {"safety", "protocols"}, {"scores", "training", "transcripts"}),
        ("corpus", {"data", "inputs"}, {"scores", "training", "merges"}),
        ("sft", {"training", "previews"}, {"scores", "merges"}),
        ("merged", {"merges"}, {"scores", "training"}),
    ],
)
def test_an_artifact_shows_the_sections_of_its_own_files(
    made: FakeRun, step: str, there: set[str], absent: set[str]
) -> None:
    page = Page(build_report(made.store.root / step))
    assert there | {"recipe", "ledger", "digests"} <= page.sections()
    assert not absent & page.sections()
    assert "Aloe-Fake-demo" in page.text[""]


def test_a_release_moved_away_keeps_what_it_carries(made: FakeRun, tmp_path: Path) -> None:
    copy = tmp_path / "release"
    shutil.copytree(made.store.root / "release", copy)
    page = Page(build_report(copy))
    assert {"scores", "safety", "risks", "merges", "data"} <= page.sections()
    assert not {"training", "previews"} & page.sections()
    assert "manifest only" in page.text["recipe"]
    assert "empty 4, junk answer 9" in page.text["data"]  # the ledger is in the lineage
    assert "examples" not in page.text["data"]


def test_an_artifact_moved_away_knows_its_inputs_by_digest_only(made: FakeRun, tmp_path: Path) -> None:
    copy = tmp_path / "aligned"
    shutil.copytree(made.store.root / "aligned", copy)
    page = Page(build_report(copy))
    assert "digest only" in page.text["recipe"]
    assert "unknown" in page.text["recipe"]
    assert "SECRET-HARMFUL-REPLY" not in page.html  # pairs of unknown making may be a red team's


def test_an_edited_result_is_refused(made: FakeRun, tmp_path: Path) -> None:
    copy = tmp_path / "scores"
    shutil.copytree(made.store.root / "scores", copy)
    text = (copy / "scores.json").read_text()
    (copy / "scores.json").write_text(text.replace("0.45", "0.95"))
    with pytest.raises(AloeError, match="changed after it was written"):
        build_report(copy)


def test_an_edited_manifest_is_refused(made: FakeRun, tmp_path: Path) -> None:
    copy = tmp_path / "sft"
    shutil.copytree(made.store.root / "sft", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["wall_seconds"] = 1.0
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AloeError, match="its own digest does not hold"):
        build_report(copy)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="not an artifact"):
        build_report(tmp_path)


def test_write_report_writes_whole_files_outside_the_artifact(made: FakeRun, tmp_path: Path) -> None:
    folder = made.store.root / "corpus"
    out = tmp_path / "new" / "corpus.html"
    assert write_report(folder, out) == out
    assert out.read_text(encoding="utf-8").endswith("</html>")
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(AloeError, match="inside the artifact"):
        write_report(folder, folder / "report.html")
    with pytest.raises(AloeError, match="is a folder"):
        write_report(folder, tmp_path)


# -- charts -------------------------------------------------------------------------------------------------------


def test_dots_stand_where_their_values_are() -> None:
    svg = str(dots([Dot("a", 0.0), Dot("b", 0.5, 0.4, 0.6), Dot("c", 1.0), Dot("d", None)], "t"))
    x = [float(v) for v in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert len(x) == 3
    assert x[1] == pytest.approx((x[0] + x[2]) / 2, abs=0.01)
    assert "not measured" in svg


def test_a_curve_breaks_at_values_that_are_not_finite() -> None:
    values = [1.0, 2.0, float("nan"), 2.0, 1.0, float("inf")]
    svg = str(curves([Curve("l", list(enumerate(values)))], "t", "step"))
    assert svg.count("<path") == 2
    assert not re.search(r'"[^"]*\b(nan|inf)\b', svg.lower())
    assert str(curves([Curve("l", [(0, float("nan"))])], "t", "step")) == ""
    assert "<circle" in str(curves([Curve("l", [(0, 1.0)])], "t", "step"))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.63, 2.9), (-0.3, 0.4), (0, 2e-5), (5, 5), (0, 0), (1e3, 1e6)])
def test_ticks_span_the_values_evenly(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 9
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))


def test_short_numbers_and_clipped_names() -> None:
    assert [short(v) for v in (0, 0.25, 2e-5, 1.5e-5, 12000, -0.1)] == ["0", "0.25", "2e-5", "1.5e-5", "12k", "-0.1"]
    assert clip("short", 200) == "short"
    assert clip("smollm2-135m-instruct", 64) == "smol…truct"


def test_ledger_bar_is_in_proportion() -> None:
    svg = str(ledger_bar(75, [("a", 25)], "t"))
    assert re.findall(r'<rect x="[\d.]+" y="1" width="([\d.]+)"', svg) == ["150", "50"]
    assert str(ledger_bar(0, [], "t")) == ""


def test_boxes_of_the_graph_never_overlap_and_inputs_stand_above() -> None:
    names = [f"n{n}" for n in range(12)]
    edges = [(names[a], names[b]) for b in range(12) for a in range(b) if (a * 7 + b * 3) % 5 == 0]
    svg = str(flow([Node(n, ["verb", "state"], ["in"] * (len(n) % 3)) for n in names], edges))
    boxes = {
        n: tuple(float(v) for v in found)
        for n, *found in re.findall(
            r'<title>(n\d+): [^<]*</title><rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg
        )
    }
    assert set(boxes) == set(names)
    for a in names:
        for b in names:
            (x, y, w, h), (x2, y2, w2, h2) = boxes[a], boxes[b]
            assert a == b or x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    assert all(boxes[a][1] + boxes[a][3] < boxes[b][1] for a, b in edges)


# -- in a browser -------------------------------------------------------------------------------------------------


def test_chromium_renders_it(made: FakeRun, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    html = write_report(made.store.root / "release", tmp_path / "release.html")
    shot = tmp_path / "release.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={shot}",
        "--window-size=1280,4000",
    ]
    subprocess.run([browser, *flags, html.as_uri()], check=True, capture_output=True, timeout=120)
    assert shot.read_bytes()[:4] == b"\x89PNG"
    assert shot.stat().st_size > 100_000
