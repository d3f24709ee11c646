// npm ws, unchanged: the user stream by query, token as subprotocol, as browsers send it.
import WebSocket from "ws";

const [base, token] = process.argv.slice(2);
const socket = new WebSocket(`${base.replace("http", "ws")}/api/v1/streaming/?stream=user`, token);
socket.on("open", () => console.log(JSON.stringify({ open: socket.protocol === token })));
socket.on("message", (data, isBinary) => {
  const { stream, event, payload } = JSON.parse(data);
  console.log(JSON.stringify({ stream, event, payload, isBinary }));
});
socket.on("close", (code) => {
  console.log(JSON.stringify({ closed: code }));
  process.exit(0);
});
