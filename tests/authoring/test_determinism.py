"""Warnings about what a replay does not repeat: what is found, what is left alone, and where the warning points."""

from __future__ import annotations

import importlib
import itertools
import pickle
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ray_durable as durable
from ray_durable import registry
from ray_durable.determinism import DeterminismWarning, muted
from ray_durable.reference import FunctionReference
from tests.support.ids import named

PRELUDE = """
from __future__ import annotations
import asyncio, concurrent.futures, datetime, logging, multiprocessing, os, pathlib, random, secrets, socket
import subprocess, threading, time, urllib.request, uuid
import datetime as dt
from datetime import datetime as DateTime
from os import environ
from pathlib import Path
from random import choice as pick
from threading import Lock
from time import time as now
import numpy as np
import ray_durable as durable

ROOT = Path("/data")
log = logging.getLogger(__name__)

@durable.activity(name="{module}.score")
def score(path: str) -> int:
    return len(path)

def stamp():
    return time.time()

class Watch:
    def time(self): return 1
    def remote(self): return 1
    def random(self): return 1

watch = Watch()
"""

_numbers = itertools.count()

Write = Callable[[str], list[warnings.WarningMessage]]


class Modules:
    """Modules of one orchestrator each, and the warnings of their import."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        self.file = folder

    def load(self, source: str, prelude: str = PRELUDE) -> list[warnings.WarningMessage]:
        """Import a module with this source after the prelude; `{module}` stands for its name."""
        name = f"orchestrators_{next(_numbers)}"
        self.file = self.folder / f"{name}.py"
        self.file.write_text((prelude + textwrap.dedent(source)).replace("{module}", name), encoding="utf-8")
        self.names.append(name)
        importlib.invalidate_caches()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            importlib.import_module(name)
        return [warning for warning in caught if issubclass(warning.category, DeterminismWarning)]

    def body(self, lines: str, parameters: str = "ctx, *args") -> list[warnings.WarningMessage]:
        """The warnings of an orchestrator with these lines."""
        header = f'@durable.orchestrator(name="{{module}}.run")\nasync def run({parameters}):\n'
        return self.load(header + textwrap.indent(textwrap.dedent(lines).strip("\n") + "\n", "    "))

    def line(self, warning: warnings.WarningMessage) -> str:
        """The line that a warning points at."""
        assert warning.filename == str(self.file)
        return self.file.read_text(encoding="utf-8").splitlines()[warning.lineno - 1].strip()

    @property
    def module(self) -> ModuleType:
        """The module that was loaded last."""
        return sys.modules[self.names[-1]]


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[Modules]:
    made = Modules(tmp_path)
    sys.path.append(str(tmp_path))
    registered = set(registry.registered())
    yield made
    sys.path.remove(str(tmp_path))
    for name in made.names:
        sys.modules.pop(name, None)
    for name in set(registry.registered()) - registered:
        registry._functions.pop(name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("datetime.datetime.now()", "use ctx.current_utc_datetime"),
        ("dt.datetime.utcnow()", "dt.datetime.utcnow() (datetime.datetime.utcnow)"),
        ("DateTime.now(dt.timezone.utc).isoformat()", "DateTime.now() (datetime.datetime.now)"),
        ("dt.date.today()", "use ctx.current_utc_datetime"),
        ("now()", "now() (time.time)"),
        ("time.monotonic()", "use ctx.current_utc_datetime"),
        ("time.perf_counter()", "use ctx.current_utc_datetime"),
        ("time.localtime()", "use ctx.current_utc_datetime"),
        ("time.strftime('%Y')", "use ctx.current_utc_datetime"),
        ("time.sleep(1)", "use await asyncio.sleep(seconds)"),
        ("random.random()", "use ctx.random"),
        ("pick([1, 2])", "pick() (random.choice)"),
        ("random.Random()", "use ctx.random"),
        ("np.random.rand(3)", "use ctx.random"),
        ("secrets.token_hex()", "in an activity"),
        ("os.urandom(8)", "in an activity"),
        ("uuid.uuid4()", "use ctx.new_uuid()"),
        ("uuid.uuid1()", "use ctx.new_uuid()"),
        ("os.environ['HOME']", "uses os.environ"),
        ("'HOME' in environ", "uses environ"),
        ("os.environ.get('HOME')", "in an activity"),
        ("os.getenv('HOME')", "in an activity"),
        ("open('x')", "read and write them in an activity"),
        ("ROOT.read_text()", "ROOT.read_text() (pathlib.Path.read_text)"),
        ("(ROOT / 'a').write_bytes(b'')", "in an activity"),
        ("pathlib.Path('x').with_suffix('.y').exists()", "in an activity"),
        ("os.path.exists('x')", "in an activity"),
        ("os.listdir('.')", "in an activity"),
        ("urllib.request.urlopen('http://x')", "in an activity"),
        ("socket.create_connection(('x', 1))", "in an activity"),
        ("subprocess.run(['x'])", "start processes in an activity"),
        ("os.system('x')", "start processes in an activity"),
        ("threading.Thread(target=print)", "call activities"),
        ("Lock()", "call activities"),
        ("multiprocessing.Process()", "call activities"),
        ("concurrent.futures.ThreadPoolExecutor()", "call activities"),
        ("actor = ctx.get_input(); actor.count.remote()", "use ctx.call_activity or ctx.map"),
        ("print('x')", "use ctx.logger"),
        ("log.info('x')", "use ctx.logger"),
        ("logging.warning('x')", "use ctx.logger"),
        ("logging.getLogger('orders').info('x')", "use ctx.logger"),
        ("log = logging.getLogger(__name__); log.info('x')", "use ctx.logger"),
        ("np.load('x')", "read and write them in an activity"),
        ("import pandas as pd; pd.read_csv('x')", "read and write them in an activity"),
        ("import fsspec; fsspec.open('x')", "read and write them in an activity"),
        ("import pyarrow.parquet as pq; pq.read_table('x')", "read and write them in an activity"),
        ("import platform; platform.platform()", "pass the value as an input"),
        ("os.cpu_count()", "pass the value as an input"),
        ("input()", "use await ctx.wait_for_external_event(name)"),
        ("asyncio.run(asyncio.sleep(1))", "await the coroutine instead"),
        ("await asyncio.to_thread(len, 'x')", "use await ctx.call_activity"),
        ("await asyncio.get_running_loop().run_in_executor(None, len, 'x')", "use await ctx.call_activity"),
        (
            "loop = asyncio.get_running_loop(); await loop.run_in_executor(None, len, 'x')",
            "use await ctx.call_activity",
        ),
        ("for x in {'a', 'b'}: pass", "use sorted(...) or a list"),
        ("for x in set(args): pass", "use sorted(...) or a list"),
        ("names = frozenset(args); [x for x in names]", "use sorted(...) or a list"),
        ("list({'a'} | set(args))", "use sorted(...) or a list"),
        ("','.join({str(x) for x in args})", "use sorted(...) or a list"),
        ("await ctx.map(score, set(args))", "use sorted(...) or a list"),
        ("set(args).pop()", "use sorted(...) or a list"),
        ("await asyncio.gather(*{len(x) for x in args})", "use sorted(...) or a list"),
        ("global COUNT", "use local variables"),
        ("id(ctx)", "a key of your own or hashlib"),
        ("hash('x')", "a key of your own or hashlib"),
        ("score('x')", "use ctx.call_activity(score, ...)"),
        ("import time as t; t.time()", "t.time() (time.time)"),
        ("from uuid import uuid4 as u; u()", "u() (uuid.uuid4)"),
        ("from no_such_module_here import x; import requests; requests.get('x')", "in an activity"),
        ("clock = time.time; clock()", "clock() (time.time)"),
        ("[time.time() for _ in args]", "use ctx.current_utc_datetime"),
        ("later = lambda: time.time()", "use ctx.current_utc_datetime"),
        ("f'{now()}'", "use ctx.current_utc_datetime"),
        ("with open('x') as f: pass", "in an activity"),
        ("ctx.call_activity(score, uuid.uuid4().hex)", "use ctx.new_uuid()"),
    ],
)
def test_what_a_replay_does_not_repeat_is_warned_of(modules: Modules, line: str, words: str) -> None:
    """One warning, at the line, that says what to use instead."""
    (warning,) = modules.body(line)
    text = str(warning.message)
    assert words in text
    assert text.startswith(f"Orchestrator '{modules.names[-1]}.run' ")
    assert modules.line(warning) == line


@pytest.mark.parametrize(
    "line",
    [
        "ctx.random.random(); ctx.new_uuid(); ctx.current_utc_datetime",
        "watch.time(); watch.random(); watch.remote()",
        "args[0].time(); args[0].now(); args[0].open('x')",
        "time = ctx.get_input(); time.time()",
        "random = ctx.random; random.choice(args)",
        "print = ctx.logger.info; print('x')",
        "open = ctx.get_input(); open('x')",
        "for uuid in args: uuid.uuid4()",
        "[time.time() for time in args]",
        "later = lambda random: random.random()",
        "def stamp(): return 1\nstamp()",
        "from .somewhere import time; time.time()",
        "random.Random(5).random(); np.random.default_rng(7)",
        "time.strftime('%Y', time.gmtime(0))",
        "time.gmtime(0); dt.datetime(2024, 1, 1); dt.timedelta(days=1); uuid.uuid5(uuid.NAMESPACE_DNS, 'x')",
        "os.path.join('a', 'b'); Path('a').with_suffix('.b').name; ROOT / 'a'",
        "ctx.side_effect(lambda: time.time()); ctx.side_effect(uuid.uuid4); ctx.side_effect(now)",
        "def draw(): return random.random()\nctx.side_effect(draw)",
        "await asyncio.sleep(1); await asyncio.gather(*args); asyncio.Queue()",
        "for x in sorted({'a', 'b'}): pass",
        "'a' in {'a', 'b'}; len(set(args)); all(x for x in {'a'}); {x for x in {'a', 'b'}}",
        "for x in {1, 2, 3}: pass",
        "for x in set(range(3)): pass",
        "for task in {asyncio.create_task(one) for one in args}: task.cancel()",
        "tasks = {ctx.call_activity(score, 'x')}\nfor task in tasks: task.cancel()",
        "tasks = set()\nfor x in args: tasks.add(x)\nfor task in tasks: task.cancel()",
        "for x in {'a': 1}: pass",
        "hash(5)",
        "await ctx.call_activity(score, 'x'); await ctx.map(score, ['x'])",
        "clock = time.time",
        "raise subprocess.CalledProcessError(1, 'x')",
        "time = time.time\ntime()",
        "try: pass\nexcept subprocess.CalledProcessError: pass",
        "time.time()  # durable: ok",
        "random.random()  # seeded above.  # durable: ok, it is for a log line",
        "global COUNT  # durable: ok",
        "stamp()  # durable: ok",
    ],
)
def test_what_is_harmless_or_unknown_is_left_alone(modules: Modules, line: str) -> None:
    """A user's own names, seeded and recorded values, sets of futures, and lines that say so."""
    assert [str(warning.message) for warning in modules.body(line)] == []


