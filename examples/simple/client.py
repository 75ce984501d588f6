"""Ask for three items, and show each message that goes over the wire.

    python examples/simple/client.py [url]

It needs nothing of wsappy's, only a WebSocket library. With a server running,
`examples/simple/server.py` or `examples/classic/server.py`, it prints:

    --> {"module": "entity", "method": "get", "data": {"item_id": 42}, "request_id": 1}
    <-- {"request_id":1,"module":"entity","method":"get","event":"result","data":{"items":[{"id":42,"name":"a"}]}}
    --> {"module": "entity", "method": "get", "data": {"item_id": 15}, "request_id": 2}
    <-- {"request_id":2,"module":"entity","method":"get","event":"result","data":{"items":[{"id":15,"name":"b"}]}}
    --> {"module": "entity", "method": "get", "data": {"item_id": 30}, "request_id": 3}
    <-- {"request_id":3,"module":"entity","method":"get","event":"result","data":{"items":[{"id":30,"name":"c"}]}}
    items {42: {'id': 42, 'name': 'a'}, 15: {'id': 15, 'name': 'b'}, 30: {'id': 30, 'name': 'c'}}
"""  # noqa: E501

import asyncio
import json
import sys
from typing import Any

from websockets import connect


async def main(url: str = "ws://localhost:8008/api") -> None:
    """Hold the conversation."""
    items: dict[int, Any] = {}
    async with connect(url) as connection:
        for request_id, item_id in enumerate((42, 15, 30), start=1):
            call = {"module": "entity", "method": "get", "data": {"item_id": item_id}}
            text = json.dumps({**call, "request_id": request_id})
            print("-->", text)
            await connection.send(text)
            answer = await connection.recv()
            print("<--", answer)
            items[item_id] = json.loads(answer)["data"]["items"][0]
    print("items", items)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
