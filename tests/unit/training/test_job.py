import pytest

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training.job import accumulation_steps


def test_the_global_batch_is_what_stays_fixed() -> None:
    settings = Train(global_batch_size=16, micro_batch_size=2)
    assert [accumulation_steps(settings, n) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(ConfigError, match="16 is not a multiple of micro_batch_size 2 x 3"):
        accumulation_steps(settings, 3)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "advice"),
    [
        (4, 4, 8, "micro_batch_size 1 with 4 processes, or global_batch_size 32"),
        (16, 8, 4, "micro_batch_size 4, or global_batch_size 32"),
        (6, 2, 4, "micro_batch_size 2 with 3 processes, or global_batch_size 8"),
    ],
)
def test_what_would_do_is_said(batch: int, micro: int, processes: int, advice: str) -> None:
    settings = Train(global_batch_size=batch, micro_batch_size=micro)
    with pytest.raises(ConfigError, match=advice):
        accumulation_steps(settings, processes)
