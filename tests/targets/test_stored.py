"""Sets of images that stay on disk: the same rows, scales and digests as in memory, and no more memory than a batch."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dxmi_rl import evaluation
from dxmi_rl.evaluation import images as scores
from dxmi_rl.targets import ImageSet, MissingDataError, StoredRows, load_images, own_images, stored
from dxmi_rl.targets.base import TargetError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(60) % 3
SPLIT = np.split(torch.randperm(60, generator=torch.Generator().manual_seed(0)).numpy(), [6])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "cache"))


def write(folder: Path, kind: str) -> Path:
    rows = COLOUR.transpose(0, 2, 3, 1) if "last" in kind else COLOUR
    file = folder / f"images.{kind.split()[0]}"
    if file.suffix == ".npy":
        np.save(file, rows)
    else:
        np.savez(file, arr_1=np.zeros(7), images=rows, labels=LABELS)
    return file


def in_memory(labels: bool = False) -> ImageSet:
    test, train = SPLIT
    told = {"train_labels": LABELS[train], "test_labels": LABELS[test]} if labels else {}
    return ImageSet(COLOUR[train], COLOUR[test], **told, name="images")


@pytest.mark.parametrize("kind", ["npy first", "npy last", "npz first", "npz last"])
def test_a_stored_set_is_the_set_in_memory(kind: str, tmp_path: Path) -> None:
    target, twin = load_images(write(tmp_path, kind)), in_memory("npz" in kind)
    assert isinstance(target.train_bytes, StoredRows) and isinstance(target.test_bytes, StoredRows)
    assert sum(buffer.numel() for buffer in target.buffers()) <= 1 + 60, "nothing but labels moves to a device"
    assert target.train_bytes.shape == (54, 3, 8, 8) and target.event_shape == (3, 8, 8)
    assert (target.scale, target.digest(), target.test_digest()) == (twin.scale, twin.digest(), twin.test_digest())
    for seed in range(3):
        assert torch.equal(target.data(20, seeded(seed)), twin.data(20, seeded(seed)))
    for found, wanted in (
        (target.train_data(7), twin.train_data(7)), (target.test_data(100), twin.test_data(100)),
        (target.train_images, twin.train_images), (target.test_images, twin.test_images),
    ):  # fmt: skip
        assert torch.equal(found, wanted) and found.is_contiguous()
    chosen, known = target.validation_split(), twin.validation_split()
    assert isinstance(chosen.test_bytes, StoredRows) and chosen.digest() == known.digest()
    assert chosen.test_digest() == known.test_digest() and torch.equal(chosen.test_images, known.test_images)
    copied, unpickled = copy.deepcopy(target).double(), pickle.loads(pickle.dumps(target))
    assert copied.data(2).dtype == torch.float64 and target.data(2).dtype == torch.float32
    assert copied.train_bytes is target.train_bytes and torch.equal(unpickled.train_images, target.train_images)
    assert len(pickle.dumps(target)) < COLOUR.nbytes


def test_classes_of_a_stored_set(tmp_path: Path) -> None:
    target, twin = load_images(write(tmp_path, "npz first")), in_memory(labels=True)
    assert target.classes == 3 and target.labels_digest() == twin.labels_digest()
    for found, wanted in zip(target.labelled_data(9, seeded(1)), twin.labelled_data(9, seeded(1)), strict=True):
        assert torch.equal(found, wanted)
    one, same = target.of_class(1), twin.of_class(1)
    assert isinstance(one.train_bytes, StoredRows) and one.digest() == same.digest() and one.name == same.name
    assert torch.equal(one.data(5, seeded(2)), same.data(5, seeded(2))) and one.scale == target.scale
    assert torch.equal(one.validation_split().train_images, same.validation_split().train_images)
    with pytest.raises(TargetError, match="got 3, of which"):
        target.of_class(3)


@pytest.fixture(name="read")
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows every reading takes."""
    counts: list[int] = []
    plain = StoredRows._read
    monkeypatch.setattr(StoredRows, "_read", lambda self, order: counts.append(len(order)) or plain(self, order))
    return counts


def test_batches_read_their_rows_alone_and_digests_are_kept(tmp_path: Path, read: list[int]) -> None:
    file = write(tmp_path, "npy first")
    target = load_images(file)
    assert sum(read) == 54, "the scale"
    target.digest(), target.test_digest()
    assert sum(read) == 54 + 54 + 6
    read.clear()
    target.data(5), target.train_data(4), target.test_data(3), target.of_class
    assert read == [5, 4, 3]
    read.clear()
    again = load_images(file)
    assert (again.scale, again.digest(), again.test_digest()) == (target.scale, target.digest(), target.test_digest())
    assert read == [], "kept in the cache"
    for damaged in ("", "[]", json.dumps({"key": {}, "value": "no"})):
        for kept in (tmp_path / "cache").glob("rows-*.json"):
            kept.write_text(damaged, encoding="utf-8")
        found = load_images(file)
        assert (found.digest(), found.test_digest()) == (target.digest(), target.test_digest())
    kept_numbers = [json.loads(kept.read_text())["key"]["what"] for kept in (tmp_path / "cache").glob("rows-*.json")]
    assert sorted(kept_numbers) == ["digest", "digest", "spread"]
    other = COLOUR.copy()
    other[SPLIT[1][0], 0, 0, 0] ^= 1
    np.save(file, other)
    os.utime(file, ns=(1, 1))
    assert load_images(file).digest() != target.digest(), "a changed file is read again"


