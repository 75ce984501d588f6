"""Run Autobahn's fuzzing client against echo routes; `.ci/autobahn` calls this."""
# ruff: noqa: T201

import asyncio
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from wsappy import App, Client

# Seconds for everything, several times what it takes.
LIMIT = 600
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}
# A close inside a fragmented message: the documented choice of `websockets`.
KNOWN = {"7.1.5"}

PLAIN = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)]
# In each group, 1 to 6 send 16 bytes to 8 KiB, and 11 sends 8 KiB in fragments.
SIZES = (1, 2, 3, 4, 5, 6, 11)
DEFLATE_12 = [f"12.{group}.{size}" for group in range(1, 6) for size in SIZES]
DEFLATE_13 = [f"13.{group}.{size}" for group in range(1, 8) for size in SIZES]

Report = dict[str, Any]


class Echo(Client):
    """A client that gets back what it sends."""

    async def on_message(self, message: str | bytes) -> None:
        """Send *message* back."""
        await self.connection.send(message)


async def fuzz(
    wstest: str, url: str, cases: list[str], work: Path
) -> dict[str, Report]:
    """Run *cases* against a server; return the report on each, by its number.

    Raises:
        RuntimeError: If the suite fails, or leaves cases out.
    """
    server = {"agent": "wsappy", "url": url}
    spec = {"outdir": str(work), "cases": cases, "servers": [server]}
    (work / "spec.json").write_text(json.dumps(spec))
    process = await asyncio.create_subprocess_exec(
        *(wstest, "-m", "fuzzingclient", "-s", "spec.json"),
        cwd=work,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        log = (await process.communicate())[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    index = work / "index.json"
    briefs = json.loads(index.read_text()).get("wsappy", {}) if index.exists() else {}
    announced = re.search(r"will run (\d+) test cases", log)
    if announced is None or len(briefs) != int(announced[1]):
        raise RuntimeError(f"{len(briefs)} cases were run, then:\n{log[-2000:]}")
    return {
        case: json.loads((work / brief["reportfile"]).read_text())
        for case, brief in briefs.items()
    }


async def run_suite(wstest: str, cases: list[str], compression: str | None) -> bool:
    """Run *cases* and print what failed; return whether only known ones did."""
    app = App()
    app.client("/")(Echo)
    serving = app.serve("127.0.0.1", 0, max_size=2**20, compression=compression)
    with tempfile.TemporaryDirectory() as work:
        async with serving:
            reports = await fuzz(wstest, serving.url(), cases, Path(work))
    failed = {
        case: report
        for case, report in reports.items()
        if not {report["behavior"], report["behaviorClose"]} <= PASSED
    }
    print(
        f"autobahn, cases {cases[0]} to {cases[-1]}, compression={compression!r}: "
        f"{len(reports)} run, {len(failed)} failed"
    )
    for case, report in failed.items():
        print(
            f"  {case}{' (known)' if case in KNOWN else ''}: "
            f"{report['behavior']}, {report['result']}; "
            f"close {report['behaviorClose']}, {report['resultClose']}, "
            f"got {report['remoteCloseCode']}"
        )
    return failed.keys() <= KNOWN


async def main(wstest: str) -> int:
    """Run everything, at once since most of it is waiting; return the exit code."""
    async with asyncio.timeout(LIMIT):
        passed = await asyncio.gather(
            run_suite(wstest, PLAIN, None),
            run_suite(wstest, DEFLATE_12, "deflate"),
            run_suite(wstest, DEFLATE_13, "deflate"),
        )
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(str(Path(sys.argv[1]).absolute()))))
