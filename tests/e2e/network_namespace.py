"""A network namespace in which every address is local, and a monitor of the connections opened in it."""

import contextlib
import ctypes
import os
import pathlib
import shutil
import socket
import struct
import subprocess

CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_STATISTICS, PACKET_OUTGOING = 263, 6, 4
ETH_P_ALL = 3
SYN, ACK = 0x02, 0x10
NAME_SERVER = "10.77.0.53"

_libc = ctypes.CDLL(None, use_errno=True)


def set_network_namespace(descriptor):
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class NetworkNamespace:
    """Routes every address to its loopback interface: a server may listen on any address, and nothing leaves the namespace."""

    def __init__(self):
        self.name = f"lts-e2e-{os.getpid()}"
        self._etc = pathlib.Path("/etc/netns") / self.name
        self._etc.mkdir(parents=True)
        # `ip netns exec` mounts these over /etc, in a mount namespace
        self.set_name_servers(NAME_SERVER)
        (self._etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        (self._etc / "nsswitch.conf").write_text("hosts: files dns\n")
        run_command("ip", "netns", "add", self.name)
        run_command("ip", "-n", self.name, "link", "set", "lo", "up")
        for family in "-4", "-6":
            run_command("ip", "-n", self.name, family, "route", "add", "local", "default", "dev", "lo")
        self._inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        self._outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        with self.inside():
            pathlib.Path("/proc/sys/net/ipv6/ip_nonlocal_bind").write_text("1")

    @contextlib.contextmanager
    def inside(self):
        """Within this context, new sockets of the thread belong to the namespace, and stay there."""
        set_network_namespace(self._inside)
        try:
            yield
        finally:
            set_network_namespace(self._outside)

    def set_name_servers(self, *name_servers):
        """Writes resolv.conf, for processes started afterwards."""
        lines = [f"nameserver {address}\n" for address in name_servers] + ["options timeout:1 attempts:2\n"]
        (self._etc / "resolv.conf").write_text("".join(lines))

    def close(self):
        os.close(self._inside)
        os.close(self._outside)
        run_command("ip", "netns", "del", self.name)
        shutil.rmtree(self._etc)


class ConnectionMonitor:
    """Records every attempt to open a TCP connection in the namespace, answered or not, from a packet socket."""

    def __init__(self, namespace):
        with namespace.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
            self._socket.bind(("lo", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: no packet may be dropped
        self._socket.setblocking(False)
        self._seen = []

    def attempts(self):
        """All attempts so far as (address, port), in order, with repetitions."""
        while True:
            try:
                packet, (_, _, kind, *_) = self._socket.recvfrom(128)
            except BlockingIOError:
                break
            attempt = _attempt(packet) if kind == PACKET_OUTGOING else None
            if attempt:
                self._seen.append(attempt)
        _, dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert dropped == 0, f"the packet socket dropped {dropped} packets"
        return list(self._seen)

    def close(self):
        self._socket.close()


def _attempt(packet):
    """The destination of an IP packet that opens a TCP connection, or None."""
    if packet[0] >> 4 == 4:
        protocol, tcp, address = packet[9], (packet[0] & 15) * 4, socket.inet_ntop(socket.AF_INET, packet[16:20])
    else:
        protocol, tcp, address = packet[6], 40, socket.inet_ntop(socket.AF_INET6, packet[24:40])
    if protocol != socket.IPPROTO_TCP or packet[tcp + 13] & (SYN | ACK) != SYN:
        return None
    return address, int.from_bytes(packet[tcp + 2 : tcp + 4], "big")


def run_command(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
