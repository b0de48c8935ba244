import random

from dpo_dist.training.sampler import GlobalBatchSampler

LENGTHS = [random.Random(5).randint(10, 900) for _ in range(50)]


def sampler(world_size: int = 1, rank: int = 0, micro: int = 2, **more) -> GlobalBatchSampler:
    settings = {"global_batch_size": 16, "seed": 3, "lengths": LENGTHS, **more}
    return GlobalBatchSampler(world_size=world_size, rank=rank, micro_batch_size=micro, **settings)


def steps(world_size: int, micro: int, epoch: int = 0) -> list[list[int]]:
    """The pairs of every optimizer step, of all ranks together."""
    accumulation = 16 // (world_size * micro)
    found: list[list[int]] = []
    for rank in range(world_size):
        own = sampler(world_size, rank, micro)
        own.set_epoch(epoch)
        batches = list(own)
        assert len(batches) == len(own) and all(len(batch) == micro for batch in batches)
        for number, batch in enumerate(batches):
            if rank == 0 and number % accumulation == 0:
                found.append([])
            found[number // accumulation] += batch
    return [sorted(step) for step in found]


def test_a_step_holds_the_same_pairs_for_every_split_of_the_batch() -> None:
    one = steps(1, 2)
    for world_size, micro in ((1, 1), (1, 4), (1, 16), (2, 2), (4, 1), (8, 2)):
        assert steps(world_size, micro) == one


def test_every_pair_comes_and_only_the_last_step_is_filled_up() -> None:
    order = [row for step in steps(1, 2) for row in step]
    assert set(order) == set(range(50)) and len(order) == 64
    assert sorted(row for step in steps(1, 2)[:3] for row in step) != list(range(48))
    assert len({row for step in steps(1, 2)[:3] for row in step}) == 48


def test_epochs_and_seeds_differ_and_repeat() -> None:
    assert steps(1, 2, epoch=0) != steps(1, 2, epoch=1)
    assert steps(1, 2, epoch=1) == steps(1, 2, epoch=1)
    assert list(sampler(seed=4)) != list(sampler(seed=3))


def test_ranks_carry_about_the_same_number_of_tokens() -> None:
    loads = [
        [sum(LENGTHS[row] for row in batch) for batch in sampler(4, rank, 4)] for rank in range(4)
    ]
    for together in zip(*loads, strict=True):  # the micro-batches that wait for each other
        assert max(together) < 1.2 * sum(together) / 4


def test_fewer_pairs_than_a_batch_are_repeated() -> None:
    (batch, *rest) = sampler(lengths=[5, 6, 7], micro=16)
    assert not rest and len(batch) == 16 and set(batch) == {0, 1, 2}
