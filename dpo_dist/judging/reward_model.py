"""A reward model as a judge: a sequence classifier with one label scores each answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpo_dist.config import RewardModelConfig
from dpo_dist.data.chat import conversation_ids, load_tokenizer
from dpo_dist.data.models import check_model, model_identity
from dpo_dist.errors import ConfigError, JudgeFailed, ModelError
from dpo_dist.judging.judge import Comparison, Judge, higher, rules_digest
from dpo_dist.storage.records import Ballot, Message
from dpo_dist.system.console import counted

if TYPE_CHECKING:
    from torch import Tensor

BATCHES_AT_A_TIME = 16  # sorted by length together, and written to disk together

Text = tuple[tuple[Message, ...], str]  # a conversation and its answer


class RewardModelJudge(Judge):
    """Prefers the answer with the higher score; scores within `tie_margin` are a tie. The weights
    are loaded at the first comparison, since an engine may use the memory until then."""

    def __init__(self, config: RewardModelConfig) -> None:
        check_model(config.model)
        self.config = config
        self._tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
        _check_configuration(config)
        self._model: Any = None
        self._own_pad: int | None = None
        template = self._tokenizer.chat_template
        settings = [template, config.max_length, config.dtype, config.tie_margin]
        digest = rules_digest([model_identity(config.model), *settings])
        self.identity = f"reward_model:{config.model}:{digest}"

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        """Score in groups; both orders and repeats of a comparison share their scores."""
        remaining = iter(comparisons)
        scores: dict[Text, float | None] = {}
        size = BATCHES_AT_A_TIME * self.config.batch_size
        while group := list(itertools.islice(remaining, size)):
            texts = {text: None for comparison in group for text in _texts(comparison)}
            scores |= self._score_all([text for text in texts if text not in scores])
            yield [self._decide(comparison, scores) for comparison in group]

    def _decide(self, comparison: Comparison, scores: Mapping[Text, float | None]) -> Ballot:
        first, second = (scores[text] for text in _texts(comparison))
        if first is None or second is None:
            return self.ballot(comparison, "exceeds_context")
        outcome = higher(first, second, self.config.tie_margin)
        return self.ballot(comparison, outcome, reasoning=f"{first:.4f} against {second:.4f}")

    def _score_all(self, texts: Sequence[Text]) -> dict[Text, float | None]:
        """The score of each text, or None if it exceeds `max_length`."""
        ids = {
            (messages, answer): conversation_ids(
                self._tokenizer,
                [m.model_copy(update={"content": _readable(m.content)}) for m in messages],
                _readable(answer),
            )
            for messages, answer in texts
        }
        scores: dict[Text, float | None] = dict.fromkeys(texts)
        fitting = [text for text in texts if len(ids[text]) <= self.config.max_length]
        fitting.sort(key=lambda text: len(ids[text]))
        for start in range(0, len(fitting), self.config.batch_size):
            batch = fitting[start : start + self.config.batch_size]
            scores.update(zip(batch, self._score([ids[text] for text in batch]), strict=True))
        return scores

    def _score(self, batch: Sequence[list[int]]) -> list[float]:
        """The scores of tokenized conversations, which are padded on the right. Raises
        `JudgeFailed` for a score that is not finite."""
        import torch

        if self._model is None:
            self._model = _load(self.config)
            self._own_pad = self._model.config.get_text_config().pad_token_id
        width = max(map(len, batch))
        pad = self._pad_id(batch)
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        device = self._model.device
        with torch.inference_mode():
            logits: Tensor = self._model(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            ).logits  # (B, 1)
        scores: list[float] = logits[:, 0].float().tolist()
        if not all(map(math.isfinite, scores)):
            raise JudgeFailed(
                f"{self.config.model}: a score is not finite. Verdicts so far are kept; try "
                "`dtype: float32`."
            )
        return scores

    def _pad_id(self, batch: Sequence[list[int]]) -> int:
        """The model's own pad token; without one, a token that no text of the batch contains. The
        model scores the last token that is not padding."""
        if self._own_pad is not None:
            return self._own_pad
        used = set(itertools.chain.from_iterable(batch))
        text_config = self._model.config.get_text_config()
        pad = next(n for n in range(text_config.vocab_size) if n not in used)
        text_config.pad_token_id = pad  # tells the model where each text ends
        return pad


def _texts(comparison: Comparison) -> tuple[Text, Text]:
    messages = comparison.prompt.messages
    return (messages, comparison.first_text), (messages, comparison.second_text)


def _readable(text: str) -> str:
    """The text without lone surrogates, which no tokenizer accepts."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _check_configuration(config: RewardModelConfig) -> None:
    """Check the number of labels and the context length before the weights are loaded."""
    from transformers import AutoConfig

    try:
        model = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{config.model}: cannot load the configuration: {error}") from None
    if model.num_labels != 1:
        raise ModelError(
            f"{config.model}: {counted(model.num_labels, 'label')}; a reward model has one "
            "(num_labels: 1)"
        )
    positions = getattr(model.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.max_length > positions:
        raise ConfigError(
            f"max_length {config.max_length}: {config.model} has {positions} positions. Lower "
            "max_length"
        )


def _load(config: RewardModelConfig) -> Any:
    """The classifier. Raises `ModelError` if its score head was not saved."""
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            config.model,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{config.model}: cannot load the reward model: {error}") from None
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{config.model}: the weights {', '.join(missing[:3])} are missing; a model without a "
            "trained score head is not a reward model"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
