"""The section `judge`: judges and canaries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dpo_dist.config.base import RUNTIME, FunctionPath, RecipePath, Resource, Section
from dpo_dist.config.metrics import MetricConfig, why_no_judge
from dpo_dist.system.console import ANTHROPIC_KEY, OPENAI_KEY
from dpo_dist.system.functions import function_file

Transport = Literal["online", "batch"]


class JudgeResource(Resource):
    """What the section of a judge declares. `name` is the start of the judge's identity,
    `requests_at_once` the number of concurrent requests, and `sent` the transport of a judge that
    also accepts batches."""

    type: str

    @property
    def name(self) -> str:
        return self.type

    @property
    def requests_at_once(self) -> int:
        return 1

    @property
    def sent(self) -> Transport | None:
        return None


class BilledJudge(JudgeResource):
    """A judge whose requests may cost money: a price per request, or the price of a model's tokens
    in a price table."""

    max_usd: Annotated[PositiveFloat | None, RUNTIME] = None
    """Spending limit in USD: no request is sent that could exceed it; null: no limit."""

    @property
    def usd_per_request(self) -> float | None:
        """The price that the section sets; None: the price table applies."""
        return None

    @property
    def price_table(self) -> Path | None:
        """The price table; None: that of the package."""
        return None

    @property
    def priced_as(self) -> str:
        """The model's name in the price table."""
        return self.name.partition(":")[2]


class LanguageModelConfig(BilledJudge):
    """The common keys of the judges that are language models behind an API."""

    model: str
    """The model's id in the API."""
    rubric: RecipePath
    """Markdown file that says what makes an answer better."""
    prices: Annotated[RecipePath | None, RUNTIME] = None
    """TOML file with prices; replaces judging/prices.toml of the package."""
    max_tokens: PositiveInt = 4096
    """Maximum length of the judge's answer in tokens, including its reasoning."""
    concurrency: Annotated[PositiveInt, RUNTIME] = 8
    """Concurrent requests."""
    max_attempts: Annotated[PositiveInt, RUNTIME] = 6
    """Maximum number of attempts per request."""
    max_hours: Annotated[PositiveFloat | None, RUNTIME] = None
    """Stop sending requests after this many hours; the same command resumes. null: no limit."""

    @property
    def paid(self) -> bool:
        return True

    @property
    def name(self) -> str:
        return f"{self.type}:{self.model}"

    @property
    def files(self) -> Mapping[str, Path]:
        return {self.rubric.name: self.rubric}

    @property
    def price_table(self) -> Path | None:
        return self.prices

    @property
    def requests_at_once(self) -> int:
        return self.concurrency


class ClaudeConfig(LanguageModelConfig):
    """Claude, at Anthropic (the API key is read from ANTHROPIC_API_KEY), on Amazon Bedrock (AWS's
    own credentials) or on Google Vertex AI (application default credentials)."""

    type: Literal["claude"]
    provider: Literal["anthropic", "bedrock", "vertex"] = "anthropic"
    """Whose API is asked; `model` is the id at this provider. bedrock and vertex need the extra of
    this name, and have no batches here."""
    region: Annotated[str | None, RUNTIME] = Field(None, min_length=1)
    """Region of bedrock or vertex; null: AWS_REGION or the AWS profile's; CLOUD_ML_REGION."""
    project: Annotated[str | None, RUNTIME] = Field(None, min_length=1)
    """Google Cloud project of vertex; null: that of the credentials."""
    transport: Annotated[Transport, RUNTIME] = "online"
    """online: Messages API. batch: Message Batches API, at half the price, within a day."""
    base_url: str | None = None
    """Endpoint; null: the provider's own."""

    @property
    def noun(self) -> str:
        return "the Claude judge"

    @property
    def sent(self) -> Transport | None:
        """None: the provider has no batches."""
        return self.transport if self.provider == "anthropic" else None

    @property
    def key_variables(self) -> Mapping[str, bool]:
        """Those of Anthropic; other providers look for credentials in many places."""
        return {ANTHROPIC_KEY: True} if self.provider == "anthropic" else {}

    @property
    def priced_as(self) -> str:
        return self.model if self.provider == "anthropic" else f"{self.provider}/{self.model}"

    @model_validator(mode="after")
    def _provider_has_it(self) -> ClaudeConfig:
        if self.provider != "anthropic" and self.transport == "batch":
            raise ValueError(
                f"transport: batch needs provider: anthropic; the SDK sends no message batches to "
                f"{self.provider}. Use `transport: online`"
            )
        if self.region is not None and self.provider == "anthropic":
            raise ValueError("`region` needs provider: bedrock or vertex")
        if self.project is not None and self.provider != "vertex":
            raise ValueError("`project` needs provider: vertex")
        return self


class OpenAiConfig(LanguageModelConfig):
    """Any server with OpenAI's chat completions API and structured output, such as `vllm serve`."""

    type: Literal["openai_compatible"]
    base_url: str
    """Endpoint; it usually ends with /v1."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the judge."""
    api_key_variable: str = OPENAI_KEY
    """Environment variable with the API key; your own server may need none."""

    @property
    def noun(self) -> str:
        return f"the judge at {self.base_url}"

    @property
    def key_variables(self) -> Mapping[str, bool]:
        return {self.api_key_variable: False}


