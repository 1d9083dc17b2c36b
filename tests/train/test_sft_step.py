"""The `sft` verb: from rows to a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aloe.contract import Hardware, references
from aloe.errors import AloeError
from aloe.models.load import load, load_template
from aloe.records import Dialogue
from aloe.rows import read_parquet, write_records
from aloe.train import memory
from aloe.train.sft import Sft


def write_rows(folder: Path, count: int, source: str = "s", words: int = 3) -> Path:
    folder.mkdir(parents=True)
    rows = [
        Dialogue(
            id=str(i),
            source=source,
            licence="cc0-1.0",
            messages=[
                {"role": "user", "content": f"Question {i}: fever?"},
                {"role": "assistant", "content": "Rest and water. " * words + str(i)},
            ],
        )
        for i in range(count)
    ]
    write_records(folder / "rows.parquet", rows)
    return folder


@pytest.fixture
def step(tiny_model_folder: Path, tmp_path: Path) -> Sft:
    rows = write_rows(tmp_path / "corpus", 12)
    return Sft(base=str(tiny_model_folder), data=str(rows), epochs=2, batch_rows=4, lr=2e-3, max_tokens=256)


def test_makes_a_model_folder_that_has_learnt(step: Sft, tiny_model_folder: Path, make_context: Any) -> None:
    ctx = make_context()
    summary = step.run(ctx)
    assert summary["last_loss"] < summary["first_loss"]
    assert (summary["rows"], summary["rows_seen"], summary["steps"]) == (12, 24, 6)
    assert summary["licences"] == {"cc0-1.0": 12}
    assert summary["padding_share"] == 0.0
    json.dumps(summary, allow_nan=False)
    made = load(ctx.out)
    assert made.template.digest == load_template(tiny_model_folder)[1].digest == summary["template"]
    assert made.model.dtype == torch.float32
    base = load(tiny_model_folder).model.state_dict()
    assert any(not torch.equal(base[k], v) for k, v in made.model.state_dict().items())
    assert made.model.config.to_dict() == {
        **load(tiny_model_folder).model.config.to_dict(),
        "_name_or_path": str(ctx.out),
    }
    same = (ctx.out / "generation_config.json").read_bytes()
    assert same == (tiny_model_folder / "generation_config.json").read_bytes()
    assert str(tiny_model_folder) not in (ctx.out / "config.json").read_text()
    assert (ctx.out / "preview.txt").read_text().count("⟦Rest and water.") == 3
    assert ctx.ledgers == [{"stage": "sft rows", "rows_in": 12, "kept": 12, "dropped": {}}]
    assert ctx.tokens["trained"] == summary["trained_tokens"]


def test_layers_are_recomputed_where_the_plan_has_no_room_for_them(
    step: Sft, make_context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations far below a quarter of the memory, and yet too large beside what else must be there."""

    def planned(recompute: str) -> dict[str, Any]:
        ctx = make_context(recompute)
        ctx.hardware = Hardware(recompute=recompute)
        return step.run(ctx)["memory"]  # type: ignore[no-any-return]

    kept, again = planned("never"), planned("always")
    between = int((kept["planned"] + again["planned"]) / 2 / (1 - memory.MARGIN))
    assert kept["plan"]["activations"] < 0.25 * between
    monkeypatch.setattr(memory, "available_memory", lambda *_: between)
    assert planned("auto") == again
    monkeypatch.setattr(memory, "available_memory", lambda *_: 2 * kept["planned"])
    assert step.run(make_context("room"))["memory"] == kept


def test_two_runs_are_equal_byte_for_byte(step: Sft, make_context: Any) -> None:
    files = []
    for name in ("a", "b"):
        ctx = make_context(name)
        step.run(ctx)
        found = {p.relative_to(ctx.out): p.read_bytes() for p in ctx.out.rglob("*") if p.is_file()}
        files.append({k: v for k, v in found.items() if k.parts[0] != "logs"})
    assert files[0] == files[1]
    other = make_context("c", seed=8)
    step.run(other)
    assert (other.out / "model.safetensors").read_bytes() != files[0][Path("model.safetensors")]


