"""Runs inside a peer's own Python: one `echo` for each line on standard input, timed in here.

    PEER_PYTHON benchmarks/env_peers.py mini-swe-agent

First a line of JSON with the peer's version and the names of its ways to run a command; then each
line of standard input is the name of one, answered by a line with the seconds that `echo` took.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Any

Way = Callable[[], Awaitable[str]]


async def mini_swe_agent() -> dict[str, Way]:
    from minisweagent.environments.extra.bubblewrap import BubblewrapEnvironment
    from minisweagent.environments.local import LocalEnvironment

    def way(environment: Any) -> Way:
        async def echo() -> str:
            return str(environment.execute({"command": "echo hello"})["output"])

        return echo

    local = LocalEnvironment(cwd=tempfile.mkdtemp())
    return {"local": way(local), "bubblewrap": way(BubblewrapEnvironment())}


async def swe_rex() -> dict[str, Way]:
    from swerex.deployment.local import LocalDeployment
    from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest

    deployment = LocalDeployment()
    await deployment.start()
    runtime = deployment.runtime
    await runtime.create_session(CreateBashSessionRequest())

    async def execute() -> str:
        return str((await runtime.execute(Command(command="echo hello", shell=True))).stdout)

    async def session() -> str:
        return str((await runtime.run_in_session(BashAction(command="echo hello"))).output)

    return {"local execute": execute, "local session": session}


async def inspect_ai() -> dict[str, Way]:
    from inspect_ai.util._concurrency import init_concurrency
    from inspect_ai.util._sandbox.local import LocalSandboxEnvironment
    from inspect_ai.util._subprocess import init_max_subprocesses

    init_concurrency()
    init_max_subprocesses(1)
    sandbox = LocalSandboxEnvironment()

    async def echo() -> str:
        return str((await sandbox.exec(["bash", "-c", "echo hello"])).stdout)

    return {"local": echo}


PEERS = {"mini-swe-agent": mini_swe_agent, "swe-rex": swe_rex, "inspect-ai": inspect_ai}


async def main(name: str) -> None:
    # The pipe to the benchmark is kept apart from what a peer prints.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    ways = await PEERS[name]()
    print(json.dumps({"version": metadata.version(name), "ways": list(ways)}), file=answers)
    for line in sys.stdin:
        way = ways[line.strip()]
        started = time.perf_counter()
        said = await way()
        seconds = time.perf_counter() - started
        if said.strip() != "hello":
            raise SystemExit(f"{name}: `echo hello` gave {said!r}")
        print(seconds, file=answers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
