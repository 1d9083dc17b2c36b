"""Rows of a run: made once and shared, dropped or cut and counted, refused with file and row, and the budget."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.errors import AloeError
from aloe.keyed import key64
from aloe.models.chat import ChatTemplate
from aloe.rows import read_parquet, write_jsonl
from aloe.train import gather as room
from aloe.train.gather import Rows, budget_line, gather, held_out
from aloe.train.packing import TextRow, pack, read_dialogues, read_preferences
from aloe.train.rendering import DialogueBuilder, PairBuilder


def write(path: Path, count: int, words: Any = lambda i: 3, source: str = "s") -> str:
    rows = [
        {
            "id": str(i),
            "source": source,
            "messages": [
                {"role": "user", "content": f"Question {i}: fever?"},
                {"role": "assistant", "content": "Rest and water. " * words(i)},
            ],
        }
        for i in range(count)
    ]
    write_jsonl(path, rows)
    return str(path)


class Counting(DialogueBuilder):
    """Counts the rows it was asked for."""

    asked = 0

    def many(self, rows: Any) -> Any:
        self.asked += len(rows)
        return super().many(rows)


@pytest.fixture
def run(tiny_tokenizer: Any, make_context: Any) -> Any:
    """`run(data, **changes)`: what gathering gives, with its context and builder."""
    number = iter(range(100))

    def go(data: dict[str, float], **changes: Any) -> tuple[Rows, Any, Any]:
        ctx = make_context(f"out{next(number)}", seed=changes.pop("seed", 7))
        template = ChatTemplate(tiny_tokenizer)
        build = changes.pop("build", None) or Counting(template)
        arguments = {
            "verb": "sft",
            "template_digest": template.digest,
            "max_tokens": 256,
            "max_rows": None,
            "epochs": 1,
            "max_dropped": 0.0,
        }
        read = changes.pop("read", read_dialogues)
        return gather(ctx, data, read, build, **{**arguments, **changes}), ctx, build

    return go


def test_all_rows_of_one_source(run: Any, tmp_path: Path) -> None:
    rows, ctx, _ = run({write(tmp_path / "a.jsonl", 12): 1.0}, epochs=2)
    assert len(rows.examples) == 12
    assert sorted(rows.order[:12]) == sorted(rows.order[12:]) == list(range(12))
    assert ctx.ledgers == [{"stage": "sft rows", "rows_in": 12, "kept": 12, "dropped": {}}]
    assert rows.report["rows"] == 12
    assert rows.report["tokens_digest"] == rows.examples.digest
    assert not (ctx.out / "dropped.parquet").exists()
    json.dumps(rows.report)


def test_a_second_run_and_other_processes_open_what_the_first_made(run: Any, tmp_path: Path) -> None:
    data = {write(tmp_path / "a.jsonl", 12): 1.0}
    rows, _, first = run(data)
    again, ctx, second = run(data, epochs=3, seed=8)
    assert (first.asked, second.asked) == (12, 0)
    assert again.examples.digest == rows.examples.digest
    waited = []
    other, quiet, third = run(data, is_main=False, barrier=lambda: waited.append(1))
    assert (third.asked, waited) == (0, [1])
    assert list(other.order) == list(rows.order)
    assert not list(quiet.out.iterdir())
    assert ctx.logs == []


def test_the_main_process_makes_the_tokens_before_the_barrier(run: Any, tmp_path: Path) -> None:
    stores = tmp_path / "cache" / "tokens"
    seen = []
    run({write(tmp_path / "a.jsonl", 3): 1.0}, barrier=lambda: seen.extend(stores.glob("*/meta.json")))
    assert len(seen) == 1


@pytest.mark.parametrize(
    "change", [{"max_tokens": 255}, {"overlong": "left_truncate"}, {"verb": "other"}, {"template_digest": "x"}, "rows"]
)
def test_what_the_tokens_depend_on_makes_them_anew(run: Any, tmp_path: Path, change: Any) -> None:
    data = {write(tmp_path / "a.jsonl", 4): 1.0}
    run(data)
    if change == "rows":
        write(tmp_path / "a.jsonl", 5)
    assert run(data, **({} if change == "rows" else change))[2].asked >= 4


def test_a_damaged_store_is_made_again_and_said(run: Any, tmp_path: Path) -> None:
    data = {write(tmp_path / "a.jsonl", 6): 1.0}
    rows, _, _ = run(data)
    expected = [list(e.tree.prefix) for e in rows.examples]
    (path,) = (tmp_path / "cache" / "tokens").glob("*/tokens.bin")
    path.write_bytes(path.read_bytes()[::-1])
    again, ctx, build = run(data)
    assert "the tokens of a.jsonl in the cache can't be used (tokens.bin is damaged); tokenising again" in ctx.logs
    assert build.asked == 6
    assert [list(e.tree.prefix) for e in again.examples] == expected


def test_the_order_of_the_file_changes_no_step(run: Any, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", 30)
    turned = tmp_path / "b.jsonl"
    turned.write_text("".join(reversed((tmp_path / "a.jsonl").read_text().splitlines(keepends=True))))
    found = []
    for data in ({first: 1.0}, {str(turned): 1.0}):
        rows, _, _ = run(data, max_rows=20, epochs=1.5)
        found.append([rows.examples[i].key for i in rows.order])
        assert rows.report["rows"] == 30  # 20 in the first pass, the other ten and ten again in the second
    assert found[0] == found[1]


def test_sources_keep_their_shares_and_spare_rows_are_written_down(run: Any, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", 12), write(tmp_path / "b.jsonl", 30, source="r")
    rows, ctx, _ = run({first: 0.25, second: 0.75}, max_rows=16)
    assert rows.report["data"] == {first: {"rows": 4, "share": 0.25}, second: {"rows": 12, "share": 0.75}}
    assert ctx.ledgers[0] == {"stage": "sft rows", "rows_in": 42, "kept": 16, "dropped": {"over its share": 26}}
    left = read_parquet(ctx.out / "dropped.parquet")
    used = {e.key for e in rows.examples}
    assert len({r["key"] for r in left}) == len(left) == 26
    assert used.isdisjoint(r["key"] for r in left)
    assert {r["evidence"] for r in left} == {"4 of 12 drawn", "12 of 30 drawn"}
    assert sorted(rows.order) == list(range(16))
    more, _, _ = run({first: 0.25, second: 0.75}, max_rows=16, epochs=3)
    assert more.report["data"][first] == {"rows": 12, "share": 0.25}
    assert more.report["data"][second] == {"rows": 30, "share": 0.75}


# -- held out -------------------------------------------------------------------------------------------------------


def test_held_out_rows_are_not_trained_on_and_are_accounted_for(run: Any, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", 60), write(tmp_path / "b.jsonl", 90, source="r")
    data = {first: 0.4, second: 0.6}
    rows, ctx, _ = run(data, hold_out=0.2, epochs=2)
    held, quiet, _ = run(data, hold_out=0.2, held=True)
    keys, aside = [e.key for e in rows.examples], [e.key for e in held.examples]
    assert not set(keys) & set(aside)
    assert 15 <= len(aside) <= 45
    assert sorted(held.order) == list(range(len(aside)))
    assert ctx.ledgers[0]["rows_in"] == 150
    assert ctx.ledgers[0]["dropped"]["held out"] == len(aside)
    written = read_parquet(ctx.out / "dropped.parquet")
    assert {r["key"] for r in written if r["reason"] == "held out"} == set(aside)
    assert len(written) == 150 - len(keys)
    assert quiet.ledgers == []
    assert not list(quiet.out.iterdir())
    other, _, _ = run(data, hold_out=0.2, held=True, seed=8)
    assert {e.key for e in other.examples} != set(aside)
    with pytest.raises(AloeError, match="hold_out: no row of 150 is held out"):
        run(data, hold_out=1e-9, held=True)
    with pytest.raises(AloeError, match="hold_out: nothing is left"):
        run(data, hold_out=1 - 1e-9)


def test_a_key_stays_on_its_side_when_others_come_and_in_every_source(run: Any, tmp_path: Path) -> None:
    few, more = write(tmp_path / "few.jsonl", 50), write(tmp_path / "more.jsonl", 80)
    sides = []
    for data in ({few: 1.0}, {more: 1.0}, {few: 0.5, more: 0.5}):
        sides.append(Counter(e.key for e in run(data, hold_out=0.3, held=True)[0].examples))
    assert set(sides[0]) == {k for k in sides[1] if int(k[2:]) < 50}
    assert sides[2] == sides[0] + sides[1]


def test_the_share_held_out_is_met_in_expectation() -> None:
    hashes = np.array([key64(0, "row", str(i)) for i in range(20_000)], dtype=np.uint64)
    for part in (0.0, 0.02, 0.5):
        shares = [held_out(hashes, part, seed).mean() for seed in range(5)]
        assert np.mean(shares) == pytest.approx(part, abs=4 * math.sqrt(part * (1 - part) / 100_000))


# -- too long -------------------------------------------------------------------------------------------------------


def long_rows(tmp_path: Path) -> dict[str, float]:
    """Twelve rows, of which number 5 has a long answer (row 5 of the file)."""
    return {write(tmp_path / "long.jsonl", 12, lambda i: 60 if i == 4 else 2): 1.0}


def test_a_row_longer_than_the_sequence_stops_the_run_and_is_named(run: Any, tmp_path: Path) -> None:
    data = long_rows(tmp_path)
    message = r"long.jsonl:5: 1 of 12 rows are longer than 256 tokens, the first is s/4 with \d+ tokens\n  fix: raise"
    with pytest.raises(AloeError, match=message) as caught:
        run(data)
    assert "overlong: left_truncate" in str(caught.value)
    rows, ctx, build = run(data, max_dropped=0.1)
    assert build.asked == 0  # what was tokenised before the stop is used
    assert rows.report["dropped_overlong"] == 1
    assert ctx.ledgers[0]["dropped"] == {"longer than max_tokens": 1}
    assert [(r["key"], r["reason"]) for r in read_parquet(ctx.out / "dropped.parquet")] == [
        ("s/4", "longer than max_tokens")
    ]
    with pytest.raises(AloeError, match=r"long.jsonl:5: 1 of 12 .*an answer has \d+; an answer is never cut"):
        run(data, overlong="left_truncate")


def test_a_prompt_that_fills_the_window(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    asked = [{"role": "user", "content": "Fever? " * 200}, {"role": "assistant", "content": "Rest."}]
    short = [{"role": "user", "content": "Fever?"}, {"role": "assistant", "content": "Rest."}]
    write_jsonl(path, [{"id": "short", "messages": short}, {"id": "full", "messages": asked}])
    with pytest.raises(AloeError, match=r"prompts.jsonl:2: .*the first is full with \d+ tokens, \d+ of them before"):
        run({str(path): 1.0})
    rows, ctx, _ = run({str(path): 1.0}, overlong="left_truncate")
    assert rows.report["prompts_cut"] == 1
    assert {"stage": "sft prompts cut on the left", "rows_in": 1, "kept": 1, "dropped": {}} in ctx.ledgers
    assert int(rows.examples.longest.max()) <= 256
    dropped, ctx, _ = run({str(path): 1.0}, max_dropped=0.5)
    assert ctx.ledgers[0]["dropped"] == {"prompt fills max_tokens": 1}
    assert len(dropped.examples) == 1


def test_a_source_of_which_nothing_is_left_is_named(run: Any, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.jsonl", 9), write(tmp_path / "bad.jsonl", 1, lambda i: 99)
    with pytest.raises(AloeError, match=r"bad.jsonl:1: 1 of 10 rows .*; nothing of .*bad.jsonl is left"):
        run({good: 0.9, bad: 0.1}, max_dropped=0.5)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.jsonl.gz"])
def test_a_source_without_rows_is_refused(run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    with pytest.raises(AloeError, match=rf"{name} has no rows to train on\n  fix: look at the step"):
        run({str(tmp_path / name): 1.0})


# -- rows that can't be trained on ----------------------------------------------------------------------------------


def test_an_empty_answer_and_one_that_nothing_comes_before_are_named(
    run: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    import copy

    path = tmp_path / "rows.jsonl"
    asked = {"role": "user", "content": "Fever?"}
    write_jsonl(path, [{"messages": [asked, {"role": "assistant", "content": " "}]}])
    with pytest.raises(AloeError, match=r"rows.jsonl:1: messages\[1\] has no content\n  fix:"):
        run({str(path): 1.0})
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    write_jsonl(path, [{"messages": [{"role": "assistant", "content": "Rest."}]}])
    with pytest.raises(AloeError, match=r"rows.jsonl:1: nothing comes before the first scored token\n  fix: begin"):
        run({str(path): 1.0}, build=DialogueBuilder(ChatTemplate(bare)))


def test_pairs_that_prefer_nothing_are_named(run: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    build = PairBuilder(ChatTemplate(tiny_tokenizer))
    good = {"prompt": "Fever?", "chosen": "Rest.", "rejected": "No."}
    write_jsonl(path, [good, {**good, "rejected": "Rest."}])
    with pytest.raises(AloeError, match=r"pairs.jsonl:2: 1 of 2 rows can't be used, .* are the same text\n  fix: mend"):
        run({str(path): 1.0}, build=build, read=read_preferences, verb="dpo")
    rows, _, _ = run({str(path): 1.0}, build=build, read=read_preferences, verb="dpo", max_dropped=0.5)
    assert len(rows.examples) == 1
    write_jsonl(path, [good, {**good, "id": "b"}])
    rows, _, _ = run({str(path): 1.0}, build=build, read=read_preferences, verb="dpo")
    assert len(rows.examples) == 2


# -- the budget -----------------------------------------------------------------------------------------------------


def counted(rows: Rows, batch: int, width: int, multiple: int) -> dict[str, float]:
    """The same by doing it: every batch packed."""
    tokens = trained = padding = 0
    steps = math.ceil(len(rows.order) / batch)
    for step in range(steps):
        here = rows.order[step * batch : (step + 1) * batch]
        tokens += sum(rows.examples[i].tokens for i in here)
        trained += sum(rows.examples[i].trained for i in here)
        padding += sum(row.padding for row in pack(rows.examples, here, width, 0, multiple))
    share = padding / (tokens + padding)
    return {"rows": len(rows.order), "steps": steps, "tokens": tokens, "trained_tokens": trained, "share": share}


def test_the_budget_is_what_packing_will_give(run: Any, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", 40, lambda i: 1 + i % 9), write(tmp_path / "b.jsonl", 25, source="r")
    rows, _, _ = run({first: 0.7, second: 0.3}, epochs=2.3)
    budget, expected = rows.budget(8, 96, 8), counted(rows, 8, 96, 8)
    assert budget["padding_share"] == pytest.approx(expected.pop("share"))
    assert budget["padding_share"] > 0
    assert {k: budget[k] for k in expected} == expected
    assert budget["padding_batches"] == budget["steps"]
    assert budget_line(budget).startswith(f"{len(rows.order)} rows in {budget['steps']} steps: {budget['tokens']:,} ")
    assert "sampled" not in budget_line(budget)


def test_the_padding_of_a_long_run_is_sampled_and_said(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _, _ = run({write(tmp_path / "a.jsonl", 40, lambda i: 1 + i % 9): 1.0}, epochs=30)
    exact = rows.budget(4, 96, 8)
    monkeypatch.setattr(room, "EXACT_ROWS", 100)
    monkeypatch.setattr(room, "SAMPLED", 60)
    sampled = rows.budget(4, 96, 8)
    assert (sampled["padding_batches"], sampled["steps"]) == (60, 300)
    assert sampled["tokens"] == exact["tokens"]
    assert sampled["padding_share"] == pytest.approx(exact["padding_share"], rel=0.25)
    assert sampled == rows.budget(4, 96, 8)
    assert "padding (of 60 sampled batches)" in budget_line(sampled)


def test_rows_are_read_as_they_are_needed(
    run: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than a batch of texts at a time."""
    monkeypatch.setattr(room, "BATCH", 8)
    read, ahead = [], []

    class Watching(Counting):
        def many(self, rows: Any) -> Any:
            ahead.append(len(read) - self.asked)
            return super().many(rows)

    def reading(source: Path, unfit: Any) -> Iterator[TextRow]:
        for row in read_dialogues(source, unfit):
            read.append(row.key)
            yield row

    data = {write(tmp_path / "a.jsonl", 60): 1.0}
    run(data, read=reading, build=Watching(ChatTemplate(tiny_tokenizer)))
    assert ahead == [8] * 7 + [4]
