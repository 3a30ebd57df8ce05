"""crates.py BINARY Cargo.lock: checks that a 64-bit ELF file has a list of crates, all of which are in Cargo.lock."""

import json
import re
import struct
import sys
import zlib

REQUIRED = {"livekit-token-service", "rustls", "ring", "tiny_http", "ureq"}


def section(elf, wanted):
    """The bytes of a section. Not by binutils, which read only the machines that they were built for."""
    assert elf[:6] == b"\x7fELF\x02\x01", "no little-endian ELF of 64 bits"
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    for name, _, _, _, offset, length in headers:
        begin = headers[names][4] + name
        if elf[begin : elf.index(b"\0", begin)] == wanted:
            return elf[offset : offset + length]
    raise SystemExit(f"no section {wanted.decode()}")


binary, lock = sys.argv[1:]
data = section(open(binary, "rb").read(), b".dep-v0")
listed = {(crate["name"], crate["version"]) for crate in json.loads(zlib.decompress(data))["packages"]}
locked = set(re.findall(r'name = "(.+)"\nversion = "(.+)"', open(lock).read()))
assert REQUIRED <= {name for name, _ in listed}, f"{listed} lacks some of {REQUIRED}"
assert listed <= locked, f"not in Cargo.lock: {listed - locked}"
print(f"{len(listed)} crates listed in {len(data)} bytes")
