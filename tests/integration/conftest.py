"""What the integration tests share."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from producer.local_farm import server_program


@pytest.fixture(scope="module")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real, empty Valkey on a unix socket of its own."""
    folder = tmp_path_factory.mktemp("v")
    socket = folder / "s"
    process = subprocess.Popen(
        [str(server_program()), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait(timeout=10)