def test_reading_in_parts_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]) -> None:
    monkeypatch.setattr(stored, "PART_BYTES", 10 * 192)
    target = load_images(write(tmp_path, "npy first"))
    read.clear()
    assert target.digest() == in_memory().digest() and read == [10, 10, 10, 10, 10, 4]
    rows = StoredRows(target.train_bytes.file, 128, (60, 3, 8, 8))  # type: ignore[union-attr]
    few = ImageSet(rows, rows.chosen(slice(0, 1)), levels=255)
    assert few.levels == 255
    with pytest.raises(ValueError, match=r"train must have values up to levels = 200, got 2"):
        ImageSet(rows, rows.chosen(slice(0, 1)), levels=200)


def test_distances_are_computed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]) -> None:
    """Features of many images need no more memory than a part of these; few are one part, with the same numbers."""
    target, x = load_images(write(tmp_path, "npy first")), torch.rand(30, 3, 8, 8, generator=seeded(0)) * 2 - 1
    seen: list[int] = []

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return x.flatten(1)[:, :5]

    monkeypatch.setattr(scores, "load_features", lambda name, device: Network())
    monkeypatch.setattr(scores, "_kept_features", {})
    whole = evaluation.image_distance(target, x, train=True)
    assert seen == [30, 30]
    seen.clear(), read.clear()
    monkeypatch.setattr(scores, "rows_of_part", lambda dim: 12)
    monkeypatch.setattr("dxmi_rl.targets.image_set.rows_of_part", lambda dim: 12)
    assert evaluation.image_distance(target, x, train=True) == whole
    assert seen == [12, 12, 6] * 2 and read == [12, 12, 6]
    seen.clear()
    evaluation.image_distance(target, x)
    assert sorted(seen) == [6, 6, 12, 12], "there are six test images"


def test_parts_hold_128_mebibytes_or_256_images() -> None:
    from dxmi_rl.targets.image_set import rows_of_part

    assert (rows_of_part(64), rows_of_part(3 * 32 * 32), rows_of_part(3 * 256 * 256)) == (2**19, 10752, 256)
    assert rows_of_part(2**30) == 256, "what networks of features take at once"


