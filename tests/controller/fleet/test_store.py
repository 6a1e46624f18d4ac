import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lynx_controller.fleet.store import Store, StoreError, open_store


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real redis-server of our own, on a socket in a temporary folder."""
    pytest.importorskip("redis", reason="redis-py is not installed (extra fleet)")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    folder = tmp_path_factory.mktemp("redis")
    socket = folder / "redis.sock"
    server = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10.0
        while not socket.exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"unix://{socket}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'fleet.db'}"
    return f"{request.getfixturevalue('redis_url')}?db=1"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = open_store(url)
    yield store
    store.close()


def test_what_was_put_is_found_by_prefix(store: Store) -> None:
    store.put("share/m/a", "1")
    store.put("share/m/b", "2")
    store.put("share/m/a", "3")
    store.put("law/m/a", "4")
    assert store.find("share/m/") == {"share/m/a": "3", "share/m/b": "2"}
    assert store.find("share/n/") == {}


def test_two_connections_see_each_other(url: str, store: Store) -> None:
    other = open_store(url)
    store.put("law/x/a", "é" * 100_000)
    assert other.find("law/x/") == {"law/x/a": "é" * 100_000}
    other.close()


@pytest.mark.parametrize("lost", ["sqlite:/nowhere/at/all.db", "unix:///nowhere/redis.sock"])
def test_a_lost_store_raises_its_own_error(lost: str) -> None:
    if lost.startswith("unix"):
        pytest.importorskip("redis", reason="redis-py is not installed (extra fleet)")
    store = open_store(lost)
    with pytest.raises(StoreError):
        store.put("a", "b")
    with pytest.raises(StoreError):
        store.find("a")
    store.close()


def test_a_file_that_is_no_database_raises_its_own_error(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    path.write_text("not a database, however long one reads in it " * 100)
    with pytest.raises(StoreError):
        open_store(f"sqlite:{path}").find("")


@pytest.mark.parametrize("wrong", ["", "sqlite:", "postgres://x", "fleet.db"])
def test_other_kinds_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="a store is"):
        open_store(wrong)
