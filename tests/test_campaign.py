"""The whole campaign of misfortune: `pytest -m campaign`, or `make campaign`. Not in CI: it takes hours."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.campaign
@pytest.mark.timeout(6 * 3600)
def test_all_recover_and_all_come_to_the_same_result() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign"], cwd=ROOT, stdout=subprocess.PIPE, check=False
    )
    found = json.loads(done.stdout)
    assert found["all"]["tried"] == found["all"]["recovered"] == found["all"]["equal"] >= 252
    assert done.returncode == 0
