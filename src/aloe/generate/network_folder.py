"""Whether a folder lies on another machine's disk.

SQLite's write-ahead log needs memory that all its processes share, so it must not be used over a network
(sqlite.org/wal.html, "all processes using a database must be on the same host computer"). A rollback journal needs
working file locks only.
"""

from __future__ import annotations

from pathlib import Path

import psutil

NETWORK = frozenset({
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "sshfs", "vboxsf",
    "virtiofs", "vmhgfs", "wekafs",
})  # fmt: skip


def network_kind(folder: Path) -> str | None:
    """The file system of `folder` where it is, or may be, another machine's; None for a local disk.

    What a user-space file system (`fuse.*`) does with shared memory and locks isn't known, so it counts as one.
    """
    place = folder.resolve()
    if place.drive.startswith("\\\\"):
        return "unc"
    # Later mounts lie over earlier ones of the same place, deeper ones over those above.
    mounts = [p for p in psutil.disk_partitions(all=True) if place.is_relative_to(p.mountpoint)]
    if not mounts:
        return None
    found = max(enumerate(mounts), key=lambda m: (len(Path(m[1].mountpoint).parts), m[0]))[1]
    kind = found.fstype.lower()
    is_remote = kind in NETWORK or kind.startswith("fuse.") or "remote" in found.opts.split(",")
    return (kind or "remote") if is_remote else None
