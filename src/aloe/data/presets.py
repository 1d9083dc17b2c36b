"""The published sets that can be read by name: their schema as published, and the mapping to records.

A preset is exact where recognising a shape by its columns can't be: whether `cop` counts options from 0 or from 1,
which of three answers is the doctor's, which words a section header stands for. Schemas and licences were looked up on
the dataset cards and READMEs that each entry names; `unknown` stands where they state none, or two that disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from aloe.data import mappings
from aloe.data.files import PLAIN, Form
from aloe.data.mappings import Build
from aloe.errors import AloeError
from aloe.records import Dialogue, Preference, Question, Row


@dataclass(frozen=True)
class Preset:
    """A published set.

    `columns` is its schema; a file must have `needs` (all columns, unless said), else it isn't this set. `ids` are the
    columns that make a row's id, where the set has such; `task` is what its rows teach, the name of a family of
    templates (or `preference`). `licence` is what the set's own page states, SPDX-like.
    """

    name: str
    title: str
    hub: str
    homepage: str
    paper: str
    licence: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    task: str
    makes: type[Row]
    build: Build
    needs: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    form: Form = PLAIN
    note: str = ""

    def prepare(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with the id that its columns make."""
        if not self.ids or any(row.get(c) is None for c in self.ids):
            return row
        return {**row, "id": "-".join(str(row[c]) for c in self.ids)}

    def missing(self, columns: set[str]) -> list[str]:
        """Columns that a file of this set has and this one hasn't."""
        return [c for c in self.needs or self.columns if c not in columns]


def preset_of(name: str) -> Preset:
    """The preset of that name; an unknown one is an error that lists them."""
    if name in PRESETS:
        return PRESETS[name]
    near = get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise AloeError(f"no preset {name!r}", where="preset", fix=f"{hint}presets: {', '.join(PRESETS)}")


_ACL = "https://aclanthology.org/"
_ARXIV = "https://arxiv.org/abs/"
_HUB = "https://huggingface.co/datasets/"
_ALL = ("train", "validation", "test")
_MEDMCQA = ("id", "question", "opa", "opb", "opc", "opd", "cop", "choice_type", "exp", "subject_name", "topic_name")
_MEDMCQA_NEEDS = ("question", "opa", "opb", "opc", "opd", "cop")
_PUBMEDQA = ("pubid", "question", "context", "long_answer", "final_decision")
_MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")
_ULTRAFEEDBACK = ("source", "instruction", "models", "completions", "correct_answers", "incorrect_answers")

