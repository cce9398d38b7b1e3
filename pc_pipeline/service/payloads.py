"""What comes in and what goes out, as pydantic models: the OpenAPI schema is made from these.

Names and fields of the three cascade addresses are the contract with their users; more may be added, none
renamed. Not here: limits that depend on the settings (`routes_*`).
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema

from pc_pipeline.service.shelf import PORTFOLIO_ID

Status = Literal["on_time", "grace_period", "30_days", "60_days", "90_days", "default", "paid_off", "prepaid"]
LARGEST_SEED = 2**53 - 1


def _whole(value: Any) -> Any:
    """A whole number: 24 and 24.0, not '24' and not true."""
    if isinstance(value, bool | str | bytes):
        raise ValueError("a whole number is needed")
    return value


def _text_date(value: Any) -> Any:
    if not isinstance(value, str | date):
        raise ValueError("a date is written YYYY-MM-DD")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
_DATES = r"^(19[7-9]\d|20\d\d|21[0-4]\d)-\d\d-\d\d$"
Day = Annotated[
    date,
    BeforeValidator(_text_date),
    WithJsonSchema({"type": "string", "format": "date", "pattern": _DATES}),
]
PortfolioId = Annotated[
    str,
    Field(pattern=PORTFOLIO_ID, description="1 to 64 of A-Z a-z 0-9 _ -", examples=["SYNTH_demo"]),
]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]


class Model(BaseModel):
    """Base: unknown members are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(description="kind of problem, a URI")
    title: str = Field(description="what is wrong, one sentence")
    status: int = Field(description="HTTP status")
    detail: str | None = Field(None, description="what was expected, what came")
    instance: str | None = Field(None, description="number of the request, also in X-Request-ID")
    errors: list[dict[str, str]] | None = Field(None, description="one entry per wrong member")


# ---- payment cascade -------------------------------------------------------------------------


class GenerateRequest(Model):
    """Generate a payment history for every borrower of a portfolio."""

    portfolio_id: PortfolioId
    num_months: Whole = Field(24, ge=1, le=600, description="months per borrower")
    use_lstm: StrictBool = Field(
        True, description="false: the statistical matrix; true: the trained LSTM if any"
    )
    seed: Whole = Field(0, ge=0, le=LARGEST_SEED, description="same seed, same file")
    start_date: Day | None = Field(
        None, description="due date of month 1, 1970-2149; default: month after the tape, or 2024-01-01"
    )
    parquet: StrictBool = Field(False, description="write a Parquet file as well")

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"portfolio_id": "SYNTH_demo", "num_months": 24, "use_lstm": True}]},
    )


class Generated(BaseModel):
    """A portfolio's generated histories: finished (200) or on their way (202)."""

    portfolio_id: str
    sequences_generated: int | None = Field(description="borrowers; null until the portfolio has been read")
    total_records: int | None = Field(description="rows of the file: borrowers x months")
    months_per_sequence: int
    cascade_model: str | None = Field(description="the engine that made them; null until it is known")
    download_url: str
    job_id: str
    status: JobState
    progress: float = Field(ge=0, le=1)
    status_url: str
    note: str | None = Field(None, description="why another engine was used than the one asked for")


class Transitions(BaseModel):
    """P(next status | current status), one month."""

    current_status: Status
    transitions: dict[str, float] = Field(description="moves with a probability above zero; they sum to 1")
    cascade_model: str = Field(description="the engine whose probabilities these are")


# ---- portfolios ------------------------------------------------------------------------------


class Refused(BaseModel):
    """Rows refused for one reason."""

    table: str
    column: str
    reason: str
    rows: int


class Portfolio(BaseModel):
    """A stored portfolio."""

    portfolio_id: str
    source: Literal["uploaded", "generated"]
    kind: Literal["borrowers", "loans"] = Field(description="borrower file, or loan tape")
    adapter: str = Field(description="format it was read as")
    borrowers: int = Field(description="rows accepted")
    rows_in: int
    rows_quarantined: int
    quarantine: list[Refused] = Field(description="refused rows by reason, the commonest 50")
    quarantine_url: str
    as_of: str | None = Field(None, description="last month a loan tape knows of")


class PortfolioAccepted(BaseModel):
    """An upload that is still being read."""

    portfolio_id: str
    job_id: str
    status: JobState
    status_url: str


# ---- jobs and simulations --------------------------------------------------------------------


class SimulationRequest(Model):
    """Run a pool through a scenario and a deal."""

    portfolio_id: PortfolioId | None = Field(
        None, description="an uploaded loan tape; default: the pool of the service's store"
    )
    deal: str = Field("", max_length=100, description="one of /models; default: the one that fits the pool")
    scenario: str = Field("baseline", max_length=100, description="one of /models")
    n_paths: Whole = Field(1000, ge=1, le=1_000_000, description="macro paths")
    n_months: Whole = Field(60, ge=1, le=600, description="longest horizon")
    seed: Whole = Field(42, ge=0, le=LARGEST_SEED)


class JobAnswer(BaseModel):
    """State of a piece of background work."""

    job_id: str
    kind: str
    status: JobState
    progress: float = Field(ge=0, le=1)
    step: str = Field(description="what it does now")
    jobs_ahead: int = Field(description="jobs of its kind queued before it")
    attempts: int
    subject: str = Field(description="portfolio, '' for none")
    status_url: str
    result: dict[str, Any] | None = Field(None, description="when it is done")
    problem: ProblemDocument | None = Field(None, description="when it has failed")
    can_resume: bool = Field(description="whether POST .../resume would queue it again")


class Simulation(JobAnswer):
    """State of a simulation; when it is done, its figures and files."""

    files: dict[str, str] = Field(default_factory=dict, description="file name -> address")


class Health(BaseModel):
    """Whether the service works."""

    status: Literal["ok", "degraded"]
    version: str
    workers: bool = Field(description="whether the worker processes live")
    jobs: dict[str, int] = Field(description="jobs by state")
    free_bytes: int = Field(description="room on the disk")


class ModelCard(BaseModel):
    """A stored model."""

    name: str
    network: str | None
    parameters: int | None
    weights: str | None = Field(description="digest of the weights")
    data_fingerprint: str | None = None


class Models(BaseModel):
    """What the service can compute with."""

    cascade_model: str = Field(description="engine of payment sequences now")
    can_simulate: bool = Field(description="whether simulations have their trained networks")
    models: list[ModelCard]
    scenarios: list[str]
    deals: list[str]
