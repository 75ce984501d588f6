"""Try the server of `examples/auth/server.py` with three tokens.

    python examples/auth/client.py [url]

It prints:

    a stranger: 401 unknown token
    ada, by header: ['water the plants', 'feed the cat']
    bob, by query: ['water the plants', 'feed the cat']
    bob: forbidden: bob has no right to notes.add
"""

import asyncio
import sys

from wsappy import Error, Refused, connect


async def main(url: str = "ws://localhost:8008/api") -> None:
    """Come as a stranger, as ada and as bob."""
    try:
        async with connect(f"{url}?token=nettle"):
            pass
    except Refused as exc:
        print("a stranger:", exc)

    header = {"Authorization": "Bearer tulip"}
    async with connect(url, additional_headers=header) as api:
        notes = api.module("notes")
        await notes.add(text="feed the cat")
        print("ada, by header:", await notes.read())

    async with connect(f"{url}?token=daisy") as api:
        notes = api.module("notes")
        print("bob, by query:", await notes.read())
        try:
            await notes.add(text="feed the dog")
        except Error as exc:
            print("bob:", exc)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
