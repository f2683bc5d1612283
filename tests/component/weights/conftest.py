"""One S3 server for all tests of fetching: it takes seconds to start."""

from collections.abc import Iterator

import pytest
from moefleet_weights import stores
from moefleet_weights_rig.s3 import s3_server


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SMALL_WAIT_S", 0.01)
