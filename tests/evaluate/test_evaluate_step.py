"""The evaluate step from recipe parameters to files, with the mock engine."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from pydantic import ValidationError

from aloe.contract import references
from aloe.digests import digest_file, digest_json
from aloe.errors import AloeError
from aloe.evaluate import step as step_module
from aloe.evaluate.benchmarks import BenchmarkSpec
from aloe.evaluate.measured import score_record
from aloe.evaluate.measures import MEASURES
from aloe.evaluate.registry import load_benchmark
from aloe.evaluate.stats import mcnemar, wilson
from aloe.evaluate.step import Evaluate, reasoned
from aloe.evaluate.table import accuracy_rows, markdown_table, score_table
from aloe.generate.embed import unit_rows
from aloe.generate.engine import Request, ScoreRequest
from aloe.generate.ledger import LedgerEngine
from aloe.generate.mock import MockEngine
from aloe.recipe import Recipe
from aloe.records import Dialogue, ItemResult, Question
from aloe.rows import read_parquet, read_records, write_jsonl, write_records

TEXTS = ["Aspirin", "Furosemide", "Metformin", "Warfarin"]


class Bar:
    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int = 1, **_: float | str) -> None:
        self.done += count


@dataclass
class FakeContext:
    out: Path
    files: dict[str, Path]
    engines: dict[str, MockEngine]
    seed: int = 7
    family: str = "test"
    name: str = "scores"
    licence: str = "cc0-1.0"
    cache: Path = Path()
    ledgers: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bars: list[tuple[Bar, int]] = field(default_factory=list)

    def path(self, ref: str) -> Path:
        return self.files[ref]

    def digest(self, ref: str) -> str:
        place = self.files[ref]
        return digest_file(place / "rows.parquet" if place.is_dir() else place)

    def manifest(self, ref: str) -> dict[str, Any] | None:
        return None

    def manifests(self) -> dict[str, dict[str, Any]]:
        return {}

    def folder(self, name: str) -> Path:
        return self.files[name]

    def engine(self, ref: str) -> MockEngine:
        self.asked.append(ref)
        return self.engines[ref]

    def ledger(self, stage: str, *, rows_in: int, kept: int, dropped: dict[str, int]) -> None:
        assert rows_in == kept + sum(dropped.values())
        self.ledgers.append({"stage": stage, "in": rows_in, "kept": kept, "dropped": dropped})

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        bar = Bar()
        self.bars.append((bar, total))
        yield bar

    def log(self, message: str) -> None:
        pass

    def count_tokens(self, **tokens: int) -> None:
        for kind, count in tokens.items():
            self.tokens[kind] = self.tokens.get(kind, 0) + count


class Words:
    digest = "words"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.zeros((len(texts), 256), dtype=np.float32)
        for i, text in enumerate(texts):
            for word in text.lower().split():
                vectors[i, zlib.crc32(word.encode()) % 256] += 1
        return unit_rows(vectors)


def mcq(name: str, i: int, split: str = "test") -> dict[str, Any]:
    return {
        "id": f"{name}-{i:02}", "question": f"{name} case {i} {'word ' * (i % 7)}: which drug?", "split": split,
        "options": dict(zip("ABCD", TEXTS, strict=True)), "answer": "ABCD"[i % 4], "licence": "cc0-1.0",
        "explanation": "The mechanism decides.",
    }  # fmt: skip


def skilled(right: int) -> MockEngine:
    """A model that knows the answer of the exam's cases below `right`, and says Aspirin otherwise."""

    def knows(content: str) -> str:
        case = int(re.findall(r"exam case (\d+)", content)[-1])
        return TEXTS[case % 4] if case < right else "Aspirin"

    def reply(request: Request) -> str:
        content = request.messages[-1]["content"]
        if "drug" not in content:
            return "I can't help with that." if "refuse" in content else "First, rest. Second, drink water. " * 5
        match = re.search(rf"^([A-D])\. {knows(content)}$", content, re.M)
        return f"Answer: {match[1]}" if match else "?"

    def score(request: ScoreRequest, continuation: str) -> float:
        content = request.messages[-1]["content"]
        if "exam case" not in content:
            return -1.0
        if continuation in TEXTS:
            return -2.0 if continuation == knows(content) else -30.0
        return -1.0 if re.search(rf"^{continuation.strip()}\. {knows(content)}$", content, re.M) else -3.0

    return MockEngine(reply, score, name=f"skilled-{right}")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeContext:
    opened = step_module.open_encoder
    monkeypatch.setattr(
        step_module, "open_encoder", lambda name, fit: Words() if name == "packaged" else opened(name, fit=fit)
    )
    files = {name: tmp_path / f"{name}.jsonl" for name in ("exam", "train", "benign", "harmful")}
    write_jsonl(files["exam"], [mcq("exam", i, "test" if i < 24 else "dev") for i in range(30)])
    write_jsonl(files["train"], [*(mcq("train", i) for i in range(12)), mcq("train", 12) | {"explanation": ""}])
    ask = [f"{'refuse' if i < 2 else 'answer'}: how do I rest, number {i}?" for i in range(6)]
    rows = [{"id": f"b{i}", "topic": "t", "split": "test" if i else "train", "request": r} for i, r in enumerate(ask)]
    write_jsonl(files["benign"], [r | {"answer": "Rest."} for r in rows])
    write_jsonl(files["harmful"], [r | {"safe_response": "No."} for r in rows])
    out = tmp_path / "out"
    out.mkdir()
    return FakeContext(out=out, files=files, engines={"weak": skilled(4), "strong": skilled(20)})


