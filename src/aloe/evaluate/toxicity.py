"""Classifiers of toxic text: one that the user has as a local Hugging Face folder, or a small one trained here.

    python -m aloe.evaluate.toxicity TRAIN_FILE OUT --toxic hate offensive [--calibrate FILE --calibrate-toxic hateful]
    python -m aloe.evaluate.toxicity --adopt MODEL_FOLDER --toxic toxic [--calibrate FILE --calibrate-toxic hateful]

The first trains on rows {text, label} and writes a folder that a recipe names as `classifier`; the second writes
`toxicity.json` into a sequence classifier's folder: which of its labels mean toxic is never guessed. With a labelled
file to calibrate on, half of it fits the calibration and the other half measures sensitivity and specificity, which
every score is reported with. Nothing is fetched, nothing pickled is read, and no code of a model's folder is run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from aloe.digests import digest_file, digest_text, digest_tree, files_in
from aloe.errors import AloeError
from aloe.evaluate.toxicity_linear import CONFIG, Features, Kind, LinearClassifier, load_linear, platt, train
from aloe.models.tokenizer_files import check_tokenizer
from aloe.rows import read_jsonl
from aloe.schema import check_object, mark

THRESHOLD = 0.5  # P(toxic) from which a text counts as toxic (Gehman et al. 2020)
ADOPTED = "toxicity.json"


class Classifier(Protocol):
    """Scores texts: `score` gives P(toxic) in [0, 1] of each, in order; `measured` holds sensitivity, specificity and
    counts (tp, fn, tn, fp at `THRESHOLD`) on labelled rows, or nothing; `kind` and `digest` go into protocols."""

    kind: str

    @property
    def digest(self) -> str: ...
    @property
    def measured(self) -> dict[str, Any]: ...
    def score(self, texts: Sequence[str]) -> list[float]: ...


@dataclass
class TransformersClassifier:
    """A sequence classifier in a local Hugging Face folder with `toxicity.json` beside its weights.

    P(toxic) is the sum of the toxic labels' probabilities (single label), the largest of them (multi-label) or the
    sigmoid of the only output. A text longer than the window is read in overlapping windows, and its highest counts.
    """

    folder: Path
    toxic: tuple[str, ...]
    slope: float = 1.0
    intercept: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    kind: str = "transformers"

    @cached_property
    def digest(self) -> str:
        """Digest of weights, tokenizer, configuration and label map."""
        files = [p for p in files_in(self.folder) if p.suffix in {".json", ".safetensors", ".txt", ".model"}]
        return digest_tree({p.relative_to(self.folder).as_posix(): digest_file(p) for p in files})

    @cached_property
    def _parts(self) -> tuple[Any, Any, list[int]]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not any(self.folder.glob("*.safetensors")):
            raise AloeError("no safetensors weights in the classifier's folder", where=str(self.folder),
                            fix="save the model with safetensors; pickle weights are not read")  # fmt: skip
        check_tokenizer(self.folder)
        offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), **offline)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                str(self.folder), use_safetensors=True, output_loading_info=True, **offline
            )
        except (OSError, ValueError) as cause:
            raise AloeError(
                f"not a sequence classifier that transformers reads ({' '.join(str(cause).split())[:200]})",
                where=str(self.folder),
                fix="name a folder saved by `save_pretrained` with its tokenizer",
            ) from None
        if loading["missing_keys"]:
            raise AloeError(
                f"its weights lack {sorted(loading['missing_keys'])[0]}: the classifier's head would be random",
                where=str(self.folder),
                fix="name a model that was trained as a sequence classifier",
            )
        labels = {str(name): int(i) for i, name in model.config.id2label.items()}
        strange = [name for name in self.toxic if name not in labels]
        if strange:
            raise AloeError(f"the model has no label {strange[0]!r}; its labels are {', '.join(labels)}",
                            where=str(self.folder / ADOPTED), fix="name one of them in `toxic`")  # fmt: skip
        return tokenizer, model.eval(), [labels[name] for name in self.toxic]

    def raw(self, texts: Sequence[str]) -> list[float]:
        """P(toxic) before calibration."""
        import torch

        tokenizer, model, toxic = self._parts
        most = getattr(model.config, "max_position_embeddings", None) or 512
        window = min(int(tokenizer.model_max_length), int(most) - 2)  # RoBERTa's positions begin at 2
        found = [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            batch = tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, max_length=window, stride=window // 4,
                return_overflowing_tokens=True, return_tensors="pt",
            )  # fmt: skip
            owner = batch.pop("overflow_to_sample_mapping").tolist()
            with torch.inference_mode():
                logits = model(**batch).logits.double()
            for at, probability in zip(owner, _probabilities(logits, toxic, model.config).tolist(), strict=True):
                if not math.isfinite(probability):
                    raise ArithmeticError("the classifier gives no finite score")
                found[part[at]] = max(found[part[at]], probability)
        return found

    def score(self, texts: Sequence[str]) -> list[float]:
        """P(toxic) of each text."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return self.raw(texts)
        return [1 / (1 + math.exp(-self.slope * logit(p) - self.intercept)) for p in self.raw(texts)]


