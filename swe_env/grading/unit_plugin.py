"""Run unittest, Django's or sympy's test runner and report over the private channel.

The text of this file is handed to the task's interpreter as ``python -s -c``, as that of
`pytest_plugin` is, whose channel it uses: that file's text comes with the settings. Standard
library only, Python >= 3.6. What is reported is a line for each outcome that the runner's own
result object or reporter is told, before the runner's printed text is made of it.
"""

# ruff: noqa: PTH100, PTH109, PTH120, SIM105 - old Pythons
# mypy: ignore-errors

import json
import os
import sys
import time
import traceback

_LINES = 14
_TEXT = 4000


def detail(error):
    """The last lines of an exception's traceback that say where and what."""
    if isinstance(error, str):
        text = error
    else:
        try:
            text = "".join(traceback.format_exception(*error))
        except Exception:
            text = str(error)
    kept = [line for line in text.splitlines() if line.strip()][-_LINES:]
    return "\n".join(kept)[-_TEXT:].encode("utf-8", "backslashreplace").decode("utf-8")


def functions(prefixes):
    """(place, code object) of every function of the modules that run and report the tests."""
    kind = type(detail)
    for module_name, module in sorted(sys.modules.items()):
        if module is None or not module_name.startswith(prefixes):
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, kind):
                yield module_name + "." + name, value.__code__
            elif isinstance(value, type) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    member = getattr(member, "__func__", member)
                    if isinstance(member, kind):
                        yield ".".join((module_name, name, attribute)), member.__code__


class UnittestReporter:
    """Watches the result object of the first `unittest` run of this process."""

    prefixes = ("unittest.case", "unittest.result", "unittest.runner", "unittest.suite")

    def __init__(self, send, honest, read):
        self._send, self._honest, self._read = send, honest, read
        self._main = os.getpid()
        self._seen = False

    def prepare(self):
        """Import the runner while nothing of the repository can come before it."""
        import unittest

        self._unittest = unittest

    def attach(self):
        """Wrap the place where every text runner makes its result object."""
        unittest = self._unittest
        runner = unittest.TextTestRunner
        make, run = runner._makeResult, runner.run

        def make_result(runner_self):
            result = make(runner_self)
            if not self._seen and os.getpid() == self._main:
                self._seen = True
                self._watch(result)
            return result

        def run_suite(runner_self, test):
            first = not self._seen
            result = run(runner_self, test)
            if first and self._seen:
                self._send("complete", tests=result.testsRun)
            return result

        runner._makeResult, runner.run = make_result, run_suite

    def _announced(self, test):
        """Whether the tests' files expect a failure: what is tested can set unittest's flag too."""
        homes = {kind.__module__ for kind in type(test).__mro__} - {"unittest.case", "builtins"}
        paths = [getattr(sys.modules.get(home), "__file__", None) for home in homes]
        honest = [path for path in paths if path and self._honest(path)]
        return any(b"expectedFailure" in (self._read(path) or b"") for path in honest)

    def _watch(self, result):
        send = self._send
        clock = time.time
        started = {}

        def ids(test):
            names = [str(test)]
            try:
                described = test.shortDescription()
            except Exception:
                described = None
            return test.id(), names[0], described or ""

        def report(test, outcome, error=None):
            name, shown, described = ids(test)
            fields = {"id": name, "name": shown, "about": described, "outcome": outcome}
            fields["seconds"] = round(clock() - started.get(id(test), clock()), 6)
            if error is not None:
                fields["text"] = detail(error)
            send("unit", **fields)

        def wrapped(method, outcome):
            old = getattr(result, method)

            def call(test, *rest):
                shown = outcome
                if outcome == "xfailed" and not self._announced(test):
                    shown = "failed"
                report(test, shown, rest[0] if rest and shown in ("failed", "error") else None)
                return old(test, *rest)

            setattr(result, method, call)

        for method, outcome in (
            ("addSuccess", "passed"),
            ("addFailure", "failed"),
            ("addError", "error"),
            ("addSkip", "skipped"),
            ("addExpectedFailure", "xfailed"),
            ("addUnexpectedSuccess", "xpassed"),
        ):
            wrapped(method, outcome)
        start = result.startTest
        subtest = getattr(result, "addSubTest", None)

        def start_test(test):
            started[id(test)] = clock()
            return start(test)

        def add_subtest(test, part, error):
            if error is not None:
                report(test, "failed", error)
            return subtest(test, part, error)

        result.startTest = start_test
        if subtest is not None:
            result.addSubTest = add_subtest


