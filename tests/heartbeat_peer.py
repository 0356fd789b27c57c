# SPDX-License-Identifier: Apache-2.0
"""Host b's heartbeat in a process of its own, that can be stopped and killed.

Argument: JSON {"psk": hex, "paths": [[name, [host, port], [host, port]], ...], "settings": {...}}. Says what happens,
one JSON list a line. Each line of standard input is a state to set; its end is the end.
"""

from __future__ import annotations

import asyncio
import json
import sys

from coloproxy.heartbeat import Heartbeat, Settings, UdpPath


def say(*what: object) -> None:
    print(json.dumps(what), flush=True)


async def main() -> None:
    plan = json.loads(sys.argv[1])
    paths = [UdpPath(name, (local[0], local[1]), (peer[0], peer[1])) for name, local, peer in plan["paths"]]
    settings = Settings("web", "b", bytes.fromhex(plan["psk"]), **plan["settings"])
    heartbeat = Heartbeat(
        settings,
        paths,
        on_alive=lambda boot: say("alive", boot),
        on_dead=lambda reason: say("dead", reason),
        on_state=lambda state: say("state", state),
        state={"host": "b"},
    )
    heartbeat.start()
    say("boot", heartbeat.boot)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        heartbeat.set_state(json.loads(line))
    say("stalls", heartbeat.stats().stalls)
    heartbeat.close()


if __name__ == "__main__":
    asyncio.run(main())
