"""Element Call, the released bundle, as a widget in Debian's Chromium with fake camera and microphone."""

import contextlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.parse

import requests

from real_synapse import MEMBER_EVENT

NODE_MODULES = pathlib.Path(os.environ["NODE_PATH"])
BUNDLE = NODE_MODULES / "@element-hq" / "element-call-embedded" / "dist"
HERE = pathlib.Path(__file__).parent / "call"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--ignore-certificate-errors",
    # candidates with loopback addresses, for an SFU on this machine
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
]
# Keeps every peer connection of a page, so that getStats can count decoded frames.
RECORD_CONNECTIONS = """
window.peerConnections = [];
const Original = window.RTCPeerConnection;
window.RTCPeerConnection = class extends Original {
  constructor(...arguments_) { super(...arguments_); window.peerConnections.push(this); }
};
"""
FRAMES = """
async () => {
  let frames = 0;
  for (const connection of window.peerConnections ?? []) {
    if (connection.connectionState === "closed") continue;
    for (const entry of (await connection.getStats()).values())
      if (entry.type === "inbound-rtp" && entry.kind === "video") frames += entry.framesDecoded ?? 0;
  }
  return frames;
}
"""


class Pages:
    """Serves the host page and Element Call's files on loopback, which browsers count as a secure origin."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="call-")
        root = pathlib.Path(self._folder.name)
        shutil.copy(HERE / "host.html", root)
        subprocess.run(
            [NODE_MODULES / ".bin" / "esbuild", HERE / "host.mjs", "--bundle", "--format=esm", f"--outfile={root / 'host.js'}", "--log-level=error"],
            check=True,
            env=os.environ | {"NODE_PATH": str(NODE_MODULES)},
        )
        (root / "element-call").symlink_to(BUNDLE)

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=root)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()


class Participant:
    """A new user with a browser of their own, in which Element Call shows one room; the room is created unless it is given."""

    def __init__(self, playwright, pages, synapse, room=None):
        self._synapse = synapse
        self.user, self.access_token = synapse.register()
        self.device = self.request("GET", "account/whoami")["device_id"]
        if room is None:
            members_may_call = {"preset": "public_chat", "power_level_content_override": {"state_default": 0}}
            self.room = self.request("POST", "createRoom", members_may_call)["room_id"]
        else:
            self.room = room
            self.request("POST", f"join/{urllib.parse.quote(room)}", {})
        settings = {
            "homeserver": synapse.client_url,
            "accessToken": self.access_token,
            "userId": self.user,
            "deviceId": self.device,
            "roomId": self.room,
        }
        self._url = f"{pages.url}/host.html#{urllib.parse.quote(json.dumps(settings))}"
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._context = playwright.chromium.launch_persistent_context(
            self._profile.name,
            executable_path=CHROMIUM,
            headless=True,
            args=ARGUMENTS,
            viewport={"width": 900, "height": 600},
        )
        self._context.add_init_script(RECORD_CONNECTIONS)
        self._page = self._context.pages[0]
        self.console = []
        self._page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))

    def request(self, method, path, body=None):
        """One request of this user to the homeserver's client-server API; returns the reply's JSON."""
        url = f"{self._synapse.client_url}/_matrix/client/v3/{path}"
        headers = {"Authorization": f"Bearer {self.access_token}"}
        reply = requests.request(method, url, json=body, headers=headers, timeout=30)
        assert reply.ok, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json()

    def membership(self):
        """This user's call membership event: its content, and when it was sent in seconds since the epoch."""
        state = self.request("GET", f"rooms/{urllib.parse.quote(self.room)}/state")
        own = [e for e in state if e["type"] == MEMBER_EVENT and e["sender"] == self.user]
        return (own[0]["content"], own[0]["origin_server_ts"] / 1000) if own else ({}, None)

    def join(self):
        """Opens the page; Element Call joins without its lobby."""
        self._page.goto(self._url)

    def frames(self):
        """Frames of other participants' video decoded so far."""
        return sum(frame.evaluate(FRAMES) for frame in self._page.frames if "element-call" in frame.url)

    def sees_video(self):
        """Whether frames are being decoded now."""
        before = self.frames()
        self._page.wait_for_timeout(1000)
        return self.frames() > before

    def hang_up(self):
        self._page.evaluate("window.hangUp()")

    def kill(self):
        """Ends the browser at once, as a crash or a power cut does."""
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if self._profile.name.encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                pass

    def screenshot(self, file):
        self._page.screenshot(path=file)

    def report(self):
        """What the host page did and the end of the console, for a failed test."""
        return "\n".join([*self._page.evaluate("window.hostLog"), *self.console[-40:]])

    def close(self):
        with contextlib.suppress(Exception):  # the browser may have been killed
            self._context.close()
        self._profile.cleanup()
