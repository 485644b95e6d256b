"""Which sockets listen, and who reaches them."""

import os
import socket

import pytest

from cluster import sockets


@pytest.mark.parametrize(
    ("bound", "reach"), [("127.0.0.1", "this machine"), ("0.0.0.0", "the network")]
)
def test_a_socket_of_ours_is_told_with_its_reach(bound, reach):
    with socket.create_server((bound, 0)) as server:
        port = server.getsockname()[1]
        (found,) = [one for one in sockets.listening(os.getpid()) if one.port == port]
    assert (found.address, found.reach) == (bound, reach)
    assert port not in {one.port for one in sockets.listening()}


def test_addresses_of_version_6():
    assert sockets.reach("::1") == "this machine"
    assert sockets.reach("::") == "the network"
