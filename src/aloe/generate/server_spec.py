"""What a recipe says about a server: where it answers, the model's name there, and what it can do.

The map `servers:` of a recipe holds one of these by name; `http://host:port/v1#model` is the short form with every
default. Where and how fast a server answers changes no result, so endpoints, keys, timeouts and concurrency are no
part of `digest`; the model's name and how it is asked are. Nobody can check from outside which weights answer: the
digest says what the server states.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from aloe.digests import digest_json
from aloe.errors import AloeError

DIRECT = re.compile(r"https?://[^\s#]+(#.*)?")
# Fields of a request that this engine writes itself: `extra` may not say otherwise.
OWN_FIELDS = {
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop",
    "stream", "n", "logprobs", "top_logprobs", "echo", "prompt_logprobs", "response_format", "continue_final_message",
    "add_generation_prompt",
}  # fmt: skip


class ServerSpec(BaseModel):
    """One model behind one or more OpenAI-compatible endpoints.

    `scores` names the way to log-likelihoods: `first_token` (chat completions with `top_logprobs`), `echo`
    (completions with `echo` and `logprobs`), `prompt_logprobs` (completions of vLLM). The last two send the token ids
    of `template`, a model whose tokenizer and chat template are the server's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    endpoints: list[str] = Field(min_length=1)
    model: str = Field(min_length=1)
    revision: str = ""
    licence: str = "unknown"
    key_env: str | None = None
    listed: bool = True
    template: str | None = None
    prefill: Literal["continue", "instruct"] | None = None
    scores: Literal["none", "first_token", "echo", "prompt_logprobs"] = "none"
    structured: bool = False
    limit_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: dict[str, Any] = Field(default_factory=dict)
    max_concurrency: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=300.0, gt=0)
    attempts: int = Field(default=4, ge=1)
    backoff_s: float = Field(default=0.5, gt=0)
    give_up_s: float = Field(default=120.0, gt=0)

    @field_validator("endpoints")
    @classmethod
    def _addresses(cls, values: list[str]) -> list[str]:
        found = [_address(value) for value in values]
        if len(set(found)) < len(found):
            raise ValueError("an endpoint is named twice")
        return found

    @field_validator("key_env")
    @classmethod
    def _name_of_a_variable(cls, value: str | None) -> str | None:
        # The message must not repeat the value: who gets this wrong has written the key itself into the recipe.
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", value):
            raise AloeError(
                "key_env takes the NAME of an environment variable (capitals, digits and '_'), not a key",
                where="server.key_env",
                fix="write key_env: MY_SERVER_KEY, export MY_SERVER_KEY in the shell, and revoke a key that was "
                "written into a file",
            )
        return value

    @field_validator("extra")
    @classmethod
    def _nothing_of_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if clash := sorted(OWN_FIELDS & value.keys()):
            raise ValueError(f"{', '.join(clash)} is set by the step that asks, not by `extra`")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> ServerSpec:
        if self.scores in ("echo", "prompt_logprobs") and self.template is None:
            raise ValueError(f"scores: {self.scores} sends token ids: name in `template` the model they come from")
        if self.scores == "first_token" and self.template is not None:
            raise ValueError("scores: first_token asks for chat completions: with `template`, use echo or none")
        if self.prefill is not None and self.template is not None:
            raise ValueError("with `template` a prefill is exact: leave `prefill` out")
        if self.structured and self.template is not None:
            raise ValueError("structured output is asked for in chat completions: leave `template` or `structured` out")
        return self

    @property
    def prefill_mode(self) -> Literal["exact", "continue", "instruct"]:
        """How the start of the assistant's own turn is brought about."""
        return "exact" if self.template is not None else self.prefill or "instruct"

    def digest(self, template: str = "") -> str:
        """Digest of what the server states and how it is asked; `template` is the digest of the local template.

        Settings at their defaults leave it as it is: {"server_model", "revision"}.
        """
        parts: dict[str, Any] = {"server_model": self.model, "revision": self.revision}
        asked: dict[str, Any] = {
            "prefill": self.prefill if self.prefill != "instruct" else None,
            "scores": self.scores if self.scores != "none" else None,
            "template": template or None,
            "extra": self.extra or None,
        }
        return digest_json(parts | {name: value for name, value in asked.items() if value is not None})

    @property
    def origin(self) -> str:
        """What a manifest says of the model."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"server model {self.model}{revision}, as stated by the server, not verified"

    def key(self) -> str | None:
        """The API key from the environment; never stored.

        Raises:
            AloeError: `key_env` names a variable that is not set.
        """
        if self.key_env is None:
            return None
        value = os.environ.get(self.key_env, "").strip()
        if not value:
            raise AloeError(
                f"the environment variable {self.key_env}, which holds the key of {self.model}, is not set",
                where=self.endpoints[0],
                fix=f"export {self.key_env}=... before the run, or leave key_env out for a server without keys",
            )
        return value


def is_direct(ref: str) -> bool:
    """Whether a reference is an address: `http://host:port/v1#model`."""
    return DIRECT.fullmatch(ref) is not None


def direct(ref: str) -> ServerSpec:
    """The server behind `http://host:port/v1#model`, with every default.

    Raises:
        AloeError: no model after `#`, or an address that is none.
    """
    address, _, model = ref.partition("#")
    if not model:
        raise AloeError(f"{ref!r} names no model", fix="write http://host:port/v1#model-name")
    try:
        return ServerSpec(endpoints=[address], model=model)
    except ValidationError as cause:
        message = cause.errors()[0]["msg"].removeprefix("Value error, ")
        raise AloeError(f"{ref!r}: {message}", fix="write http://host:port/v1#model-name") from None


def _address(value: str) -> str:
    """An endpoint's base address without its last slash; refuses what could carry a secret or isn't one."""
    parts = urlsplit(value)
    if parts.username or parts.password:
        raise AloeError(
            "an endpoint's address holds a user name or a password",
            where="server.endpoints",
            fix="take them out; keys come from the environment variable named in key_env",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{value!r} is no endpoint: write http(s)://host:port/v1")
    return value.rstrip("/")
