"""The policy on packed rows: every attention backend gives what separate rows give, values and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.errors import AloeError
from aloe.models.load import load
from aloe.models.packed import Tree, lay_out
from aloe.train import attention
from aloe.train.attention import Packed, Segment, pick, segments
from aloe.train.logprobs import prove_exact, row_logprobs
from aloe.train.packing import Example, pack
from aloe.train.policy import Policy, prepare


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, 384, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


DIALOGUES = [Example(f"d/{n}", Tree(ids(n, n)), [i > n // 2 for i in range(n)]) for n in (5, 9, 14, 30)]
PAIRS = [
    Example(f"p/{n}", Tree(ids(n, n), [ids(3, 50 + n), ids(n + 1, 90 + n)]), [False] * n + [True] * (n + 4))
    for n in (1, 4, 11, 20)
]
ROWS = DIALOGUES + PAIRS


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("precision", ["float32", "bf16_autocast"])
def test_values_and_gradients_are_those_of_the_masked_square(
    tiny_model_folder: Path, precision: Any, multiple: int
) -> None:
    plain, model = load(tiny_model_folder).model, load(tiny_model_folder).model
    policy = Policy(model, precision=precision)
    close = {"atol": 1e-5, "rtol": 1e-5} if precision == "float32" else {"atol": 0.05, "rtol": 0.05}
    for row in pack(ROWS, range(len(ROWS)), width=90, pad_id=0, multiple=multiple):
        ours, theirs = policy(row), row_logprobs(plain, row, bf16=precision != "float32")
        torch.testing.assert_close(ours, theirs, **close)
        ours.square().sum().backward()
        theirs.square().sum().backward()
    a, b = gradients(model), gradients(plain)
    for name in a:
        scale = float(b[name].abs().max())
        assert float((a[name] - b[name]).abs().max()) <= close["atol"] * max(scale, 1e-3), name


def test_separate_rows_agree_to_1e_5(tiny_model_folder: Path) -> None:
    for backend in ("sdpa", "flex"):
        model = load(tiny_model_folder).model
        for rows in (DIALOGUES, PAIRS):
            assert prove_exact(Policy(model, attention=backend), model, rows, where="tiny") < 1e-5  # type: ignore[arg-type]


def test_recomputing_layers_changes_no_gradient(tiny_model_folder: Path) -> None:
    found = []
    for above in (None, 0):
        model = load(tiny_model_folder).model
        policy = Policy(model, precision="bf16_autocast", recompute_above=above)
        prepare(model)
        forwards: list[int] = []
        model.base_model.layers[0].input_layernorm.register_forward_hook(lambda *_, f=forwards: f.append(1))
        rows = pack(ROWS, range(len(ROWS)), 64, 0)
        for row in rows:
            policy(row).sum().backward()
        found.append((len(forwards) / len(rows), gradients(model)))
    assert [passes for passes, _ in found] == [1, 2]
    for name, grad in found[0][1].items():
        assert torch.equal(grad, found[1][1][name]), name


def windowed(folder: Path, window: int) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    config = load(folder).model.config.to_dict()
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    torch.manual_seed(1)
    config = MistralConfig(
        **{k: config[k] for k in keep}, num_key_value_heads=2, sliding_window=window, max_position_embeddings=512
    )
    return MistralForCausalLM(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_a_sliding_window_is_kept(tiny_model_folder: Path, backend: Any) -> None:
    for rows in (DIALOGUES[2:], PAIRS[2:]):
        model = windowed(tiny_model_folder, 6)
        assert prove_exact(Policy(model, attention=backend), model, rows, where="windowed") < 1e-5
        whole = windowed(tiny_model_folder, 600)
        (row,) = pack(rows, range(len(rows)), 200, 0)
        assert float((Policy(model)(row) - Policy(whole)(row)).abs().max()) > 1e-3


def test_the_model_still_generates_under_its_own_mask(tiny_model_folder: Path) -> None:
    plain, model = load(tiny_model_folder).model, load(tiny_model_folder).model
    Policy(model)
    batch = torch.tensor([ids(7, 1), ids(7, 2)])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    with torch.no_grad():
        ours, theirs = (m(input_ids=batch, attention_mask=mask).logits for m in (model, plain))
        torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()])
        a, b = (m.generate(batch[1:], max_new_tokens=5, do_sample=False) for m in (model, plain))
    assert torch.equal(a, b)


def test_a_layer_that_drops_the_layout_is_refused(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_model_folder).model
    policy = Policy(model)
    layer = model.base_model.layers[0]
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *a, packed=None, **kw: forward(*a, **kw))
    with pytest.raises(AloeError, match="hand on how its row is packed"):
        policy(pack(DIALOGUES, range(4), 100, 0)[0])


def test_flash_is_called_with_each_segment(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel needs a GPU; a stand-in with its signature computes each segment alone."""
    from torch.nn.attention import varlen
    from torch.nn.functional import scaled_dot_product_attention

    def by_ends(q: Any, k: Any, v: Any, ends: Any, same: Any, most: int, _: int, **options: Any) -> torch.Tensor:
        assert ends is same
        assert ends.dtype == torch.int32
        assert most == int(ends.diff().max())
        assert options["window_size"] == (-1, 0)
        found = []
        for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            part = (t[start:end].transpose(0, 1)[None] for t in (q, k, v))
            found.append(
                scaled_dot_product_attention(
                    *part, is_causal=True, scale=options["scale"], enable_gqa=options["enable_gqa"]
                )[0].transpose(0, 1)
            )
        return torch.cat(found)

    monkeypatch.setattr(varlen, "varlen_attn", by_ends)
    model = load(tiny_model_folder).model
    assert prove_exact(Policy(model, attention="flash"), model, DIALOGUES, where="tiny") < 1e-5
    with pytest.raises(AloeError, match="can't share a prompt"):
        Policy(model, attention="flash")(pack(PAIRS, range(4), 200, 0)[0])


