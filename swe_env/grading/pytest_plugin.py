"""Runs pytest and reports over a private channel; runs inside the task's own environment.

The text of this file is handed to the task's interpreter as ``python -s -c``: it lies in no
folder that the code under test can write to. Standard library and pytest only, Python >= 3.6.

Order matters. Everything the reporting needs is imported before a single folder of the repository
is on `sys.path`; the key comes over standard input, so it is in no environment or command line;
the descriptor moves to a number nobody was told. What is reported is a line of JSON for each phase
of each test, each under a keyed digest with a running number, so that lines forged, taken away or
written by somebody else show.
"""

# ruff: noqa: ARG002, PTH100, PTH109, PTH118, SIM105 - old Pythons; pytest fixes the signatures
# mypy: ignore-errors

import fcntl
import hashlib
import hmac
import json
import os
import sys
import time

_PHASE_TEXT = 4000
_DETAIL_LINES = 14


class Channel:
    """Writes numbered, signed lines to a descriptor nobody else knows."""

    def __init__(self, key, descriptor):
        private = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 300 + os.urandom(1)[0])
        os.close(descriptor)
        signer = hmac.new(key, digestmod=hashlib.sha256)
        write, dumps, process = os.write, json.dumps, os.getpid()
        state = {"lines": 0}

        def send(kind, **fields):
            if os.getpid() != process:
                return
            fields.update(kind=kind, line=state["lines"])
            state["lines"] += 1
            body = dumps(fields, sort_keys=True).encode("ascii")
            mac = signer.copy()
            mac.update(body)
            data = mac.hexdigest().encode("ascii") + b" " + body + b"\n"
            while data:
                data = data[write(private, data) :]

        self.send = send


class Reporter:
    """The pytest plugin: what each phase of each test really did."""

    def __init__(self, channel, pytest, honest_files):
        self._send = channel.send
        self._honest = honest_files
        self._skips = (pytest.skip.Exception, pytest.xfail.Exception)
        self._raised = {}

    def configure(self, config):
        """Settings of the repository that would keep tests from being told apart or run."""
        config.option.maxfail = 0
        if hasattr(config.option, "numprocesses"):
            config.option.numprocesses = None
            config.option.dist = "no"
            config.option.tx = []

    def make_report(self, call, outcome):
        """Remember whether the phase raised, before anybody could say otherwise."""
        report = outcome.get_result()
        excinfo = call.excinfo
        real = excinfo is not None and not isinstance(excinfo.value, self._skips)
        if real and type(excinfo.value).__name__ == "SkipTest":
            real = False
        self._raised[(report.nodeid, report.when)] = real and not hasattr(report, "wasxfail")

    def log_report(self, report):
        """One line for one phase."""
        fields = {
            "id": report.nodeid,
            "when": report.when,
            "outcome": report.outcome,
            "xfail": hasattr(report, "wasxfail"),
            "raised": self._raised.pop((report.nodeid, report.when), False),
            "seconds": round(getattr(report, "duration", 0.0), 6),
        }
        if report.outcome == "failed" or fields["raised"]:
            fields["text"] = detail(report)
        self._send("test", **fields)

    def collect_report(self, report):
        """A file that could not be collected."""
        if report.outcome == "failed":
            self._send("collect", id=report.nodeid, text=detail(report))

    def hooks(self, config, own):
        """Implementations of the reporting hooks that are neither pytest's nor the task's."""
        found = []
        for name in (
            "pytest_runtest_makereport",
            "pytest_runtest_logreport",
            "pytest_runtest_protocol",
            "pytest_runtest_call",
            "pytest_pyfunc_call",
            "pytest_report_teststatus",
            "pytest_sessionfinish",
            "pytest_collection_modifyitems",
            "pytest_runtestloop",
        ):
            caller = getattr(config.hook, name, None)
            for hook in caller.get_hookimpls() if caller is not None else ():
                origin = getattr(getattr(hook.function, "__code__", None), "co_filename", "")
                if hook.plugin is not own and origin and not self._honest(origin):
                    found.append([name, origin])
        return found


