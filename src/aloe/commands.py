"""The commands that live in modules of their own, by dotted path: imported when they are called, not when `aloe --help`
lists them. A module that is missing or broken fails the command that needs it and no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command


@dataclass(frozen=True)
class Wire:
    """A command by name of its module and function (`path`, as `module:function`), or a group of such `commands`.

    `about` is the line in the list of commands, written here so that the list needs no import; it is the first line of
    the function's docstring. `cls` names a command class where typer's own doesn't do.
    """

    about: str
    path: str = ""
    cls: str = ""
    commands: Mapping[str, Wire] = field(default_factory=dict)

    def load(self, name: str) -> Any:
        """The command as typer runs it.

        Raises:
            ImportError, AttributeError: the module or the function is not there.
        """
        if self.commands:
            return WiredGroup(name=name, help=self.about, wires=self.commands, no_args_is_help=True)
        holder = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        holder.command(name, cls=fetch(self.cls) if self.cls else None)(fetch(self.path))
        return get_command(holder)


def fetch(path: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


WIRED: dict[str, Wire] = {
    "ask": Wire(
        "Ask a model one question and print its answer.", "aloe.ask_command:ask", "aloe.ask_command:AskCommand"
    ),
    "chat": Wire("Talk with a model in the terminal.", "aloe.chat_command:chat"),
    "compare": Wire(
        "Compare models on the same items: differences with intervals, tests, and a forest plot.",
        "aloe.compare_command:compare",
    ),
    "benchmarks": Wire(
        "Benchmarks: what is packaged, what one asks, whether a file of your own can be used.",
        commands={
            "list": Wire(
                "List the packaged benchmarks: rows, protocol, licence, whether their data is pinned.",
                "aloe.benchmarks_command:list_benchmarks",
            ),
            "show": Wire(
                "Print a benchmark's file and one item as a model is asked it.", "aloe.benchmarks_command:show"
            ),
            "check": Wire(
                "Check a benchmark's file and all its rows; print counts, answer letters and repeats.",
                "aloe.benchmarks_command:check",
            ),
        },
    ),
    "risk": Wire(
        "The risk register of a model: levels computed from its red team and scores, with links to the rows.",
        "aloe.risk_command:risk",
    ),
    "gate": Wire("Hold a model's results against limits; exit code 3 when one is missed.", "aloe.risk_command:gate"),
    "licences": Wire(
        "Licences: what is known of them, and whether a release may be made from several.",
        commands={
            "list": Wire("List the licences with their duties.", "aloe.licences_command:list_licences"),
            "check": Wire(
                "What a work made from all of these may be released under; exit code 1 where nothing fits.",
                "aloe.licences_command:check_licences",
            ),
        },
    ),
    "reproduce": Wire(
        "Run a release's recipe again and compare: exit code 1 where a figure or a weight came out otherwise.",
        "aloe.reproduce_command:reproduce",
    ),
    "push": Wire(
        "Give a release or a data set away: verified first, compared file by file after it arrived.",
        "aloe.push_command:push",
    ),
    "clean": Wire(
        "Remove checkpoints and other unfinished work of runs that were given up.", "aloe.clean_command:clean"
    ),
    "export": Wire("Write a scores artifact as Inspect logs or lm-eval results.", "aloe.scores_command:export"),
    "import": Wire("Read Inspect logs or lm-eval results into a scores artifact.", "aloe.scores_command:import_"),
    "prompts": Wire(
        "The prompt library: what there is, what a prompt says, how two differ.",
        commands={
            "list": Wire("List the prompts, packaged and your own.", "aloe.prompts_command:list_prompts"),
            "show": Wire("Show a prompt, filled with its example.", "aloe.prompts_command:show_prompt"),
            "diff": Wire("Compare two prompts line by line.", "aloe.prompts_command:diff_prompts"),
        },
    ),
    "red-team": Wire(
        "Attack models in many styles, judge the replies, and count what gets through.",
        "aloe.red_team_command:red_team",
    ),
    "judge": Wire(
        "Judges of safety: measured on labelled replies, or tried on one.",
        commands={
            "calibrate": Wire("Measure judges on replies that people labelled.", "aloe.judge_command:calibrate"),
            "try": Wire(
                "Print what every judge says of one reply, with the text it says it of.", "aloe.judge_command:try_"
            ),
        },
    ),
    "exemplars": Wire(
        "Exemplar stores: worked questions with their embeddings, in a folder.",
        commands={
            "build": Wire("Build an exemplar store from rows.", "aloe.exemplars_command:build"),
            "show": Wire("Show what a store holds, or its neighbours of a text.", "aloe.exemplars_command:show"),
            "merge": Wire("Merge two exemplar stores into a third.", "aloe.exemplars_command:merge"),
        },
    ),
}


class _OnDemand(dict[str, Any]):
    """Commands by name; a wire gives way to its command when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, Wire):
            found = self[name] = found.load(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def values(self) -> Any:
        return [self[name] for name in self]

    def lines(self, limit: int) -> Iterator[tuple[str, str]]:
        """Name and help line of each command, with nothing imported."""
        for name in self:
            found = super().__getitem__(name)
            if isinstance(found, Wire):
                yield name, found.about
            elif not found.hidden:
                yield name, found.get_short_help_str(limit)


class WiredGroup(TyperGroup):
    """A typer group, some of whose commands are wired."""

    wires: ClassVar[Mapping[str, Wire]] = {}

    def __init__(self, *, wires: Mapping[str, Wire] | None = None, **settings: Any) -> None:
        super().__init__(**{"rich_markup_mode": None, **settings})
        self.commands = cast("Any", _OnDemand({**self.commands, **(self.wires if wires is None else wires)}))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands, as typer lays it out."""
        limit = formatter.width - 6 - max(map(len, self.commands))
        with formatter.section("Commands"):
            formatter.write_dl(list(cast("_OnDemand", self.commands).lines(limit)))


class AloeGroup(WiredGroup):
    """All of `aloe`."""

    wires = WIRED
