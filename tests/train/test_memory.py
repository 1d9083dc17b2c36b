"""The memory plan: counts from headers, parts that add up, refusals whose suggestions fit, and a measured step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from aloe.errors import AloeError
from aloe.train.dimensions import Precision
from aloe.train.lora import Lora, attach
from aloe.train.memory import (
    HELD_BACK,
    LIBRARIES,
    MARGIN,
    MemoryPlan,
    Strategy,
    Weights,
    available_memory,
    headers,
    plan,
)

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> MemoryPlan:
    """Llama 3.1 8B, which nobody loads here: its tensors on the meta device give the shapes."""
    folder = tmp_path_factory.mktemp("8b")
    config = LlamaConfig(**LLAMA_8B)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    save_file({"model.norm.weight": torch.ones(1)}, folder / "model.safetensors")
    shapes = {n: tuple(t.shape) for n, t in model.named_parameters()}
    return replace(plan(folder, width=4096, precision="bf16_autocast", device="cuda", attention="flash"), shapes=shapes)


# -- counts -------------------------------------------------------------------------------------------------------


def test_headers_are_read_without_the_weights(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    assert headers(tiny_model_folder) == {n: tuple(p.shape) for n, p in model.named_parameters()}
    text = json.dumps({"a": {"dtype": "F32", "shape": [1 << 20, 1 << 10], "data_offsets": [0, 1 << 32]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(tmp_path / "a.safetensors", 8 + len(text) + (1 << 32))  # 4 GB that take no room, and no time to read
    assert headers(tmp_path) == {"a": (1 << 20, 1 << 10)}
    (tmp_path / "b.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{")
    with pytest.raises(AloeError, match="header"):
        headers(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AloeError, match="safetensors"):
        headers(tmp_path / "empty")


@pytest.mark.parametrize("targets", ["linear", ["q_proj", "down_proj"], ["layers.1.mlp.up_proj"]])
def test_parameters_are_the_models(tiny_model_folder: Path, targets: Any) -> None:
    lora = Lora(rank=4, targets=targets)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    total = sum(p.numel() for p in model.parameters())
    full, adapted = plan(tiny_model_folder, width=64), plan(tiny_model_folder, width=64, lora=lora)
    assert full.parameters == full.trainable == adapted.parameters == total
    attach(model, lora, 7)
    assert adapted.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with pytest.raises(AloeError, match="names no linear layer"):
        plan(tiny_model_folder, width=64, lora=Lora(targets=["lm_head"])).refuse(1)


def test_a_tied_head_counts_once_and_an_8b_model_is_8b(eight: MemoryPlan) -> None:
    assert eight.parameters == 8_030_261_248
    tied = Weights.of(eight.shapes, True, None)
    assert tied.total == 8_030_261_248 - 128_256 * 4096
    assert tied.layer == (tied.total - tied.root) // 32
    assert replace(eight, lora=Lora()).trainable == 41_943_040  # what peft counts for rank 16


# -- parts --------------------------------------------------------------------------------------------------------


def test_the_known_sums_for_8b(eight: MemoryPlan) -> None:
    """16 bytes a parameter for float32 weights under AdamW, 8 for bf16 weights with bf16 moments."""
    state = ("weights", "gradients", "AdamW's moments")
    assert sum(eight.parts[p] for p in state) == 16 * eight.parameters
    assert sum(replace(eight, precision="bf16_stochastic").parts[p] for p in state) == 8 * eight.parameters
    shared = replace(eight, strategy="fsdp2", processes=8)
    assert sum(shared.parts[p] for p in state) == 16 * eight.parameters // 8
    largest, root = 218_112_000, 2 * 128_256 * 4096 + 4096
    assert shared.parts["gathered weights"] == 4 * (root + 2 * largest)
    assert sum(replace(eight, strategy="ddp", processes=8).parts.values()) == eight.total
    assert replace(eight, width=8192).parts["activations"] == 2 * eight.parts["activations"]


VARIANTS = st.fixed_dictionaries(
    {
        "width": st.integers(256, 16_384),
        "precision": st.sampled_from(get_args(Precision)),
        "lora": st.sampled_from([None, Lora(), Lora(rank=64, targets=["q_proj"])]),
        "strategy": st.sampled_from(get_args(Strategy)),
        "processes": st.sampled_from([1, 2, 8]),
        "device": st.sampled_from(["cpu", "cuda"]),
        "budget": st.sampled_from([None, 0, 1 << 34]),
        "whole_gradients": st.sampled_from([0, 1 << 40]),
    }
)


@settings(deadline=None, max_examples=50)
@given(VARIANTS, st.integers(1, 200))
def test_plans_add_up_and_suggestions_fit(eight: MemoryPlan, changes: dict[str, Any], gigabytes: int) -> None:
    one, available = replace(eight, **changes), gigabytes * 10**9
    assert one.total == sum(one.parts.values())
    assert all(count >= 0 for count in one.parts.values())
    assert one.trainable <= one.parameters
    assert replace(one, width=2 * one.width).total >= one.total or one.budget  # unless that is where recomputing begins
    if one.fits(available):
        one.refuse(available)
        return
    with pytest.raises(AloeError) as caught:
        one.refuse(available)
    ways = one._ways(available)
    assert all(way.plan.total <= (1 - MARGIN) * available for way in ways)
    assert ("what does fit" in (caught.value.fix or "")) == bool(ways)
    assert all(way.how in (caught.value.fix or "") for way in ways)
    assert f"{one.total / 1e9:.2f} GB" in caught.value.what
    assert len({way.kind for way in ways}) == len(ways)


@settings(deadline=None, max_examples=50)
@given(VARIANTS, st.integers(1, 200))
def test_room_is_what_the_plan_leaves_for_kept_layers(
    eight: MemoryPlan, changes: dict[str, Any], gigabytes: int
) -> None:
    """A step that keeps its layers fits exactly where their activations have room."""
    one, available = replace(eight, **{**changes, "budget": None}), gigabytes * 10**9
    assert one.room(available) == replace(one, budget=0).room(available)
    assert (one.parts["activations"] <= one.room(available) + 2) >= one.fits(available)
    assert one.fits(available + 100) >= (0 < one.parts["activations"] <= one.room(available))
    auto = replace(one, budget=one.room(available))
    assert auto.recompute or auto.fits(available + 100)


def test_a_refusal_says_what_and_by_how_much(eight: MemoryPlan) -> None:
    with pytest.raises(AloeError) as caught:
        eight.refuse(80 * 10**9)
    fix = caught.value.fix or ""
    assert "AdamW's moments 64.24 GB" in caught.value.what
    assert "strategy: fsdp2, processes: 16" in fix
    assert "processes: 32" not in fix  # the mildest is enough
    assert "hardware: {recompute: always} with lora: {rank: 16}" in fix
    assert "bf16_stochastic" in fix
    with pytest.raises(AloeError, match="smaller model"):
        eight.refuse(10**8)


def test_the_table_says_parts_total_and_what_there_is(tiny_model_folder: Path) -> None:
    one = plan(tiny_model_folder, width=64, budget=0)
    table = one.table(4 * 10**9)
    for name in (*one.parts, "together, at most", "there is", "layers recomputed", "one process"):
        assert name in table
    assert "4.000 GB" in table
    assert one.summary() == {"plan": one.parts, "planned": one.total, "way": one.headline()}
    assert "counted as a Llama's" not in table
    assert "counted as a Llama's" in replace(one, model_type="mamba").table()


# -- what there is ------------------------------------------------------------------------------------------------


def test_available_memory_is_shared_and_bounded_by_the_container(tmp_path: Path) -> None:
    import psutil

    cpu, own = torch.device("cpu"), psutil.Process().memory_info().rss
    free = available_memory(cpu, root=tmp_path)
    assert own < free <= psutil.virtual_memory().total
    assert available_memory(cpu, 2, root=tmp_path) < 0.75 * free or free < 4 * own
    inner = tmp_path / "sys/fs/cgroup/pod/one"
    inner.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/one\n")
    for folder, limit, used, cached in ((inner, "max", 5, 0), (inner.parent, "9000000", 4_000_000, 1_000_000)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert 0 <= available_memory(cpu, root=tmp_path) - 6_000_000 - own < 200 << 20
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/docker/abc\n")
    outer = tmp_path / "sys/fs/cgroup/memory"  # as a container sees its own group
    outer.mkdir()
    for name, text in (("limit_in_bytes", "7000000"), ("usage_in_bytes", "2000000")):
        (outer / f"memory.{name}").write_text(text)
    (outer / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500000\n")
    assert 0 <= available_memory(cpu, root=tmp_path) - 5_000_000 - own < 200 << 20


MEASURE = """
import ctypes, gc, json, re, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from aloe.models.packed import Tree
from aloe.train.packing import Example, pack
from aloe.train.policy import Policy, prepare

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak(hidden, layers, width):
    config = LlamaConfig(vocab_size=2000, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
                         num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True, pad_token_id=0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    model = LlamaForCausalLM(config)
    model.save_pretrained(Path(sys.argv[1]) / str(hidden))
    prepare(model)
    policy = Policy(model, even=True)
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    ids = [(7 * j) % 2000 for j in range(width)]
    examples = [Example(str(i), Tree(ids[i * width // 2:(i + 1) * width // 2]), [False] + [True] * (width // 2 - 1))
                for i in range(2)]
    for _ in range(2):
        for _ in range(2):
            policy(pack(examples, [0, 1], width, 0)[0]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = status("VmHWM") - before
    del model, policy, optimizer
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the next model would live in what this one leaves behind
    return found

torch.set_num_threads(1)
x = torch.ones(64, 64, requires_grad=True)
torch.nn.functional.scaled_dot_product_attention(x[None], x[None], (x @ x)[None], is_causal=True).sum().backward()
sizes = [(256, 4, 384), (448, 5, 384)]
print(json.dumps([peak(*size) for size in sizes]))
"""


def test_the_plan_against_a_measured_step(tmp_path: Path) -> None:
    """Two sizes, one after the other: within 25% of the resident memory that a step really took."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak can be reset on Linux only")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    for hidden, measured in zip((256, 448), json.loads(done.stdout.splitlines()[-1]), strict=True):
        planned = plan(tmp_path / str(hidden), width=384)
        assert planned.total - LIBRARIES["cpu"] == pytest.approx(measured, rel=0.25), hidden
        assert planned.parts["kept by the allocator"] == int(
            HELD_BACK["cpu"] * sum(planned.parts[p] for p in ("activations", "logits chunk", "gradients in flight"))
        )
