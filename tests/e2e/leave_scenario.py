"""A member of a call on a real Synapse whose leave event is delegated to the service, and a fake SFU that sends webhooks."""

import time

from concurrent_scenarios import SOON, wait_until
from fake_sfu import FakeSfu
from faulty_proxies import HomeserverProxy
from livekit_sdks import hashed_name
from real_synapse import CallMember
from service import DEVICE, KEY, MEMBER, SECRET, SLOT, Service, get_token_body, sfu_get_body
from webhooks import Webhooks


class LeaveScenario:
    """A member of a call, a service, and the proxy through which this service alone reaches Synapse."""

    def __init__(self, synapse, **settings):
        self.synapse, self.member = synapse, CallMember(synapse)
        self.sfu, self.proxy = FakeSfu(KEY, SECRET), HomeserverProxy(synapse.client_url)
        self.settings = {
            "LIVEKIT_CA_FILE": synapse.ca_file,
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": synapse.server_name,
            "LIVEKIT_CS_API_URL_OVERRIDES": f"{synapse.server_name}={self.proxy.url}",
            "LIVEKIT_API_URL": self.sfu.url,
        } | settings
        self.service = Service(self.settings)
        self.webhooks = Webhooks(self.sfu, lambda: [f"127.0.0.1:{self.service.port}"])
        self.room, self.identity = hashed_name(self.member.room, SLOT), hashed_name(self.member.user, DEVICE, MEMBER)
        self.delay_id = None

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        self.service.stop()
        if error:
            error.add_note(f"calls: {self.proxy.calls}\nlooked up: {self.sfu.looked_up}\n{self.service.text}")
        self.proxy.stop()
        self.sfu.stop()

    def delegate(self, delay, path="/get_token", claimed_delay=None, member=None):
        """Schedules the leave event and delegates it to the service, with `claimed_delay` as `delay_timeout` if it is given."""
        member = member or self.member
        delay_id = member.schedule(delay)
        token, server = member.openid_token, self.synapse.server_name
        body = sfu_get_body(server, token) if path == "/sfu/get" else get_token_body(member.user, server, token)
        body |= {"room" if path == "/sfu/get" else "room_id": self.member.room}
        body |= {"delay_id": delay_id, "delay_timeout": int((claimed_delay or delay) * 1000)}
        reply = self.service.call("POST", path, body)
        assert reply.status == 200, reply.body
        self.delay_id = delay_id
        return delay_id

    def join(self):
        return self.webhooks.joined(self.room, self.identity)

    def leave(self, sid):
        """Disconnects the member. Returns the seconds from the SFU's webhook to the leave event, which the service must have sent."""
        assert self.member.left_at() is None
        at = time.time()
        self.webhooks.left(self.room, self.identity, sid)
        return self.expect_sent() - at

    def expect_sent(self, seconds=SOON):
        """Waits until the service has sent the leave event. Returns when it was sent, in seconds since the epoch."""
        left_at = wait_until(self.member.left_at, seconds, "the leave event is in the room")
        # the room has the event before the service has the answer
        wait_until(self.sent, SOON, "the service has sent the leave event")
        return left_at

    def calls(self, action, delay_id=None):
        return [
            call for call in self.proxy.calls if (call.action, call.delay_id) == (action, delay_id or self.delay_id)
        ]

    def sent(self):
        return [call for call in self.calls("send") if call.status == 200]

    def stay_connected(self, seconds):
        """The member stays connected for so long. Returns when the delayed event was restarted, according to Synapse."""
        begin, restarts = time.time(), set()
        while time.time() < begin + seconds:
            since = self.member.since(self.delay_id)
            assert since, "Synapse no longer has the delayed event"
            assert self.member.left_at() is None, "the leave event was sent during the call"
            restarts.add(since)
            time.sleep(0.5)
        return {since for since in restarts if since > begin}

    def expect_restarts_for(self, seconds):
        """The member stays connected for so long, and the service restarts the delayed event."""
        assert self.stay_connected(seconds), "Synapse saw no restart"
