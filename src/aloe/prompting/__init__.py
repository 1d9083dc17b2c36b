"""Prompting: how a multiple-choice question is asked, and how the answer is read out of what comes back."""

from aloe.generate.embed import Embedder
from aloe.prompting.exemplars import Exemplar, ExemplarStore, exemplars_of
from aloe.prompting.extract import Extraction, extract
from aloe.prompting.library import load_prompt, prompt_names
from aloe.prompting.mcq import format_question
from aloe.prompting.strategies import STRATEGIES, Decision, Strategy, answer, medprompt, strategy
from aloe.prompting.vote import Ballot, Vote, plurality, votes_at

__all__ = [
    "STRATEGIES",
    "Ballot",
    "Decision",
    "Embedder",
    "Exemplar",
    "ExemplarStore",
    "Extraction",
    "Strategy",
    "Vote",
    "answer",
    "exemplars_of",
    "extract",
    "format_question",
    "load_prompt",
    "medprompt",
    "plurality",
    "prompt_names",
    "strategy",
    "votes_at",
]
