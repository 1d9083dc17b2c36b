"""An invented record of `curate` in the shape of its `curation.json`: counts from keyed draws that add up through the
stages, texts of our own. Texts carry markup, control and direction characters on purpose."""

from __future__ import annotations

from typing import Any

from fake_results import EVIL

from aloe.keyed import rng

SOURCES = ("medical_mcq", "medquad", "doctor_forum", "mts_dialog", "general_instructions")
READ = {
    "medical_mcq": 13_911,
    "medquad": 16_407,
    "doctor_forum": 6_315,
    "mts_dialog": 2_501,
    "general_instructions": 999,
}
LICENCES = {
    "medical_mcq": "mit",
    "medquad": "cc-by-4.0",
    "doctor_forum": "mit",
    "mts_dialog": "cc-by-4.0",
    "general_instructions": "cc-by-nc-4.0",
}
DROPPED: dict[str, dict[str, int]] = {
    "load": {"answer_not_in_options": 41, "empty_answer": 12, "not_json": 2},
    "clean": {"junk_question": 143, "junk_answer": 209, "needs_figure": 88},
    "exact_dedup": {"exact_duplicate": 612, "contradicts_another_row": 4},
    "near_dedup": {"near_duplicate": 2_380},
    "decontaminate": {"contaminated": 37},
    "quality": {"unscored": 3, "low_score": 3_660},
    "diversity": {"too_similar": 1_190},
    "phi": {"phi": 260},
    "template": {},
    "mix": {"not_sampled": 9_400},
}
FORMER = "A patient with type 2 diabetes and an eGFR of 25 takes metformin. What should be done?"
LATTER = (
    "Background: see the notes of the clinic. A patient with type 2 diabetes and an eGFR of 25 takes metformin. What "
    "should be done?\nA. Double the dose\nB. Stop metformin"
)
SECRET = "Jane Q. Placeholder, born 3 March 1951"  # no real person; a page must never show it


