"""The recipe's graph as SVG: steps in layers from top to bottom, edges routed around what they don't concern.

Layered drawing after Sugiyama, Tagawa and Toda (1981): longest-path layers, a bend in every layer that a long edge
crosses, orders by repeated barycentres, then places pulled towards the neighbours' mean. Small graphs, so plain lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from aloe.report.charts import canvas, clip, line, tag, text

BOX, GAP, BEND = 176.0, 22.0, 10.0
ROW, LINE, DROP = 18.0, 15.0, 40.0  # heights: a node's title row, an input's line, the space between layers
SHOWN = 4  # outside inputs named in a box
Span = tuple[float, float]  # upper and lower side


@dataclass(frozen=True)
class Node:
    """A step: `lines` under its name, `inputs` from outside the recipe, `firm` when its manifest is known."""

    name: str
    lines: Sequence[str]
    inputs: Sequence[str] = ()
    firm: bool = True
    own: bool = False


def flow(nodes: Sequence[Node], edges: Sequence[tuple[str, str]]) -> Markup:
    """Draw `nodes`, given inputs first, with `edges` as (from, to) names."""
    by_name = {n.name: n for n in nodes}
    edges = [(a, b) for a, b in dict.fromkeys(edges) if a in by_name and b in by_name and a != b]
    layers, chains = _layers([n.name for n in nodes], edges)
    _untangle(layers, chains)
    places = _places(layers, chains, by_name)
    spans, height = _spans(layers, by_name)
    width = max((x + _width(k, by_name) / 2 for k, x in places.items()), default=0.0) + 6
    leave, enter = (_ports(chains, places, end) for end in (0, -1))
    parts = [_edge(c, (leave[c[0], c[-1]], enter[c[0], c[-1]]), places, spans) for c in chains]
    parts += [_box(node, places[node.name], spans[node.name]) for node in nodes]
    said = "; ".join(
        f"{n.name} from {', '.join([a for a, b in edges if b == n.name] + list(n.inputs)) or 'nothing'}" for n in nodes
    )
    return canvas(width, height, f"Graph of the recipe's steps. {said}", parts, "chart flow")


def _layers(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Keys by layer, and every edge as a chain of keys, one per layer it passes."""
    depth = dict.fromkeys(names, 0)
    for name in names:
        depth[name] = max((depth[a] + 1 for a, b in edges if b == name), default=0)
    for name in reversed(names):  # a step without inputs stands just above its first user
        users = [depth[b] for a, b in edges if a == name]
        if users and not any(b == name for _, b in edges):
            depth[name] = min(users) - 1
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for name in names:
        layers[depth[name]].append(name)
    chains = []
    for a, b in edges:
        bends = [f"\x00{a}\x00{b}\x00{at}" for at in range(depth[a] + 1, depth[b])]
        for at, bend in enumerate(bends, depth[a] + 1):
            layers[at].append(bend)
        chains.append([a, *bends, b])
    return layers, chains


