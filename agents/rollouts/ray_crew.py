"""`Crew`: the Ray actors of a job, and the calls they have not answered yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agents.rollouts.attempts import Item
from agents.rollouts.ray_worker import Setup, Worker
from agents.rollouts.running import POLL
from swe_env.errors import ConfigError

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds until workers that have found no room are spoken of."""
FAREWELL = 5.0
"""Most seconds that workers get to stop and to free what they hold."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A connection to Ray."""

    ray: Any
    ours: bool
    """Nobody in this process had connected before."""

    def close(self) -> None:
        """Disconnect; ends a cluster that was started for us."""
        if self.ours:
            self.ray.shutdown()


def connect(address: str | None) -> Cluster:
    """The cluster this process is connected to, or else the one at `address`.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "The executor 'ray' needs Ray, which is not installed: pip install 'swe-env[ray]'."
        ) from error
    if ray.is_initialized():
        return Cluster(ray, ours=False)
    try:
        # Workers' output is in Ray's own logs: on stdout it would mix with `--json`.
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"No Ray cluster answers at {address or 'the default address'}: {brief(error)}."
        ) from error
    return Cluster(ray, ours=True)


@dataclass(slots=True, eq=False)
class Member:
    """A worker as the driver sees it."""

    actor: Any
    up: bool = False
    """It has its policy and takes attempts."""
    busy: int = 0
    """Attempts it has."""
    alone: bool = False
    """The one that it has may kill it: it gets no other beside."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a worker's method."""

    member: Member
    method: str
    item: Item | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Instead of an answer: the worker died, or its answer was lost with its machine."""

    reason: str


class Crew:
    """Workers that Ray places on the cluster's nodes, and starts again wherever one dies.

    Args:
        cluster: the connection; `dismiss` closes it.
        setup: what the workers are told.
        options: Ray's options of the actors.
        episodes: attempts that one worker does at the same time.
    """

    def __init__(
        self, cluster: Cluster, setup: Setup, options: Mapping[str, Any], *, episodes: int
    ) -> None:
        self._cluster, self._ray = cluster, cluster.ray
        self._episodes = episodes
        self._wants = {key: options.get(key) for key in ("num_cpus", "num_gpus", "resources")}
        # The other methods are answered while all of a worker's threads play.
        self._actor = self._ray.remote(
            max_restarts=-1,
            max_concurrency=2,
            concurrency_groups={"attempts": episodes},
            **options,
        )(Worker)
        self._setup = self._ray.put(setup)
        self._patience = float("inf")
        self.members: list[Member] = []
        self.calls: dict[Any, Call] = {}

    @property
    def busy(self) -> int:
        """Attempts that the workers have."""
        return sum(member.busy for member in self.members)

    def hire(self, size: int) -> None:
        """Have so many workers."""
        self._patience = time.monotonic() + PATIENCE
        while len(self.members) < size:
            self.members.append(member := Member(self._actor.remote()))
            self.start(member)

    def start(self, member: Member) -> None:
        """Have the worker made ready; answered once it lives (again), wherever that is."""
        member.up = False
        ref = member.actor.start.options(max_task_retries=-1).remote(self._setup)
        self.calls[ref] = Call(member, "start")

    def free(self) -> Member | None:
        """The worker with the fewest attempts, if one can take more."""
        free = [m for m in self.members if m.up and not m.alone and m.busy < self._episodes]
        return min(free, key=lambda member: member.busy, default=None)

    def attempt(self, member: Member, item: Item, given_up: str, *, alone: bool) -> None:
        """Have the worker do an attempt (see `Worker.attempt`); `alone`: none beside it."""
        member.busy += 1
        member.alone = alone
        method = member.actor.attempt.options(concurrency_group="attempts")
        self.calls[method.remote(item, given_up)] = Call(member, "attempt", item)

    def ask(self) -> None:
        """Ask every worker for its usage, unless the last question is still open."""
        asked = {id(call.member) for call in self.calls.values() if call.method == "usage"}
        for member in self.members:
            if member.up and id(member) not in asked:
                self.calls[member.actor.usage.remote()] = Call(member, "usage")

    def answers(self) -> Iterator[tuple[Call, object]]:
        """Wait a moment; the calls that were answered, with an answer, an exception or `Lost`."""
        if time.monotonic() > self._patience:
            self._patience = float("inf")
            self._tell_waiting()
        if not self.calls:
            time.sleep(POLL)
            return
        ready, _ = self._ray.wait(list(self.calls), num_returns=1, timeout=POLL)
        for ref in ready:
            call = self.calls.pop(ref)
            if call.method == "attempt":
                call.member.busy -= 1
                call.member.alone = False
            yield call, self._get(ref)

    def dismiss(self) -> None:
        """Stop what still runs, let the workers go and disconnect."""
        try:
            up = [member.actor for member in self.members if member.up]
            running = [ref for ref, call in self.calls.items() if call.method == "attempt"]
            if running:
                for actor in up:
                    actor.stop.remote()
                self._ray.wait(running, num_returns=len(running), timeout=FAREWELL)
            if closing := [actor.close.remote() for actor in up]:
                self._ray.wait(closing, num_returns=len(closing), timeout=FAREWELL)
            for ref, call in self.calls.items():
                if call.method == "start":  # else Ray prints that it will be tried again
                    self._ray.cancel(ref)
            for member in self.members:
                self._ray.kill(member.actor)
        finally:
            self._cluster.close()

    def _get(self, ref: Any) -> object:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else error
        except errors.RayError as error:
            return Lost(brief(error))

    def _tell_waiting(self) -> None:
        up = sum(member.up for member in self.members)
        if up < len(self.members):
            log.warning(
                "%d of %d Ray workers run; the others wait until Ray has room for them. Each asks "
                "for %s, and the cluster has %s free.",
                up,
                len(self.members),
                {key: value for key, value in self._wants.items() if value},
                {k: v for k, v in self._ray.available_resources().items() if k in ("CPU", "GPU")},
            )


def brief(error: BaseException) -> str:
    """The first line of an error's text, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
