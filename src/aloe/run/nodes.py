"""Nodes of one run: the one that leads announces its training steps in the store, the others take part in them."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.run.store import Store, write_aside
from aloe.run.torchrun import NODES, POLL, REFUSED, RUN, Call, attend, software


@contextmanager
def open_to_nodes(store: Store, launch: Any) -> Iterator[None]:
    """While a run is open, `aloe join` on other nodes takes part in its training steps."""
    if launch.nodes == 1:
        yield
        return
    state = {"run": os.environ.get(RUN) or uuid.uuid4().hex, "open": True, "call": None}
    write_aside(store.folder / NODES, json.dumps(state))
    try:
        yield
    finally:
        write_aside(store.folder / NODES, json.dumps({**state, "open": False}))


def join(root: Path, say: Any = print) -> int:
    """Take part in the run that another node leads below `root` (`OUT/<family>`), until it ends; steps joined.

    `root` and all inputs must have the same path here: a shared file system. A run that is killed leaves this waiting
    for the next one.

    Raises:
        AloeError: the processes here failed, and the leading node says why; or this node has other software, which
            ends the step there too.
    """
    path = root.resolve() / ".store" / NODES
    began, wanted = time.time(), os.environ.get(RUN, "")
    run = wanted
    served: list[str] = []
    say(f"waiting for a run with several nodes below {root}")
    while True:
        state: dict[str, Any] = {"open": False, "run": "", "call": None}
        if path.exists():
            state = json.loads(path.read_text())
        if wanted and state["run"] != wanted:
            time.sleep(POLL)  # another run's, which may have been killed
            continue
        if state["open"]:
            run = state["run"]
        elif path.exists() and (state["run"] == run or path.stat().st_mtime > began):
            return len(served)
        if state["open"] and state["call"] and state["call"]["identity"] not in served:
            folder = Path(state["call"]["job"]).parent
            if not folder.exists():
                continue
            _check_software(state.get("software", {}), folder, root)
            call = Call(**state["call"])
            served.append(call.identity)
            say(f"joining {folder.name} with {call.processes} processes")
            if code := attend(call, folder, None):
                raise AloeError(
                    f"the processes of this node ended with exit code {code}",
                    where=str(root),
                    fix="the leading node says why; start `aloe join` again with the next `aloe run`",
                )
        time.sleep(POLL)


def _check_software(theirs: Mapping[str, str], folder: Path, root: Path) -> None:
    """Ranks of unlike software would wait for each other without end, or train something that neither can make again.

    Raises:
        AloeError: something differs. The leading node finds the same words in `folder`.
    """
    ours = software()
    differing = [name for name in ours if theirs.get(name) != ours[name]]
    if not differing:
        return
    host = socket.gethostname()
    first = differing[0]
    error = AloeError(
        f"node {host} has {first} {ours[first]}, the leading node {theirs.get(first, 'none that it names')}"
        + (f"; {', '.join(differing[1:])} differ too" if differing[1:] else ""),
        where=str(root),
        fix="install the same versions on every node, best from one lock file or one shared environment",
    )
    about = {"rank": -1, "time": time.time(), "what": error.what, "where": error.where, "fix": error.fix}
    write_aside(folder / REFUSED.format(host), json.dumps({**about, "errno": None, "message": "", "traceback": ""}))
    raise error
