"""Hold a conversation on the server of `examples/chat/server.py`.

    python examples/chat/client.py [url]

It prints:

    ada enters the kitchen
    bob enters the kitchen
    ada hears entered from bob
    bob hears here from ada
    bob hears said from ada: tea?
    ada hears left from bob
    bob hears left from bob
    bob hears said from ada: it gets cold
    ada hears said from bob: I was in a tunnel
    ada hears left from bob
    bob: forbidden: subscribe to 'room:kitchen' first
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from wsappy import ConnectionClosed, Error, Peer, Push, connect


async def enter(name: str, api: Peer) -> AsyncIterator[Push]:
    """Enter the kitchen, and return what is heard there from now on."""
    await api.subscribe("room:kitchen")
    print(f"{name} enters the kitchen")
    pushes = api.pushes()
    await api.call("chat", "enter", room="kitchen")
    return pushes


async def hear(name: str, pushes: AsyncIterator[Push]) -> None:
    """Print what somebody hears next from others, or of having been away."""
    push = await anext(pushes)
    while push.data["name"] == name and push.event != "left":
        push = await anext(pushes)
    text = f": {push.data['text']}" if push.event == "said" else ""
    print(f"{name} hears {push.event} from {push.data['name']}{text}")


async def main(url: str = "ws://localhost:8008/chat") -> None:
    """Be ada, and bob, whose connection is cut while she speaks."""
    async with connect(f"{url}?name=ada") as ada, connect(f"{url}?name=bob") as bob:
        to_ada = await enter("ada", ada)
        to_bob = await enter("bob", bob)
        await hear("ada", to_ada)
        await ada.call("chat", "greet", room="kitchen", guest="bob")
        await hear("bob", to_bob)
        await ada.call("chat", "say", room="kitchen", text="tea?")
        await hear("bob", to_bob)

        # It comes back by itself, and reads what it missed.
        with contextlib.suppress(ConnectionClosed):
            await bob.call("chat", "move")
        await hear("ada", to_ada)
        await ada.call("chat", "say", room="kitchen", text="it gets cold")
        await hear("bob", to_bob)
        await hear("bob", to_bob)

        await bob.call("chat", "say", room="kitchen", text="I was in a tunnel")
        await hear("ada", to_ada)
        await bob.call("chat", "leave", room="kitchen")
        await bob.unsubscribe("room:kitchen")
        await hear("ada", to_ada)
        try:
            await bob.call("chat", "say", room="kitchen", text="no sugar")
        except Error as exc:
            print(f"bob: {exc}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
