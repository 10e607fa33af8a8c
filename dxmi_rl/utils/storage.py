"""Files: safetensors with JSON in the header, written atomically; and the cache directory."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dxmi_rl.utils.checks import CheckpointError

if sys.platform != "win32":
    import fcntl

JSON = dict[str, Any]
"""A JSON object, as files of results, settings and metadata hold it."""
FORMAT = "dxmi_rl/3"
"""Format of files; a new one where settings or names of tensors have changed."""
LOCKING_SECONDS = 1.0
"""A temporary file that is younger may be one that its writer has not locked yet."""


def check_file(name: str, path: object) -> None:
    """Raise for what no file can be written to: TypeError for no path, and the OSError of a folder, or of a place in a
    file or in a folder that is not one's own. ``name`` is the argument's.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {path!r}.")
    file = Path(os.path.realpath(path))
    if file.is_dir():
        raise IsADirectoryError(f"{name} must name a file, and {str(path)!r} is a folder.")
    parent = next(parent for parent in file.parents if parent.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{name} must lie in a folder, and {str(parent)!r} is a file, got {str(path)!r}.")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{name} must be writable, and {str(parent)!r} is not, got {str(path)!r}.")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Call ``write`` on a temporary file beside ``path`` and rename it: readers see the old file or the new one.

    What a writer left there that was killed is removed by the next one. A link stays, and the file that it names is
    written; a device such as /dev/stdout is written to as it is.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"path must name a file, and {str(path)!r} is a folder.")
    if path.exists() and not path.is_file():
        write(path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f".{glob.escape(path.name)}.????????.part")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    locked = _lock(handle)  # the lock goes with the process, however that ends
    if not locked:
        os.close(handle)
    try:
        write(temporary)
        _to_disk(temporary)
        temporary.chmod(_mode(path))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if locked:
            os.close(handle)
    return path


def _mode(path: Path) -> int:
    """Permissions of the file that is there, or of any new one; mkstemp makes private files."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _to_disk(file: Path) -> None:
    """Wait until the file's content is on the disk, so that after a power cut the name never stands for less."""
    with file.open("rb+") as written:
        os.fsync(written.fileno())


def _lock(handle: int) -> bool:
    """Lock an open file; False when another process has it, or there are no locks (on Windows, some network disks)."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_abandoned(folder: Path, pattern: str = ".*.????????.part") -> None:
    """Remove temporary files of ``write_atomically`` in ``folder`` that no process is writing."""
    if sys.platform == "win32":
        return
    for part in folder.glob(pattern):
        try:
            handle = os.open(part, os.O_RDWR)
        except OSError:  # gone already, or another user's
            continue
        try:
            fresh = abs(time.time() - os.fstat(handle).st_mtime) < LOCKING_SECONDS
            if not fresh and _lock(handle):
                part.unlink(missing_ok=True)
        finally:
            os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` atomically, in UTF-8, lines ending in one line feed on every system."""

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8", newline="\n")

    return write_atomically(path, write)


def write_json(path: str | os.PathLike[str], value: object) -> Path:
    """Write ``value`` as JSON, atomically: compact, with a line for every entry of the outer two levels.

    Raises ValueError for numbers that JSON has not.
    """
    return write_text(path, _json_lines(value, 2) + "\n")


def _json_lines(value: Any, levels: int) -> str:
    """Compact JSON; where dicts and lists of the outer ``levels`` hold others, every entry has a line."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if levels == 0 or not any(isinstance(own, (dict, list, tuple)) for own in inner):
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    lines = [_json_lines(own, levels - 1) for own in inner]
    if isinstance(value, dict):
        names = (json.dumps({key: 0})[1:-4] for key in value)  # json writes keys that are numbers as text
        return "{\n" + ",\n".join(f"{name}:{line}" for name, line in zip(names, lines, strict=True)) + "\n}"
    return "[\n" + ",\n".join(lines) + "\n]"


def save_file(tensors: Mapping[str, Tensor], file: str, metadata: dict[str, str]) -> None:
    """Write a safetensors file in place: safetensors' own writes elsewhere first, and what it leaves has no name."""
    Path(file).write_bytes(save(dict(tensors), metadata))