def _neighbours(chains: Sequence[Sequence[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            above.setdefault(lower, []).append(upper)
            below.setdefault(upper, []).append(lower)
    return above, below


def _crossings(layers: Sequence[Sequence[str]], below: Mapping[str, list[str]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        place = {k: i for i, k in enumerate(lower)}
        ends = [(i, place[b]) for i, k in enumerate(upper) for b in below.get(k, [])]
        total += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for n, a in enumerate(ends) for b in ends[:n])
    return total


def _untangle(layers: list[list[str]], chains: Sequence[Sequence[str]]) -> None:
    """Order layers by their neighbours' mean place, down and up in turn; keep the order that crosses least."""
    above, below = _neighbours(chains)
    best = ([list(layer) for layer in layers], _crossings(layers, below))
    for sweep in range(12):
        down = sweep % 2 == 0
        for at in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            other = layers[at - 1 if down else at + 1]
            place = {k: i / max(len(other) - 1, 1) for i, k in enumerate(other)}
            near = above if down else below
            here = {k: i / max(len(layers[at]) - 1, 1) for i, k in enumerate(layers[at])}
            mean = {k: _mean([place[n] for n in near.get(k, [])], here[k]) for k in layers[at]}
            layers[at].sort(key=lambda k: mean[k])
        count = _crossings(layers, below)
        if count < best[1]:
            best = ([list(layer) for layer in layers], count)
    layers[:] = best[0]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _width(key: str, by_name: Mapping[str, Node]) -> float:
    return BOX if key in by_name else BEND


def _places(
    layers: Sequence[Sequence[str]], chains: Sequence[Sequence[str]], by_name: Mapping[str, Node]
) -> dict[str, float]:
    """Centre of every key: pulled towards its neighbours, kept apart within its layer.

    Bends of one edge pull each other hardest, so that long edges run straight (Gansner et al. 1993).
    """
    pulls: dict[str, list[tuple[str, int]]] = {}
    for chain in chains:
        for a, b in pairwise(chain):
            force = (1, 2, 8)[(a not in by_name) + (b not in by_name)]
            pulls.setdefault(a, []).append((b, force))
            pulls.setdefault(b, []).append((a, force))
    places: dict[str, float] = {}
    for layer in layers:
        x = 0.0
        for key in layer:
            places[key] = x + _width(key, by_name) / 2
            x += _width(key, by_name) + GAP
        for key in layer:
            places[key] -= (x - GAP) / 2
    for sweep in range(200):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {
                k: _mean([places[n] for n, force in pulls.get(k, []) for _ in range(force)], places[k]) for k in layer
            }
            places |= _apart(layer, wanted, by_name)
    left = min((places[k] - _width(k, by_name) / 2 for k in places), default=0.0)
    return {k: x - left + 6 for k, x in places.items()}


def _apart(layer: Sequence[str], wanted: Mapping[str, float], by_name: Mapping[str, Node]) -> dict[str, float]:
    """The mean of pushing overlaps to the right and to the left: both keep the order and the distances."""
    sides = []
    for keys, sign in ((list(layer), 1), (list(reversed(layer)), -1)):
        found: dict[str, float] = {}
        for n, key in enumerate(keys):
            x = wanted[key]
            if n:
                room = (_width(key, by_name) + _width(keys[n - 1], by_name)) / 2 + GAP
                x = sign * max(sign * x, sign * found[keys[n - 1]] + room)
            found[key] = x
        sides.append(found)
    return {k: (sides[0][k] + sides[1][k]) / 2 for k in layer}


def _height(node: Node) -> float:
    inputs = min(len(node.inputs), SHOWN) + (len(node.inputs) > SHOWN)
    return 12 + ROW + LINE * len(node.lines) + (LINE * inputs + 8 if inputs else 0)


def _spans(layers: Sequence[Sequence[str]], by_name: Mapping[str, Node]) -> tuple[dict[str, Span], float]:
    """(top, bottom) of every key, and the drawing's height; a bend reaches through its whole layer."""
    spans: dict[str, Span] = {}
    y = 6.0
    for layer in layers:
        tall = max((_height(by_name[k]) for k in layer if k in by_name), default=0.0)
        spans |= {k: (y, y + (_height(by_name[k]) if k in by_name else tall)) for k in layer}
        y += tall + DROP
    return spans, y - DROP + 6


def _ports(chains: Sequence[Sequence[str]], places: Mapping[str, float], end: int) -> dict[tuple[str, str], float]:
    """Where edges leave (`end` 0) or enter (-1) their box: side by side, in the order of where they lead."""
    sides: dict[str, list[Sequence[str]]] = {}
    for chain in chains:
        sides.setdefault(chain[end], []).append(chain)
    ports = {}
    for key, found in sides.items():
        found.sort(key=lambda chain: places[chain[1 if end == 0 else -2]])
        step = min(16.0, (BOX - 40) / len(found))
        for at, chain in enumerate(found):
            ports[chain[0], chain[-1]] = places[key] + (at - (len(found) - 1) / 2) * step
    return ports


def _edge(chain: Sequence[str], ends: Span, places: Mapping[str, float], spans: Mapping[str, Span]) -> Markup:
    """From the lower side of the first box to the upper side of the last, straight through the layers between."""
    x, y = ends[0], spans[chain[0]][1]
    path = f"M{x:.1f} {y:.1f}"
    for key in chain[1:]:
        last = key == chain[-1]
        (top, bottom), right = spans[key], ends[1] if last else places[key]
        middle = (y + top) / 2
        path += f" C{x:.1f} {middle:.1f} {right:.1f} {middle:.1f} {right:.1f} {top:.1f}"
        path += "" if last else f" L{right:.1f} {bottom:.1f}"
        x, y = right, top if last else bottom
    head = f"M{x - 4:.1f} {y - 7:.1f} L{x:.1f} {y:.1f} L{x + 4:.1f} {y - 7:.1f}"
    title = tag("title", f"{chain[0]} to {chain[-1]}")
    return tag("g", title, tag("path", d=path, class_="edge"), tag("path", d=head, class_="edge"))


def _box(node: Node, x: float, span: Span) -> Markup:
    left, (top, bottom) = x - BOX / 2, span
    frame = "box own" if node.own else "box" if node.firm else "box faint"
    parts = [
        tag("title", f"{node.name}: {', '.join(node.lines)}"),
        tag("rect", x=left, y=top, width=BOX, height=bottom - top, rx=6, class_=frame),
    ]
    y = top + 6
    if node.inputs:
        more = len(node.inputs) - SHOWN
        names = [*node.inputs[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
        for name in names:
            y += LINE
            parts.append(text(left + 9, y - 3, clip("↓ " + name, BOX - 16), "tick", title=", ".join(node.inputs)))
        y += 4
        parts.append(line(left, y, left + BOX, y, "grid"))
    y += ROW
    parts.append(text(left + 9, y - 2, clip(node.name, (BOX - 16) * 0.88), "name", title=node.name))
    for words in node.lines:
        y += LINE
        parts.append(text(left + 9, y - 2, clip(words, BOX - 16), "tick", title=words))
    return tag("g", *parts)
