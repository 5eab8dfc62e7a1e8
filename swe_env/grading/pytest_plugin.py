"""Runs pytest and reports over a private channel; runs inside the task's own environment.

The text of this file is handed to the task's interpreter as ``python -s -c``: it lies in no
folder that the code under test can write to. Standard library and pytest only, Python >= 3.6.

Order matters. Everything the reporting needs is imported before a single folder of the repository
is on `sys.path`; the key comes over standard input, so it is in no environment or command line;
the descriptor moves to a number nobody was told. What is reported is a line of JSON for each phase
of each test, each under a keyed digest with a running number, so that lines forged, taken away or
written by somebody else show.

What the tests import runs in this process and can, with enough effort, do whatever this program
can. So each line also says whose code asked for it; and when a patch is judged, tests that must
fail are run among the others, and the test files, pytest, unittest and what they read files with
are compared with what they were.
"""

# ruff: noqa: PT009, PTH100, PTH109, PTH112, PTH118, PTH120, PTH208, SIM105 - old Pythons
# mypy: ignore-errors

import sys

if __name__ == "__main__" and sys.path[:1] == [""]:
    del sys.path[0]  # the checkout, whose hmac.py would be told the key

import fcntl
import hashlib
import hmac
import json
import os
import time

_PHASE_TEXT = 4000
_DETAIL_LINES = 14
OTHERS = []
"""Globals of a program that shares this one's channel (`unit_plugin`)."""
_PARTS = ("_pytest", "pluggy", "pytest", "unittest", "pathlib", "importlib", "ast", "builtins")


class Channel:
    """Writes numbered, signed lines to a descriptor nobody else knows."""

    def __init__(self, key, descriptor, honest):
        private = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 300 + os.urandom(1)[0])
        os.close(descriptor)
        signer = hmac.new(key, digestmod=hashlib.sha256)
        write, dumps, process = os.write, json.dumps, os.getpid()
        state = {"lines": 0}

        def send(kind, **fields):
            if os.getpid() != process:
                return
            asker = asked_by(sys._getframe(1))
            if asker and not honest(asker):
                kind, fields = "foreign", {"file": asker, "what": kind}
            fields.update(kind=kind, line=state["lines"])
            state["lines"] += 1
            body = dumps(fields, sort_keys=True).encode("ascii")
            mac = signer.copy()
            mac.update(body)
            data = mac.hexdigest().encode("ascii") + b" " + body + b"\n"
            while data:
                data = data[write(private, data) :]

        self.send = send


def asked_by(frame):
    """File of the code that asked for a line; empty when it was this program itself.

    pytest's plugin machinery, which may stand in between, is looked through.
    """
    own = [globals(), *OTHERS]
    own += [vars(module) for name, module in list(sys.modules.items()) if name[:6] == "pluggy"]
    while frame is not None and any(frame.f_globals is known for known in own):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename


def code_of(function):
    """The code that calling this would run first, or None."""
    function = getattr(function, "__func__", function)
    return getattr(function, "__code__", None)


def outside_pytest(trace):
    """The last code on the way to an exception that is not pytest's, or None."""
    own = os.path.dirname(sys.modules["_pytest"].__file__) + os.sep
    found = None
    while trace is not None:
        code = trace.tb_frame.f_code
        found = found if code.co_filename.startswith(own) else code
        trace = trace.tb_next
    return found


def named(code, name):
    """Whether a function's code names an attribute or a variable so, or one made in it does."""
    inner = [constant for constant in code.co_consts if isinstance(constant, type(code))]
    return name in code.co_names or any(named(part, name) for part in inner)


def expects_failure(item):
    """Whether `unittest.expectedFailure` stands on a test or its class."""
    function = getattr(item, "obj", None)
    owner = getattr(item, "cls", None)
    flag = "__unittest_expecting_failure__"
    return getattr(function, flag, False) or getattr(owner, flag, False)


