"""Who sees what: exact shards in evaluation, equal ones in training, replays in place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampler import Shards

sizes = st.integers(0, 60)
worlds = st.integers(1, 5)


@given(sizes, worlds)
def test_evaluation_shards_hold_each_image_exactly_once(count, world) -> None:
    shards = [Shards(range(count), 4, shuffle=False, rank=rank, world_size=world) for rank in range(world)]
    assert sorted(position for shard in shards for position in shard) == list(range(count))
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]


@given(sizes, worlds, st.integers(0, 3), st.integers(0, 3))
def test_training_shards_are_equally_long_and_share_nothing(count, world, seed, epoch) -> None:
    seen = []
    for rank in range(world):
        shard = Shards(range(count), 4, shuffle=True, rank=rank, world_size=world, seed=seed)
        shard.set_epoch(epoch)
        positions = list(shard)
        assert len(positions) == len(shard) == count // world
        seen += positions
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(count))


@given(st.integers(1, 60), st.integers(1, 10), st.integers(1, 4), worlds)
def test_replays_repeat_each_batch_in_a_row(count, batch_size, replays, world) -> None:
    def shard(times: int) -> Shards:
        return Shards(range(count), batch_size, shuffle=True, world_size=world, seed=1, replays=times)

    once = list(shard(1))
    if replays > 1 and len(once) < batch_size:
        with pytest.raises(ValueError, match="at least one full batch"):
            shard(replays)
        return
    batches = [once[start : start + batch_size] for start in range(0, len(once), batch_size)]
    if replays > 1:
        batches = [batch for batch in batches if len(batch) == batch_size]
    expected = [position for batch in batches for _ in range(replays) for position in batch]
    assert list(shard(replays)) == expected
    assert len(shard(replays)) == len(expected)


def order(seed: int, epoch: int) -> list[int]:
    shard = Shards(range(50), 8, shuffle=True, seed=seed)
    shard.set_epoch(epoch)
    return list(shard)


def test_order_follows_from_seed_and_epoch_and_the_two_do_not_add_up() -> None:
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
