"""Log in to the server of `examples/tokens/server.py`, and ask it several things.

    python examples/tokens/client.py [url]

It prints:

    forged token: 401 this token is not ours
    old token: 401 this token has expired
    a long answer begins: ada
    meanwhile: ada said: good morning
    meanwhile: ada said: once upon a (no_answer: nothing is known about a unicorn)
    complete: [True, False, False]
"""

import asyncio
import sys

from wsappy import Error, Peer, Refused, connect


async def ask(api: Peer, prompt: str) -> str:
    """Return the words of an answer; those before an error stand."""
    said = ""
    try:
        async for word in api.stream("model", "answer", prompt=prompt):
            said += f"{word} "
    except Error as exc:
        return f"{said}({exc})"
    return said.rstrip()


async def main(url: str = "ws://localhost:8008/api") -> None:
    """Get a token, and two that are no good; try them all."""
    async with connect(url) as api:
        ada = {"name": "ada", "password": "tulip"}
        token = await api.call("user", "login", ada)
        old = await api.call("user", "login", ada, seconds=0)
    for name, bad in {"forged": token.replace("ada", "bob"), "old": old}.items():
        try:
            await talk(url, bad)
        except Refused as exc:
            print(f"{name} token:", exc)
    await talk(url, token)


async def talk(url: str, token: str) -> None:
    """Ask three things at once, and stop the answer that is too long."""
    header = {"Authorization": f"Bearer {token}"}
    async with connect(url, additional_headers=header) as api:
        pushes = api.pushes()
        async for word in api.stream("model", "answer", prompt="la " * 1000):
            print("a long answer begins:", word)
            answers = ask(api, "good morning"), ask(api, "once upon a unicorn")
            for said in await asyncio.gather(*answers):
                print("meanwhile:", said)
            break  # This stops the long answer on the server too.
        print("complete:", [(await anext(pushes)).data["complete"] for _ in range(3)])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
