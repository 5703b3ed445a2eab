"""Checkpoints altered by accident or on purpose: read as they were, or refused; nothing of them runs."""

from __future__ import annotations

import random
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmbert.errors import UserError
from mmbert.release import sources
from mmbert.release.checkpoints import check_composer, restricted_loading
from mmbert.release.sources import TrainedModel
from tests.pickled import Call

CHECKPOINT = Path(__file__).parent.parent / "fixtures" / "original" / "ext" / "ep0-ba2-rank0.pt"


@dataclass(frozen=True)
class Archive:
    """A checkpoint's bytes, and where in them its pickle and its zip directory lie."""

    data: bytes
    pickle: range
    directory: range

    def with_bit_flipped(self, place: int, bit: int) -> bytes:
        altered = bytearray(self.data)
        altered[place] ^= 1 << bit
        return bytes(altered)

    def with_pickle_altered(self, place: int, bit: int) -> bytes:
        """As an attacker would: the pickle's checksums are right again, in its header and in the directory."""
        altered = self.with_bit_flipped(place, bit)
        before, after = (zlib.crc32(d[self.pickle.start : self.pickle.stop]) for d in (self.data, altered))
        return altered.replace(struct.pack("<I", before), struct.pack("<I", after))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """One of the original's checkpoints, with what belongs to one of its layers: small, so that reading is quick."""
    content = torch.load(CHECKPOINT, weights_only=False)
    optimizer = content["state"]["optimizers"]["StableAdamW"]
    kept = {name: value for name, value in content["state"]["model"].items() if ".layers.3." in name}
    content["state"]["model"] = {name: value.clone() for name, value in kept.items()}
    optimizer["state"] = {
        name: {slot: None if value is None else value.clone() for slot, value in optimizer["state"][name].items()}
        for name in kept
    }
    path = tmp_path_factory.mktemp("archive") / "ep0-ba2-rank0.pt"
    torch.save(content, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as opened:
        entry = next(e for e in opened.infolist() if e.filename.endswith("/data.pkl"))
        begin = entry.header_offset + 30 + sum(struct.unpack_from("<HH", data, entry.header_offset + 26))
        return Archive(data, range(begin, begin + entry.file_size), range(opened.start_dir, len(data)))


def tensors_of(model: TrainedModel) -> dict[str, torch.Tensor]:
    assert model.optimizer is not None
    return {**model.weights, **model.optimizer.moments}


@pytest.mark.parametrize("part", ["file", "directory", "pickle"])
def test_an_altered_checkpoint_is_read_as_it_was_or_refused(part: str, archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "ep0-ba2-rank0.pt"
    path.write_bytes(archive.data)
    expected = tensors_of(sources.read(path, "it", optimizer=True))
    places = {"file": range(len(archive.data)), "directory": archive.directory, "pickle": archive.pickle}[part]
    alter = archive.with_pickle_altered if part == "pickle" else archive.with_bit_flipped
    chosen = random.Random(7)
    refused = 0
    for _ in range(100 if part == "pickle" else 60):
        path.write_bytes(alter(chosen.choice(places), chosen.randrange(8)))
        try:
            found = tensors_of(sources.read(path, "it", optimizer=True))
        except UserError as error:
            assert str(error).startswith("it: ")  # noqa: PT017
            refused += 1
            continue
        # A pickle with its checksums set right may say other numbers; nothing but its writer knows.
        if part != "pickle":
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert refused > 20


def test_whoever_loads_within_the_restriction_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, trace = tmp_path / "composer.pt", tmp_path / "ran"
    torch.save({"state": {"model": {}, "callbacks": Call(open, str(trace), "w")}}, path)
    with pytest.raises(UserError, match=r"composer.pt: refused, because it asks for (_io|io|builtins)\.open"):
        check_composer(path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with restricted_loading(), pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=False)  # as Composer calls it
    assert not trace.exists()
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    torch.load(path, weights_only=False)
    assert trace.exists()
