"""Encoders beside the packaged MiniLM: any Hugging Face encoder folder, and TF-IDF; `open_encoder` opens one by name.

All give rows of unit length, so a dot product is a cosine. A digest names everything that decides the vectors: weights
and tokenizer, pooling and maximum length, or vocabulary and inverse document frequencies. Nothing is fetched, no remote
code is run, no pickle is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from aloe.digests import digest_file, digest_json, digest_tree
from aloe.errors import AloeError
from aloe.generate.embed import Embedder, Encoder, unit_rows
from aloe.models.tokenizer_files import check_tokenizer
from aloe.schema import LATEST, check_name

Pooling = Literal["mean", "cls"]
PACKAGED, TFIDF = "packaged", "tfidf"
LONGEST = 512  # tokens, where neither tokenizer nor model says what they take
TFIDF_NAME = "aloe tf-idf"
TFIDF_FORMAT = f"{TFIDF_NAME}/{LATEST['TF-IDF']}"


def open_encoder(
    name: str | Path | None = None,
    *,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    fit: Sequence[str] | None = None,
) -> Encoder:
    """The encoder that a name or path stands for.

    Args:
        name: `packaged` (MiniLM, also None), `tfidf`, a saved TF-IDF (`.json`), a sentence-transformers folder (with a
            modules.json), or the folder of any Hugging Face encoder.
        pooling: of a plain encoder folder: `mean` over the tokens (the default) or `cls`, the first token's state.
        max_length: tokens that a plain encoder reads of a text; what its tokenizer states when None.
        fit: the texts that `tfidf` takes its vocabulary and frequencies from.

    Raises:
        AloeError: nothing of that name, weights that are no safetensors, remote code, or a setting that it can't have.
    """
    named = PACKAGED if name is None else str(name)
    path = Path(named)
    plain = path.is_dir() and not (path / "modules.json").is_file()
    if (pooling or max_length) and not plain:
        raise AloeError(
            f"pooling and max_length are settings of a plain encoder folder, and {named!r} states its own",
            fix="leave them out",
        )
    if named == TFIDF:
        if fit is None:
            raise AloeError("tfidf has nothing to take its vocabulary from", fix="give texts, or name a saved one")
        return TfidfEncoder.fit(fit)
    if named == PACKAGED:
        return Embedder()
    if path.suffix == ".json" and path.is_file():
        return TfidfEncoder.load(path)
    if not path.is_dir():
        fix = f"use {PACKAGED}, {TFIDF}, a saved TF-IDF .json, or a local folder of an encoder"
        raise AloeError(f"no encoder {named!r}", fix=fix)
    return FolderEncoder(path, pooling=pooling or "mean", max_length=max_length) if plain else Embedder(path)


class FolderEncoder:
    """A Hugging Face encoder read from a local folder, its last hidden states pooled.

    Args:
        folder: config, tokenizer and safetensors weights.
        pooling: `mean` over the tokens of a text, or `cls`, the state of the first.
        max_length: tokens read of a text; None takes the smaller of what tokenizer and model state.
        device: torch device; on the CPU the results do not depend on the machine's GPU.
        batch_size: texts per forward pass.
    """

    def __init__(
        self, folder: str | Path, *, pooling: Pooling = "mean", max_length: int | None = None, device: str = "cpu",
        batch_size: int = 64,
    ) -> None:  # fmt: skip
        from aloe.models.sources import check_folder

        self.folder, self.device, self.batch_size = Path(folder), device, batch_size
        check_folder(self.folder)
        if pooling not in get_args(Pooling):
            raise AloeError(f"no pooling {pooling!r}", fix=f"use one of {', '.join(get_args(Pooling))}")
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        if config.get("is_encoder_decoder"):
            raise AloeError(
                "an encoder with a decoder, which needs a text to decode", where=str(self.folder),
                fix="name an encoder (BERT, RoBERTa, ModernBERT, ...), or a sentence-transformers folder",
            )  # fmt: skip
        if max_length is not None and max_length < 2:
            raise AloeError(f"max_length is {max_length}", fix="give 2 tokens or more")
        self.pooling: Pooling = pooling
        stated = self._tokenizer_length(), config.get("max_position_embeddings")
        limit = min((int(n) for n in stated if n), default=LONGEST)
        self.max_length = min(max_length or limit, limit)

    def _tokenizer_length(self) -> int | None:
        """`model_max_length`, where the tokenizer states a real one (transformers writes 1e30 for none)."""
        path = self.folder / "tokenizer_config.json"
        stated = json.loads(path.read_text(encoding="utf-8")).get("model_max_length") if path.is_file() else None
        return int(stated) if stated and stated < 1e9 else None

    @cached_property
    def digest(self) -> str:
        """Digest of weights, config and tokenizer, with pooling and maximum length."""
        from aloe.models.sources import model_files

        files = digest_tree({name: digest_file(path) for name, path in model_files(self.folder).items()})
        return digest_json({"weights": files, "pooling": self.pooling, "max_length": self.max_length})

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        check_tokenizer(self.folder)
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            model, found = AutoModel.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="float32",
                output_loading_info=True,
            )  # fmt: skip
        finally:
            logging.enable_progress_bar()
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))  # we pool ourselves
        if missing:
            raise AloeError(
                f"{len(missing)} weights of the encoder are not in the folder ({missing[0]})",
                where=str(self.folder),
                fix="finish the download or copy: they would be random",
            )
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, model.to(self.device).eval()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed `texts`: float32, shape (len(texts), hidden size), every row of length 1."""
        import torch

        tokenizer, model = self._loaded
        vectors = np.zeros((len(texts), int(model.config.hidden_size)), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))  # texts of a length pad little
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            batch = tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            ).to(self.device)
            with torch.inference_mode():
                states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
                if self.pooling == "cls":
                    pooled = states[:, 0]
                else:
                    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
                    pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors[part] = pooled.float().cpu().numpy()
        return unit_rows(vectors)


