"""Everything that can go wrong around a run: no room, no rights, a clock that jumps, a pause, another run.

    python benchmarks/faults/surroundings.py [--quick] [--out FILE]

The recipe is four small steps that do what steps do with the disk (artifacts, a cache, a request ledger with replies),
so that it can be broken at every single call that changes a file. For each call of an undisturbed run: this call and
all that follow fail (the disk is full until someone makes room), or this call alone fails, each with several error
numbers; then nothing fails any more and the same recipe runs again. It must have ended in one error that tells what
happened and what to do, or in success where what failed only saves time; what was finished before must still be there;
and the second run must leave the bytes that an undisturbed one leaves. Where this user may mount (root, or a user
namespace), the same on a real file system of a few pages, and on one that is mounted read-only.

The last line printed is one JSON object. Exit code 1 if anything was lost, or an error had no fix.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from same import Compared
from shim import Disk, forked, preloaded, settled
from small_steps import DURING, RECIPE, STEPS

NUMBERS = {
    "ENOSPC": errno.ENOSPC,
    "EDQUOT": errno.EDQUOT,
    "EIO": errno.EIO,
    "EROFS": errno.EROFS,
    "EACCES": errno.EACCES,
}
Found = dict[str, Any]


class Ground:
    """Runs the small recipe in forks of this process, and keeps what an undisturbed one left."""

    def __init__(self, place: Path, disk: Disk) -> None:
        from aloe import recipe

        recipe.VERBS = STEPS
        with tempfile.TemporaryDirectory() as warm:
            self.run(Path(warm))  # imports what a run imports, so that every fork has it
        settled()
        self.place, self.disk, self.said = place, disk, place / "said"
        self.whole = place / "whole"
        seen = place / "seen"

        def undisturbed() -> None:
            disk.count(self.whole)
            self.run(self.whole)
            seen.write_text(str(disk.seen))

        if forked(undisturbed) != 0:
            raise SystemExit("the undisturbed run failed")
        self.calls = int(seen.read_text())

    def run(self, out: Path, redo: tuple[str, ...] = ()) -> list[str]:
        """The recipe in this process; names of the steps made."""
        from aloe.recipe import Recipe
        from aloe.run.execute import run_recipe
        from aloe.run.progress import Console

        return run_recipe(Recipe.parse(RECIPE), out=out, redo=redo, console=Console(quiet=True)).made

    def attempt(self, out: Path, before: Callable[[], None] = lambda: None, redo: tuple[str, ...] = ()) -> Found:
        """Run it in a fork: `ended` is done, error (ours, with `said` and whether it has a fix) or broken."""
        self.said.unlink(missing_ok=True)

        def work() -> None:
            from aloe.errors import AloeError

            said: Found
            before()
            try:
                said = {"ended": "done", "made": self.run(out, redo)}
            except AloeError as cause:
                said = {"ended": "error", "said": cause.what, "fix": cause.fix}
            except BaseException as cause:
                said = {"ended": "broken", "said": f"{type(cause).__name__}: {cause}"}
            count, first = self.disk.failed
            self.disk.off()
            self.said.write_text(json.dumps({**said, "failed": count, "first": first}))

        code = forked(work)
        return json.loads(self.said.read_text()) if self.said.exists() else {"ended": "broken", "said": f"exit {code}"}

    def finished(self, out: Path) -> dict[str, str]:
        """Manifest digests of the finished artifacts."""
        found = {}
        for path in (out / "small" / ".store").glob("*/manifest.json"):
            if not path.parent.name.startswith(("tmp-", "old-")):
                found[path.parent.name] = json.loads(path.read_text())["manifest_digest"]
        return found

    def resumed(self, out: Path, broken: Found, kept: dict[str, str]) -> list[str]:
        """Everything wrong with how a run ended and was taken up again."""
        wrong = []
        if broken["ended"] == "broken":
            wrong.append(f"no error of ours: {broken['said'][:200]}")
        if broken["ended"] == "error" and not broken["fix"]:
            wrong.append(f"no fix: {broken['said'][:200]}")
        lost = [name for name, digest in kept.items() if self.finished(out).get(name) != digest]
        again = self.attempt(out)
        if again["ended"] != "done":
            wrong.append(f"the second run ended so: {again.get('said', '')[:200]}")
        else:
            wrong += Compared(self.whole / "small", out / "small").differences
        return wrong + [f"{name} was lost" for name in lost]


def every_call(ground: Ground, number: int, once: bool, stride: int) -> Found:
    """Fail at each call in turn."""
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    said: Counter[str] = Counter()
    for n in range(1, ground.calls + 1, stride):
        out = ground.place / "out"
        found = ground.attempt(out, lambda n=n, out=out: ground.disk.fail_at(out, n, number, once))  # type: ignore[misc]
        ended[found["ended"]] += 1
        if found["ended"] == "error":
            said[found["said"].split("(")[0].split(":")[-1].strip()] += 1
        wrong += [f"call {n} ({found.get('first')}): {w}" for w in ground.resumed(out, found, ground.finished(out))]
        shutil.rmtree(out, ignore_errors=True)
    return {"calls_failed": sum(ended.values()), "ended": dict(ended), "said": dict(said), "wrong": wrong}


def redo_killed(ground: Ground, stride: int) -> Found:
    """Make a finished artifact anew, killed at each call: one of the two must be there at any time."""
    wrong, killed = [], 0
    for n in range(1, ground.calls + 1, stride):
        out = ground.place / "out"
        shutil.copytree(ground.whole, out, symlinks=True)
        before = ground.finished(out)

        def work(n: int = n, out: Path = out) -> None:
            ground.disk.kill_at(out, n)
            ground.run(out, ("model",))

        code = forked(work)
        killed += code == -signal.SIGKILL
        store = out / "small" / ".store"
        there = {p.name.removeprefix("old-") for p in store.glob("*") if (p / "manifest.json").exists()}
        wrong += [f"call {n}: {name} was lost" for name in before if name not in there]
        again = ground.attempt(out)
        if again["ended"] != "done" or Compared(ground.whole / "small", out / "small").differences:
            wrong.append(f"call {n}: the next run ended so: {again}")
        if code == 0:
            shutil.rmtree(out)
            break
        shutil.rmtree(out)
    return {"kills": killed, "wrong": wrong}


# -- real file systems and rights -----------------------------------------------------------------------------------


def may_mount() -> bool:
    """Whether this process can mount: `main` starts it in a mount namespace of its own where that is allowed."""
    return "ALOE_FAULT_MOUNTS" in os.environ


def real_full_disk(ground: Ground, sizes: list[int]) -> Found:
    """A file system of so many KiB: too small for the recipe, until it grows."""
    wrong, ended = [], Counter[str]()
    for size in sizes:
        out = ground.place / "tiny"
        out.mkdir()
        mount("-t", "tmpfs", "-o", f"size={size}k", "none", str(out))
        try:
            found = ground.attempt(out)
            ended[found["ended"]] += 1
            kept = ground.finished(out)
            mount("-o", "remount,size=64m", str(out))
            wrong += [f"{size} KiB: {w}" for w in ground.resumed(out, found, kept)]
        finally:
            subprocess.run(["umount", str(out)], check=True)
            out.rmdir()
    return {"file_systems": len(sizes), "ended": dict(ended), "wrong": wrong}


def real_read_only(ground: Ground) -> Found:
    """A finished output mounted read-only: a run says so, a plan works."""
    out = ground.place / "tiny"
    out.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "none", str(out))
    try:
        shutil.copytree(ground.whole, out, symlinks=True, dirs_exist_ok=True)
        mount("-o", "remount,ro", str(out))
        found = ground.attempt(out)
        planned = forked(lambda: plan_all(out))
        wrong = [] if found["ended"] == "error" and found["fix"] else [f"ended so: {found}"]
        return {"said": found.get("said"), "wrong": wrong + ([] if planned == 0 else ["`aloe plan` failed"])}
    finally:
        subprocess.run(["umount", str(out)], check=True)
        out.rmdir()


def plan_all(out: Path) -> None:
    """Every step must be planned as fresh."""
    from aloe.recipe import Recipe
    from aloe.run.plan import plan
    from aloe.run.store import Store

    states = {p.state for p in plan(Recipe.parse(RECIPE), Store(out / "small"))}
    if states != {"fresh"}:
        raise AssertionError(states)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def _readable_by_others(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


def rights_taken(ground: Ground) -> Found:
    """In the middle of a step the user loses the right to write to the store. Root has every right, so root steps
    down first."""
    out = Path(tempfile.mkdtemp(prefix="aloe-rights-"))
    os.chmod(out, 0o777)
    store = out / "small" / ".store"
    taken = f"import os; os.chmod({str(store)!r}, 0o555); os.chmod(ctx.out, 0o555)"
    during = ground.place / "during"
    during.write_text(taken)
    os.chmod(ground.place, 0o777)

    def step_down() -> None:
        os.environ[DURING] = str(during)
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)

    try:
        found = ground.attempt(out, step_down)
        if not store.exists() and os.getuid() == 0 and not _readable_by_others(Path(os.__file__)):
            # Whoever root became can't read this Python: what it had not imported yet, it never could.
            return {"said": None, "wrong": [], "not_tried": "another user can't read the interpreter's files"}
        os.chmod(store, 0o755)
        for left in store.glob("tmp-*"):
            os.chmod(left, 0o755)
        during.unlink()
        return {"said": found.get("said"), "wrong": ground.resumed(out, found, ground.finished(out))}
    finally:
        shutil.rmtree(out, ignore_errors=True)


# -- time and company -----------------------------------------------------------------------------------------------


def clock_jumps(ground: Ground) -> Found:
    """The clock is set back and forth by a day at every look at it."""

    def jump() -> None:
        real, turn = time.time, [0]

        def jumping() -> float:
            turn[0] += 1
            return real() + 86_400 * (-1) ** turn[0] * turn[0]

        time.time = jumping

    out = ground.place / "out"
    found = ground.attempt(out, jump)
    wrong = ground.resumed(out, found, ground.finished(out)) + ([] if found["ended"] == "done" else ["didn't end well"])
    shutil.rmtree(out)
    return {"ended": found["ended"], "wrong": wrong}


def paused_and_shared(ground: Ground, seconds: float) -> Found:
    """A run is stopped in the middle (SIGSTOP). Another one on the same folder is refused; after SIGCONT the first ends
    well. Then a run is killed while it holds the lock, and the next one has it at once."""
    wrong: list[str] = []
    out = ground.place / "out"
    during, mark = ground.place / "during", ground.place / "mark"
    during.write_text(f"import time; open({str(mark)!r}, 'w').close(); time.sleep(0.5)")

    def begun() -> int:
        mark.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ[DURING] = str(during)
                ground.run(out)
                code = 0
            finally:
                os._exit(code)
        while not mark.exists():
            time.sleep(0.01)
        return child

    child = begun()
    os.kill(child, signal.SIGSTOP)
    time.sleep(seconds)
    refused = ground.attempt(out)
    if refused["ended"] != "error" or f"process {child}" not in refused["said"]:
        wrong.append(f"a second run ended so: {refused}")
    os.kill(child, signal.SIGCONT)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        wrong.append("the paused run failed")
    wrong += Compared(ground.whole / "small", out / "small").differences
    shutil.rmtree(out)

    child = begun()
    with open(out / "small" / ".store" / "lock") as lock:
        held = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = True
    if not held:
        wrong.append("a run that is under way holds no lock")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    during.unlink()
    wrong += ground.resumed(out, {"ended": "done"}, ground.finished(out))
    shutil.rmtree(out)
    return {"paused_seconds": seconds, "said_to_the_second_run": refused.get("said"), "wrong": wrong}


def namespaced() -> None:
    """Go on in a mount namespace of its own, where that is allowed, so that nobody else sees the mounts."""
    words = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    if may_mount() or shutil.which("unshare") is None or subprocess.run([*words, "true"], check=False).returncode:
        return
    env = {**os.environ, "ALOE_FAULT_MOUNTS": "1"}
    raise SystemExit(subprocess.run([*words, sys.executable, *sys.argv], env=env, check=False).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="every 11th or 33rd call, instead of each or every third")
    args = parser.parse_args()
    namespaced()
    preloaded()
    from aloe import __version__
    from aloe.run.execute import machine

    stride = 11 if args.quick else 1
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder).resolve(), Disk())
        found: Found = {"calls_that_change_a_file": ground.calls, "stride": stride}
        for name, number in NUMBERS.items():
            sparse = stride if name == "ENOSPC" else 3 * stride  # the others differ in the words alone
            found[f"{name} from a call on"] = every_call(ground, number, False, sparse)
        found["ENOSPC at one call"] = every_call(ground, errno.ENOSPC, True, stride)
        found["killed while an artifact is made anew"] = redo_killed(ground, stride)
        if may_mount():
            found["a real disk that is full"] = real_full_disk(ground, [64, 200, 330, 400, 640, 700, 760, 900])
            found["a real disk that is read-only"] = real_read_only(ground)
        found["rights taken in the middle"] = rights_taken(ground)
        found["a clock that jumps by days"] = clock_jumps(ground)
        found["a pause, a second run, a killed one"] = paused_and_shared(ground, 0.5 if args.quick else 70.0)
    wrong = {name: part["wrong"] for name, part in found.items() if isinstance(part, dict) and part["wrong"]}
    result = {"surroundings": found, "surroundings_machine": machine(), "aloe": __version__}
    if args.out:
        old = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        args.out.write_text(json.dumps({**old, **result}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    if wrong:
        sys.exit("\n".join(f"{name}: {w}" for name, these in wrong.items() for w in these[:10]))


if __name__ == "__main__":
    main()
