"""The environment's speed beside other systems' and git's; one command, a few minutes.

    python benchmarks/env.py --install-peers ~/.cache/swe_env_peers

Everything of ours goes through `SWEEnv.reset`, `step` and `fork`, on a checkout of sympy (its
source distribution, or any git repository by `--repository` and `--commit`). The sides of a
comparison are played in turn, round after round; a figure is the median of its rounds. A peer runs
in its own Python, which times itself. Writes `benchmarks/results/env.json`, prints a table, and
ends with exit code 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Side, Times, family, interleave, kernel_memory, memory_of, timed

from swe_env.env import SWEEnv
from swe_env.machine import machine
from swe_env.repos import sandbox_spec
from swe_env.repos.patches import file_diff
from swe_env.types import Recipe, Source, Task

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "env.json"
PEERS = ("mini-swe-agent", "swe-rex", "inspect-ai")
ISOLATED = ("mini-swe-agent bubblewrap",)
"""The ways of peers that keep a command from the rest of the machine; the others do not."""
SDIST = ("sympy", "1.12", "ebf595c8dac3e0fdc4152c51878b498396ec7f30e7a914d6071e674d49420fb8")
PACKAGE = "sympy"
LONG_FILE, LONG_LINES = "sympy/core/bench_long.py", 2000
MENDED = "sympy/core/cache.py"
HIDDEN = "bench/test_hidden.py"
QUERIES = {"rare": "_eval_is_positive", "absent": "no_such_name_here", "common": "import"}
PAUSE = 0.1
"""Seconds between episodes where a model would think: its shortest answer takes longer."""


@dataclass(slots=True)
class Goal:
    """A figure, what it must be at most, and what it was."""

    name: str
    most: float
    unit: str
    value: float

    @property
    def met(self) -> bool:
        """Whether the figure is good enough."""
        return self.value <= self.most

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        value = round(self.value, 4)
        return {"name": self.name, "most": self.most, "unit": self.unit, "value": value,
                "met": self.met}  # fmt: skip


@dataclass(slots=True)
class Bench:
    """What the sections share and add to."""

    options: argparse.Namespace
    task: Task
    figures: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    peers: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def open(self, **settings: Any) -> SWEEnv:
        """A running episode."""
        env = SWEEnv(tasks=[self.task], sandbox=self.options.sandbox, **settings)
        env.max_episode_steps = 1_000_000
        env.reset()
        return env

    def rounds(self, wanted: int) -> int:
        """Rounds of a section, scaled as asked."""
        return max(3, round(wanted * self.options.scale))

    def keep(self, name: str, times: dict[str, Times]) -> dict[str, Times]:
        """Add a comparison to the figures."""
        self.figures[name] = {side: found.plain() for side, found in times.items()}
        return times

    def goal(self, name: str, most: float, unit: str, value: float) -> None:
        """Add a goal."""
        self.goals.append(Goal(name, most, unit, value))


def call(env: SWEEnv, tool: str, **arguments: Any) -> str:
    """One step, which must succeed; the observation's text."""
    observation, _, _, truncated, info = env.step({"tool": tool, "arguments": arguments})
    if observation["exit_code"] or truncated:
        raise SystemExit(f"{tool} {arguments} failed: {observation['text'][:500]} {info}")
    return observation["text"]