def curation_record() -> dict[str, Any]:
    """The whole record, every part there."""
    stages = _stages()
    kept = stages[-1]["by_source"]
    tasks = {
        "multiple_choice": 6_100,
        "multiple_choice_explained": 2_031,
        "question_answering": 9_000,
        "dialogue_to_note": 1_500,
    }
    tasks["instruction"] = stages[-1]["kept"] - sum(tasks.values())
    templates = {f"{task}/{n}": rows // 6 + (n == 0) * (rows % 6) for task, rows in tasks.items() for n in range(6)}
    kinds = {"name": 181, "date": 240, "phone": 22, "email": 3, "mrn": 9}
    return {
        "stages": stages,
        "examples": {
            stage: {reason: _examples(stage, reason, n) for reason, n in by.items()} for stage, by in DROPPED.items()
        },
        "before": _side(sum(READ.values()), 1.0, {"mit": 20_226, "cc-by-4.0": 18_908, "cc-by-nc-4.0": 999}),
        "after": _side(stages[-1]["kept"], 0.6, {"mit": 12_000, "cc-by-4.0": 9_000, "cc-by-nc-4.0": 1_092}),
        "clusters": {
            "count": 1_702,
            "rows": 4_082,
            "sizes": {"2": 1_399, "3": 210, "4": 51, "5": 20, "7": 12, "15": 8, "212": 2},
            "largest": [
                {
                    "survivor": "medquad:s1",
                    "text": f"What are the symptoms of cystinuria? {EVIL}",
                    "size": 212,
                    "members": [
                        {
                            "id": f"medquad:m{n}",
                            "similarity": 0.91 - n / 50,
                            "text": f"What are the signs of cystinuria? {n}",
                        }
                        for n in range(5)
                    ],
                },
                {"survivor": "medquad:s2", "text": "What causes Gitelman syndrome?", "size": 15, "members": []},
            ],
        },
        "contamination": {
            "table": {
                s: {
                    "pubmedqa_test": {"rows": n, "candidates": n // 50, "contaminated": 7 * (s == "medical_mcq")},
                    "medmcqa_validation": {
                        "rows": n,
                        "candidates": n // 30,
                        "contaminated": 6 * (n % 2),
                        "suspected": n // 400,
                    },
                }
                for s, n in READ.items()
            },
            "hits": [
                {
                    "row_id": "medical_mcq:q17",
                    "source": "medical_mcq",
                    "benchmark": "medmcqa_validation",
                    "item_id": "v3",
                    "tier": "ngram",
                    "similarity": 0.934,
                    "row_text": LATTER,
                    "item_text": FORMER,
                },
                {
                    "row_id": "medical_mcq:q18",
                    "source": "medical_mcq",
                    "benchmark": "medmcqa_validation",
                    "item_id": "v4",
                    "tier": "stem",
                    "similarity": 1.0,
                    "item_text": "Drug of choice?\nA. Warfarin\nB. Heparin",
                    "row_text": "Drug of choice?\nA. Heparin\nB. Warfarin",
                },
                {
                    "row_id": "medquad:q9",
                    "source": "medquad",
                    "benchmark": "pubmedqa_test",
                    "item_id": "p1",
                    "tier": "stem",
                    "similarity": 1.0,
                    "row_text": f"Is it so? {EVIL} " * 3,
                    "item_text": f"Is it so? {EVIL}",
                },
            ],
            "total_hits": 37,
        },
        "phi": {
            "mode": "drop",
            "rows_with": 260,
            "by_kind": kinds,
            "by_source": {"doctor_forum": kinds, "mts_dialog": {"date": 2}},
        },
        "quality": {
            "scorer": "heuristics",
            "drop_share": 0.1,
            "threshold": 0.4,
            "unscored": 3,
            "histogram": [{"from": n / 20, "to": (n + 1) / 20, "rows": 40 + n * n * 12} for n in range(20)],
            "by_source": {s: {"mean": 0.5 + n / 20, "median": 0.52 + n / 20} for n, s in enumerate(SOURCES)},
        },
        "diversity": {"max_similarity": 0.9, "dropped": 1_190},
        "templates": templates,
        "tasks": tasks,
        "mix": [
            {"source": s, "weight": w, "rows": kept[s], "share": kept[s] / stages[-1]["kept"]}
            for s, w in zip(SOURCES, (0.4, 0.3, 0.15, 0.1, 0.05), strict=True)
        ],
        "licences": {s: {LICENCES[s]: kept[s]} for s in SOURCES},
        "licence": "cc-by-nc-4.0",
    }


def _stages() -> list[dict[str, Any]]:
    left, rows_in, stages = dict(READ), sum(READ.values()), []
    for stage, dropped in DROPPED.items():
        gone = sum(dropped.values())
        for n, source in enumerate(SOURCES):  # shares of what is dropped, the first source takes what rounding leaves
            part = gone * READ[source] // sum(READ.values()) if n else 0
            left[source] -= part
            gone -= part
        left[SOURCES[0]] -= gone
        kept = sum(left.values())
        stages.append({"stage": stage, "rows_in": rows_in, "kept": kept, "dropped": dropped, "by_source": dict(left)})
        rows_in = kept
    stages[0]["seconds"] = 2.5
    return stages


def _examples(stage: str, reason: str, rows: int) -> list[dict[str, Any]]:
    evidence: dict[str, Any] = {"survivor": "medquad:s1", "jaccard": 0.81} if stage == "near_dedup" else {}
    text = f"How is cystinuria diagnosed? {EVIL}"
    if stage == "phi":
        evidence, text = {"found": SECRET}, f"I am {SECRET}, and my knee hurts."
    return [
        {
            "id": f"medquad:{reason}{n}",
            "source": "medquad",
            "where": f"medquad.jsonl:{n + 2}",
            "detail": "seen twice" * (n % 2),
            "evidence": evidence,
            "text": text,
        }
        for n in range(min(rows, 5))
    ]


def _side(rows: int, scale: float, licences: dict[str, int]) -> dict[str, Any]:
    words = {
        "user": {"mean": 41.27 * scale, "median": 18, "p95": 160, "max": 4_020},
        "assistant": {"mean": 120.5 * scale, "median": 77, "p95": 480, "max": 11_400},
    }
    histogram = {
        role: [
            {
                "from": (1 << b) >> 1,
                "to": 1 << b,
                "rows": int(
                    rows * scale * float(rng(7, "fake histogram", f"{role}{b}").random()) / (1 + abs(b - 6)) / 4
                ),
            }
            for b in range(14)
        ]
        for role in words
    }
    return {"rows": rows, "words": words, "histogram": histogram, "licences": licences, "by_source": READ, "tasks": {}}
