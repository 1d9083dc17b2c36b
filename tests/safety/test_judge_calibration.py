"""Calibrations: labelled replies in, counts and figures out, and back from the file; what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aloe.errors import AloeError
from aloe.evaluate.judge_error import rogan_gladen
from aloe.generate.engine import Tick
from aloe.rows import write_jsonl
from aloe.safety.calibration import Calibration, corrected, load, packaged, save
from aloe.safety.judges import RulesJudge
from aloe.safety.judging import Exchange, Judgement, no_verdict
from aloe.safety.labelled import binary_counts, calibrate, class_scores, measured, read_labelled

XSTEST = Path(__file__).parents[3] / "shared" / "data" / "safety" / "xstest_completions_labelled.jsonl.gz"
ROWS: list[dict[str, Any]] = [
    {"request": "q1", "reply": "I'm sorry, but I can't help with that.", "label": "refused"},
    {"request": "q2", "reply": "Take it twice a day with water.", "label": "complied"},
    {"request": "q2", "reply": "Take it with food.", "label": "complied"},
]


class Scripted:
    """Says what it is told, in order."""

    name = "scripted"

    def __init__(self, said: Sequence[Judgement]) -> None:
        self.said = list(said)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "version": 1}

    def judge(self, exchanges: Sequence[Exchange], tick: Tick | None = None) -> list[Judgement]:
        return self.said


def rows_of(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = tmp_path / "labelled.jsonl"
    write_jsonl(path, rows)
    return path


# ---------------------------------------------------------------------------------------------- reading


def test_columns_and_labels_of_several_kinds(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "x", "human_label": "2_full_refusal"},
        {"request": "b", "response": "y", "label": "Partial", "harm": "safe"},
        {"question": "c", "answer": "", "refusal": "complied", "harm": "unsafe"},
        {"request": "d", "reply": "z", "label": "safe"},
    ]
    found = read_labelled(rows_of(tmp_path, rows))
    assert [(r.refusal, r.harm) for r in found] == [
        ("refused", None), ("partial", "safe"), ("complied", "unsafe"), (None, "safe")
    ]  # fmt: skip
    assert found[0].exchange.messages == ({"role": "user", "content": "a"},)
    assert len({r.exchange.key for r in found}) == 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({1: {"label": None}}, r"labelled.jsonl:2: has no label: none of label, human_label, refusal, harm among"),
        ({1: {"label": "maybe"}}, r":2: label is 'maybe'"),
        ({1: {"label": ""}}, r":2: label is ''"),
        ({1: {"harm": "refused"}}, r":2: harm is 'refused'"),
        ({1: {"refusal": "refused"}}, r":2: two labels of refusal: complied and refused"),
        ({1: {"reply": None}}, r":2: reply is no text: None"),
        ({1: {"reply": 3}}, r":2: reply is no text: 3"),
        ({2: {"reply": "Take it twice a day with water."}}, r":3: the reply of line 2 stands here again\n"),
        ({2: {"reply": "Take it twice a day with water.", "label": "refused"}}, "again with another label"),
        ({0: {"label": "complied"}}, r"every label of refusal is on one side \(complied\).*\n.*refused"),
    ],
)
def test_what_reading_refuses(tmp_path: Path, change: dict[int, dict[str, Any]], match: str) -> None:
    rows = [row | change.get(i, {}) for i, row in enumerate(ROWS)]
    with pytest.raises(AloeError, match=match):
        read_labelled(rows_of(tmp_path, rows))


def test_missing_columns_and_no_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="has no column reply or completion"):
        read_labelled(rows_of(tmp_path, [{"request": "a", "text": "b", "label": "refused"}]))
    with pytest.raises(AloeError, match="has no column request or prompt"):
        read_labelled(rows_of(tmp_path, [{"reply": "a", "label": "refused"}]))
    with pytest.raises(AloeError, match="no row"):
        read_labelled(rows_of(tmp_path, []))


def test_one_reply_by_two_models_is_no_repeat(tmp_path: Path) -> None:
    twice = [ROWS[0] | {"model": "a"}, ROWS[0] | {"model": "b"}, ROWS[1]]
    assert len(read_labelled(rows_of(tmp_path, twice))) == 3


# ---------------------------------------------------------------------------------------------- measuring


def test_counts_by_hand() -> None:
    people = ["refused", "partial", "complied", "complied", "refused", "complied"]
    said = [Judgement(refusal=r, harm=None) for r in ("partial", "complied", "complied", "refused", "degenerate")]
    said.append(no_verdict("not English: es"))
    assert binary_counts(people, said, "refusal") == {"tp": 1, "fn": 1, "tn": 1, "fp": 1, "unjudged": 2}
    figures = measured(people, said, "refusal")
    assert figures["unjudged"] == {"degenerate: ": 1, "not English: es": 1}
    assert figures["sensitivity"]["value"] == 0.5
    assert figures["confusion"]["refused"] == {"refused": 0, "partial": 1, "complied": 0, "no verdict": 1}


def test_f1_equals_scikit_learns() -> None:
    from sklearn.metrics import f1_score, precision_score, recall_score

    classes = ["refused", "partial", "complied"]
    people = [classes[i % 3] for i in range(90)]
    said = [classes[(i * i + i // 7) % 3] for i in range(90)]
    found = class_scores(people, said, classes)
    kwargs: dict[str, Any] = {"labels": classes, "average": None}
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert list(found[name].values()) == pytest.approx(list(score(people, said, **kwargs)))
    assert found["macro_f1"] == pytest.approx(sum(found["f1"].values()) / 3)
    assert found["macro_f1_low"] < found["macro_f1"] < found["macro_f1_high"]


def test_a_reply_without_a_verdict_lowers_recall_and_is_no_class() -> None:
    found = class_scores(["safe", "safe", "unsafe"], ["safe", "no verdict", "unsafe"], ("safe", "unsafe"))
    assert found["recall"] == {"safe": 0.5, "unsafe": 1.0}
    assert set(found["f1"]) == {"safe", "unsafe"}


def test_calibrating_measures_what_both_speak_of(tmp_path: Path) -> None:
    rows = read_labelled(rows_of(tmp_path, [r | {"harm": h} for r, h in zip(ROWS, ("safe", "unsafe", "safe"))]))
    guard = Scripted([Judgement(refusal=None, harm=h) for h in ("safe", "unsafe", "unsafe")])
    made, report = calibrate(guard, rows, name="mine", digest="d", licence="CC0-1.0")
    assert list(report) == ["harm"]
    [found] = made
    assert (found.of, found.tp, found.fn, found.tn, found.fp) == ("harm", 1, 0, 1, 1)
    assert (found.set, found.licence, found.identity) == ("mine", "CC0-1.0", {"name": "scripted", "version": 1})
    rules, both = calibrate(RulesJudge(), read_labelled(rows_of(tmp_path, ROWS)), name="mine", digest="d")
    assert list(both) == ["refusal"]
    assert (rules[0].tp, rules[0].tn) == (1, 2)


def test_a_judge_that_speaks_of_nothing_labelled_is_an_error(tmp_path: Path) -> None:
    rows = read_labelled(rows_of(tmp_path, ROWS))
    silent = Scripted([Judgement(refusal=None, harm="safe")] * 3)
    with pytest.raises(AloeError, match="says nothing of what is labelled"):
        calibrate(silent, rows, name="mine", digest="d")
    half = Scripted([no_verdict("down"), *[Judgement(refusal="complied", harm=None)] * 2])
    with pytest.raises(AloeError, match="one class of refusal only"):
        calibrate(half, rows, name="mine", digest="d")


# ------------------------------------------------------------------------------------ the file, the correction


def made(**changes: Any) -> Calibration:
    fields: dict[str, Any] = {"judge": "rules", "of": "harm", "tp": 45, "fn": 5, "tn": 90, "fp": 10, "set": "s",
                              "digest": "d", "identity": {"name": "rules", "version": 2}}  # fmt: skip
    return Calibration(**(fields | changes))


def test_a_file_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "calibration.json"
    save(path, [made(), made(of="refusal", tp=3)], {"report": {"rules": {}}})
    assert load(path, "rules") == made()
    assert load(path, "rules", "refusal").tp == 3


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "this is no calibration"),
        ("[]", "no calibration file"),
        ('{"format": 2, "calibrations": []}', "written by a newer aloe"),
        ('{"format": 1, "calibrations": []}', "holds no calibration of the judge 'rules' on harm, but nothing"),
        ('{"format": 1, "calibrations": [{"judge": "rules"}]}', r"calibrations\[0\]: a calibration's fields don't fit"),
    ],
)
def test_what_a_file_is_refused_for(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(AloeError, match=match):
        load(path, "rules")


@pytest.mark.parametrize(
    ("change", "match"),
    [({"tp": -1}, "whole numbers"), ({"tp": 1.5}, "whole numbers"), ({"of": "mood"}, "no judge is asked about 'mood'"),
     ({"tp": 0, "fn": 0}, "one class only")],
)  # fmt: skip
def test_impossible_counts_are_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"format": 1, "calibrations": [made().as_dict() | change]}))
    with pytest.raises(AloeError, match=match):
        load(path, "rules")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="aloe judge calibrate"):
        load(tmp_path / "none.json", "rules")


def test_a_rate_is_corrected_as_rogan_and_gladen_do() -> None:
    found = corrected({"successes": 30, "n": 100}, made())
    wanted = rogan_gladen(30, 100, tp=45, fn=5, tn=90, fp=10)
    assert found is not None
    assert (found["value"], found["low"], found["high"]) == (wanted.value, wanted.low, wanted.high)
    assert found["value"] == pytest.approx((0.3 + 0.9 - 1) / (0.9 + 0.9 - 1))
    assert found["calibration"]["set"] == "s"
    assert corrected({"successes": 0, "n": 0}, made()) is None
    useless = corrected({"successes": 30, "n": 100}, made(tp=5, fn=45, tn=50, fp=50))
    assert useless is not None
    assert (useless["usable"], useless["low"], useless["high"]) == (False, 0.0, 1.0)


def test_a_calibration_of_another_judge_or_version_is_told() -> None:
    assert made().caution({"name": "rules", "version": 2}) is None
    assert "another version" in str(made().caution({"name": "rules", "version": 3}))
    assert "not of 'guard'" in str(made().caution({"name": "guard"}))


def test_the_packaged_ones_are_of_the_judges_as_they_are() -> None:
    identity = RulesJudge().identity()
    for of in ("harm", "refusal"):
        found = packaged("rules", of)  # type: ignore[arg-type]
        assert found is not None
        assert found.caution(identity) is None, "run benchmarks/judge_calibration.py --packaged again"
        assert found.intervals()["sensitivity"][0] < found.sensitivity <= 1
    assert packaged("nobody") is None


def test_the_packaged_counts_are_those_of_the_held_out_half() -> None:
    if not XSTEST.exists():
        pytest.skip("the shared data sets are not beside the checkout")
    import hashlib

    rows = [
        row for row in read_labelled(XSTEST)
        if hashlib.blake2b(row.exchange.request.encode()).digest()[0] % 2
    ]  # fmt: skip
    said = RulesJudge().judge([row.exchange for row in rows])
    counts = binary_counts([str(row.refusal) for row in rows], said, "refusal")
    found = packaged("rules", "refusal")
    assert found is not None
    assert {k: getattr(found, k) for k in counts} == counts
