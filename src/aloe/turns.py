"""Conversations as other projects write them: role names, ShareGPT's `from` and `value`, transcripts as one text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aloe.records import Message

ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "system": "system",
}  # fmt: skip
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # of Anthropic's hh-rlhf


def is_transcript(value: Any) -> bool:
    """Whether it is one text with its speakers in it, "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    return isinstance(value, str) and value.startswith(HUMAN)


def transcript_turns(text: str) -> list[Message]:
    """The turns of a transcript; their texts are stripped, and may be empty."""
    pieces = text.replace(ASSISTANT, HUMAN + "\0").split(HUMAN)[1:]
    return [{"role": "assistant" if p[:1] == "\0" else "user", "content": p.lstrip("\0").strip()} for p in pieces]


def turn_of(turn: Mapping[str, Any]) -> tuple[str | None, Any]:
    """(role, content) of `{role, content}` or `{from, value}`; no role where its name is unknown."""
    name = turn.get("role", turn.get("from"))
    return ROLES.get(str(name).lower()), turn.get("content", turn.get("value"))