class SympyReporter:
    """Watches the reporter class of sympy's own test runner."""

    prefixes = ("sympy.testing.runtests", "sympy.utilities.runtests")

    def __init__(self, send, honest, _):
        self._send, self._honest = send, honest
        self._file = ""
        self._test = ""
        self._started = 0.0

    def prepare(self):
        """Nothing: the runner is part of the repository."""

    def attach(self):
        """Wrap the reporter's methods; the module has lain in two places."""
        try:
            import sympy.testing.runtests as runtests
        except ImportError:
            import sympy.utilities.runtests as runtests
        reporter = runtests.PyTestReporter

        def around(name, before):
            old = getattr(reporter, name)

            def call(this, *args, **kwargs):
                before(*args)
                return old(this, *args, **kwargs)

            setattr(reporter, name, call)

        around("entering_filename", self._enter_file)
        around("entering_test", self._enter_test)
        around("test_pass", lambda *_: self._report("passed"))
        around("test_fail", lambda error: self._report("failed", error))
        around("test_exception", lambda error: self._report("error", error))
        around("test_skip", lambda *_: self._report("skipped"))
        around("test_xfail", lambda *_: self._report(self._expected()))
        around("test_xpass", lambda *_: self._report("xpassed"))
        around("import_error", self._import_error)
        finish = reporter.finish

        def finished(this):
            good = finish(this)
            self._send("complete", tests=-1)
            return good

        reporter.finish = finished

    def _expected(self):
        """``xfailed`` where a decorator around the test expects the failure.

        The runner goes by an exception's name alone, which what is tested may raise too: then the
        test's own code, or code without business here, is on the way to it.
        """
        trace = sys.exc_info()[2]
        while trace is not None:
            path = trace.tb_frame.f_code.co_filename
            if not self._honest(path) or os.path.relpath(path) == self._file:
                return "failed"
            trace = trace.tb_next
        return "xfailed"

    def _enter_file(self, filename, *_):
        self._file, self._test = os.path.relpath(filename), ""

    def _enter_test(self, function):
        self._test, self._started = getattr(function, "__name__", "<lambda>"), time.time()

    def _import_error(self, filename, error):
        self._file, self._test = os.path.relpath(filename), ""
        self._report("error", error)

    def _report(self, outcome, error=None):
        fields = {"id": self._test or self._file, "name": "", "about": "", "file": self._file}
        fields["seconds"] = round(time.time() - self._started, 6) if self._test else 0.0
        if error is not None:
            fields["text"] = detail(error)
        self._send("unit", outcome=outcome, **fields)


def run_program(words):
    """Run a script, or ``-m module``, as the interpreter would; its exit code."""
    import runpy

    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return int(left.code or 0)
        print(left.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main():
    """Key and settings from standard input, then the runner."""
    key, request = bytearray(32), b""
    os.readv(0, [key])
    while not request.endswith(b"\n"):
        block = os.read(0, 65536)
        if not block:
            break
        request += block
    settings = json.loads(request.decode("utf-8"))
    support = {"__name__": "swe_env_support"}
    exec(settings.pop("support"), support)
    support["OTHERS"].append(globals())
    honest = support["honest_file"](settings["distrusted"])
    number = int(os.environ.pop("SWE_ENV_CHANNEL"))
    send = support["Channel"](key, number, honest).send
    key[:] = bytes(32)
    send("boot", python=list(sys.version_info[:3]))
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    kinds = {"unittest": UnittestReporter, "sympy": SympyReporter}
    reporter = kinds[settings["kind"]](send, honest, support["read"])
    reporter.prepare()
    support["parse_one_at_a_time"]()
    before = dict(functions(reporter.prefixes))
    front = [os.getcwd()] if settings["cwd_first"] else []
    search = os.environ.pop("SWE_ENV_PYTHONPATH", "")
    if search:
        os.environ["PYTHONPATH"] = search
        front += [os.path.abspath(path) for path in search.split(os.pathsep)]
    if sys.path and sys.path[0] == "":
        sys.path.pop(0)
    sys.path[0:0] = front
    try:
        reporter.attach()
    except Exception:
        send("no-runner", text=detail(sys.exc_info()).splitlines()[-1])
        traceback.print_exc()
        os._exit(3)
    before.update(functions(reporter.prefixes))
    code = run_program(settings["words"])
    now = dict(functions(reporter.prefixes))
    for place, old in before.items():
        if now.get(place) is not old and not honest(getattr(now.get(place), "co_filename", "")):
            send("replaced", name=place, file=getattr(now.get(place), "co_filename", ""))
    send("end", exit=code)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit(code & 255)


if __name__ == "__main__":
    main()
