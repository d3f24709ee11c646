// Node's HTTP/2 client. The HEADERS frame of its request does not end the stream, so that a proxy passes the
// request on before it knows whether a body follows; none does. Prints the status and what arrives, as JSON.
import { connect } from "node:http2";

const [base, path, token, protocol] = process.argv.slice(2);
const session = connect(base);
const print = (line) => console.log(JSON.stringify(line));
const open = () => {
  const headers = { ":path": path, authorization: `Bearer ${token}` };
  if (protocol) {
    // RFC 8441
    Object.assign(headers, { ":method": "CONNECT", ":protocol": protocol, "sec-websocket-version": "13" });
  }
  const request = session.request(headers, { endStream: false });
  request.on("response", (head) => print({ status: head[":status"] }));
  request.on("data", (bytes) => print({ data: bytes.toString("latin1") }));
  request.on("error", (error) => print({ error: error.message }));
  request.on("close", () => print({ closed: true }));
  // An empty DATA frame, after a turn of the event loop: the HEADERS frame is on its way by then.
  if (!protocol) setTimeout(() => request.end(), 50);
};
session.on("error", (error) => print({ error: error.message }));
if (protocol) session.once("remoteSettings", open);
else open();
