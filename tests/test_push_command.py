"""`aloe push`: what is sent is verified, what arrived is compared, nothing becomes public by accident."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from typer.testing import CliRunner

from aloe.cli import app
from aloe.errors import AloeError
from aloe.recipe import Recipe
from aloe.release.push import contents, front_matter, git_blob, push_hub
from aloe.run.execute import run_recipe
from aloe.run.progress import Console


@pytest.fixture(scope="module")
def release(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("push")
    base = root / "base"
    shutil.copytree(tiny_model_folder, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    merge = {"method": "linear", "base": str(base), "models": {str(base): {"weight": 1.0}}}
    steps = {"merged": {"merge": merge}, "release": {"release": {"model": "merged"}}}
    recipe = Recipe.parse({"family": "tiny", "licence": "apache-2.0", "steps": steps})
    return run_recipe(recipe, out=root / "out", console=Console(quiet=True)).artifacts["release"].path


def curated(root: Path, licence: str = "cc-by-4.0", **meta: Any) -> Path:
    """A data step's artifact over a file of which one row tells of a person, and is dropped."""
    words = ("amber", "birch", "cedar", "delta", "ember", "fjord")
    rows: list[dict[str, Any]] = [
        {"id": w, "question": f"What does sign {w} mean?", "answer": f"The sign {w} means {w} things.", "meta": meta}
        for w in words
    ]
    rows.append({"id": "p", "question": "Who came?", "answer": "Dr. Jane Smithson, MRN: 00482913, saw my son Peter."})
    root.mkdir(parents=True)
    (root / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "rows.jsonl.license").write_text(licence)
    curate = {"sources": [str(root / "rows.jsonl")], "phi": {"mode": "drop"}, "max_dropped_share": 0.5}
    recipe = Recipe.parse({"family": "tiny", "licence": "cc-by-nc-4.0", "steps": {"corpus": {"curate": curate}}})
    return run_recipe(recipe, out=root / "out", console=Console(quiet=True)).artifacts["corpus"].path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return curated(tmp_path_factory.mktemp("set") / "one")


def push(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["push", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


ASKED = httpx2.Request("POST", "http://hub")


class Hub:
    """Answers as `HfApi` does, and keeps what it is sent."""

    def __init__(self, private: bool = True, damage: str | None = None) -> None:
        self.private, self.damage = private, damage
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo: str, **given: Any) -> None:
        self.calls.append(("create_repo", given))
        self.kind = given["repo_type"]

    def repo_info(self, repo: str, **given: Any) -> Any:
        assert given["repo_type"] == self.kind
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **given: Any) -> Any:
        self.calls.append(("upload_folder", given))
        folder = Path(given["folder_path"])
        self.files = {name: (folder / name).read_bytes() for name in given["allow_patterns"]}
        if self.damage:
            self.files[self.damage] = self.files[self.damage][:-1] + b"!"
        return SimpleNamespace(oid="0123abc")

    def list_repo_tree(self, repo: str, **given: Any) -> Any:
        assert (given["revision"], given["repo_type"]) == ("0123abc", self.kind)
        for name, content in self.files.items():
            large = name.endswith((".safetensors", ".parquet"))
            yield SimpleNamespace(
                path=name, size=len(content),
                blob_id=hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest(),
                lfs=SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if large else None,
            )  # fmt: skip


