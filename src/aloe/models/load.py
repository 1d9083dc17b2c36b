"""Load a checked checkpoint: model, tokenizer and chat template together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aloe.errors import AloeError
from aloe.models.chat import ChatTemplate
from aloe.models.sources import ADAPTER, check_folder, check_inside
from aloe.models.tokenizer_files import check_tokenizer, is_panic

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_AS_IT_LIES: dict[str, Any] = {
    "trust_remote_code": False,
    "local_files_only": True,
}  # no code of the folder, no network


@dataclass
class Loaded:
    """A model ready to run. `model` is a transformers causal LM, `template` renders for it."""

    model: Any
    tokenizer: Any
    template: ChatTemplate
    folder: Path

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(
    folder: Path, dtype: str = "float32", device: torch.device | None = None, template_from: Path | None = None
) -> Loaded:
    """Load a Hugging Face folder of safetensors.

    Args:
        folder: local folder; remote code and pickles are refused.
        dtype: "float32" or "bfloat16", the type the weights are held in.
        template_from: folder whose tokenizer and chat template are used instead, for a base checkpoint without one.

    Raises:
        AloeError: not a model, no chat template, a template whose tokens the model has no rows for, or NaN/infinite
            weights (the tensor is named).
    """
    from transformers import AutoModelForCausalLM

    check_folder(folder)
    if (folder / ADAPTER).exists():  # transformers would load what it names, from wherever that is
        fix = f"merge it into the model (aloe merge), or take {ADAPTER} out of the folder"
        raise AloeError("the folder holds a model and an adapter", where=str(folder), fix=fix)
    tokenizer, template = load_template(template_from or folder)
    _quiet()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], attn_implementation="sdpa", use_safetensors=True, **_AS_IT_LIES
        )
    except MemoryError:
        raise
    except Exception as cause:  # of many kinds, where the configuration is none
        raise _unloadable(cause, folder) from cause
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise AloeError(
                f"{bad} of {tensor.numel()} weights of {name} are NaN or infinite",
                where=str(folder),
                fix="the training or merge that wrote it diverged or the file is damaged: go back to the last good one",
            )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise AloeError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {rows}",
            where=str(template_from or folder),
            fix="use the tokenizer and template of a model trained from the same base",
        )
    model.to(device=device or pick_device())
    return Loaded(model.eval(), tokenizer, template, folder)


def load_template(folder: Path) -> tuple[Any, ChatTemplate]:
    """Tokenizer and chat template of a model folder, without its weights."""
    from transformers import AutoTokenizer

    _quiet()
    check_inside(folder)
    check_tokenizer(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_AS_IT_LIES)
    except BaseException as cause:
        if isinstance(cause, Exception) or is_panic(cause):
            raise _unloadable(cause, folder) from cause
        raise
    try:
        return tokenizer, ChatTemplate(tokenizer, where=str(folder))
    except BaseException as cause:
        if is_panic(cause):  # an expression of the tokenizer that doesn't end, say
            raise _unloadable(cause, folder) from cause
        raise


def _unloadable(cause: BaseException, folder: Path) -> AloeError:
    told = " ".join(str(cause).split())[:300]
    fix = "finish the download, or use a model whose architecture transformers has"
    return AloeError(f"transformers can't load it ({type(cause).__name__}: {told})", where=str(folder), fix=fix)


def _quiet() -> None:
    """transformers draws its own bars for every shard; ours show what matters."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
