"""Store of a fleet: a SQLite file on one machine, Redis between machines.

A store maps keys to text. Every call may block and may raise StoreError; neither is ever called
from the step path (`fleet.Exchange` calls them from a thread of its own).
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any, Final, Protocol

TIMEOUT_S: Final = 2.0  # of one call
REDIS_HASH: Final = "lynx:fleet"


class StoreError(Exception):
    """The store is lost, slow, or refuses; nothing was stored."""


class Store(Protocol):
    def put(self, key: str, value: str) -> None: ...

    def find(self, prefix: str) -> dict[str, str]:
        """All whose key starts with `prefix`."""
        ...

    def close(self) -> None: ...


def open_store(url: str) -> Store:
    """`sqlite:PATH`, or `redis://HOST:PORT/DB` or `unix://PATH` as redis-py takes them.

    Raises ValueError for another kind, ImportError where redis-py is missing. Connects later.
    """
    kind, _, rest = url.partition(":")
    if kind == "sqlite" and rest:
        return SqliteStore(Path(rest))
    if kind in ("redis", "rediss", "unix"):
        return RedisStore(url)
    raise ValueError(f"a store is sqlite:PATH, redis://... or unix://..., got {url!r}")


class SqliteStore:
    """One table in one file; any number of processes of one machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def put(self, key: str, value: str) -> None:
        self._run("INSERT OR REPLACE INTO fleet VALUES (?, ?)", (key, value))

    def find(self, prefix: str) -> dict[str, str]:
        after = prefix + "\U0010ffff"
        rows = self._run("SELECT key, value FROM fleet WHERE key BETWEEN ? AND ?", (prefix, after))
        return dict(rows)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _run(self, statement: str, values: tuple[str, ...]) -> list[Any]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = sqlite3.connect(
                        self._path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False
                    )
                    self._connection.execute(
                        "CREATE TABLE IF NOT EXISTS fleet (key TEXT PRIMARY KEY, value TEXT)"
                    )
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise StoreError(f"{self._path}: {error}") from error


class RedisStore:
    """One hash, so that all of it can be dropped at once."""

    def __init__(self, url: str) -> None:
        import redis

        self._error = redis.RedisError
        self._redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, decode_responses=True
        )

    def put(self, key: str, value: str) -> None:
        try:
            self._redis.hset(REDIS_HASH, key, value)
        except self._error as error:
            raise StoreError(str(error)) from error

    def find(self, prefix: str) -> dict[str, str]:
        try:
            found: dict[str, str] = self._redis.hgetall(REDIS_HASH)  # type: ignore[assignment]
        except self._error as error:
            raise StoreError(str(error)) from error
        return {key: value for key, value in found.items() if key.startswith(prefix)}

    def close(self) -> None:
        self._redis.close()
