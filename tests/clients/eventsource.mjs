// npm eventsource, unchanged: the user stream by Server-Sent Events.
import { EventSource } from "eventsource";

const [base, token] = process.argv.slice(2);
const source = new EventSource(`${base}/api/v1/streaming/user?access_token=${token}`);
source.onopen = () => console.log(JSON.stringify({ open: true }));
for (const event of ["update", "delete", "notification"]) {
  source.addEventListener(event, ({ data }) =>
    console.log(JSON.stringify({ stream: ["user"], event, payload: data })),
  );
}
// It comes back by itself after the end of a response; one end is enough here.
source.onerror = () => {
  console.log(JSON.stringify({ closed: true }));
  process.exit(0);
};
