"""Hold a conversation on the server of `examples/chat/server.py`.

    python examples/chat/client.py [url]

It prints:

    ada enters the kitchen and meets []
    bob enters the kitchen and meets ['ada']
    ada: entered {'room': 'kitchen', 'name': 'bob'}
    bob: said {'room': 'kitchen', 'name': 'ada', 'text': 'tea?'}
    ada: said {'room': 'kitchen', 'name': 'bob', 'text': 'yes, please'}
    ada: left {'room': 'kitchen', 'name': 'bob'}
    bob: forbidden: enter 'kitchen' first
    ada: entered {'room': 'kitchen', 'name': 'bob'}
    ada: left {'room': 'kitchen', 'name': 'bob'}
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from wsappy import Error, Push, connect


async def hear(name: str, pushes: AsyncIterator[Push]) -> None:
    """Print what somebody hears next."""
    push = await anext(pushes)
    print(f"{name}: {push.event} {push.data}")


async def main(url: str = "ws://localhost:8008/chat") -> None:
    """Be ada and bob, who goes twice: once by leaving, once by hanging up."""
    async with connect(f"{url}?name=ada") as ada:
        to_ada = ada.pushes()
        kitchen = await ada.call("chat", "enter", room="kitchen")
        print("ada enters the kitchen and meets", kitchen)

        async with connect(f"{url}?name=bob") as bob:
            to_bob = bob.pushes()
            kitchen = await bob.call("chat", "enter", room="kitchen")
            print("bob enters the kitchen and meets", kitchen)
            await hear("ada", to_ada)

            await ada.call("chat", "say", room="kitchen", text="tea?")
            await hear("bob", to_bob)
            await bob.call("chat", "say", room="kitchen", text="yes, please")
            await hear("ada", to_ada)

            await bob.call("chat", "leave", room="kitchen")
            await hear("ada", to_ada)
            try:
                await bob.call("chat", "say", room="kitchen", text="no sugar")
            except Error as exc:
                print(f"bob: {exc}")
            await bob.call("chat", "enter", room="kitchen")
            await hear("ada", to_ada)

        await hear("ada", to_ada)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
