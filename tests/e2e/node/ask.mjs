// One call by a client of contrib/clients, in Node as well as in a page: both come to lie beside this file.
import { getToken } from "./fetch.mjs";
import { tokenSource } from "./livekit-client.mjs";

// as the wire has them, and as livekit-client calls them
const OPTIONS = {
  room_name: "roomName",
  participant_name: "participantName",
  participant_identity: "participantIdentity",
  participant_metadata: "participantMetadata",
  participant_attributes: "participantAttributes",
  agent_name: "agentName",
  agent_metadata: "agentMetadata",
};

// The reply as JSON has it, or {refused: the client's own words}.
export async function ask({ client, endpoint, bearer, asked, headers }) {
  try {
    if (client === "fetch") return await getToken(endpoint, bearer, asked, headers);
    const options = Object.fromEntries(Object.entries(asked).map(([name, value]) => [OPTIONS[name], value]));
    return await tokenSource(endpoint, bearer, headers).fetch(options);
  } catch (error) {
    return { refused: String(error) };
  }
}
