"""Safetensors in and out, a slice at a time, without torch.

A safetensors file is an 8-byte header length, a JSON header {name: {dtype, shape, data_offsets}} and the raw
little-endian data (https://github.com/huggingface/safetensors). Files are read and written in place, at offsets known
beforehand, so neither side ever holds a whole tensor. Not memory-mapped: mapped pages count as the process's memory,
each costs a page fault, and a file that shrinks meanwhile kills the process where a short read is an error.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aloe.errors import AloeError
from aloe.json_file import read_object
from aloe.merge.arithmetic import F32, Bytes, all_finite, decode
from aloe.models.headers import safetensors_header

FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # counters and masks: copied, never merged
SHARD_BYTES = 5 * 1000**3
HEADS = ("lm_head.weight",)
COPIED = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"),
    *("chat_template.jinja", "chat_template.json"),
)
_OPENING = threading.Lock()
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's bytes lie. `dtype` is safetensors' name for it; `begin` counts from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one entry."""
        return FLOATS.get(self.dtype) or WHOLE[self.dtype]


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, checked against the file's length."""
    found = safetensors_header(file)
    for name, entry in found.items():
        if entry.dtype not in FLOATS and entry.dtype not in WHOLE:
            fix = "save the model in float32, float16 or bfloat16 (dequantise it first)"
            raise AloeError(f"tensor {name!r} has dtype {entry.dtype}", where=str(file), fix=fix)
    return {name: Tensor(name, file, e.dtype, e.shape, e.begin) for name, e in found.items()}


class Source(Protocol):
    """One input model as a merge sees it: tensors by name, read in slices. A stored checkpoint is one; an adapter over
    a base or a checkpoint with its vocabulary rearranged computes what it gives. Safe from several threads."""

    @property
    def folder(self) -> Path:
        """Where it came from."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        ...

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Name, safetensors dtype and shape of every tensor (a tied head left out)."""
        ...

    def block(self, name: str, start: int, stop: int) -> tuple[Bytes, str]:
        """Raw little-endian bytes of flat entries [start, stop) and the dtype they are in. What an entry is never
        depends on how a tensor is cut into blocks."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """An opened Hugging Face folder: configuration and tensors by name (a tied head left out, see `tied`)."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tied: bool

    @cached_property
    def _handles(self) -> dict[Path, int]:
        return {}

    def _handle(self, file: Path) -> int:
        with _OPENING:
            if file not in self._handles:
                self._handles[file] = os.open(file, os.O_RDONLY)
                weakref.finalize(self, os.close, self._handles[file])
            return self._handles[file]

    def block(self, name: str, start: int, stop: int) -> tuple[Bytes, str]:
        """Bytes of flat entries [start, stop) as stored, and their dtype."""
        tensor = self.tensors[name]
        wanted = (stop - start) * tensor.itemsize
        raw = np.empty(wanted, dtype=np.uint8)
        view, at = memoryview(raw.data), tensor.begin + start * tensor.itemsize
        while view:
            done = os.preadv(self._handle(tensor.file), [view], at)
            if done == 0:
                fix = "nothing may write to a model while it is merged; check the file's size and digest"
                raise AloeError(f"the file ended inside tensor {name!r}", where=str(tensor.file), fix=fix)
            view, at = view[done:], at + done
        return raw, tensor.dtype

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> Bytes:
        """Bytes of flat entries [start, stop) as stored."""
        return self.block(name, start, self.tensors[name].size if stop is None else stop)[0]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        """Flat entries [start, stop) as float32. NaN or infinity is an error that names file and tensor."""
        tensor, raw = self.tensors[name], self.raw(name, start, stop)
        if not all_finite(raw, tensor.dtype):
            fix = "this model's training diverged or the file is damaged: use another checkpoint"
            raise AloeError(f"tensor {name!r} holds NaN or infinity", where=str(tensor.file), fix=fix)
        return decode(raw, tensor.dtype)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a model folder."""
    return read_object(file)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder of safetensors, one file or shards with an index.

    Raises:
        AloeError: no configuration, pickled weights, an adapter, missing shards or tensors, damaged files.
    """
    config_file = folder / "config.json"
    if not config_file.exists():
        raise AloeError("no config.json: not a Hugging Face model folder", where=str(folder), fix="check the path")
    config = read_json(config_file)
    if config.get("quantization_config"):
        what = "the weights are quantised (quantization_config in config.json): they can't be added up"
        fix = "merge the model it was quantised from, or dequantise it and save it in bfloat16"
        raise AloeError(what, where=str(folder), fix=fix)
    tensors = _find_tensors(folder)
    heads = [name for name in HEADS if name in tensors]
    tied = bool(config.get("tie_word_embeddings")) or not heads
    checkpoint = Checkpoint(folder, config, tensors, tied)
    return _drop_head(checkpoint, heads) if tied and heads else checkpoint


