"""Tokenizers of strangers: refused before they fill memory; what the library itself gives up on is an error of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.errors import AloeError
from aloe.models.load import load_template
from aloe.models.tokenizer_files import MAX_GROWTH, _growth, check_tokenizer, is_panic

Value = dict[str, Any]


def replace(pattern: Value, content: str) -> Value:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(parts: list[Value], name: str = "normalizers") -> Value:
    return {"type": "Sequence", name: parts}


def around(pieces: int, ids: int) -> Value:
    special = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    told = {"id": "<|im_start|>", "ids": [1] * ids, "tokens": ["<|im_start|>"] * ids}
    return {"type": "TemplateProcessing", "single": [special] * pieces, "pair": [],
            "special_tokens": {"<|im_start|>": told}}  # fmt: skip


def nested(depth: int) -> Value:
    value: Value = {"type": "NFC"}
    for _ in range(depth):
        value = sequence([value])
    return value


HOSTILE: dict[str, tuple[Callable[[Value], object], str]] = {
    "doubled 30 times": (lambda t: t.update(normalizer=sequence([replace({"String": "a"}, "aa")] * 30)), "normalizer"),
    "long between all": (lambda t: t.update(normalizer=replace({"Regex": ""}, "x" * 9999)), "times as long"),
    "decoder": (lambda t: t.update(decoder=sequence([replace({"String": "a"}, "aaa")] * 30, "decoders")), "decoder"),
    "a million around": (lambda t: t.update(post_processor=around(1000, 1000)), "1,000,000 tokens around"),
    "an id of 4 billion": (lambda t: t["model"]["vocab"].update(zzz=4 * 10**9), "ids go from"),
    "an id below zero": (lambda t: t["model"]["vocab"].update(zzz=-1), "ids go from"),
    "nested": (lambda t: t.update(normalizer=nested(200)), "nested more than"),
    "no expression": (
        lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated",
                                          "invert": False}),
        "can't load it",
    ),
}  # fmt: skip


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_is_refused(name: str, folder: Path) -> None:
    make, what = HOSTILE[name]
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    make(value)
    path.write_text(json.dumps(value))
    with pytest.raises(AloeError, match=what):
        load_template(folder)


def test_an_expression_without_end_is_stopped_by_the_library_and_known_for_it(folder: Path) -> None:
    """Its expressions have a limit; reaching it is a panic, which is no `Exception`."""
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["normalizer"] = replace({"Regex": "^(([a-z])+.)+[A-Z]([a-z])+$"}, "x")
    path.write_text(json.dumps(value))
    tokenizer, _ = load_template(folder)
    with pytest.raises(BaseException, match="retry-limit") as raised:
        tokenizer("a" * 5000)
    assert is_panic(raised.value)
    assert not isinstance(raised.value, Exception)


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"model": ', ""])
def test_what_is_no_tokenizer_is_refused(text: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(AloeError, match=r"tokenizer\.json"):
        check_tokenizer(folder)


def test_tokenizers_in_use_pass(folder: Path) -> None:
    check_tokenizer(folder)
    llama = sequence([{"type": "Prepend", "prepend": "_"}, replace({"String": " "}, "_")])
    albert = sequence([replace({"String": "``"}, '"'), replace({"Regex": " {2,}"}, " "), {"type": "NFKD"}])
    assert max(_growth(llama, ""), _growth(albert, "")) < 10


@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=2), st.text("ab", max_size=3)), max_size=4), st.text("abc")
)
def test_no_text_grows_beyond_the_bound(rules: list[tuple[str, str]], text: str) -> None:
    bound = _growth(sequence([replace({"String": a}, b) for a, b in rules]), "")
    grown = text
    for a, b in rules:
        grown = grown.replace(a, b)
    assert bound > MAX_GROWTH or len(grown) <= bound * len(text) + 1e-6


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(
                    ["normalizers", "type", "pattern", "content", "String", "special_tokens", "single", "ids"]
                ),
                x,
            )
        ),
    )
)
def test_parts_of_any_shape_are_counted_or_passed_over(value: Any) -> None:
    from aloe.models.tokenizer_files import _around

    assert _growth(value, "") >= 1
    assert _around(value, "") >= 0
