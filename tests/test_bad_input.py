"""Bad input, by the command a user types: one clear error, exit code 2, what was finished stays."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aloe import cli

Run = Callable[..., str]
QUESTION = {"id": "q1", "question": "Which?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer": "A"}


@pytest.fixture
def aloe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`aloe(arguments..., code=0)`: run the command line in `tmp_path`, check its exit code, return what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["aloe", *arguments])
        try:
            cli.main()
            found: object = 0
        except SystemExit as end:
            found = end.code or 0
        captured = capsys.readouterr()
        assert found == code, captured.err + captured.out
        assert "Traceback" not in captured.err
        return captured.err + captured.out

    return run


def rows(path: Path, values: list[dict[str, object] | str]) -> Path:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values))
    return path


def recipe(tmp_path: Path, model: Path, **changes: str) -> Path:
    """Two steps on the tiny model: a corpus of three dialogues and one training step."""
    rows(
        tmp_path / "qa.jsonl",
        [{"id": str(i), "question": f"What about symptom number {i}?", "answer": f"Rest helps {i}."} for i in range(3)],
    )
    text = f"""\
family: tiny
seed: 1
licence: cc-by-nc-4.0
steps:
  corpus:
    curate: {{sources: [qa.jsonl]}}
  model:
    sft: {{base: {model}, data: corpus, epochs: 1, batch_rows: 2}}
"""
    for old, new in changes.items():
        text = text.replace(old.replace("__", ": "), new)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_misspelled_key(aloe: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    path = recipe(tmp_path, tiny_model_folder, epochs="epoch")
    said = aloe("run", str(path), code=2)
    assert "recipe.yaml:8" in said
    assert "did you mean 'epochs'" in said
    assert not (tmp_path / "out").exists()


def test_a_missing_file_before_anything_runs(aloe: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    path = recipe(tmp_path, tiny_model_folder)
    (tmp_path / "qa.jsonl").unlink()
    said = aloe("run", str(path), code=2)
    assert "qa.jsonl" in said
    assert "recipe.yaml:6" in said


def test_a_broken_row_in_the_middle(aloe: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    path = recipe(tmp_path, tiny_model_folder)
    good = {"question": "What helps?", "answer": "Rest."}
    rows(tmp_path / "qa.jsonl", [{"id": "1", **good}, '{"id": "2", "question": ', {"id": "3", **good}])
    said = aloe("run", str(path), code=2)
    assert "qa.jsonl:2" in said
    assert "not valid JSON" in said


def test_an_answer_letter_that_is_no_option(aloe: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    """In a benchmark it is an error; in training data it is dropped with its line (and too many stop the run)."""
    wrong = {**QUESTION, "id": "q2", "answer": "E"}
    rows(tmp_path / "mcq.jsonl", [QUESTION, wrong])
    benchmark = f"benchmarks={{exam: {{data: {tmp_path / 'mcq.jsonl'}}}}}"
    said = aloe("evaluate", f"models=[{tiny_model_folder}]", benchmark, code=2)
    assert "mcq.jsonl:2" in said
    assert "'E'" in said
    said = aloe("curate", f"sources=[{tmp_path / 'mcq.jsonl'}]", code=2)
    assert "1 of 2" in said


def test_an_empty_data_set_after_curation(aloe: Run, tmp_path: Path) -> None:
    rows(tmp_path / "exam.jsonl", [QUESTION])
    rows(tmp_path / "train.jsonl", [{**QUESTION, "id": "copy"}])
    said = aloe(
        "curate", f"sources=[{tmp_path / 'train.jsonl'}]", f"decontaminate.against=[{tmp_path / 'exam.jsonl'}]",
        "max_dropped_share=1.0", code=2,
    )  # fmt: skip
    assert "decontaminate" in said
    assert "fix:" in said


def test_a_model_without_a_chat_template(aloe: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    model = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    (model / "chat_template.jinja").unlink()
    said = aloe("run", str(recipe(tmp_path, model)), code=2)
    assert "no chat template" in said
    assert str(model) in said
    assert (tmp_path / "out" / "tiny" / "corpus" / "manifest.json").exists()


def test_a_checkpoint_with_nan_weights(aloe: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    model = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    said = aloe("run", str(recipe(tmp_path, model)), code=2)
    assert "model.norm.weight are NaN" in said
    merge = ["merge", "method=dare_ties", f"base={tiny_model_folder}", f"models={{{model}: {{density: 0.5}}}}"]
    assert "model.norm.weight" in aloe(*merge, code=2)


def test_a_full_disk(aloe: Run, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from transformers import PreTrainedModel

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = recipe(tmp_path, tiny_model_folder)
    with monkeypatch.context() as disk:
        disk.setattr(PreTrainedModel, "save_pretrained", full)
        said = aloe("run", str(path), code=2)
    assert "the disk is full" in said
    store = tmp_path / "out" / "tiny" / ".store"
    assert (tmp_path / "out" / "tiny" / "corpus" / "manifest.json").exists()
    assert not list(store.glob("tmp-*"))
    assert "corpus (curate): fresh" in aloe("run", str(path))


def test_an_artifact_edited_after_it_was_written(aloe: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    path = recipe(tmp_path, tiny_model_folder)
    aloe("run", str(path))
    assert "verified" in aloe("verify", "out/tiny/model")
    with open(tmp_path / "out" / "tiny" / "model" / "config.json", "a") as handle:
        handle.write("\n")
    assert "config.json" in aloe("run", str(path), code=2)
    assert "config.json: changed" in aloe("verify", "out/tiny/model", code=1)
    aloe("run", str(path), "--redo", "model")
    assert "verified" in aloe("verify", "out/tiny/model")


def test_plan_says_why_before_an_edit_is_run(aloe: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    path = str(recipe(tmp_path, tiny_model_folder))
    assert "0 fresh, 2 to run" in aloe("plan", path)
    aloe("run", path)
    assert "2 fresh, 0 to run" in aloe("plan", path)
    said = aloe("plan", path, "--set", "model.lr=1e-5")
    assert "lr 2e-05 -> 1e-05" in said
    assert "1 fresh, 1 to run" in said
    assert "made" in aloe("show", "out/tiny/model") or "fingerprint" in aloe("show", "out/tiny/model")


def test_a_panic_of_a_library_is_one_error(aloe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tokenizers` panics on some texts, by an exception that is none."""

    class PanicException(BaseException):
        pass

    def app() -> None:
        raise PanicException("called `Result::unwrap()` on an `Err` value")

    monkeypatch.setattr(cli, "app", app)
    said = aloe("doctor", code=2)
    assert said.startswith("error: ")
    assert "gave up on a text (called `Result::unwrap()`" in said
