"""Files: what is written is read back, whole or not at all; the cache rebuilds what is damaged."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from dxmi_rl.utils import storage
from dxmi_rl.utils.checks import (
    CheckpointError,
    MissingExtraError,
    check_batch,
    check_integer,
    check_real,
    require,
    resolve_device,
)
from dxmi_rl.utils.storage import (
    FORMAT,
    cache_path,
    cached_tensors,
    flatten_optimizer,
    load_tensors,
    remove_abandoned,
    restore_optimizer,
    save_tensors,
    write_atomically,
    write_json,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(metadata=st.dictionaries(st.text(max_size=8), JSON, max_size=4), rows=st.integers(0, 4))
def test_tensors_and_metadata_survive(tmp_path_factory: pytest.TempPathFactory, metadata: dict, rows: int) -> None:
    path = tmp_path_factory.mktemp("storage") / "file.safetensors"
    tensors = {"a": torch.randn(rows, 3), "b": torch.arange(4), "scalar": torch.tensor(2.5, dtype=torch.float64)}
    save_tensors(path, tensors, metadata)
    loaded, header = load_tensors(path)
    assert header == metadata
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in tensors.items())


def test_views_and_shared_tensors_can_be_saved(tmp_path: Path) -> None:
    x = torch.arange(12.0).view(3, 4).requires_grad_()
    save_tensors(tmp_path / "f", {"x": x, "same": x, "view": x.T, "slice": x[:, 1]}, {})
    loaded, _ = load_tensors(tmp_path / "f")
    assert torch.equal(loaded["view"], x.T) and torch.equal(loaded["slice"], x[:, 1])


@pytest.mark.parametrize("old", [None, "old content"])
def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)

    def fail(file: Path) -> None:
        file.write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["file"])
    assert old is None or path.read_text() == old


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(file: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / ".other.abcdefgh.part"
    abandoned, fresh = tmp_path / ".file.abcdefgh.part", tmp_path / ".file.12345678.part"
    for part in (abandoned, fresh, other):
        part.write_text("half of the n")
    for part in (abandoned, other):
        os.utime(part, (0, 0))

    def write(file: Path) -> None:
        file.write_text("outer")
        if not path.exists():  # another writer of the same path comes in between
            os.utime(file, (0, 0))
            write_atomically(path, lambda inner: write_inner(inner, file))

    def write_inner(inner: Path, outer: Path) -> None:
        assert outer.exists() and not abandoned.exists()
        inner.write_text("inner")

    write_atomically(path, write)
    assert path.read_text() == "outer"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, fresh.name, other.name}


def test_json_is_compact_with_a_line_per_entry(tmp_path: Path) -> None:
    runs = [{"seed": 0, "curve": [[1.5]]}, {"seed": 1}]
    value = {"command": "x", "runs": runs, "sets": {"a": {"n": 1}}, "flat": [1, 2]}
    text = write_json(tmp_path / "a.json", value).read_text()
    lines = ["{", '"command":"x",', '"runs":[', '{"seed":0,"curve":[[1.5]]},', '{"seed":1}', "],"]
    assert text.splitlines() == [*lines, '"sets":{', '"a":{"n":1}', "},", '"flat":[1,2]', "}"]
    assert json.loads(text) == value
    for other in ({1: [2], False: {}, 'a"b': ()}, [], {}, [[]], [(1, 2)], "text", None):
        text = write_json(tmp_path / "b.json", other).read_text()
        assert json.loads(text) == json.loads(json.dumps(other))


def test_folders_are_made_and_json_is_strict(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a" / "b" / "c.json", {"x": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"x": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": [1, 2.5, None]}, "the old file is whole"


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at path"):
        load_tensors(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path)
    good = save_tensors(tmp_path / "good", {"x": torch.randn(100)}, {"a": 1})
    content = good.read_bytes()
    for name, damaged in {
        "empty": b"",
        "text": b"hello, world, not a checkpoint",
        "cut": content[: len(content) // 2],
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged or foreign"):
            load_tensors(tmp_path / name)
    save_file({"x": torch.zeros(2)}, str(tmp_path / "foreign"))
    with pytest.raises(CheckpointError, match="was not written by dxmi_rl"):
        load_tensors(tmp_path / "foreign")
    for text in ("{", "[" * 100_000):
        header = {"format": FORMAT, "metadata": text, "digest": ""}
        save_file({"x": torch.zeros(2)}, str(tmp_path / "header"), metadata=header)
        with pytest.raises(CheckpointError, match="damaged header"):
            load_tensors(tmp_path / "header")
    save_file({"x": torch.zeros(2)}, str(tmp_path / "old"), metadata={"format": "dxmi_rl/1", "metadata": "{}"})
    with pytest.raises(CheckpointError, match=r"'dxmi_rl/1', and this version reads 'dxmi_rl/3'\. Train it again"):
        load_tensors(tmp_path / "old")


def test_the_cache_builds_once_and_rebuilds_what_is_damaged(empty_cache: Path) -> None:
    calls = []

    def build() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.ones(2)}

    key = {"target": "made-up", "levels": (1, 2)}
    for _ in range(2):
        assert torch.equal(cached_tensors("thing", key, build)["x"], torch.ones(2))
    assert len(calls) == 1
    path = cache_path("thing", key)
    assert path.parent == empty_cache
    path.write_bytes(b"rubbish")
    cached_tensors("thing", key, build)
    assert len(calls) == 2 and load_tensors(path)[0]["x"].tolist() == [1, 1]
    cached_tensors("thing", {**key, "levels": (1, 3)}, build)
    cached_tensors("other", key, build)
    assert len(calls) == 4, "another key or kind is another entry"


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DXMI_RL_CACHE")
    assert cache_path("thing", {}).parent == tmp_path / ".cache" / "dxmi_rl"
    for text, wanted in {"": ".cache/dxmi_rl", "~/mine": "mine"}.items():
        monkeypatch.setenv("DXMI_RL_CACHE", text)
        assert cache_path("thing", {}).parent == tmp_path / wanted


def test_without_a_home_the_variable_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where there is no home directory
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path))
    assert cache_path("thing", {}).parent == tmp_path
    monkeypatch.delenv("DXMI_RL_CACHE")
    with pytest.raises(OSError, match="DXMI_RL_CACHE must be a folder, got None"):
        cache_path("thing", {})


@pytest.mark.parametrize("refusal", [PermissionError(13, "no"), OSError(28, "No space left on device")])
def test_a_cache_that_cannot_be_written_is_a_warning(
    refusal: OSError, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise refusal

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    for _ in range(2):
        with pytest.warns(UserWarning, match="nothing was kept in the cache"):
            found = cached_tensors("thing", {"target": "t"}, lambda: {"x": torch.ones(2)})
        assert torch.equal(found["x"], torch.ones(2))


def test_a_file_in_the_caches_place_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="nothing was kept"):
        cached_tensors("thing", {"target": "t"}, lambda: {"x": torch.ones(2)})


def test_a_cache_file_that_cannot_be_read_now_is_no_damaged_one(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of file handles, for a moment: what is there stays when nothing new can be written either."""
    cached_tensors("thing", {"target": "t"}, lambda: {"x": torch.ones(2)})
    before = cache_path("thing", {"target": "t"}).read_bytes()

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as out_of_handles:
        out_of_handles.setattr(storage, "safe_open", refuse)
        out_of_handles.setattr("tempfile.mkstemp", refuse)
        with pytest.warns(UserWarning, match="Too many open files"):
            cached_tensors("thing", {"target": "t"}, lambda: {"x": torch.ones(2)})
    assert cache_path("thing", {"target": "t"}).read_bytes() == before