def test_sources_are_mixed_by_exact_shares(step: Sft, tmp_path: Path, make_context: Any) -> None:
    other = str(write_rows(tmp_path / "reasoning", 30, source="r"))
    (first,) = step.data
    ctx = make_context()
    summary = step.model_copy(update={"data": {first: 0.25, other: 0.75}, "max_rows": 16, "epochs": 1}).run(ctx)
    assert summary["data"] == {first: {"rows": 4, "share": 0.25}, other: {"rows": 12, "share": 0.75}}
    assert ctx.ledgers[0]["dropped"] == {"over its share": 26}
    assert len(read_parquet(ctx.out / "dropped.parquet")) == 26


def test_overlong_rows_are_dropped_whole_and_counted(step: Sft, tmp_path: Path, make_context: Any) -> None:
    long = write_rows(tmp_path / "long", 2, source="long", words=60)
    rows = read_parquet(long / "rows.parquet") + read_parquet(Path(next(iter(step.data))) / "rows.parquet")
    write_records(long / "rows.parquet", [Dialogue.from_dict(r) for r in rows])
    strict = step.model_copy(update={"data": {str(long): 1.0}, "epochs": 1})
    with pytest.raises(
        AloeError, match=r"2 of 14 rows are longer than 256 tokens, the first is long/0 with \d+ tokens"
    ):
        strict.run(make_context("strict"))
    ctx = make_context()
    summary = strict.model_copy(update={"max_dropped": 0.2}).run(ctx)
    assert (summary["rows"], summary["dropped_overlong"]) == (12, 2)
    assert [r["key"] for r in read_parquet(ctx.out / "dropped.parquet")] == ["long/0", "long/1"]


def test_writes_bf16_when_asked(step: Sft, make_context: Any) -> None:
    ctx = make_context()
    step.model_copy(update={"dtype_out": "bfloat16", "epochs": 0.3, "precision": "float32"}).run(ctx)
    assert {t.dtype for t in load_file(ctx.out / "model.safetensors").values()} == {torch.bfloat16}


def test_references_and_refusals() -> None:
    step = Sft(base="b", data={"corpus": 0.8, "reasoning": 0.2})
    assert [(path, value) for path, value, _ in references(step)] == [
        ("base", "b"),
        ("data.corpus", "corpus"),
        ("data.reasoning", "reasoning"),
    ]
    assert Sft(base="b", data="corpus").data == {"corpus": 1.0}
    for wrong in ({"data": {"a": 0.0}}, {"data": {}}, {"data": "a", "lr": 0}, {"data": "a", "learning_rate": 1}):
        with pytest.raises(ValueError):
            Sft(base="b", **wrong)  # type: ignore[arg-type]


def test_a_base_without_a_template_takes_one_from_another_model(
    make_context: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    import shutil

    base = Path(shutil.copytree(tiny_model_folder, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    plain = {"base": str(base), "data": str(write_rows(tmp_path / "corpus", 4)), "epochs": 1, "batch_rows": 4}
    with pytest.raises(AloeError, match="no chat template"):
        Sft.model_validate(plain).run(make_context("without"))
    ctx = make_context("with")
    Sft.model_validate({**plain, "template": str(tiny_model_folder)}).run(ctx)
    assert (ctx.out / "chat_template.jinja").read_text() == (tiny_model_folder / "chat_template.jinja").read_text()


def test_the_licence_of_a_file_reaches_rows_that_state_none(
    make_context: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Fever?"}, {"role": "assistant", "content": "Rest."}]
    rows = [{"id": "a", "messages": turns}, {"id": "b", "messages": turns, "licence": "mit"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(f"{path}.license").write_text("cc-by-4.0")
    step = Sft(base=str(tiny_model_folder), data=str(path), epochs=1)
    assert step.run(make_context())["licences"] == {"cc-by-4.0": 1, "mit": 1}
