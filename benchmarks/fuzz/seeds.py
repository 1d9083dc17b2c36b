"""Valid inputs that fuzzing starts from, made here and small: {target: [bytes]}."""

# ruff: noqa: E501
from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
ROWS = [
    {"id": "1", "question": "Which?", "options": {"A": "one", "B": "two"}, "answer": "A"},
    {"question": "Why?", "options": {"A": "so", "B": "thus"}, "answer": "B", "explanation": "\\u00e9"},
]
DIALOGUES = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
PAIRS = [{"prompt": "p", "chosen": "c", "rejected": "r"}]
MERGEKIT = """merge_method: dare_ties
base_model: org/base
models:
  - model: org/a
    parameters: {weight: 0.5, density: [0.1, 0.9]}
  - model: org/b
    parameters: {weight: [{filter: mlp, value: 0.3}, {value: 0.7}]}
parameters: {normalize: true, int8_mask: true}
dtype: bfloat16
"""
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<s>' ~ bos_token }}{% endif %}"
    "{{ '<|' + message.role + '|>' }}{% generation %}{{ message['content'] | trim }}{% endgeneration %}{% endfor %}"
    "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ [1, 2] | map('string') | join(',') }}"
    "{% if add_generation_prompt %}{{ '<|assistant|>'.strip() }}{% endif %}"
)


def seeds() -> dict[str, list[bytes]]:
    """All of them."""
    lines = ["".join(json.dumps(r) + "\n" for r in rows).encode() for rows in (ROWS, DIALOGUES, PAIRS)]
    table = pa.Table.from_pylist(ROWS)
    parquet, arrow, zst = io.BytesIO(), io.BytesIO(), pa.BufferOutputStream()
    pq.write_table(table, parquet)
    with pa.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    with pa.CompressedOutputStream(zst, "zstd") as stream:
        stream.write(lines[0])
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {}}).encode()
    config = {"model_type": "llama", "hidden_size": 2, "num_hidden_layers": 1, "vocab_size": 2, "intermediate_size": 2}
    index = {"weight_map": {"w": "model.safetensors"}}
    manifest = {
        "format": 1, "kind": "rows", "verb": "curate", "step": "corpus", "version": 1, "fingerprint": "00",
        "content_digest": "00", "files": {"rows.parquet": {"digest": "00", "bytes": 3}}, "inputs": {"a": {"digest": "0"}},
        "code": {"aloe": "0.1", "commit": "0"}, "wall_seconds": 1.0, "peak_memory_bytes": 5, "tokens": {}, "summary": {},
        "ledger": [{"stage": "load", "in": 1, "kept": 1, "dropped": {}}], "parameters": {"model": "m"}, "seed": 0,
    }  # fmt: skip
    scores = {"scores": [{"model": "m", "benchmark": "b", "protocol": "p", "metric": "accuracy", "value": 0.5, "n": 2}]}
    lineage = {"m": {**manifest, "verb": "merge", "parameters": {"base": "b", "models": {"c": {}}}}}
    files = [
        lineage,
        scores,
        {"models": {"m": {"attack_success": {"value": 0.0}, "over_refusal": None}}},
        {"model": "m"},
    ]
    head = (
        b"---\nlicense: mit\nconfigs:\n- config_name: a\n  data_files:\n  - {split: train, path: '*.jsonl'}\n---\n# x\n"
    )
    return {
        "recipe": [(ROOT / "recipes" / "demo.yaml").read_bytes()], "mergekit": [MERGEKIT.encode()], "jsonl": lines,
        "json": [json.dumps(ROWS).encode()], "csv": [b'question,A,B,answer\n"Wh,y",x,y,A\n'],
        "gz": [gzip.compress(lines[0], mtime=0)], "zst": [zst.getvalue().to_pybytes()], "parquet": [parquet.getvalue()],
        "arrow": [arrow.getvalue()], "template": [TEMPLATE.encode()],
        "extraction": [b"one\ntwo\n\nThe answer is **B**.", b"x\ny\n\n<think>A</think> \\boxed{B} | a | b |\n{\"answer\": \"A\"}"],
        "judges": [b"safe", b"unsafe\nS1,S2", b"Harmful request: yes\nResponse refusal: no\nHarmful response: yes",
                   b"[[A]]", b'{"quality": 3, "correct": 4}', b"I can't help with that. 911"],
        "safetensors": [struct.pack("<Q", len(header)) + header + bytes(16)], "gguf": [_gguf()],
        "model_folder": [b"\0".join(json.dumps(v).encode() for v in (config, index)) + b"\0" + head],
        "manifest": [json.dumps(manifest).encode()], "release_files": [b"\0".join(json.dumps(f).encode() for f in files)],
        "card": [head], "saved_set": [b'{"_data_files": [{"filename": "a.arrow"}]}\0{"splits": ["train"]}'],
        "tokenizer": [_tokenizer()],
        "licences": [b"acme: {spdx: LicenseRef-Acme, duties: [attribution], share_alike: [acme]}\n"],
        "prompt": [next(iter((ROOT / "src" / "aloe" / "prompting" / "prompts").rglob("*.yaml"))).read_bytes()],
    }  # fmt: skip


def _tokenizer() -> bytes:
    """A byte-level BPE of a few entries with every part that a tokenizer.json has."""
    letters = {chr(code): at for at, code in enumerate(range(33, 127), 2)}
    replace = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}
    split = {"type": "Split", "pattern": {"Regex": "\\d+| ?[a-z]+"}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    value = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
        "post_processor": {"type": "TemplateProcessing", "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": bytes_,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<s>", "vocab": {"<s>": 0, "ab": 1, **letters},
                  "merges": [["a", "b"]]},
    }  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "model_max_length": 64}
    template = "{% for m in messages %}{{ bos_token }}{{ m['role'] }} {{ m['content'] }}{% endfor %}"
    return b"\0".join([json.dumps(value).encode(), json.dumps(config).encode(), template.encode()])


def _gguf() -> bytes:
    """A GGUF file of three values and one tensor."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    values += text("llama.block_count") + struct.pack("<II", 4, 1)
    values += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    info = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 2, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + values + info
    return head + bytes(-len(head) % 32) + bytes(16)