_TABLE = (
    Preset(
        "medqa", "MedQA (USMLE), the files of the release", "GBaker/MedQA-USMLE-4-options",
        "https://github.com/jind11/MedQA", f"{_ARXIV}2009.13081", "mit",
        ("question", "answer", "options", "meta_info", "answer_idx", "metamap_phrases"), ("train", "test"),
        "multiple_choice", Question, mappings.medqa, needs=("question", "answer", "options", "answer_idx"),
        note="options as a map (4 or 5 letters) or as bigbio/med_qa's list of key and value. The release is under "
        "MIT; the hub copy states cc-by-4.0.",
    ),
    Preset(
        "medqa_hf", "MedQA (USMLE), in the layout of SWAG", "GBaker/MedQA-USMLE-4-options-hf",
        f"{_HUB}GBaker/MedQA-USMLE-4-options-hf", f"{_ARXIV}2009.13081", "cc-by-sa-4.0",
        ("id", "sent1", "sent2", "ending0", "ending1", "ending2", "ending3", "label"), _ALL,
        "multiple_choice", Question, mappings.medqa_endings, needs=("sent1", "ending0", "ending1", "label"),
    ),
    Preset(
        "medmcqa", "MedMCQA, the hub's copy: `cop` counts from 0", "openlifescienceai/medmcqa",
        "https://medmcqa.github.io", f"{_ARXIV}2203.14371", "apache-2.0", _MEDMCQA, _ALL,
        "multiple_choice", Question, mappings.medmcqa(0, "medmcqa_original"), needs=_MEDMCQA_NEEDS,
        note="cop is -1 in the test split: its rows go to the ledger as no_answer.",
    ),
    Preset(
        "medmcqa_original", "MedMCQA, the release's JSON: `cop` counts from 1", "",
        "https://github.com/medmcqa/medmcqa", f"{_ARXIV}2203.14371", "apache-2.0", _MEDMCQA, ("train", "dev"),
        "multiple_choice", Question, mappings.medmcqa(1, "medmcqa"), needs=_MEDMCQA_NEEDS,
        note="test.json has no cop column.",
    ),
    Preset(
        "pubmedqa", "PubMedQA, labelled (and unlabelled) rows", "qiaojin/PubMedQA",
        "https://pubmedqa.github.io", f"{_ARXIV}1909.06146", "mit", _PUBMEDQA, ("train",),
        "multiple_choice", Question, mappings.pubmedqa("question", "context", "long_answer"), ids=("pubid",),
        needs=("question", "context", "final_decision"),
        note="configuration pqa_labeled; pqa_unlabeled has no final_decision and isn't this set. Its 500 test rows "
        "are named in the release's test_ground_truth.json.",
    ),
    Preset(
        "pubmedqa_artificial", "PubMedQA, artificial rows (yes and no only)", "qiaojin/PubMedQA",
        "https://pubmedqa.github.io", f"{_ARXIV}1909.06146", "mit", _PUBMEDQA, ("train",),
        "multiple_choice", Question, mappings.pubmedqa("question", "context", "long_answer"), ids=("pubid",),
        needs=("question", "context", "final_decision"), note="configuration pqa_artificial.",
    ),
    Preset(
        "pubmedqa_original", "PubMedQA, the release's JSON keyed by PubMed id (ori_pqal, ori_pqaa)", "",
        "https://github.com/pubmedqa/pubmedqa", f"{_ARXIV}1909.06146", "mit",
        ("pmid", "QUESTION", "CONTEXTS", "LABELS", "MESHES", "YEAR", "reasoning_required_pred", "reasoning_free_pred",
         "LONG_ANSWER", "final_decision"), ("train",),
        "multiple_choice", Question, mappings.pubmedqa("QUESTION", "CONTEXTS", "LONG_ANSWER"), ids=("pmid",),
        needs=("QUESTION", "CONTEXTS", "final_decision"), form=Form(key="pmid"),
    ),
    Preset(
        "headqa", "HEAD-QA (Spanish specialised health care exams)", "dvilares/head_qa",
        "https://aghie.github.io/head-qa/", f"{_ACL}P19-1092", "mit",
        ("name", "year", "category", "qid", "qtext", "ra", "image", "answers"), _ALL,
        "multiple_choice", Question, mappings.headqa, needs=("qtext", "ra", "answers"), ids=("name", "qid"),
        note="configurations en and es. Questions with an image go to the ledger.",
    ),
    Preset(
        "careqa", "CareQA, multiple choice: `cop` counts from 1", "HPAI-BSC/CareQA", f"{_HUB}HPAI-BSC/CareQA",
        f"{_ARXIV}2405.01886", "apache-2.0",
        ("exam_id", "question", "op1", "op2", "op3", "op4", "cop", "year", "category", "unique_id"), ("test",),
        "multiple_choice", Question, mappings.careqa, needs=("question", "op1", "op2", "op3", "op4", "cop"),
        ids=("unique_id",), note="configurations CareQA_en and CareQA_es; a benchmark, not for training.",
    ),
    Preset(
        "careqa_open", "CareQA, open questions", "HPAI-BSC/CareQA", f"{_HUB}HPAI-BSC/CareQA",
        f"{_ARXIV}2502.06666", "apache-2.0", ("exam_id", "question", "answer", "year", "category", "unique_id"),
        ("test",), "question_answering", Dialogue, mappings.exchange("question_answer", "question", "answer"),
        needs=("question", "answer"), ids=("unique_id",),
        note="configuration CareQA_en_open; a benchmark, not for training.",
    ),
    Preset(
        "mmlu", "MMLU", "cais/mmlu", "https://github.com/hendrycks/test", f"{_ARXIV}2009.03300", "mit",
        ("question", "subject", "choices", "answer"), ("auxiliary_train", "dev", "validation", "test"),
        "multiple_choice", Question, mappings.mmlu, needs=("question", "choices", "answer"),
        note="dev and validation rows leak into test in places: decontaminate.",
    ),
    Preset(
        "mmlu_csv", "MMLU, the release's CSV files without a header", "", "https://github.com/hendrycks/test",
        f"{_ARXIV}2009.03300", "mit", _MMLU_COLUMNS, ("dev", "val", "test"), "multiple_choice", Question,
        mappings.mmlu, form=Form(header=_MMLU_COLUMNS),
    ),
    Preset(
        "medquad", "MedQuAD, with its annotations", "lavita/MedQuAD", "https://github.com/abachaa/MedQuAD",
        "https://doi.org/10.1186/s12859-019-3119-4", "cc-by-4.0",
        ("document_id", "document_source", "document_url", "category", "umls_cui", "umls_semantic_types",
         "umls_semantic_group", "synonyms", "question_id", "question_focus", "question_type", "question", "answer"),
        ("train",), "question_answering", Dialogue, mappings.exchange("question_answer", "question", "answer"),
        needs=("question", "answer", "question_type"),
        note="three MedlinePlus subsets are published without answers (copyright): about two thirds of the rows go to "
        "the ledger as empty_answer, so raise max_dropped_share.",
    ),
    Preset(
        "medquad_csv", "MedQuAD, the 16,407 answered rows", "keivalya/MedQuad-MedicalQnADataset",
        "https://github.com/abachaa/MedQuAD", "https://doi.org/10.1186/s12859-019-3119-4", "cc-by-4.0",
        ("qtype", "Question", "Answer"), ("train",), "question_answering", Dialogue,
        mappings.exchange("question_answer", "Question", "Answer"),
    ),
    Preset(
        "mts_dialog", "MTS-Dialog (conversation to a section of the note)", "", "https://github.com/abachaa/MTS-Dialog",
        f"{_ACL}2023.eacl-main.168", "cc-by-4.0", ("ID", "section_header", "section_text", "dialogue"), _ALL,
        "dialogue_to_note", Dialogue, mappings.mts_dialog, needs=("section_header", "section_text", "dialogue"),
        ids=("ID",), note="test sets 1 and 2 are those of MEDIQA-Chat and MEDIQA-Sum 2023.",
    ),
    Preset(
        "chatdoctor", "ChatDoctor HealthCareMagic-100k", "lavita/ChatDoctor-HealthCareMagic-100k",
        "https://github.com/Kent0n-Li/ChatDoctor", f"{_ARXIV}2303.14070", "unknown", ("instruction", "input", "output"),
        ("train",), "consultation", Dialogue, mappings.exchange("consultation", "input", "output"),
        note="the repository's badge says Apache-2.0, its text allows academic research only; the patients' and "
        "doctors' texts are of a commercial site. The one constant instruction is kept in meta.",
    ),
    Preset(
        "icliniq", "ChatDoctor iCliniq-10k: the doctor's answer", "lavita/ChatDoctor-iCliniq",
        "https://github.com/Kent0n-Li/ChatDoctor", f"{_ARXIV}2303.14070", "unknown",
        ("input", "answer_icliniq", "answer_chatgpt", "answer_chatdoctor"), ("train",), "consultation", Dialogue,
        mappings.exchange("consultation", "input", "answer_icliniq"), needs=("input", "answer_icliniq"),
        note="licence as for chatdoctor. The two model answers are kept in meta and not trained on.",
    ),
    Preset(
        "doctor_forum", "Medical question answer data (eHealthForum, iCliniq, Question Doctors, WebMD)", "",
        "https://github.com/LasseRegin/medical-question-answer-data", "", "mit",
        ("question", "answer", "tags", "url"), ("train",), "consultation", Dialogue,
        mappings.exchange("consultation", "question", "answer"), needs=("question", "answer"),
        note="noisy posts of patients with doctors' replies: clean and look for personal information.",
    ),
    Preset(
        "medinstruct", "MedInstruct-52k (AlpaCare)", "lavita/AlpaCare-MedInstruct-52k",
        "https://github.com/XZhang97666/AlpaCare", f"{_ARXIV}2310.14558", "unknown", ("instruction", "input", "output"),
        ("train",), "instruction", Dialogue, mappings.instruction,
        note="written by GPT-4 and GPT-3.5; the models made from it are cc-by-nc-4.0, the data states nothing.",
    ),
    Preset(
        "gsm8k", "GSM8K", "openai/gsm8k", "https://github.com/openai/grade-school-math", f"{_ARXIV}2110.14168", "mit",
        ("question", "answer"), ("train", "test"), "math_reasoning", Dialogue, mappings.gsm8k,
    ),
    Preset(
        "ultrafeedback", "UltraFeedback: best against worst overall score", "openbmb/UltraFeedback",
        "https://github.com/OpenBMB/UltraFeedback", f"{_ARXIV}2310.01377", "mit", _ULTRAFEEDBACK, ("train",),
        "preference", Preference, mappings.ultrafeedback("overall_score"), needs=("instruction", "completions"),
        note="2,628 completions of the first release had a wrong overall_score of 10; take the revision of "
        "2023-12-29 or later. Rows of truthful_qa stand in a benchmark.",
    ),
    Preset(
        "ultrafeedback_fine_grained", "UltraFeedback: best against worst mean of the four aspects",
        "openbmb/UltraFeedback", "https://github.com/OpenBMB/UltraFeedback", f"{_ARXIV}2310.01377", "mit",
        _ULTRAFEEDBACK, ("train",), "preference", Preference, mappings.ultrafeedback("fine-grained_score"),
        needs=("instruction", "completions"),
    ),
    Preset(
        "ultrafeedback_binarized", "UltraFeedback as pairs (Zephyr)", "HuggingFaceH4/ultrafeedback_binarized",
        f"{_HUB}HuggingFaceH4/ultrafeedback_binarized", f"{_ARXIV}2310.16944", "mit",
        ("prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"),
        ("train_prefs", "test_prefs"), "preference", Preference, mappings.binarized,
        needs=("prompt", "chosen", "rejected"),
    ),
    Preset(
        "helpsteer2_preference", "HelpSteer2-Preference", "nvidia/HelpSteer2", f"{_HUB}nvidia/HelpSteer2",
        f"{_ARXIV}2410.01257", "cc-by-4.0",
        ("split", "prompt", "response_1", "response_2", "preference_strength", "preference_statement"),
        ("train", "validation"), "preference", Preference, mappings.helpsteer,
        needs=("prompt", "response_1", "response_2", "preference_strength"),
        note="the file preference/preference.jsonl.gz. Prompts of several turns go to the ledger.",
    ),
)  # fmt: skip
PRESETS: dict[str, Preset] = {p.name: p for p in _TABLE}


def preset_table() -> list[tuple[str, str, str, str, str]]:
    """(name, set, hub id, licence, task) of every preset: the table in the documentation."""
    return [(p.name, p.title, p.hub, p.licence, p.task) for p in PRESETS.values()]
