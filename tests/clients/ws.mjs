// npm ws: subscribes by message, tells what comes, and opens a new connection after each close.
import WebSocket from 'ws';

const { STREAMING_WS, TOKEN } = process.env;

function open() {
  const socket = new WebSocket(`${STREAMING_WS}/api/v1/streaming`, [TOKEN]);
  socket.on('open', () => {
    if (socket.protocol !== TOKEN) throw new Error(`the subprotocol is ${socket.protocol}`);
    console.log('open');
    socket.send(JSON.stringify({ type: 'subscribe', stream: 'user' }));
  });
  socket.on('message', (data, isBinary) => {
    if (isBinary) throw new Error('a binary message');
    const { stream, event, payload } = JSON.parse(data.toString());
    if (JSON.stringify(stream) !== '["user"]') throw new Error(`stream ${stream}`);
    console.log(`${event} ${event === 'delete' ? payload : JSON.parse(payload).id}`);
  });
  socket.on('error', () => {});
  socket.on('close', (code) => {
    console.log(`closed ${code}`);
    setTimeout(open, 100);
  });
}

open();
