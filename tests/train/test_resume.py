"""A step that was interrupted goes on from its newest whole checkpoint, and refuses another run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aloe.contract import Hardware
from aloe.errors import AloeError
from aloe.rows import write_jsonl
from aloe.train.loop import Loop
from aloe.train.sft import Sft


@pytest.fixture
def step(tiny_model_folder: Path, tmp_path: Path) -> Sft:
    rows = [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": f"Question {i}: fever?"},
                {"role": "assistant", "content": "Rest and water. " * (1 + i % 5)},
            ],
        }
        for i in range(12)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    data = str(tmp_path / "rows.jsonl")
    return Sft(base=str(tiny_model_folder), data=data, epochs=3, batch_rows=4, lr=2e-3, max_tokens=256, hold_out=0.2)


def start(ctx: Any) -> Any:
    ctx.hardware = Hardware(checkpoint_steps=2, row_tokens=96)
    return ctx


def interrupt(step: Sft, ctx: Any, at: int) -> Path:
    """Run until step `at` is about to begin; returns the folder of checkpoints."""
    whole, before = Loop._step, set((ctx.cache / "train").glob("*"))

    def stopping(self: Any, chunk: Any, number: int, *rest: Any) -> None:
        if number == at:
            raise KeyboardInterrupt
        whole(self, chunk, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            step.run(start(ctx))
    (folder,) = set((ctx.cache / "train").iterdir()) - before
    return folder


def files(out: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("logs")}


def test_an_interrupted_run_ends_as_an_undisturbed_one(step: Sft, make_context: Any) -> None:
    folder = interrupt(step, make_context("first"), at=5)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000004"]
    again = start(make_context("again"))
    summary = step.run(again)
    assert summary["resumed_from"] == [4]
    assert "going on from the checkpoint after step 4" in "\n".join(again.logs)
    assert again.removable == [folder]  # the artifact isn't complete yet
    shutil.rmtree(folder)
    whole = start(make_context("whole"))
    expected = step.run(whole)
    assert files(again.out) == files(whole.out)
    assert {k: v for k, v in summary.items() if k != "resumed_from"} == expected
    assert again.tokens == whole.tokens
    steps = [json.loads(line)["step"] for line in (again.out / "evals.jsonl").read_text().splitlines()]
    assert steps[0] == 0
    assert len(steps) == len(set(steps))


def test_a_damaged_checkpoint_is_passed_over_and_said(step: Sft, make_context: Any) -> None:
    folder = interrupt(step, make_context("first"), at=5)
    weights = max((folder / "step-00000004").glob("*.safetensors"), key=lambda p: p.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    again = start(make_context("again"))
    assert step.run(again)["resumed_from"] == [2]
    assert "step-00000004 is damaged and not used" in "\n".join(again.logs)
    shutil.rmtree(folder)
    whole = start(make_context("whole"))
    step.run(whole)
    assert files(again.out) == files(whole.out)


def test_a_checkpoint_of_another_run_is_refused_by_field(step: Sft, make_context: Any) -> None:
    folder = interrupt(step, make_context("first"), at=3)
    other = step.model_copy(update={"lr": 1e-3})
    place = interrupt(other, make_context("other"), at=3)
    shutil.rmtree(place)
    shutil.copytree(folder, place)
    with pytest.raises(AloeError, match=r"another run: .*lr: 0.002 then, 0.001 now"):
        other.run(start(make_context("refused")))


def test_a_changed_setting_begins_anew_beside_what_is_saved(step: Sft, make_context: Any) -> None:
    folder = interrupt(step, make_context("first"), at=5)
    other = step.model_copy(update={"lr": 1e-3})
    ctx = start(make_context("other"))
    assert "resumed_from" not in other.run(ctx)
    assert folder.exists()
    back = step.run(start(make_context("back")))
    assert back["resumed_from"] == [4]