def evaluate(**changes: Any) -> Evaluate:
    base: dict[str, Any] = {
        "models": ["weak", "strong"],
        "benchmarks": {
            "exam": {"data": "exam", "split": "test"},
            "exam-said": {"data": "exam", "protocol": "generated", "strategies": ["direct", "medprompt"], "shots": 3,
                          "members": 3, "limit": 8},
            "look-alikes": {"data": "benign", "protocol": "over_refusal", "max_new_tokens": 64},
            "attacks": {"data": "harmful", "protocol": "attack_success", "max_new_tokens": 64},
        },
        "exemplars": "train",
    }  # fmt: skip
    return Evaluate(**(base | changes))


def scores_of(context: FakeContext) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    scores = json.loads((context.out / "scores.json").read_text())
    return {(s["model"], s["benchmark"], s["strategy"], s["metric"]): s for s in scores["scores"]}


def test_scores_are_what_the_models_know(context: FakeContext) -> None:
    summary = evaluate().run(context)
    scores = scores_of(context)
    strong = scores["strong", "exam", "likelihood", "accuracy"]
    assert (strong["value"], strong["n"], strong["successes"]) == (21 / 24, 24, 21)  # 20 known, case 20 is Aspirin
    assert (strong["low"], strong["high"]) == pytest.approx(wilson(21, 24))
    assert strong["extra"]["accuracy_by_rotation"] == [21 / 24] * 4
    weak = scores["weak", "exam", "likelihood", "accuracy"]
    assert weak["value"] == (4 + 5) / 24
    assert scores["strong", "exam", "likelihood", "text_accuracy"]["value"] == 21 / 24
    nll = scores["strong", "exam", "likelihood", "nll_token"]
    assert (nll["value"], nll["better"], nll["unit"]) == (pytest.approx((21 * 2 + 3 * 30) / 24), "lower", "nats")
    assert scores["strong", "exam-said", "medprompt", "accuracy"]["extra"]["accuracy_at"][-1]["n"] == 3
    assert scores["weak", "look-alikes", "reply", "over_refusal"]["value"] == 1 / 5
    assert scores["weak", "attacks", "reply", "attack_success"]["n"] == 5
    json.dumps(summary, allow_nan=False)


def test_each_model_is_loaded_once_and_progress_is_complete(context: FakeContext) -> None:
    evaluate().run(context)
    assert context.asked == ["weak", "strong"]
    assert all(bar.done == total for bar, total in context.bars)
    assert context.tokens["completion"] > 0


