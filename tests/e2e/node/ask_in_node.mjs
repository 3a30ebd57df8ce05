// Reads a job for `ask` from the standard input, and prints what came of it.
import { readFileSync } from "node:fs";
import { ask } from "./ask.mjs";

console.log(JSON.stringify(await ask(JSON.parse(readFileSync(0, "utf8")))));
