// A small Matrix client that hosts Element Call as a widget in one room: `matrix-widget-api` on one side, `fetch` to the homeserver on the
// other. Settings come in the page's fragment as JSON: {homeserver, accessToken, userId, deviceId, roomId}. Every step that a test waits
// for is recorded in `window.hostLog`.
import { ClientWidgetApi, OpenIDRequestState, Widget, WidgetDriver } from "matrix-widget-api";

const settings = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const { homeserver, accessToken, userId, deviceId, roomId } = settings;
const DELAYED_EVENTS = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
const room = `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}`;
window.hostLog = [];

async function request(method, path, body) {
  const response = await fetch(homeserver + path, {
    method,
    headers: { Authorization: `Bearer ${accessToken}`, "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const reply = await response.json();
  window.hostLog.push(`${method} ${path.split("?")[0]} ${response.status}`);
  if (!response.ok) throw Object.assign(new Error(`${method} ${path}: ${response.status} ${JSON.stringify(reply)}`), { status: response.status, reply });
  return reply;
}

let transactions = 0;
function eventPath(eventType, stateKey) {
  return stateKey === undefined || stateKey === null
    ? `${room}/send/${encodeURIComponent(eventType)}/t${Date.now()}-${transactions++}`
    : `${room}/state/${encodeURIComponent(eventType)}/${encodeURIComponent(stateKey)}`;
}

class Driver extends WidgetDriver {
  async validateCapabilities(requested) {
    return requested;
  }

  async sendEvent(eventType, content, stateKey = null) {
    const { event_id } = await request("PUT", eventPath(eventType, stateKey), content);
    return { roomId, eventId: event_id };
  }

  async sendStickyEvent(duration, eventType, content) {
    const { event_id } = await request("PUT", `${eventPath(eventType, null)}?org.matrix.msc4354.sticky_duration_ms=${duration}`, content);
    return { roomId, eventId: event_id };
  }

  async sendDelayedEvent(delay, eventType, content, stateKey = null) {
    const { delay_id } = await request("PUT", `${eventPath(eventType, stateKey)}?org.matrix.msc4140.delay=${delay}`, content);
    return { roomId, delayId: delay_id };
  }

  async sendDelayedStickyEvent(delay, duration, eventType, content) {
    const query = `org.matrix.msc4140.delay=${delay}&org.matrix.msc4354.sticky_duration_ms=${duration}`;
    const { delay_id } = await request("PUT", `${eventPath(eventType, null)}?${query}`, content);
    return { roomId, delayId: delay_id };
  }

  async cancelScheduledDelayedEvent(id) {
    await request("POST", `${DELAYED_EVENTS}/${encodeURIComponent(id)}/cancel`, {});
  }

  async restartScheduledDelayedEvent(id) {
    await request("POST", `${DELAYED_EVENTS}/${encodeURIComponent(id)}/restart`, {});
  }

  async sendScheduledDelayedEvent(id) {
    await request("POST", `${DELAYED_EVENTS}/${encodeURIComponent(id)}/send`, {});
  }

  async sendToDevice(eventType, _encrypted, messages) {
    await request("PUT", `/_matrix/client/v3/sendToDevice/${encodeURIComponent(eventType)}/t${Date.now()}-${transactions++}`, { messages });
  }

  async readRoomAccountData() {
    return [];
  }

  async readRoomTimeline(_room, eventType, _msgtype, stateKey, limit) {
    const filter = encodeURIComponent(JSON.stringify({ types: [eventType] }));
    const { chunk } = await request("GET", `${room}/messages?dir=b&limit=${limit || 50}&filter=${filter}`);
    return chunk.filter((event) => stateKey === undefined || event.state_key === stateKey);
  }

  async readRoomState(_room, eventType, stateKey) {
    const state = await request("GET", `${room}/state`);
    return state.filter((event) => event.type === eventType && (stateKey === undefined || event.state_key === stateKey));
  }

  async readStickyEvents() {
    return [];
  }

  async readEventRelations() {
    return { chunk: [] };
  }

  askOpenID(observer) {
    request("POST", `/_matrix/client/v3/user/${encodeURIComponent(userId)}/openid/request_token`, {}).then(
      (token) => observer.update({ state: OpenIDRequestState.Allowed, token }),
      () => observer.update({ state: OpenIDRequestState.Blocked }),
    );
  }

  async *getTurnServers() {}

  async getRtcTransports() {
    return await request("GET", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports");
  }

  getKnownRooms() {
    return [roomId];
  }

  processError(error) {
    return error.reply && { matrix_api_error: { http_status: error.status, http_headers: {}, url: "", response: error.reply } };
  }
}

// Feeds the widget what /sync returns for the room and the device.
async function sync(api) {
  const filter = encodeURIComponent(JSON.stringify({ room: { rooms: [roomId] }, presence: { types: [] } }));
  let since = "";
  for (;;) {
    try {
      const update = await request("GET", `/_matrix/client/v3/sync?filter=${filter}&timeout=${since ? 20000 : 0}${since && `&since=${since}`}`);
      since = update.next_batch;
      const joined = update.rooms?.join?.[roomId];
      const withRoom = (event) => ({ ...event, room_id: roomId });
      for (const event of joined?.state?.events ?? []) await api.feedStateUpdate(withRoom(event));
      for (const event of joined?.timeline?.events ?? []) {
        if (event.state_key !== undefined) await api.feedStateUpdate(withRoom(event));
        await api.feedEvent(withRoom(event));
      }
      for (const message of update.to_device?.events ?? []) await api.feedToDevice(message, false);
    } catch (error) {
      window.hostLog.push(`sync: ${error}`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

const parameters = new URLSearchParams({
  widgetId: "call",
  parentUrl: location.origin,
  roomId,
  userId,
  deviceId,
  baseUrl: homeserver,
  lang: "en",
  intent: "join_existing",
  skipLobby: "true",
  confineToRoom: "true",
  appPrompt: "false",
  preload: "false",
  hideHeader: "true",
  perParticipantE2EE: "false",
  returnToLobby: "false",
});
const url = `${location.origin}/element-call/index.html?widgetId=call&parentUrl=${encodeURIComponent(location.origin)}#?${parameters}`;
const iframe = document.getElementById("widget");
const widget = new Widget({ id: "call", creatorUserId: userId, type: "m.call", url, waitForIframeLoad: false });
const api = new ClientWidgetApi(widget, iframe, new Driver());
api.setViewedRoomId(roomId);
api.on("ready", () => {
  window.hostLog.push("widget ready");
  sync(api);
});
for (const action of ["io.element.join", "im.vector.hangup", "io.element.close", "io.element.device_mute", "set_always_on_screen", "io.element.tile_layout", "io.element.spotlight_layout"]) {
  api.on(`action:${action}`, (event) => {
    event.preventDefault();
    window.hostLog.push(action);
    api.transport.reply(event.detail, action === "set_always_on_screen" ? { success: true } : {});
  });
}
iframe.src = url;
// The hang-up button of the host client.
window.hangUp = () => api.transport.send("im.vector.hangup", {});