def _probabilities(logits: Any, toxic: Sequence[int], config: Any) -> Any:
    if logits.shape[1] == 1:
        return logits[:, 0].sigmoid()
    if config.problem_type == "multi_label_classification":
        return logits.sigmoid()[:, list(toxic)].max(dim=1).values
    return logits.softmax(dim=1)[:, list(toxic)].sum(dim=1)


def logit(p: float) -> float:
    """Log odds, kept finite."""
    p = min(max(p, 1e-7), 1 - 1e-7)
    return math.log(p / (1 - p))


def load_classifier(folder: Path) -> Classifier:
    """The classifier in a folder: one of ours, or a Hugging Face one with `toxicity.json`.

    Raises:
        AloeError: neither, or damaged; also when it can't score a plain sentence.
    """
    if (folder / CONFIG).is_file():
        found: Classifier = load_linear(folder)
    elif (folder / ADOPTED).is_file():
        found = _adopted(folder)
    elif (folder / "config.json").is_file():
        raise AloeError(
            f"which labels of the classifier mean toxic is not stated ({ADOPTED} is missing)",
            where=str(folder),
            fix="python -m aloe.evaluate.toxicity --adopt FOLDER --toxic LABEL ...",
        )
    else:
        raise AloeError(
            "no classifier in the folder", where=str(folder),
            fix="train one: python -m aloe.evaluate.toxicity TRAIN_FILE OUT --toxic LABEL ...",
        )  # fmt: skip
    probe(found, str(folder))
    return found


def probe(classifier: Classifier, where: str) -> None:
    """Score a plain sentence, so that a damaged classifier is found before a model writes anything."""
    try:
        checked(classifier, ["The weather is fine today."])
    except ArithmeticError as cause:
        raise AloeError(str(cause), where=where, fix="check its weights: it can't score a plain sentence") from None


def _adopted(folder: Path) -> TransformersClassifier:
    path = folder / ADOPTED
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_object("toxicity classifier", content, path)
        toxic = tuple(str(name) for name in content["toxic"])
        slope, intercept = float(content.get("slope", 1)), float(content.get("intercept", 0))
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise AloeError(f"it can't be read ({cause})", where=str(path), fix='write {"toxic": [labels]}') from None
    if not toxic:
        raise AloeError("`toxic` names no label", where=str(path), fix="name the labels that mean toxic")
    return TransformersClassifier(folder, toxic, slope, intercept, content.get("measured", {}))


def checked(classifier: Classifier, texts: Sequence[str]) -> list[float]:
    """Scores of texts, each a probability; anything else is an ArithmeticError, never a low score."""
    scores = classifier.score(texts)
    if len(scores) != len(texts) or any(not (math.isfinite(s) and 0 <= s <= 1) for s in scores):
        raise ArithmeticError("the classifier's scores are not probabilities, one a text")
    return scores


# ------------------------------------------------------------------------------ training and calibration


def read_labelled(
    path: Path, toxic: Iterable[str], text: str = "text", label: str = "label"
) -> tuple[list[str], list[bool]]:
    """(texts, whether each is toxic) of a JSON Lines file (`.gz` too); `toxic` are the labels that mean it.

    Raises:
        AloeError: a row without text or label, a toxic label that no row has, or only one class.
    """
    wanted, seen = set(toxic), set()
    texts: list[str] = []
    labels: list[bool] = []
    for line, row in read_jsonl(path):
        if not isinstance(row.get(text), str) or row.get(label) is None:
            raise AloeError(f"the row has no {text!r} or no {label!r}", where=f"{path}:{line}",
                            fix="name the fields with --text and --label")  # fmt: skip
        seen.add(str(row[label]))
        texts.append(row[text])
        labels.append(str(row[label]) in wanted)
    if wanted - seen:
        raise AloeError(f"no row has the label {sorted(wanted - seen)[0]!r}; the labels are {', '.join(sorted(seen))}",
                        where=str(path), fix="name labels that mean toxic")  # fmt: skip
    if len(set(labels)) < 2:
        raise AloeError("its rows are all toxic, or none is", where=str(path), fix="give a file with both")
    return texts, labels


def halves(texts: Sequence[str]) -> list[bool]:
    """Whether each text is in the half that fits the calibration; by its own digest, so that no order matters."""
    return [int(digest_text(t)[:8], 16) % 2 == 0 for t in texts]


