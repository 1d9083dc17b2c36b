"""Identifiers made by key and put into real texts, for `phi.py`. No benchmark by itself."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloe.data.phi_ids import iban, luhn, nhs, verhoeff
from aloe.data.phi_words import fold, lexicon
from aloe.keyed import rng

HERE = Path(__file__).parent
SEED = 11


def half(text: str) -> str:
    """Which part a row, a name or a sentence belongs to: by digest, so it never moves."""
    return "development" if hashlib.blake2b(text.encode()).digest()[0] % 2 == 0 else "test"


def people(split: str) -> dict[str, list[str]]:
    """Names of one part by section: listed (the package's lists hold them) and unlisted."""
    words, section, names = lexicon(), "", defaultdict(list)
    for line in (HERE / "phi_people.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:].strip()
        elif not line.startswith("#"):
            for name in line.split():
                if half(name) == split:
                    known = fold(name) in (words.given | words.ambiguous if section == "given" else words.surnames)
                    names[f"{section}_{'listed' if known else 'unlisted'}"].append(name)
    return dict(names)


class Maker:
    """Draws identifiers for one plant from its own key."""

    def __init__(self, item: str, names: dict[str, list[str]]) -> None:
        self.g, self.names = rng(SEED, "phi benchmark", item), names
        self.unlisted = 0  # how many words of the name drawn are in none of the package's lists

    def pick(self, values: Sequence[Any]) -> Any:
        return values[int(self.g.integers(len(values)))]

    def digits(self, pattern: str) -> str:
        """# is any digit, @ a digit from 2 on."""
        return "".join(
            str(self.g.integers(2, 10)) if c == "@" else str(self.g.integers(10)) if c == "#" else c for c in pattern
        )

    def given(self) -> str:
        return self._name("given")

    def surname(self) -> str:
        return self._name("surname")

    def _name(self, section: str) -> str:
        """Half of all names drawn are outside the package's lists."""
        unlisted = bool(self.g.integers(2))
        self.unlisted += unlisted
        return str(self.pick(self.names[f"{section}_{'unlisted' if unlisted else 'listed'}"]))

    def date(self) -> str:
        y, m, d = int(self.g.integers(1925, 2025)), int(self.g.integers(1, 13)), int(self.g.integers(1, 29))
        month = (
            [
                "January",
                "February",
                "March",
                "April",
                "May",
                "June",
                "July",
                "August",
                "September",
                "October",
                "November",
                "December",
            ]
        )[m - 1]
        suffix = "th" if 4 <= d <= 20 or d >= 24 else {1: "st", 2: "nd", 3: "rd"}[d % 10]
        return str(
            self.pick(
                (
                    f"{m:02}/{d:02}/{y}",
                    f"{d:02}/{m:02}/{y}",
                    f"{m}/{d}/{y % 100:02}",
                    f"{y}-{m:02}-{d:02}",
                    f"{d:02}.{m:02}.{y}",
                    f"{month} {d}, {y}",
                    f"{month} {d}{suffix}, {y}",
                    f"{d} {month} {y}",
                    f"{d}{suffix} of {month} {y}",
                    f"{d}-{month[:3]}-{y}",
                    f"{month[:3]} {d}, {y}",
                    f"{month} {d}{suffix}",
                    f"{d:02}-{m:02}-{y}",
                )
            )
        )

    def phone(self) -> str:
        return self.digits(
            str(
                self.pick(
                    (
                        "(@1#) @##-####",
                        "@1#-@##-####",
                        "@0#.@##.####",
                        "+1 @1# @## ####",
                        "1-@1#-@##-####",
                        "+44 7### ######",
                        "07### ######",
                        "020 7### ####",
                        "+34 6## ### ###",
                        "6## ## ## ##",
                        "+91 9#### #####",
                        "+33 6 ## ## ## ##",
                        "01 ## ## ## ##",
                        "+49 30 ########",
                        "0### ### ####",
                        "@1#-@##-#### ext. 4##",
                    )
                )
            )
        )

    def email(self) -> str:
        g, s = re.sub(r"[^a-z]", "", fold(self.given())), re.sub(r"[^a-z]", "", fold(self.surname()))
        host = self.pick(
            ("gmail.com", "yahoo.co.uk", "hotmail.com", "outlook.es", "example.org", "hospital-mail.net", "uni-bonn.de")
        )
        return str(
            self.pick((f"{g}.{s}@{host}", f"{g[0]}{s}{self.digits('##')}@{host}", f"{g}_{s}@{host}", f"{s}@{host}"))
        )

    def address(self) -> str:
        s = self.surname()
        city, state, code = self.pick(
            (
                ("Springfield", "IL", "62704"),
                ("Austin", "TX", "78701"),
                ("Fresno", "CA", "93701"),
                ("Dover", "DE", "19901"),
                ("Tucson", "AZ", "85701"),
                ("Salem", "OR", "97301"),
            )
        )
        n = int(self.g.integers(2, 9800))
        return str(
            self.pick(
                (
                    f"{n} {s} Street, {city}, {state} {code}",
                    f"{n} Oak Avenue, Apt {n % 40 + 1}",
                    f"{n} N. {s} Rd, {city}, {state}",
                    f"{n} Maple Drive, {city}, {state} {code}",
                    f"{n % 300 + 1} High Street, {self.pick(('Reading RG1 2AG', 'Leeds LS1 4DY', 'Cardiff CF10 1EP'))}",
                    f"Calle {s} {n % 200 + 1}, 28013 Madrid",
                    f"Carrer de Mallorca {n % 400 + 1}, 08013 Barcelona",
                    f"{n % 90 + 1} rue de Rivoli, 75004 Paris",
                    f"Bahnhofstraße {n % 90 + 1}, 80335 München",
                    f"P.O. Box {n}",
                    f"{city}, {state} {code}",
                    f"{n} West {n % 90 + 4}th Street, {city}, {state} {code}",
                )
            )
        )

    def mrn(self) -> str:
        return self.digits(
            str(
                self.pick(("########", "#######", "MR-######", "###-##-##@", "H########", "##-######", "A###### "))
            ).strip()
        )

    def national_id(self) -> tuple[str, str]:
        kind = self.pick(("ssn", "dni", "nie", "nhs", "nino", "aadhaar"))
        if kind == "ssn":
            return (
                "SSN",
                f"{self.g.integers(1, 665):03}-{self.g.integers(1, 99):02}-{self.g.integers(1, 9999):04}".replace(
                    "666", "667"
                ),
            )
        if kind in ("dni", "nie"):
            number = (
                int(self.g.integers(1, 9_999_999)) if kind == "nie" else int(self.g.integers(1_000_000, 99_999_999))
            )
            letter = "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]
            return (
                kind.upper(),
                f"X{number:07}{letter}" if kind == "nie" else f"{number:08}{self.pick(('', '-'))}{letter}",
            )
        if kind == "nhs":
            while not nhs(value := self.digits("@## ### ####")):
                pass
            return "NHS number", value
        if kind == "aadhaar":
            while not verhoeff(value := self.digits("@### #### ####")):
                pass
            return "Aadhaar", value
        return "NI number", self.digits(f"{self.pick(('AB', 'JC', 'SR'))} ## ## ## {self.pick('ABCD')}")

    def account(self) -> tuple[str, str]:
        kind = self.pick(("Policy number", "Member ID", "Account number", "Insurance ID", "card", "IBAN"))
        if kind == "card":
            while not luhn(value := self.digits("4### #### #### ####")):
                pass
            return "Card", value
        if kind == "IBAN":
            body = self.digits("####################")
            check = next(c for c in range(2, 99) if iban(f"ES{c:02}{body}"))
            return "IBAN", re.sub(r"(.{4})(?=.)", r"\1 ", f"ES{check:02}{body}")
        return kind, self.digits(str(self.pick(("##########", "W########", "XYZ-######", "####-#####"))))

    def device(self) -> tuple[str, str]:
        return self.pick(("Serial number", "Device ID", "Pacemaker serial number", "Pump serial no.")), self.digits(
            str(self.pick(("SN#######", "##########", "AB-####-###", "M#####X##")))
        )

    def url(self) -> str:
        s = re.sub(r"[^a-z]", "", fold(self.surname()))
        return str(
            self.pick(
                (
                    f"https://www.{s}-family.com/photos",
                    f"www.facebook.com/{s}.{self.digits('##')}",
                    f"http://{s}blog.net/my-story?id={self.digits('###')}",
                    f"https://myportal.example.com/u/{s}{self.digits('##')}",
                )
            )
        )

    def ip(self) -> str:
        return (
            f"{self.g.integers(11, 223)}.{self.g.integers(10, 255)}.{self.g.integers(0, 255)}.{self.g.integers(1, 255)}"
        )

    def age(self) -> str:
        n = int(self.g.integers(90, 108))
        return str(
            self.pick(
                (
                    f"{n}-year-old",
                    f"{n} year old",
                    f"{n} years old",
                    f"{n} yo",
                    f"{n} y/o",
                    f"{n} years of age",
                    f"{n}-yr-old",
                )
            )
        )


def frames() -> dict[str, list[tuple[str, str]]]:
    """Sentences by kind: (place, text with a slot). A bar ends each line of the file, so that a last space is seen."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (HERE / "phi_frames.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, place, text = line.removesuffix("|").split("\t")
            found.setdefault(kind, []).append((place, text.replace("\\n", "\n")))
    return found


FRAMES = frames()
WEIGHTS = {
    "NAME": 10,
    "DATE": 5,
    "PHONE": 4,
    "ADDRESS": 3,
    "EMAIL": 2,
    "AGE": 2,
    "MRN": 3,
    "NATIONAL_ID": 3,
    "URL": 1,
    "IP": 1,
    "ACCOUNT": 2,
    "DEVICE": 1,
}


def held_out(frame: str) -> bool:
    """A third of the sentences never stood in a development text."""
    return hashlib.blake2b(frame.encode()).digest()[1] % 3 == 0


@dataclass(frozen=True)
class Plant:
    """A planted identifier: its place in the text and where it came from."""

    kind: str
    start: int
    end: int
    text: str
    new_frame: bool
    unlisted: bool
    lower: bool


@dataclass
class Planted:
    """A row's text with identifiers in it. `pieces` maps positions back: (start here, start in the row, length)."""

    row: str
    field: str
    source: str
    original: str
    text: str = ""
    plants: list[Plant] = field(default_factory=list)
    pieces: list[tuple[int, int, int]] = field(default_factory=list)


def identifier(kind: str, m: Maker, frame: str) -> tuple[str, list[tuple[int, int]]]:
    """The sentence with its slot filled, and the spans of the identifier in it."""
    if kind == "NAME":
        g, s = m.given(), m.surname()
        slots = {
            "given": g,
            "surname": s,
            "GIVEN": g.upper(),
            "SURNAME": s.upper(),
            "initial": m.pick("ABDEGHJKLMNPRST"),
            "last_first": f"{s}, {g}",
        }
        if "urname}" not in frame and "SURNAME}" not in frame and "last_first" not in frame:
            m.unlisted = int(fold(g) not in lexicon().given | lexicon().ambiguous)
        elif "given}" not in frame and "GIVEN}" not in frame and "last_first" not in frame:
            m.unlisted = int(fold(s) not in lexicon().surnames)
        inner = re.search(r"\{\w+\}(?:[. ]+\{\w+\})*", frame)
        assert inner
        value = re.sub(r"\{(\w+)\}", lambda k: slots[k[1]], inner[0])
        return frame[: inner.start()] + value + frame[inner.end() :], [(inner.start(), inner.start() + len(value))]
    drawn: Any = getattr(m, {"NATIONAL_ID": "national_id"}.get(kind, kind.lower()))()
    label, value = drawn if isinstance(drawn, tuple) else ("", drawn)
    text = frame.replace("{label}", label)
    at = text.index("{x}")
    return text.replace("{x}", value), [(at, at + len(value))]


def plant(row: str, name: str, source: str, text: str, split: str, names: dict[str, list[str]]) -> Planted:
    """One to three identifiers in a text. A text without capitals gets half of them in lower case too."""
    g = rng(SEED, "phi rows", f"{row}/{name}")
    kinds = [k for k, w in WEIGHTS.items() for _ in range(w)]
    out = Planted(row, name, source, text)
    breaks = [m.end() for m in re.finditer(r"[.!?](?=\s+\S)", text)] or [len(text)]
    inserts: list[tuple[int, int, str, Plant]] = []
    used: set[str] = set()
    for i in range(int(g.integers(1, 4))):
        kind = kinds[int(g.integers(len(kinds)))]
        frames = [f for f in FRAMES[kind] if split == "test" or not held_out(f[1])]
        place, frame = frames[int(g.integers(len(frames)))]
        if place in used and place != "middle":
            continue
        used.add(place)
        m = Maker(f"{split}/{row}/{name}/{i}", names)
        sentence, [(a, b)] = identifier(kind, m, frame)
        lower = (
            not re.search("[A-Z]", text) and bool(g.integers(2)) and kind in ("NAME", "DATE", "ADDRESS", "AGE", "PHONE")
        )
        if lower and len(sentence.lower()) == len(sentence):
            sentence = sentence.lower()
        at = {"start": 0, "line": 0, "end": len(text), "last": len(text)}.get(
            place, breaks[int(g.integers(len(breaks)))]
        )
        order = {"line": 0, "start": 1, "middle": 2, "end": 3, "last": 4}[place]
        inserts.append(
            (at, order * 10 + i, sentence, Plant(kind, a, b, sentence[a:b], held_out(frame), m.unlisted > 0, lower))
        )
    at = 0
    for position, _, sentence, p in sorted(inserts, key=lambda x: x[:2]):
        out.pieces.append((len(out.text), at, position - at))
        out.text += text[at:position]
        shift = len(out.text)
        out.plants.append(Plant(p.kind, p.start + shift, p.end + shift, p.text, p.new_frame, p.unlisted, p.lower))
        out.text += sentence
        at = position
    out.pieces.append((len(out.text), at, len(text) - at))
    out.text += text[at:]
    return out
