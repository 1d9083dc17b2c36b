"""Naming a server in a recipe: where it may stand, what of it is remembered, and that plans don't contact it."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pydantic import Field
from toys import TOYS

from aloe import cli
from aloe import recipe as recipe_module
from aloe.contract import Context, Kind, ModelRef, Ref, RowsRef, Step
from aloe.errors import AloeError
from aloe.generate.engine import Request
from aloe.recipe import Recipe
from aloe.run.execute import run_recipe
from aloe.run.inputs import open_resource
from aloe.run.plan import plan
from aloe.run.progress import Console
from aloe.run.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "generate"))
from fault_server import FaultServer

MODEL = Ref(("model",), "model")
QUIET = Console(quiet=True)


class Ask(Step):
    """Asks a model one question."""

    verb: ClassVar[str] = "ask"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "dialogues"
    writer: ModelRef
    judges: list[ModelRef] = Field(default_factory=list)
    rows: RowsRef | None = None

    def run(self, ctx: Context) -> dict[str, Any]:
        said = {}
        for name in (self.writer, *self.judges):
            engine = ctx.engine(name)
            [reply] = engine.generate([Request(key="k", messages=({"role": "user", "content": "hello"},))])
            assert reply.error is None
            ctx.count_tokens(prompt=reply.prompt_tokens)
            said[engine.name] = reply.text
        (ctx.out / "rows.txt").write_text(json.dumps(said))
        return {"digest": ctx.digest(self.writer), "licence": ctx.licence_of(self.writer)}


@pytest.fixture(autouse=True)
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_module, "VERBS", {**TOYS, "ask": Ask})


def recipe(writer: str, *urls: str, more: str = "", name: str = "big") -> dict[str, Any]:
    text = f"""\
family: toy
licence: cc-by-nc-4.0
servers:
  {name}: {{endpoints: [{", ".join(urls) or "http://127.0.0.1:9/v1"}], model: m, licence: llama3.1{more}}}
steps:
  said:
    ask: {{writer: "{writer}"}}
"""
    return yaml.safe_load(text)  # type: ignore[no-any-return]


def refuse(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("family: toy\nlicence: cc-by-nc-4.0\n" + text)
    with pytest.raises(AloeError) as caught:
        Recipe.load(path)
    return str(caught.value)


SERVER = "servers:\n  big: {endpoints: [http://127.0.0.1:9/v1], model: m}\n"


def test_a_named_server_writes(tmp_path: Path) -> None:
    with FaultServer() as server:
        parsed = Recipe.parse(recipe("big", server.url))
        result = run_recipe(parsed, out=tmp_path, console=QUIET)
        assert run_recipe(parsed, out=tmp_path, console=QUIET).made == []
        assert len(server.chats) == 1
    found = result.artifacts["said"]
    assert json.loads((found.path / "rows.txt").read_text()) == {"big": "echo hello"}
    entry = found.manifest["inputs"]["big"]
    assert entry["origin"] == "server model m, as stated by the server, not verified"
    assert (entry["licence"], entry["digest"]) == ("llama3.1", found.manifest["summary"]["digest"])
    assert found.manifest["tokens"] == {"prompt": 7}


def test_an_address_works_anywhere_a_server_may_stand(tmp_path: Path) -> None:
    with FaultServer() as server:
        raw = {"family": "toy", "licence": "mit", "steps": {"said": {"ask": {"writer": f"{server.url}#m"}}}}
        result = run_recipe(Recipe.parse(raw), out=tmp_path, console=QUIET)
    found = result.artifacts["said"]
    assert json.loads((found.path / "rows.txt").read_text()) == {"m": "echo hello"}  # named without the address
    assert found.manifest["inputs"][f"{server.url}#m"]["licence"] == "unknown"


def test_where_a_server_answers_changes_nothing(tmp_path: Path) -> None:
    """The same model elsewhere, faster, with a key: what was made stays fresh; another model doesn't."""
    with FaultServer() as server:
        run_recipe(Recipe.parse(recipe("big", server.url)), out=tmp_path, console=QUIET)
    store = Store(tmp_path / "toy")

    def state(raw: dict[str, Any]) -> str:
        return plan(Recipe.parse(raw), store)[0].state

    assert (
        state(recipe("big", "http://10.0.0.1/v1", "http://10.0.0.2/v1", more=", key_env: K, timeout_s: 9")) == "fresh"
    )
    assert state(recipe("big", more=", max_concurrency: 2, give_up_s: 3")) == "fresh"
    assert state(recipe("big", more=", revision: v2")) == "runs"
    other = recipe("big")
    other["servers"]["big"]["model"] = "n"
    assert state(other) == "runs"


