"""What a recipe may say of a server; what of it counts to the digest; the page that documents it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.generate.server_spec import ServerSpec, is_direct
from aloe.recipe import Recipe
from aloe.recipe_file import read_value

ROOT = Path(__file__).parents[2]
BASE = {"endpoints": ["http://127.0.0.1:8000/v1"], "model": "org/model"}


def spec(**fields: Any) -> ServerSpec:
    return ServerSpec(**{**BASE, **fields})


def test_the_digest_is_of_what_the_server_states() -> None:
    assert spec().digest() == digest_json({"server_model": "org/model", "revision": ""})
    assert spec(revision="v2").digest() == digest_json({"server_model": "org/model", "revision": "v2"})


def test_where_and_how_fast_it_answers_does_not_count() -> None:
    elsewhere = spec(
        endpoints=["https://a/v1", "https://b/v1/"], key_env="K", timeout_s=9, max_concurrency=2, attempts=9,
        backoff_s=1, give_up_s=1, listed=False, licence="mit", limit_as="max_completion_tokens", structured=True,
        prefill="instruct",
    )  # fmt: skip
    assert elsewhere.digest() == spec().digest()


def test_how_it_is_asked_does() -> None:
    variants = [
        spec(), spec(model="other"), spec(revision="v2"), spec(prefill="continue"), spec(scores="first_token"),
        spec(extra={"top_k": 5}), spec(extra={"top_k": 6}),
    ]  # fmt: skip
    found = {s.digest() for s in variants} | {spec(template="t").digest(d) for d in ("x", "y")}
    assert len(found) == len(variants) + 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endpoints": ["127.0.0.1:8000"]}, "is no endpoint"),
        ({"endpoints": ["http://a/v1?key=1"]}, "is no endpoint"),
        ({"endpoints": ["http://a/v1", "http://a/v1/"]}, "named twice"),
        ({"endpoints": []}, "at least 1"),
        ({"scores": "echo"}, "name in `template`"),
        ({"scores": "first_token", "template": "t"}, "use echo or none"),
        ({"prefill": "continue", "template": "t"}, "a prefill is exact"),
        ({"structured": True, "template": "t"}, "chat completions"),
        ({"extra": {"temperature": 1}}, "temperature is set by the step"),
        ({"api_key": "sk-1"}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**fields)


@pytest.mark.parametrize(
    "fields", [{"key_env": "sk-proj-abc"}, {"endpoints": ["http://me:sk-proj-abc@host/v1"]}], ids=["key", "password"]
)
def test_a_secret_in_the_recipe_is_refused_and_not_repeated(fields: dict[str, Any]) -> None:
    with pytest.raises(AloeError) as caught:
        spec(**fields)
    assert "sk-proj" not in str(caught.value)


def test_addresses_are_told_from_names() -> None:
    assert is_direct("http://host:1/v1#m")
    assert is_direct("https://host/v1")
    assert not any(map(is_direct, ("org/name", "folder/x.gguf", "starter/exam", "llama70b", "file://x")))


def test_every_field_is_read() -> None:
    reads = {
        node.attr
        for path in (ROOT / "src" / "aloe" / "generate").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    reads |= {"licence"}  # by `run/inputs.py`
    assert set(ServerSpec.model_fields) <= reads


def test_the_page_has_every_field_with_its_default() -> None:
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    table = text.split("## `ServerSpec`")[1].split("\n\n")[1]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", table, re.M)
    stated = {name: default.strip() for name, _, default in rows}
    assert list(stated) == list(ServerSpec.model_fields)
    for name, field in ServerSpec.model_fields.items():
        if field.is_required():
            assert stated[name] == "required"
        else:
            assert read_value(stated[name].strip("`")) == field.get_default(call_default_factory=True), name


def test_the_pages_example_is_a_recipe() -> None:
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    assert Recipe.parse(read_value(example)).head.servers["writer70b"].key_env == "WRITER_KEY"
