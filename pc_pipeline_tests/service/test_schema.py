"""The whole OpenAPI schema driven by Schemathesis: no 5xx, no traceback, answers as documented."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pc_pipeline.service import create_app
from pc_pipeline_tests.service.harness import Served, borrower_csv, generate, upload

FAST, LONG = 6, 300
_QUIET = list(HealthCheck)
schema = schemathesis.openapi.from_dict(create_app().openapi())


@pytest.fixture
def stocked(served: Served) -> Served:
    """A service with one portfolio and its sequences there to be found."""
    if served.client.get("/api/portfolios/book").status_code == 404:
        upload(served.client, "book", borrower_csv(5)).raise_for_status()
        generate(served.client, "book").raise_for_status()
    return served


def _drive(case: schemathesis.Case, served: Served) -> None:
    headers = {"Prefer": "respond-async"}  # a generated portfolio may be a large one
    answer = case.call(base_url=served.url, headers=headers, timeout=20.0)
    assert "Traceback" not in answer.text
    # any bytes are a schema-valid file; only tables are accepted
    takes_files = (case.operation.method, case.operation.path) == ("post", "/api/portfolios")
    case.validate_response(answer, excluded_checks=[positive_data_acceptance] if takes_files else [])


@schema.parametrize()
@settings(max_examples=FAST, deadline=None, phases=[Phase.generate], suppress_health_check=_QUIET)
def test_every_address_keeps_its_schema(case: schemathesis.Case, stocked: Served) -> None:
    _drive(case, stocked)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=LONG, deadline=None, suppress_health_check=_QUIET)
def test_every_address_keeps_its_schema_at_length(case: schemathesis.Case, stocked: Served) -> None:
    _drive(case, stocked)
