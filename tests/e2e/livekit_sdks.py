"""What LiveKit's own SDKs read out of a token, and the names of MSC4195 computed a second time."""

import base64
import hashlib
import json
import pathlib
import subprocess

from livekit.api import TokenVerifier

VERIFY = pathlib.Path(__file__).parent / "node" / "verify.cjs"


def python_verdict(token, key, secret):
    """The claims, or an exception of the SDK."""
    return TokenVerifier(key, secret).verify(token)


def node_verdict(token, key, secret):
    """The claims as JSON; the SDK's refusal is an AssertionError."""
    done = subprocess.run(["node", VERIFY, key, secret], input=token, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def name_of(*parts):
    """Unpadded base64 of SHA-256 over the canonical JSON array of `parts`."""
    canonical = json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.b64encode(hashlib.sha256(canonical).digest()).decode().rstrip("=")