class Reporter:
    """The pytest plugin: what each phase of each test really did."""

    def __init__(self, channel, pytest, honest_files, sources):
        self._send = channel.send
        self._honest = honest_files
        self._skips = (pytest.skip.Exception, pytest.xfail.Exception)
        self._expected = set()
        self._raised = {}
        self._pytest = pytest
        self._sources = sources
        self._planted = set()
        self._bodies = {}
        self._told = set()

    def configure(self, config):
        """Settings of the repository that would keep tests from being told apart or run."""
        config.option.maxfail = 0
        if hasattr(config.option, "numprocesses"):
            config.option.numprocesses = None
            config.option.dist = "no"
            config.option.tx = []

    def make_report(self, item, call, outcome):
        """Remember whether the phase raised, before anybody could say otherwise."""
        report = outcome.get_result()
        excinfo = call.excinfo
        real = excinfo is not None and not isinstance(excinfo.value, self._skips)
        if real and type(excinfo.value).__name__ == "SkipTest":
            real = False
        if hasattr(report, "wasxfail"):
            real = report.outcome == "skipped" and not self._announced(item, excinfo)
        self._raised[(report.nodeid, report.when)] = real
        if report.when == "call":
            self._look_around(item)

    def _announced(self, item, excinfo):
        """Whether it is the tests, not what they test, that expect this failure."""
        if not self._sources:
            return True
        if excinfo is not None and isinstance(excinfo.value, self._pytest.xfail.Exception):
            caller = outside_pytest(excinfo.tb)
            if caller is not None:  # else pytest does it for unittest's decorator
                return self._honest(caller.co_filename) and named(caller, "xfail")
        words = (b"applymarker", b"add_marker")
        if item.nodeid in self._expected:
            words = (b"xfail", b"expectedFailure")
        paths = [str(item.fspath)]
        for plugin in item.config.pluginmanager.get_plugins():
            path = getattr(plugin, "__file__", None)
            if path and path.endswith(os.sep + "conftest.py") and self._honest(path):
                paths.append(path)
        return any(word in (read(path) or b"") for path in paths for word in words)

    def _look_around(self, item):
        """Name a trace function, or a test's body, that came from code without business there."""
        strangers = [("sys.settrace", code_of(sys.gettrace()))]
        strangers.append(("sys.setprofile", code_of(sys.getprofile())))
        body = code_of(getattr(item, "obj", None))
        if body is not self._bodies.get(item.nodeid, body):
            strangers.append(("the body of " + item.nodeid, body))
        for name, code in strangers:
            if code is not None and not self._honest(code.co_filename):
                self._tell_hook(name, code.co_filename)

    def _tell_hook(self, name, origin):
        if (name, origin) not in self._told:
            self._told.add((name, origin))
            self._send("hook", name=name, file=origin)

    def look_at_module(self, collector):
        """Name whoever had a test file changed, or loaded in place of pytest."""
        self.compare_sources()
        module = getattr(collector, "_obj", None)
        if module is None or not self._sources:
            return  # it could not be imported
        spec = getattr(module, "__spec__", None)
        loader = type(getattr(spec, "loader", None) or getattr(module, "__loader__", None))
        # pytest before 5 has a loader of the old kind.
        load = code_of(getattr(loader, "exec_module", getattr(loader, "load_module", None)))
        if load is None or not self._honest(load.co_filename):
            origin = load.co_filename if load is not None else "something"
            self._tell_hook("loading " + collector.nodeid, origin)

    def compare_sources(self):
        """Name the files beside the tests that are no longer what they were."""
        for path, data in self._sources.items():
            if read(path) != data and path not in self._told:
                self._told.add(path)
                self._send("changed", file=os.path.relpath(path))

    def collected(self, items):
        """Remember the tests' bodies, and plant among them tests that must fail."""
        if not self._sources:
            return
        for item in items:
            body = self._bodies[item.nodeid] = code_of(getattr(item, "obj", None))
            if next(item.iter_markers("xfail"), None) or expects_failure(item):
                self._expected.add(item.nodeid)
            if body is not None and not self._honest(body.co_filename):
                name = getattr(item, "originalname", None) or item.name.partition("[")[0]
                written = getattr(getattr(item.parent, "obj", None), name, None)
                if code_of(written) is not body:
                    self._tell_hook("the body of " + item.nodeid, body.co_filename)
        modules = [item.getparent(self._pytest.Module) for item in items]
        modules = [module for module in modules if module is not None]
        if not modules:
            return
        try:
            planted = plant(modules[-1], self._pytest)
        except Exception:  # another pytest, or hooks of the repository's own: then without
            planted = []
        self._planted.update(item.nodeid for item in planted)
        items.extend(planted)
        self._send("planted", ids=sorted(self._planted))

    def log_report(self, report):
        """One line for one phase."""
        if report.nodeid in self._planted:
            if report.when == "call" or report.outcome != "passed":
                self._send("canary", id=report.nodeid, outcome=report.outcome)
            return
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

    def finish(self, config, own):
        """Name implementations of hooks that are neither pytest's nor the task's."""
        self.compare_sources()
        for name, caller in sorted(vars(config.pluginmanager.hook).items()):
            for hook in caller.get_hookimpls() if name.startswith("pytest_") else ():
                if hook.plugin is not own:
                    self._look_at_hook(name, hook.function)

    def look_at_plugin(self, plugin):
        """The same of a plugin's hooks as it comes: it might be gone by the end."""
        for name in dir(plugin):
            if name.startswith("pytest_"):
                self._look_at_hook(name, getattr(plugin, name, None))

    def _look_at_hook(self, name, function):
        origin = getattr(code_of(function), "co_filename", "")
        if origin and not self._honest(origin):
            self._tell_hook(name, origin)


