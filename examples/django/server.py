"""Django with wsappy beside it: the smallest that works.

    uvicorn --app-dir examples/django server:application --port 8008

http://localhost:8008/ is Django's, and pushes to the clients of ws://localhost:8008/api.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from wsappy import App, Client, Request

HOSTS = ["localhost", "127.0.0.1"]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=HOSTS, SECRET_KEY=os.urandom(9))
ws = App()


@ws.client("/api")
def api(client: Client) -> None:
    """Let everyone in; a real one looks `sessionid` up, in the header `Cookie`."""
    client.join("everyone")


@ws.module("visits")
@ws.method("count")
async def count(request: Request) -> int:
    """Return how many visits there were; a query of Django's ORM runs like this."""
    seen: int = await sync_to_async(len)(visits)
    return seen


visits: list[str] = []


def index(request: HttpRequest) -> HttpResponse:
    """Answer, and push that somebody is there, from Django's own thread."""
    visits.append(request.path)
    ws.to("everyone").push("visits", "came", count=len(visits))
    return HttpResponse(f"visit {len(visits)}")


urlpatterns = [path("", index)]

django, wsappy = get_asgi_application(), ws.asgi()


async def application(
    scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
) -> None:
    """Give HTTP to Django, everything else to wsappy."""
    handle: Callable[..., Awaitable[None]]
    handle = django if scope["type"] == "http" else wsappy
    await handle(scope, receive, send)
