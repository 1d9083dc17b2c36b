"""Energy and carbon of a release: measured hours x stated power x stated grid intensity.

The Aloe papers compute energy = devices x thermal design power x hours, and carbon = energy x 158 g CO2/kWh (Spain,
2023). Hours here come from the manifests; power and intensity are the user's, each with its source. What isn't stated
is reported as unknown, never filled in. Sums are exact (fractions) and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from aloe.errors import AloeError


@dataclass(frozen=True)
class Stated:
    """A figure from outside: `value` None when nobody stated it; `source` says who did."""

    value: float | None
    source: str


@dataclass(frozen=True)
class Line:
    """One step: hours are measured, the rest is None where unknown."""

    step: str
    hours: float
    kwh: float | None
    grams: float | None


@dataclass(frozen=True)
class Footprint:
    """`power` in watts (all devices together), `intensity` in g CO2-equivalent per kWh; totals over `lines`."""

    lines: tuple[Line, ...]
    hours: float
    kwh: float | None
    grams: float | None
    power: Stated
    intensity: Stated

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "steps": [vars(line) for line in self.lines],
            "hours": self.hours,
            "kwh": self.kwh,
            "grams_co2e": self.grams,
            "power_watts": vars(self.power),
            "intensity_g_per_kwh": vars(self.intensity),
            "unknown": [n for n, s in (("power", self.power), ("intensity", self.intensity)) if s.value is None],
        }


def footprint(wall_seconds: Mapping[str, float], power: Stated, intensity: Stated) -> Footprint:
    """Energy and carbon of named steps.

    Args:
        wall_seconds: measured seconds by step.
        power: watts drawn while a step runs, all devices together (for N devices: N x their power).
        intensity: grams of CO2-equivalent per kWh of the grid used.
    """
    for name, stated in (("power_watts", power), ("intensity_g_per_kwh", intensity)):
        if stated.value is not None and stated.value < 0:
            raise AloeError(f"{stated.value} is negative", where=name, fix="give watts or g/kWh as a positive number")
        if stated.value is not None and not stated.source.strip():
            raise AloeError(
                "a figure without a source", where=name, fix="say where it comes from (data sheet, meter, year)"
            )
    seconds = {step: Fraction(str(s)) for step, s in wall_seconds.items()}
    lines = tuple(
        Line(step, float(s / 3600), _float(_kwh(s, power)), _float(_grams(s, power, intensity)))
        for step, s in seconds.items()
    )
    total = sum(seconds.values(), Fraction(0))
    return Footprint(
        lines,
        float(total / 3600),
        _float(_kwh(total, power)),
        _float(_grams(total, power, intensity)),
        power,
        intensity,
    )


def _kwh(seconds: Fraction, power: Stated) -> Fraction | None:
    return None if power.value is None else seconds / 3600 * Fraction(str(power.value)) / 1000


def _grams(seconds: Fraction, power: Stated, intensity: Stated) -> Fraction | None:
    kwh = _kwh(seconds, power)
    return None if kwh is None or intensity.value is None else kwh * Fraction(str(intensity.value))


def _float(value: Fraction | None) -> float | None:
    return None if value is None else float(value)
