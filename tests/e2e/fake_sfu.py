"""A fake of the LiveKit SFU, for tests that choose who is in a room and need no media.

It reads requests with LiveKit's own protobuf classes and checks access tokens with LiveKit's own verifier. test_call.py has the real one."""

import base64
import hashlib
import http.server
import socket
import threading

from livekit.api import TokenVerifier
from livekit.protocol.models import ParticipantInfo, Room
from livekit.protocol.room import (
    CreateRoomRequest,
    ListParticipantsRequest,
    ListParticipantsResponse,
    ListRoomsRequest,
    ListRoomsResponse,
    RemoveParticipantResponse,
    RoomParticipantIdentity,
)

ROOM_SERVICE = "/twirp/livekit.RoomService/"


class NotFound(Exception):
    """The room has no participant of that identity."""


class FakeSfu:
    """Listens on loopback from the constructor on. `rooms` are the accepted CreateRoom requests in order, `refusals` the refused requests.

    A test sets `present` (participants in a call: (room, identity) -> sid) and `attributes` ((room, identity) -> attributes of the access
    token). `looked_up` and `removed` are the participants of the GetParticipant and RemoveParticipant requests, as (room, identity)."""

    def __init__(self, key, secret, port=0):
        self.rooms, self.refusals, self.present, self.looked_up, self.removed = [], [], {}, [], []
        self.attributes = {}
        self._verifier = TokenVerifier(key, secret)
        sfu = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    reply, status, kind = sfu._answer(self.path, self.headers, body), 200, "application/protobuf"
                except NotFound:
                    reply, status, kind = b'{"code":"not_found","msg":"no"}', 404, "application/json"
                except Exception as refusal:
                    sfu.refusals.append(repr(refusal))
                    reply, status, kind = b'{"code":"unauthenticated","msg":"no"}', 401, "application/json"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_):
                pass

        self._server = _Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, path, headers, body):
        calls = {
            ROOM_SERVICE + "CreateRoom": self._create_room,
            ROOM_SERVICE + "ListRooms": self._list_rooms,
            ROOM_SERVICE + "ListParticipants": self._list_participants,
            ROOM_SERVICE + "GetParticipant": self._get_participant,
            ROOM_SERVICE + "RemoveParticipant": self._remove_participant,
        }
        assert path in calls, path
        assert headers["Content-Type"] == "application/protobuf", headers["Content-Type"]
        scheme, _, token = headers["Authorization"].partition(" ")
        assert scheme == "Bearer", scheme
        grants = self._verifier.verify(token).video
        assert not grants.room_join, grants
        return calls[path](grants, body).SerializeToString()

    def _create_room(self, grants, body):
        assert grants.room_create, grants
        request = CreateRoomRequest.FromString(body)
        self.rooms.append(request)
        return Room(sid="RM_e2e", name=request.name)

    def _list_rooms(self, grants, body):
        assert grants.room_list, grants
        wanted = ListRoomsRequest.FromString(body).names
        names = {room.name for room in self.rooms}
        return ListRoomsResponse(rooms=[Room(name=name) for name in names if name in wanted or not wanted])

    def _list_participants(self, grants, body):
        room = ListParticipantsRequest.FromString(body).room
        assert grants.room_admin and grants.room == room, grants
        present = [(identity, sid) for (name, identity), sid in list(self.present.items()) if name == room]
        return ListParticipantsResponse(participants=[self._participant(room, *entry) for entry in present])

    def _participant(self, room, identity, sid):
        attributes = self.attributes.get((room, identity), {})
        return ParticipantInfo(sid=sid, identity=identity, state=ParticipantInfo.ACTIVE, attributes=attributes)

    def _get_participant(self, grants, body):
        request = RoomParticipantIdentity.FromString(body)
        assert grants.room_admin and grants.room == request.room, grants
        self.looked_up.append((request.room, request.identity))
        sid = self.present.get((request.room, request.identity))
        if sid is None:
            raise NotFound
        return self._participant(request.room, request.identity, sid)

    def _remove_participant(self, grants, body):
        request = RoomParticipantIdentity.FromString(body)
        assert grants.room_admin and grants.room == request.room, grants
        if self.present.pop((request.room, request.identity), None) is None:
            raise NotFound
        self.removed.append((request.room, request.identity))
        return RemoveParticipantResponse()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # at the start of a call all participants connect at once


class WebSocketSfu:
    """Accepts one WebSocket, records its request line, and returns the first four bytes in upper case."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.request = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as stream:
            self.request = stream.readline().decode()
            fields = {}
            while line := stream.readline().decode().strip():
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            # RFC 6455, section 4.2.2
            key = fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
            )
            connection.sendall(stream.read(4).upper())
        self._listener.close()
