"""Where the service listens, where its state lies, and what it refuses. Not here: any enforcement."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from pc_pipeline.core.errors import ConfigError

MIB: Final = 1 << 20
MIN_TOKEN_LENGTH: Final = 16
MAX_TOKEN_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """One service.

    Attributes:
        data_dir: the store's folder; the service keeps its own state below it, in `service/`.
        deals_dir: folder of the deals that simulations may name.
        host, port: address to listen on. Another than loopback needs a token.
        token: what clients must send as `Authorization: Bearer ...`; '' asks for none.
        host_names: names besides loopback and `host` by which clients may call the service.
        device: 'auto', 'cpu' or 'cuda', for simulations.
        workers: generation and simulation jobs at the same time; uploads have a worker of their own.
        max_queued: jobs that may wait; further ones are refused with 429.
        intake_bytes: address space of the process that reads uploads; a file that needs more fails its job.
        max_attempts: a job whose worker dies this often is failed.
        max_months: longest sequence or simulation horizon.
        max_borrowers: most rows of a portfolio.
        max_records: most rows of one result file (borrowers x months).
        max_paths: most paths of a simulation.
        json_bytes, upload_bytes: largest request body, without and with files.
        min_free_bytes: room that stays free on the disk.
        max_requests: requests in hand at the same time.
        wait_seconds: how long a request waits for its job before it answers 202.
        header_seconds, body_seconds, idle_seconds: patience with a client that sends: for the headers, for
            the whole body, for the next piece of it.
        write_seconds: patience with a client that does not read.
        stop_seconds: patience with requests and jobs in hand when the service stops.
    """

    data_dir: Path = Path("data")
    deals_dir: Path = Path("data/deals")
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    host_names: tuple[str, ...] = ()
    device: str = "auto"
    workers: int = 1
    max_queued: int = 1000
    intake_bytes: int = 8 * 1024 * MIB
    max_attempts: int = 3
    max_months: int = 360
    max_borrowers: int = 1_000_000
    max_records: int = 50_000_000
    max_paths: int = 20_000
    json_bytes: int = MIB
    upload_bytes: int = 256 * MIB
    min_free_bytes: int = 256 * MIB
    max_requests: int = 1000
    wait_seconds: float = 30.0
    header_seconds: float = 10.0
    body_seconds: float = 600.0
    idle_seconds: float = 20.0
    write_seconds: float = 60.0
    stop_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot be served.

        Raises:
            ConfigError: a limit below its least, a short token, or an open address without a token.
        """
        least = {"port": 0, "max_queued": 0, "min_free_bytes": 0, "wait_seconds": 0, "stop_seconds": 0}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, int | float) and not value >= least.get(entry.name, 1e-3):
                raise ConfigError(f"{entry.name} is too small", got=value, where="service settings")
        if self.port > 65535:
            raise ConfigError("there is no such port", expected="0-65535", got=self.port)
        if self.token:
            check_token(self.token, "token")
        elif not is_loopback(self.host):
            raise ConfigError(
                "the service would be open to the network",
                expected="a token (PC_SERVE_TOKEN or --token-file), or --host 127.0.0.1",
                got=f"--host {self.host} without a token",
            )

    @property
    def service_dir(self) -> Path:
        """Folder of the service's own state."""
        return self.data_dir / "service"

    def for_worker(self) -> dict[str, Any]:
        """Plain values for a worker process; the token stays here."""
        values = asdict(self) | {"token": "", "host": "127.0.0.1"}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> ServiceSettings:
        """The settings that `for_worker` wrote."""
        plain = dict(values)
        for name in ("data_dir", "deals_dir"):
            plain[name] = Path(plain[name])
        return cls(**(plain | {"host_names": tuple(plain["host_names"])}))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(token: str, where: str) -> str:
    """The token, if it can be sent in a header and is long enough to be one.

    Raises:
        ConfigError: it is short, or holds spaces or letters outside ASCII.
    """
    good = token.isascii() and token.isprintable() and " " not in token
    if not good or len(token) < MIN_TOKEN_LENGTH:
        raise ConfigError(
            "not a usable token",
            expected=f"at least {MIN_TOKEN_LENGTH} ASCII letters without spaces",
            got=f"{len(token)} letters" if good else "other letters",
            where=where,
        )
    return token


def read_token(environment: Mapping[str, str], file: Path | None) -> str:
    """The token of a file, else of PC_SERVE_TOKEN, else ''.

    Raises:
        ConfigError: the file cannot be read, or holds no usable token.
    """
    if file is None:
        return environment.get("PC_SERVE_TOKEN", "").strip()
    try:
        with file.open("rb") as handle:
            raw = handle.read(MAX_TOKEN_BYTES)
        return check_token(raw.decode("ascii").strip(), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the token file cannot be read", got=type(error).__name__, where=file) from error