def plant(module, pytest):
    """Tests of `module` that must fail, by each of the ways in which tests are written."""
    import unittest

    why = "this test must fail: it checks that failures are reported"
    name = "test_" + os.urandom(4).hex()

    def compare():
        assert os.getpid() == 0, why

    def raises():
        with pytest.raises(ValueError):
            pass

    def method(self):
        self.assertEqual(os.getpid(), 0, why)

    case = type("Test_" + name[5:], (unittest.TestCase,), {name + "_c": method})
    case.__module__ = module.obj.__name__
    planted = []
    for label, thing in ((name + "_a", compare), (name + "_b", raises), (case.__name__, case)):
        setattr(module.obj, label, thing)  # where pytest looks for what an item runs
        made = module.ihook.pytest_pycollect_makeitem(collector=module, name=label, obj=thing)
        for item in made if isinstance(made, list) else [made] if made is not None else []:
            planted += item.collect() if hasattr(item, "collect") else [item]
    return planted


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
        def pytest_addoption(self, parser):
            parser.addoption("--swe-env-order", default="", help="seed of another test order")

        @pytest.hookimpl(tryfirst=True)
        def pytest_configure(self, config):
            reporter.configure(config)

        def pytest_plugin_registered(self, plugin):
            if plugin is not self:
                reporter.look_at_plugin(plugin)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_cmdline_main(self, config):
            reporter.configure(config)
            yield

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_runtest_makereport(self, item, call):
            outcome = yield
            reporter.make_report(item, call, outcome)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_make_collect_report(self, collector):
            reporter.compare_sources()
            yield
            if isinstance(collector, pytest.Module):
                reporter.look_at_module(collector)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_collection_modifyitems(self, config, items):
            yield
            seed = config.getoption("--swe-env-order")
            if seed:
                items[:] = shuffled(items, seed)
            reporter.collected(items)

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logreport(self, report):
            reporter.log_report(report)

        @pytest.hookimpl(tryfirst=True)
        def pytest_collectreport(self, report):
            reporter.collect_report(report)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_sessionfinish(self, session):
            reporter.finish(session.config, self)
            yield

    return SweEnv()


def shuffled(items, seed):
    """Files, classes in a file and tests in a class in another order; what is together stays so."""

    def key(*names):
        return hashlib.sha256("|".join((seed, *names)).encode("utf-8", "replace")).digest()

    def place(item):
        names = item.nodeid.split("::")
        owner = "::".join(names[:2] if len(names) > 2 else names[:1])
        return key(names[0]), key(owner), key(item.nodeid)

    return sorted(items, key=place)