class FunctionJudgeConfig(BilledJudge):
    """Your own function in a file next to the run file or in the working directory. It takes
    (prompt: Prompt, first: str, second: str) and returns "first", "second" or "tie"; it may be
    async."""

    type: Literal["function"]
    path: FunctionPath
    """A file or module with its function, such as my_judge.py:prefer or my_judge:prefer."""
    batch_size: Annotated[PositiveInt | None, RUNTIME] = None
    """The function takes lists of up to this many prompts, first and second answers, and returns
    the list of verdicts; null: one comparison per call."""
    concurrency: Annotated[PositiveInt | None, RUNTIME] = None
    """Concurrent calls of an async function; null: 8."""
    price: Annotated[PositiveFloat | None, RUNTIME] = None
    """USD per comparison; with a price, the cost needs approval, is counted, and can be limited."""

    @property
    def paid(self) -> bool:
        return self.price is not None

    @property
    def name(self) -> str:
        return f"{self.type}:{self.path.name}"

    @property
    def files(self) -> Mapping[str, Path]:
        return {self.path.name: function_file(self.path)}

    @property
    def requests_at_once(self) -> int:
        return self.concurrency or 1

    @property
    def usd_per_request(self) -> float | None:
        return self.price

    @model_validator(mode="after")
    def _limit_needs_price(self) -> FunctionJudgeConfig:
        if self.max_usd is not None and self.price is None:
            raise ValueError("`max_usd` needs `price`, the cost of a comparison")
        return self


class MetricJudgeConfig(JudgeResource):
    """Prefers the candidate with the higher weighted sum of metrics; equal sums are a tie. Metrics
    with `better: lower` are subtracted."""

    type: Literal["metric"]
    metrics: tuple[MetricConfig, ...] = Field(min_length=1)
    """The metrics, as in `evaluate.metrics`."""
    weights: tuple[PositiveFloat, ...] = ()
    """A weight for each metric; []: all weights are 1."""

    @property
    def files(self) -> Mapping[str, Path]:
        return {name: path for metric in self.metrics for name, path in metric.files.items()}

    @model_validator(mode="after")
    def _check_metrics(self) -> MetricJudgeConfig:
        if self.weights and len(self.weights) != len(self.metrics):
            raise ValueError(f"{len(self.weights)} weights for {len(self.metrics)} metrics")
        for metric in self.metrics:
            if reason := why_no_judge(metric):
                raise ValueError(f"the metric {metric.type} {reason}")
        return self


class RewardModelConfig(JudgeResource):
    """A sequence classifier with one label, in the same process. It scores a conversation with its
    answer."""

    needs_gpu: ClassVar[bool] = True

    type: Literal["reward_model"]
    model: str
    """A path or Hub id."""
    batch_size: Annotated[PositiveInt, RUNTIME] = 16
    """Answers per batch."""
    max_length: PositiveInt = 2048
    """Maximum length of a conversation with its answer, in tokens; longer ones are dropped, never
    truncated."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the weights."""
    tie_margin: float = Field(0.0, ge=0)
    """Two scores whose difference is at most this are a tie."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    @property
    def name(self) -> str:
        return f"{self.type}:{self.model}"

    @property
    def model_path(self) -> str | None:
        return self.model


class HumanConfig(JudgeResource):
    """People who fill in a sheet."""

    type: Literal["human"]
    sheet: RecipePath
    """CSV file that is written for them and read back."""


ScorerConfig: TypeAlias = Annotated[ClaudeConfig | OpenAiConfig, Field(discriminator="type")]
JudgeConfig: TypeAlias = Annotated[
    MetricJudgeConfig
    | ClaudeConfig
    | OpenAiConfig
    | RewardModelConfig
    | HumanConfig
    | FunctionJudgeConfig,
    Field(discriminator="type"),
]

BALANCE_OF_TWO = "judge.balance: temperature balances two slots, but there are {}; remove it"

CanaryKind = Literal["identical", "empty", "padded", "injection", "other_prompt", "own"]


class Canaries(Section):
    """Comparisons with a known right answer, which the judge gets after the labels. If the judge
    fails them, no pairs are written."""

    per_kind: int = Field(4, ge=0)
    """Number of canaries of each kind; they are made from the run's own pairs."""
    path: RecipePath | None = None
    """File with your own canaries: rows `{"name", "prompt", "good", "bad", "reference"?}`."""
    pass_rate: Annotated[float, RUNTIME] = Field(0.9, ge=0, le=1)
    """Share of the canaries that must pass."""
    accept: Annotated[tuple[CanaryKind, ...], RUNTIME] = ()
    """Kinds of canaries that may fail."""


class JudgeSection(Section):
    """The judge phase. There is no default judge: the run file must name one."""

    judge: JudgeConfig
    """The judge that compares the candidates."""
    both_orders: bool = True
    """Ask about every pair in both orders; only a preference in both counts."""
    repeat: float = Field(0.0, ge=0, le=1)
    """Share of the comparisons that are repeated, to measure the judge's noise."""
    canaries: Canaries | None = Canaries()
    """Test the judge with canaries; null: no test."""
    pairs: Literal["best_vs_worst", "all"] = "best_vs_worst"
    """With more than two slots: the pair of best and worst candidate, or every pair with a
    verdict."""
    balance: Literal["temperature"] | None = None
    """temperature: drop pairs, among answers of similar length, until as many pairs prefer the
    first slot as the second."""
    show_thinking: bool = False
    """Show the judge the thoughts of a thinking model, too; they are trained either way."""
    inconsistent: Literal["drop", "keep"] = "drop"
    """keep: pairs whose two orders disagree become labels for the loss `robust`."""
