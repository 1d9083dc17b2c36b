"""Safetensors in and out, a slice at a time, without torch.

A safetensors file is an 8-byte header length, a JSON header {name: {dtype, shape, data_offsets}} and the raw
little-endian data (https://github.com/huggingface/safetensors). Files are memory-mapped for reading and written in
place at offsets known beforehand, so neither side ever holds a whole tensor.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aloe.errors import AloeError

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # counters and masks: copied, never merged
SHARD_BYTES = 5 * 1000**3
HEADS = ("lm_head.weight",)
COPIED = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"),
    *("chat_template.jinja", "chat_template.json"),
)
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


def decode(raw: Bytes, dtype: str) -> F32:
    """Raw little-endian bytes of F32, F16 or BF16 as float32. Exact: both half formats are subsets of float32."""
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.view({"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def encode(values: F32, dtype: str) -> Bytes:
    """Float32 to raw bytes of F32, F16 or BF16, rounded to nearest, ties to even. Input must be finite."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        # Adding just under half an ulp, plus the bit that makes ties even, carries exactly when it should round up.
        rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        return (rounded >> np.uint32(16)).astype("<u2").view(np.uint8)
    return np.ascontiguousarray(values).astype({"F32": "<f4", "F16": "<f2"}[dtype]).view(np.uint8)


def all_finite(raw: Bytes, dtype: str) -> bool:
    """Whether raw float bytes hold no NaN and no infinity."""
    if dtype == "BF16":
        return bool(((raw.view("<u2") & np.uint16(0x7F80)) != np.uint16(0x7F80)).all())
    return bool(np.isfinite(raw.view({"F32": "<f4", "F16": "<f2"}[dtype])).all())


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, checked against the file's length."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(handle.read(length))
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = (8 + length + int(at) for at in entry["data_offsets"])
                tensor = Tensor(name, file, entry["dtype"], tuple(int(n) for n in entry["shape"]), begin)
                _check_extent(tensor, end, size)
                tensors[name] = tensor
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        fix = "finish the download or copy; check the file's size and digest"
        raise AloeError(f"not a whole safetensors file ({cause})", where=str(file), fix=fix) from None
    return tensors


def _check_extent(tensor: Tensor, end: int, size: int) -> None:
    if tensor.dtype not in FLOATS and tensor.dtype not in WHOLE:
        fix = "save the model in float32, float16 or bfloat16 (dequantise it first)"
        raise AloeError(f"tensor {tensor.name!r} has dtype {tensor.dtype}", where=str(tensor.file), fix=fix)
    if end > size or end - tensor.begin != tensor.size * tensor.itemsize:
        raise ValueError(f"tensor {tensor.name!r} doesn't fill its place in the file")


@dataclass(frozen=True)
class Checkpoint:
    """An opened Hugging Face folder: configuration and tensors by name (a tied head left out, see `tied`)."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tied: bool

    @cached_property
    def _maps(self) -> dict[Path, Bytes]:
        files = {tensor.file for tensor in self.tensors.values()}
        return {file: np.asarray(np.memmap(file, dtype=np.uint8, mode="r")) for file in sorted(files)}

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> Bytes:
        """Bytes of flat entries [start, stop), a view into the mapped file."""
        tensor = self.tensors[name]
        stop = tensor.size if stop is None else stop
        return self._maps[tensor.file][tensor.begin + start * tensor.itemsize : tensor.begin + stop * tensor.itemsize]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        """Flat entries [start, stop) as float32. NaN or infinity is an error that names file and tensor."""
        tensor, raw = self.tensors[name], self.raw(name, start, stop)
        if not all_finite(raw, tensor.dtype):
            fix = "this model's training diverged or the file is damaged: use another checkpoint"
            raise AloeError(f"tensor {name!r} holds NaN or infinity", where=str(tensor.file), fix=fix)
        return decode(raw, tensor.dtype)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a model folder."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise AloeError(f"not valid JSON ({cause})", where=str(file), fix="finish the download or copy") from None
    if not isinstance(value, dict):
        raise AloeError("expected a JSON object", where=str(file), fix="finish the download or copy")
    return value


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder of safetensors, one file or shards with an index.

    Raises:
        AloeError: no configuration, pickled weights, an adapter, missing shards or tensors, damaged files.
    """
    config_file = folder / "config.json"
    if not config_file.exists():
        raise AloeError("no config.json: not a Hugging Face model folder", where=str(folder), fix="check the path")
    config = read_json(config_file)
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


