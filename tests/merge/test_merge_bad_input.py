"""Bad input of a merge: one error that names the file, tensor or key and a way out, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from aloe.errors import AloeError
from aloe.merge.stream import MergeJob
from aloe.merge.tensors import Checkpoint

Tensors = dict[str, torch.Tensor]
UP, EMBEDDING, NORM = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"
SHAPES = {EMBEDDING: (6, 8), UP: (24, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8), NORM: (8,)}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "rope_theta": 10000.0,
    "vocab_size": 6,
    "tie_word_embeddings": True,
}
TOKENS = ["<s>", "</s>", "a", "b", "c", "d"]
METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {"t": 0.5},
    "task_arithmetic": {},
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "breadcrumbs": {"density": 0.5, "gamma": 0.05},
    "della": {"density": 0.5},
    "model_stock": {},
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensors_of(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def write_model(path: Path, tensors: Tensors, tokens: list[str] = TOKENS, **config: Any) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    vocabulary = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": []}
    added = [{"id": i, "content": token, "special": True} for i, token in enumerate(tokens[:2])]
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": vocabulary, "added_tokens": added}))
    save_file(tensors, path / SINGLE)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {name: write_model(tmp_path / name, tensors_of(i)) for i, name in enumerate(("base", "sft", "chat"))}


def params(method: str = "dare_ties", **changes: Any) -> dict[str, Any]:
    dials = dict(METHODS[method])
    chosen = {"t": dials.pop("t")} if "t" in dials else {}
    names = ["sft"] if method == "slerp" else ["sft", "chat"]
    return {"method": method, "models": {name: {"weight": 1.0} | dials for name in names}} | chosen | changes


def merge(folders: dict[str, Path], out: Path, chosen: dict[str, Any] | None = None, workers: int = 1) -> None:
    """What the step does: check, then write into the empty folder that the run machinery gives."""
    out.mkdir(exist_ok=True)
    digests = {name: f"digest of {name}" for name in folders}
    MergeJob(chosen or params(), folders["base"], folders, digests, 7).write(out, workers)


def refused(
    folders: dict[str, Path],
    message: str,
    where: Path | str,
    chosen: dict[str, Any] | None = None,
    workers: int = 1,
) -> AloeError:
    """A merge must end in one error about `where`, with a way out, and leave its output folder empty."""
    out = folders["base"].parent / "out"
    with pytest.raises(AloeError, match=message) as caught:
        merge(folders, out, chosen, workers)
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(where)), caught.value.where
    assert caught.value.fix
    assert sorted(out.iterdir()) == []
    return caught.value


def test_what_is_changed_below_is_a_merge_that_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    for method in METHODS:
        merge(folders, tmp_path / method, params(method), workers=2)
        assert set(load_file(tmp_path / method / SINGLE)) == set(SHAPES)


# -- tensors --------------------------------------------------------------------------------------------------------


def changed(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), f"tensor '{UP}' of the base is missing"),
        (lambda t: t.update(extra=torch.ones(2)), "tensor 'extra' is not in the base"),
        (lambda t: t.update({"lm_head.weight": torch.ones(6, 8)}), "lm_head.weight"),
        (lambda t: t.update({NORM: torch.ones(9)}), rf"'{NORM}' has shape \[9\], the base \[8\]"),
        (lambda t: t.update({UP: t[UP].T.contiguous()}), rf"'{UP}' has shape \[8, 24\], the base \[24, 8\]"),
        (lambda t: t.update({NORM: torch.ones(1, 8)}), rf"'{NORM}' has shape \[1, 8\]"),
        (lambda t: t.update({EMBEDDING: torch.ones(7, 8)}), r"embed.* has (shape \[7, 8\]|7 rows), the base"),
        (lambda t: t.update({UP: t[UP].to(torch.int8)}), f"'{UP}' .*I8"),
        (lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}), f"'{UP}' has dtype F8_E4M3"),
        (lambda t: t.update({UP: t[UP].double()}), f"'{UP}' has dtype F64"),
        (lambda t: t.clear(), "of the base is missing|no tensors"),
    ],
)
def test_tensors_that_are_not_the_bases(
    change: Callable[[Tensors], Any], message: str, folders: dict[str, Path]
) -> None:
    changed(folders["chat"], change)
    refused(folders, message, folders["chat"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", ["base", "sft", "chat"])
def test_nan_and_infinity(value: float, dtype: torch.dtype, which: str, folders: dict[str, Path]) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[UP] = tensors[UP].to(dtype)
        tensors[UP][23, 7] = value

    changed(folders[which], spoil)
    refused(folders, f"tensor '{UP}' holds NaN or infinity", folders[which] / SINGLE)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_nan_is_found_by_every_method_whether_or_not_the_entry_is_kept(
    method: str, workers: int, folders: dict[str, Path]
) -> None:
    changed(folders["sft"], lambda tensors: tensors[NORM][0:1].fill_(torch.nan))
    refused(folders, f"tensor '{NORM}' holds NaN or infinity", folders["sft"] / SINGLE, params(method), workers)


def test_nan_in_a_model_of_weight_zero_is_still_an_error(folders: dict[str, Path]) -> None:
    changed(folders["sft"], lambda tensors: tensors[NORM][0:1].fill_(torch.nan))
    models = {"sft": {"weight": 0.0}, "chat": {"weight": 1.0}}
    chosen = params("task_arithmetic", models=models)
    refused(folders, f"tensor '{NORM}' holds NaN", folders["sft"] / SINGLE, chosen)


def test_a_merge_that_overflows_its_dtype(folders: dict[str, Path]) -> None:
    changed(folders["sft"], lambda tensors: tensors[UP][5:6].fill_(60000.0))
    chosen = params("task_arithmetic", dtype="float16", lambda_=4.0)
    refused(folders, f"the merged tensor '{UP}' overflows", "merge", chosen)


@pytest.mark.parametrize("config", [{"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}])
def test_quantised_models_are_refused_and_never_copied_as_counters(
    config: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    """Weights of 8 bits look like masks and counters, which a merge copies: nothing would be merged."""
    for i, name in enumerate(("base", "sft", "chat")):
        shutil.rmtree(folders[name])
        tensors = tensors_of(i) | {UP: torch.ones(24, 8, dtype=torch.int8), UP + "_scale": torch.ones(24)}
        write_model(folders[name], tensors, **config)
    error = refused(folders, "quantization_config", folders["base"])
    assert "dequantis" in (error.fix or "")


# -- vocabulary and architecture ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["<s>", "</s>", "a", "c", "b", "d"], "token 3 is 'c', in the base 'b'"),
        ([*TOKENS[:5], "<new>"], "token 5 is '<new>', in the base 'd'"),
        (TOKENS[:5], "token 5"),
    ],
)
def test_another_vocabulary(tokens: list[str], message: str, folders: dict[str, Path]) -> None:
    shutil.rmtree(folders["sft"])
    write_model(folders["sft"], tensors_of(1), tokens)
    error = refused(folders, message, folders["sft"])
    assert "tokenizer" in (error.fix or "")


@pytest.mark.parametrize("which", ["base", "sft"])
@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_tokenizers_that_cannot_be_read(which: str, text: str | None, folders: dict[str, Path]) -> None:
    file = folders[which] / "tokenizer.json"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    refused(folders, "tokenizer|JSON", folders[which])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "qwen2"),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 1),
        ("num_hidden_layers", 2),
        ("head_dim", 16),
        ("rope_theta", 500000.0),
    ],
)
def test_another_architecture(key: str, value: Any, folders: dict[str, Path]) -> None:
    """Also where every tensor has the base's shape: heads cut another way make another model of the same numbers."""
    base = folders["base"] / "config.json"
    base.write_text(json.dumps(CONFIG | {"head_dim": 4}))
    (folders["sft"] / "config.json").write_text(json.dumps(CONFIG | {"head_dim": 4, key: value}))
    error = refused(folders, f"{key} in config.json is {value!r}", folders["sft"])
    assert repr((CONFIG | {"head_dim": 4})[key]) in error.what


