"""Real rows for `sft.py` and `dpo.py`, read at run time from the data folder beside the project; nothing is copied.

Dialogues: medical multiple-choice questions with their explanation, MedQuAD, doctor_forum and general instructions, a
quarter each. Pairs: harmlessness and general preferences, half each; both answers are the ones that people or models
gave and that were ranked. Drawn by key, lengths as they come; only rows longer than `max_tokens` are left out, since
TRL would cut them and we would drop them.

Both sides train on the same token ids: they are made here with the model's chat template, and the peer's script checks
that TRL makes the same ones of the text.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aloe.keyed import key64, shuffled
from aloe.models.chat import ChatTemplate
from aloe.train.masks import dialogue_example, preference_example
from aloe.train.order import Order
from aloe.train.packing import Example, TextRow

DATA = Path(__file__).parents[2] / "shared" / "data"
Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows for one run: `ours` is the file our side reads; `peers` has the same rows in the order of training."""

    ours: Path
    peers: Path
    examples: list[Example]  # in the order of training
    left_out: int

    def lengths(self) -> dict[str, float]:
        """Of a row's tokens, a shared prompt counted once: quartiles, extremes and the trained share."""
        tokens = [e.tokens for e in self.examples]
        names = ("shortest", "lower_quartile", "median", "upper_quartile", "longest")
        found = dict(zip(names, map(float, np.percentile(tokens, [0, 25, 50, 75, 100])), strict=True))
        trained = sum(e.trained for e in self.examples)
        return {**found, "mean": float(np.mean(tokens)), "trained_share": trained / sum(tokens)}


def make(kind: str, folder: Path, template: ChatTemplate, *, count: int, max_tokens: int, seed: int) -> Rows:
    """Write `count` rows of `kind` (sft, dpo) for both sides into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = DIALOGUES if kind == "sft" else PAIRS
    rows: list[Row] = []
    left_out = 0
    for n, (name, read) in enumerate(sources.items()):
        wanted = count // len(sources) + (n < count % len(sources))
        pool = list({r["id"]: r for r in read()}.values())  # some sources use an id twice
        for i in shuffled(range(len(pool)), seed, f"benchmark {kind} {name}", [r["id"] for r in pool]):
            if wanted == 0:
                break
            if example(kind, template, pool[i]).longest > max_tokens:
                left_out += 1
                continue
            rows.append(pool[i])
            wanted -= 1
        if wanted:
            raise SystemExit(f"{name}: too few rows of at most {max_tokens} tokens")
    ours = folder / "rows.jsonl"
    ours.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    order = training_order([r["id"] for r in rows], kind, seed)
    examples = [example(kind, template, rows[i]) for i in order]
    peers = folder / "peer.json"
    texts = [peer_row(kind, template, rows[i], e) for i, e in zip(order, examples, strict=True)]
    peers.write_text(json.dumps(texts), encoding="utf-8")
    return Rows(ours, peers, examples, left_out)


def training_order(keys: list[str], kind: str, seed: int) -> list[int]:
    """The order in which our side takes the rows of one source; the result's `same_batches` says whether it did."""
    stored = sorted(range(len(keys)), key=lambda i: key64(0, "row", keys[i]))  # as `aloe.train.tokens` keeps them
    return [stored[i] for i in Order([len(keys)], [len(keys)], 1, seed, f"{kind} order")]


def example(kind: str, template: ChatTemplate, row: Row) -> Example:
    """The row as our side will tokenise it."""
    if kind == "sft":
        return dialogue_example(template, TextRow(row["id"], row["id"], row["licence"], row["messages"]))
    text = TextRow(row["id"], row["id"], row["licence"], row["prompt"], row["chosen"], row["rejected"])
    return preference_example(template, text)


def peer_row(kind: str, template: ChatTemplate, row: Row, e: Example) -> Row:
    """The row as text for TRL, with our ids beside it. TRL itself adds the end of turn, the tokenizer's eos token."""
    prompt = row["messages"][:-1] if kind == "sft" else row["prompt"]
    text = template.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    if kind == "sft":
        return {"prompt": text, "completion": row["messages"][-1]["content"], "ids": list(e.tree.prefix)}
    chosen, rejected = (list(b) for b in e.tree.branches)
    sides = {"chosen": row["chosen"], "rejected": row["rejected"]}
    return {"prompt": text, **sides, "ids": list(e.tree.prefix), "chosen_ids": chosen, "rejected_ids": rejected}


# -- the sources ----------------------------------------------------------------------------------------------------


def read(path: str) -> Iterator[Row]:
    with gzip.open(DATA / f"{path}.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def asked(row: Row, question: str, answer: str) -> Row:
    """A question and its answer as a dialogue."""
    messages = [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]
    return {"id": row["id"], "licence": row["licence"], "messages": messages}


def multiple_choice() -> Iterator[Row]:
    """Question and options; explanation and letter."""
    for row in read("train/medical_mcq"):
        if row.get("explanation", "").strip():
            options = "\n".join(f"{letter}. {text}" for letter, text in row["options"].items())
            answer = f"{row['explanation'].strip()}\n\nThe answer is {row['answer']}."
            yield asked(row, f"{row['question'].strip()}\n\n{options}", answer)


def answered(path: str) -> Callable[[], Iterator[Row]]:
    """Question and answer as they stand in a file."""
    return lambda: (
        asked(r, r["question"], r["answer"]) for r in read(path) if r["question"].strip() and r["answer"].strip()
    )


def harmless() -> Iterator[Row]:
    """Conversations between Human and Assistant, cut before the last answer."""
    for row in read("preference/hh_harmless"):
        chosen, rejected = (turns(row[side]) for side in ("chosen", "rejected"))
        if chosen[:-1] == rejected[:-1] and sound(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]):
            yield pair(row, chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])


def turns(text: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    names = {"Human": "user", "Assistant": "assistant"}
    return [{"role": names[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def general() -> Iterator[Row]:
    """Instructions with two models' answers."""
    names = {"system": "system", "human": "user", "gpt": "assistant"}
    for row in read("preference/general_pairs"):
        prompt = [{"role": names[m["from"]], "content": m["value"].strip()} for m in row["messages"]]
        chosen, rejected = row["chosen"]["value"].strip(), row["rejected"]["value"].strip()
        if sound(prompt, chosen, rejected):
            yield pair(row, prompt, chosen, rejected)


def pair(row: Row, prompt: list[dict[str, str]], chosen: str, rejected: str) -> Row:
    return {"id": row["id"], "licence": row["licence"], "prompt": prompt, "chosen": chosen, "rejected": rejected}


def sound(prompt: list[dict[str, str]], chosen: str, rejected: str) -> bool:
    """A pair that training takes: texts that aren't empty, two different answers, the last word is the user's."""
    contents = [*(m["content"] for m in prompt), chosen, rejected]
    return bool(prompt) and prompt[-1]["role"] == "user" and chosen != rejected and all(contents)


DIALOGUES: dict[str, Callable[[], Iterator[Row]]] = {
    "medical_mcq": multiple_choice,
    "medquad": answered("train/medquad"),
    "doctor_forum": answered("train/doctor_forum"),
    "general_instructions": answered("train/general_instructions"),
}
PAIRS: dict[str, Callable[[], Iterator[Row]]] = {"hh_harmless": harmless, "general_pairs": general}