def test_a_folder_gets_the_release_as_it_is(release: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared" / "model"
    target.parent.mkdir()
    said = push(str(release), str(target)).output
    assert "each was compared" in said
    assert {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} == dict(
        contents(release)
    ).keys()
    assert push(str(release), f"file://{target}").exit_code == 0  # the same once more
    (target / "more.bin").write_bytes(b"x")  # all that was sent is there, and more
    with pytest.raises(AloeError, match="with other content"):
        push(str(release), str(target))
    (target / "more.bin").unlink()
    (target / "config.json").write_text("{}")
    with pytest.raises(AloeError, match="with other content"):
        push(str(release), str(target))


def test_the_copy_loads_in_transformers_and_verifies(release: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    push(str(release), str(tmp_path / "model"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() > 0
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "model")]).exit_code == 0


def test_a_data_step_becomes_a_dataset_repository(corpus: Path) -> None:
    hub = Hub()
    sent = push_hub(corpus, "clinic/corpus", public=False, message="one", api=hub)
    assert hub.kind == hub.calls[1][1]["repo_type"] == "dataset"
    assert sorted(hub.files) == ["README.md", "contamination.json", "rows.parquet", "stats.json"]
    assert (sent.revision, sent.files) == ("0123abc", 4)
    assert front_matter(hub.files["README.md"].decode())["license"] == "cc-by-4.0"
    with pytest.raises(AloeError, match=r"rows\.parquet arrived changed"):
        push_hub(corpus, "clinic/corpus", public=True, message="", api=Hub(damage="rows.parquet"))


def test_a_data_set_in_a_folder_loads_and_holds_nobody_who_was_dropped(corpus: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    target = tmp_path / "shared"
    assert "4 files" in push(str(corpus), str(target)).output
    assert not [p for p in target.rglob("*") if p.is_file() and b"Smithson" in p.read_bytes()]
    rows = load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 6
    assert set(rows["licence"]) == {"cc-by-4.0"}
    assert push(str(corpus), str(target)).exit_code == 0  # the same once more


def test_a_dry_run_says_what_of_a_data_step_stays(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **given: pytest.fail("the hub was asked"))
    said = push(str(corpus), "clinic/corpus", "--dry-run").output
    assert "would send 4 files" in said
    assert "to the private dataset repository clinic/corpus" in said
    (stays,) = [line for line in said.splitlines() if line.startswith("stays here: ")]
    assert {"dropped.parquet", "manifest.json"} < set(stays.removeprefix("stays here: ").split(", "))
    assert "to the folder" in push(str(corpus), str(tmp_path / "x"), "--dry-run").output


def test_a_data_set_that_may_not_be_given_away_is_refused(corpus: Path, tmp_path: Path) -> None:
    unknown = curated(tmp_path / "unknown", "unknown")
    with pytest.raises(AloeError, match="no licence satisfies all of unknown"):
        push(str(unknown), str(tmp_path / "a"))
    written = curated(tmp_path / "written", "cc0-1.0", writer_licence="llama3.1")
    with pytest.raises(AloeError, match=r"looser than its rows allow: the writer of rows: llama3\.1 requires"):
        push(str(written), str(tmp_path / "b"))
    red = tmp_path / "red"
    shutil.copytree(corpus, red)
    manifest = json.loads((red / "manifest.json").read_text())
    (red / "manifest.json").write_text(json.dumps(manifest | {"verb": "red_team_pairs"}))
    with pytest.raises(AloeError, match="red team"):
        push(str(red), str(tmp_path / "c"))
    (red / "manifest.json").write_text(json.dumps(manifest | {"kind": "scores"}))
    with pytest.raises(AloeError, match="the step made scores"):
        push(str(red), str(tmp_path / "d"))
    assert not list(tmp_path.glob("[abcd]"))


def test_a_dry_run_sends_nothing(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **given: pytest.fail("the hub was asked"))
    said = push(str(release), "clinic/model", "--dry-run").output
    assert "to the private repository clinic/model" in said
    assert "model.safetensors" in said
    assert said.strip().endswith("nothing was sent")
    push(str(release), str(tmp_path / "x"), "--dry-run")
    assert not (tmp_path / "x").exists()


def test_the_hub_gets_one_commit_and_is_private(release: Path) -> None:
    hub = Hub()
    sent = push_hub(release, "clinic/model", public=False, message="one", api=hub)
    assert (sent.revision, sent.files) == ("0123abc", len(contents(release)))
    (made, how), (uploaded, what) = hub.calls
    assert (made, how["private"], uploaded, what["commit_message"]) == ("create_repo", True, "upload_folder", "one")


def test_a_public_repository_is_not_added_to_without_being_asked(release: Path) -> None:
    hub = Hub(private=False)
    with pytest.raises(AloeError, match="is public already"):
        push_hub(release, "clinic/model", public=False, message="", api=hub)
    assert [name for name, _ in hub.calls] == ["create_repo"]
    push_hub(release, "clinic/model", public=True, message="", api=hub)


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_what_arrived_changed_is_named(release: Path, name: str) -> None:
    with pytest.raises(AloeError, match=f"{name} arrived changed"):
        push_hub(release, "clinic/model", public=True, message="", api=Hub(damage=name))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (LocalTokenNotFoundError("x"), "no token"),
        (httpx2.ConnectError("x"), "can't be reached"),
        (HfHubHTTPError("no", response=httpx2.Response(403, request=ASKED)), r"no \(403\)"),
    ],
)
def test_what_the_hub_says_is_one_clear_error(release: Path, cause: Exception, message: str) -> None:
    class Refusing(Hub):
        def create_repo(self, repo: str, **given: Any) -> None:
            raise cause

    with pytest.raises(AloeError, match=message):
        push_hub(release, "clinic/model", public=True, message="", api=Refusing())


def test_what_is_no_sound_release_is_refused(release: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="is no release"):
        push(str(tiny_model_folder), str(tmp_path / "a"))
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    (copy / "config.json").unlink()
    with pytest.raises(AloeError, match="damaged"):
        push(str(copy), str(tmp_path / "b"))
    with pytest.raises(AloeError, match="neither an id on the hub nor a folder"):
        push(str(release), "model")
    with pytest.raises(AloeError, match="neither public nor private"):
        push(str(release), str(tmp_path / "c"), "--public")
    assert not list(tmp_path.glob("[abc]"))


def test_git_blob_is_gits(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"words\n" * 1000)
    told = subprocess.run(["git", "hash-object", str(tmp_path / "f")], capture_output=True, text=True, check=True)
    assert git_blob(tmp_path / "f") == told.stdout.strip()
    assert front_matter("---\nlicense: mit\n---\ntext") == {"license": "mit"}
    assert front_matter("no block") == {}
