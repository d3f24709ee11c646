"""Python websockets, unchanged: the user stream, token in the Authorization header."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main(base, token):
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(base.replace("http", "ws") + "/api/v1/streaming", additional_headers=headers) as socket:
        await socket.send(json.dumps({"type": "subscribe", "stream": "user"}))
        print(json.dumps({"open": True}), flush=True)
        try:
            while True:
                print(await socket.recv(), flush=True)
        except ConnectionClosed as closed:
            print(json.dumps({"closed": closed.rcvd.code if closed.rcvd else None}), flush=True)


asyncio.run(main(*sys.argv[1:]))