def test_rows_by_every_index(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", COLOUR)
    rows, own = StoredRows(tmp_path / "a.npy", 128, COLOUR.shape), torch.from_numpy(COLOUR)
    mask = torch.arange(60) % 7 == 0
    for index in (slice(3, 9), slice(None, None, 11), torch.tensor([5, -1, 5]), np.array([2, 0]), mask, slice(0, 0)):
        assert torch.equal(rows[index], own[index])
    chosen = rows.chosen(mask)
    assert len(chosen) == 9 and torch.equal(chosen[slice(None)], own[mask]) and len(rows) == 60
    assert torch.equal(chosen.chosen(slice(2, 4))[np.array([1])], own[mask][3:4])
    assert rows.dtype == torch.uint8 and rows.ndim == 4


def test_a_file_that_changes_is_not_read(tmp_path: Path) -> None:
    file = write(tmp_path, "npy first")
    target = load_images(file)
    np.save(file, COLOUR[::-1])
    os.utime(file, ns=(5, 5))
    with pytest.raises(MissingDataError, match=r"images.npy' has changed since it was opened: load it again"):
        target.data(3)
    file.unlink()
    with pytest.raises(MissingDataError, match=r"images.npy' cannot be read"):
        target.digest()
    np.save(file, COLOUR)
    rows = StoredRows(file, 128, (61, 3, 8, 8))
    with pytest.raises(MissingDataError, match=r"images.npy' ends before its last image"):
        rows[slice(60, 61)]


def test_files_that_are_too_short(tmp_path: Path) -> None:
    for kind in ("npy first", "npz first"):
        file = write(tmp_path, kind)
        whole = file.read_bytes()
        for length in (3, 60, len(whole) - 2000):
            file.write_bytes(whole[:length])
            with pytest.raises(MissingDataError, match="is not a readable file of arrays"):
                load_images(file)
    archive = bytearray(whole)
    archive[:4] = b"nope"
    (tmp_path / "images.npz").write_bytes(bytes(archive).replace(b"PK\3\4", b"PK\3\5"))
    with pytest.raises(MissingDataError, match="is not a readable file of arrays"):
        load_images(tmp_path / "images.npz")


def test_files_without_one_row_after_the_other_are_held_in_memory(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "small.npz", images=COLOUR.transpose(0, 2, 3, 1), labels=LABELS)
    np.save(tmp_path / "columns.npy", np.asfortranarray(COLOUR))
    for name, labels in (("small.npz", True), ("columns.npy", False)):
        target, twin = load_images(tmp_path / name), in_memory(labels)
        assert isinstance(target.train_bytes, torch.Tensor) and target.digest() == twin.digest()
        assert torch.equal(target.data(4, seeded(0)), twin.data(4, seeded(0)))


LARGE = """
import resource, sys, torch
from dxmi_rl.targets import load_images
torch.randn(4) @ torch.randn(4)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
target = load_images(sys.argv[1])
target.digest(), target.test_digest(), target.data(256), target.train_data(64)
count = sum(len(part) for part in target.parts(20_000))
half = target.validation_split()
half.data(256)
print(len(target.train_bytes), count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A gibibyte, of which most is a hole: drawing, digests and parts take less than its half."""
    rows, file = 2**30 // 12_288, tmp_path / "large.npy"
    with file.open("wb") as opened:
        np.lib.format.write_array_header_1_0(
            opened, {"descr": "|u1", "fortran_order": False, "shape": (rows, 3, 64, 64)}
        )
        start = opened.tell()
        for row in range(0, rows, 50):
            opened.seek(start + row * 12_288)
            opened.write(RNG.bytes(12_288))
        opened.truncate(start + rows * 12_288)
    done = subprocess.run([sys.executable, "-c", LARGE, str(file)], capture_output=True, text=True, check=True)
    found, count, mebibytes = done.stdout.split()
    assert (int(found), int(count)) == (rows - rows // 10, 20_000)
    assert float(mebibytes) < 500, "two parts of 128 MiB, and what makes them"


@pytest.mark.gpu
def test_images_stay_on_disk_whatever_the_device(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    target, twin = load_images(write(tmp_path, "npz first")).to("cuda"), in_memory(labels=True).to("cuda")
    assert isinstance(target.train_bytes, StoredRows) and target.digest() == twin.digest()
    for seed in range(3):
        generators = [torch.Generator("cuda").manual_seed(seed) for _ in range(2)]
        found, wanted = (one.data(20, generator) for one, generator in zip((target, twin), generators, strict=True))
        assert found.device.type == "cuda" and torch.equal(found, wanted)
    assert target.train_data(3).device.type == target.of_class(1).data(2).device.type == "cuda"


# Folders --------------------------------------------------------------------------------------------------------------


def pictures(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(COLOUR[index].transpose(1, 2, 0)).save(folder / f"{index:02}.png")
    return folder


def test_a_folder_is_written_picture_by_picture_and_stays_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    plain, written = own_images._picture, own_images.write_rows

    def counted(file: Path, size: int) -> Any:
        waiting.append(1)
        return plain(file, size)

    def write_rows(path: Path, rows: Any, shape: tuple[int, ...]) -> None:
        def one_by_one() -> Any:
            for row in rows:
                assert len(waiting) == 1, "no picture waits for others"
                waiting.clear()
                yield row

        written(path, one_by_one(), shape)

    monkeypatch.setattr(own_images, "_picture", counted)
    monkeypatch.setattr(own_images, "write_rows", write_rows)
    target = load_images(pictures(tmp_path / "mine"), size=8)
    assert isinstance(target.train_bytes, StoredRows)
    order = torch.randperm(12, generator=seeded(0)).numpy()
    assert np.array_equal(torch.cat([target.test_bytes[:], target.train_bytes[:]]).numpy(), COLOUR[order])
    (kept,) = (tmp_path / "cache").glob("images-*.npy")
    assert np.array_equal(np.load(kept), COLOUR[:12])
    digest = target.digest()
    kept.write_bytes(kept.read_bytes()[:-5])
    again = load_images(tmp_path / "mine", size=8)
    assert again.digest() == digest and np.array_equal(np.load(kept), COLOUR[:12]), "a damaged one is replaced"


def test_a_cache_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "mine")
    kept_in = tmp_path / "no folder"
    kept_in.write_text("a file")
    monkeypatch.setenv("DXMI_RL_CACHE", str(kept_in))
    with pytest.warns(UserWarning, match="nothing was kept in the cache"):
        target = load_images(folder, size=8)
    assert isinstance(target.train_bytes, torch.Tensor) and len(target.train_bytes) == 11
    monkeypatch.setattr(own_images, "IN_MEMORY", 100)
    monkeypatch.setattr(own_images.shutil, "disk_usage", lambda _: type("usage", (), {"free": 2000}))
    with pytest.raises(MissingDataError, match=r"take 0 GiB of the cache .*, which has 0: set DXMI_RL_CACHE"):
        load_images(folder, size=8)


def test_rows_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows must be 3, got 2"):
        stored.write_rows(tmp_path / "a.npy", iter(COLOUR[:2]), (3, 3, 8, 8))
