"""What was made to fill memory or to run for ever ends in an error, before anything is allocated for it."""

# ruff: noqa: E501
from __future__ import annotations

import gzip
import json
import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aloe import rows
from aloe.data import files
from aloe.data.files import Broken, read_file
from aloe.errors import AloeError
from aloe.json_file import read_json
from aloe.merge.tensors import read_header
from aloe.models.chat import ChatTemplate
from aloe.models.headers import check_gguf
from aloe.models.sandbox import BoundedTemplate
from aloe.recipe_file import parse_yaml

TODAY = datetime(2024, 7, 26)
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


# -- YAML, JSON -----------------------------------------------------------------------------------------------------


def test_aliases_of_aliases_are_counted() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20))
    with pytest.raises(AloeError, match="aliases that stand for over"):
        parse_yaml(text, "r.yaml")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: &a [*a]", "contains itself"), ("[" * 5000, "nested more than 64 deep"), ("? [a]\n: b", "a key is a word"),
        ("<<: {a: 1}", "merge keys"), ("a: !!int abc", "read as int"), ("a: 2001-13-45", "read as timestamp"),
        ("a: !!python/object/apply:os.system [id]", "tag"), ("a: " + "9" * 5000, "read as int"), ("a: !!int", "int"),
        ("a: x\na: y", "stands twice"), ("x" * (1 << 20), "characters of YAML"),
    ],
)  # fmt: skip
def test_yaml_that_no_loader_should_build_is_refused_with_its_line(text: str, what: str) -> None:
    with pytest.raises(AloeError, match=what) as caught:
        parse_yaml(text, "r.yaml")
    assert "r.yaml" in str(caught.value)


def test_aliases_and_numbers_as_engineers_write_them_are_read() -> None:
    value, lines = parse_yaml("a: &x {lr: 2e-5}\nb: *x\n", "r.yaml")
    assert value == {"a": {"lr": 2e-5}, "b": {"lr": 2e-5}}
    assert lines[("b",)] == 2


def test_json_files_are_bounded_and_regular(tmp_path: Path) -> None:
    import os

    deep, pipe, large = tmp_path / "deep.json", tmp_path / "pipe.json", tmp_path / "large.json"
    deep.write_text("[" * 100_000)
    os.mkfifo(pipe)
    large.write_text('"' + "x" * 100 + '"')
    for path, limit in ((deep, 1 << 20), (pipe, 1 << 20), (large, 50), (tmp_path / "none.json", 50)):
        with pytest.raises(AloeError, match=path.name):
            read_json(path, limit)


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".json.gz"])
def test_a_compressed_file_that_grows_without_end_is_stopped(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_GIGABYTE", 1 << 20)
    path, data = tmp_path / f"bomb{suffix}", b"0" * (4 << 20) + b"\n"
    if suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(data))
    else:
        with pa.output_stream(str(path), compression="zstd") as out:
            out.write(data)
    with pytest.raises(AloeError, match="over 300 times its size"):
        list(read_file(path))


