"""Exact agreement with the published suite: recorded transitions here, live ones when slow."""

import pytest
from oracle import RECORDED, differences, load, trajectories
from peers import PEERS

BY_ID = {peer.id: peer for peer in PEERS}


@pytest.mark.parametrize("id", BY_ID)
def test_recorded_transitions_of_the_published_suite_are_reproduced(id):
    assert differences(BY_ID[id], load(RECORDED / f"{id}.npz")) == []


@pytest.mark.slow
@pytest.mark.parametrize("id", BY_ID)
def test_a_hundred_thousand_live_transitions_agree(id):
    pytest.importorskip("jumanji")
    fewer = id in ("FlatPack-v0", "BinPack-v2", "MMST-v0")
    lanes, steps = (64, 160) if fewer else (256, 400)
    for seed, chunk in enumerate(range(0, steps, 80)):
        records = trajectories(BY_ID[id], lanes, min(80, steps - chunk), seed=1000 + seed)
        assert differences(BY_ID[id], records) == []
