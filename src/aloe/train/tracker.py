"""An optional tracker, fed the figures that a run writes into its own JSON Lines, which stay the record."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any, Literal

from aloe.errors import AloeError

Log = Callable[[str], None]


class Tracker:
    """Sends figures to trackio, on this machine. It may fail without harm.

    Args:
        kind: None sends nothing.
        project, name: of the run.
        resumed: go on with the latest run of that name if there is one; steps done again then appear twice.
        config: shown with the run.
        log: told once when the tracker fails.
        server: address of the user's own trackio server; without one nothing leaves the machine, whatever the
            environment says of Spaces.

    Raises:
        AloeError: trackio is asked for and can't be imported.
    """

    def __init__(
        self,
        kind: Literal["trackio"] | None,
        project: str,
        name: str,
        config: Mapping[str, Any],
        log: Log,
        resumed: bool = True,
        server: str | None = None,
    ) -> None:
        self._log = log
        self._trackio: Any = None
        if kind is None:
            return
        with _local_only(log):
            try:
                self._trackio = importlib.import_module("trackio")
            except ImportError as cause:
                raise AloeError(
                    f"the tracker trackio can't be imported: {cause}", where="track", fix="pip install trackio"
                ) from None
            with self._forgiven():
                self._trackio.init(
                    project=project,
                    name=name,
                    config=dict(config),
                    server_url=server,
                    resume="allow" if resumed else "never",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )

    def log(self, figures: Mapping[str, Any], step: int, group: str) -> None:
        """Send the numbers of `figures`, named `group/name`; other values and what isn't finite are left out."""
        numbers = {
            f"{group}/{name}": value
            for name, value in figures.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        if self._trackio is not None and numbers:
            with self._forgiven():
                self._trackio.log(numbers, step=step)

    def finish(self) -> None:
        """Say that the run is over."""
        if self._trackio is not None:
            with self._forgiven():
                self._trackio.finish()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        """Training goes on without a tracker that fails; what it prints stays out of ours."""
        try:
            with redirect_stdout(StringIO()):
                yield
        except Exception as cause:  # whatever a foreign package raises
            self._log(f"warning: the tracker failed and gets nothing more ({type(cause).__name__}: {cause})")
            self._trackio = None


@contextmanager
def _local_only(log: Log) -> Iterator[None]:
    """Hide what would make trackio send a run away without the recipe's word, and the packages below it phone home."""
    away = [n for n in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL") if os.environ.get(n)]
    if away:
        log(f"{', '.join(away)} in the environment is not heeded: what this run tracks stays on this machine")
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    before = {name: os.environ.get(name) for name in (*away, *quiet)}
    for name in away:
        del os.environ[name]
    os.environ.update(quiet)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
