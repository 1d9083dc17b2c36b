"""Runs the loop to its end through kills by SIGKILL at every kind of place. Run by `test_loop_step.py`.

    python kill_loop.py GIVEN FOLDER

Every run is a fork of this process. Places: among the replies of a measurement, between replies and pairs, before and
after a stage's folder gets its name, in an optimiser step of either round, and while the artifact is written.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from fake_loop import LOOP, FakeContext, use_babble

from aloe.generate import reply_store
from aloe.hardening import loop, place
from aloe.hardening.step import RedTeamLoop
from aloe.train.loop import Loop as Training
from tests import killed

# (what, the how manieth time)
PLACES = (
    ("reply", 5), ("renamed", 1), ("reply", 12), ("step", 3), ("stage", 2), ("renamed", 1), ("step", 2), ("record", 1),
)  # fmt: skip


def deadly(what: str, count: int) -> None:
    """Have this process kill itself there."""
    left = [count]

    def die(where: str) -> None:
        if where == what:
            left[0] -= 1
            if left[0] == 0:
                killed.die()

    put, replace, step, copy = reply_store.ReplyStore.put, os.replace, Training._step, loop.copy_model

    def putting(self: Any, rows: Any) -> Any:
        die("reply")
        return put(self, rows)

    def renaming(source: Any, target: Any) -> None:
        partial = str(source).endswith(".partial")
        if partial:
            die("stage")
        replace(source, target)
        if partial:
            die("renamed")

    def stepping(self: Any, *rest: Any) -> None:
        die("step")
        step(self, *rest)

    def copying(*rest: Any) -> None:
        copy(*rest)
        die("record")

    reply_store.ReplyStore.put = putting  # type: ignore[method-assign]
    place.os.replace = renaming  # type: ignore[assignment]
    Training._step = stepping  # type: ignore[method-assign]
    loop.copy_model = copying


def main() -> None:
    given = {k: Path(v) for k, v in json.loads(Path(sys.argv[1]).read_text()).items()}
    root = Path(sys.argv[2])
    killed.prepare(given["start"])
    use_babble()

    def run(name: str) -> None:
        torch.set_num_threads(1)
        RedTeamLoop.model_validate({**LOOP, "rounds": 2}).run(FakeContext(root, given, name))  # type: ignore[arg-type]

    died = []
    for what, count in PLACES:

        def attempt(what: str = what, count: int = count) -> None:
            deadly(what, count)
            run("killed")

        killed.must_die(attempt, f"{what} {count}")
        died.append(what)
    killed.must_end(lambda: run("resumed"), "the last run")
    print(json.dumps({"killed": len(died), "places": len(PLACES)}))


if __name__ == "__main__":
    main()
