"""`Driver`: hands a job's attempts to Ray's workers and takes what came of them."""

from __future__ import annotations

import logging
import time
from collections import Counter

from agents.rollouts.attempts import Item
from agents.rollouts.budget import Usage
from agents.rollouts.episode import Stopped
from agents.rollouts.ray_crew import Call, Crew, Lost
from agents.rollouts.ray_worker import NotStarted, Reply
from agents.rollouts.running import Job
from swe_env.errors import ConfigError, InfrastructureError, ReplayError
from swe_env.replay.trajectory import Agent

log = logging.getLogger(__name__)

ASK = 1.0
"""Seconds between questions for what the workers' running episodes have used."""


class Driver:
    """Does a job's open attempts in the workers of a cluster.

    Args:
        crew: the workers; `close` dismisses them.
        size: how many there may be.
        workers: episodes in flight, all together.
        retries: how many workers an attempt may lose before it is a failure of kind ``worker``.
        agent: who acts; None to learn it from the first worker.

    Raises:
        ConfigError: the first worker could not be made ready.
        InfrastructureError: it could not be started.
    """

    def __init__(
        self, crew: Crew, *, size: int, workers: int, retries: int, agent: Agent | None
    ) -> None:
        self._crew, self._size, self._workers, self._retries = crew, size, workers, retries
        self._agent = agent
        self._deaths: Counter[Item] = Counter()
        self._job: Job | None = None
        self._error: BaseException | None = None
        self._asked = 0.0
        if agent is None:
            crew.hire(1)
            while self._agent is None:
                self._take()

    @property
    def agent(self) -> Agent:
        """Who acts; a worker whose policy says otherwise ends the job."""
        assert self._agent is not None
        return self._agent

    def __call__(self, job: Job) -> None:
        """Return when every attempt is done, or the job ends early."""
        self._job = job
        self._crew.hire(min(self._size, len(job.todo)))
        while self._crew.busy or (job.todo and not job.ending):
            self._hand_out(job)
            if job.meter.limited and time.monotonic() - self._asked > ASK:
                self._asked = time.monotonic()
                self._crew.ask()
            self._take()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop what still runs, let the workers go and disconnect."""
        self._crew.dismiss()

    def _hand_out(self, job: Job) -> None:
        while self._crew.busy < self._workers:
            member = self._crew.free()
            if member is None or (taken := job.take()) is None:
                return
            due, item = taken
            deaths = self._deaths[item]
            suspect = 0 < deaths <= self._retries
            # Not due yet, and so are all behind it; or it waits for a worker to itself.
            if due > time.monotonic() or (suspect and member.busy):
                job.todo.appendleft(taken)
                return
            why = f"{deaths} Ray workers died while they had this attempt."
            given_up = why if deaths > self._retries else ""
            self._crew.attempt(member, item, given_up, alone=suspect)

    def _take(self) -> None:
        """Wait a moment for answers and act on them."""
        for call, answer in self._crew.answers():
            if isinstance(answer, Lost):
                self._lost(call, answer.reason)
            elif isinstance(answer, NotStarted):
                self._again(call)
            elif isinstance(answer, Exception):
                if not isinstance(answer, Stopped):
                    self._fail(answer)
            elif isinstance(answer, Agent):
                call.member.up = True
                self._check(answer)
            elif self._job is not None and isinstance(answer, Usage):
                self._job.meter.told(answer)
            elif self._job is not None and isinstance(answer, Reply) and call.item is not None:
                self._finish(self._job, call.item, answer)

    def _finish(self, job: Job, item: Item, reply: Reply) -> None:
        job.meter.told(reply.used)
        if reply.result is None:
            job.later(item)
            return
        if reply.record is not None:
            row, data = reply.record
            try:
                with job.leases.locked():
                    job.store(row.id, lambda buffer: buffer.extend_packed([(row, data)]))
            except ReplayError as error:
                self._fail(error)
                return
        job.done(item, reply.result)

    def _check(self, agent: Agent) -> None:
        if self._agent is None:
            self._agent = agent
        elif agent != self._agent:
            self._fail(
                ConfigError(
                    "The policy is not the same on all nodes of the Ray cluster: one worker made "
                    f"{self._agent}, another {agent}."
                )
            )

    def _lost(self, call: Call, reason: str) -> None:
        member = call.member
        if call.method == "start":  # for good: after every other death Ray starts it again
            self._crew.members.remove(member)
            if not self._crew.members:
                self._fail(InfrastructureError(f"No Ray worker could be started: {reason}."))
            return
        if member.up:
            log.warning("A Ray worker died (%s); its attempts are done once more.", reason)
        if call.item is not None:
            self._deaths[call.item] += 1
        self._again(call)

    def _again(self, call: Call) -> None:
        """Have a worker made ready that died, and its attempt done by whoever is free."""
        if call.member.up:
            self._crew.start(call.member)
        if call.item is not None and self._job is not None:
            self._job.later(call.item)

    def _fail(self, error: BaseException) -> None:
        """End the job with this error once the running attempts are done."""
        if self._job is None:
            raise error
        self._error = self._error or error
        self._job.draining.set()
