"""Settings of a service with the general token endpoint alone, and a caller with an API key."""

import hashlib
import json

from service import KEY, SECRET

# the form that `keygen` makes: an id and 256 bits
API_KEY = f"lts_0e2e0e2e_{'0123456789abcdef' * 4}"
WRONG_KEY = API_KEY[:-1] + "0"
STORED = hashlib.sha256(API_KEY.encode()).hexdigest()
AUTHORIZATION = {"Authorization": f"Bearer {API_KEY}"}


def settings(**more):
    """The environment: no Matrix endpoints, and one caller with an API key unless a policy file lists the callers."""
    callers = {} if "TOKEN_SERVER_POLICY_FILE" in more else {"TOKEN_SERVER_API_KEYS": f"e2e:{STORED}"}
    without_matrix = {"LIVEKIT_KEY": "", "LIVEKIT_SECRET": "", "LIVEKIT_API_KEY": KEY, "LIVEKIT_API_SECRET": SECRET}
    return without_matrix | callers | more


def policy(**rules):
    """A policy file with one caller, whose API key is the one above."""
    # strings, numbers, booleans and lists of strings look the same in JSON and in TOML
    lines = [f"{name} = {json.dumps(value)}" for name, value in rules.items()]
    return "\n".join(["[callers.e2e]", f'keys = ["sha256:{STORED}"]', *lines, ""])