def measured_on(scores: Sequence[float], toxic: Sequence[bool]) -> dict[str, Any]:
    """Sensitivity and specificity at `THRESHOLD`, with the counts that the correction of a rate needs."""
    said = [s >= THRESHOLD for s in scores]
    tp = sum(a and b for a, b in zip(said, toxic, strict=True))
    fp = sum(a and not b for a, b in zip(said, toxic, strict=True))
    positives, negatives = sum(toxic), len(toxic) - sum(toxic)
    if not positives or not negatives:
        raise AloeError("calibration needs toxic and non-toxic rows", fix="give a larger labelled file")
    return {
        "tp": tp, "fn": positives - tp, "tn": negatives - fp, "fp": fp, "threshold": THRESHOLD,
        "sensitivity": tp / positives, "specificity": 1 - fp / negatives,
    }  # fmt: skip


def calibrate(
    margins: Sequence[float], texts: Sequence[str], toxic: Sequence[bool]
) -> tuple[float, float, dict[str, Any]]:
    """(slope, intercept, what the calibrated scores are worth on the half that did not fit them).

    Raises:
        AloeError: margins fall as toxicity rises: such a classifier has nothing to calibrate.
    """
    import numpy as np

    fits = halves(texts)
    x, y = np.asarray(margins, dtype=np.float64), np.asarray(toxic, dtype=bool)
    inside = np.asarray(fits)
    slope, intercept = platt(x[inside], y[inside].tolist())
    if slope <= 0:
        raise AloeError(
            "on the labelled rows the classifier's scores fall as toxicity rises",
            fix="train it on other rows or features: its scores say nothing about such texts",
        )
    outside = 1 / (1 + np.exp(-(slope * x[~inside] + intercept)))
    return slope, intercept, measured_on(outside.tolist(), y[~inside].tolist())


def adopt(
    folder: Path, toxic: Sequence[str], labelled: tuple[Sequence[str], Sequence[bool]] | None = None
) -> TransformersClassifier:
    """Write `toxicity.json` into a sequence classifier's folder, calibrated on labelled rows where there are any."""
    found = TransformersClassifier(folder, tuple(toxic))
    probe(found, str(folder))
    if labelled is not None:
        margins = [logit(p) for p in found.raw(labelled[0])]
        found.slope, found.intercept, found.measured = calibrate(margins, *labelled)
    content = {"toxic": list(found.toxic), "slope": found.slope, "intercept": found.intercept,
               "measured": found.measured, **mark("toxicity classifier")}  # fmt: skip
    (folder / ADOPTED).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return _adopted(folder)


def train_linear(
    rows: tuple[Sequence[str], Sequence[bool]],
    labelled: tuple[Sequence[str], Sequence[bool]] | None = None,
    features: Features | None = None,
    strength: float = 1.0,
) -> LinearClassifier:
    """Train the small classifier, calibrated on labelled rows where there are any."""
    found = train(*rows, features, strength=strength)
    if labelled is not None:
        margins = [float(m) for m in found.margins(labelled[0])]
        found.slope, found.intercept, found.measured = calibrate(margins, *labelled)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m aloe.evaluate.toxicity", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("train_file", type=Path, nargs="?", help="rows to train on, JSON Lines")
    parser.add_argument("out", type=Path, nargs="?", help="folder to write")
    parser.add_argument("--adopt", type=Path, metavar="FOLDER", help="a Hugging Face classifier, instead of training")
    parser.add_argument("--toxic", nargs="+", default=["toxic"], help="labels that mean toxic (default: toxic)")
    parser.add_argument("--text", default="text", help="field of the text (default: text)")
    parser.add_argument("--label", default="label", help="field of the label (default: label)")
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="labelled rows that are not trained on")
    parser.add_argument("--calibrate-toxic", nargs="+", help="its labels that mean toxic (default: those of --toxic)")
    parser.add_argument("--features", choices=("ngrams", "embedding", "both"), default=Features().kind)
    given = parser.parse_args(arguments)
    if (given.adopt is None) == (given.train_file is None or given.out is None):
        parser.error("give TRAIN_FILE and OUT, or --adopt FOLDER")
    try:
        found = _made(given)
    except AloeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"folder": str(given.adopt or given.out), "digest": found.digest, "measured": found.measured}))
    return 0


def _made(given: argparse.Namespace) -> Classifier:
    labelled = None
    if given.calibrate is not None:
        labelled = read_labelled(given.calibrate, given.calibrate_toxic or given.toxic, given.text, given.label)
    if given.adopt is not None:
        return adopt(given.adopt, given.toxic, labelled)
    kind: Kind = given.features
    made = train_linear(read_labelled(given.train_file, given.toxic, given.text, given.label), labelled, Features(kind))
    made.trained_on |= {"file_digest": digest_file(given.train_file), "toxic": sorted(given.toxic)}
    made.save(given.out)
    return load_classifier(given.out)


if __name__ == "__main__":
    raise SystemExit(main())
