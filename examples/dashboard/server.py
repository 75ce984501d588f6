"""Show figures that change: to each viewer as often as it likes, and never old ones.

    python examples/dashboard/server.py [port]

Open http://localhost:8008/ in two windows. `examples/dashboard/client.py` has a viewer
who reads slowly, and an admin.
"""

import asyncio
import pathlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from wsappy import App, Client, Refused, Request

# By token; a real server doesn't keep them in its source.
ROLES = {"tulip": "admin", "daisy": "viewer"}
Figures = dict[str, int]

app = App()
dashboard = app.module("dashboard")
greenhouse: Figures = {"degrees": 20, "target": 20}


@app.client("/api")
class User(Client):
    """Somebody with a token: in the header `Authorization`, or in the query."""

    role: str

    async def on_connecting(self, **params: Any) -> None:
        """Find out who it is, inside the handshake."""
        header = self.headers.get("Authorization", "")
        token = self.query.get("token") or header.removeprefix("Bearer ")
        if token not in ROLES:
            raise Refused(401, "unknown token")
        self.role = ROLES[token]


def is_admin(request: Request[User]) -> bool:
    """Guard a method: others than admins are answered `forbidden`."""
    return request.client.role == "admin"


@dashboard.method
async def watch(request: Request[User], interval: float) -> AsyncIterator[Figures]:
    """Show the figures again and again, with so many seconds in between.

    Where a viewer reads slowly, `ready` waits for it: what it gets then is new.
    """
    while True:
        await request.ready()
        yield dict(greenhouse)
        await asyncio.sleep(max(interval, 0.01))


@dashboard.method(allow=is_admin)
def aim(request: Request[User], degrees: int) -> None:
    """Set the temperature that the greenhouse should have."""
    greenhouse["target"] = degrees


async def heat() -> None:
    """Heat or cool the greenhouse, a degree at a time."""
    while True:
        await asyncio.sleep(0.01)
        missing = greenhouse["target"] - greenhouse["degrees"]
        greenhouse["degrees"] += max(-1, min(1, missing))


@app.lifespan
async def heating(app: App) -> AsyncIterator[None]:
    """Heat as long as the server runs."""
    task = asyncio.create_task(heat())
    yield
    task.cancel()


@app.http("/")
def index(request: object) -> tuple[str, str]:
    """Answer with the page."""
    page = pathlib.Path(__file__).with_name("index.html")
    return page.read_text(encoding="utf-8"), "text/html; charset=utf-8"


if __name__ == "__main__":
    app.run("localhost", int(sys.argv[1]) if sys.argv[1:] else 8008)
