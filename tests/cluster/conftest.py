"""One embedded cluster for all tests of this folder: starting Ray takes seconds, so it is started once."""

from collections.abc import Iterator

import pytest

from cluster.session import Cluster, session


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    with session(Cluster(num_cpus=4, object_store_bytes=80 << 20)):
        yield
