"""Which folders are another machine's, by the table of mounts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from aloe.generate.network_folder import network_kind


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ([("/", "ext4", "rw")], None),
        ([], None),
        ([("/", "ext4", "rw"), ("{}", "nfs4", "rw,vers=4.2")], "nfs4"),
        ([("{}/runs", "lustre", "rw"), ("/", "overlay", "rw")], "lustre"),
        ([("{}", "nfs", "rw"), ("{}/runs", "xfs", "rw")], None),  # a local disk inside a network folder
        ([("{}", "nfs", "rw"), ("{}", "ext4", "rw")], None),  # mounted over it
        ([("{}/ru", "cifs", "rw"), ("/", "btrfs", "rw")], None),  # the beginning of a name is no folder
        ([("{}", "fuse.sshfs", "rw")], "fuse.sshfs"),
        ([("{}", "fuseblk", "rw")], None),
        ([("{}", "NTFS", "rw,remote")], "ntfs"),
    ],
)
def test_the_deepest_and_last_mount_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: list[tuple[str, str, str]], kind: str | None
) -> None:
    table = [SimpleNamespace(mountpoint=m.format(tmp_path), fstype=f, opts=o) for m, f, o in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: table)
    assert network_kind(tmp_path / "runs" / "family") == kind


def test_a_link_leads_to_where_it_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "share")
    table = [SimpleNamespace(mountpoint=str(tmp_path / "share"), fstype="smb3", opts="rw")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: table)
    assert network_kind(tmp_path / "out") == "smb3"
    assert network_kind(tmp_path) is None


def test_this_machine_is_asked(tmp_path: Path) -> None:
    """Whatever the disk of the tests is, its mount is found."""
    assert any(tmp_path.is_relative_to(p.mountpoint) for p in psutil.disk_partitions(all=True))
    network_kind(tmp_path)
