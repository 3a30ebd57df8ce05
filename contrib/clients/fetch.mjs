// Requests an access token with fetch, in a browser or in Node:
//
//   const { token, url } = await getToken("https://tokens.example.com/token", await login(), {
//     room_name: "appointment-42",
//     participant_name: "alice",
//   });
//
// `bearer` is the JWT of your application's own login. An API key is for servers: in a browser every user can read it.
export async function getToken(endpoint, bearer, fields, headers = {}) {
  const reply = await fetch(endpoint, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${bearer}`, ...headers },
    body: JSON.stringify(fields),
  });
  if (!reply.ok) {
    // the detail of 422 is a list of errors by field, that of other statuses a sentence
    const { detail } = await reply.json();
    throw new Error(`no token: ${reply.status} ${typeof detail === "string" ? detail : JSON.stringify(detail)}`);
  }
  return reply.json();
}
