"""Loaders of images with anomalies, on small made-up folders, and textures with defects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dxmi_rl.anomaly import AnomalyImages, elpv, mvtec, textures, visa
from dxmi_rl.anomaly.image_data import perlin_noise
from dxmi_rl.targets import MissingDataError
from dxmi_rl.utils.registry import UnknownNameError


def picture(file: Path, level: int, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level, level, level)).save(file)


def mask(file: Path, level: int = 255, size: tuple[int, int] = (12, 8)) -> None:
    """The left half is marked."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:, : size[0] // 2] = level
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def make_mvtec(folder: Path) -> Callable[[], AnomalyImages]:
    root = folder / "bottle"
    for index in range(3):
        picture(root / "train" / "good" / f"00{index}.png", 100 + index)
    picture(root / "test" / "good" / "000.png", 50)
    picture(root / "test" / "crack" / "000.png", 200)
    mask(root / "ground_truth" / "crack" / "000_mask.png")
    return lambda: mvtec(folder, "bottle", size=4)


def make_visa(folder: Path) -> Callable[[], AnomalyImages]:
    data = folder / "candle" / "Data"
    for index in range(3):
        picture(data / "Images" / "Normal" / f"{index}.JPG", 100 + index)
    picture(data / "Images" / "Normal" / "3.JPG", 50)
    picture(data / "Images" / "Anomaly" / "000.JPG", 200)
    mask(data / "Masks" / "Anomaly" / "000.png", level=1)
    lines = ["object,split,label,image,mask"]
    lines += [f"candle,train,normal,candle/Data/Images/Normal/{index}.JPG," for index in range(3)]
    lines += ["candle,test,normal,candle/Data/Images/Normal/3.JPG,"]
    lines += ["candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png"]
    (folder / "split_csv").mkdir()
    (folder / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lambda: visa(folder, "candle", size=4)


@pytest.mark.parametrize("make", [make_mvtec, make_visa])
def test_folders_are_read(make: Callable[[Path], Callable[[], AnomalyImages]], tmp_path: Path) -> None:
    found = make(tmp_path)()
    assert found.train.shape == (3, 3, 4, 4) and found.train.dtype == np.uint8
    assert found.train[:, 0, 0, 0].tolist() == [100, 101, 102]
    by_level = np.argsort(found.test[:, 0, 0, 0])
    assert found.test[by_level, 0, 0, 0].tolist() == [50, 200]
    assert found.anomalous[by_level].tolist() == [False, True]
    assert found.masks is not None
    assert not found.masks[by_level[0]].any()
    assert found.masks[by_level[1]].tolist() == [[True, True, False, False]] * 4
    assert [found.kinds[index] for index in by_level] in (["good", "crack"], ["good", "anomaly"])


@pytest.mark.parametrize("make", [make_mvtec, make_visa])
def test_what_is_wrong_with_folders_is_said(
    make: Callable[[Path], Callable[[], AnomalyImages]], tmp_path: Path
) -> None:  # fmt: skip
    load = make(tmp_path)
    marked = next(file for file in tmp_path.rglob("000*.png") if "round" in str(file) or "Masks" in str(file))
    mask(marked, size=(6, 8))
    with pytest.raises(MissingDataError, match=rf"{marked.name}' is 6 x 8 pixels, but its image .* is 12 x 8"):
        load()
    marked.write_bytes(b"no image")
    with pytest.raises(MissingDataError, match=f"{marked.name}' is not a readable image"):
        load()
    marked.unlink()
    with pytest.raises(MissingDataError, match=f"mask of image .*{marked.name}' is not there"):
        load()
    mask(marked)
    image = sorted(file for file in tmp_path.rglob("*") if "good" in str(file) or "Normal" in str(file))[-1]
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(MissingDataError, match=f"{image.name}' is not a readable image"):
        load()


def test_missing_folders_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"bottle/train/good' is not there\. Get MVTec-AD from https"):
        mvtec(tmp_path, "bottle")
    with pytest.raises(MissingDataError, match=r"1cls\.csv' is not there\. Get VisA from https"):
        visa(tmp_path, "candle")
    with pytest.raises(MissingDataError, match=r"labels\.csv' is not there\. Get it with pip"):
        elpv(folder=tmp_path)
    (tmp_path / "bottle" / "train" / "good").mkdir(parents=True)
    with pytest.raises(MissingDataError, match="has no image files"):
        mvtec(tmp_path, "bottle")