def test_every_flipped_bit_and_every_missing_tensor_is_noticed(tmp_path: Path) -> None:
    tensors = {"x": torch.randn(40), "y": torch.zeros(2, 3, dtype=torch.int64), "none": torch.zeros(0)}
    good = save_tensors(tmp_path / "good", tensors, {"name": "a", "n": 3})
    assert load_tensors(good)[1] == {"name": "a", "n": 3}
    content, chance = good.read_bytes(), random.Random(0)
    for bit in chance.sample(range(8 * len(content)), 1000):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        good.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_tensors(good)
    good.write_bytes(content)
    with safe_open(str(good), framework="pt") as file:
        header = file.metadata()
    save_file({"x": tensors["x"]}, str(tmp_path / "less"), metadata=header)
    with pytest.raises(CheckpointError, match="is not that of its digest"):
        load_tensors(tmp_path / "less")


def test_optimizers_go_on_as_if_never_stopped() -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.Adam([{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias], "lr": 0.01}])

    def step(layer: torch.nn.Linear, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    layer, optimizer = make()
    step(layer, optimizer)
    other, restored = make()
    other.load_state_dict(layer.state_dict())
    restore_optimizer(
        "o/p", restored, {key: value.clone() for key, value in flatten_optimizer("o/p", optimizer).items()}
    )
    for _ in range(3):
        step(layer, optimizer)
        step(other, restored)
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)