def test_parameters_hide_modules_and_annotations_tell_types(modules: Modules) -> None:
    """`random` is whatever the caller gives; a parameter that is a Path is a Path."""
    assert modules.body("time.time(); random.random(); print('x')", "ctx, time, *, random, **print") == []
    (warning,) = modules.body("folder.exists()", "ctx, folder: Path")
    assert "pathlib.Path.exists" in str(warning.message)
    (warning,) = modules.body("for name in names: pass", "ctx, names: set[str]")
    assert "sorted" in str(warning.message)


def test_each_use_is_told_once_in_the_order_of_the_code(modules: Modules) -> None:
    """Several on a line, several lines, and the line of the name in a chain of calls."""
    found = modules.body(
        """
        a = (
            dt.datetime
            .now()
        )
        b = [time.time(), time.time(), uuid.uuid4()]
        """
    )
    assert [modules.line(warning) for warning in found] == [
        ".now()",
        *2 * ["b = [time.time(), time.time(), uuid.uuid4()]"],
    ]


def test_what_a_wrong_call_returned_is_no_second_mistake(modules: Modules) -> None:
    """One warning for the request, none for each line that reads its answer."""
    found = modules.body(
        """
        import requests
        answer = requests.get("http://x")
        answer.json()
        home = os.environ.get("HOME")
        home.strip()
        session = requests.Session()
        session.get("http://x")
        """
    )
    assert [modules.line(warning) for warning in found] == [
        'answer = requests.get("http://x")',
        'home = os.environ.get("HOME")',
        "session = requests.Session()",
    ]