def test_tables_of_visa_that_are_not_right(tmp_path: Path) -> None:
    make_visa(tmp_path)
    table = tmp_path / "split_csv" / "1cls.csv"
    with pytest.raises(UnknownNameError, match="Did you mean 'candle'"):
        visa(tmp_path, "candel")
    content = table.read_text(encoding="utf-8")
    table.write_text(content.replace(",candle/Data/Masks/Anomaly/000.png", ","), encoding="utf-8")
    with pytest.raises(MissingDataError, match=r"a mask for candle/Data/Images/Anomaly/000\.JPG' is not there"):
        visa(tmp_path, "candle")
    table.write_text(content.replace("candle,test", "other,test"), encoding="utf-8")
    with pytest.raises(MissingDataError, match="no rows of split 'test'"):
        visa(tmp_path, "candle")
    table.write_text("a,b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must have columns"):
        visa(tmp_path, "candle")


STRETCHES = (("mono", 50), ("poly", 90), ("mono", 20), ("poly", 82))
"""A file of solar cells: its types, and how many cells of each follow each other."""


def make_elpv(folder: Path, stretches: Sequence[tuple[str, int]] = STRETCHES) -> None:
    kinds = [kind for kind, cells in stretches for _ in range(cells)]
    lines = []
    for index, kind in enumerate(kinds):
        picture(folder / "images" / f"cell{index}.png", index, (6, 6), "L")
        lines.append(f"images/cell{index}.png  {[0.0, 0.0, 1 / 3, 1.0][index % 4]}  {kind}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_solar_cells_are_split_by_blocks_that_no_other_type_divides(tmp_path: Path) -> None:
    make_elpv(tmp_path)
    found = elpv("poly", size=3, folder=tmp_path)
    again, *others = (elpv("poly", size=3, seed=seed, folder=tmp_path) for seed in range(5))
    assert found.test.shape[1:] == (1, 3, 3) and found.masks is None
    trained, tested = ({int(level) for level in part[:, 0, 0, 0]} for part in (found.train, found.test))
    blocks = [range(50, 110), range(110, 140), range(160, 220), range(220, 242)]
    sides = [(bool(trained & set(block)), bool(tested & set(block))) for block in blocks]
    assert sorted(sides) == [(False, True)] * 2 + [(True, False)] * 2
    assert trained | tested <= {level for block in blocks for level in block}
    assert all(level % 4 < 2 for level in trained)
    assert found.anomalous.tolist() == [level % 4 == 3 for level in found.test[:, 0, 0, 0]]
    assert np.array_equal(found.test, again.test)
    assert not all(np.array_equal(found.test, other.test) for other in others)


def test_what_is_wrong_with_solar_cells_is_said(tmp_path: Path) -> None:
    make_elpv(tmp_path, [("mono", 5), ("poly", 5)])
    with pytest.raises(UnknownNameError, match="mono"):
        elpv("mon", folder=tmp_path)
    with pytest.raises(MissingDataError, match="more than 60 cells 'mono', got 5"):
        elpv(folder=tmp_path)
    (tmp_path / "labels.csv").write_text("images/a.png much mono\n", encoding="utf-8")
    with pytest.raises(MissingDataError, match="is not lines of file, probability and type"):
        elpv(folder=tmp_path)


@pytest.mark.slow
def test_textures_have_defects_where_the_masks_are() -> None:
    pytest.importorskip("skimage")
    found, again = (textures("grass", size=64, train=3, normal=2, defective=4) for _ in range(2))
    assert found.train.shape == (3, 1, 64, 64) and found.test.shape == (6, 1, 64, 64)
    assert found.masks is not None
    assert found.anomalous.tolist() == [False] * 2 + [True] * 4
    assert found.masks.any((1, 2)).tolist() == found.anomalous.tolist()
    assert np.array_equal(found.test, again.test)


@pytest.mark.parametrize("seed", range(4))
def test_no_pixel_of_a_texture_is_on_both_sides(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    pixels = np.arange(32 * 32).reshape(32, 32)  # every pixel its own number
    monkeypatch.setattr("dxmi_rl.anomaly.image_data._photograph", lambda name: pixels)
    found = textures("brick", size=16, seed=seed, train=50, normal=50, defective=1)
    assert not set(found.train.ravel()) & set(found.test[:50].ravel())


def test_textures_that_are_not_allowed() -> None:
    pytest.importorskip("skimage")
    for options, error, text in (
        ({"name": "bricks"}, UnknownNameError, "brick"),
        ({"size": 257}, ValueError, "size must be <= 256, got 257"),
        ({"normal": 0}, ValueError, "normal"),
        ({"seed": -1}, ValueError, "seed"),
    ):
        with pytest.raises(error, match=text):
            textures(**options)  # type: ignore[arg-type]


def test_noise_is_zero_at_its_corners_and_smooth() -> None:
    noise = perlin_noise(64, (4, 2), np.random.default_rng(0))
    assert np.allclose(noise[::16, ::32], 0)
    assert np.abs(noise).max() <= 1 and np.abs(np.diff(noise, axis=0)).max() < 0.2
