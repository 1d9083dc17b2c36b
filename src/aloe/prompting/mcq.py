"""How a multiple-choice question is shown, in which orders, and how a shown letter is mapped back.

An *order* lists, slot by slot, the original letter (or index) shown there: order ("C", "A", "B") shows option C
under letter A. Ensembles use a different order for every member (choice shuffling, Nori et al. 2023, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aloe.keyed import rng


def letters_of(options: Mapping[str, str]) -> tuple[str, ...]:
    """The option letters in the order they are shown."""
    return tuple(sorted(options))


def format_question(question: str, options: Mapping[str, str], context: str = "") -> str:
    """The question as text: context (if any), question, then one `A. text` line per option."""
    head = f"{context.strip()}\n\n{question.strip()}" if context.strip() else question.strip()
    return head + "\n\n" + "\n".join(f"{letter}. {options[letter].strip()}" for letter in letters_of(options))


def rotations(letters: Sequence[str]) -> list[tuple[str, ...]]:
    """The cyclic orders of `letters`: over all of them each option stands once in each slot. The first is as given."""
    n = len(letters)
    return [tuple(letters[(slot + shift) % n] for slot in range(n)) for shift in range(n)]


def member_orders(n_options: int, n_members: int, seed: int, key: str) -> list[tuple[int, ...]]:
    """One order of option indices per ensemble member: pairwise distinct while distinct ones remain.

    The n! orders fall into (n-1)! blocks of n rotations of each other. The first block is the plain cyclic one, the
    following blocks are drawn by (seed, key) without replacement; so after every n members each option has visited
    each slot equally often. With more members than n! orders the sequence starts again.
    """
    wanted = math.ceil(min(n_members, math.factorial(n_options)) / n_options)
    bases = [tuple(range(n_options))]
    draw = rng(seed, "member-orders", key)
    while len(bases) < wanted:
        base = (0, *(int(i) + 1 for i in draw.permutation(n_options - 1)))
        if base not in bases:
            bases.append(base)
    orders = [
        tuple(base[(slot + shift) % n_options] for slot in range(n_options))
        for base in bases
        for shift in range(n_options)
    ]
    return [orders[member % len(orders)] for member in range(n_members)]


def shown_options(options: Mapping[str, str], order: Sequence[str]) -> dict[str, str]:
    """The options as displayed: slot letter -> text of the original option that `order` puts there."""
    return {slot: options[original] for slot, original in zip(letters_of(options), order, strict=True)}


def original_letter(shown: str, order: Sequence[str]) -> str:
    """Map a shown letter back to the original letter."""
    return order[sorted(order).index(shown)]


def shown_letter(original: str, order: Sequence[str]) -> str:
    """The slot letter under which `order` shows an original letter; inverse of `original_letter`."""
    return sorted(order)[list(order).index(original)]
