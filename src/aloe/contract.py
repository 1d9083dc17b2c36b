"""What a step is and what it may touch: the contract between the verbs and the machinery that runs them.

A step is a frozen pydantic model that does nothing when constructed. A parameter annotated with a `Ref` may name
another step of the recipe (an edge of the graph) or a resource outside it (a packaged model, a folder, a file,
a hub id, `starter/<name>`, a server). `run(ctx)` reads inputs through `ctx`, writes only under `ctx.out`, and returns a
JSON-able summary of what it made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["questions", "dialogues", "preferences", "attacks", "model", "scores", "red_team", "release"]


@dataclass(frozen=True)
class Ref:
    """Marks a parameter whose value names an input. `kinds` are the artifact kinds it accepts; `resource` says what
    a value that names no step is: a `model` (packaged name, folder, GGUF file, hub id; a server where the step only
    asks it) or `rows` (starter set, file, datasets folder, hub id); None (evidence) stands for steps alone. `served`
    is what the recipe says of the server that the value names (an `aloe.generate.server_spec.ServerSpec`)."""

    kinds: tuple[Kind, ...]
    resource: Literal["model", "rows"] | None
    served: Any = None
    adapters: bool = False  # whether a folder may be an adapter over another model of the step


ModelRef = Annotated[str, Ref(("model", "release"), "model")]
WeightsRef = Annotated[str, Ref(("model", "release"), "model", adapters=True)]
QuestionsRef = Annotated[str, Ref(("questions", "dialogues"), "rows")]
DialoguesRef = Annotated[str, Ref(("dialogues",), "rows")]
RowsRef = Annotated[str, Ref(("questions", "dialogues"), "rows")]
PreferencesRef = Annotated[str, Ref(("preferences",), "rows")]
AttacksRef = Annotated[str, Ref(("attacks",), "rows")]
EvidenceRef = Annotated[
    str, Ref(("questions", "dialogues", "preferences", "attacks", "model", "scores", "red_team"), None)
]


class Params(BaseModel):
    """Base of nested parameter groups: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hardware(Params):
    """How training uses the machine it runs on. None of it changes a result beyond rounding, so none of it counts for
    freshness."""

    attention: Literal["auto", "sdpa", "flex", "flash"] = "auto"  # backend that keeps packed rows apart
    row_tokens: int | None = Field(default=None, ge=64)  # of a packed row; none: by the device
    recompute: Literal["auto", "always", "never"] = "auto"  # layers in the backward pass, rather than keep them
    compile: bool = False  # layers by torch.compile
    memory: Literal["refuse", "warn"] = "refuse"  # when the memory plan doesn't fit
    checkpoint_minutes: float = Field(default=15, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)  # instead of by time
    keep_checkpoints: int = Field(default=2, ge=1)
    track: Literal["trackio"] | None = None  # metrics.jsonl is written in any case


class Step(BaseModel):
    """Base of every verb. Subclasses set `verb`, `version` and `makes`, declare typed parameters and `run`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    verb: ClassVar[str]
    version: ClassVar[int]
    makes: ClassVar[Kind]
    # Which of the recipe's own fields the output depends on; they enter the fingerprint beside the parameters.
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed",)
    parallel: ClassVar[bool] = False  # whether several processes may share it, as `launch` says
    spread: ClassVar[bool] = False  # whether further jobs may work on its rows (`launch.slurm.workers`)

    @classmethod
    def needs_weights(cls) -> bool:
        """Whether a `ModelRef` here must lead to weights: what makes a model out of one can't do so over a wire."""
        return cls.makes in ("model", "release")

    def run(self, ctx: Context) -> dict[str, Any]:
        """Do the work; write under `ctx.out` only; return the summary that goes into the manifest."""
        raise TypeError(f"{type(self).__name__} declares no run()")


class Progress(Protocol):
    """A bar or plain lines; `advance` by units done, extra figures (loss, tokens/s) by keyword."""

    def advance(self, count: int = 1, **figures: float | str) -> None: ...


class Context(Protocol):
    """All that a running step may touch."""

    out: Path
    seed: int
    family: str
    name: str
    licence: str
    recipe_text: str  # this step and all it depends on, as YAML with every default
    cache: Path  # request ledgers and reference caches: content-addressed, never part of an artifact
    hardware: Hardware
    precision: str  # of weights and arithmetic where models answer or are scored: the recipe's engine.precision

    def path(self, ref: str) -> Path:
        """Folder (artifact, model) or file (rows) behind a `Ref` value. Verified before it is returned."""
        ...

    def digest(self, ref: str) -> str:
        """Content digest of that input."""
        ...

    def licence_of(self, ref: str) -> str:
        """Stated licence of an input from outside: `unknown` where none is stated, and for steps, whose rows say."""
        ...

    def manifest(self, ref: str) -> dict[str, Any] | None:
        """The manifest of an input that is an artifact; None for outside resources."""
        ...

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Manifests of every step this one depends on, directly or not, by step name."""
        ...

    def folder(self, name: str) -> Path:
        """Artifact folder of any step listed by `manifests()`."""
        ...

    def engine(self, ref: str) -> Any:
        """A generation engine (aloe.generate.engine.Engine) over a model input, with the request ledger behind it.
        The last local one asked for stays loaded; asking for another releases it. A server costs nothing to keep."""
        ...

    def ledger(self, stage: str, *, rows_in: int, kept: int, dropped: dict[str, int]) -> None:
        """Record a stage's row counts; they must add up, and no row may vanish."""
        ...

    def done_with(self, folder: Path) -> None:
        """Have a folder (under `cache`) removed once the artifact is complete, and not before."""
        ...

    def progress(self, label: str, total: int, unit: str) -> AbstractContextManager[Progress]: ...

    def log(self, message: str) -> None: ...

    def count_tokens(self, **tokens: int) -> None:
        """Add to the manifest's token counters (trained, prompt, completion)."""
        ...


def references(step: Step) -> Iterator[tuple[str, str, Ref]]:
    """Yield (field path, value, Ref) for every reference inside a step's parameters."""
    yield from _walk(step, "")


def _walk(model: BaseModel, prefix: str) -> Iterator[tuple[str, str, Ref]]:
    hints = _hints(type(model))
    for name in type(model).model_fields:
        yield from _values(getattr(model, name), hints[name], f"{prefix}{name}")


def _hints(cls: type[BaseModel]) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(cls, include_extras=True)


def _values(value: Any, hint: Any, path: str) -> Iterator[tuple[str, str, Ref]]:
    from typing import get_args, get_origin

    if value is None:
        return
    if isinstance(value, BaseModel):
        yield from _walk(value, path + ".")
        return
    if get_origin(hint) is Annotated:
        ref = next((m for m in hint.__metadata__ if isinstance(m, Ref)), None)
        if ref is not None and isinstance(value, str):
            yield path, value, ref
            return
        yield from _values(value, get_args(hint)[0], path)
        return
    args = get_args(hint)
    if isinstance(value, dict):
        key_hint, value_hint = args if len(args) == 2 else (str, Any)
        for key, item in value.items():
            yield from _values(key, key_hint, f"{path}.{key}")
            yield from _values(item, value_hint, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _values(item, args[0] if args else Any, f"{path}[{i}]")
    else:  # a union such as ModelRef | None: try its members
        for arg in args:
            if get_origin(arg) is Annotated:
                yield from _values(value, arg, path)
