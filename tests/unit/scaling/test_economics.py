"""Money is exact: the announcement's own prices and throughput, and what is not known stays unknown."""

from decimal import Decimal

import pytest
from moefleet_operator.scaling.economics import Pricing, PricingError, Throughput, economics

ANNOUNCED = {
    "currency": "CNY",
    "inputPerMillionTokens": "1",
    "cachedInputPerMillionTokens": "0.1",
    "outputPerMillionTokens": "2",
    "gpuHourCost": "14",
}


def test_an_announced_node_earns_what_its_prices_say():
    found = economics(Pricing.parse(ANNOUNCED), Throughput(0, 0, 50_000), gpus_per_replica=8, replicas=1)
    # 50 k tok/s * 3600 s * 2 CNY / 1 M = 360 CNY an hour from output alone, for 8 * 14 CNY.
    assert (found.revenue_per_hour, found.cost_per_hour) == (Decimal(360), Decimal(112))
    assert found.as_status() == {
        "costPerMillionTokens": "0.62",
        "revenuePerHour": "360.00",
        "marginPercent": "68.89",
    }


def test_cached_tokens_are_input_at_their_own_price():
    pricing = Pricing.parse(ANNOUNCED)
    found = economics(pricing, Throughput(1000, 600, 0), gpus_per_replica=8, replicas=1)
    assert found.revenue_per_hour == Decimal("1.656")  # 3600 s * (400 * 1 + 600 * 0.1) / 1 M
    more_cached_than_read = economics(pricing, Throughput(1000, 1001, 0), gpus_per_replica=8, replicas=1)
    assert more_cached_than_read.revenue_per_hour == Decimal("0.36")


def test_a_tenth_added_a_million_times_is_exact():
    pricing = Pricing.parse(ANNOUNCED | {"outputPerMillionTokens": "0.1"})
    total = sum(
        economics(pricing, Throughput(0, 0, 0.1), gpus_per_replica=1, replicas=0).revenue_per_hour
        for _ in range(1000)
    )
    assert total == Decimal("0.036")


def test_an_idle_fleet_costs_but_has_no_cost_per_token_and_no_margin():
    found = economics(Pricing.parse(ANNOUNCED), Throughput(0, 0, 0), gpus_per_replica=8, replicas=3)
    assert found.cost_per_hour == Decimal(336)
    assert found.as_status() == {"revenuePerHour": "0.00"}


def test_gpus_that_cost_more_than_tokens_earn_are_a_negative_margin():
    found = economics(Pricing.parse(ANNOUNCED), Throughput(1000, 0, 100), gpus_per_replica=8, replicas=2)
    assert found.margin_percent < 0


@pytest.mark.parametrize(
    ("absent", "status"),
    [
        ("gpuHourCost", {"revenuePerHour": "7.20"}),
        ("outputPerMillionTokens", {"costPerMillionTokens": "15.56"}),
        ("inputPerMillionTokens", {"costPerMillionTokens": "15.56"}),
        ("cachedInputPerMillionTokens", {"costPerMillionTokens": "15.56", "revenuePerHour": "7.20", "marginPercent": "-1455.56"}),
    ],
)  # fmt: skip
def test_an_absent_price_is_unknown_and_so_is_what_rests_on_it(absent, status):
    fields = {k: v for k, v in ANNOUNCED.items() if k != absent}
    found = economics(Pricing.parse(fields), Throughput(1000, 0, 500 + 500), gpus_per_replica=8, replicas=1)
    expected = dict(status)
    assert set(found.as_status()) == set(expected)


@pytest.mark.parametrize("text", ["", "free", "NaN", "Infinity", "-1", "1e10"])
def test_what_is_no_price_is_named(text):
    with pytest.raises(PricingError, match=r"pricing\.gpuHourCost: wanted"):
        Pricing.parse({"gpuHourCost": text})