def _plain(value: object) -> object:
    """A setting that json does not know: numbers of numpy, torch devices. Raises TypeError for others."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.device):
        return str(value)
    raise TypeError(f"settings must be numbers, text, lists or dicts, got {type(value).__name__} {value!r}.")


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> Path:
    """Write tensors and JSON-able ``metadata`` as one safetensors file, atomically, with a digest of both."""
    plain = {key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()}
    text = json.dumps(dict(metadata), default=_plain)
    header = {"format": FORMAT, "metadata": text, "digest": _digest(plain, text)}
    return write_atomically(path, lambda file: save_file(plain, str(file), metadata=header))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of ``text`` and of the names, types, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], JSON]:
    """Read what ``save_tensors`` wrote.

    Raises FileNotFoundError when there is no such file and CheckpointError when it is damaged or foreign.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at path {str(path)!r}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} is not a readable safetensors file: damaged or foreign ({error})."
        ) from error
    if (found := header.get("format")) != FORMAT:
        if str(found).startswith("dxmi_rl/"):
            raise CheckpointError(
                f"{str(path)!r} is of another version of dxmi_rl: its format is {found!r}, and this version reads "
                f"{FORMAT!r}. Train it again, or read it with the version that wrote it."
            )
        raise CheckpointError(f"{str(path)!r} was not written by dxmi_rl: its format is {found!r}, wanted {FORMAT!r}.")
    try:
        text, digest = header["metadata"], header["digest"]
        metadata: JSON = json.loads(text)
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} has a damaged header: {error}") from error
    if _digest(tensors, text) != digest:
        raise CheckpointError(f"{str(path)!r} is damaged: its content is not that of its digest.")
    return tensors, metadata


SHIPPED = Path(__file__).parents[1] / "shipped"
"""Denoisers and energies of named data sets, the same for everybody, by their names in a cache: see
tools/make_shipped.py."""


def cache_path(kind: str, key: Mapping[str, object]) -> Path:
    """Where a trained thing of this configuration is cached: ``$DXMI_RL_CACHE`` or ``~/.cache/dxmi_rl``.

    Raises OSError when neither is set: there is no home directory.
    """
    try:
        root = Path(os.environ.get("DXMI_RL_CACHE") or "~/.cache/dxmi_rl").expanduser()
    except RuntimeError as error:
        given = os.environ.get("DXMI_RL_CACHE")
        raise OSError(
            f"there is no place for the cache: DXMI_RL_CACHE must be a folder, got {given!r} ({error})."
        ) from error
    dtype = torch.get_default_dtype()  # what is made under another one has other numbers
    definition = dict(key) | ({} if dtype == torch.float32 else {"dtype": str(dtype)})
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]
    return root / f"{kind}-{digest}.safetensors"


def cached_tensors(
    kind: str, key: Mapping[str, object], build: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors from SHIPPED or the cache, or built and stored there; a damaged cache file is rebuilt.

    A cache that cannot be read or written costs a warning, never the tensors.
    """
    path = cache_path(kind, key)
    for file in (SHIPPED / path.name, path):
        try:
            tensors, stored = load_tensors(file)
            if stored == json.loads(json.dumps(dict(key))):
                return tensors
        except (CheckpointError, OSError):  # absent, damaged, or out of reach: what is built replaces it if it can
            pass
    print(f"dxmi_rl: making {kind} of {key.get('target', key.get('task'))!r}, once; kept as {path}", file=sys.stderr)
    tensors = {name: tensor.detach().to("cpu") for name, tensor in build().items()}
    with cache_is_a_help():
        save_tensors(path, tensors, key)
    return tensors


@contextlib.contextmanager
def cache_is_a_help() -> Iterator[None]:
    """Writing to the cache: what the system refuses (no permission, a full disk) is a warning, and work goes on."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"nothing was kept in the cache: {error}. Set DXMI_RL_CACHE to a folder that can be written.", stacklevel=4
        )


def flatten_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state tensors of a torch optimizer as ``{prefix/index/name: tensor}``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}/{index}/{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``flatten_optimizer`` took; learning rates are set by the caller's schedule."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix + "/"):
            _, index, name = key.rsplit("/", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
