"""A small classifier of toxic text, trained from a file that the user has: logistic regression over hashed n-grams of
words and characters, over sentence embeddings, or over both.

It is saved as `classifier.json` and `weights.safetensors`. N-grams are hashed (CRC-32), so the folder holds no word of
the rows it was trained on, and nothing in it is executed when it is read. Training is a convex problem solved to
convergence: the same rows give the same weights up to rounding, in any order.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aloe.digests import digest_file, digest_json
from aloe.errors import AloeError
from aloe.generate.embed import Embedder, Encoder
from aloe.schema import LATEST, check_name

NAME = "aloe-toxicity"
FORMAT = f"{NAME}/{LATEST['toxicity classifier']}"
CONFIG, WEIGHTS = "classifier.json", "weights.safetensors"
Kind = Literal["ngrams", "embedding", "both"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """What a text is turned into. `word` and `char` are the n-gram lengths (from, to), `buckets` the hashed width."""

    kind: Kind = "both"
    word: tuple[int, int] = (1, 2)
    char: tuple[int, int] = (2, 5)
    buckets: int = 1 << 17


@dataclass
class LinearClassifier:
    """P(toxic) = sigmoid(slope * (weights . features + bias) + intercept).

    `idf` weighs the n-gram buckets; `slope` and `intercept` are the calibration (1 and 0 without one); `measured`
    holds what was found on labelled rows that it was not trained on: sensitivity, specificity and how many rows.
    """

    features: Features
    weights: Floats
    bias: float
    idf: Floats
    slope: float = 1.0
    intercept: float = 0.0
    encoder_digest: str | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    encoder: Encoder | None = None
    kind: str = "linear"

    @property
    def digest(self) -> str:
        """Digest of all that decides a score."""
        return digest_json(
            {
                "features": asdict(self.features),
                "weights": _bits(self.weights),
                "idf": _bits(self.idf),
                "bias": float(np.float32(self.bias)),
                "calibration": [self.slope, self.intercept],
                "encoder": self.encoder_digest,
            }
        )

    def margins(self, texts: Sequence[str]) -> Floats:
        """The linear score of each text, before calibration."""
        found = np.full(len(texts), self.bias)
        wide = self.features.buckets if self.features.kind != "embedding" else 0
        if wide:
            found += ngram_matrix(texts, self.features, self.idf) @ self.weights[:wide]
        if self.features.kind != "ngrams":
            found += embedded(texts, self.encoder, self.encoder_digest) @ self.weights[wide:]
        return found

    def score(self, texts: Sequence[str]) -> list[float]:
        """P(toxic) of each text."""
        return [float(p) for p in sigmoid(self.slope * self.margins(texts) + self.intercept)]

    def save(self, folder: Path) -> None:
        """Write the folder."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"weights": self.weights.astype(np.float32), "idf": self.idf.astype(np.float32)}
        save_file(tensors, folder / WEIGHTS)
        content = {
            "format": FORMAT, "features": asdict(self.features), "bias": float(np.float32(self.bias)),
            "slope": self.slope, "intercept": self.intercept, "encoder_digest": self.encoder_digest,
            "trained_on": self.trained_on, "measured": self.measured, "weights_digest": digest_file(folder / WEIGHTS),
        }  # fmt: skip
        (folder / CONFIG).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _bits(values: Floats) -> str:
    """Digest of an array as it is saved: little-endian float32."""
    return hashlib.blake2b(np.ascontiguousarray(values, dtype="<f4").tobytes(), digest_size=16).hexdigest()


