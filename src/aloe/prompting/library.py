"""The versioned prompt library: one YAML file per prompt under `prompts/`, each with a content digest that goes into
every protocol record. Changing a prompt's text changes its digest; its `version` is for people."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from aloe.digests import digest_json
from aloe.errors import AloeError

FIELDS = {"name", "version", "about", "system", "user", "answer", "prefill"}


@dataclass(frozen=True)
class Prompt:
    """`user` holds `{question}`; `answer` (an exemplar's assistant turn) holds `{letter}` and, with reasoning,
    `{reasoning}`. `prefill` starts the assistant's turn. `digest` covers everything but `about`."""

    name: str
    version: int
    about: str
    system: str
    user: str
    answer: str
    prefill: str

    @property
    def digest(self) -> str:
        """Digest of what the model sees, with name and version."""
        return digest_json(
            {
                "name": self.name,
                "version": self.version,
                "system": self.system,
                "user": self.user,
                "answer": self.answer,
                "prefill": self.prefill,
            }
        )


def prompt_names() -> list[str]:
    """Names of the prompts in the library."""
    folder = resources.files("aloe.prompting") / "prompts"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@cache
def load_prompt(name: str) -> Prompt:
    """Read one prompt; an unknown name is an AloeError that lists the names there are."""
    if name not in prompt_names():
        raise AloeError(f"no prompt named {name!r} in the library", fix=f"use one of {', '.join(prompt_names())}")
    text = (resources.files("aloe.prompting") / "prompts" / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    if set(values) != FIELDS or values["name"] != name:
        raise AloeError(
            f"a prompt file has exactly the keys {', '.join(sorted(FIELDS))}, and its name is the file's",
            where=f"prompting/prompts/{name}.yaml",
        )
    return Prompt(**values)
