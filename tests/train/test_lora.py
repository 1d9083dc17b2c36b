"""Adapters: placed by name, drawn by key, off without a trace, folded in without a difference, read back by peft."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from aloe.errors import AloeError
from aloe.models.packed import Tree
from aloe.train.logprobs import row_logprobs
from aloe.train.lora import Lora, adapter_off, attach, fold, linear_layers, merge_into, save_adapter
from aloe.train.packing import Example, PackedRow, pack


@pytest.fixture
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)


def row() -> PackedRow:
    trees = [Tree([3, 9, 27, 81, 5, 15]), Tree([7, 14, 28], [[56, 11, 22], [44, 88]])]
    examples = [Example(str(i), t, [False] * 3 + [True] * (len(t) - 3)) for i, t in enumerate(trees)]
    return pack(examples, [0, 1], 32, 0)[0]


def trained(model: Any, lora: Lora | None = None, steps: int = 3, seed: int = 7) -> Any:
    """Adapters after a few real steps, so that B is no longer zero."""
    attach(model, lora or Lora(rank=4), seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        (-row_logprobs(model, row()).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def adapters(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" in n}


# -- where, and how drawn -----------------------------------------------------------------------------------------


def test_all_linear_layers_but_the_head_and_nothing_else_trains(model: Any) -> None:
    plain = dict(model.named_parameters())
    linear = set(linear_layers(model))
    assert len(linear) == 2 * 7
    assert attach(model, Lora(rank=4), 7) is model
    names = dict(model.named_parameters())
    assert "model.layers.0.self_attn.q_proj.lora_A.default.weight" in names
    assert "model.layers.0.self_attn.q_proj.base_layer.weight" in names
    assert {n.partition(".lora_")[0] for n in names if ".lora_" in n} == linear
    assert {n for n, p in names.items() if p.requires_grad} == {n for n in names if ".lora_" in n}
    assert {n.replace(".base_layer", "") for n in names if ".lora_" not in n} == set(plain)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert type(model.base_model).__name__ == "LlamaModel"


def test_named_targets_and_scales(model: Any) -> None:
    attach(model, Lora(rank=4, alpha=8, targets=["q_proj", "layers.1.mlp.up_proj"], rslora=True), 7)
    modules = {n.partition(".lora_")[0] for n in adapters(model)}
    assert modules == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)} | {"model.layers.1.mlp.up_proj"}
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == Lora(rank=4, alpha=8, rslora=True).scale == 4.0
    assert Lora().scale == 2.0


def test_a_layers_draw_depends_on_seed_and_name_alone(tiny_model_folder: Path) -> None:
    def drawn(targets: Any, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(random.randrange(1 << 30))
        fresh = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        return adapters(attach(fresh, Lora(rank=4, targets=targets), seed))

    every, some, other = drawn("linear", 7), drawn(["up_proj"], 7), drawn(["up_proj"], 8)
    assert all(torch.equal(every[n], some[n]) for n in some)
    downs = [n for n in some if "lora_A" in n]
    assert not any(torch.equal(some[n], other[n]) for n in downs)
    assert not torch.equal(some[downs[0]], some[downs[1]])
    for name, tensor in every.items():
        bound = tensor.shape[1] ** -0.5
        assert not tensor.any() if "lora_B" in name else 0.8 * bound < tensor.abs().max() <= bound
    assert abs(torch.cat([every[n].flatten() for n in every if "lora_A" in n]).mean()) < 0.01


@pytest.mark.parametrize(
    ("target", "near"), [("qproj", "q_proj"), ("up_prj", "up_proj"), ("lm_head", "q_proj"), ("embed_tokens", "up_proj")]
)
def test_a_wrong_target_names_the_nearest(model: Any, target: str, near: str) -> None:
    with pytest.raises(AloeError) as caught:
        attach(model, Lora(targets=["v_proj", target]), 7)
    assert repr(target) in caught.value.what
    assert near in (caught.value.fix or "")
    assert not hasattr(model, "peft_config")  # refused before anything was changed


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": 1025}, {"alpha": 0}, {"dropout": 0.1}, {"targets": []}])
def test_parameters_are_closed(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Lora(**bad)


def test_two_adapters_are_refused(model: Any) -> None:
    with pytest.raises(AloeError, match="already"):
        attach(attach(model, Lora(rank=2), 7), Lora(rank=2), 7)


# -- what it computes ---------------------------------------------------------------------------------------------


def test_off_is_the_base_to_the_last_bit_and_gradients_go_on_after(model: Any) -> None:
    base = row_logprobs(model, row()).detach()
    attach(model, Lora(rank=4), 7)
    assert torch.equal(row_logprobs(model, row()), base)  # B is zero
    merge_into(model)
    trained(model)
    adapted = row_logprobs(model, row())
    with adapter_off(model):
        with adapter_off(model):
            assert torch.equal(row_logprobs(model, row()), base)
        assert torch.equal(row_logprobs(model, row()), base)
        assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)
    assert torch.equal(row_logprobs(model, row()), adapted)
    assert (adapted - base).abs().max() > 0.05
    with pytest.raises(RuntimeError, match="inside"), adapter_off(model):
        raise RuntimeError("inside")
    assert torch.equal(row_logprobs(model, row()), adapted)


def test_the_base_never_moves(model: Any) -> None:
    before = {n: p.clone() for n, p in model.named_parameters()}
    trained(model)
    after = {n.replace(".base_layer", ""): p for n, p in model.named_parameters() if ".lora_" not in n}
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_is_a_plain_model_with_the_same_logprobs(
    model: Any, tiny_model_folder: Path, tmp_path: Path, rslora: bool
) -> None:
    plain = set(model.state_dict())
    trained(model, Lora(rank=4, rslora=rslora))
    adapted = row_logprobs(model, row()).detach()
    assert merge_into(model) is model
    assert (row_logprobs(model, row()) - adapted).abs().max() < 1e-5
    assert set(model.state_dict()) == plain
    assert all(p.requires_grad for p in model.parameters())
    assert all(type(m) is torch.nn.Linear for m in linear_layers(model).values())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(row_logprobs(again, row()), row_logprobs(model, row()))
    assert sorted(p.name for p in (tmp_path / "merged").iterdir()) == sorted(
        p.name for p in tiny_model_folder.iterdir() if p.name in ("config.json", "generation_config.json")
        or p.suffix == ".safetensors"
    )  # fmt: skip
    trained(again)  # continued training starts from the folder
    assert (row_logprobs(again, row()) - adapted).abs().max() > 0.01


def test_folding_a_stream_of_tensors_is_merging(model: Any) -> None:
    lora = Lora(rank=4, alpha=10)
    trained(model, lora)
    named = [(n, p.detach().clone()) for n, p in model.named_parameters()]
    random.Random(3).shuffle(named)
    streamed = dict(fold(named, lora))
    merge_into(model)
    merged = dict(model.named_parameters())
    assert set(streamed) == set(merged)
    assert all(torch.equal(streamed[n], merged[n]) for n in merged)
    with pytest.raises(ValueError, match="missing"):
        list(fold([pair for pair in named if not pair[0].endswith("layers.0.mlp.up_proj.lora_B.default.weight")], lora))


def test_a_bias_beside_an_adapted_weight_keeps_its_plain_name() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
    model = Qwen2ForCausalLM(config)
    names = set(dict(model.named_parameters()))
    lora = Lora(rank=2)
    trained(model, lora)
    assert set(dict(fold(model.named_parameters(), lora))) == names
    adapted = row_logprobs(model, row()).detach()
    assert (row_logprobs(merge_into(model), row()) - adapted).abs().max() < 1e-5


def test_low_precision_weights_are_summed_in_float32_and_rounded_once(tiny_model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16)
    attach(model, Lora(rank=4), 7)
    layer = model.model.layers[0].mlp.up_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.dtype == torch.float32  # an adapter's small updates would vanish in bf16
    with torch.no_grad():
        up.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        exact = layer.base_layer.weight.double() + 8.0 * up.double() @ down.double()
    merge_into(model)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, exact.to(torch.bfloat16))


# -- files --------------------------------------------------------------------------------------------------------


def test_peft_opens_the_adapter_and_computes_the_same(model: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    trained(model, Lora(rank=4, alpha=6, targets=["q_proj", "down_proj"]))
    adapted = row_logprobs(model, row()).detach()
    save_adapter(model, tmp_path / "a", "tiny-llama")
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tiny-llama"
    assert settings["lora_alpha"] == 6
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    opened = PeftModel.from_pretrained(base, str(tmp_path / "a"))
    assert torch.equal(row_logprobs(opened.base_model.model, row()), adapted)
    gathered = [(n, p.detach()) for n, p in model.named_parameters()]
    save_adapter(model, tmp_path / "b", "tiny-llama", gathered)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(ValueError, match="no adapter"):
        save_adapter(merge_into(model), tmp_path / "c", "tiny-llama")


def test_the_files_say_sets_in_order(model: Any, tmp_path: Path) -> None:
    """peft holds names as sets, whose order is another in every process."""
    save_adapter(attach(model, Lora(rank=2), 7), tmp_path, "x")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(settings["target_modules"]) == 14
    assert settings["target_modules"] == sorted(settings["target_modules"])
