// npm dotenv, unchanged: for each line of input, a JSON string with a file's text, a line of output with what
// it reads from that, as a JSON object.
import { createInterface } from "node:readline";
import { parse } from "dotenv";

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(parse(JSON.parse(line))));
}
