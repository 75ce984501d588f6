"""Look at the greenhouse of `examples/dashboard/server.py`, and make it warmer.

    python examples/dashboard/client.py [url]

It prints:

    a stranger: 401 unknown token
    bob: forbidden: not allowed
    bob reads: 20 degrees
    ada aims at 25
    ada reads: 25 degrees
    bob reads: 25 degrees
    ada aims at 20
    ada reads: 20 degrees
"""

import asyncio
import sys

from wsappy import Error, Peer, Refused, connect


async def aim(ada: Peer, degrees: int) -> None:
    """Set the temperature, and watch until the greenhouse has it."""
    await ada.call("dashboard", "aim", degrees=degrees)
    print("ada aims at", degrees)
    async for now in ada.stream("dashboard", "watch", interval=0.05):
        if now["degrees"] == degrees:
            print("ada reads:", now["degrees"], "degrees")
            break


async def main(url: str = "ws://localhost:8008/api") -> None:
    """Come as a stranger, as bob, who is a viewer, and as ada, who is an admin."""
    try:
        async with connect(f"{url}?token=nettle"):
            pass
    except Refused as exc:
        print("a stranger:", exc)

    async with (
        connect(f"{url}?token=daisy") as bob,
        connect(url, additional_headers={"Authorization": "Bearer tulip"}) as ada,
    ):
        try:
            await bob.call("dashboard", "aim", degrees=40)
        except Error as exc:
            print("bob:", exc)

        async for now in bob.stream("dashboard", "watch", interval=0.01, window=1):
            print("bob reads:", now["degrees"], "degrees")
            if now["degrees"] == 25:
                break
            # Meanwhile it gets warmer. With window=1 he misses what was in between.
            await aim(ada, 25)
        await aim(ada, 20)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