class CheckpointWriter:
    """Writes safetensors shards whose every byte offset is fixed at the start; `write` may be called in any order.

    Args:
        folder: where to; must exist.
        layout: {name: (safetensors dtype, shape)}. Wide dtypes come first, then names in order, as in the format's
            own library, so every tensor is aligned.
        shard_bytes: a new file is begun when the next tensor would pass this size.
    """

    def __init__(
        self, folder: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._handles: dict[Path, int] = {}
        shards = _shards(folder, layout, shard_bytes)
        for file, part in shards.items():
            self._begin(file, part)
        if len(shards) > 1:
            _write_index(folder, self.tensors.values())

    def _begin(self, file: Path, part: list[Tensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for tensor in part:
            end = at + tensor.size * tensor.itemsize
            header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._handles[file] = handle
        os.ftruncate(handle, 8 + len(text) + at)
        _write_all(handle, len(text).to_bytes(8, "little") + text, 0)
        for tensor in part:
            begin = 8 + len(text) + header[tensor.name]["data_offsets"][0]
            self.tensors[tensor.name] = Tensor(tensor.name, file, tensor.dtype, tensor.shape, begin)

    def write(self, name: str, start: int, raw: Bytes) -> None:
        """Put encoded entries at flat index `start` of a tensor. Safe from several threads."""
        tensor = self.tensors[name]
        _write_all(self._handles[tensor.file], raw.tobytes(), tensor.begin + start * tensor.itemsize)

    def close(self) -> None:
        """Close the files; nothing can be written afterwards."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def _write_all(handle: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done


def _shards(
    folder: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], shard_bytes: int
) -> dict[Path, list[Tensor]]:
    parts: list[list[Tensor]] = [[]]
    filled = 0
    tensors = [Tensor(name, folder, dtype, shape, 0) for name, (dtype, shape) in layout.items()]
    for tensor in sorted(tensors, key=lambda t: (-t.itemsize, t.name)):
        length = tensor.size * tensor.itemsize
        if parts[-1] and filled + length > shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(tensor)
        filled += length
    if len(parts) == 1:
        return {folder / "model.safetensors": parts[0]}
    return {folder / f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def _write_index(folder: Path, tensors: Iterable[Tensor]) -> None:
    listed = sorted(tensors, key=lambda t: t.name)
    index = {
        "metadata": {"total_size": sum(t.size * t.itemsize for t in listed)},
        "weight_map": {t.name: t.file.name for t in listed},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def token_ids(folder: Path) -> dict[int, str]:
    """{id: token} of a folder's tokenizer, added tokens included."""
    tokens: dict[int, str] = {}
    if (folder / "tokenizer.json").exists():
        tokenizer = read_json(folder / "tokenizer.json")
        vocabulary = tokenizer.get("model", {}).get("vocab", {})
        if isinstance(vocabulary, list):  # Unigram: [token, score] by id
            tokens = {i: entry[0] for i, entry in enumerate(vocabulary)}
        else:
            tokens = {i: token for token, i in vocabulary.items()}
        tokens |= {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens", [])}
    elif (folder / "vocab.json").exists():
        tokens = {i: token for token, i in read_json(folder / "vocab.json").items()}
        if (folder / "added_tokens.json").exists():
            tokens |= {i: token for token, i in read_json(folder / "added_tokens.json").items()}
    else:
        what = "no tokenizer.json and no vocab.json: the vocabulary can't be checked"
        fix = "save the tokenizer into the folder: tokenizer.save_pretrained(folder)"
        raise AloeError(what, where=str(folder), fix=fix)
    return tokens


def check_same_tokens(base: Path, model: Path) -> None:
    """Refuse a model in which some id stands for another token than in the base."""
    ours, theirs = token_ids(base), token_ids(model)
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            raise AloeError(
                f"token {i} is {theirs.get(i)!r}, in the base {ours.get(i)!r}; the embeddings would be mixed up",
                where=f"{model}/tokenizer.json",
                fix="merge models that share the base's tokenizer",
            )


def copy_surroundings(base: Checkpoint, out: Path, dtype: str) -> None:
    """Configuration (its dtype updated), tokenizer, chat template and generation settings, from the base."""
    config = {key: value for key, value in base.config.items() if key != "_name_or_path"}
    config["torch_dtype"] = dtype
    if "dtype" in config:
        config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in COPIED:
        if (base.folder / name).exists():
            shutil.copyfile(base.folder / name, out / name)
    if (base.folder / "additional_chat_templates").is_dir():
        shutil.copytree(base.folder / "additional_chat_templates", out / "additional_chat_templates")
