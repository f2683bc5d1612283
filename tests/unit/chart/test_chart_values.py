"""values.yaml, its schema and the README's tables say what the types say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from moefleet_operator.api import chart_values
from moefleet_operator.api.chart_values import ChartValues
from pydantic import ValidationError

CHART = Path(__file__).resolve().parents[3] / "charts/moefleet"


def test_values_are_the_defaults_of_the_types() -> None:
    assert yaml.safe_load((CHART / "values.yaml").read_text()) == chart_values.defaults()


def test_the_schema_is_generated() -> None:
    assert (CHART / "values.schema.json").read_text() == chart_values.schema_json(), "run `make generate`"


def test_the_readme_tables_are_generated() -> None:
    readme = (CHART / "README.md").read_text()
    assert readme == chart_values.readme_with_tables(readme), "run `make generate`"
    assert "| `gateway.drainSeconds` | `900` |" in readme
    assert "| `ModelNameTaken` |" in readme


def test_a_readme_without_its_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="values begin"):
        chart_values.readme_with_tables("# nothing\n")


def test_a_misspelt_value_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"operator\.image_"):
        ChartValues.model_validate({"operator": {"image_": "x"}})


@pytest.mark.parametrize("path", sorted((CHART / "ci").glob("*.yaml")), ids=lambda p: p.stem)
def test_ci_values_are_valid(path: Path) -> None:
    ChartValues.model_validate(yaml.safe_load(path.read_text()))
