"""Which sockets a process and its children listen on, and who can reach them."""

import ipaddress
import os
import socket
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """A TCP socket that listens; `reach` is "this machine" or "the network"."""

    process: str
    address: str
    port: int
    reach: str


def listening(pid: int | None = None) -> list[Listening]:
    """Return the listening TCP sockets of a process (this one if None) and of all that it started, by port.

    A process that ends meanwhile, or may not be looked at, is left out.
    """
    root = psutil.Process(os.getpid() if pid is None else pid)
    found = []
    for process in (root, *root.children(recursive=True)):
        try:
            name, connections = process.name(), process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        found += [
            Listening(
                process=name,
                address=one.laddr.ip,
                port=one.laddr.port,
                reach=reach(one.laddr.ip),
            )
            for one in connections
            if one.status == psutil.CONN_LISTEN and one.family in {socket.AF_INET, socket.AF_INET6}
        ]
    return sorted(set(found), key=lambda one: (one.port, one.address, one.process))


def reach(address: str) -> str:
    """Return who reaches a socket at an address of this machine."""
    return "this machine" if ipaddress.ip_address(address).is_loopback else "the network"
