"""A run with keys in its environment: none of them is in any file it leaves, nor in anything it prints."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "generate"))
from fault_server import FaultServer, refused

KEYS = {
    "MY_SERVER_KEY": "planted-7f3a91-server-key", "HF_TOKEN": "hf_planted7f3a91huggingface",
    "OPENAI_API_KEY": "sk-planted-7f3a91-openai", "ANTHROPIC_API_KEY": "sk-ant-planted-7f3a91",
    "AWS_SECRET_ACCESS_KEY": "planted/7f3a91/aws+secret", "WANDB_API_KEY": "planted7f3a91wandb",
}  # fmt: skip
RECIPE = """\
family: secrets
licence: cc-by-nc-4.0
servers:
  big: {{endpoints: ["{url}"], model: m, key_env: MY_SERVER_KEY, attempts: 1, backoff_s: 0.01, give_up_s: 1}}
steps:
  reasoning:
    synthesize: {{questions: starter/medical_mcq, writer: big, limit: 3}}
"""


def forms(secret: str) -> list[bytes]:
    """A key as it is, and as headers and URLs carry it."""
    return [secret.encode(), base64.b64encode(secret.encode()), secret.encode("utf-16-le")]


def test_no_key_is_in_a_file_or_on_the_screen(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(call: object) -> object:
        seen.append({k.lower(): v for k, v in call.headers.items()}.get("authorization", ""))  # type: ignore[attr-defined]
        # A server that quotes the key it was given, as some do when they refuse it.
        return refused(401, f"bad key {seen[-1]}") if len(seen) > 3 else refused(400, f"bad request with {seen[-1]}")

    with FaultServer(answer) as server:  # type: ignore[arg-type]
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(url=server.url))
        printed = b""
        for command in (["plan", "--full", "recipe.yaml"], ["plan", "recipe.yaml"], ["run", "recipe.yaml"]):
            done = subprocess.run(
                [sys.executable, "-m", "aloe", *command], cwd=tmp_path, capture_output=True, timeout=300,
                env={**os.environ, **KEYS, "HOME": str(tmp_path), "ALOE_HOME": str(tmp_path / "home")},
            )  # fmt: skip
            printed += done.stdout + done.stderr
    assert any(KEYS["MY_SERVER_KEY"] in header for header in seen), printed.decode()[-4000:]  # it was used
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    for name, secret in KEYS.items():
        for form in forms(secret):
            assert form not in printed, f"{name} was printed"
            for path in files:
                assert form not in path.read_bytes(), f"{name} is in {path.relative_to(tmp_path)}"
