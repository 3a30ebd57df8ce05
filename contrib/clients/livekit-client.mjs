// Access tokens for npm livekit-client (2.15 or newer), in a browser or in Node:
//
//   const source = tokenSource("https://tokens.example.com/token", await login());
//   const { serverUrl, participantToken } = await source.fetch({ roomName: "appointment-42" });
//   await room.connect(serverUrl, participantToken);
//
// `bearer` is the JWT of your application's own login. An API key is for servers: in a browser every user can read it.
import { TokenSource } from "livekit-client";

export function tokenSource(endpoint, bearer, headers = {}) {
  return TokenSource.endpoint(endpoint, { headers: { Authorization: `Bearer ${bearer}`, ...headers } });
}