def test_functions_of_the_module_that_are_called_are_looked_into(modules: Modules) -> None:
    """One level deep, with the helper's name and its own line; what they call in turn is left out."""
    (warning,) = modules.body("stamp()")
    assert "in stamp(), calls time.time()" in str(warning.message)
    assert modules.line(warning) == "return time.time()"
    assert modules.load(
        """
        def outer(): return stamp()
        @durable.orchestrator(name="{module}.run")
        async def run(ctx): return outer()
        """
    ) == []  # fmt: skip


def test_nested_functions_generators_and_closures_are_looked_through(modules: Modules) -> None:
    """Wherever in the orchestrator it stands, and however the orchestrator was made."""
    found = modules.load(
        """
        def make(clock):
            class Holder:
                @staticmethod
                @durable.orchestrator(name="{module}.run")
                def run(ctx, *, since=time.time()):
                    '''A text that is
            indented less.'''
                    def inner():
                        return clock()
                    got = yield ctx.call_activity(score, "\\\\d")
                    match got:
                        case {"at": time, **rest}:
                            return time.time()
                    return inner
            return Holder
        make(time.monotonic)
        """
    )
    assert [modules.line(warning) for warning in found] == ["return clock()"]


def test_a_wrapped_orchestrator_is_read_itself(modules: Modules) -> None:
    """Decorators that keep the function under `__wrapped__` do not hide it."""
    found = modules.load(
        """
        import functools
        def traced(function):
            @functools.wraps(function)
            async def wrapper(*args): return await function(*args)
            return wrapper
        @durable.orchestrator(name="{module}.run")
        @traced
        async def run(ctx): print("x")
        """
    )
    assert [modules.line(warning) for warning in found] == ['async def run(ctx): print("x")']


