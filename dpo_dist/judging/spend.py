"""What judging costs: prices from a dated table, a ledger of every attempt, and a limit.

Usage is counted in the API's own words: `input_tokens` (what the cache did not serve),
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

from dpo_dist.config import ClaudeConfig, JudgeConfig
from dpo_dist.errors import ConfigError
from dpo_dist.system.console import counted

T = TypeVar("T")
_READ = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

MILLION = 1_000_000
BATCH_DISCOUNT = 0.5  # on every kind of token


class Price(BaseModel):
    """USD per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: NonNegativeFloat
    output: NonNegativeFloat
    cache_write: NonNegativeFloat
    cache_read: NonNegativeFloat

    def of(self, usage: Mapping[str, int]) -> float:
        """USD of an exchange; `batch_attempts` says that it went through the batch API."""
        discount = BATCH_DISCOUNT if usage.get("batch_attempts") else 1.0
        return (
            discount
            * (
                self.input * usage.get("input_tokens", 0)
                + self.output * usage.get("output_tokens", 0)
                + self.cache_write * usage.get("cache_creation_input_tokens", 0)
                + self.cache_read * usage.get("cache_read_input_tokens", 0)
            )
            / MILLION
        )


class PriceTable(BaseModel):
    """Prices by model id, as they were on a day. `as_of` is an ISO date."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_of: str
    models: dict[str, Price]


def read_prices(path: Path | None) -> PriceTable:
    """A price table, the package's own without a path. Raises `ConfigError` naming the file."""
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


class Ledger:
    """What was spent, in tokens and, where the price is known, in USD.

    Every ballot is added, those of an interrupted run included: their money is gone, too.
    """

    def __init__(
        self, price: Price | None = None, *, as_of: str = "", max_usd: float | None = None
    ) -> None:
        self._price = price
        self._as_of = as_of
        self._max_usd = max_usd
        self._usage: Counter[str] = Counter()
        self._usd = 0.0
        self._ballots = 0
        self._expected = 0.0  # USD a ballot, as long as none has come in

    def add(self, usage: Mapping[str, int]) -> None:
        """Count a ballot; one without usage has cost nothing."""
        if usage:
            self._usage.update(usage)
            self._usd += self._price.of(usage) if self._price else 0.0
            self._ballots += 1

    @property
    def usd(self) -> float | None:
        """None where the price is unknown."""
        return None if self._price is None else self._usd

    def affordable(self, comparisons: Iterable[T]) -> Iterator[T]:
        """The comparisons that may still be asked: as many as the limit pays for."""
        before = self._ballots
        for started, comparison in enumerate(comparisons):
            in_flight = started - (self._ballots - before)
            if not self._can_pay_for(in_flight + 1):
                return
            yield comparison

    def _can_pay_for(self, count: int) -> bool:
        """`count` more ballots, reckoned at the mean of those that were answered."""
        spent = self.usd
        if self._max_usd is None or spent is None:
            return True
        mean = spent / self._ballots if self._ballots else self._expected
        return spent + count * mean <= self._max_usd

    def forecast(self, count: int, usage: Mapping[str, int]) -> str:
        """The sentence before the start: what `count` requests will take, about.

        Where they are all sent at once, `affordable` goes by it.
        """
        tokens_in = sum(n for name, n in usage.items() if name in _READ)
        what = (
            f"{counted(count, 'request')}, about {tokens_in / MILLION:.2f} M tokens to read and "
            f"{usage.get('output_tokens', 0) / MILLION:.2f} M to write"
        )
        if self._price is None:
            return f"{what}; the price is unknown"
        usd = self._price.of(usage)
        if usage.get("batch_attempts"):
            self._expected = usd / count
        return f"{what}: about {_dollars(usd)} (prices of {self._as_of})"

    @property
    def note(self) -> str:
        """What stands behind the progress bar."""
        return "" if self.usd is None else _dollars(self.usd)

    def limit_reached(self, left: int) -> str:
        """Why `left` comparisons were not asked."""
        return (
            f"max_usd {self._max_usd:g} would be exceeded: {self.note} spent, comparisons left: "
            f"{left}. Verdicts so far are kept; raise max_usd and run the same command again."
        )

    def figures(self) -> dict[str, Any] | None:
        """For the manifest; None where nothing was counted. An unknown price is null."""
        if not self._usage:
            return None
        return {"usd": self.usd, "prices_as_of": self._as_of, "usage": dict(self._usage)}


def open_ledger(config: JudgeConfig) -> Ledger:
    """The ledger of a judge. Raises `ConfigError` for a limit that could not be kept."""
    if not isinstance(config, ClaudeConfig):
        return Ledger()
    table = read_prices(config.prices)
    price = table.models.get(config.model)
    if price is None and config.max_usd is not None:
        raise ConfigError(
            f"max_usd cannot be enforced: the price of {config.model} is unknown. Copy the "
            "package's judging/prices.toml, add the model, and name the copy under `prices`."
        )
    return Ledger(price, as_of=table.as_of, max_usd=config.max_usd)


def _dollars(usd: float) -> str:
    return f"${usd:.2f}" if usd >= 0.1 else f"${usd:.4f}"