def test_backends_by_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick(cpu, branches=True, bf16=True) == "sdpa"
    assert pick(gpu, branches=True, bf16=True) == pick(gpu, branches=False, bf16=False) == "flex"
    assert pick(gpu, branches=False, bf16=True) == "flash"
    assert pick(gpu, branches=True, bf16=False, asked="sdpa") == "sdpa"
    with pytest.raises(AloeError, match="flex attention doesn't train on cpu"):
        pick(cpu, branches=True, bf16=False, asked="flex")
    for device, branches, bf16 in ((cpu, False, True), (gpu, True, True), (gpu, False, False)):
        with pytest.raises(AloeError, match="flash attention"):
            pick(device, branches=branches, bf16=bf16, asked="flash")


trees = st.lists(
    st.builds(
        Tree,
        st.lists(st.integers(0, 9), min_size=1, max_size=5),
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(trees=trees, padding=st.integers(0, 3))
def test_segments_see_what_the_mask_allows(trees: list[Tree], padding: int) -> None:
    layout = lay_out(trees, sum(map(len, trees)) + padding, 0)
    found = segments(layout)
    assert sum(s.length for s in found) == len(layout.ids)
    allowed = torch.zeros(len(layout.ids), len(layout.ids), dtype=torch.bool)
    starts = [0]
    for segment in found:
        starts.append(starts[-1] + segment.length)
    for at, segment in enumerate(found):
        rows = slice(starts[at], starts[at + 1])
        allowed[rows, rows] = torch.ones(segment.length, segment.length, dtype=torch.bool).tril()
        if segment.prefix >= 0:
            allowed[rows, starts[segment.prefix] : starts[segment.prefix + 1]] = True
    used = len(layout.ids) - padding  # what padding sees is nobody's concern
    assert torch.equal(allowed[:used], torch.from_numpy(layout.mask())[:used])


def test_masks_are_made_once_a_row(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(attention, "_mask", lambda packed, at, keys, window: made.append(at) or mask(packed, at, keys))

    def mask(packed: Packed, at: int, keys: int) -> torch.Tensor:
        length = packed.segments[at].length
        return torch.ones(length, keys, dtype=torch.bool).tril(keys - length)

    row = pack(PAIRS[:1], [0], 100, 0)[0]
    assert segments(row.layout) == [Segment(1, -1), Segment(3, 0), Segment(2, 0)]
    Policy(load(tiny_model_folder).model)(row)
    assert set(made) == {1, 2}  # prefixes are causal without one
