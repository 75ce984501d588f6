"""Delete two files on the server of `examples/confirm/server.py`, and be asked.

    python examples/confirm/client.py [url]

It prints:

    Delete draft.txt? yes
    left: ['thesis.txt']
    Delete thesis.txt? no
    kept: thesis.txt is kept
"""

import asyncio
import sys

from wsappy import Error, Request, connect


async def main(url: str = "ws://localhost:8008/api") -> None:
    """Call the server, which calls back before it answers."""
    async with connect(url) as api:

        @api.method("ui", "confirm")
        def confirm(request: Request, text: str) -> bool:
            is_sure = "draft" in text
            print(text, "yes" if is_sure else "no")
            return is_sure

        print("left:", await api.call("files", "delete", file="draft.txt"))
        try:
            await api.call("files", "delete", file="thesis.txt")
        except Error as exc:
            print(exc)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