def test_the_check_can_be_turned_off(modules: Modules) -> None:
    """For one orchestrator, or for all that is loaded by a process that did not write it."""
    source = """
        @durable.orchestrator(name="{module}.run", check=False)
        async def run(ctx): print("x")
        """
    assert modules.load(source) == []
    with muted():
        assert modules.load(source.replace(", check=False", "")) == []


def test_processes_that_find_functions_by_reference_are_not_warned(modules: Modules) -> None:
    """Whoever wrote the orchestrator was warned; workers and other nodes would only repeat it."""
    assert len(modules.body("print('x')")) == 1
    name = modules.names[-1]
    function = modules.module.run
    reference, data = registry.reference_of(function), pickle.dumps(function)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeterminismWarning)
        sys.modules.pop(name)
        registry.resolve(FunctionReference.from_json(reference.to_json()), lambda digest: {})
        sys.modules.pop(name)
        assert pickle.loads(data) is sys.modules[name].run


def test_code_without_source_is_not_checked() -> None:
    """What was typed into an interpreter, or executed from a text, has no lines to point at."""
    space: dict[str, Any] = {"__name__": "typed_in", "durable": durable}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec("@durable.orchestrator(name='tests.typed_in')\nasync def run(ctx): print('x')", space)
        made: Any = durable.orchestrator(name="tests.lambda")(lambda ctx: (yield print("x")))
    assert made.is_generator


@pytest.mark.parametrize(
    "text", ["", "\n" * 400, "def other(): pass\n" * 400, "((((\n" * 400, "\x00\n" * 400, "'''\n" * 401], ids=named
)
def test_a_source_that_changed_under_the_check_is_no_error(modules: Modules, text: str) -> None:
    """Whatever the file holds by now: no exception, and no warning about code of another function."""
    modules.body("print('x')")
    function = modules.module.run.function
    modules.file.write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        durable.orchestrator(name="tests.changed")(function)


def test_the_check_of_an_orchestrator_takes_a_few_milliseconds(modules: Modules) -> None:
    """Forty lines with branches, calls and a nested function, in the processor's time; the best of several."""
    block = """
        for path in args:
            if await ctx.call_activity(score, path) > 3:
                results = await asyncio.gather(*[ctx.call_activity(score, str(x)) for x in range(5)])
                ctx.set_custom_status({"path": path, "sum": sum(results), "at": ctx.current_utc_datetime.isoformat()})
            else:
                try:
                    answer = await ctx.wait_for_external_event(f"Go {path}", bool, timeout=dt.timedelta(hours=3))
                except TimeoutError as error:
                    answer = str(error)
                ctx.logger.info("answer %s", answer)
    """
    assert modules.body(textwrap.dedent(block) * 4) == []
    function = modules.module.run.function
    taken = []
    for _ in range(10):
        before = time.process_time()
        durable.orchestrator(name="tests.timed")(function)
        taken.append(time.process_time() - before)
    assert min(taken) < 0.010
