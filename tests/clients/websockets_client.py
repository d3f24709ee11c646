"""Python websockets: the library's own endless connect loop, with the token as subprotocol."""

import asyncio
import json
import os

import websockets


async def main():
    token = os.environ["TOKEN"]
    url = os.environ["STREAMING_WS"] + "/api/v1/streaming?stream=user"
    async for socket in websockets.connect(url, subprotocols=[token]):
        assert socket.subprotocol == token, socket.subprotocol
        print("open", flush=True)
        try:
            async for text in socket:
                assert isinstance(text, str), text
                message = json.loads(text)
                assert message["stream"] == ["user"], message
                event, payload = message["event"], message["payload"]
                print(event, payload if event == "delete" else json.loads(payload)["id"], flush=True)
        except websockets.ConnectionClosed:
            pass
        print("closed", flush=True)


asyncio.run(main())
