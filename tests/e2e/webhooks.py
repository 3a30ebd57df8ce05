"""What an SFU tells its webhook URL, in the form of LiveKit's own protocol classes and signed by LiveKit's own SDK."""

import base64
import datetime
import hashlib
import http.client
import itertools
import random
import secrets
import time

from google.protobuf.json_format import MessageToJson
from livekit.api import AccessToken
from livekit.protocol.models import ParticipantInfo, Room
from livekit.protocol.webhook import WebhookEvent

from service import KEY, SECRET, call

# livekit-server tries again after a transport error or a 5xx, with these pauses
PAUSES = (1, 2, 4, 8)


def signed(event, key=KEY, secret=SECRET):
    """The body and the Authorization header of one delivery, which stay the same when it is repeated."""
    body = MessageToJson(event, indent=None).encode()
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    token = AccessToken(key, secret).with_ttl(datetime.timedelta(minutes=5)).with_sha256(digest)
    return body, {"Authorization": token.to_jwt(), "Content-Type": "application/webhook+json"}


def event_of(kind, room, identity, sid, **participant):
    """A `participant_*` event of a call."""
    return WebhookEvent(
        event=kind,
        id=f"EV_{secrets.token_hex(6)}",
        created_at=int(time.time()),
        room=Room(name=room, sid="RM_e2e"),
        participant=ParticipantInfo(identity=identity, sid=sid, **participant),
    )


class Webhooks:
    """The SFU's side of the calls: who is in them, as `sfu` answers it, and what the services are told.

    `addresses` returns those of the services, of which one gets each delivery by chance; as with a real SFU, one that fails is repeated."""

    def __init__(self, sfu, addresses, seed=0):
        self._sfu, self._addresses, self._random = sfu, addresses, random.Random(seed)
        self._sids = (f"PA_{n:06}" for n in itertools.count())

    def joined(self, room, identity):
        """Somebody has connected; their new sid."""
        sid = next(self._sids)
        self._sfu.present[room, identity] = sid
        attributes = self._sfu.attributes.get((room, identity), {})
        self.play(event_of("participant_joined", room, identity, sid, state=ParticipantInfo.ACTIVE, attributes=attributes))
        return sid

    def left(self, room, identity, sid):
        """Somebody's connection has ended, and it was the last one if its sid is the present one."""
        if self._sfu.present.get((room, identity)) == sid:
            del self._sfu.present[room, identity]
        self.play(event_of("participant_left", room, identity, sid, state=ParticipantInfo.DISCONNECTED))

    def aborted(self, room, identity):
        """Somebody's connection has broken off before it was one."""
        self.play(event_of("participant_connection_aborted", room, identity, next(self._sids)))

    def play(self, event):
        """Delivers it, and returns when a service has accepted it."""
        body, headers = signed(event)
        for pause in (*PAUSES, None):
            address = self._random.choice(self._addresses())
            try:
                status = call(address, "POST", "/sfu_webhook", body, headers, timeout=10).status
            except (OSError, http.client.HTTPException) as error:
                status = repr(error)
            if status == 200:
                return
            assert pause and (isinstance(status, str) or status >= 500), f"the webhook ended with {status}"
            time.sleep(pause)