def test_a_head_tied_in_one_and_not_in_the_other(folders: dict[str, Path]) -> None:
    shutil.rmtree(folders["chat"])
    write_model(folders["chat"], tensors_of(2) | {"lm_head.weight": torch.ones(6, 8)}, tie_word_embeddings=False)
    refused(folders, "lm_head.weight", folders["chat"])


@pytest.mark.parametrize("which", ["base", "chat"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "lla', "not valid JSON"),
        ("[]", "JSON object"),
        ("\xff", "not UTF-8"),
        (None, r"config\.json"),
    ],
)
def test_a_damaged_configuration(which: str, text: str | None, message: str, folders: dict[str, Path]) -> None:
    file = folders[which] / "config.json"
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text.encode("latin-1"))
    refused(folders, message, folders[which])


# -- files ----------------------------------------------------------------------------------------------------------


def header(entries: Any) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "within_the_length": lambda whole: whole[:5],
    "within_the_header": lambda whole: whole[:60],
    "within_the_data": lambda whole: whole[:-1],
    "half": lambda whole: whole[: len(whole) // 2],
    "length_beyond_the_file": lambda whole: (1 << 60).to_bytes(8, "little") + whole[8:],
    "not_json": lambda whole: header(b"not json"),
    "not_utf8": lambda whole: header(b"\xff\xfe"),
    "not_an_object": lambda whole: header([1, 2]),
    "no_offsets": lambda whole: header({"w": {"dtype": "F32", "shape": [2]}}) + bytes(8),
    "offsets_beyond_the_file": lambda whole: header({"w": ENTRY | {"data_offsets": [8, 16]}}) + bytes(8),
    "offsets_before_the_data": lambda whole: header({"w": ENTRY | {"data_offsets": [-8, 0]}}) + bytes(8),
    "shape_of_another_length": lambda whole: header({"w": ENTRY | {"shape": [3]}}) + bytes(8),
    "negative_shape": lambda whole: header({"w": ENTRY | {"shape": [-1, -2]}}) + bytes(8),
    "a_page_of_html": lambda whole: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "a_git_lfs_pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
}


