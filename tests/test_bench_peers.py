"""bench_peers: what it may be asked, how many samples a peer needs for an equal share, and what peers may install.

The peers themselves run in the bench alone, each in an environment of its own.
"""

import argparse
import re
from collections import Counter

import pytest

from tests.bench.bench_peers import (
    BUDGET,
    HERE,
    NAMES,
    arguments,
    fewest_samples,
    make_job,
    make_problems,
    peers_of,
    solved_by_samples,
)
from tests.conftest import ROOT


def packages(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, flags=re.MULTILINE))


def test_all_peers_are_asked_unless_some_are_named():
    assert arguments([]).peers == list(NAMES)
    assert arguments(["--peers", "ray", "--problems", "32"]).peers == ["ray"]
    assert peers_of("ray,distilabel,ray") == ["ray", "distilabel"]
    with pytest.raises(argparse.ArgumentTypeError, match="curator: there are distilabel, ray"):
        peers_of("ray,curator")


def test_the_share_by_samples_is_the_mean_over_all_choices_of_them():
    shares = solved_by_samples([8, 1, 0, 4])
    assert shares[0] == pytest.approx((1 + 1 / 8 + 0 + 4 / 8) / 4)
    assert shares[1] == pytest.approx((1 + 2 / 8 + 0 + (1 - 6 / 28)) / 4)
    assert shares[BUDGET - 1] == 0.75
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("wanted", "samples"),
    [
        pytest.param(0.4, 1, id="the first is enough"),
        pytest.param(0.5, 2, id="exactly reached"),
        pytest.param(0.51, 3, id="between two"),
        pytest.param(0.9, 3, id="never reached: all that were taken"),
    ],
)
def test_the_fewest_samples_that_solve_a_share(wanted: float, samples: int):
    assert fewest_samples([0.4, 0.5, 0.6], wanted) == samples


def test_every_family_of_the_demo_has_an_equal_part_of_the_problems():
    problems = make_problems(12)
    families = Counter(problem.metadata["family"] for problem in problems)
    assert sorted(families.values()) == [2, 2, 2, 3, 3]
    assert len({problem.id for problem in problems}) == 12
    assert (make_job().samples.keep, make_job().samples.max) == (1, BUDGET)


PEERS = {"distilabel": "ask_distilabel.py", "ray": "ask_ray.py", "serve": "serve_model.py"}


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_environment_adds_to_the_lock_and_replaces_nothing_of_it(name: str):
    own = packages((HERE / f"{name}.lock").read_text())
    ours = packages((ROOT / "requirements" / "cpu.lock").read_text())
    assert {"serve": "ray"}.get(name, name) in own
    assert not own.keys() & ours.keys(), "the peer would be measured with another package than retort"
    assert (HERE / PEERS[name]).is_file()