def _drop_head(checkpoint: Checkpoint, heads: list[str]) -> Checkpoint:
    """A tied head that was stored all the same is merged once, as the embedding it equals."""
    for head in heads:
        if not head_is_copy(checkpoint, head):
            raise AloeError(
                f"config.json ties {head!r} to the embedding, but the stored tensors differ",
                where=str(checkpoint.folder),
                fix="set tie_word_embeddings to false in config.json, or save the model again",
            )
    rest = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in heads}
    return Checkpoint(checkpoint.folder, checkpoint.config, rest, True)


def head_is_copy(checkpoint: Checkpoint, head: str) -> bool:
    """Whether the output head's bytes are those of the token embedding."""
    for name in checkpoint.tensors:
        if name.endswith(EMBEDDINGS):
            return bool(np.array_equal(checkpoint.raw(name), checkpoint.raw(head)))
    return False


def _find_tensors(folder: Path) -> dict[str, Tensor]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return read_header(single)
    if not index.exists():
        raise _no_weights(folder)
    weight_map: dict[str, str] = read_json(index).get("weight_map", {})
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        what = "`weight_map` isn't a map from tensor to shard"
        raise AloeError(what, where=str(index), fix="download or save the model again")
    headers: dict[str, dict[str, Tensor]] = {}
    for shard in sorted(set(weight_map.values())):
        if "/" in shard or "\\" in shard or not (folder / shard).exists():
            what = f"the index names shard {shard!r}, which is not in the folder"
            raise AloeError(what, where=str(index), fix="finish the download or copy")
        headers[shard] = read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            what = f"tensor {name!r} is in the index, but not in {shard}"
            raise AloeError(what, where=str(index), fix="download or save the model again")
    return {name: headers[shard][name] for name, shard in weight_map.items()}


def _no_weights(folder: Path) -> AloeError:
    if (folder / "adapter_config.json").exists():
        fix = "fold it into its base first: PeftModel...merge_and_unload().save_pretrained(folder)"
        return AloeError("this is a LoRA adapter, not a model", where=str(folder), fix=fix)
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickled:
        return AloeError(
            f"the weights are pickled ({pickled[0]}); loading them would run code from the file",
            where=str(folder),
            fix="convert them on a machine you can lose: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder), which writes safetensors",
        )
    what = "no model.safetensors and no model.safetensors.index.json"
    return AloeError(what, where=str(folder), fix="finish the download, or check the path")


def copy_surroundings(base: Checkpoint, out: Path, dtype: str, changes: Mapping[str, Any]) -> None:
    """Configuration (its dtype and `changes` applied), tokenizer, template and generation settings, from the base."""
    config = {key: value for key, value in base.config.items() if key != "_name_or_path"}
    config |= changes
    config["torch_dtype"] = dtype
    if "dtype" in config:
        config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in COPIED:
        if (base.folder / name).exists():
            shutil.copyfile(base.folder / name, out / name)
    if (base.folder / "additional_chat_templates").is_dir():
        shutil.copytree(
            base.folder / "additional_chat_templates", out / "additional_chat_templates", dirs_exist_ok=True
        )
