"""A full disk: the error says which one, whatever wrote to it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.runtime import _full_disk_named
from mmbert import storage
from mmbert.errors import InfrastructureError


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_download_names_the_disk_that_it_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "file").write_text("text")
    monkeypatch.setattr(shutil, "copyfile", _full)
    with pytest.raises(InfrastructureError, match=f"^{tmp_path}/cache/file: the disk is full"):
        storage.download(str(tmp_path / "store" / "file"), tmp_path / "cache" / "file")
    with pytest.raises(InfrastructureError, match=f"^{tmp_path}/store/file: the disk is full"):
        storage.upload(str(tmp_path / "store" / "file"), tmp_path / "other")


@pytest.mark.parametrize("full", ["scratch", "cache"])
def test_a_component_names_the_folder_whose_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    def statvfs(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=0 if folder.name == full else 10**6, f_frsize=4096, f_favail=100)

    monkeypatch.setattr(os, "statvfs", statvfs)
    with (
        pytest.raises(InfrastructureError, match=f"{full}: the disk is full; free some space"),
        _full_disk_named(tmp_path / "scratch", tmp_path / "cache"),
    ):
        _full()
