"""Text of others on the terminal: whatever is planted in it, no control sequence and no turned direction comes out."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe import terminal
from aloe.errors import AloeError
from aloe.terminal import UNSEEN_CODES, guard_streams, json_text, neutral, one_line

ESC = "\x1b"
PLANTED = (
    f"{ESC}[2J{ESC}[1;31mred{ESC}]0;title\x07{ESC}]8;;http://127.0.0.1/\x07link{ESC}]8;;\x07{ESC}]52;c;cm0gLXJmIC8=\x07"
    f"\roverwritten\x08\x9b31m‮evil‬⁦x⁩"
)
BAD = frozenset(map(chr, UNSEEN_CODES))


def clean(text: str) -> bool:
    return not BAD & set(text)


@given(st.text())
def test_what_is_shown_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = neutral(text)
    assert clean(shown)
    assert len(shown) == len(text)
    assert not {"\n", "\t"} & set(one_line(text))
    assert neutral(shown) == shown


@given(st.text(), st.sampled_from([{}, {"indent": 1}]))
def test_json_keeps_its_value_and_shows_nothing_else(text: str, settings: dict[str, Any]) -> None:
    printed = json_text({"a": [text], text: 1}, **settings)
    assert clean(printed)
    assert json.loads(printed) == {"a": [text], text: 1}


def test_errors_quote_neutral_text() -> None:
    error = str(AloeError(PLANTED, where=f"{PLANTED}\nfix: forged", fix=PLANTED))
    assert clean(error)
    assert "\nfix: forged" not in error


def test_consoles_colour_their_own_and_no_other_text() -> None:
    from rich.table import Table

    out = io.StringIO()
    shown = terminal.console(out, force_terminal=True, color_system="standard", width=300)
    table = Table("[link=http://127.0.0.1]head[/link]")
    table.add_row(PLANTED + "[/nothing]")
    shown.print(PLANTED, style="bold")
    shown.print(table)
    text = out.getvalue()
    assert f"{ESC}[1m" in text  # its own
    for planted in (f"{ESC}[2J", f"{ESC}]8", f"{ESC}]52", f"{ESC}]0", "\x07", "\r", "\x9b", "\u202e", "\u2066"):
        assert planted not in text
    assert "[link=" in text


def test_streams_are_guarded_once_and_stay_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    guard_streams()
    guard_streams()
    print(PLANTED)
    print(PLANTED, file=sys.stderr)
    sys.stdout.writelines([PLANTED])
    assert sys.stdout.isatty() is False
    assert clean(out.getvalue())
    assert clean(err.getvalue())
    assert out.getvalue().count("overwritten") == 2


def planted_artifact(folder: Path) -> Path:
    """A folder whose manifest, file names and rows all hold the planted text, with right digests."""
    from aloe.digests import digest_file, digest_json, digest_tree

    folder.mkdir()
    (folder / f"a{ESC}[31m\n.txt").write_text("x")
    files = {p.name: {"digest": digest_file(p), "bytes": 1} for p in folder.iterdir()}
    manifest = {
        "step": PLANTED, "verb": PLANTED, "kind": PLANTED, "version": 1, "fingerprint": "f",
        "parameters": {"a": PLANTED},
        "code": {"aloe": PLANTED, "commit": PLANTED}, "wall_seconds": 1, "peak_memory_bytes": 1, "tokens": {PLANTED: 1},
        "inputs": {f"[/b]{PLANTED}": {"digest": PLANTED, "origin": PLANTED}}, "summary": {PLANTED: PLANTED},
        "ledger": [{"stage": PLANTED, "in": 1, "kept": 0, "dropped": {PLANTED: 1}}], "files": files,
        "content_digest": digest_tree({n: str(f["digest"]) for n, f in files.items()}),
    }  # fmt: skip
    manifest["manifest_digest"] = digest_json(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_commands_show_planted_text_neutral(tmp_path: Path) -> None:
    """In one process for speed: what `main` does around every command, with the commands one after the other."""
    folder = planted_artifact(tmp_path / "artifact")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"request": PLANTED, "reply": PLANTED, "label": PLANTED}) + "\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"family": PLANTED, "licence": "mit", "steps": {PLANTED: {PLANTED: {}}}}))
    bench = tmp_path / "bench.yaml"
    bench.write_text(json.dumps({"name": PLANTED, "about": PLANTED}))
    commands = [
        ["show", str(folder)], ["show", "--full", str(folder)], ["verify", str(folder)], ["plan", str(recipe)],
        ["judge", "try", PLANTED, PLANTED], ["judge", "try", PLANTED, PLANTED, "--json"],
        ["judge", "calibrate", str(rows)], ["chat", PLANTED], ["ask", PLANTED, PLANTED], ["report", str(folder)],
        ["push", str(folder), "./there", "--dry-run"], ["reproduce", str(folder)], ["benchmarks", "check", str(bench)],
        ["compare", str(folder), "a", "b"], ["gate", str(folder)], ["risk", str(folder)], ["curate", f"a={PLANTED}"],
        ["exemplars", "show", str(folder)], ["prompts", "show", PLANTED], ["licences", "check", PLANTED],
        ["red-team", str(recipe)], ["merge", str(recipe)], ["import", str(rows)], ["run", str(recipe)],
    ]  # fmt: skip
    script = (
        "import json, sys\nfrom aloe import cli\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['aloe', *arguments]\n"
        "    try:\n        cli.main()\n    except SystemExit:\n        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)], capture_output=True, cwd=tmp_path, timeout=600, input=b"",
        env={**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1"},
    )  # fmt: skip
    text = (done.stdout + done.stderr).decode("utf-8", errors="surrogateescape")
    assert "Traceback" not in text, text[-3000:]
    assert "overwritten" in text  # it was shown
    assert clean(text), [hex(ord(c)) for c in BAD & set(text)]
