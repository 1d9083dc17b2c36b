"""`aloe chat`: a conversation in the terminal with any model a recipe could name, told as it is written.

Lines that begin with `/` are commands: a second model beside the first, a prompting strategy, the conversation saved.
Text of a model is printed without control characters: it can't move the cursor, clear the screen or rename the window.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aloe.errors import AloeError
from aloe.records import Message
from aloe.terminal import neutral

if TYPE_CHECKING:
    from aloe.generate.engine import Engine
    from aloe.records import Question

Read = Callable[[], str]
Write = Callable[[str], None]
HELP = """/compare MODEL   ask a second model the same from now on; /compare off
/strategy NAME   answer questions with options by direct, cot, self_consistency, few_shot, knn_few_shot or medprompt
                 (/strategy medprompt members=5 shots=3 exemplars=starter/medical_mcq); /strategy off
/votes           print every member's vote, or stop doing so
/system TEXT     set the system prompt and begin anew
/set NAME=VALUE  temperature, max_new_tokens or seed
/reset           forget the conversation
/save FILE       write the conversation as JSON
/quit            end (so do an empty line and Ctrl-D)
A line that ends in \\ goes on in the next one."""
OPTION = re.compile(r"(?:^|(?<=\s))\(?([A-J])[).:]\s+")
SETTINGS: dict[str, type[float] | type[int]] = {"temperature": float, "max_new_tokens": int, "seed": int}


def chat(
    model: str,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    compare: Annotated[str | None, typer.Option(help="A second model that is asked the same.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Of questions with options, as /strategy takes it.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Bound on one reply.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    seed: int = 0,
) -> None:
    """Talk with a model in the terminal.

    /help lists what can be done there. For research: not a medical device, not for decisions about a patient.
    """
    settings: dict[str, Any] = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    talk = Chat(_write, settings)
    talk.open(model, system)
    if compare:
        talk.obey(f"/compare {compare}")
    if strategy:
        talk.obey(f"/strategy {strategy}")
    talk.run(lambda: input("you> "))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def plain(text: str) -> str:
    """Text for a terminal: control characters and marks that turn the direction of writing become U+FFFD."""
    return neutral(text)


@dataclass
class Side:
    """A model that takes part, and the conversation as it saw it."""

    name: str
    engine: Engine
    messages: list[Message] = field(default_factory=list)


@dataclass
class Chat:
    """The state of a conversation. `settings` are those of `SETTINGS`."""

    write: Write
    settings: dict[str, Any]
    sides: list[Side] = field(default_factory=list)
    system: str = ""
    strategy: tuple[str, dict[str, Any]] | None = None
    votes: bool = False
    turn: int = 0

    def open(self, model: str, system: str = "") -> None:
        """Load the first model and say what this is."""
        from aloe.run.talk import NOTICE, open_engine

        self.sides = [Side(model, open_engine(model))]
        self.system = system
        self.reset()
        self.say(f"{NOTICE}\n/help lists what can be done; an empty line ends the conversation.")

    def say(self, line: str) -> None:
        """A line of ours."""
        self.write(line + "\n")

    def reset(self) -> None:
        """Begin the conversation anew."""
        for side in self.sides:
            side.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.turn = 0

    def run(self, read: Read) -> None:
        """Until an empty line, /quit or the end of the input. An error of one turn ends that turn alone."""
        for text in lines(read):
            if text.strip() == "/quit":
                return
            try:
                if text.startswith("/"):
                    self.obey(text)
                else:
                    self.hear(text)
            except AloeError as cause:
                self.say(str(cause))
            except KeyboardInterrupt:
                self.say("\n[stopped]")

    # -- one turn ---------------------------------------------------------------------------------------------------

    def hear(self, text: str) -> None:
        """Something the user said: a question with options through the strategy, all else as a turn."""
        if self.strategy is not None:
            question = with_options(text)
            if question is not None:
                for side in self.sides:
                    self._decide(side, question)
                return
            if self.strategy[0] not in ("direct", "cot"):
                self.say(
                    f"[{self.strategy[0]} chooses between options, and none were seen: write them as "
                    "A) ... B) ... after the question. Answered as a turn of the conversation.]"
                )
        for side in self.sides:
            self._answer(side, text)
        self.turn += 1

    def _answer(self, side: Side, text: str) -> None:
        from aloe.generate.engine import Request, Sampling
        from aloe.generate.speaking import speak

        asked: list[Message] = [*side.messages, {"role": "user", "content": text}]
        sampling = Sampling(max_new_tokens=self.settings["max_new_tokens"], temperature=self.settings["temperature"])
        request = Request(key=f"turn-{self.turn}", messages=tuple(asked), sampling=sampling, seed=self.settings["seed"])
        self.write(f"{self._label(side)}> ")
        reply = speak(side.engine, request, lambda piece: self.write(plain(piece)))
        if reply.error is not None:
            self.say(f"\n[no reply: {plain(reply.error)}; what you said is not part of the conversation]")
            return
        self.say("" if reply.text.strip() else "[no text]")
        if reply.finish_reason == "length":
            self.say(f"[cut at {self.settings['max_new_tokens']} tokens: /set max_new_tokens=...]")
        side.messages = [*asked, {"role": "assistant", "content": reply.text}]

    def _decide(self, side: Side, question: Question) -> None:
        """A question with options. It stands by itself: strategies ask without the conversation before it."""
        from aloe.ask_command import decide, open_exemplars, told
        from aloe.prompting.strategies import strategy as named

        assert self.strategy is not None
        name, given = self.strategy
        changes = {key: value for key, value in given.items() if key != "exemplars"}
        chosen = named(name, seed=self.settings["seed"], **changes)
        store = open_exemplars(given.get("exemplars"), None, chosen)
        self.say(f"{self._label(side)} ({name})>")
        for line in told(chosen, decide(side.engine, chosen, question, store), self.votes):
            self.say(f"  {plain(line)}")

    def _label(self, side: Side) -> str:
        return "model" if len(self.sides) == 1 else Path(side.name).name or side.name

    # -- commands ---------------------------------------------------------------------------------------------------

    def obey(self, line: str) -> None:
        """A command. One that is not understood says so and changes nothing."""
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.say(HELP), "/compare": self._compare, "/strategy": self._choose,
            "/votes": self._show_votes, "/system": self._set_system, "/set": self._set, "/save": self._save,
            "/reset": self._begin_anew,
        }  # fmt: skip
        if name not in commands:
            raise AloeError(f"no command {name}", fix=f"one of {', '.join(sorted([*commands, '/quit']))}")
        commands[name](rest)

    def _begin_anew(self, _: str) -> None:
        self.reset()
        self.say("[begun anew]")

    def _compare(self, model: str) -> None:
        from aloe.run.talk import open_engine

        if not model or model == "off":
            del self.sides[1:]
            self.say("[one model]")
            return
        second = Side(model, open_engine(model), list(self.sides[0].messages))
        self.sides = [self.sides[0], second]
        self.say(f"[{self._label(second)} is asked too; it was given the conversation so far]")

    def _choose(self, text: str) -> None:
        from aloe.prompting.strategies import strategy as named

        words = text.split()
        if not words or words == ["off"]:
            self.strategy = None
            self.say("[no strategy]")
            return
        given: dict[str, Any] = {}
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if not equals or key not in ("members", "shots", "exemplars"):
                raise AloeError(f"{word!r} is no setting of a strategy", fix="members=5, shots=3 or exemplars=FILE")
            given[key] = value if key == "exemplars" else _number(int, key, value)
        chosen = named(words[0], **{k: v for k, v in given.items() if k != "exemplars"})
        if chosen.exemplars != "none":
            given.setdefault("exemplars", "starter/medical_mcq")
        self.strategy = (words[0], given)
        self.say(
            f"[questions with options are answered by {' '.join([words[0], *(f'{k}={v}' for k, v in given.items())])}]"
        )

    def _show_votes(self, _: str) -> None:
        self.votes = not self.votes
        self.say(f"[votes are {'shown' if self.votes else 'not shown'}]")

    def _set_system(self, text: str) -> None:
        self.system = text
        self.reset()
        self.say("[begun anew with that system prompt]" if text else "[begun anew without a system prompt]")

    def _set(self, text: str) -> None:
        key, equals, value = text.partition("=")
        if not equals or key.strip() not in SETTINGS:
            raise AloeError(f"{text!r} sets nothing", fix=f"/set NAME=VALUE with one of {', '.join(SETTINGS)}")
        found = _number(SETTINGS[key.strip()], key.strip(), value.strip())
        if found < (1 if key.strip() == "max_new_tokens" else 0):
            raise AloeError(f"{key.strip()} can't be {value.strip()}", fix="give a larger number")
        self.settings[key.strip()] = found
        self.say(f"[{key.strip()} is {found}]")

    def _save(self, file: str) -> None:
        from aloe.run.talk import NOTICE

        if not file:
            raise AloeError("/save needs a file", fix="/save conversation.json")
        content = {
            "notice": NOTICE, "settings": self.settings,
            "models": [
                {"model": s.name, "model_digest": s.engine.model_digest, "messages": s.messages} for s in self.sides
            ],
        }  # fmt: skip
        try:
            with Path(file).expanduser().open("x", encoding="utf-8") as handle:
                handle.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except FileExistsError:
            raise AloeError("is there already", where=file, fix="choose another name") from None
        except OSError as cause:
            raise AloeError(f"can't be written: {cause.strerror}", where=file) from None
        self.say(f"[saved: {file}]")


def _number(kind: type[float] | type[int], name: str, value: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise AloeError(f"{name} can't be {value!r}", fix="give a number") from None


def lines(read: Read) -> Iterator[str]:
    """What the user types, lines that end in a backslash put together; ends at an empty line or the input's end."""
    held: list[str] = []
    while True:
        try:
            text = read()
        except EOFError:
            if held:
                yield "\n".join(held)
            return
        if text.endswith("\\"):
            held.append(text[:-1])
            continue
        whole = "\n".join([*held, text])
        held = []
        if not whole.strip():
            return
        yield whole.strip()


def with_options(text: str) -> Question | None:
    """The multiple-choice question that a text holds (`Which drug? A) ... B) ...`), or None.

    Options are read from the last run of letters that begins with A and goes up one by one.
    """
    from aloe.ask_command import LETTERS, question_of

    marks = list(OPTION.finditer(text))
    starts = [i for i, mark in enumerate(marks) if mark[1] == "A"]
    if not starts:
        return None
    run = marks[starts[-1] :]
    run = run[: next((n for n, mark in enumerate(run) if mark[1] != LETTERS[n]), len(run))]
    stem = text[: run[0].start()].strip()
    ends = [mark.start() for mark in run[1:]] + [len(text)]
    options = [text[mark.end() : end].strip() for mark, end in zip(run, ends, strict=True)]
    if len(run) < 2 or not stem or not all(options):
        return None
    return question_of(stem, options)
