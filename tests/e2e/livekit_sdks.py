"""Access tokens as LiveKit's own SDKs verify them, and the hashed names of MSC4195, computed independently of the service."""

import base64
import hashlib
import json
import pathlib
import subprocess

from livekit.api import TokenVerifier

VERIFY = pathlib.Path(__file__).parent / "node" / "verify.cjs"


def verify_with_python_sdk(token, key, secret):
    """The claims; raises the SDK's exception if it refuses the access token."""
    return TokenVerifier(key, secret).verify(token)


def verify_with_node_sdk(token, key, secret):
    """The claims as JSON; raises AssertionError if the SDK refuses the access token."""
    done = subprocess.run(["node", VERIFY, key, secret], input=token, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def hashed_name(*parts):
    """Unpadded base64 of SHA-256 over the canonical JSON array of `parts`."""
    canonical = json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.b64encode(hashlib.sha256(canonical).digest()).decode().rstrip("=")
