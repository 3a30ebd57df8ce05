// Reads the argument of `requestToken` as JSON from the standard input, and prints the result as JSON.
import { readFileSync } from "node:fs";
import { requestToken } from "./request_token.mjs";

console.log(JSON.stringify(await requestToken(JSON.parse(readFileSync(0, "utf8")))));
