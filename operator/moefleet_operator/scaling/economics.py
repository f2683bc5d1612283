"""What tokens cost and earn: exact decimals, because prices are strings in the resource and people add them up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

MILLION = Decimal(1_000_000)
SECONDS_PER_HOUR = Decimal(3600)
# Prices above this are typing errors.
MAX_PRICE = Decimal(10) ** 9


class PricingError(ValueError):
    """A price is not one; the text names the field."""


@dataclass(frozen=True, slots=True)
class Pricing:
    """None is a price that nobody has told: what depends on it is unknown too, not free."""

    currency: str
    input_per_million: Decimal | None
    cached_input_per_million: Decimal | None
    output_per_million: Decimal | None
    gpu_hour_cost: Decimal | None

    @staticmethod
    def parse(fields: Mapping[str, str | None]) -> Pricing:
        """From `spec.pricing`. Cached input costs what input costs when it has no price of its own."""
        input_price = _price(fields, "inputPerMillionTokens")
        cached_price = _price(fields, "cachedInputPerMillionTokens")
        return Pricing(
            currency=fields.get("currency") or "",
            input_per_million=input_price,
            cached_input_per_million=input_price if cached_price is None else cached_price,
            output_per_million=_price(fields, "outputPerMillionTokens"),
            gpu_hour_cost=_price(fields, "gpuHourCost"),
        )


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens per second of a fleet. `input` counts all prompt tokens, those from the prefix cache too."""

    input_tok_s: float
    cached_tok_s: float
    output_tok_s: float


@dataclass(frozen=True, slots=True)
class Economics:
    currency: str
    cost_per_hour: Decimal | None
    revenue_per_hour: Decimal | None
    # Per million of all tokens, prompt and generated; None while nothing flows: a cost per nothing is no number.
    cost_per_million_tokens: Decimal | None
    # Of the revenue; None without revenue. Negative when GPUs cost more than tokens earn.
    margin_percent: Decimal | None

    def as_status(self) -> dict[str, str]:
        """`status.economics`: two digits behind the point; what is not known is absent."""
        numbers = {
            "costPerMillionTokens": self.cost_per_million_tokens,
            "revenuePerHour": self.revenue_per_hour,
            "marginPercent": self.margin_percent,
        }
        return {name: f"{value:.2f}" for name, value in numbers.items() if value is not None}


def economics(pricing: Pricing, throughput: Throughput, *, gpus_per_replica: int, replicas: int) -> Economics:
    """`replicas` are those that are paid for: every pod that holds its GPUs, starting and draining ones too."""
    tokens_per_hour = (_count(throughput.input_tok_s) + _count(throughput.output_tok_s)) * SECONDS_PER_HOUR
    revenue = _revenue_per_hour(pricing, throughput)
    cost = None if pricing.gpu_hour_cost is None else pricing.gpu_hour_cost * gpus_per_replica * replicas
    return Economics(
        currency=pricing.currency,
        cost_per_hour=cost,
        revenue_per_hour=revenue,
        cost_per_million_tokens=cost * MILLION / tokens_per_hour
        if cost is not None and tokens_per_hour
        else None,
        margin_percent=(revenue - cost) * 100 / revenue if revenue and cost is not None else None,
    )


def _revenue_per_hour(pricing: Pricing, throughput: Throughput) -> Decimal | None:
    prices = (pricing.input_per_million, pricing.cached_input_per_million, pricing.output_per_million)
    input_price, cached_price, output_price = prices
    if input_price is None or cached_price is None or output_price is None:
        return None
    input_s, output_s = _count(throughput.input_tok_s), _count(throughput.output_tok_s)
    cached_s = min(_count(throughput.cached_tok_s), input_s)
    earned_s = (input_s - cached_s) * input_price + cached_s * cached_price + output_s * output_price
    return earned_s * SECONDS_PER_HOUR / MILLION


def _price(fields: Mapping[str, str | None], name: str) -> Decimal | None:
    text = fields.get(name)
    if text is None:
        return None
    try:
        price = Decimal(text)
    except (InvalidOperation, TypeError, ValueError):
        raise PricingError(f"pricing.{name}: wanted a decimal like 0.14, found {text!r}") from None
    if not price.is_finite() or not 0 <= price <= MAX_PRICE:
        raise PricingError(f"pricing.{name}: wanted 0 to {MAX_PRICE}, found {text!r}")
    return price


def _count(rate: float) -> Decimal:
    # repr of a float is its shortest exact spelling; Decimal(float) would drag 50 binary digits along.
    return Decimal(repr(max(float(rate), 0.0)))
