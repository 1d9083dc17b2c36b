"""Known vulnerabilities of what aloe runs on: `make audit`.

    python benchmarks/audit.py [--environment .venv] [--service pypi|osv] [--out FILE]

Asks pip-audit, in an environment of its own (`sh benchmarks/peers.sh audit`), about every distribution installed in the
project's environment and every version in constraints.txt. pip-audit calls a package that it could not ask about
"skipped", says "No known vulnerabilities found" beside it, and exits with 0. Here what was not asked about is counted
as that: exit code 0 only if everything was asked about and nothing found, 1 for a finding, 2 where something, or all of
it, could not be asked about.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HOME = Path(os.environ.get("ALOE_PEERS", Path.home() / ".cache" / "aloe-peers"))
OWN = "aloe-llm"  # not on the index before its release
CLEAN, FOUND, NOT_ASKED = 0, 1, 2


def ask(arguments: list[str], service: str) -> dict[str, Any]:
    """What pip-audit says: counts, findings, and why packages were not asked about."""
    command = [str(HOME / "audit" / "bin" / "pip-audit"), "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run([*command, "--vulnerability-service", service, *arguments], capture_output=True, text=True)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        last = [line for line in done.stderr.splitlines() if line.strip()]
        why = last[-1][:300] if last else f"exit code {done.returncode}"
        return {"asked": 0, "not_asked": None, "findings": [], "reasons": [why]}
    return summary(told)


def summary(told: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of pip-audit's JSON."""
    rest = [d for d in told["dependencies"] if d["name"] != OWN]
    skipped = [d for d in rest if "skip_reason" in d]
    findings = [
        {"name": d["name"], "version": d["version"], "id": v["id"], "fixed_in": v.get("fix_versions", [])}
        for d in rest
        for v in d.get("vulns", ())
    ]
    reasons = sorted({str(d["skip_reason"]).split(":")[0] for d in skipped})
    return {"asked": len(rest) - len(skipped), "not_asked": len(skipped), "findings": findings, "reasons": reasons}


def verdict(found: Mapping[str, Mapping[str, Any]]) -> int:
    """The exit code."""
    if any(one["findings"] for one in found.values()):
        return FOUND
    return CLEAN if all(one["not_asked"] == 0 and one["asked"] for one in found.values()) else NOT_ASKED


def lines(name: str, one: Mapping[str, Any]) -> list[str]:
    """What is printed of one audit."""
    missing = "all" if one["not_asked"] is None else one["not_asked"]
    said = [f"{name}: {one['asked']} asked about, {len(one['findings'])} findings, {missing} not asked about"]
    said += [f"  {f['name']} {f['version']}: {f['id']}, fixed in {f['fixed_in'] or 'none'}" for f in one["findings"]]
    return said + [f"  not asked about: {reason}" for reason in one["reasons"]]


def main() -> int:
    from aloe import __version__
    from aloe.run.execute import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=Path(sys.prefix))
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "audit.json")
    options = parser.parse_args()
    [site] = (options.environment / "lib").glob("python*/site-packages")
    what = {
        "environment": ["--path", str(site)],
        "constraints.txt": ["--requirement", str(ROOT / "constraints.txt"), "--disable-pip", "--no-deps"],
    }
    found = {name: ask(arguments, options.service) for name, arguments in what.items()}
    print("\n".join(line for name, one in found.items() for line in lines(name, one)))
    code = verdict(found)
    if code == NOT_ASKED:
        print("This is no clean bill: what was not asked about may be vulnerable. Run it where the network allows.")
    told = {"service": options.service, "date": date.today().isoformat(), "audits": found, "exit_code": code,
            "aloe": __version__, "machine": machine()}  # fmt: skip
    options.out.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
