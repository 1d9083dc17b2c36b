"""What is fuzzed: every reader of files and texts that strangers write, each as a function of bytes.

A target returns, or raises `AloeError`: anything else is a finding. So is one that takes longer than `SECONDS`, or
makes the process's memory grow past what `run.py` allows. The corpus in `tests/hostile/corpus/<target>` holds inputs
that once were findings and small valid ones; `tests/hostile/test_corpus.py` runs all of it.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from datetime import datetime
from pathlib import Path

from aloe.data.files import read_file
from aloe.data.folders import files_of
from aloe.data.sources import read_rows
from aloe.errors import AloeError
from aloe.manifest_file import read_manifest
from aloe.merge import mergekit
from aloe.models.headers import check_gguf, safetensors_header
from aloe.models.sandbox import BoundedTemplate
from aloe.models.sources import check_folder, folder_licence
from aloe.prompting.extract import extract
from aloe.prompting.library import read_prompt
from aloe.recipe import Recipe
from aloe.recipe_file import parse_yaml, read_text
from aloe.release.push import front_matter
from aloe.run.store import read_artifact
from aloe.run.summary import print_artifact
from aloe.safety.guard_formats import neutral as guarded
from aloe.safety.guard_formats import read_llama_guard_3, read_wildguard

SECONDS = 20.0  # of processor time for one input, imports included
ROWS = 5_000  # read of one file
_HOME = Path(tempfile.mkdtemp(prefix="aloe-fuzz-"))
TODAY = datetime(2024, 7, 26)
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hello " * 20},
    {"role": "assistant", "content": "<b>hi</b>"},
]


def _file(name: str, data: bytes) -> Path:
    path = _HOME / name
    path.write_bytes(data)
    return path


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _rows(name: str) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        path = _file(name, data)
        for number, _ in enumerate(read_rows(path, source="fuzz")):
            if number >= ROWS:
                break
        for number, _ in enumerate(read_file(path)):
            if number >= ROWS:
                break

    return target


def recipe(data: bytes) -> None:
    """A recipe file, read and checked whole."""
    raw, lines = parse_yaml(read_text(_file("recipe.yaml", data)), "recipe.yaml")
    Recipe.parse(raw, lines, _HOME / "recipe.yaml")


def mergekit_yaml(data: bytes) -> None:
    """A mergekit config, turned into our parameters and checked."""
    raw, lines = parse_yaml(_text(data), "merge.yaml")
    if isinstance(raw, dict):
        values = mergekit.read(raw, "merge.yaml", lines).parameters
        Recipe.parse({"family": "f", "licence": "apache-2.0", "steps": {"m": {"merge": values}}})


def extraction(data: bytes) -> None:
    """An answer read out of a reply: lines before the first blank one are options."""
    head, _, reply = _text(data).partition("\n\n")
    options = dict(zip("ABCDEFGHIJ", head.splitlines() or ["x"], strict=False))
    extract(reply, options)
    extract(reply, options, truncated=True)


def judges(data: bytes) -> None:
    """What guards, graders and pair judges answered; and a reply judged by rules."""
    from aloe.data.rubric import parse_grades
    from aloe.evaluate.judge import degenerate, sentences
    from aloe.safety.expectations import read_reply
    from aloe.synthesize.pair_judge import read_verdict

    text = _text(data)
    for read in (read_llama_guard_3, read_wildguard, parse_grades, read_verdict, guarded, sentences):
        read(text)
    degenerate("What should I do?", text)
    read_reply("What should I do?", text)


def template(data: bytes) -> None:
    """A chat template, compiled and rendered in its sandbox; what Jinja says of a bad one is declared."""
    compiled = BoundedTemplate(_text(data), TODAY, "template")
    for prompt in (False, True):
        try:
            compiled.render(
                messages=MESSAGES, tools=None, documents=None, add_generation_prompt=prompt, bos_token="<s>"
            )
        except AloeError:
            raise
        except Exception as cause:  # `ChatTemplate` turns every one into an AloeError
            if isinstance(cause, MemoryError):
                raise


def safetensors(data: bytes) -> None:
    """A safetensors header."""
    safetensors_header(_file("model.safetensors", data))


def gguf(data: bytes) -> None:
    """A GGUF header."""
    check_gguf(_file("model.gguf", data))


def model_folder(data: bytes) -> None:
    """A model folder: `config.json`, the index and the card are cut out of the input at NUL bytes."""
    folder = _HOME / "model"
    folder.mkdir(exist_ok=True)
    names = ("config.json", "model.safetensors.index.json", "README.md", "tokenizer_config.json")
    parts = data.split(b"\0", len(names) - 1)
    for name, part in zip(names, parts + [b""] * len(names), strict=False):
        if part:
            (folder / name).write_bytes(part)
        else:
            (folder / name).unlink(missing_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    folder_licence(folder)
    check_folder(folder)


def tokenizer(data: bytes) -> None:
    """A tokenizer: `tokenizer.json`, `tokenizer_config.json` and the template are cut out of the input at NUL bytes;
    loaded as a model's is, and a text encoded and decoded."""
    from aloe.models.load import load_template
    from aloe.models.tokenizer_files import is_panic

    folder = _HOME / "tokenizer"
    folder.mkdir(exist_ok=True)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model")
    for name, part in zip(names, data.split(b"\0", len(names) - 1) + [b""] * len(names), strict=False):
        if part:
            (folder / name).write_bytes(part)
        else:
            (folder / name).unlink(missing_ok=True)
    found, _ = load_template(folder)
    try:
        found.decode(found("Take 2 tablets, aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!\n")["input_ids"])
    except BaseException as cause:  # what it does with a text ends where texts are: in an error of that text
        if not isinstance(cause, Exception) and not is_panic(cause):
            raise


