"""The cost of judging: declared prices or a dated price table, a ledger of all attempts, a limit.

Usage has the Messages API's names: `input_tokens` (those that the cache did not serve),
`cache_creation_input_tokens`, `cache_read_input_tokens`, `output_tokens`.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, ValidationError

from dpo_dist.config import BilledJudge, JudgeConfig
from dpo_dist.errors import ConfigError
from dpo_dist.storage.figures import Figures
from dpo_dist.system.console import counted

T = TypeVar("T")
_READ_TOKENS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

MILLION = 1_000_000
BATCH_DISCOUNT = 0.5  # on every kind of token


class Price(BaseModel):
    """USD per million tokens; `request` is USD per request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: NonNegativeFloat
    output: NonNegativeFloat
    cache_write: NonNegativeFloat
    cache_read: NonNegativeFloat
    request: NonNegativeFloat = 0

    def of(self, usage: Mapping[str, int]) -> float:
        """USD for a usage; with `batch_attempts` it went through the batch API."""
        discount = BATCH_DISCOUNT if usage.get("batch_attempts") else 1.0
        tokens = (
            self.input * usage.get("input_tokens", 0)
            + self.output * usage.get("output_tokens", 0)
            + self.cache_write * usage.get("cache_creation_input_tokens", 0)
            + self.cache_read * usage.get("cache_read_input_tokens", 0)
        )
        return discount * tokens / MILLION + self.request * usage.get("attempts", 0)


class PriceTable(BaseModel):
    """Prices by model id on the date `as_of`, an ISO date."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_of: str
    models: dict[str, Price]


def read_prices(path: Path | None) -> PriceTable:
    """A price table, by default the package's own. Raises `ConfigError` naming the file."""
    place = path or resources.files("dpo_dist.judging") / "prices.toml"
    try:
        values: dict[str, Any] = tomllib.loads(place.read_text(encoding="utf-8"))
        values["as_of"] = str(values.get("as_of", ""))
        return PriceTable.model_validate(values)
    except OSError as error:
        raise ConfigError(f"prices: {place}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"prices: {place}: not TOML: {error}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"prices: {place}: {key}: {problem['msg']}") from None


class Spend(Figures):
    """The cost of a judge; `usd` is None if the price is unknown."""

    usd: float | None
    prices_as_of: str = ""
    usage: dict[str, int]


class Ledger:
    """The usage of all ballots, including those of an interrupted run, and its cost in USD if the
    price is known."""

    def __init__(
        self, price: Price | None = None, *, as_of: str = "", max_usd: float | None = None
    ) -> None:
        self._price = price
        self._as_of = as_of
        self._max_usd = max_usd
        self._usage: Counter[str] = Counter()
        self._usd = 0.0
        self._ballots = 0
        self._expected = 0.0  # USD per ballot, used until the first ballot arrives

    def add(self, usage: Mapping[str, int]) -> None:
        """Count a ballot; a ballot without usage is free."""
        if usage:
            self._usage.update(usage)
            self._usd += self._price.of(usage) if self._price else 0.0
            self._ballots += 1

    @property
    def usd(self) -> float | None:
        """None if the price is unknown."""
        return None if self._price is None else self._usd

    def affordable(self, comparisons: Iterable[T]) -> Iterator[T]:
        """The comparisons that the limit still pays for, at the mean cost per ballot so far."""
        before = self._ballots
        for started, comparison in enumerate(comparisons):
            if self._max_usd is not None and self._price is not None:
                in_flight = started - (self._ballots - before)
                mean = self._usd / self._ballots if self._ballots else self._expected
                if self._usd + (in_flight + 1) * mean > self._max_usd:
                    return
            yield comparison

    def forecast(self, count: int, usage: Mapping[str, int]) -> str:
        """The cost estimate of `count` requests, as a sentence. `affordable` uses the estimate
        until the first ballot arrives if requests are sent in batches or have a fixed price."""
        what = counted(count, "request")
        if tokens_in := sum(n for name, n in usage.items() if name in _READ_TOKENS):
            written = usage.get("output_tokens", 0)
            what += (
                f", about {tokens_in / MILLION:.2f} M tokens to read and {written / MILLION:.2f} M "
                "to write"
            )
        if self._price is None:
            return f"{what}; the price is unknown"
        usd = self._price.of(usage)
        if usage.get("batch_attempts") or self._price.request:
            self._expected = usd / count
        source = f" (prices of {self._as_of})" if self._as_of else ""
        return f"{what}: about {_dollars(usd)}{source}"

    @property
    def note(self) -> str:
        """The cost so far, shown after the progress bar."""
        return "" if self.usd is None else _dollars(self.usd)

    def limit_reached(self, left: int) -> str:
        """The message for `left` comparisons that were not asked."""
        return (
            f"max_usd {self._max_usd:g} would be exceeded: {self.note} spent, comparisons left: "
            f"{left}. Verdicts so far are kept; raise max_usd and run the same command again."
        )

    def spend(self) -> Spend | None:
        """For the manifest; None if nothing was counted."""
        if not self._usage:
            return None
        return Spend(usd=self.usd, prices_as_of=self._as_of, usage=dict(self._usage))


def open_ledger(config: JudgeConfig) -> Ledger:
    """The ledger of a judge. Raises `ConfigError` for a limit that cannot be enforced."""
    if not isinstance(config, BilledJudge):
        return Ledger()
    price, as_of = price_of(config)
    if price is None and config.max_usd is not None:
        raise ConfigError(
            f"max_usd cannot be enforced: the price of {config.priced_as} is unknown. Copy the "
            "package's judging/prices.toml, add the model, and name the copy under `prices`."
        )
    return Ledger(price, as_of=as_of, max_usd=config.max_usd)


def price_of(config: BilledJudge) -> tuple[Price | None, str]:
    """(declared price or price in the table, the table's date); a price of None is unknown."""
    if config.usd_per_request is not None:
        nothing = {"input": 0, "output": 0, "cache_write": 0, "cache_read": 0}
        return Price(**nothing, request=config.usd_per_request), ""
    table = read_prices(config.price_table)
    return table.models.get(config.priced_as), table.as_of


def _dollars(usd: float) -> str:
    return f"${usd:.2f}" if usd >= 0.1 else f"${usd:.4f}"