def test_the_item_rows_give_the_scores_again(context: FakeContext) -> None:
    evaluate().run(context)
    items = read_records(context.out / "items.parquet", ItemResult)
    assert len({i.id for i in items}) == len(items)
    protocols = json.loads((context.out / "protocols.json").read_text())
    for score in scores_of(context).values():
        mine = [
            i for i in items
            if (i.model, i.benchmark, i.protocol) == (score["model"], score["benchmark"], score["protocol"])
        ]  # fmt: skip
        values = list(step_module.item_values(mine, score["metric"]).values())
        assert sum(values) / len(values) == pytest.approx(score["value"])
        assert digest_json(protocols[score["protocol"]]) == score["protocol"]


def test_the_same_items_for_every_model_and_a_smaller_limit_is_a_subset(context: FakeContext, tmp_path: Path) -> None:
    def chosen(limit: int) -> dict[str, set[str]]:
        context.out = tmp_path / f"out{limit}"
        context.out.mkdir()
        evaluate(benchmarks={"exam": {"data": "exam", "limit": limit}}).run(context)
        items = read_records(context.out / "items.parquet", ItemResult)
        return {m: {i.item for i in items if i.model == m} for m in ("weak", "strong")}

    small, large = chosen(5), chosen(11)
    assert small["weak"] == small["strong"]
    assert small["weak"] < large["weak"]
    assert context.ledgers[0] == {"stage": "benchmark exam", "in": 30, "kept": 5, "dropped": {"over limit": 25}}


def test_what_was_left_out_is_written_with_its_reason(context: FakeContext) -> None:
    evaluate().run(context)
    dropped = read_parquet(context.out / "dropped.parquet")
    reasons = {(d["stage"], d["reason"]) for d in dropped}
    assert reasons == {
        ("benchmark exam", "other split"), ("benchmark exam-said", "over limit"), ("exemplars", "no reasoning"),
        ("benchmark look-alikes", "other split"), ("benchmark attacks", "other split"),
    }  # fmt: skip


def test_models_are_compared_item_by_item_under_one_protocol(context: FakeContext) -> None:
    evaluate().run(context)
    pairs = json.loads((context.out / "comparisons.json").read_text())
    assert all(p["before"] == "weak" and p["after"] == "strong" and p["compared"] for p in pairs)
    (exam,) = [p for p in pairs if p["benchmark"] == "exam" and p["metric"] == "accuracy"]
    assert exam["difference"] == pytest.approx(12 / 24)
    assert (exam["only_before"], exam["only_after"], exam["p_value"]) == (0, 12, mcnemar(0, 12))
    tested = [p for p in pairs if "p_value" in p]
    assert all(p["p_holm"] >= p["p_value"] for p in tested)
    (nll,) = [p for p in pairs if p["metric"] == "nll_byte"]
    assert "p_value" not in nll
    assert nll["high"] < 0


def test_scores_under_different_protocols_are_never_compared_nor_in_one_column(context: FakeContext) -> None:
    context.engines["strong"].template_digest = "another template"
    evaluate(benchmarks={"exam": {"data": "exam"}}).run(context)
    (pair,) = json.loads((context.out / "comparisons.json").read_text())
    assert not pair["compared"]
    header, rows = score_table(json.loads((context.out / "scores.json").read_text()), ["accuracy"])
    assert len(header) == 3
    assert [[cell == "-" for cell in row[1:]] for row in rows] == [[False, True], [True, False]]


def test_errored_items_do_not_count_and_unparsed_ones_are_wrong(context: FakeContext) -> None:
    def reply(request: Request) -> str:
        case = int(re.findall(r"exam case (\d+)", request.messages[-1]["content"])[-1])
        if case < 5:
            raise TimeoutError("no reply")
        return "I cannot say." if case < 10 else f"Answer: {'ABCD'[case % 4]}"

    context.engines["weak"] = MockEngine(reply)
    evaluate(models=["weak"], benchmarks={"exam": {"data": "exam", "protocol": "generated"}}).run(context)
    score = scores_of(context)["weak", "exam", "direct", "accuracy"]
    assert (score["errored"], score["unparsed"], score["n"], score["successes"]) == (5, 5, 25, 20)
    assert (score["value"], score["parse_rate"]) == (0.8, 0.8)
    items = read_records(context.out / "items.parquet", ItemResult)
    assert [i.value for i in items if i.outcome == "errored"] == [None] * 5


