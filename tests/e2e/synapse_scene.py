"""A caller on a real Synapse whose leave a service keeps, and the SFU that tells it who comes and goes."""

import time

from fake_sfu import FakeSfu
from faults import HomeserverProxy
from livekit_sdks import name_of
from real_synapse import Caller
from scenes import SOON, until
from service import DEVICE, KEY, MEMBER, SECRET, SLOT, Service, get_token_body, sfu_get_body
from webhooks import Webhooks


class Scene:
    """A caller, a service, and the proxy through which only this service reaches Synapse."""

    def __init__(self, synapse, **settings):
        self.synapse, self.caller = synapse, Caller(synapse)
        self.sfu, self.proxy = FakeSfu(KEY, SECRET), HomeserverProxy(synapse.client_url)
        self.settings = {
            "LIVEKIT_CA_FILE": synapse.ca_file,
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": synapse.server_name,
            "LIVEKIT_CS_API_URL_OVERRIDES": f"{synapse.server_name}={self.proxy.url}",
            "LIVEKIT_API_URL": self.sfu.url,
        } | settings
        self.service = Service(self.settings)
        self.webhooks = Webhooks(self.sfu, lambda: [f"127.0.0.1:{self.service.port}"])
        self.room, self.identity = name_of(self.caller.room, SLOT), name_of(self.caller.user, DEVICE, MEMBER)
        self.delay_id = None

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        self.service.stop()
        if error:
            error.add_note(f"calls: {self.proxy.calls}\nlooked up: {self.sfu.looked_up}\n{self.service.text}")
        self.proxy.stop()
        self.sfu.stop()

    def delegate(self, delay, path="/get_token", told=None, caller=None):
        """Schedules the leave and hands it to the service, with `told` as the delay if it is not the true one."""
        caller = caller or self.caller
        delay_id = caller.schedule(delay)
        token, server = caller.openid_token, self.synapse.server_name
        body = sfu_get_body(server, token) if path == "/sfu/get" else get_token_body(caller.user, server, token)
        body |= {"room" if path == "/sfu/get" else "room_id": self.caller.room}
        body |= {"delay_id": delay_id, "delay_timeout": int((told or delay) * 1000)}
        reply = self.service.call("POST", path, body)
        assert reply.status == 200, reply.body
        self.delay_id = delay_id
        return delay_id

    def join(self):
        return self.webhooks.joined(self.room, self.identity)

    def leave(self, sid):
        """Seconds from the SFU's webhook to the leave in the room, which the service must have sent."""
        assert self.caller.left_at() is None
        at = time.time()
        self.webhooks.left(self.room, self.identity, sid)
        return self.expect_sent() - at

    def expect_sent(self, seconds=SOON):
        """When the leave came into the room, which was by the service's call."""
        left_at = until(self.caller.left_at, seconds, "the leave is in the room")
        # the room has it before the service has its answer
        until(self.sent, SOON, "the service has sent it")
        return left_at

    def calls(self, action, delay_id=None):
        return [
            call for call in self.proxy.calls if (call.action, call.delay_id) == (action, delay_id or self.delay_id)
        ]

    def sent(self):
        return [call for call in self.calls("send") if call.status == 200]

    def stays_for(self, seconds):
        """The caller stays in the call; the times at which the delayed leave was restarted, as Synapse tells them."""
        begin, restarts = time.time(), set()
        while time.time() < begin + seconds:
            since = self.caller.since(self.delay_id)
            assert since, "the delayed leave is gone from Synapse"
            assert self.caller.left_at() is None, "the leave came into the room in mid-call"
            restarts.add(since)
            time.sleep(0.5)
        return {since for since in restarts if since > begin}

    def expect_restarts_for(self, seconds):
        """The caller stays in the call, and Synapse is told to wait on all the while."""
        assert self.stays_for(seconds), "no restart was observed on Synapse"
