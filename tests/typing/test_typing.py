"""Type checkers read the public API: `public_api.py` without a complaint, `wrong_uses.py` with one for each wrong use.

The expected complaints are comments of `wrong_uses.py` that silence them; both checkers report those that silence
nothing. So no output says that the complaints are, line for line and rule for rule, those expected.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
FILES = ("public_api.py", "wrong_uses.py")


def pyright(*arguments: str) -> list[str]:
    """What pyright reports, a line each.

    It is the one of its wheel, on the node of the wheel beside it. Variables that would have it look for another
    version, and load that, are left out; with JSON as its output it does not look for a newer one.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYRIGHT_PYTHON_")}
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", *arguments]
    completed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert completed.stdout.startswith("{"), completed.stdout + completed.stderr
    report = json.loads(completed.stdout)
    assert report["summary"]["filesAnalyzed"] > 0
    return [
        f"{Path(found['file']).name}:{found['range']['start']['line'] + 1}: {found.get('rule')}: {found['message']}"
        for found in report["generalDiagnostics"]
    ]


def mypy(*arguments: str) -> list[str]:
    """What mypy reports, a line each, under the settings of this project."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *arguments]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode in (0, 1), completed.stdout + completed.stderr
    return completed.stdout.splitlines()


@pytest.mark.timeout(600)
def test_mypy_knows_the_types_of_right_uses_and_refuses_wrong_ones() -> None:
    """Strictly, as mypy understands it."""
    assert mypy(*(str(FOLDER / name) for name in FILES)) == []


@pytest.mark.timeout(600)
def test_pyright_knows_the_types_of_right_uses_and_refuses_wrong_ones() -> None:
    """Strictly, as pyright understands it."""
    assert pyright("--project", str(FOLDER)) == []


def test_each_wrong_use_is_refused_by_both_checkers() -> None:
    """No wrong use is known to one checker alone."""
    lines = (FOLDER / "wrong_uses.py").read_text(encoding="utf-8").splitlines()
    refused_by_mypy = [line for line in lines if "# type: ignore[" in line]
    assert refused_by_mypy == [line for line in lines if "# pyright: ignore[" in line]
    assert len(refused_by_mypy) > 50