def functions():
    """(place, code or built-in) of every function of pytest and of what it relies on."""
    kind, builtin = type(detail), type(len)
    for module_name, module in sorted(sys.modules.items()):
        if module_name.split(".")[0] not in _PARTS:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, kind):
                yield module_name + "." + name, value.__code__
            elif isinstance(value, builtin):
                yield module_name + "." + name, value
            elif isinstance(value, type) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    member = getattr(member, "__func__", member)
                    if isinstance(member, kind):
                        yield ".".join((module_name, name, attribute)), member.__code__


ONE_AT_A_TIME = """
import ast, functools, os, threading
lock, parsing = threading.RLock(), ast.parse

@functools.wraps(parsing)
def parse(*arguments, **settings):
    with lock:
        return parsing(*arguments, **settings)

ast.parse = parse
if hasattr(lock, "_at_fork_reinit"):
    os.register_at_fork(after_in_child=lock._at_fork_reinit)
"""


def parse_one_at_a_time():
    """Let `ast.parse` wait for another thread's.

    CPython up to 3.12 counts how deep the trees of all threads are together, and two at once, as
    when the tracebacks of a test and of a thread of its are shown, can end in a SystemError: "AST
    constructor recursion depth mismatch". It is run by itself: nothing leads from it to here.
    """
    if sys.version_info < (3, 13):
        exec(ONE_AT_A_TIME, {})


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
        elif now[place] is not code:
            origin = getattr(now[place], "co_filename", "")
            if origin and not honest(origin):
                yield place, origin


def read(path):
    """The file's bytes by system calls alone; None where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    blocks = [b""]
    try:
        while len(blocks) == 1 or blocks[-1]:
            blocks.append(os.read(descriptor, 1 << 20))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return b"".join(blocks)


def sources(targets):
    """What the Python files beside the tests hold, by path."""
    places = {os.path.abspath(target.partition("::")[0]) for target in targets}
    folders = {place if os.path.isdir(place) else os.path.dirname(place) for place in places}
    paths = [
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
        if name.endswith(".py")
    ]
    return {path: read(path) for path in paths}


def honest_file(distrusted):
    """Whether a code's file belongs to the environment or to the untouched repository.

    Code without a file (made by `exec`) has no origin to trust.
    """
    here = os.path.realpath(os.getcwd()) + os.sep
    watched = {os.path.realpath(os.path.join(here, path)) for path in distrusted}
    exists, real, join = os.path.exists, os.path.realpath, os.path.join
    known = {}

    def honest(name):
        if name not in known:
            path = real(join(here, name))
            known[name] = path not in watched and (exists(path) or not path.startswith(here))
        return known[name]

    return honest


def opened():
    """The channel, and the settings, from standard input; the key is kept nowhere readable."""
    key, request = bytearray(32), b""
    os.readv(0, [key])
    while not request.endswith(b"\n"):
        block = os.read(0, 65536)
        if not block:
            break
        request += block
    settings = json.loads(request.decode("utf-8"))
    settings["honest"] = honest_file(settings["distrusted"])
    channel = Channel(key, int(os.environ.pop("SWE_ENV_CHANNEL")), settings["honest"])
    key[:] = bytes(32)
    return channel, settings


def main():
    """Settings, then pytest."""
    channel, settings = opened()
    send = channel.send
    send("boot", python=list(sys.version_info[:3]))
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)

    front = [os.getcwd()] if settings["cwd_first"] else []
    search = os.environ.pop("SWE_ENV_PYTHONPATH", "")
    if search:
        os.environ["PYTHONPATH"] = search
        front += [os.path.abspath(path) for path in search.split(os.pathsep)]
    if settings["distrusted"]:
        __import__("unittest")
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
    load_all()
    parse_one_at_a_time()
    sys.path[0:0] = front
    started = time.time()
    before = dict(functions())
    honest = settings["honest"]
    files = sources(settings["targets"]) if settings["distrusted"] else {}
    reporter = Reporter(channel, pytest, honest, files)
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
