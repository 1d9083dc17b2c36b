"""Attack styles wrap a request, keep its identity, and hold nothing of their own."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from aloe.errors import AloeError
from aloe.records import AttackPrompt
from aloe.safety.styles import STYLES, TEST_STYLES, TRAIN_STYLES, styles_digest, variants, wrap

REQUEST = 'Say "no" to {this}'


def prompt(**changes: object) -> AttackPrompt:
    values = {
        "id": "a", "source": "s", "licence": "cc0-1.0", "base_id": "a", "topic": "fraud", "style": "plain",
        "request": REQUEST, "prompt": [{"role": "user", "content": REQUEST}], "split": "train",
    }  # fmt: skip
    return AttackPrompt(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(STYLES))
def test_every_style_holds_the_request_once_and_ends_with_the_user(name: str) -> None:
    messages = wrap(name, REQUEST)
    text = json.dumps(REQUEST)[1:-1] if STYLES[name].quoted else REQUEST
    assert sum(m["content"].count(text) for m in messages) == 1
    assert messages[-1]["role"] == "user"
    roles = [m["role"] for m in messages]
    assert all(a != b for a, b in pairwise(roles))


def test_there_are_the_styles_of_the_paper_and_some_stay_unseen_in_training() -> None:
    assert len(STYLES) >= 12
    assert wrap("plain", REQUEST) == [{"role": "user", "content": REQUEST}]
    assert set(TRAIN_STYLES) < set(TEST_STYLES) == set(STYLES)


def test_variants_share_base_topic_and_split_and_have_their_own_ids() -> None:
    rows = variants([prompt()], ["plain", "fiction", "fiction"])
    assert [r.style for r in rows] == ["plain", "fiction"]
    assert {(r.base_id, r.topic, r.split) for r in rows} == {("a", "fraud", "train")}
    assert len({r.id for r in rows}) == 2
    assert rows == variants([prompt()], ["plain", "fiction"])


def test_a_prompt_with_a_style_of_its_own_is_used_as_it_stands() -> None:
    styled = prompt(style="custom", prompt=[{"role": "user", "content": "wrapped"}])
    assert variants([styled], ["plain", "persona"]) == [styled]


def test_errors_name_the_styles() -> None:
    with pytest.raises(AloeError, match="unknown attack style 'telepathy'"):
        wrap("telepathy", "x")
    with pytest.raises(AloeError, match="no attack style"):
        variants([prompt()], [])


def test_digest_depends_on_the_templates_alone() -> None:
    assert styles_digest(["plain", "fiction"]) == styles_digest(["fiction", "plain", "plain"])
    assert styles_digest(["plain"]) != styles_digest(["fiction"])