def main() -> None:
    options = arguments()
    task = make_task(options)
    base = sandbox_spec(task).base
    bench = Bench(options, task)
    for section in options.only:
        print(f"{section} …", file=sys.stderr, flush=True)
        SECTIONS[section](bench)
    tracked = subprocess.run(["git", "ls-files"], cwd=base, capture_output=True, check=True)
    result = {
        "machine": machine("swe-env", "gymnasium"),
        "checkout": {
            "source": Path(task.source.location).name if task.source else "",
            "version": task.base_commit or (task.source.version if task.source else ""),
            "files": tracked.stdout.count(b"\n"),
        },
        "settings": {"sandbox": options.sandbox, "scale": options.scale},
        "peers": bench.peers,
        "left_out": bench.left_out,
        "figures": bench.figures,
        "goals": [goal.plain() for goal in bench.goals],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    if not all(goal.met for goal in bench.goals):
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sandbox", default="local")
    parser.add_argument("--repository", default="", help="sympy's git repository, path or URL")
    parser.add_argument("--commit", default="", help="the commit of --repository, 40 digits")
    parser.add_argument("--peers-python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--install-peers", type=Path, metavar="FOLDER", help="venvs made here")
    parser.add_argument("--environments", type=int, default=64)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual rounds")
    parser.add_argument("--only", default=",".join(SECTIONS), type=sections)
    return parser.parse_args()


def sections(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"unknown: {unknown}; known: {', '.join(SECTIONS)}")
    return names


def make_task(options: argparse.Namespace) -> Task:
    """A task on sympy: one function is missing, and a hidden test looks for it."""
    name, version, sha256 = SDIST
    source = Source(kind="sdist", location=name, version=version, sha256=sha256)
    if options.repository:
        source = Source(kind="git", location=options.repository)
    recipe = Recipe(
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        requirements=("pytest==9.1.1",),
    )
    task = Task(
        instance_id="bench-sympy",
        repo="sympy/sympy",
        base_commit=options.commit,
        problem_statement="`sympy.core.cache.bench_answer` is missing; it returns 42.",
        source=source,
        environment=recipe,
        test_command="python -m pytest --noconftest",
    )
    old = (sandbox_spec(task).base / MENDED).read_text()
    gold = file_diff(MENDED, old, old + "\n\ndef bench_answer():\n    return 42\n")
    # The test loads nothing of sympy: to compile it would take seconds and hide what is measured.
    lines = ["def test_bench_answer():", f"    text = open({MENDED!r}).read()",
             '    assert "def bench_answer" in text']  # fmt: skip
    hidden = f"diff --git a/{HIDDEN} b/{HIDDEN}\nnew file mode 100644\n--- /dev/null\n"
    hidden += f"+++ b/{HIDDEN}\n@@ -0,0 +1,{len(lines)} @@\n"
    hidden += "".join(f"+{line}\n" for line in lines)
    values = {name: getattr(task, name) for name in Task.__dataclass_fields__}
    values |= {"patch": gold, "test_patch": hidden}
    values["FAIL_TO_PASS"] = (f"{HIDDEN}::test_bench_answer",)
    return Task(**values)


# --- sections ------------------------------------------------------------------------------------


def echo(bench: Bench) -> None:
    """`echo` through the tool, beside the peers' ways to run a command."""
    env = bench.open()
    sides: dict[str, Side] = {"swe-env": timed(lambda: call(env, "bash", command="echo hello"))}
    started = start_peers(bench)
    for peer, (process, ways) in started.items():
        sides |= {f"{peer} {way}": peer_side(process, way) for way in ways}
    times = bench.keep("echo", interleave(sides, rounds=bench.rounds(60), warm_up=5))
    for process, _ in started.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
    env.close()
    bench.goal("echo through the tool", 1.0, "ms", times["swe-env"].median)
    for name in ISOLATED:
        if name in times:
            share = times["swe-env"].share_of(times[name])
            bench.goal(f"echo, share of {name}'s time", 1 / 3, "", share)


def start_peers(bench: Bench) -> dict[str, tuple[subprocess.Popen[str], list[str]]]:
    """The peers that can be started here, each with its ways; the others are told why not."""
    pythons = dict(pair.split("=", 1) for pair in bench.options.peers_python)
    found = {}
    for peer in PEERS:
        python = pythons.get(peer) or installed(peer, bench.options.install_peers)
        if not python:
            bench.left_out[peer] = "not given: use --install-peers or --peers-python"
            continue
        process = subprocess.Popen(
            [python, str(HERE / "env_peers.py"), peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            bench.left_out[peer] = f"it does not start with {python}"
            continue
        said = json.loads(first)
        bench.peers[peer] = said["version"]
        found[peer] = process, said["ways"]
    return found


def installed(peer: str, folder: Path | None) -> str:
    """The Python of the peer's own virtual environment, made now if it is not there."""
    if folder is None:
        return ""
    home = folder.expanduser() / peer
    python = home / "bin" / "python"
    if not python.exists():
        print(f"installing {peer} in {home} …", file=sys.stderr)
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", peer], check=True)
    return str(python)


def peer_side(process: subprocess.Popen[str], way: str) -> Side:
    def side() -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        print(way, file=process.stdin)
        return float(process.stdout.readline())

    return side


def reset(bench: Bench) -> None:
    """A clean checkout for the next episode, beside what git would take."""
    env = bench.open()
    base = sandbox_spec(bench.task).base
    work = base.parent / f".bench-worktree-{os.getpid()}"

    def episode(pause: float) -> None:
        call(env, "bash", command=f"echo '# more' >> {MENDED}; rm -r doc")
        call(env, "view", path=MENDED, view_range=[1, 20])
        time.sleep(pause)

    def git(*arguments: str, folder: Path = work) -> None:
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)

    def spoil() -> None:
        (work / MENDED).write_text("")
        git("rm", "-rq", "--cached", "doc")

    def fresh() -> None:
        subprocess.run(["rm", "-rf", str(work)], check=True)

    def clone() -> None:
        git("clone", "-q", "--shared", str(base), str(work), folder=base.parent)

    def clean() -> None:
        git("reset", "-q", "--hard")
        git("clean", "-qfdx")

    sides = {
        "swe-env": timed(env.reset, lambda: episode(PAUSE)),
        "swe-env, no time between": timed(env.reset, lambda: episode(0)),
        "git clone --shared": timed(clone, fresh),
        "git reset --hard and clean": timed(clean, spoil),
    }
    try:
        times = bench.keep("reset", interleave(sides, rounds=bench.rounds(25)))
    finally:
        fresh()
        env.close()
    bench.goal("reset to a clean checkout", 15, "ms", times["swe-env"].median)


def fork(bench: Bench) -> None:
    """An independent twin of an environment with 100 changed files."""
    env = bench.open()
    script = "for f in $(git ls-files 'sympy/*.py' | head -100); do echo '# more' >> $f; done"
    call(env, "bash", command=script)
    twins: list[SWEEnv] = []

    def end() -> None:
        while twins:
            twins.pop().close()

    def rest() -> None:
        end()
        time.sleep(PAUSE)

    def several() -> float:
        end()
        started = time.perf_counter()
        twins.extend(env.fork() for _ in range(4))
        return (time.perf_counter() - started) / 4

    sides = {
        "swe-env": timed(lambda: twins.append(env.fork()), rest),
        "swe-env, each of four at once": several,
    }
    times = bench.keep("fork with 100 changed files", interleave(sides, rounds=bench.rounds(20)))
    end()
    env.close()
    bench.goal("fork with 100 changed files", 20, "ms", times["swe-env"].median)


def view(bench: Bench) -> None:
    """All lines of a file of 2,000, and what `view` shows of it by itself: head and outline."""
    env = bench.open()
    box = env._context.sandbox  # type: ignore[union-attr]
    body = "".join(f"def f{n}(x):\n    y = x + {n}\n    return y * 2\n\n" for n in range(500))
    box.files.write(LONG_FILE, body.encode())
    assert body.count("\n") == LONG_LINES
    count = 0

    def another() -> None:
        nonlocal count
        count += 1
        box.files.write(LONG_FILE, f"{body}# {count}\n".encode())

    sides = {
        "swe-env": timed(
            lambda: call(env, "view", path=LONG_FILE, view_range=[1, LONG_LINES]), another
        ),
        "swe-env, head and outline, first time": timed(
            lambda: call(env, "view", path=LONG_FILE), another
        ),
        "swe-env, head and outline, again": timed(
            lambda: call(env, "view", path=LONG_FILE), lambda: call(env, "view", path=LONG_FILE)
        ),
    }
    times = bench.keep("view 2,000 lines", interleave(sides, rounds=bench.rounds(40)))
    env.close()
    bench.goal("view 2,000 lines", 0.5, "ms", times["swe-env"].median)


def search(bench: Bench) -> None:
    """A text in all of sympy, beside `git grep -n` on the same files outside any sandbox."""
    env = bench.open()
    base = sandbox_spec(bench.task).base
    first = time.perf_counter()
    call(env, "search", query=QUERIES["absent"])
    self_built = round((time.perf_counter() - first) * 1000, 2)
    call(env, "bash", command=f"echo '# more' >> {MENDED}; mkdir new; echo text > new/file.txt")
    for kind, query in QUERIES.items():

        def grep(query: str = query) -> None:
            command = ["git", "grep", "-n", "-I", "--untracked", "-F", query]
            subprocess.run(command, cwd=base, capture_output=True, check=False)

        sides = {
            "swe-env": timed(lambda query=query: call(env, "search", query=query)),
            "git grep -n": timed(grep),
        }
        times = interleave(sides, rounds=bench.rounds(25))
        bench.keep(f"search, {kind} text", times)
        ratio = times["swe-env"].share_of(times["git grep -n"])
        bench.goal(f"search, {kind} text, share of git grep -n's time", 1.2, "", ratio)
    bench.figures["search, first of a base in a process"] = {"swe-env": {"median": self_built}}
    env.close()


def grading(bench: Bench) -> None:
    """From `submit` to the reward, less the tests' own process run by itself."""
    env = bench.open()
    command = [*bench.task.test_command.split(), HIDDEN]

    def solve(hidden: bool) -> None:
        env.reset()
        box = env._context.sandbox  # type: ignore[union-attr]
        patches = bench.task.patch + (bench.task.test_patch if hidden else "")
        done = box.exec(["git", "apply", "-"], stdin=patches.encode())
        assert done.exit_code == 0, done.output
        time.sleep(PAUSE)

    def submit() -> None:
        _, reward, _, _, info = env.step({"tool": "submit", "arguments": {}})
        assert reward == 1, info

    def tests() -> None:
        done = env._context.sandbox.exec(command)  # type: ignore[union-attr]
        assert done.exit_code == 0, done.output

    sides = {
        "submit to reward": timed(submit, lambda: solve(False)),
        "the tests' process alone": timed(tests, lambda: solve(True)),
    }
    times = bench.keep("grading", interleave(sides, rounds=bench.rounds(15), warm_up=1))
    env.close()
    on_top = times["submit to reward"].beyond(times["the tests' process alone"])
    bench.goal("grading on top of the tests' process", 150, "ms", on_top)


def memory(bench: Bench) -> None:
    """64 environments open at once, each after a few steps."""
    before, kernel = memory_of(family(os.getpid())), kernel_memory()
    envs: list[SWEEnv] = []
    written = 0
    started = time.perf_counter()
    for _ in range(bench.options.environments):
        env = bench.open()
        envs.append(env)
        call(env, "bash", command=f"echo '# more' >> {MENDED}; ls > /tmp/listing")
        call(env, "search", query=QUERIES["rare"])
    seconds = time.perf_counter() - started
    after, kernel_after = memory_of(family(os.getpid())), kernel_memory()
    for env in envs:
        info = os.statvfs(env._context.sandbox._root)  # type: ignore[union-attr]
        written += (info.f_blocks - info.f_bfree) * info.f_frsize
    for env in envs:
        env.close()
    used = {
        "environments": len(envs),
        "processes_mb": round((after - before) / 1e6, 1),
        "kernel_mb": round((kernel_after - kernel) / 1e6, 1),
        "written_mb": round(written / 1e6, 1),
        "seconds_to_open": round(seconds, 2),
    }
    total = used["processes_mb"] + max(0.0, used["kernel_mb"]) + used["written_mb"]
    bench.figures["open at once"] = {"swe-env": used}
    bench.goal(f"{len(envs)} environments open at once", 1.5, "GB", total / 1000)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "echo": echo,
    "reset": reset,
    "fork": fork,
    "view": view,
    "search": search,
    "grading": grading,
    "memory": memory,
}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    from render import render

    return render(result)


if __name__ == "__main__":
    main()