def test_an_address_that_moves_changes_nothing_either(tmp_path: Path) -> None:
    def at(url: str) -> Recipe:
        return Recipe.parse({"family": "toy", "licence": "mit", "steps": {"said": {"ask": {"writer": f"{url}#m"}}}})

    with FaultServer() as server:
        run_recipe(at(server.url), out=tmp_path, console=QUIET)
    assert plan(at("http://elsewhere:1/v1"), Store(tmp_path / "toy"))[0].state == "fresh"


def test_replies_are_remembered_over_processes_and_addresses(tmp_path: Path) -> None:
    """A server that has moved, then one that is away: a step that is made anew asks nothing again."""
    with FaultServer() as first, FaultServer() as second:
        run_recipe(Recipe.parse(recipe("big", first.url)), out=tmp_path, console=QUIET)
        run_recipe(Recipe.parse(recipe("big", second.url)), out=tmp_path, console=QUIET, redo=["said"])
        assert (len(first.chats), len(second.calls)) == (1, 0)
    run_recipe(Recipe.parse(recipe("big", first.url)), out=tmp_path, console=QUIET, redo=["said"])


def test_several_servers_are_kept_side_by_side(tmp_path: Path) -> None:
    with FaultServer() as one, FaultServer(models=("n",)) as two:
        raw = recipe("big", one.url)
        raw["servers"]["judge"] = {"endpoints": [two.url], "model": "n"}
        raw["steps"]["said"]["ask"]["judges"] = ["judge", f"{one.url}#m"]
        result = run_recipe(Recipe.parse(raw), out=tmp_path, console=QUIET)
    assert set(json.loads((result.artifacts["said"].path / "rows.txt").read_text())) == {"big", "judge", "m"}


