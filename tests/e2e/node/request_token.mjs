// Requests an access token with a client of contrib/clients, in Node or in a page. The clients' files are served or copied beside this one.
import { getToken } from "./fetch.mjs";
import { tokenSource } from "./livekit-client.mjs";

// name in the request -> name in livekit-client
const OPTIONS = {
  room_name: "roomName",
  participant_name: "participantName",
  participant_identity: "participantIdentity",
  participant_metadata: "participantMetadata",
  participant_attributes: "participantAttributes",
  agent_name: "agentName",
  agent_metadata: "agentMetadata",
};

// Returns the reply, or {refused: the client's error message}.
export async function requestToken({ client, endpoint, bearer, fields, headers }) {
  try {
    if (client === "fetch") return await getToken(endpoint, bearer, fields, headers);
    const options = Object.fromEntries(Object.entries(fields).map(([name, value]) => [OPTIONS[name], value]));
    return await tokenSource(endpoint, bearer, headers).fetch(options);
  } catch (error) {
    return { refused: String(error) };
  }
}
