"""The report of a loop that really ran, on a tiny model: its rounds stand in the page as the loop wrote them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from aloe.report import write_report
from aloe.report.evidence import gather
from aloe.report.hardening import loops
from aloe.run.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))


def stored(ctx: Any, summary: dict[str, Any], root: Path) -> Path:
    """What the loop left, as an artifact of a store."""
    store = Store(root / "tiny")
    store.folder.mkdir(parents=True)
    folder = store.begin("hardened")
    shutil.copytree(ctx.out, folder, dirs_exist_ok=True)
    manifest = {
        "fingerprint": "0" * 32, "kind": "model", "step": "hardened", "verb": "red_team_loop", "version": 1,
        "parameters": {}, "inputs": {}, "ledger": [], "tokens": ctx.tokens, "summary": summary, "wall_seconds": 1.0,
        "seed": 7,
    }  # fmt: skip
    return store.finish(folder, "red_team_loop", "hardened", manifest).path


def test_a_loop_that_ran_is_told_round_by_round(ran: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    from chromium import Browser

    place = stored(*ran, tmp_path)
    told = json.loads((place / "loop.json").read_text())
    (found,) = loops(gather(place))
    assert len(found["rounds"]) == len(told["rounds"]) > 1
    page = write_report(place, tmp_path / "page.html")
    shots = Path(os.environ.get("ALOE_SHOTS", tmp_path))
    with Browser(tmp_path / "profile") as browser:
        for width, dark in ((1280, True), (1280, False), (390, False)):
            browser.open(page, width, 900, dark)
            assert browser.run("document.documentElement.scrollWidth") <= width
            browser.shoot(shots / f"loop-{width}-{'dark' if dark else 'light'}.png", "#hardening")
        text = browser.run("document.getElementById('hardening').innerText")
        rows = browser.run("document.querySelectorAll('#hardening table tbody tr').length")
        assert browser.trouble == []
    assert rows >= len(told["rounds"])
    assert "None" not in text
    assert "nan" not in text.lower().split()