def test_a_plan_contacts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_(*_: object, **__: object) -> None:
        raise AssertionError("a plan opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse_)
    assert plan(Recipe.parse(recipe("big", "http://10.1.2.3/v1")), Store(tmp_path))[0].state == "runs"


def test_a_configured_server_that_is_away_is_an_error(tmp_path: Path) -> None:
    with FaultServer() as server:
        raw = recipe("big", server.url, more=", give_up_s: 0.2")
    with pytest.raises(AloeError, match=r"no endpoint could be reached") as caught:
        run_recipe(Recipe.parse(raw), out=tmp_path, console=QUIET)
    assert server.url in str(caught.value)


def test_the_recipe_is_written_out_with_the_servers_it_asks() -> None:
    raw = recipe("big", more=", key_env: MY_KEY")
    raw["servers"]["unused"] = {"endpoints": ["http://secret-host/v1"], "model": "x"}
    parsed = Recipe.parse(raw)
    text = parsed.dump(parsed.order)
    assert "secret-host" not in text
    assert Recipe.parse(yaml.safe_load(text)).dump(["said"]) == text
    plain = {k: v for k, v in recipe("smollm2-135m-instruct").items() if k != "servers"}
    assert "servers" not in Recipe.parse(plain).dump(["said"])


@pytest.mark.parametrize("value", ["big", "'http://127.0.0.1:9/v1#m'"])
def test_a_server_has_no_weights_to_train(tmp_path: Path, value: str) -> None:
    text = refuse(
        tmp_path,
        SERVER
        + f"steps:\n  rows:\n    source: {{}}\n  tuned:\n    train:\n      data: {{rows: 1.0}}\n      start: {value}\n",
    )
    assert "recipe.yaml:11" in text
    assert "tuned.start takes weights" in text
    assert "is a server" in text


def test_a_server_is_no_rows(tmp_path: Path) -> None:
    text = refuse(tmp_path, SERVER + "steps:\n  said:\n    ask: {writer: big, rows: big}\n")
    assert "said.rows takes rows" in text


def test_real_verbs_refuse_a_server_where_they_need_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from aloe.steps import VERBS

    monkeypatch.setattr(recipe_module, "VERBS", VERBS)
    bodies: dict[str, dict[str, Any]] = {
        "sft": {"base": "big", "data": "starter/general"},
        "dpo": {"model": "big", "pairs": "starter/preferences"},
        "merge": {"method": "linear", "base": "big", "models": {"big": {}}},
    }
    for verb, body in bodies.items():
        raw = {**recipe("big"), "steps": {"made": {verb: body}}}
        with pytest.raises(AloeError, match="takes weights"):
            Recipe.parse(raw)
    asks = {"writer": "big", "questions": "starter/medical_mcq"}
    written = Recipe.parse({**recipe("big"), "steps": {"made": {"synthesize": asks}}})
    [(_, _, mark)] = [found for found in written.outside["made"] if found[1] == "big"]
    assert mark.served.model == "m"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("servers:\n  big: {endpoints: [http://a/v1], model: m, timeot_s: 9}", "did you mean 'timeout_s'"),
        ("servers:\n  big: {endpoints: [http://a/v1]}", "servers.big lacks 'model'"),
        ("servers:\n  big: {endpoints: [a], model: m}", "is no endpoint"),
        ("servers:\n  big: {endpoints: [http://a/v1], model: m, timeout_s: 0}", "recipe.yaml:4"),
        ("servers:\n  said: {endpoints: [http://a/v1], model: m}", "names a server and a step"),
        ("servers: [x]", "map of named servers"),
        ("servers:\n  1big: {endpoints: [http://a/v1], model: m}", "must be a word"),
        ("servers:\n  big:\n    endpoints: [http://a/v1]\n    model: m\n    key_env: sk-123", "recipe.yaml:7"),
    ],
)
def test_mistakes_in_an_entry_name_their_line(tmp_path: Path, text: str, expected: str) -> None:
    said = refuse(tmp_path, f"{text}\nsteps:\n  said:\n    ask: {{writer: big}}\n")
    assert expected in said
    assert "recipe.yaml:" in said
    assert "sk-123" not in said


def test_an_override_reaches_a_server(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"family: toy\nlicence: cc-by-nc-4.0\n{SERVER}steps:\n  said:\n    ask: {{writer: big}}\n")
    changed = Recipe.load(path, ["servers.big.timeout_s=9", "servers.big.endpoints=[http://other/v1]"])
    assert changed.head.servers["big"].timeout_s == 9
    assert changed.head.servers["big"].endpoints == ["http://other/v1"]


def test_a_template_is_part_of_the_digest_and_fetched_when_the_step_runs(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    raw = recipe("big", more=f", template: {tiny_model_folder}")
    parsed = Recipe.parse(raw)
    [(_, ref, mark)] = parsed.outside["said"]
    resource = open_resource(ref, mark, None)
    assert resource.digest is not None
    assert resource.digest not in (parsed.head.servers["big"].digest(), None)
    assert resource.fetch().digest == resource.digest
    assert resource.fetch().path == tiny_model_folder
    with pytest.raises(AloeError, match="no model 'nowhere'"):
        open_resource("big", Ref(("model",), "model", mark.served.model_copy(update={"template": "nowhere"})), None)


def test_a_verb_alone_takes_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`aloe synthesize writer=http://...#m`, as a user types it: the reply is judged like any other."""
    from aloe.steps import VERBS

    monkeypatch.setattr(recipe_module, "VERBS", VERBS)
    monkeypatch.chdir(tmp_path)
    with FaultServer() as server:
        arguments = ["questions=starter/medical_mcq", "limit=2", "tries=1", "allow_empty=true", "max_new_tokens=8"]
        monkeypatch.setattr(
            sys, "argv", ["aloe", "synthesize", f"writer={server.url}#m", *arguments, "--out", "out", "--quiet"]
        )
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0  # type: ignore[assignment]
    assert code == 0, capsys.readouterr().err
    assert len(server.chats) == 2
    [text] = Path("out").glob("*/synthesize/manifest.json")
    manifest = json.loads(text.read_text())
    assert manifest["inputs"][f"{server.url}#m"]["origin"].startswith("server model m")
