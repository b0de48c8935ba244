import pytest

from dpo_dist.config import Train
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError

RUN = {"model": {"base": "m"}, "preferences": {"source": "path", "path": "p.jsonl"}}


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        ({"beta": 5}, r"train: beta 5 saturates `sigmoid`.*`sigmoid_norm`"),
        ({"loss": "hinge", "beta": 2}, "beta 2 saturates `hinge`"),
        ({"loss": "sft"}, "`sft` alone is not a preference loss"),
        ({"label_smoothing": 0.1}, r"label_smoothing 0\.1 is not used by any of \['sigmoid'\]"),
        ({"loss": "robust"}, "`robust` needs label_smoothing > 0"),
        ({"loss": "exo_pair"}, "`exo_pair` needs label_smoothing > 0"),
        ({"loss": "apo_zero", "f_divergence": "js_divergence"}, "not apply to `apo_zero`"),
        ({"loss": "aot", "wpo": True}, "`aot` sorts the batch"),
        ({"loss": "aot", "micro_batch_size": 1}, "`aot` compares the pairs of a micro-batch"),
        ({"loss": "cdpo"}, r"train\.loss.*: .*'sigmoid'"),
        ({"loss": {"sigmoid": 0}}, r"train\.loss\.sigmoid: .*greater than 0"),
        ({"loss": {}}, r"train\.loss: .*at least 1"),
    ],
)
def test_combinations_that_mean_nothing_are_refused_with_the_reason(
    write_run, train: dict, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(write_run(**RUN, train=train))


def test_a_mixture_and_a_length_normalised_loss_are_accepted(write_run) -> None:
    config = load_config(write_run(**RUN, train={"loss": {"sigmoid": 1, "sft": 0.2}}))
    assert config.train is not None and config.train.loss == {"sigmoid": 1.0, "sft": 0.2}
    assert Train(loss="sigmoid_norm", beta=5).beta == 5
    assert load_config(write_run(**RUN), ["train.loss=ipo"]).train == Train(loss="ipo")
