"""Answer calls for items.

    python examples/simple/server.py [port]

It prints its URL, `ws://localhost:8008/api`; `examples/simple/client.py` talks to it.
"""

import sys

from wsappy import App, Client, Request

Item = dict[str, int | str]

app = App()
items: list[Item] = [
    {"id": 42, "name": "a"},
    {"id": 15, "name": "b"},
    {"id": 30, "name": "c"},
]


@app.client("/api")
async def api(client: Client) -> None:
    """Everyone may come in."""


@app.module("entity")
@app.method("get")
def get(request: Request, item_id: int) -> dict[str, list[Item]]:
    """Return the items of that id."""
    return {"items": [item for item in items if item["id"] == item_id]}


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