# Checks of arguments --------------------------------------------------------------------------------------------------


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_integers_from_the_minimum_up(value: int, minimum: int) -> None:
    if value >= minimum:
        assert check_integer("n", value, minimum) == value
    else:
        with pytest.raises(ValueError, match=f"n must be >= {minimum}, got {value}"):
            check_integer("n", value, minimum)


@pytest.mark.parametrize("value", [1.0, "1", None, True, [1]])
def test_only_integers_are_integers(value: object) -> None:
    with pytest.raises(TypeError, match="n must be an integer"):
        check_integer("n", value)


def test_reals() -> None:
    assert check_real("r", 2) == 2.0
    assert check_real("r", -1, minimum=-2) == -1.0
    for value in (float("nan"), float("inf"), -1e-9):
        with pytest.raises(ValueError, match="r must be finite"):
            check_real("r", value)
    with pytest.raises(ValueError, match="r must be finite and > 0"):
        check_real("r", 0, strict=True)
    for wrong in ("1", None, True, 1j):
        with pytest.raises(TypeError, match="r must be a real number"):
            check_real("r", wrong)


def test_batches_devices_and_extras() -> None:
    x = torch.zeros(3, 2)
    assert check_batch("x", x, (2,), device=torch.device("cpu"), batch=3) is x
    with pytest.raises(ValueError, match=r"x must have shape \[batch, 1, 8, 8\], got \[3, 2\]"):
        check_batch("x", x, (1, 8, 8))
    assert resolve_device(None) == torch.device("cpu")
    with pytest.raises(ValueError, match="device must name a torch device"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            resolve_device("cuda")
    with pytest.raises(MissingExtraError, match=r"no_such_package is needed here.*dxmi_rl\[sb3\]"):
        require("no_such_package.part", "sb3")


def test_reals_of_numpy_are_reals() -> None:
    assert check_real("r", np.float32(0.5)) == 0.5 and type(check_real("r", np.float32(0.5))) is float
    assert check_real("r", np.int64(3)) == 3.0


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_a_living_writers_file_survives_a_jump_of_the_clock(tmp_path: Path) -> None:
    """A writer holds its lock however old or new the file looks; what nobody holds goes."""

    def write(file: Path) -> None:
        for when in (0.0, time.time() + 10 * 365 * 86_400):
            os.utime(file, (when, when))
            remove_abandoned(tmp_path)
            assert file.exists()
        file.write_text("whole")

    write_atomically(tmp_path / "file", write)
    abandoned = tmp_path / ".file.abcdefgh.part"
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    remove_abandoned(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_write_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(f"sync {(tmp_path / 'f').exists()}"), flush(handle)))
    write_atomically(tmp_path / "f", lambda file: file.write_text("x"))
    assert order == ["sync False"] and (tmp_path / "f").read_text() == "x"


def test_keys_of_the_cache_know_the_dtype() -> None:
    single = cache_path("thing", {"target": "t"})
    torch.set_default_dtype(torch.float64)
    try:
        assert cache_path("thing", {"target": "t"}) != single
    finally:
        torch.set_default_dtype(torch.float32)
    assert cache_path("thing", {"target": "t"}) == single


def test_links_stay_and_devices_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", lambda file: file.write_text("new"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    write_atomically(os.devnull, lambda file: file.write_text("gone"))
    assert not Path(os.devnull).is_file()


def test_an_integer_beyond_floats_is_no_real() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        check_real("r", 10**400)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"path must name a file, and .* is a folder"):
        write_json(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
