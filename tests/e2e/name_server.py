"""A fake DNS server whose answers, right or wrong, a test chooses."""

import collections
import ipaddress
import socket
import threading

from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, SRV, A, DNSRecord

from network_namespace import NAME_SERVER

TTL = 300  # seconds


class NameServer:
    """UDP and TCP on port 53 of the namespace. `queries` are (name, type, transport), in order."""

    def __init__(self, namespace):
        self.queries = []
        self._records = collections.defaultdict(list)
        self._sequences = {}
        self._faults = {}
        with namespace.inside():
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind((NAME_SERVER, 53))
            self._tcp = socket.create_server((NAME_SERVER, 53))
        threading.Thread(target=self._serve_udp, daemon=True).start()
        threading.Thread(target=self._serve_tcp, daemon=True).start()

    def address(self, name, *addresses):
        """Adds A and AAAA records. Without addresses the name exists and has none."""
        for address in addresses:
            if ":" in address:
                self._add(name, "AAAA", AAAA(tuple(ipaddress.IPv6Address(address).packed)))
            else:
                self._add(name, "A", A(address))

    def srv(self, name, port, target, priority=10, weight=0):
        self._add(name, "SRV", SRV(priority, weight, port, target))

    def alias(self, name, target):
        self._add(name, "CNAME", CNAME(target))

    def address_sequence(self, name, *answers):
        """Answers each A query with the next IPv4 address; the last one is repeated."""
        self._sequences[name] = list(answers)

    def fault(self, kind, datagrams):
        """Replaces the UDP answers to queries of a type by the datagrams that `datagrams(query, answer)` returns."""
        self._faults[kind] = datagrams

    def queried_names(self, kind):
        """The names in all queries of a type, in order."""
        return [name for name, query_type, _ in self.queries if query_type == kind]

    def close(self):
        for listener in self._udp, self._tcp:
            try:
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # an unconnected UDP socket reports an error, and wakes its reader all the same
            listener.close()

    def _add(self, name, kind, data):
        self._records[name, kind].append(RR(name, getattr(QTYPE, kind), ttl=TTL, rdata=data))

    def _answer(self, query):
        name, kind = str(query.q.qname).rstrip(".").lower(), QTYPE[query.q.qtype]
        reply = query.reply()
        if kind == "A" and name in self._sequences:
            sequence = self._sequences[name]
            reply.add_answer(RR(name, QTYPE.A, ttl=0, rdata=A(sequence.pop(0) if len(sequence) > 1 else sequence[0])))
            return reply
        while alias := self._records.get((name, "CNAME")):
            reply.add_answer(*alias)
            name = str(alias[0].rdata.label).rstrip(".").lower()
        reply.add_answer(*self._records.get((name, kind), []))
        if not any(known == name for known, _ in self._records):
            reply.header.rcode = RCODE.NXDOMAIN
        return reply

    def _record(self, query, transport):
        self.queries.append((str(query.q.qname).rstrip(".").lower(), QTYPE[query.q.qtype], transport))

    def _serve_udp(self):
        while True:
            try:
                packet, client = self._udp.recvfrom(4096)
            except OSError:
                return
            if not packet:
                return  # closed
            query = DNSRecord.parse(packet)
            self._record(query, "udp")
            answer, fault = self._answer(query), self._faults.get(QTYPE[query.q.qtype])
            for datagram in fault(query, answer) if fault else [answer.pack()]:
                self._udp.sendto(datagram, client)

    def _serve_tcp(self):
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                query = DNSRecord.parse(stream.read(int.from_bytes(stream.read(2), "big")))
                self._record(query, "tcp")
                answer = self._answer(query).pack()
                connection.sendall(len(answer).to_bytes(2, "big") + answer)
