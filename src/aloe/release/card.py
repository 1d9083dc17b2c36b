"""Model and dataset cards: templates filled from manifests and result files, with no number typed by hand.

The model card opens with Hugging Face front matter whose `model-index` repeats every score machine-readably. What was
not measured or not stated is written as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from aloe.licence import parts

HUB_LICENCES = {"llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma"}
MODEL_SETTINGS = ("base", "model", "method", "lr", "epochs", "beta", "loss", "max_tokens", "batch_rows", "batch_pairs")


def model_card(facts: Mapping[str, Any]) -> str:
    """README.md of the release: front matter and body. `facts` as `aloe.release.step` gathers them."""
    front = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{front}---\n\n{_render('model_card.md.j2', facts)}"


def dataset_card(facts: Mapping[str, Any]) -> str:
    """README.md of one data step: what came in, what stayed, why rows left, whose licence they carry."""
    front = yaml.safe_dump(
        {"license": hub_licence(facts["licences"]), "tags": ["aloe", facts["verb"]]}, sort_keys=False
    )
    return f"---\n{front}---\n\n{_render('dataset_card.md.j2', facts)}"


def hub_licence(licences: Sequence[str]) -> str:
    """The hub's licence tag: the id itself when there is one and it is a single one, else `other`."""
    ids = {p for text in licences for p in parts(text)}
    return ids.pop() if len(ids) == 1 else "other"


def front_matter(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face model card metadata (https://huggingface.co/docs/hub/model-cards)."""
    front: dict[str, Any] = {
        "license": hub_licence([facts["licence"]]),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "tags": ["aloe", "medical", "healthcare"],
    }
    if front["license"] == "other":
        front["license_name"] = facts["licence"]
    if facts["base_models"]:
        front["base_model"] = [m["name"] for m in facts["base_models"]]
    if facts["data_names"]:
        front["datasets"] = list(facts["data_names"])
    front["model-index"] = [{"name": facts["name"], "results": [*_score_results(facts), *_safety_results(facts)]}]
    return front


def _score_results(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        _result("question-answering", row["benchmark"], row["metric"], row, f"{row['strategy']}, {row['protocol']}")
        for row in facts["scores"]
        if row["model"] == facts["model"] and row["value"] is not None
    ]


def _safety_results(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for table in facts["red_team"]:
        entry = table["models"].get(facts["model"])
        if entry is None:
            continue
        for metric, where in (("attack_success", table["requests"]), ("over_refusal", table["benign"])):
            if entry[metric] and entry[metric]["n"]:
                found.append(_result("text-generation", str(where), metric, entry[metric], "red team, rule judge"))
    return found


def _result(task: str, data: str, metric: str, row: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    return {
        "task": {"type": task},
        "dataset": {"name": data, "type": data, "args": {"n": row["n"], "protocol": protocol}},
        "metrics": [
            {
                "name": metric,
                "type": metric,
                "value": row["value"],
                "args": {"low_95": row["low"], "high_95": row["high"]},
            }
        ],
    }


def settings(manifest: Mapping[str, Any]) -> str:
    """A training or merge step's telling parameters on one line; all of them are in lineage.json."""
    shown = [(k, v) for k, v in manifest["parameters"].items() if k in MODEL_SETTINGS and v is not None]
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown)


def _render(template: str, facts: Mapping[str, Any]) -> str:
    text = (files("aloe.release") / "templates" / template).read_text(encoding="utf-8")
    env = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # Markdown
    env.filters |= {"share": _share, "figure": _figure, "cell": _cell}
    return env.from_string(text).render(**facts).rstrip() + "\n"


def _share(rate: Mapping[str, Any] | None) -> str:
    """`0.313 [0.276, 0.352], n 600`, or words where there is nothing."""
    if not rate or rate["value"] is None:
        return "not measured"
    if rate["low"] is None or rate["high"] is None:
        return f"{rate['value']:.3f}, no interval, n {rate['n']}"
    return f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}], n {rate['n']}"


def _figure(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cell(value: Any) -> str:
    """Text that can't break a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