@pytest.mark.parametrize("which", ["base", "sft"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_truncated_or_damaged_file(damage: str, which: str, folders: dict[str, Path]) -> None:
    file = folders[which] / SINGLE
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    refused(folders, "not a whole safetensors file", file)


def test_a_file_that_shrinks_while_it_is_merged(folders: dict[str, Path], tmp_path: Path) -> None:
    job = MergeJob(params(), folders["base"], folders, {name: name for name in folders}, 7)
    file = folders["sft"] / SINGLE
    os.truncate(file, file.stat().st_size - 40)
    (tmp_path / "out").mkdir()
    with pytest.raises(AloeError, match="the file ended inside tensor") as caught:
        job.write(tmp_path / "out")
    assert caught.value.where == str(file)
    assert not list((tmp_path / "out").iterdir())


def shard(folder: Path) -> None:
    """Two shards and an index in place of the single file."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


LAST = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("which", ["base", "chat"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / LAST).unlink(), LAST),
        (lambda f: (f / LAST).write_bytes((f / LAST).read_bytes()[:-4]), "not a whole safetensors file"),
        (lambda f: edit_index(f, lambda i: i["weight_map"].update({UP: LAST})), f"'{UP}' is in the index"),
        (lambda f: edit_index(f, lambda i: i["weight_map"].update(ghost=LAST)), "'ghost' is in the index"),
        (lambda f: edit_index(f, lambda i: i["weight_map"].update({UP: "../elsewhere.safetensors"})), "elsewhere"),
        (lambda f: edit_index(f, lambda i: i.pop("weight_map")), "weight_map"),
        (lambda f: edit_index(f, lambda i: i.update(weight_map=["a"])), "weight_map"),
        (lambda f: edit_index(f, lambda i: i["weight_map"].update({UP: 3})), "weight_map|shard"),
        (lambda f: (f / INDEX).write_text("{"), "not valid JSON"),
    ],
)
def test_shards_and_index_that_disagree(
    damage: Callable[[Path], Any], message: str, which: str, folders: dict[str, Path]
) -> None:
    shard(folders[which])
    merge(folders, folders["base"].parent / "sound")
    damage(folders[which])
    refused(folders, message, folders[which])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt"])
def test_pickled_weights(name: str, folders: dict[str, Path]) -> None:
    (folders["sft"] / SINGLE).rename(folders["sft"] / name)
    error = refused(folders, f"pickled \\({name}\\)", folders["sft"])
    assert "safetensors" in (error.fix or "")


def test_a_folder_without_weights_and_one_that_is_not_there(folders: dict[str, Path]) -> None:
    (folders["sft"] / SINGLE).unlink()
    refused(folders, "no model.safetensors", folders["sft"])
    shutil.rmtree(folders["sft"])
    refused(folders, r"config\.json|no such folder", folders["sft"])


def test_an_adapter_over_another_model(folders: dict[str, Path]) -> None:
    shutil.rmtree(folders["sft"])
    folders["sft"].mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    (folders["sft"] / "adapter_config.json").write_text(json.dumps(settings))
    module = "base_model.model.model.layers.3.mlp.up_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(1, 8), f"{module}.lora_B.weight": torch.ones(24, 1)}
    save_file(factors, folders["sft"] / "adapter_model.safetensors")
    refused(folders, "layers.3.mlp.up_proj.* belongs to no tensor of the base", folders["sft"])


# -- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        *[(method, "density", value) for method in ("ties", "dare_ties", "della") for value in (0, -0.5, 1.01, 2)],
        ("dare_ties", "density", float("nan")),
        ("dare_ties", "density", [0.5, 0.0]),
        ("dare_ties", "density", []),
        ("dare_ties", "weight", []),
        ("dare_ties", "weight", float("nan")),
        ("dare_ties", "weight", float("inf")),
        ("dare_ties", "weight", [1.0, float("nan")]),
        ("ties", "weight", -1.0),
        ("linear", "density", 0.5),
        ("breadcrumbs", "gamma", 1.0),
        ("breadcrumbs", "gamma", -0.1),
        ("della", "epsilon", 0.9),
    ],
)
def test_a_number_out_of_range_is_named_by_its_place(
    method: str, field: str, value: Any, folders: dict[str, Path]
) -> None:
    chosen = params(method)
    chosen["models"]["sft"][field] = value
    error = refused(folders, field, f"merge.models.sft.{field}", chosen)
    assert field in error.what


@pytest.mark.parametrize(
    ("chosen", "where"),
    [
        (params("linear", models={}), "merge.models"),
        (params("slerp", models={"sft": {}, "chat": {}}), "merge.models"),
        (params("model_stock", models={"sft": {}}), "merge.models"),
        (params("linear", models={"sft": {"weight": 0}, "chat": {"weight": 0}}), "merge.models"),
        (params("linear", models={"sft": {"weight": 1}, "chat": {"weight": -1}}), "merge.models"),
        (params("slerp", t=None), "merge.t"),
        (params("slerp", t=1.5), "merge.t"),
        (params("ties", t=0.5), "merge.t"),
        (params("linear", lambda_=2.0), "merge.lambda"),
        (params("ties", lambda_=float("inf")), "merge.lambda"),
        (params("linear", trim_scope="model"), "merge.trim_scope"),
        (params("ties", missing=["no.such.tensor"]), "merge.missing"),
        (params("ties", missing=[UP]), "merge.missing"),
        (params() | {"method": "tise"}, "merge.method"),
    ],
)
def test_settings_that_do_not_go_together(chosen: dict[str, Any], where: str, folders: dict[str, Path]) -> None:
    refused(folders, ".", where, chosen)


def test_a_model_without_a_folder_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    """As when weights are written down for more models than there are."""
    chosen = params("linear", models={"sft": {}, "chat": {}, "third": {}})
    refused(folders, "third", "merge.models", chosen)


# -- the same model in two places -----------------------------------------------------------------------------------


TASK_VECTORS = sorted(set(METHODS) - {"linear"})


@pytest.mark.parametrize("method", TASK_VECTORS)
def test_the_base_as_a_model_of_its_own_merge(method: str, folders: dict[str, Path]) -> None:
    """Its task vector is zero: it would only dilute the others, or elect signs."""
    error = refused(folders | {"sft": folders["base"]}, "the base", "merge.models.sft", params(method))
    assert "sft" in f"{error.where}"


def test_the_base_by_another_path(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folders["base"])
    refused(folders | {"sft": tmp_path / "link"}, "the base", "merge.models.sft")


def test_the_base_may_be_averaged_in(folders: dict[str, Path], tmp_path: Path) -> None:
    merge(folders | {"sft": folders["base"]}, tmp_path / "out", params("linear"))
    means = load_file(tmp_path / "out" / SINGLE)
    torch.testing.assert_close(means[UP], (tensors_of(0)[UP] + tensors_of(2)[UP]) / 2)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_one_model_under_two_names(method: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """It would count twice, and under DARE be thinned out by one and the same mask."""
    digests = {"base": "b", "sft": "one", "chat": "one"}
    with pytest.raises(AloeError, match="same model") as caught:
        MergeJob(params(method), folders["base"], folders, digests, 7)
    assert (caught.value.where or "").startswith("merge.models")
    assert caught.value.fix
    refused(folders | {"sft": folders["chat"]}, "same model", "merge.models", params(method))


# -- the disk -------------------------------------------------------------------------------------------------------


def no_room(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def reading_is_a_mistake(*_: Any) -> Any:
    raise AssertionError("weights were read before the disk's room was known")


def test_too_little_room_is_said_before_weights_are_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 100, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(Checkpoint, "block", reading_is_a_mistake)
    refused(folders, "free", folders["base"].parent / "out")


def test_a_disk_that_cannot_hold_the_reservation(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    monkeypatch.setattr(Checkpoint, "block", reading_is_a_mistake)
    refused(folders, "No space left", folders["base"].parent / "out")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("writes", [0, 1, 3])
def test_a_disk_that_fills_up_meanwhile(
    writes: int, workers: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = os.pwrite, iter(range(10**6))
    monkeypatch.setattr(os, "pwrite", lambda *arguments: (real if next(count) < writes else no_room)(*arguments))
    refused(folders, "No space left", folders["base"].parent / "out", workers=workers)


def test_a_file_system_without_reservation_is_written_all_the_same(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    merge(folders, tmp_path / "reserved")
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    merge(folders, tmp_path / "plain")
    assert (tmp_path / "plain" / SINGLE).read_bytes() == (tmp_path / "reserved" / SINGLE).read_bytes()


def test_a_folder_that_cannot_be_written(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    job = MergeJob(params(), folders["base"], folders, {name: name for name in folders}, 7)
    for out in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(AloeError) as caught:
            job.write(out)
        assert str(out) in (caught.value.where or "")
        assert caught.value.fix
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "absent").exists()


def test_after_an_interrupted_merge_that_may_be_resumed_no_reader_takes_the_folder_for_a_model(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = MergeJob(params(), folders["base"], folders, {name: name for name in folders}, 7)
    out = tmp_path / "out"
    out.mkdir()
    real, count = os.pwrite, iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *arguments: (real if next(count) < 5 else no_room)(*arguments))
        with pytest.raises(AloeError, match="No space left"):
            job.write(out, resume=True, shard_bytes=300)
    assert not (out / "config.json").exists()
    job.write(out, resume=True, shard_bytes=300)
    (tmp_path / "whole").mkdir()
    job.write(tmp_path / "whole")
    merged: Tensors = {}
    for file in out.glob("*.safetensors"):
        merged |= load_file(file)
    assert all(torch.equal(merged[n], t) for n, t in load_file(tmp_path / "whole" / SINGLE).items())


# -- the step -------------------------------------------------------------------------------------------------------


class Bar:
    def advance(self, count: int = 1, **figures: float | str) -> None: ...


class FakeContext:
    """The part of contract.Context that a merge uses; the digest of a folder is that of its weights."""

    def __init__(self, out: Path, folders: dict[str, Path]) -> None:
        out.mkdir()
        self.out, self.folders, self.seed, self.name = out, folders, 7, "merged"
        self.cache = out.parent / "cache"
        self.lines: list[str] = []

    def path(self, ref: str) -> Path:
        return self.folders[ref]

    def digest(self, ref: str) -> str:
        import hashlib

        return hashlib.sha256((self.folders[ref] / SINGLE).read_bytes()).hexdigest()

    def log(self, message: str) -> None:
        self.lines.append(message)

    def done_with(self, path: Path) -> None: ...

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        yield Bar()


STEP = {"method": "ties", "base": "base", "models": {"sft": {"density": 0.5}, "chat": {"density": 0.5}}}


def run_step(folders: dict[str, Path], out: Path, **changes: Any) -> None:
    from aloe.merge.step import Merge

    Merge.model_validate(STEP | changes).run(FakeContext(out, folders))  # type: ignore[arg-type]


def test_the_step_knows_the_base_and_a_twin_by_their_content(folders: dict[str, Path], tmp_path: Path) -> None:
    run_step(folders, tmp_path / "sound")
    for original in ("base", "chat"):
        shutil.rmtree(folders["sft"])
        shutil.copytree(folders[original], folders["sft"])
        with pytest.raises(AloeError) as caught:
            run_step(folders, tmp_path / f"out-{original}")
        assert (caught.value.where or "").startswith("merge.models")
        assert caught.value.fix
        assert not list((tmp_path / f"out-{original}").iterdir())


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"models": {"sft": {"density": 0}}}, "density"),
        ({"models": {"sft": {"density": 1.5}}}, "density"),
        ({"models": {"sft": {"weight": float("nan")}}}, "weight"),
        ({"models": {"sft": {"dencity": 0.5}}}, "dencity"),
        ({"models": ["sft", "chat"]}, "models"),
        ({"dtype": "int8"}, "dtype"),
        ({"method": "tise"}, "method"),
        ({"tokenizer": "both"}, "tokenizer"),
        ({"weights": [0.5, 0.5]}, "weights"),
    ],
)
def test_the_step_refuses_what_it_cannot_mean_when_it_is_made(changes: dict[str, Any], place: str) -> None:
    from aloe.merge.step import Merge

    with pytest.raises((AloeError, ValidationError), match=place):
        Merge.model_validate(STEP | changes)


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`command(arguments.., code=0)`: run `aloe` in `tmp_path`, check its exit code, return what it said."""
    from aloe import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["aloe", *arguments])
        try:
            cli.main()
            found: object = 0
        except SystemExit as end:
            found = end.code or 0
        said = capsys.readouterr()
        assert found == code, said.err + said.out
        assert "Traceback" not in said.err
        return said.err + said.out

    return run


@pytest.fixture
def config(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A merge as mergekit writes it down."""
    part = {"weight": 0.5, "density": 0.5}
    models = [{"model": str(folders[name]), "parameters": part} for name in ("sft", "chat")]
    text = {"merge_method": "ties", "base_model": str(folders["base"]), "dtype": "float32", "models": models}
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.mark.parametrize("occupant", ["file", "folder", "model"])
def test_the_command_leaves_an_output_folder_that_is_not_its_own_alone(
    occupant: str, command: Callable[..., str], config: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "result"
    if occupant == "file":
        out.write_text("mine")
    elif occupant == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        shutil.copytree(folders["chat"], out)
    before = {p: p.read_bytes() for p in [out, *out.glob("*")] if p.is_file()}
    said = command("merge", str(config), str(out), code=2)
    assert "result" in said
    assert "fix:" in said
    assert {p: p.read_bytes() for p in [out, *out.glob("*")] if p.is_file()} == before


def test_the_command_writes_into_an_empty_folder_and_over_its_own_earlier_merge(
    command: Callable[..., str], config: Path, tmp_path: Path
) -> None:
    (tmp_path / "result").mkdir()
    for density in (0.5, 0.9):
        config.write_text(config.read_text().replace("density: 0.5", f"density: {density}"))
        command("merge", str(config), "result")
        assert (tmp_path / "result" / "merge.json").exists()
        assert str(density) in (tmp_path / "result" / "merge.json").read_text()


def test_a_failed_command_leaves_no_output_folder_behind(
    command: Callable[..., str], config: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    changed(folders["sft"], lambda tensors: tensors[NORM][0:1].fill_(torch.nan))
    said = command("merge", str(config), "result", code=2)
    assert NORM in said
    assert "fix:" in said
    assert not (tmp_path / "result").exists() or not list((tmp_path / "result").iterdir())