def manifest(data: bytes) -> None:
    """A manifest, as `show` and `verify` read it; with its own digest put right, as a stranger could."""
    from aloe.digests import digest_json
    from aloe.release.verify import verify_artifact

    folder = _HOME / "artifact"
    folder.mkdir(exist_ok=True)
    path = folder / "manifest.json"
    path.write_bytes(data)
    read_manifest(folder)
    value = json.loads(data)
    value.pop("manifest_digest", None)
    try:
        value["manifest_digest"] = digest_json(value)
    except ValueError:
        return
    path.write_text(json.dumps(value))
    verify_artifact(folder)
    with redirect_stdout(io.StringIO()):
        print_artifact(read_artifact(folder))


def release_files(data: bytes) -> None:
    """The JSON files of a release, cut out of the input at NUL bytes, as `verify` reads them."""
    from aloe.release.verify import verify_artifact

    folder = _HOME / "release"
    folder.mkdir(exist_ok=True)
    names = ("lineage.json", "scores.json", "red_team.json", "risk_assessment.json", "gate.json", "risk_register.yaml")
    for name, part in zip(names, data.split(b"\0", len(names) - 1), strict=False):
        (folder / name).write_bytes(part)
    from aloe.rows import write_parquet

    if not (folder / "items.parquet").exists():
        write_parquet(folder / "items.parquet", [], columns=["id"])
    (folder / "manifest.json").write_text(json.dumps({"kind": "release", "files": {}}))
    verify_artifact(folder)


def card(data: bytes) -> None:
    """The head of a README.md: of a release, and of a data set's repository."""
    text = _text(data)
    front_matter(text)
    folder = _HOME / "set"
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    files_of(folder, "train")


def saved_set(data: bytes) -> None:
    """`state.json` and `dataset_dict.json` of a saved data set, cut out of the input at a NUL byte."""
    folder = _HOME / "saved"
    folder.mkdir(exist_ok=True)
    first, _, second = data.partition(b"\0")
    (folder / "state.json").write_bytes(first)
    (folder / "dataset_dict.json").unlink(missing_ok=True)
    if second:
        (folder / "dataset_dict.json").write_bytes(second)
    files_of(folder)


def licences(data: bytes) -> None:
    """A user's table of licences, over the packaged one."""
    from aloe.licence import packaged
    from aloe.licence_file import read_table

    read_table(_file("licences.yaml", data), packaged())


def prompt(data: bytes) -> None:
    """A prompt of a user's own library."""
    read_prompt(_file("problem.yaml", data))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "recipe": recipe, "mergekit": mergekit_yaml, "jsonl": _rows("rows.jsonl"), "json": _rows("rows.json"),
    "csv": _rows("rows.csv"), "gz": _rows("rows.jsonl.gz"), "zst": _rows("rows.jsonl.zst"),
    "parquet": _rows("rows.parquet"), "arrow": _rows("rows.arrow"), "extraction": extraction, "judges": judges,
    "template": template, "safetensors": safetensors, "gguf": gguf, "model_folder": model_folder,
    "manifest": manifest, "release_files": release_files, "card": card, "saved_set": saved_set, "prompt": prompt,
    "tokenizer": tokenizer, "licences": licences,
}  # fmt: skip


def check(name: str, data: bytes) -> None:
    """Run one input; returns if it behaved.

    Raises:
        Exception: of any kind but AloeError, which is a finding; TimeoutError where it took too long.
    """
    start = time.process_time()  # a busy machine makes no finding
    with suppress(AloeError):
        TARGETS[name](data)
    spent = time.process_time() - start
    if spent > SECONDS:
        raise TimeoutError(f"{name}: {len(data)} bytes took {spent:.1f} s")