def test_one_json_value_is_read_whole_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 1000)
    (tmp_path / "a.json").write_text("[" + ",".join(['{"question": "a"}'] * 100) + "]")
    with pytest.raises(AloeError, match="jq -c"):
        list(read_file(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_rows_nested_too_deeply_are_dropped_with_a_reason(name: str, tmp_path: Path) -> None:
    deep = '{"a":' * 500 + "1" + "}" * 500
    path = tmp_path / name
    if name.endswith(".parquet"):
        rows.write_parquet(path, [{"a": json.loads(deep)}])
    else:
        path.write_text(f"[{deep}]" if name == "a.json" else f"{deep}\n")
    [(_, found)] = list(read_file(path))
    assert isinstance(found, Broken)
    assert "deep" in found.detail


def test_values_that_python_has_no_form_for_are_dropped_one_by_one(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    when = pa.array([0, 1 << 62], pa.timestamp("us"))
    pq.write_table(pa.table({"question": ["a", "b"], "when": when}), tmp_path / "a.parquet")
    first, second = [row for _, row in read_file(tmp_path / "a.parquet")]
    assert isinstance(first, dict)
    assert isinstance(second, Broken)


def test_arrow_offsets_that_lead_out_of_the_file_are_refused(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["aaaa", "bbbb"])], ["question"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = (tmp_path / "a.arrow").read_bytes()
    good = struct.pack("<3i", 0, 4, 8)
    assert data.count(good) == 1
    (tmp_path / "a.arrow").write_bytes(data.replace(good, struct.pack("<3i", 0, 1 << 30, 1 << 30)))
    with pytest.raises(AloeError, match="not an Arrow file"):
        list(read_file(tmp_path / "a.arrow"))


# -- weights --------------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **more}


@pytest.mark.parametrize(
    "data",
    [
        safetensors({}, length=1 << 60), safetensors(b"[" * 5000), safetensors([1]), safetensors({"w": 1}),
        safetensors({"w": entry(shape=[1 << 62] * 100)}), safetensors({"w": entry(shape=[1 << 40, 1 << 40])}),
        safetensors({"w": entry(shape=[True, 4])}), safetensors({"w": entry(data_offsets=[-4, 12])}),
        safetensors({"w": entry(data_offsets=[0, 1 << 60])}), safetensors({"w": entry(data_offsets=[0.0, 16.0])}),
        safetensors({"w": entry(), "v": entry()}), safetensors({"w": entry(dtype=["F32"])}), b"\1", b"",
        safetensors(b'{"w": ' + b"9" * 5000 + b"}"),
    ],
)  # fmt: skip
def test_safetensors_headers_are_believed_only_as_far_as_the_file_goes(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(AloeError, match="not a whole safetensors file"):
        read_header(path)


def gguf(tensors: int = 0, values: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


KEY = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    "data",
    [
        gguf(values=1 << 60),
        gguf(tensors=1 << 60),
        gguf(values=1),
        b"GGML",
        b"",
        gguf(version=99),
        gguf(values=1, rest=struct.pack("<Q", 1 << 60)),
        gguf(values=1, rest=KEY + struct.pack("<IIQ", 9, 4, 1 << 60)),  # an array of 2^60 numbers
        gguf(values=1, rest=KEY + struct.pack("<IIQ", 9, 8, 1 << 60)),  # of texts
        gguf(values=1, rest=KEY + struct.pack("<IQ", 8, 1 << 60)),
        gguf(values=1, rest=KEY + struct.pack("<IIQ", 9, 9, 1)),
        gguf(tensors=1, rest=KEY + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)),
        gguf(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 4, 0, 1 << 60)),
        gguf(tensors=1, rest=KEY + struct.pack("<I", 1 << 30)),
        gguf(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 4, 9999, 0)),
    ],
)
def test_gguf_headers_are_believed_only_as_far_as_the_file_goes(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(AloeError, match="not a whole GGUF file"):
        check_gguf(path)


def test_the_packaged_model_passes() -> None:
    from aloe.models.sources import packaged_file

    try:
        path = packaged_file("smollm2-135m-instruct")
    except AloeError as missing:
        pytest.skip(str(missing))
    check_gguf(path)


# -- chat templates -------------------------------------------------------------------------------------------------

ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "{% set x %}{% for i in range(90000) %}" + "y" * 1000 + "{% endfor %}{% endset %}{{ x }}",
    "{{ 'x' * 10**10 }}", "{{ [0] * 10**10 }}", "{{ 9**9**9**9 }}", "{{ 'x'.ljust(10**9) }}", "{{ '%999999999d' % 1 }}",
    "{{ '{:999999999d}'.format(1) }}", "{{ '{:{w}d}'.format(1, w=10**9) }}", "{{ ('x' * 99999).replace('', 'x' * 99999) }}",
    "{{ ('x' * 99999) | replace('', 'x' * 99999) }}", "{{ (['x' * 999999] * 99999) | join }}", "{{ 'a\n' | indent(10**9) }}",
    "{{ (['x' * 999999] * 99999) | tojson }}", "{{ [1] | tojson(indent=10**9) }}", "{{ strftime_now('%999999999d') }}",
    "{{ dict.fromkeys(range(99999), 'x' * 1000) }}",
    "{% for i in range(99999) %}{% set x = ('y' * 1000000).upper() %}{% endfor %}",
    "{% set a = 'x' * 30000000 %}{% for i in range(99999) %}{% if a == a ~ 'x' %}{% endif %}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("source", ENDLESS, ids=lambda s: s[:40])
def test_a_template_that_would_not_end_is_stopped(source: str) -> None:
    with pytest.raises(AloeError, match="the chat template was stopped"):
        BoundedTemplate(source, TODAY, "model").render(messages=MESSAGES, add_generation_prompt=True)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ self.__init__.__globals__ }}", "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ range(10**9) | list | length }}",
    "{{ namespace(__class__=1) }}", "{{ messages.append(1) }}", "{{ 'x' | center(10**9) }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "{% if 1 %}" * 3000, "{{ lipsum(99999) }}",
]  # fmt: skip


