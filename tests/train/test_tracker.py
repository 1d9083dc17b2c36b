"""A tracker that may fail, and that sends nothing off the machine unasked."""

from __future__ import annotations

import math
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from aloe.errors import AloeError
from aloe.train.tracker import Tracker


class Fake(SimpleNamespace):
    """The module trackio as far as it is used, with what it was told; `broken` makes its calls fail."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        super().__init__(calls=[], broken=broken)

    def _told(self, what: str, **given: Any) -> None:
        print("* noise of the tracker")
        self.calls.append((what, given, {n for n in os.environ if n.startswith("TRACKIO_")}))
        if what in self.broken:
            raise RuntimeError("database is locked")

    def init(self, **given: Any) -> None:
        self._told("init", **given)

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._told("log", metrics=metrics, step=step)

    def finish(self) -> None:
        self._told("finish")


def tracker(fake: Fake | None, monkeypatch: pytest.MonkeyPatch, said: list[str], **more: Any) -> Tracker:
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return Tracker("trackio", "Aloe-demo", "sft", {"lr": 1e-5}, said.append, **more)


def test_the_tracker_gets_the_numbers_and_stays_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL"):
        monkeypatch.setenv(name, "https://somewhere.example")
    fake, said = Fake(), []
    t = tracker(fake, monkeypatch, said)
    t.log({"step": 3, "loss": 1.5, "note": "text", "bad": math.nan, "rows": 8}, 3, "train")
    t.log({"step": 4}, 4, "train")
    t.finish()
    (_, given, seen), (_, logged, _), (last, _, _) = fake.calls
    assert (given["project"], given["name"], given["config"]) == ("Aloe-demo", "sft", {"lr": 1e-5})
    assert given["server_url"] is None
    assert "space_id" not in given
    assert given["resume"] == "allow"
    assert not seen  # hidden while it starts, and there again afterwards
    assert os.environ["TRACKIO_SPACE_ID"] == "https://somewhere.example"
    assert logged == {"metrics": {"train/loss": 1.5, "train/rows": 8}, "step": 3}
    assert last == "finish"
    assert len(said) == 1
    assert "stays on this machine" in said[0]
    assert capsys.readouterr().out == ""


def test_a_server_is_used_when_the_recipe_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Fake = Fake()
    tracker(fake, monkeypatch, [], server="http://localhost:7860?write_token=x", resumed=False)
    assert fake.calls[0][1]["resume"] == "never"
    assert fake.calls[0][1]["server_url"] == "http://localhost:7860?write_token=x"


def test_a_missing_tracker_is_an_error_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AloeError, match=r"track: the tracker trackio can't be imported.*\n.*pip install trackio"):
        tracker(None, monkeypatch, [])  # None in sys.modules: an ImportError
    Tracker(None, "Aloe-demo", "sft", {}, print).log({"loss": 1.0}, 1, "train")  # none asked for, none needed


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_failing_tracker_is_warned_of_once_and_left_alone(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    fake, said = Fake((broken,)), []
    t = tracker(fake, monkeypatch, said)
    for step in range(3):
        t.log({"loss": 1.0}, step, "train")
    t.finish()
    t.finish()
    assert len(said) == 1
    assert "RuntimeError: database is locked" in said[0]
    assert [what for what, *_ in fake.calls].count(broken) == 1
