// masto.js, unchanged: its streaming client, subscribed to the user stream by message.
import { createStreamingAPIClient } from "masto";

const [base, token] = process.argv.slice(2);
const masto = createStreamingAPIClient({
  streamingApiUrl: `${base.replace("http", "ws")}/api/v1/streaming`,
  accessToken: token,
  retry: false,
});
console.log(JSON.stringify({ open: true }));
for await (const { stream, event, payload } of masto.user.subscribe()) {
  const text = event === "delete" ? payload : JSON.stringify(payload);
  console.log(JSON.stringify({ stream, event, payload: text }));
}
