"""The code of docs/guide.md is one module that works: its own tests pass, and its orchestrators give what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"

MORE_TESTS = """

def result_of(orchestrator, *args):
    with Environment() as env:
        return env.start(orchestrator, *args).result()


def test_chaining():
    assert result_of(place, "tea") == "reservation of tea"


def test_many_at_once():
    assert result_of(quote, ["a", "", "c"]) == 9.5 * 4


def test_calls_and_work_without_end():
    with Environment() as env:
        book = env.start(ledger, 998, instance_id="ledger")
        assert env.start(season, ["a", "b"]).result() == ["escalated", "escalated"]
        assert book.result() == 1000


def test_heartbeats():
    assert result_of(archive, 3) == 3


def test_versions():
    assert result_of(deliver, "tea") == "2"
"""


def test_the_code_of_the_guide_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    module = tmp_path / "test_of_the_guide.py"
    module.write_text("\n\n".join(blocks) + MORE_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(module)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
