// npm eventsource: listens by event name, and comes back by itself after the end of the response.
import { EventSource } from 'eventsource';

const { STREAMING_HTTP, TOKEN } = process.env;
const source = new EventSource(`${STREAMING_HTTP}/api/v1/streaming/user`, {
  fetch: (input, init) =>
    fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${TOKEN}` } }),
});
source.addEventListener('open', () => console.log('open'));
source.addEventListener('error', () => console.log('closed'));
source.addEventListener('message', (event) => { throw new Error(`an event without a name: ${event.data}`); });
source.addEventListener('delete', (event) => console.log(`delete ${event.data}`));
for (const name of ['update', 'notification']) {
  source.addEventListener(name, (event) => console.log(`${name} ${JSON.parse(event.data).id}`));
}