def detail(report):
    """The last lines of a report's traceback that say where and what."""
    try:
        lines = report.longreprtext.splitlines()
    except Exception:
        lines = str(report.longrepr).splitlines()
    kept = [line for line in lines if line.strip()][-_DETAIL_LINES:]
    return "\n".join(kept)[-_PHASE_TEXT:].encode("utf-8", "backslashreplace").decode("utf-8")


def plugin(reporter, pytest):
    """The object pytest registers; a closure, so that no attribute of a module leads to it."""

    class SweEnv:
        @pytest.hookimpl(tryfirst=True)
        def pytest_configure(self, config):
            reporter.configure(config)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_cmdline_main(self, config):
            reporter.configure(config)
            yield

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_runtest_makereport(self, item, call):
            outcome = yield
            reporter.make_report(call, outcome)

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logreport(self, report):
            reporter.log_report(report)

        @pytest.hookimpl(tryfirst=True)
        def pytest_collectreport(self, report):
            reporter.collect_report(report)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_sessionfinish(self, session):
            for name, origin in reporter.hooks(session.config, self):
                reporter._send("hook", name=name, file=origin)
            yield

    return SweEnv()


def functions():
    """(place, code object) of every function that pytest and pluggy consist of."""
    kind = type(detail)
    for module_name, module in sorted(sys.modules.items()):
        if module_name.split(".")[0] not in ("_pytest", "pluggy"):
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, kind):
                yield module_name + "." + name, value.__code__
            elif isinstance(value, type) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    member = getattr(member, "__func__", member)
                    if isinstance(member, kind):
                        yield ".".join((module_name, name, attribute)), member.__code__


def load_all():
    """Import the parts of pytest that it would load later, so that `functions` sees them."""
    from _pytest.config import default_plugins

    for name in default_plugins:
        __import__("_pytest." + name)


def replaced(before, honest):
    """(place, file) of functions of pytest that are no longer what they were."""
    now = dict(functions())
    for place, code in before.items():
        if place not in now:
            yield place, ""
        elif now[place] is not code and not honest(now[place].co_filename):
            yield place, now[place].co_filename


def honest_file(distrusted):
    """Whether a code's file belongs to the environment or to the untouched repository.

    Code without a file (made by `exec`) has no origin to trust.
    """
    here = os.path.realpath(os.getcwd()) + os.sep
    watched = {os.path.realpath(os.path.join(here, path)) for path in distrusted}
    exists, real, join = os.path.exists, os.path.realpath, os.path.join

    def honest(name):
        path = real(join(here, name))
        return path not in watched and (exists(path) or not path.startswith(here))

    return honest


def main():
    """Key and settings from standard input, then pytest."""
    request = b""
    while not request.endswith(b"\n"):
        block = os.read(0, 65536)
        if not block:
            break
        request += block
    settings = json.loads(request.decode("utf-8"))
    channel = Channel(bytes.fromhex(settings.pop("key")), int(os.environ.pop("SWE_ENV_CHANNEL")))
    send = channel.send
    send("boot", python=list(sys.version_info[:3]))
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)

    front = [os.getcwd()] if settings["cwd_first"] else []
    search = os.environ.pop("SWE_ENV_PYTHONPATH", "")
    if search:
        os.environ["PYTHONPATH"] = search
        front += [os.path.abspath(path) for path in search.split(os.pathsep)]
    if sys.path and sys.path[0] == "":
        sys.path.pop(0)
    try:
        import pytest
    except ImportError:
        sys.path[0:0] = front
        front = []
        try:
            import pytest
        except ImportError as error:
            send("no-pytest", text=str(error))
            os._exit(3)
    sys.path[0:0] = front
    started = time.time()
    load_all()
    before = dict(functions())
    honest = honest_file(settings["distrusted"])
    reporter = Reporter(channel, pytest, honest)
    sys.argv = [pytest.__file__] + settings["arguments"]
    send("start", pytest=pytest.__version__)
    code = int(pytest.main(settings["arguments"], plugins=[plugin(reporter, pytest)]))
    for place, origin in replaced(before, honest):
        send("replaced", name=place, file=origin)
    send("end", exit=code, seconds=round(time.time() - started, 3))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit(code)


if __name__ == "__main__":
    main()