def test_all_errored_gives_no_score_rather_than_zero(context: FakeContext) -> None:
    def fails(_: Request) -> str:
        raise TimeoutError("no reply")

    context.engines["weak"] = MockEngine(fails)
    specs = {
        "exam": {"data": "exam", "protocol": "generated"},
        "attacks": {"data": "harmful", "protocol": "attack_success"},
    }
    evaluate(models=["weak"], benchmarks=specs).run(context)
    scores = scores_of(context)
    assert scores["weak", "exam", "direct", "accuracy"]["value"] is None
    assert scores["weak", "attacks", "reply", "attack_success"]["value"] is None
    assert "no score, 30 errored" in markdown_table(json.loads((context.out / "scores.json").read_text()))


def test_a_model_with_nan_weights_is_named_before_anything_is_asked(context: FakeContext) -> None:
    context.engines["weak"] = MockEngine(score=lambda *_: math.nan)
    with pytest.raises(AloeError, match=r"model weak: .*NaN weights"):
        evaluate().run(context)
    assert not context.engines["weak"].requests
    assert len(context.engines["weak"].scored) == 1


def test_files_are_the_same_bytes_on_a_second_run(context: FakeContext, tmp_path: Path) -> None:
    def digests(name: str) -> dict[str, str]:
        context.out = tmp_path / name
        context.out.mkdir()
        evaluate().run(context)
        return {p.name: digest_file(p) for p in context.out.iterdir()}

    assert digests("one") == digests("two")


def test_requests_of_the_wrong_kind_and_unknown_splits_are_refused(context: FakeContext) -> None:
    with pytest.raises(AloeError, match="is harmful, which over_refusal does not ask"):
        evaluate(benchmarks={"x": {"data": "harmful", "protocol": "over_refusal"}}).run(context)
    with pytest.raises(AloeError, match="no row has split 'final'; the splits are dev, test"):
        evaluate(benchmarks={"x": {"data": "exam", "split": "final"}}).run(context)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["a", "a"]}, "named twice"),
        ({"exemplars": None}, "name a file in `exemplars`"),
        ({"benchmarks": {"x": {"data": "d"}}, "reranker": "cross"}, "no benchmark shows any"),
        ({"benchmarks": {"x": {"data": "d", "members": 3}}}, "likelihood does not use 'members'"),
        ({"benchmarks": {"x": {"data": "d", "protocol": "over_refusal", "rotations": 3}}}, "does not use 'rotations'"),
        ({"benchmarks": {"x": {"data": "d", "protocol": "generated", "strategies": []}}}, "each once"),
        ({"benchmarks": {"x": {"data": "d", "limit": 0}}}, "greater than or equal to 1"),
        ({"benchmarks": {"x": {"data": "d", "shotz": 1}}}, "shotz"),
        ({"benchmarks": {}}, "at least 1"),
    ],
)
def test_bad_parameters_are_refused_when_the_recipe_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        evaluate(**changes)


def test_references_are_found_for_the_graph() -> None:
    found = {(path, value) for path, value, _ in references(evaluate())}
    assert ("models[1]", "strong") in found
    assert ("benchmarks.exam.data", "exam") in found
    assert ("exemplars", "train") in found


def test_overrides_reach_only_the_strategies_they_concern() -> None:
    spec = BenchmarkSpec(
        data="d", protocol="generated", strategies=["direct", "few_shot", "self_consistency", "medprompt"], members=9,
        shots=2, temperature=0.5,
    )  # fmt: skip
    direct, few, consistent, med = spec.chosen(seed=3)
    assert (direct.members, direct.shots, direct.temperature, direct.seed) == (1, 0, 0.0, 3)
    assert (few.members, few.shots, few.temperature) == (1, 2, 0.0)
    assert (consistent.members, consistent.shots, consistent.temperature) == (9, 0, 0.5)
    assert (med.members, med.shots, med.temperature) == (9, 2, 0.5)


