"""Registries of names (targets, tasks, agents, schedules, kernels) that answer a typo with the nearest names."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class UnknownNameError(ValueError):
    """A name that is not registered. The message names what was asked for, the nearest names and all of them.

    ``near`` are the nearest names where the caller knows them better than spelling does.
    """

    def __init__(self, kind: str, name: object, known: list[str], *, near: Sequence[str] = ()) -> None:
        near = near or difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")

    def __reduce__(self) -> tuple[object, ...]:
        # From its message: rebuilt from ``args``, as exceptions are, it would fail and hang a pool of workers.
        return type(self).__new__, (type(self), str(self))


class _EntryPoint:
    """Something at "module:attribute"."""

    def __init__(self, entry_point: str) -> None:
        self.module, self.attribute = entry_point.split(":")

    def load(self) -> Any:
        """Import it."""
        return getattr(importlib.import_module(self.module), self.attribute)


class Registry(Generic[T]):
    """An ordered mapping from names to builders. ``kind`` is the word used in error messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._optional: set[str] = set()

    def add(self, name: str, entry: T, *, optional: bool = False) -> T:
        """Register ``entry`` under ``name``; raises ValueError when the name is taken.

        An ``optional`` entry needs what is not on every machine: it is found by its name, and messages have it, but
        loops over all names skip it.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already.")
        self._entries[name] = entry
        if optional:
            self._optional.add(name)
        return entry

    def add_entry_point(self, name: str, entry_point: str) -> None:
        """Register what lies at "module:attribute", which is imported when it is first asked for."""
        self.add(name, cast(T, _EntryPoint(entry_point)))

    def __getitem__(self, name: str) -> T:
        """Return the entry, or raise UnknownNameError."""
        if not isinstance(name, str) or name not in self._entries:
            raise UnknownNameError(self.kind, name, self.names(optional=True))
        entry = self._entries[name]
        if isinstance(entry, _EntryPoint):
            self._entries[name] = entry = cast(T, entry.load())
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self, *, optional: bool = False) -> list[str]:
        """All registered names in the order of registration, without or with the optional ones."""
        return [name for name in self._entries if optional or name not in self._optional]