@pytest.mark.parametrize("source", ESCAPES, ids=lambda s: s[:40])
def test_a_template_reaches_nothing_but_its_messages(source: str, tiny_tokenizer: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = source + "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(AloeError):
        ChatTemplate(tokenizer, where="model")


HONEST = [
    "{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>' + m.content | trim }}{{ eos_token }}{% endfor %}",
    "{%- if messages[0].role == 'system' %}{%- set s = messages[0]['content'] %}{%- set messages = messages[1:] %}{%- endif %}"
    "{% for m in messages %}{% if loop.last %}last{% endif %}{{ loop.index0 }}/{{ loop.length }} {{ m.content }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro one(m) -%}{{ m.role.upper() }}: {{ m.content.split('l')[-1].strip() }}{%- endmacro %}"
    "{% for m in messages %}{{ one(m) }}{% continue %}{% endfor %}",
    "{{ messages | map(attribute='content') | list | join(' / ') }}{{ messages | tojson }}{{ [1, [2]] | tojson(indent=2) }}",
    "{% for k, v in {'a': 1, 'b': (2, 3)}.items() %}{{ k }}={{ v }};{% endfor %}{{ 'x%sy' % 3 }}{{ '{}-{}'.format(1, 'z') }}",
    "{% for m in messages %}{% generation %}{{ m.content }}\n{% endgeneration %}\n{% endfor %}{% if add_generation_prompt %}A{% endif %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | first | string }}{{ (messages | length) * 2 - 1 }}{{ 'ab' * 3 }}"
    "{{ messages[::-1][0].content }}{% if 'hell' in messages[0].content and not tools %}yes{% endif %}{{ documents is none }}",
]  # fmt: skip


@pytest.mark.parametrize("source", HONEST, ids=range(len(HONEST)))
def test_an_honest_template_gives_what_transformers_gives(source: str, tiny_tokenizer: Any) -> None:
    for prompt in (False, True):
        theirs = tiny_tokenizer.apply_chat_template(
            MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=prompt
        )
        ours = BoundedTemplate(source, TODAY, "model").render(
            messages=[dict(m) for m in MESSAGES], tools=None, documents=None, add_generation_prompt=prompt,
            **tiny_tokenizer.special_tokens_map,
        )  # fmt: skip
        assert ours == theirs


def test_a_conversation_of_a_thousand_turns_is_rendered() -> None:
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1000)]
    text = BoundedTemplate(HONEST[0], TODAY, "model").render(messages=turns, eos_token="</s>")
    assert text.count("</s>") == 1000