def load_linear(folder: Path, encoder: Encoder | None = None) -> LinearClassifier:
    """Read a folder that `LinearClassifier.save` wrote; a damaged or foreign one is an AloeError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        check_name("toxicity classifier", NAME, content["format"], folder / CONFIG)
        if content["weights_digest"] != digest_file(folder / WEIGHTS):
            raise ValueError(f"{WEIGHTS} is not the file that {CONFIG} describes")
        tensors = load_file(folder / WEIGHTS)
        given = content["features"]
        features = Features(given["kind"], tuple(given["word"]), tuple(given["char"]), int(given["buckets"]))
        made = LinearClassifier(
            features, tensors["weights"].astype(np.float64), float(content["bias"]), tensors["idf"].astype(np.float64),
            float(content["slope"]), float(content["intercept"]), content["encoder_digest"], content["trained_on"],
            content["measured"], encoder,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as cause:
        raise AloeError(
            f"no classifier can be read from it ({cause})",
            where=str(folder),
            fix="train it again: python -m aloe.evaluate.toxicity TRAIN_FILE OUT",
        ) from None
    if not np.isfinite(made.weights).all() or not np.isfinite(made.idf).all():
        raise AloeError("the classifier's weights are not finite", where=str(folder / WEIGHTS), fix="train it again")
    return made


# ------------------------------------------------------------------------------------------ features


def normal(text: str) -> str:
    """A text as the features see it: NFKC, lower case; links, user names and retweet marks of social media as one
    token each, HTML entities read, runs of one character cut to three."""
    folded = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    folded = re.sub(r"https?://\S+|www\.\S+", " url ", folded)
    folded = re.sub(r"@\w+", " user ", re.sub(r"\brt\b", " ", folded))
    return re.sub(r"(.)\1{3,}", r"\1\1\1", folded)


def buckets_of(text: str, features: Features) -> Counter[int]:
    """Hashed n-grams of a text with their counts; character n-grams stay within a word, its edges marked by spaces."""
    words = re.findall(r"\w+|[^\w\s]", normal(text))
    grams: list[str] = []
    for n in range(features.word[0], features.word[1] + 1):
        grams += ["w" + " ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    for word in words:
        padded = f" {word} "
        for n in range(features.char[0], features.char[1] + 1):
            grams += ["c" + padded[i : i + n] for i in range(len(padded) - n + 1)]
    return Counter(zlib.crc32(gram.encode()) % features.buckets for gram in grams)


def ngram_matrix(texts: Sequence[str], features: Features, idf: Floats) -> Any:
    """Sparse (texts, buckets): (1 + log count) * idf, rows of unit length."""
    from scipy.sparse import csr_matrix

    data, columns, ends = [], [], [0]
    for text in texts:
        counts = buckets_of(text, features)
        values = [(1 + math.log(count)) * float(idf[b]) for b, count in counts.items()]
        length = math.sqrt(sum(v * v for v in values)) or 1.0
        data += [v / length for v in values]
        columns += list(counts)
        ends.append(len(columns))
    return csr_matrix((data, columns, ends), shape=(len(texts), features.buckets))


def embedded(texts: Sequence[str], encoder: Encoder | None, digest: str | None) -> Floats:
    """Embeddings of the normal texts, shape (texts, dimension); other weights than those of training are refused."""
    encoder = encoder or Embedder()
    if digest is not None and encoder.digest != digest:
        raise AloeError(
            "the classifier was trained on other embeddings than those at hand",
            where=f"embedding weights {encoder.digest}, needed {digest}",
            fix="install the embedding weights it was trained with, or train it again",
        )
    return encoder.encode([normal(t) for t in texts]).astype(np.float64)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(np.where(x >= 0, 1, np.exp(-np.abs(x))) / (1 + np.exp(-np.abs(x))), dtype=np.float64)


# ------------------------------------------------------------------------------------------ training


def train(
    texts: Sequence[str],
    toxic: Sequence[bool],
    features: Features | None = None,
    *,
    strength: float = 1.0,
    encoder: Encoder | None = None,
) -> LinearClassifier:
    """Fit on labelled texts; both classes weigh the same, however many rows they have.

    Args:
        texts: what is labelled.
        toxic: the labels.
        features: what a text is turned into.
        strength: inverse of the L2 penalty (`C` of scikit-learn).
        encoder: of the embeddings; the packaged MiniLM when None.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.linear_model import LogisticRegression

    features = features or Features()
    if len(set(toxic)) < 2:
        raise AloeError("a classifier needs toxic and non-toxic rows", fix="give a file with both")
    order = sorted(range(len(texts)), key=lambda i: (texts[i], bool(toxic[i])))  # the rows' order decides nothing
    texts, labels = [texts[i] for i in order], np.array([bool(toxic[i]) for i in order])
    idf, parts, digest = np.zeros(0), [], None
    if features.kind != "embedding":
        idf = _idf(texts, features)
        parts.append(ngram_matrix(texts, features, idf))
    if features.kind != "ngrams":
        encoder = encoder or Embedder()
        digest = encoder.digest
        parts.append(csr_matrix(embedded(texts, encoder, digest)))
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000, tol=1e-6)
    model.fit(hstack(parts).tocsr() if len(parts) > 1 else parts[0], labels)
    about = {"rows": len(texts), "toxic": int(labels.sum()), "strength": strength}
    weights, bias = np.asarray(model.coef_[0], dtype=np.float64), float(model.intercept_[0])
    return LinearClassifier(features, weights, bias, idf, encoder_digest=digest, trained_on=about, encoder=encoder)


def _idf(texts: Sequence[str], features: Features) -> Floats:
    seen = np.zeros(features.buckets)
    for text in texts:
        seen[list(buckets_of(text, features))] += 1
    return np.log((1 + len(texts)) / (1 + seen)) + 1


def platt(margins: Floats, toxic: Sequence[bool]) -> tuple[float, float]:
    """(slope, intercept) of the logistic calibration of margins, by Newton's method (Platt 1999, with his smoothed
    targets, so that perfectly parted rows give finite numbers).

    Both classes weigh the same: P(toxic) is that of a text which is beforehand as likely toxic as not. A labelled set's
    own share of toxic rows is a choice of its makers (HateCheck's is 69%) and would call most of any text toxic.
    """
    labels = np.asarray(toxic, dtype=bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        raise AloeError("calibration needs toxic and non-toxic rows", fix="give a file with both")
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weights = len(labels) / 2 / np.where(labels, positives, negatives)
    x = np.stack([margins, np.ones_like(margins)], axis=1)
    found = np.zeros(2)
    for _ in range(100):
        p = sigmoid(x @ found)
        curvature = (x * (weights * p * (1 - p))[:, None]).T @ x + 1e-10 * np.eye(2)
        step = np.linalg.solve(curvature, x.T @ (weights * (targets - p)))
        found += step
        if np.abs(step).max() < 1e-10:
            break
    return float(found[0]), float(found[1])
