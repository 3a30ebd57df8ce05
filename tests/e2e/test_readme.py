"""The exchange on the first screen of README.md, unchanged, by a user of a real Synapse."""

import json
import os
import pathlib
import re
import subprocess

import pytest

from fake_sfu import FakeSfu
from livekit_sdks import hashed_name, verify_with_node_sdk
from real_synapse import Synapse

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
DEV_KEY, DEV_SECRET = "devkey", "secret"


@pytest.fixture(scope="module")
def synapse():
    synapse = Synapse("localhost")
    yield synapse
    synapse.stop()


@pytest.fixture
def sfu():
    sfu = FakeSfu(DEV_KEY, DEV_SECRET, port=7880)
    yield sfu
    sfu.stop()


def test_the_exchange_of_the_readme_works(synapse, sfu, start):
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "openid/request_token" in block]
    assert len(blocks) == 1
    # an empty setting counts as unset, so the defaults of --dev apply; only the address of this Synapse has to be allowed
    start(
        arguments=["--dev"],
        LIVEKIT_URL="",
        LIVEKIT_KEY="",
        LIVEKIT_SECRET="",
        LIVEKIT_JWT_BIND="",
        LIVEKIT_CA_FILE=synapse.ca_file,
        LIVEKIT_ALLOWED_NETWORKS="127.0.0.0/8",
    )
    user, access_token = synapse.register()
    env = {"PATH": os.environ["PATH"], "HOMESERVER": synapse.client_url, "USER_ID": user, "ACCESS_TOKEN": access_token}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", blocks[0]], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr

    reply = json.loads(done.stdout)
    assert reply["url"] == "ws://localhost:7880"
    claims = verify_with_node_sdk(reply["jwt"], DEV_KEY, DEV_SECRET)
    room = hashed_name("!room:example.org", "m.call#ROOM")
    assert (claims["sub"], claims["video"]["room"]) == (f"{user}:DEVICE", room)
    assert [created.name for created in sfu.rooms] == [room] and not sfu.refusals
