"""A toy verb that several processes share, and the ranks that run it: `python -m rank_toys JOB` is `aloe.worker`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

from aloe import worker
from aloe.contract import Context, Kind, RowsRef, Step
from aloe.errors import AloeError


class Share(Step):
    """What each rank does is said by `act`; files named after their pid go to `pids`."""

    verb: ClassVar[str] = "share"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "dialogues"
    parallel: ClassVar[bool] = True
    rows: RowsRef
    pids: str
    act: Literal["work", "refuse", "die", "hang"] = "work"

    def run(self, ctx: Context) -> dict[str, Any]:
        rank = int(os.environ.get("RANK", "0"))
        (Path(self.pids) / f"{os.getpid()}").write_text(str(rank))
        if self.act == "work":
            return self._work(ctx)
        if rank == 1 and self.act == "refuse":
            raise AloeError("row 3 has no answer", where="rows.jsonl:3", fix="give it one")
        if rank == 1 and self.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
        return {}

    def _work(self, ctx: Context) -> dict[str, Any]:
        from aloe.train.parallel import Team

        team = Team.join()
        ctx.log(f"rank {team.rank} speaks")
        with ctx.progress("work", 2, "rows") as bar:
            bar.advance(1, loss=0.5)
            bar.advance(1, loss=0.25)
        (ctx.out / "rows.txt").write_text(f"by rank {team.rank}: {ctx.path(self.rows).read_text()}")
        ctx.ledger("share", rows_in=3, kept=2, dropped={"empty": 1})
        ctx.count_tokens(trained=10)
        ranks = team.sum({"ranks": team.rank + 1.0})["ranks"]
        (ctx.cache / "half").mkdir(exist_ok=True)
        ctx.done_with(ctx.cache / "half")
        threads = os.environ["OMP_NUM_THREADS"]
        about = {"strategy": team.strategy, "seed": ctx.seed, "name": ctx.name, "family": ctx.family}
        about["attention"] = ctx.hardware.attention
        return {"ranks": ranks, "threads": threads, "digest": ctx.digest(self.rows), **about}


RECIPE = """\
family: toy
seed: 3
licence: cc-by-nc-4.0
launch: {launch}
steps:
  shared:
    share: {{rows: {rows}, pids: {pids}, act: {act}}}
"""

if __name__ == "__main__":
    worker.main(sys.argv[1], {"share": Share})
