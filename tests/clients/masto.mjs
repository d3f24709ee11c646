// masto.js: an endless loop over the stream `user`; the library reconnects and subscribes again by itself.
import { createStreamingAPIClient } from 'masto';

const { STREAMING_WS, TOKEN } = process.env;
const masto = createStreamingAPIClient({ streamingApiUrl: STREAMING_WS, accessToken: TOKEN });
for await (const { stream, event, payload } of masto.user.subscribe()) {
  if (JSON.stringify(stream) !== '["user"]') throw new Error(`stream ${stream}`);
  console.log(`${event} ${event === 'delete' ? payload : payload.id}`);
}
