"""Webhooks of an SFU, made with LiveKit's own protocol classes and signed by LiveKit's own SDK."""

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

# seconds; livekit-server repeats a webhook after a transport error or a 5xx with these pauses
PAUSES = (1, 2, 4, 8)


def signed(event, key=KEY, secret=SECRET):
    """Body and headers of one webhook; a repetition has the same."""
    body = MessageToJson(event, indent=None).encode()
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    token = AccessToken(key, secret).with_ttl(datetime.timedelta(minutes=5)).with_sha256(digest)
    return body, {"Authorization": token.to_jwt(), "Content-Type": "application/webhook+json"}


def event_of(kind, room, identity, sid, **participant):
    """A `participant_*` event."""
    return WebhookEvent(
        event=kind,
        id=f"EV_{secrets.token_hex(6)}",
        created_at=int(time.time()),
        room=Room(name=room, sid="RM_e2e"),
        participant=ParticipantInfo(identity=identity, sid=sid, **participant),
    )


class Webhooks:
    """Participants that join and leave: updates `sfu.present` and sends webhooks.

    `addresses` returns the addresses of the services; each delivery goes to a random one, and is repeated if it fails, as by a real SFU."""

    def __init__(self, sfu, addresses, seed=0):
        self._sfu, self._addresses, self._random = sfu, addresses, random.Random(seed)
        self._sids = (f"PA_{n:06}" for n in itertools.count())

    def joined(self, room, identity):
        """A participant has connected. Returns the new sid."""
        sid = next(self._sids)
        self._sfu.present[room, identity] = sid
        attributes = self._sfu.attributes.get((room, identity), {})
        self.deliver(event_of("participant_joined", room, identity, sid, state=ParticipantInfo.ACTIVE, attributes=attributes))
        return sid

    def left(self, room, identity, sid):
        """A connection of a participant has ended. The participant has left if `sid` is the latest one."""
        if self._sfu.present.get((room, identity)) == sid:
            del self._sfu.present[room, identity]
        self.deliver(event_of("participant_left", room, identity, sid, state=ParticipantInfo.DISCONNECTED))

    def aborted(self, room, identity):
        """A connection of a participant has been aborted before it was established."""
        self.deliver(event_of("participant_connection_aborted", room, identity, next(self._sids)))

    def deliver(self, event):
        """Delivers an event, with repetitions. Returns when a service has accepted it."""
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
