"""The offline score: every feature falls for its own fault, damage ranks below the clean row, and what it can't see."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.heuristic_lists import BOILERPLATE, BOILERPLATE_OF
from aloe.data.heuristics import (
    FLOOR,
    OF_AN_ANSWER,
    WEIGHTS,
    HeuristicScorer,
    combine,
    features,
    guess_language,
    words_of,
)
from aloe.data.quality import Scorer
from aloe.data.starter import starter_path
from aloe.keyed import rng
from aloe.records import Dialogue, Question
from aloe.rows import read_jsonl

QUESTION = "What are the early signs of iron deficiency anaemia in adults?"
ANSWER = (
    "Early iron deficiency often causes tiredness, pale skin and shortness of breath on exertion. Some adults notice "
    "brittle nails, hair loss or a sore tongue. Craving ice or clay, called pica, points strongly to low iron. "
    "A blood count shows small, pale red cells, and a low ferritin confirms the deficiency. In men, and in women after "
    "the menopause, anaemia of this kind needs a search for bleeding in the gut."
)
SPANISH = (
    "Los signos más frecuentes son el cansancio, la palidez y la falta de aire con el esfuerzo. También se observan "
    "uñas frágiles y caída del pelo, según la gravedad del déficit, como en los adultos con sangrado."
)


def scored(question: str, answer: str) -> float:
    return combine(features(question, answer))


def test_edited_prose_scores_near_one() -> None:
    found = features(QUESTION, ANSWER)
    assert list(found) == list(WEIGHTS)
    assert all(v >= 0.95 for v in found.values()), found
    assert sum(WEIGHTS.values()) == pytest.approx(1)


FAULTS = {
    "length": "Tiredness.",
    "relevance": "Wash the wound under running water for ten minutes. Cover it with a clean dressing, and change that "
    "every day. See a nurse if the edges turn red or start to smell, or if a fever begins after some days.",
    "repetition": ANSWER[:93] * 6,
    "boilerplate": "Hello and welcome to our forum. Thank you for your query about iron deficiency. Hope this helps. "
    "For further information consult a doctor online --> <link>. Best regards, take care.",
    "refusal": "I'm sorry, but I can't help with the early signs of iron deficiency anaemia. As an AI language model, "
    "I am unable to provide medical advice on adults.",
    "noise": "IRON DEFICIENCY ANAEMIA IN ADULTS: EARLY SIGNS ARE TIREDNESS, PALE SKIN AND SHORTNESS OF BREATH. ** ## "
    "|||| >>>> @@@@ ~~~~ ==== ^^^^ %%%% $$$$",
    "words": "Iron deficiency xkcdqz bhjklmn qwrtpsdf anaemia zzzzzz adults hjkl earlyyyyyyy signs mnbvcxz ssssss "
    "dfghjkl pqrst.",
    "order": "Of and the early is the of deficiency with iron the and in adults to of signs the in and anaemia are the "
    "of is and to the tiredness.",
    "sentences": "iron deficiency anaemia in adults brings tiredness and pale skin early signs are brittle nails hair "
    "loss sore tongue craving ice or clay it needs a blood count which shows small pale red cells then ferritin is "
    "low and men must be checked for bleeding from the gut because that is how adults lose iron over months or years "
    "without any pain at all until they faint or get chest pain when climbing stairs or walking up a hill in winter",
    "complete": ANSWER[: ANSWER.index("bleeding")],
    "language": SPANISH,
    "encoding": ANSWER.replace("a", "Ã¡", 12).replace("i", "\ufffd", 8),
}


@pytest.mark.parametrize(("name", "answer"), FAULTS.items(), ids=FAULTS.keys())
def test_each_feature_falls_for_its_own_fault(name: str, answer: str) -> None:
    found = features(QUESTION, answer)
    assert found[name] <= 0.55, found
    assert found[name] == min(found.values()), found
    assert scored(QUESTION, answer) < 0.95 * scored(QUESTION, ANSWER)


def test_every_feature_has_a_fault_above() -> None:
    assert set(FAULTS) == set(WEIGHTS)


def test_a_language_that_was_asked_for_is_no_fault() -> None:
    assert features(QUESTION, SPANISH)["language"] == 0
    assert features("Translate to Spanish: " + QUESTION, SPANISH)["language"] == 1
    assert features("¿Cuáles son los signos de la anemia en los adultos según la edad?", SPANISH)["language"] == 1


def test_guessed_languages() -> None:
    told = {
        "en": "The signs of this are tiredness and a loss of breath with any work.",
        "es": SPANISH,
        "de": "Die Zeichen sind Müdigkeit und Blässe, und der Arzt misst das Ferritin mit einer Blutprobe.",
        "fr": "Les signes sont la fatigue et la pâleur, mais le médecin mesure une ferritine avec le sang.",
        "other script": "贫血的早期症状包括疲劳和皮肤苍白。",
        None: "Ferritin 12 ng/ml.",
    }
    for name, text in told.items():
        assert guess_language(text, words_of(text)) == name


def test_a_bare_choice_is_judged_by_its_question() -> None:
    for closed in ("Answer: C", "C", "(B)", "yes", "The answer is D.", "Answer: B."):
        found = features(QUESTION, closed)
        assert not set(OF_AN_ANSWER) & set(found), closed
    assert "length" in features(QUESTION, "Anaemia")
    assert scored(QUESTION, "Answer: C") > 0.95
    assert scored("wht r th sgns of ??? \ufffd\ufffd anem", "Answer: C") < 0.8


def test_the_explanation_is_what_is_judged_of_an_explained_choice() -> None:
    assert features(QUESTION, f"{ANSWER}\n\nAnswer: C") == features(QUESTION, ANSWER)


def test_one_bad_feature_weighs_more_than_in_a_plain_mean() -> None:
    good = dict.fromkeys(WEIGHTS, 1.0)
    assert combine(good) == 1.0
    for name, weight in WEIGHTS.items():
        low = combine({**good, name: 0.0})
        assert low == pytest.approx(FLOOR**weight)
        assert low < 1 - weight


@given(st.text(max_size=400), st.text(max_size=400))
def test_any_text_gives_features_in_range(question: str, answer: str) -> None:
    found = features(question, answer)
    assert all(0 <= v <= 1 for v in found.values()), found
    assert 0 < combine(found) <= 1


@given(st.text(st.characters(codec="ascii"), max_size=200))
def test_the_fast_path_of_words_is_the_slow_one(text: str) -> None:
    import re

    assert words_of(text) == re.findall(r"\w+", text.lower())


def test_every_boilerplate_pattern_is_reached_by_its_word() -> None:
    """A pattern is only searched where one of its words stands, so each match must hold one."""
    examples = [
        "hope this helps", "for further queries", "consult your physician", "revert back with results",
        "thank you for your question", "wishing you good health", "best wishes", "kind regards", "take care.",
        "good luck", "feel free to ask", "let me know if it hurts", "click here", "all rights reserved", "terms of use",
        "privacy policy", "subscribe now", "sign up for it", "read more", "share this page", "follow us on it",
        "last reviewed in May", "back to top", "lorem ipsum", "coming soon", "welcome to the site", "dear user",
    ]  # fmt: skip
    reached = set()
    for text in examples:
        assert features(QUESTION, f"{ANSWER} {text.capitalize()}")["boilerplate"] < 1, text
        reached |= {n for n, pattern in enumerate(BOILERPLATE) if pattern.search(text)}
    assert reached == set(range(len(BOILERPLATE)))
    assert set(BOILERPLATE_OF.values()) == reached
    clean = (
        "They spread more in winter. Carefully wished regardless, the knowledge of readers is free. Drink what you "
        "wish and follow usual care."
    )
    assert features(QUESTION, clean)["boilerplate"] == 1


def starter_rows() -> list[tuple[str, str, str]]:
    return [(r["id"], r["question"], r["answer"]) for _, r in read_jsonl(starter_path("starter/medical_qa"))]


def test_damage_ranks_below_the_clean_row() -> None:
    """Our own medical answers against damaged copies of themselves: at least 95% fall for every kind of damage, and
    85% where only the topic differs: another answer's words may suit the question by chance."""
    rows = starter_rows()
    assert len(rows) >= 50
    falls: dict[str, list[bool]] = {}
    for i, (name, question, answer) in enumerate(rows):
        draw = rng(1, "test-damage", name)
        words = answer.split()
        other = rows[(i + len(rows) // 2) % len(rows)][2]
        copies = {
            "truncated": " ".join(words[: int(len(words) * draw.uniform(0.2, 0.8))]).rstrip(".,;:"),
            "shuffled": " ".join(words[j] for j in draw.permutation(len(words))),
            "swapped": other,
            "repeated": " ".join([answer] * 3),
            "garbled": "".join("Ã©" if draw.random() < 0.03 else c for c in answer),
            "unpunctuated": "".join(c for c in answer if c.isalnum() or c.isspace()),
        }
        clean = scored(question, answer)
        for kind, copy in copies.items():
            falls.setdefault(kind, []).append(scored(question, copy) < clean)
    shares = {kind: sum(f) / len(f) for kind, f in falls.items()}
    assert shares.pop("swapped") >= 0.85, shares
    assert min(shares.values()) >= 0.95, shares


def test_it_does_not_see_wrong_medicine() -> None:
    """Stated, so that nobody takes the score for a check of facts."""
    wrong = ANSWER.replace("low ferritin confirms", "high ferritin confirms").replace("low iron", "lead")
    assert wrong != ANSWER
    assert scored(QUESTION, wrong) == pytest.approx(scored(QUESTION, ANSWER), abs=0.01)


def dialogue(name: str, *texts: str) -> Dialogue:
    messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
    return Dialogue(id=name, source="s", licence="x", messages=messages)


def test_the_scorer_takes_the_mean_over_exchanges() -> None:
    scorer = HeuristicScorer()
    good, bad, both = scorer.score(
        [
            dialogue("a", QUESTION, ANSWER),
            dialogue("b", QUESTION, "no idea"),
            dialogue("c", QUESTION, ANSWER, QUESTION, "no idea"),
        ]
    )
    assert good.score is not None
    assert bad.score is not None
    assert both.score == pytest.approx((good.score + bad.score) / 2)
    assert both.parts["length"] == pytest.approx((good.parts["length"] + bad.parts["length"]) / 2)
    greeting = Dialogue(id="d", source="s", licence="x", messages=[{"role": "assistant", "content": "Hello."}])
    [none] = scorer.score([greeting])
    assert none.score is None
    assert none.why.startswith("no answered turn")
    question = Question(
        id="q", source="s", licence="x", question=QUESTION, options={"A": "Pica", "B": "Gout"}, answer="A"
    )
    assert scorer.score([question])[0].score > 0.9  # type: ignore[operator]
    assert isinstance(scorer, Scorer)


def test_scores_do_not_depend_on_neighbours_or_the_hash_seed() -> None:
    rows = [dialogue(name, q, a) for name, q, a in starter_rows()[:20]]
    together = HeuristicScorer().score(rows)
    assert [HeuristicScorer().score([r])[0] for r in rows[::-1]][::-1] == together
    ticks: list[tuple[int, int]] = []
    HeuristicScorer().score(rows, lambda done, tokens: ticks.append((done, tokens)))
    assert sum(d for d, _ in ticks) == len(rows)
    boilerplate = FAULTS["boilerplate"]
    code = (
        "from aloe.data.heuristics import HeuristicScorer, combine, features\n"
        f"print(repr(combine(features({QUESTION!r}, {boilerplate!r}))), HeuristicScorer().digest)"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outs == {f"{scored(QUESTION, boilerplate)!r} {HeuristicScorer().digest}\n".encode()}


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(["[insert", "a ", ". ", "\n", "&#", "for further ", "(", "x", "?", "\u2019", "Answer: "]))
def test_long_rows_take_linear_time(piece: str) -> None:
    """A 1 MB row is scored in seconds, whatever it is made of."""
    began = time.process_time()
    features("Why?", piece * (1_000_000 // len(piece)))
    assert time.process_time() - began < 5
