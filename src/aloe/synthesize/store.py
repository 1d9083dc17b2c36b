"""The exemplar store of a `synthesize` artifact: `exemplars.parquet`, rows that prompting shows before a question.

A row is a question whose `explanation` is the accepted solution, answer line included: the format that
`prompting.exemplars_of` reads, so the file serves `evaluate` as it is. `meta` says which question it came from, who
wrote it under which prompt, and by what it can be recognised (`stem`, `question`): a benchmark item with an equal
digest is the same item, whatever the order of its options, and must not be shown its own solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aloe.digests import digest_json
from aloe.prompting.exemplars import normal_stem
from aloe.records import Question

EXEMPLAR_COLUMNS = {
    "id": "text", "source": "text", "licence": "text", "meta": "json", "question": "text", "options": "json",
    "answer": "text", "context": "text", "explanation": "text",
}  # fmt: skip


def stem_digest(question: Question) -> str:
    """Digest of the stem as the leak guard compares it: letters and digits, case folded."""
    return digest_json(normal_stem(question.question))


def question_digest(question: Question) -> str:
    """Digest of context, stem and options in any order."""
    options = sorted(normal_stem(text) for text in question.options.values())
    return digest_json([normal_stem(question.context), normal_stem(question.question), options])


def exemplar(row: Mapping[str, Any], provenance: Mapping[str, str]) -> dict[str, Any]:
    """The exemplar of an accepted row.

    Args:
        row: as `synthesize` writes it, a dialogue whose `meta["question"]` is the whole question.
        provenance: digests of writer, template and prompt, and the extraction rule; the same for all rows.
    """
    question, meta = Question.from_dict(row["meta"]["question"]), row["meta"]
    return {
        "id": row["id"],
        "source": row["source"],
        "licence": row["licence"],
        "meta": {
            "original_id": question.id, "original_source": question.source, "split": question.meta.get("split"),
            "mode": meta["mode"], "try": meta["try"], "writer": meta["writer"], **provenance,
            "stem": stem_digest(question), "question": question_digest(question),
        },
        "question": question.question,
        "options": question.options,
        "answer": question.answer,
        "context": question.context,
        "explanation": row["messages"][-1]["content"],
    }  # fmt: skip
