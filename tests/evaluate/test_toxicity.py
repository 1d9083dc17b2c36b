"""Toxicity classifiers: the small one trained from rows, and one in a Hugging Face folder. Mild examples throughout."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aloe.errors import AloeError
from aloe.evaluate.toxicity import adopt, calibrate, halves, load_classifier, main, measured_on, read_labelled
from aloe.evaluate.toxicity_linear import Features, LinearClassifier, buckets_of, load_linear, normal, platt, train
from aloe.rows import write_jsonl

INSULTS = ("stupid", "an idiot", "a fool", "pathetic", "a loser", "useless", "a clown", "dumb")
PRAISE = ("kind", "a friend", "a doctor", "brave", "a winner", "helpful", "a singer", "clever")
FRAMES = (
    "You are {}.",
    "They said you are {}!",
    "My neighbour is {}.",
    "Honestly, she is {} today.",
    "He was {} again.",
)
NGRAMS = Features("ngrams", buckets=1 << 12)


def examples() -> tuple[list[str], list[bool]]:
    rude = [frame.format(word) for frame in FRAMES for word in INSULTS]
    nice = [frame.format(word) for frame in FRAMES for word in PRAISE]
    return [*rude, *nice], [True] * len(rude) + [False] * len(nice)


class Letters:
    """Embeds a text by the letters it holds."""

    def __init__(self, digest: str = "letters") -> None:
        self.digest = digest

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        counts = np.array([[t.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], dtype=np.float32)
        return counts / np.maximum(1, np.linalg.norm(counts, axis=1, keepdims=True))


# ---------------------------------------------------------------------------------------- the small one


def test_it_learns_what_it_is_shown_and_reads_new_frames() -> None:
    found = train(*examples(), NGRAMS, strength=10)
    assert min(found.score(["Oh, what a stupid idiot."])) > 0.5
    assert max(found.score(["Oh, what a kind doctor."])) < 0.5


@pytest.mark.parametrize("kind", ["ngrams", "embedding", "both"])
def test_order_of_rows_changes_nothing(kind: Any) -> None:
    texts, toxic = examples()
    features = Features(kind, buckets=1 << 10)
    one = train(texts, toxic, features, encoder=Letters())
    two = train(texts[::-1], toxic[::-1], features, encoder=Letters())
    assert np.array_equal(one.weights, two.weights)
    assert one.digest == two.digest
    assert one.score(texts) == pytest.approx([one.score([t])[0] for t in texts], abs=1e-12)


def test_a_saved_classifier_is_the_same_one(tmp_path: Path) -> None:
    made = train(*examples(), Features("both", buckets=1 << 10), encoder=Letters())
    made.slope, made.intercept, made.measured = 2.0, -0.5, {"tp": 1}
    made.save(tmp_path / "c")
    found = load_linear(tmp_path / "c", Letters())
    assert found.digest == made.digest
    assert found.measured == {"tp": 1}
    assert found.score(["You are dumb."]) == pytest.approx(made.score(["You are dumb."]), abs=1e-5)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["classifier.json", "weights.safetensors"]
    assert "dumb" not in (tmp_path / "c" / "classifier.json").read_text()


def test_the_digest_names_all_that_decides_a_score() -> None:
    made = train(*examples(), NGRAMS)
    digests = {made.digest}
    for name, value in (("bias", 9.0), ("slope", 2.0), ("intercept", 1.0), ("weights", made.weights + 1),
                        ("idf", made.idf + 1), ("encoder_digest", "other"), ("features", Features())):  # fmt: skip
        values = {f: getattr(made, f) for f in ("features", "weights", "bias", "idf", "slope", "intercept",
                                                "encoder_digest")}  # fmt: skip
        digests.add(LinearClassifier(**{**values, name: value}).digest)
    assert len(digests) == 8


@pytest.mark.parametrize("damage", ["cut", "swapped", "format", "missing", "nan"])
def test_a_damaged_folder_is_named(tmp_path: Path, damage: str) -> None:
    made = train(*examples(), NGRAMS)
    if damage == "nan":
        made.weights[3] = np.nan
    made.save(tmp_path)
    weights, config = tmp_path / "weights.safetensors", tmp_path / "classifier.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "swapped":
        train(*examples(), NGRAMS, strength=3).save(tmp_path / "other")
        weights.write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    elif damage == "format":
        config.write_text(config.read_text().replace("aloe-toxicity/1", "aloe-others/1"))
    elif damage == "missing":
        weights.unlink()
    with pytest.raises(AloeError, match="train it again"):
        load_classifier(tmp_path)


def test_other_embedding_weights_are_refused(tmp_path: Path) -> None:
    train(*examples(), Features("embedding"), encoder=Letters()).save(tmp_path)
    with pytest.raises(AloeError, match="other embeddings"):
        load_linear(tmp_path, Letters("newer")).score(["Hello."])


def test_normal_text() -> None:
    assert normal("RT @someone: Sooooooo &amp; nice https://t.co/x").split() == [
        "user",
        ":",
        "sooo",
        "&",
        "nice",
        "url",
    ]
    assert normal("ＮＩＣＥ") == "nice"
    assert buckets_of("a a", NGRAMS) == buckets_of("a  a", NGRAMS)
    assert not buckets_of("", NGRAMS)


def test_platt_is_the_maximum_of_its_likelihood() -> None:
    from scipy.optimize import minimize

    draw = np.random.default_rng(0)
    margins = draw.normal(size=300)
    toxic = draw.random(300) < 1 / (1 + np.exp(-(1.7 * margins - 0.6)))
    positives, negatives = toxic.sum(), (~toxic).sum()
    targets = np.where(toxic, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weights = np.where(toxic, 150 / positives, 150 / negatives)  # both classes weigh the same

    def loss(p: npt.NDArray[np.float64]) -> float:
        z = p[0] * margins + p[1]
        return float(np.sum(weights * (np.logaddexp(0, z) - targets * z)))

    assert platt(margins, toxic.tolist()) == pytest.approx(minimize(loss, [1.0, 0.0]).x, abs=1e-4)


def test_a_labelled_sets_own_share_of_toxic_rows_moves_no_threshold() -> None:
    draw = np.random.default_rng(2)
    rude, fine = draw.normal(1, 1, 400), draw.normal(-1, 1, 400)
    even = platt(np.concatenate([rude, fine]), [True] * 400 + [False] * 400)
    many = platt(np.concatenate([np.repeat(rude, 10), fine]), [True] * 4000 + [False] * 400)
    assert many == pytest.approx(even, abs=0.06)


def test_platt_of_perfectly_parted_rows_is_finite() -> None:
    slope, intercept = platt(np.array([-2.0, -1.0, 1.0, 2.0]), [False, False, True, True])
    assert 0 < slope < 100
    assert abs(intercept) < 1e-6


def test_calibration_is_measured_on_the_other_half() -> None:
    draw = np.random.default_rng(1)
    margins, texts = draw.normal(size=2000), [f"text {i}" for i in range(2000)]
    toxic = (draw.random(2000) < 1 / (1 + np.exp(-3 * margins))).tolist()
    slope, _, found = calibrate(margins.tolist(), texts, toxic)
    assert slope == pytest.approx(3, rel=0.25)
    outside = [not h for h in halves(texts)]
    assert sum(found[k] for k in ("tp", "fn", "tn", "fp")) == sum(outside)
    assert found["tp"] + found["fn"] == sum(t for t, o in zip(toxic, outside, strict=True) if o)
    with pytest.raises(AloeError, match="fall as toxicity rises"):
        calibrate((-margins).tolist(), texts, toxic)


def test_measured_on_golden() -> None:
    found = measured_on([0.9, 0.5, 0.2, 0.8, 0.1], [True, True, True, False, False])
    assert [found[k] for k in ("tp", "fn", "tn", "fp")] == [2, 1, 1, 1]
    assert (found["sensitivity"], found["specificity"]) == (pytest.approx(2 / 3), 0.5)


# ------------------------------------------------------------------------------------------ the command


def labelled(path: Path) -> Path:
    texts, toxic = examples()
    write_jsonl(path, [{"text": t, "label": "rude" if x else "nice"} for t, x in zip(texts, toxic, strict=True)])
    return path


def test_the_documented_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = labelled(tmp_path / "train.jsonl")
    with gzip.open(tmp_path / "check.jsonl.gz", "wt") as handle:
        for word, label in [*((w, "bad") for w in INSULTS), *((w, "good") for w in PRAISE)]:
            handle.write(
                "".join(json.dumps({"text": f"{x} {word}", "label": label}) + "\n" for x in ("So", "Too", "Oh"))
            )
    assert main(
        [str(path), str(tmp_path / "out"), "--toxic", "rude", "--features", "ngrams",
         "--calibrate", str(tmp_path / "check.jsonl.gz"), "--calibrate-toxic", "bad"]
    ) == 0  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    found = load_classifier(tmp_path / "out")
    assert told["digest"] == found.digest
    assert found.measured["sensitivity"] > 0.8
    assert found.measured["tp"] + found.measured["fn"] < 24  # a half, not all


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--toxic", "vile"], "no row has the label 'vile'; the labels are nice, rude"),
        (["--toxic", "rude", "nice"], "all toxic, or none is"),
        (["--text", "body"], "no 'body'"),
    ],
)
def test_mistakes_in_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = labelled(tmp_path / "train.jsonl")
    assert main([str(path), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reading_names_the_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"text": "a", "label": 1}, {"text": "b"}])
    with pytest.raises(AloeError, match=r"r\.jsonl:2"):
        read_labelled(tmp_path / "r.jsonl", ["1"])


# --------------------------------------------------------------------------------- a folder of transformers


@pytest.fixture(scope="module")
def bert(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with three labels, and the tokenizer of the tests."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(vocab_size=len(tiny_tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64, num_labels=3, initializer_range=0.5,
                        id2label={0: "fine", 1: "rude", 2: "vile"}, label2id={"fine": 0, "rude": 1, "vile": 2},
                        pad_token_id=tiny_tokenizer.pad_token_id)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def copied(bert: Path, place: Path) -> Path:
    place.mkdir()
    for path in bert.iterdir():
        if path.name != "toxicity.json":
            (place / path.name).write_bytes(path.read_bytes())
    return place


TEXTS = ["The doctor answers.", "A stiff neck!", "rest " * 10, "The patient asks about a headache and a fever."]


def test_its_probability_is_the_sum_of_the_named_labels(bert: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = copied(bert, tmp_path / "m")
    found = adopt(folder, ["rude", "vile"])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        expected = [float(model(**tokenizer(t, return_tensors="pt")).logits.softmax(-1)[0, 1:].sum()) for t in TEXTS]
    assert found.score(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert adopt(folder, ["fine"]).score(TEXTS) == pytest.approx([1 - p for p in expected], abs=1e-5)


def test_batches_and_order_change_nothing(bert: Path, tmp_path: Path) -> None:
    found = adopt(copied(bert, tmp_path / "m"), ["rude"])
    whole = found.score(TEXTS)
    assert found.score(TEXTS[::-1]) == pytest.approx(whole[::-1], abs=1e-5)
    found.batch_size = 1
    assert found.score(TEXTS) == pytest.approx(whole, abs=1e-5)


def test_a_long_text_counts_by_its_highest_window(bert: Path, tmp_path: Path) -> None:
    found = adopt(copied(bert, tmp_path / "m"), ["rude"])
    long = "zebra " * 60 + "The doctor answers."
    tokenizer = found._parts[0]
    assert len(tokenizer(long)["input_ids"]) > 62
    start = tokenizer.decode(tokenizer(long)["input_ids"][:62])
    assert found.score([long])[0] >= found.score([start])[0] - 1e-5


def test_several_labels_at_once_and_a_single_output(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    both = adopt(folder, ["rude", "vile"]).score(TEXTS)
    each = [adopt(folder, [name]).score(TEXTS) for name in ("rude", "vile")]
    assert both == pytest.approx([max(a, b) for a, b in zip(*each, strict=True)], abs=1e-6)


def test_the_label_map_must_be_stated_and_true(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "m")
    with pytest.raises(AloeError, match="which labels of the classifier mean toxic is not stated"):
        load_classifier(folder)
    with pytest.raises(AloeError, match="no label 'toxic'; its labels are fine, rude, vile"):
        adopt(folder, ["toxic"])
    adopt(folder, ["vile"])
    one, two = load_classifier(folder), load_classifier(folder)
    assert one.digest == two.digest
    before = one.digest
    adopt(folder, ["rude"])
    assert load_classifier(folder).digest != before


def test_calibration_of_an_adopted_model_is_kept(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "m")
    texts = [f"{word} {i}" for i in range(40) for word in ("The doctor answers", "A stiff neck needs care")]
    raw = adopt(folder, ["rude"]).raw(texts)
    toxic = [p > float(np.median(raw)) for p in raw]
    found = adopt(folder, ["rude"], (texts, toxic))
    again = load_classifier(folder)
    assert again.measured == found.measured
    assert again.measured["sensitivity"] > 0.7
    assert again.score(texts[:3]) == pytest.approx(found.score(texts[:3]))


def test_pickles_headless_models_and_empty_folders_are_refused(
    bert: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = copied(bert, tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(AloeError, match="pickle weights are not read"):
        adopt(folder, ["rude"])
    plain = tmp_path / "headless"
    plain.mkdir()
    for path in tiny_model_folder.iterdir():
        (plain / path.name).write_bytes(path.read_bytes())
    with pytest.raises(AloeError, match="head would be random"):
        adopt(plain, ["LABEL_1"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(AloeError, match="no classifier in the folder"):
        load_classifier(tmp_path / "empty")
