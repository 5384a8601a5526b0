"""The test suite itself: every file of it can be imported beside the others."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "python_tests"
# collected only where Triton's interpreter is asked for, alone and in a process of their own: they may repeat a name
APART = TESTS / "gpu" / "interpreted"


def test_no_two_files_of_one_run_share_a_name():
    # folders of tests are no packages, so that a module is known by its file's name alone
    names = Counter(path.name for path in TESTS.rglob("*.py") if path.parent != APART and path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_every_file_is_collected_without_error():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(TESTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