class TfidfEncoder:
    """TF-IDF over words (scikit-learn's, sublinear term frequency, smoothed idf, rows of length 1).

    No weights and no model: it needs exact words in common, is deterministic, and is a baseline for the others. A text
    without a known word is all zeros: its cosine with anything is 0.

    Args:
        terms: the vocabulary, in the order of the columns.
        idf: the inverse document frequency of each.
    """

    def __init__(self, terms: Sequence[str], idf: Sequence[float]) -> None:
        if not terms or len(terms) != len(idf) or len(set(terms)) < len(terms):
            raise AloeError(f"a TF-IDF of {len(terms)} terms with {len(idf)} frequencies", fix="fit it anew")
        self.terms, self.idf = list(terms), [float(x) for x in idf]

    @staticmethod
    def _vectorizer(**more: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        pattern = r"(?u)\b\w+\b"  # one-letter words count: "vitamin K"
        return TfidfVectorizer(token_pattern=pattern, sublinear_tf=True, dtype=np.float32, **more)

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TfidfEncoder:
        """Vocabulary (sorted) and frequencies of these texts, whatever order they come in."""
        vectorizer = cls._vectorizer()
        try:
            vectorizer.fit(texts)
        except ValueError as cause:  # an empty vocabulary
            raise AloeError(f"tfidf finds no words in {len(texts)} texts ({cause})", fix="give texts") from None
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_.tolist())

    @cached_property
    def digest(self) -> str:
        """Digest of vocabulary, frequencies and the way they are used."""
        return digest_json({"format": TFIDF_FORMAT, "terms": self.terms, "idf": self.idf})

    @cached_property
    def _fitted(self) -> Any:
        vectorizer = self._vectorizer(vocabulary=self.terms)
        vectorizer.idf_ = np.asarray(self.idf, dtype=np.float32)
        return vectorizer

    def encode_sparse(self, texts: Sequence[str]) -> Any:
        """Embed `texts` as a scipy CSR matrix, float32, shape (len(texts), terms): a store of many rows fits."""
        return self._fitted.transform(texts).tocsr()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """`encode_sparse` written out."""
        return np.asarray(self.encode_sparse(texts).toarray(), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        content = {"format": TFIDF_FORMAT, "terms": self.terms, "idf": self.idf}
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TfidfEncoder:
        """Inverse of `save`."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            check_name("TF-IDF", TFIDF_NAME, content["format"], path)
            return cls(content["terms"], content["idf"])
        except (OSError, ValueError, KeyError, TypeError) as cause:
            what = f"not a saved TF-IDF ({type(cause).__name__}: {cause})"
            raise AloeError(what, where=str(path), fix="build the store anew") from None