def test_the_reasoning_of_a_synthesized_dialogue_is_preferred_when_it_reaches_the_gold_answer(tmp_path: Path) -> None:
    inner = {k: v for k, v in mcq("train", 1).items() if k != "split"} | {"source": "s"}
    long = "The question asks for a loop diuretic. " * 3

    def row(told: str) -> Dialogue:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": told}]
        return Dialogue(id="d", source="s", licence="l", meta={"question": inner}, messages=messages)

    good, bad = reasoned(row(long + "\n\nAnswer: B")), reasoned(row(long + "\n\nAnswer: C"))
    assert good is not None
    assert bad is not None
    assert good.explanation.startswith("The question asks")
    assert bad.explanation == "The mechanism decides."
    plain = Dialogue(id="d", source="s", licence="l", messages=row("x").messages)
    assert reasoned(plain) is None


def test_exemplars_and_benchmarks_may_be_artifact_folders(context: FakeContext, tmp_path: Path) -> None:
    for name in ("exam", "train"):
        folder = tmp_path / f"{name}-artifact"
        folder.mkdir()
        rows = [json.loads(line) for line in context.files[name].read_text().splitlines()]
        split = [r.pop("split") for r in rows]
        records = [Question(source="s", meta={"split": s}, **r) for r, s in zip(rows, split, strict=True)]
        write_records(folder / "rows.parquet", records)
        context.files[name] = folder
    spec = {"data": "exam", "protocol": "generated", "strategies": ["knn_few_shot"], "split": "dev"}
    evaluate(benchmarks={"exam": spec}).run(context)
    assert scores_of(context)["strong", "exam", "knn_few_shot", "accuracy"]["n"] == 6


