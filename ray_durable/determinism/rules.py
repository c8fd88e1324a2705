"""What an orchestrator must not use, and what to use instead.

Rules are data, by the dotted public name of what is used: `random.*` stands for every function of a module, a package
of `_PACKAGES` for everything below it. In a name, `()` stands after what was called: `pathlib.Path().exists` is the
method of an instance.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

__all__ = [
    "CALLED_ACTIVITY",
    "GLOBAL_STATE",
    "SET_ORDER",
    "advice_for_call",
    "advice_for_method",
    "advice_for_read",
    "has_rules",
    "public_names",
]

_TIME = "a replay sees another time, use ctx.current_utc_datetime"
_CLOCK = "a replay measures something else, use ctx.current_utc_datetime or asyncio.get_running_loop().time()"
_SLEEP = "it blocks the process and is not durable, use await asyncio.sleep(seconds)"
_RANDOM = "a replay draws other numbers, use ctx.random"
_SECRET = "a replay draws another one, make secrets in an activity"
_UUID = "a replay makes another one, use ctx.new_uuid()"
_ENVIRONMENT = "another process has another environment, pass the value as an input or read it in an activity"
_FILES = "a replay may find other files, read and write them in an activity"
_NETWORK = "a replay would do it again, and may be told something else; do it in an activity"
_PROCESSES = "a replay would start it again, start processes in an activity"
_THREADS = "threads and processes cannot be replayed, call activities: they run side by side"
_RAY = "what Ray runs is not recorded, make the function an activity and use ctx.call_activity or ctx.map"
_PRINT = "it prints again in every replay, use ctx.logger.info(...)"
_LOG = "it is written again in every replay, use ctx.logger"
_INPUT = "it blocks the process, use await ctx.wait_for_external_event(name)"
_LOOP = "the orchestrator has its own event loop, await the coroutine instead"
_EXECUTOR = "threads cannot be replayed, use await ctx.call_activity(...)"
_IDENTITY = "it differs from process to process, use a key of your own or hashlib"

GLOBAL_STATE = "a replay finds what others left in it, use local variables, arguments and results"
SET_ORDER = "the order of a set differs from process to process, use sorted(...) or a list"
CALLED_ACTIVITY = "it would run here and unrecorded, use ctx.call_activity({name}, ...)"

_CALLS: dict[str, str] = {
    **dict.fromkeys(("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today"), _TIME),
    **dict.fromkeys(("datetime.date.today", "time.time", "time.time_ns"), _TIME),
    **dict.fromkeys(("time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns"), _CLOCK),
    **dict.fromkeys(("time.process_time", "time.process_time_ns", "time.thread_time"), _CLOCK),
    "time.sleep": _SLEEP,
    "random.*": _RANDOM,
    "numpy.random.*": _RANDOM,
    "secrets.*": _SECRET,
    "os.urandom": _SECRET,
    **dict.fromkeys(("uuid.uuid1", "uuid.uuid4", "uuid.uuid6", "uuid.uuid7"), _UUID),
    **dict.fromkeys(("os.getenv", "os.getpid", "os.getcwd", "os.cpu_count", "os.uname", "os.getlogin"), _ENVIRONMENT),
    **dict.fromkeys(("socket.gethostname", "platform.*", "getpass.getuser"), _ENVIRONMENT),
    **dict.fromkeys(("builtins.open", "os.open", "os.listdir", "os.scandir", "os.walk", "os.stat"), _FILES),
    **dict.fromkeys(("os.remove", "os.unlink", "os.rename", "os.replace", "os.mkdir", "os.makedirs"), _FILES),
    **dict.fromkeys(
        ("os.path.exists", "os.path.isfile", "os.path.isdir", "os.path.getsize", "os.path.getmtime"), _FILES
    ),
    **dict.fromkeys(("pathlib.Path.cwd", "pathlib.Path.home"), _ENVIRONMENT),
    **dict.fromkeys(("shutil.*", "tempfile.*", "glob.glob", "glob.iglob"), _FILES),
    **dict.fromkeys(("os.system", "os.popen", "os.fork"), _PROCESSES),
    **dict.fromkeys(("sqlite3.connect", "fsspec.open", "fsspec.filesystem"), _FILES),
    **dict.fromkeys(("pyarrow.parquet.read_table", "pyarrow.parquet.write_table", "pyarrow.csv.read_csv"), _FILES),
    **dict.fromkeys(("psycopg.connect", "psycopg2.connect", "pymongo.MongoClient", "redis.Redis"), _NETWORK),
    "sqlalchemy.create_engine": _NETWORK,
    **dict.fromkeys(("numpy.load", "numpy.loadtxt", "numpy.genfromtxt", "numpy.save", "numpy.savez"), _FILES),
    **{
        f"pandas.read_{kind}": _FILES
        for kind in ("csv", "excel", "feather", "hdf", "json", "orc", "parquet", "pickle", "sql", "table", "xml")
    },
    "builtins.print": _PRINT,
    "builtins.input": _INPUT,
    "builtins.id": _IDENTITY,
    "builtins.hash": _IDENTITY,
    **dict.fromkeys(("asyncio.run", "asyncio.new_event_loop", "asyncio.Runner"), _LOOP),
    "asyncio.to_thread": _EXECUTOR,
    "asyncio.run_coroutine_threadsafe": _THREADS,
    **dict.fromkeys(("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"), _PROCESSES),
    **dict.fromkeys(("asyncio.open_connection", "asyncio.start_server", "asyncio.open_unix_connection"), _NETWORK),
    **{
        f"logging{owner}.{level}": _LOG
        for owner in ("", ".Logger()", ".getLogger()")
        for level in ("debug", "info", "warning", "error", "exception", "critical", "log")
    },
}

# Calls that are deterministic when they are told what to work on: with so many arguments.
_CALLS_WITH_FEWER_ARGUMENTS: dict[str, tuple[int, str]] = {
    **dict.fromkeys(("time.localtime", "time.gmtime", "time.ctime", "time.asctime"), (1, _TIME)),
    "time.strftime": (2, _TIME),
    **dict.fromkeys(("random.Random", "numpy.random.default_rng", "numpy.random.RandomState"), (1, _RANDOM)),
}

# Deterministic, although a rule for the whole module says otherwise.
_HARMLESS = frozenset({"numpy.random.Generator", "numpy.random.SeedSequence", "numpy.random.PCG64"})

_READS: dict[str, str] = {"os.environ": _ENVIRONMENT, "sys.argv": _ENVIRONMENT, "sys.stdin": _INPUT}

_PACKAGES: dict[str, str] = {
    **dict.fromkeys(("requests", "httpx", "aiohttp", "urllib3", "urllib.request", "http.client", "boto3"), _NETWORK),
    **dict.fromkeys(("socket", "smtplib", "ftplib"), _NETWORK),
    "subprocess": _PROCESSES,
    **dict.fromkeys(("threading", "multiprocessing", "concurrent.futures"), _THREADS),
    "ray": _RAY,
}

_METHODS: dict[str, str] = {"run_in_executor": _EXECUTOR, "remote": _RAY}

_PATH = "pathlib.Path()"
_PATH_METHODS = frozenset(
    (
        *("open", "read_text", "read_bytes", "write_text", "write_bytes", "exists", "is_file", "is_dir", "stat"),
        *("iterdir", "glob", "rglob", "walk", "mkdir", "touch", "unlink", "rename", "replace", "rmdir"),
    )
)

# Classes whose subclasses and instances are recognised, besides those of the packages.
_CLASSES = ("datetime.datetime", "datetime.date", "pathlib.Path", "logging.Logger", "random.Random")


def advice_for_call(path: str, *, argument_count: int) -> str | None:
    """Why the call of what is named `path` is a mistake and what to do instead; None if it is none."""
    if path in _CALLS_WITH_FEWER_ARGUMENTS:
        least, advice = _CALLS_WITH_FEWER_ARGUMENTS[path]
        return None if argument_count >= least else advice
    if path in _HARMLESS:
        return None
    found = _CALLS.get(path)
    if found is None:
        parent, _, method = path.rpartition(".")
        found = _CALLS.get(f"{parent}.*")
        if found is None and method in _PATH_METHODS and parent.startswith(_PATH):
            found = _FILES
    return found or _advice_for_package(path)


def advice_for_read(path: str) -> str | None:
    """The same for whatever is done with what is named `path`."""
    if "()" in path:
        return None
    return next((text for name, text in _READS.items() if path == name or path.startswith(f"{name}.")), None)


def advice_for_method(name: str) -> str | None:
    """The same for calls of a method with a telling name on an object of unknown type."""
    return _METHODS.get(name)


def public_names() -> dict[int, str]:
    """The public names of objects that rules are about and whose own attributes do not tell it, by the object's id.

    Only of modules that are imported already; importing one is not the checker's to do.
    """
    return {id(value): name for name, value in _named_objects() if callable(value) or name in _READS}


def has_rules(path: str) -> bool:
    """Whether there are rules for the class named `path`, its subclasses and instances, or for the package it is in."""
    return path in _CLASSES or _advice_for_package(path) is not None


def _advice_for_package(path: str) -> str | None:
    parts = path.removesuffix("()").split(".")
    for length in (1, 2):
        found = _PACKAGES.get(".".join(parts[:length]))
        if found is not None and len(parts) > length:
            return found
    return None


def _named_objects() -> Iterator[tuple[str, object]]:
    for name in (*_CALLS, *_CALLS_WITH_FEWER_ARGUMENTS, *_READS, *_CLASSES):
        module_name, _, attribute = name.rpartition(".")
        module = sys.modules.get(module_name)
        if module is None:
            continue
        members = vars(module)
        if attribute == "*":
            yield from ((f"{module_name}.{key}", value) for key, value in members.items() if not key.startswith("_"))
        elif attribute in members:
            yield name, members[attribute]
