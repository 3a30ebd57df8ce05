// Reads an access token from the standard input, and prints its claims according to LiveKit's own verifier.
// Arguments: API key, API secret. NODE_PATH names the folder with livekit-server-sdk.
const { readFileSync } = require("node:fs");
const { TokenVerifier } = require("livekit-server-sdk");

const [key, secret] = process.argv.slice(2);
new TokenVerifier(key, secret)
  .verify(readFileSync(0, "utf8").trim())
  .then((claims) => console.log(JSON.stringify(claims)))
  .catch((error) => {
    console.error(String(error));
    process.exit(1);
  });