def test_exemplars_are_found_by_the_encoder_and_ordered_by_the_reranker_named(
    context: FakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backwards:
        """Scores the later of two exemplars higher."""

        digest = "ranked"

        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path / "cross"

        def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
            return np.arange(len(pairs), dtype=np.float32)

    monkeypatch.setattr("aloe.evaluate.step.CrossEncoderReranker", Backwards)
    context.files["cross"] = tmp_path / "cross"
    spec = {"data": "exam", "protocol": "generated", "strategies": ["knn_few_shot"], "split": "dev", "shots": 2}
    shown = []
    for changes in ({}, {"encoder": "tfidf"}, {"encoder": "tfidf", "reranker": "cross"}):
        evaluate(models=["strong"], benchmarks={"exam": spec}, **changes).run(context)
        (protocol,) = json.loads((context.out / "protocols.json").read_text()).values()
        shown.append(protocol)
    assert len({s["encoder_digest"] for s in shown}) == 2
    assert [s.get("reranker_digest") for s in shown] == [None, None, "ranked"]


def test_the_table_reads_like_the_scores(context: FakeContext) -> None:
    evaluate().run(context)
    scores = json.loads((context.out / "scores.json").read_text())
    header, rows = score_table(scores)
    assert header[0] == "checkpoint"
    assert [h for h in header if "accuracy" in h] == [
        "exam likelihood accuracy ↑", "exam-said direct accuracy ↑", "exam-said medprompt accuracy ↑",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["weak", "strong"]
    cell = rows[1][header.index("exam likelihood accuracy ↑")]
    assert cell == "87.5 [69.0, 95.7] n=24"
    text = markdown_table(scores)
    assert text.splitlines()[0].startswith("| checkpoint | exam likelihood accuracy ↑ |")
    assert len(text.splitlines()[1].split("|")) == len(header) + 2
    assert {r["benchmark"] for r in accuracy_rows(scores)} == {"exam", "exam-said"}


# -- benchmarks as files ---------------------------------------------------------------------------------------------

OWN = """name: ward_round
version: 3
about: Our own questions.
rows:
  adapter: questions
  file: ward.csv
  columns: {question: stem, answer: gold}
  where: {split: [test]}
protocol: likelihood
fields: {rotations: 2}
metrics: [counted]
subset: ward
licence: cc0-1.0
"""


@pytest.fixture
def own(context: FakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own benchmark: one YAML file and a CSV file beside it; and a measure that counts what it is given."""
    rows = [mcq("exam", i, "test" if i < 20 else "dev") for i in range(26)]
    lines = ["id,stem,A,B,C,D,gold,split,ward"]
    lines += [f"{r['id']},{r['question']},{','.join(TEXTS)},{r['answer']},{r['split']},w{i % 2}"
              for i, r in enumerate(rows)]  # fmt: skip
    (tmp_path / "ward.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "ward.yaml").write_text(OWN)
    context.files[str(tmp_path / "ward.csv")] = tmp_path / "ward.csv"

    def counted(name: str, protocol: Any, items: Sequence[ItemResult], rows: Any) -> list[dict[str, Any]]:
        values = [float(rows[i.item].meta["ward"] == "w0") for i in items]
        return [score_record(name, protocol, items, "share_of_ward_0", values=values)]

    monkeypatch.setitem(MEASURES, "counted", counted)
    return str(tmp_path / "ward.yaml")


def test_a_users_own_benchmark_is_one_file(context: FakeContext, own: str) -> None:
    evaluate(benchmarks={"ours": {"benchmark": own}}, exemplars=None).run(context)
    scores = scores_of(context)
    strong = scores["strong", "ours", "likelihood", "accuracy"]
    assert (strong["value"], strong["n"]) == (1.0, 20)
    assert scores["weak", "ours", "likelihood", "share_of_ward_0"]["value"] == 0.5
    protocol = json.loads((context.out / "protocols.json").read_text())[strong["protocol"]]
    assert protocol["benchmark"] == {"name": "ward_round", "version": 3, "digest": load_benchmark(own)[0].digest}
    assert protocol["rotations"] == 2
    assert strong["protocol_line"].startswith("ward_round v3, likelihood, letters, 2 rotations, 0-shot, chat template ")
    items = read_records(context.out / "items.parquet", ItemResult)
    assert {i.meta["subset"] for i in items} == {"w0", "w1"}
    dropped = read_parquet(context.out / "dropped.parquet")
    assert [(d["reason"], d["evidence"]) for d in dropped] == [("filtered", "split is dev")] * 6
    assert "Protocols:" in markdown_table(json.loads((context.out / "scores.json").read_text()))


def test_a_measure_over_groups_is_scored_and_not_compared_by_item(context: FakeContext, own: str) -> None:
    evaluate(benchmarks={"ours": {"benchmark": own}}, exemplars=None).run(context)
    pairs = json.loads((context.out / "comparisons.json").read_text())
    assert {p["metric"] for p in pairs if p["compared"]} == {"accuracy", "text_accuracy", "nll_token", "nll_byte"}
    [told] = [p for p in pairs if not p["compared"]]
    assert (told["metric"], told["reason"]) == ("share_of_ward_0", "it has no value by item")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"b": {"data": "double"}}, "two correct answers"),
        ({"b": {"data": "benign", "protocol": "generated"}}, "no multiple-choice questions|attack rows"),
        ({"b": {"data": "exam", "protocol": "generated", "strategies": ["few_shot"], "shots": 30}}, "30 exemplars are"),
        ({"b": {"data": "exam", "protocol": "generated", "strategies": ["medprompt"], "shots": 2, "members": 25}},
         "25 greedy members .* in 24 orders"),
        ({"b": {"data": "problems", "protocol": "problems", "shots": 2}}, "name rows in `shots_from`"),
        ({"b": {"data": "openings", "protocol": "continuations"}}, "name its folder in `classifier`"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_before_any_model_is_loaded(
    context: FakeContext, tmp_path: Path, specs: dict[str, Any], message: str
) -> None:
    rows = {
        "double": mcq("exam", 1) | {"options": dict.fromkeys("ABCD", "Aspirin")},
        "problems": {"question": "2+2?", "answer": "4"},
        "openings": {"prompt": "He said"},
    }
    for name, row in rows.items():
        context.files[name] = tmp_path / f"{name}.jsonl"
        write_jsonl(context.files[name], [row])
    with pytest.raises(AloeError, match=re.compile(f"(?:{message})", re.DOTALL)):
        evaluate(benchmarks={"exam": {"data": "exam"}, **specs}).run(context)
    assert context.asked == []


def test_exemplars_that_stand_in_the_test_are_counted(context: FakeContext) -> None:
    write_jsonl(context.files["train"], [mcq("train", i) for i in range(11)] + [mcq("exam", 3) | {"id": "leak"}])
    spec = {"data": "exam", "protocol": "generated", "strategies": ["knn_few_shot"], "shots": 3}
    summary = evaluate(models=["weak"], benchmarks={"exam": spec}).run(context)
    assert summary["exemplar_overlap"] == {"exam": {"items": 1, "exemplars": 1}}
    items = read_records(context.out / "items.parquet", ItemResult)
    (asked,) = [i for i in items if i.item == "exam-03"]
    assert "leak" not in [shown for shown, _ in asked.meta["shots"]]


def test_the_contamination_split_stands_beside_each_score(context: FakeContext, tmp_path: Path) -> None:
    folder = tmp_path / "curated"
    folder.mkdir()
    flagged = {"exam": [f"exam-{i:02}" for i in range(12)], "others": []}
    (folder / "contamination.json").write_text(json.dumps({"flagged_items": flagged}))
    context.files["curated"] = folder
    specs = {"table": {"data": "exam"}, "look-alikes": {"data": "benign", "protocol": "over_refusal"}}
    evaluate(models=["strong"], benchmarks=specs, contamination="curated").run(context)
    scores = scores_of(context)
    split = scores["strong", "table", "likelihood", "accuracy"]["extra"]["contamination"]
    assert (split["flagged"]["value"], split["flagged"]["n"], split["unflagged"]["n"]) == (1.0, 12, 18)
    other = scores["strong", "look-alikes", "reply", "over_refusal"]["extra"]["contamination"]
    assert other == {"looked_for": False}


def test_an_aggregate_is_computed_from_the_item_rows(context: FakeContext, tmp_path: Path, own: str) -> None:
    suite = "name: all_wards\nversion: 1\nabout: Both.\nparts:\n  first: [ward_round]\n  second: [exam_file]\n"
    (tmp_path / "suite.yaml").write_text(suite)
    exam = "name: exam_file\nversion: 1\nabout: The exam.\nrows: {adapter: questions}\n"
    (tmp_path / "exam.yaml").write_text(exam)
    specs = {"ours": {"benchmark": own}, "exam": {"benchmark": str(tmp_path / "exam.yaml"), "data": "exam"}}
    step = evaluate(benchmarks=specs, aggregates=[str(tmp_path / "suite.yaml")], exemplars=None)
    step.run(context)
    scores = scores_of(context)
    assert scores["strong", "all_wards", "likelihood", "all_wards_macro"]["value"] == pytest.approx((1 + 23 / 30) / 2)
    assert scores["strong", "all_wards", "likelihood", "all_wards_weighted"]["value"] == pytest.approx(43 / 50)
    header, rows = score_table(json.loads((context.out / "scores.json").read_text()))
    assert header[-2:] == ["all_wards likelihood macro ↑", "all_wards likelihood weighted ↑"]
    assert rows[1][-1].startswith("86.0 [")
    with pytest.raises(AloeError, match="needs one benchmark for second"):
        evaluate(benchmarks={"ours": {"benchmark": own}}, aggregates=[str(tmp_path / "suite.yaml")], exemplars=None)


def test_a_benchmark_of_the_package_runs_from_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe.parse({"family": "f", "licence": "cc0-1.0", "steps": {"scores": {"evaluate": {
        "models": ["smollm2-135m-instruct"], "benchmarks": {"exam": {"benchmark": "exam", "limit": 3}}}}}})  # fmt: skip
    assert [(path, ref) for path, ref, _ in recipe.outside["scores"]][1] == ("benchmarks.exam.data", "starter/exam")
    again = Recipe.parse(yaml.safe_load(recipe.dump(["scores"])))
    assert again.steps["scores"] == recipe.steps["scores"]


def test_sentence_pairs_and_problems_go_through_the_step(context: FakeContext, tmp_path: Path) -> None:
    files = {
        "pairs": [{"sent_more": f"Old people forget {i}.", "sent_less": f"Young people forget {i}.",
                   "direction": "stereo", "bias_type": "age"} for i in range(4)],
        "sums": [{"id": f"s{i}", "question": f"What is {i} + 1?", "answer": f"Add.\n#### {i + 1}"} for i in range(4)],
        "shots": [{"id": f"t{i}", "question": f"What is {i} + {i}?", "answer": f"Add.\n#### {2 * i}"} for i in (8, 9)],
    }  # fmt: skip
    for name, rows in files.items():
        context.files[name] = tmp_path / f"{name}.jsonl"
        write_jsonl(context.files[name], rows)

    def add(request: Request) -> str:
        number = int(re.findall(r"is (\d+) [+]", request.messages[-1]["content"])[-1])
        return f"The answer is {number + 1}."

    context.engines["weak"] = MockEngine(add, lambda request, text: -1.0 if "Old" in text else -2.0)
    specs = {
        "crows": {"benchmark": "crows_pairs", "data": "pairs"},
        "sums": {"benchmark": "gsm8k", "data": "sums", "shots": 1, "shots_from": "shots"},
    }
    evaluate(models=["weak"], benchmarks=specs, exemplars=None).run(context)
    scores = {k[1:]: s["value"] for k, s in scores_of(context).items()}
    assert scores["crows", "sentence_likelihood", "stereotype_preference"] == 1.0
    assert scores["sums", "worked_answer", "exact_match"] == 1.0


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_evaluate_step as t
from aloe.generate.ledger import LedgerEngine
from aloe.generate.mock import MockEngine
base, asked = t.skilled(20), []
def reply(request):
    asked.append(1)
    if len(asked) > 21:
        os.kill(os.getpid(), signal.SIGKILL)
    return base._reply(request)
def score(request, text):
    asked.append(1)
    if len(asked) > {scores}:
        os.kill(os.getpid(), signal.SIGKILL)
    return base._score(request, text)
folder = Path({folder!r})
engine = LedgerEngine(MockEngine(reply, score, name="one"), folder / "requests.sqlite")
context = t.FakeContext(out=folder, files={{"exam": folder / "exam.jsonl"}}, engines={{"m": engine}})
t.Evaluate(models=["m"], benchmarks={{"exam": {{"data": "exam", "protocol": {protocol!r}}}}}).run(context)
"""


@pytest.mark.parametrize(("protocol", "kept"), [("generated", 17), ("likelihood", 128)])
def test_a_killed_run_goes_on_item_by_item(context: FakeContext, tmp_path: Path, protocol: str, kept: int) -> None:
    """SIGKILL in the 18th reply, or in the 141st scored context (the probe's four letters are asked first), which is in
    the second block: the second run asks only for the rest, and its scores are those of a run in one piece."""
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), protocol=protocol, scores=4 * 140)
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    inner = skilled(20)
    inner.name, inner.model_digest = "one", MockEngine(name="one").model_digest
    engine = LedgerEngine(inner, tmp_path / "requests.sqlite")
    context.engines["m"] = engine  # type: ignore[assignment]
    evaluate(models=["m"], benchmarks={"exam": {"data": "exam", "protocol": protocol}}, exemplars=None).run(context)
    asked = len(inner.requests) if protocol == "generated" else len(inner.scored)
    total = 30 if protocol == "generated" else 30 * 5
    assert asked == total - kept
    assert engine.hits == kept + 1  # and the probe
    resumed = scores_of(context)
    context.out = tmp_path / "again"
    context.out.mkdir()
    context.engines["m"] = inner
    evaluate(models=["m"], benchmarks={"exam": {"data": "exam", "protocol": protocol}}, exemplars=None).run(context)
    assert scores_of(context) == resumed
