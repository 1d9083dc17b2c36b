"""Votes."""

from __future__ import annotations

from aloe.prompting.vote import Ballot, plurality, votes_at


def ballots(letters: str) -> list[Ballot]:
    return [Ballot(None if letter == "-" else letter) for letter in letters]


def test_four_to_one_is_the_majority() -> None:  # promptbase returned B
    vote = plurality(ballots("AAAAB"), seed=0, key="q")
    assert (vote.winner, vote.counts, vote.tied, vote.tie_rule) == ("A", {"A": 4, "B": 1}, (), "none")
    assert vote.margin == 3 / 5


def test_unparsed_ballots_vote_for_nothing_and_lower_the_margin() -> None:
    vote = plurality(ballots("A----"), seed=0, key="q")
    assert vote.winner == "A"
    assert vote.margin == 1 / 5
    nobody = plurality(ballots("---"), seed=0, key="q")
    assert (nobody.winner, nobody.counts, nobody.margin) == (None, {}, 0.0)


def test_a_tie_goes_to_the_larger_summed_logprob_and_says_so() -> None:
    votes = [Ballot("A", -3.0), Ballot("B", -1.0), Ballot("B", -4.0), Ballot("A", -1.5), Ballot("C", 0.0)]
    vote = plurality(votes, seed=0, key="q")
    assert (vote.winner, vote.tied, vote.tie_rule) == ("A", ("A", "B"), "logprob")


def test_without_logprobs_the_nearest_exemplar_decides_then_the_key() -> None:
    vote = plurality([Ballot("A", None, 0.5), Ballot("B", None, 0.9)], seed=0, key="q")
    assert (vote.winner, vote.tie_rule) == ("B", "exemplar")
    equal = [Ballot("A", -2.0, 0.7), Ballot("B", -2.0, 0.7)]
    winners = {plurality(equal, seed=0, key=f"q{i}").winner for i in range(40)}
    assert winners == {"A", "B"}
    assert all(plurality(equal, seed=0, key=f"q{i}").tie_rule == "random" for i in range(5))
    assert plurality(equal, seed=0, key="q7") == plurality(equal[::-1], seed=0, key="q7")


def test_one_missing_logprob_disqualifies_the_criterion() -> None:
    vote = plurality([Ballot("A", -9.0), Ballot("B", None)], seed=0, key="q")
    assert vote.tie_rule == "random"


def test_one_run_holds_every_smaller_ensemble() -> None:
    votes = votes_at(ballots("BAACC"), seed=0, key="q")
    assert [v.winner for v in votes][:1] == ["B"]
    assert votes[2].winner == "A"
    assert votes == [plurality(ballots("BAACC")[:n], seed=0, key="q") for n in range(1, 6)]
