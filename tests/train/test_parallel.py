"""Teams of processes: two train what one does, checkpoints pass between them, and rows are dealt fairly."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from aloe.errors import AloeError
from aloe.train.checkpoint_files import read_index, reader
from aloe.train.parallel import STRATEGY, Team, clip_gradients, cost, deal, named, trained

sys.path.insert(0, str(Path(__file__).parent))
import team_script as script

SCRIPT = Path(script.__file__)
NO_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (extra `deepspeed`)"
)
SEVERAL = ["ddp", "fsdp2", pytest.param("zero3", marks=NO_DEEPSPEED)]
CLOSE = 1e-5  # relative, of a whole tensor's norm: two processes add the same numbers in another order


def start(rank: int, port: int, plan: Path) -> subprocess.Popen[str]:
    """A process of a team of two, with what torchrun would have set."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    environment = os.environ | {k: str(v) for k, v in here.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(plan)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def run_two(plan: Path) -> None:
    """Run the script in two processes, gloo between them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [start(rank, port, plan) for rank in range(2)]
    try:
        said = [process.communicate(timeout=300)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [p.returncode for p in both] == [0, 0], "\n---\n".join(said)


class One:
    """The same run in this process, through the same calls."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.team = Team(device=torch.device("cpu"))
        self.gradients: dict[str, torch.Tensor] = {}
        policy, optimizer = self.team.prepare(script.load(model), script.adamw)
        look = partial(script.gradients, self.team, policy, self.gradients)
        self.curve = script.train(self.team, policy, optimizer, 0, script.HALF, look)
        self.checkpoint = folder / "one"
        script.write(self.team, self.checkpoint, policy, optimizer)
        self.half = {n: p.detach().clone() for n, p in named(policy)}
        self.curve += script.train(self.team, policy, optimizer, script.HALF, script.STEPS)
        self.weights = dict(self.team.full_parameters(policy))

    def goes_on_from(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        """Weights after the second half of the run from somebody's checkpoint."""
        policy, optimizer = self.team.prepare(script.load(self.model), script.adamw)
        script.restore(self.team, checkpoint, policy, optimizer)
        script.train(self.team, policy, optimizer, script.HALF, script.STEPS)
        return dict(self.team.full_parameters(policy))


@pytest.fixture(scope="module")
def one(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> One:
    torch.set_num_threads(1)
    return One(tiny_model_folder, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(one: One, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `ddp`, `fsdp2` (and `zero3`) with what two processes made; both strategies in one start."""
    out = tmp_path_factory.mktemp("two")
    strategies = ["ddp", "fsdp2"] + (["zero3"] if importlib.util.find_spec("deepspeed") else [])
    plan = {"strategies": strategies, "model": str(one.model), "one": str(one.checkpoint), "out": str(out)}
    (out / "plan.json").write_text(json.dumps(plan))
    run_two(out / "plan.json")
    return out


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of a tensor, by norm."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) for n in ours)


# -- two processes and one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", SEVERAL)
def test_two_processes_train_what_one_does(one: One, two: Path, strategy: str) -> None:
    folder = two / strategy
    curves = json.loads((folder / "curves.json").read_text())
    assert distance(load_file(folder / "gradients.safetensors"), one.gradients) < CLOSE
    weights = load_file(folder / "weights.safetensors")
    assert distance(weights, one.weights) < CLOSE
    start_ = dict(named(script.load(one.model)))
    assert distance(weights, {n: p.detach() for n, p in start_.items()}) > 1e-3  # something was learnt
    for ours, theirs in zip(curves["curve"], one.curve, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=CLOSE)
        assert ours["norm"] == pytest.approx(theirs["norm"], rel=CLOSE)
        assert theirs["norm"] > script.CLIP
        assert ours["rows"] == -(-theirs["rows"] // 2)
    # Some step has an odd number of rows, so that a filler was run.
    assert any(c["rows"] % 2 for c in one.curve)


@pytest.mark.parametrize("strategy", SEVERAL)
def test_names_are_the_models_own_and_tied_weights_come_once(one: One, two: Path, strategy: str) -> None:
    names = load_file(two / strategy / "weights.safetensors").keys()
    assert names == {n for n, _ in script.load(one.model).model.named_parameters()}
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize("strategy", SEVERAL)
def test_two_go_on_from_the_checkpoint_of_one(one: One, two: Path, strategy: str) -> None:
    assert distance(load_file(two / strategy / "continued.safetensors"), one.weights) < CLOSE
    resumed = json.loads((two / strategy / "curves.json").read_text())["resumed"]
    for ours, theirs in zip(resumed, one.curve[script.HALF :], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=CLOSE)


@pytest.mark.parametrize("strategy", SEVERAL)
def test_one_goes_on_from_the_checkpoint_of_two(one: One, two: Path, strategy: str) -> None:
    assert distance(one.goes_on_from(two / strategy / "checkpoint"), one.weights) < CLOSE


@pytest.mark.parametrize("strategy", SEVERAL)
def test_a_checkpoint_of_two_holds_what_that_of_one_holds(one: One, two: Path, strategy: str) -> None:
    ours, theirs = (read_index(f)["tensors"] for f in (two / strategy / "checkpoint", one.checkpoint))
    assert {n: t["shape"] for n, t in ours.items()} == {n: t["shape"] for n, t in theirs.items()}
    read, expected = reader(two / strategy / "checkpoint", ours), reader(one.checkpoint, theirs)
    values = {n: read(n, 0, None) for n in ours}
    assert distance(values, {n: expected(n, 0, None) for n in theirs}) < CLOSE
    assert all(float(v) == script.HALF for n, v in values.items() if n.startswith("step/"))
    if strategy == "fsdp2":  # each process wrote its own rows
        pieces = ours["param/model.embed_tokens.weight"]["pieces"]
        rows = ours["param/model.embed_tokens.weight"]["shape"][0]
        assert sorted((p[0], p[1]) for p in pieces) == [(0, -(-rows // 2)), (-(-rows // 2), rows // 2)]


@pytest.mark.parametrize("strategy", SEVERAL)
def test_frozen_weights_stay_and_the_others_train_as_alone(one: One, two: Path, strategy: str) -> None:
    policy, optimizer = one.team.prepare(script.load(one.model, frozen="mlp"), script.adamw)
    before = {n: p.detach().clone() for n, p in named(policy)}
    curve = script.train(one.team, policy, optimizer, 0, script.HALF)
    theirs = load_file(two / strategy / "partial.safetensors")
    assert distance(theirs, dict(one.team.full_parameters(policy))) < CLOSE
    assert all(torch.equal(theirs[n], before[n]) for n in theirs if "mlp" in n)
    ours = json.loads((two / strategy / "curves.json").read_text())["partial"]
    assert ours[-1]["norm"] == pytest.approx(curve[-1]["norm"], rel=CLOSE)


# -- one process ------------------------------------------------------------------------------------------------------


def test_a_resume_in_one_process_is_exact(one: One) -> None:
    again = one.goes_on_from(one.checkpoint)
    assert all(torch.equal(again[n], one.weights[n]) for n in one.weights)


def test_nothing_was_learnt_yet(one: One) -> None:
    """Before the first step there are no moments, and reading that back leaves none."""
    policy, optimizer = one.team.prepare(script.load(one.model), script.adamw)
    shards = {s.name: s for s in one.team.shards(policy, optimizer)}
    assert {n.split("/")[0] for n in shards} == {"param", "step"}
    fresh, other = one.team.prepare(script.load(one.model), script.adamw)
    next(iter(trained(fresh)))[1].data.zero_()
    one.team.restore(fresh, other, lambda name, first, end: shards[name].tensor[first:end])
    assert not other.state
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(named(policy), named(fresh), strict=True))


def test_one_process_keeps_rows_in_their_order(one: One) -> None:
    rows: Any = script.pack(script.examples(7), range(7), script.WIDTH, pad_id=0)
    assert one.team.share(rows) == [(row, 1.0) for row in rows]
    assert one.team.sum({"a": 0.1}) == {"a": 0.1}


# -- joining ----------------------------------------------------------------------------------------------------------


def test_joining_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", STRATEGY):
        monkeypatch.delenv(name, raising=False)
    team = Team.join()
    assert (team.strategy, team.rank, team.world, team.is_main) == ("single", 0, 1, True)
    with pytest.raises(AloeError, match="torchrun"):
        Team.join("ddp")
    with pytest.raises(AloeError, match="unknown strategy 'ddp2'"):
        Team.join("ddp2")  # type: ignore[arg-type]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AloeError, match="2 processes were started without a strategy"):
        Team.join()


def test_zero3_without_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(STRATEGY, "zero3")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(AloeError, match=r"pip install .*deepspeed"):
        Team.join()


# -- dealing out rows -------------------------------------------------------------------------------------------------

COSTS = st.lists(st.integers(1, 20_000).map(cost), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(COSTS, st.integers(1, 9))
def test_every_row_counts_once_and_all_ranks_run_as_many(costs: list[int], ranks: int) -> None:
    dealt = deal(costs, ranks)
    assert sorted(i for part in dealt for i, factor in part if factor) == list(range(len(costs)))
    assert {factor for part in dealt for _, factor in part} <= {0.0, 1.0}
    assert {len(part) for part in dealt} == {-(-len(costs) // ranks)}
    assert deal(costs, ranks) == dealt


@settings(max_examples=200, deadline=None)
@given(COSTS, st.integers(1, 9))
def test_no_rank_has_more_work_than_the_longest_row_beyond_another(costs: list[int], ranks: int) -> None:
    loads = [sum(costs[i] for i, _ in part) for part in deal(costs, ranks)]
    assert max(loads) - min(loads) <= max(costs)
    # Each round waits for its longest row: the rounds together are no longer than any other split into rounds.
    rounds = zip(*deal(costs, ranks), strict=True)
    assert sum(max(costs[i] for i, _ in r) for r in rounds) == sum(sorted(costs, reverse=True)[::ranks])


@settings(max_examples=50, deadline=None)
@given(COSTS, st.integers(1, 9), st.randoms())
def test_loads_dont_depend_on_the_order_of_rows(costs: list[int], ranks: int, random: Any) -> None:
    mixed = random.sample(costs, len(costs))
    loads = [[sorted(c[i] for i, _ in part) for part in deal(c, ranks)] for c in (costs, mixed)]
    assert loads[0] == loads[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_gradients_is_float32_whatever_their_type(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.zeros(n, 7, dtype=dtype)) for n in (3, 50)]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
    exact = torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None]).norm()
    norm = clip_gradients(parameters, 0.5)
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(float(exact), rel=1e-6)
    left = torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None]).norm()
    assert float(left) == pytest.approx(0.5, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)
