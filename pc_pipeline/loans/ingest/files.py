"""What was delivered: files, their kinds and columns, and how a file becomes a frame, within limits.

Here: looking at a path without trusting it (`survey`), reading one part of it (`read_part`). Not here:
what the columns mean (adapters), which rows are good (`screen`), workbook safety (`workbook`).
Memory and time are bounded by the limits below, before anything large is read.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest import workbook

MAX_COLUMNS: Final = 1_000
MAX_BYTES: Final = 64 * 2**30
MAX_FILES: Final = 1_000
MAX_CELL_BYTES: Final = 16_384
SNIFF_BYTES: Final = 1 << 20
DELIMITERS: Final = (",", "|", ";", "\t")
KINDS: Final = {
    ".csv": "delimited",
    ".txt": "delimited",
    ".psv": "delimited",
    ".tsv": "delimited",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "workbook",
    ".xml": "xml",
}
_DAMAGE: Final = (OSError, ValueError, KeyError, RuntimeError, OverflowError, MemoryError)
NULL_WORDS: Final = ("", "NULL", "null", "NA", "N/A", "#N/A")


class View(Protocol):
    """Turns a part's frame (with `_row`) into one with other columns."""

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame under new names."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One table as delivered: a file, or one sheet of a workbook.

    Attributes:
        path: the file.
        name: lower-case stem of the file, or name of the sheet.
        kind: 'delimited', 'parquet', 'workbook' or 'xml'.
        columns: names in file order; for delimited files the fields of the first line, header or not.
        delimiter: of delimited files.
        head: for xml the first kilobyte, else ''.
        source, view: for a part under a mapping, the part as delivered and how it becomes `columns`.
    """

    path: Path
    name: str
    kind: str
    columns: tuple[str, ...] = ()
    delimiter: str = ","
    head: str = ""
    source: Part | None = None
    view: View | None = None

    def has(self, names: Sequence[str]) -> bool:
        """Whether all `names` are columns of this part."""
        return set(names) <= set(self.columns)


def survey(path: str | Path | Sequence[str | Path]) -> list[Part]:
    """The parts found at a path (a file, or a folder of files), by name; of several paths, all together.

    Raises:
        IngestError: nothing there, nothing readable, too many files or columns, or a torn file.
    """
    if not isinstance(path, str | Path):
        if not path:
            raise IngestError("nothing to read", expected="a file or folder", got="no path")
        return [part for one in path for part in survey(one)]
    place = Path(path)
    if not place.exists():
        raise IngestError("there is no such file or folder", expected="a tape", got="nothing", where=place)
    if not place.is_dir():
        return _parts_of(place)
    found = sorted(file for file in place.iterdir() if file.is_file() and file.suffix.lower() in KINDS)
    if not found:
        raise IngestError(
            "the folder holds no tape",
            expected=f"files ending in {', '.join(KINDS)}",
            got=sorted(file.name for file in place.iterdir())[:10] or "an empty folder",
            where=place,
        )
    if len(found) > MAX_FILES:
        raise IngestError(
            "too many files in one delivery", expected=f"{MAX_FILES}", got=len(found), where=place
        )
    return [part for file in found for part in _parts_of(file)]


def source_sha256(parts: Sequence[Part]) -> str:
    """Content hash of a delivery: the SHA-256 of its files' SHA-256 digests in name order."""
    files = sorted({part.path for part in parts})
    digests = []
    for file in files:
        with file.open("rb") as handle:
            digests.append(hashlib.file_digest(handle, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    named = "\n".join(f"{digest} {file.name}" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256(named.encode()).hexdigest()


def read_part(
    part: Part,
    *,
    columns: Sequence[str] | None = None,
    types: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
) -> pl.DataFrame:
    """One part as a frame with a first column `_row` (1-based data row).

    Args:
        columns: only these (those present); all when None.
        types: polars types of columns of a delimited file; without it every column comes as text.
        names: column names for a delimited file without a header.

    Raises:
        IngestError: the bytes are not what the file claims to be. pl.exceptions.ComputeError passes
            through only when `types` is given and a value does not fit, so that the caller may re-read
            as text.
    """
    if part.view is not None and part.source is not None:
        mapped = part.view.apply(read_part(part.source))
        return (
            mapped
            if columns is None
            else mapped.select("_row", *(n for n in mapped.columns if n in set(columns)))
        )
    check_doubles(part)
    wanted = [name for name in (names or part.columns) if columns is None or name in set(columns)]
    if part.kind == "delimited":
        frame = _read_delimited(part, wanted, types, names)
    elif part.kind == "parquet":
        frame = _guard(part, lambda: pl.read_parquet(part.path, columns=wanted, hive_partitioning=False))
    elif part.kind == "workbook":
        frame = _guard(part, lambda: workbook.read_sheet(part.path, part.name).select(wanted))
    else:
        raise IngestError(
            "not a table", expected="delimited, parquet or workbook", got=part.kind, where=part.path
        )
    if frame.is_empty():
        raise IngestError(
            "the file holds no rows", expected="at least one data row", got=0, where=where(part)
        )
    _check_cells(frame, part)
    return frame.with_row_index("_row", offset=1).with_columns(pl.col("_row").cast(pl.Int64))


def _check_cells(frame: pl.DataFrame, part: Part) -> None:
    """A few kilobytes of Parquet can hold one long text a million times: refuse before anything copies it."""
    for name, kind in frame.schema.items():
        if kind not in (pl.String, pl.Categorical, pl.Enum, pl.Binary):
            continue
        cells = frame[name] if kind in (pl.String, pl.Binary) else frame[name].unique().cast(pl.String)
        sizes = cells.bin.size() if kind == pl.Binary else cells.str.len_bytes()
        longest = int(sizes.fill_null(0).to_numpy().max(initial=0))
        if longest > MAX_CELL_BYTES:
            raise IngestError(
                "a cell is too long",
                expected=f"at most {MAX_CELL_BYTES} bytes",
                got=f"{longest} bytes in column {name!r}",
                where=where(part),
            )


def where(part: Part) -> str:
    """File name, and sheet for a workbook, for messages and tables."""
    return f"{part.path.name}:{part.name}" if part.kind == "workbook" else part.path.name


def _parts_of(file: Path) -> list[Part]:
    kind = KINDS.get(file.suffix.lower())
    if kind is None:
        raise IngestError(
            "not a kind of file that is read here",
            expected=", ".join(KINDS),
            got=file.suffix or file.name,
            where=file,
        )
    size = file.stat().st_size
    if size == 0:
        raise IngestError("the file is empty", expected="data", got="0 bytes", where=file)
    if size > MAX_BYTES:
        raise IngestError(
            "the file is too large", expected=f"at most {MAX_BYTES} bytes", got=size, where=file
        )
    stem = file.stem.lower()
    if kind == "parquet":
        columns = tuple(_guard_path(file, lambda: list(pl.read_parquet_schema(file))))
        parts = [Part(path=file, name=stem, kind=kind, columns=columns)]
    elif kind == "workbook":
        sheets = _guard_path(file, lambda: workbook.survey_sheets(file))
        parts = [Part(path=file, name=name, kind=kind, columns=found) for name, found in sheets.items()]
    elif kind == "xml":
        parts = [Part(path=file, name=stem, kind=kind, head=_head_text(file)[:1024])]
    else:
        delimiter, fields = _first_line(file)
        parts = [Part(path=file, name=stem, kind=kind, columns=fields, delimiter=delimiter)]
    for part in parts:
        _check_columns(part)
    return parts


def _check_columns(part: Part) -> None:
    if len(part.columns) > MAX_COLUMNS:
        raise IngestError(
            "too many columns", expected=f"at most {MAX_COLUMNS}", got=len(part.columns), where=where(part)
        )


def check_doubles(part: Part) -> None:
    """Refuse a part in which a column appears twice: no one could say which is meant.

    Raises:
        IngestError: names them.
    """
    if part.kind == "delimited" and part.delimiter == "|":
        return  # the first line of a headerless layout repeats values rightly
    doubled = [name for name, n in Counter(part.columns).items() if n > 1 and name]
    if doubled:
        raise IngestError(
            "a column appears twice",
            expected="one column per name",
            got=", ".join(doubled[:5]),
            where=where(part),
        )


def _head_text(file: Path) -> str:
    with file.open("rb") as handle:
        raw = handle.read(SNIFF_BYTES)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise IngestError("not UTF-8 text", expected="UTF-8", got="a UTF-16 byte order mark", where=file)
    if b"\x00" in raw:
        raise IngestError("not text", expected="UTF-8 text", got="binary bytes", where=file)
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start > len(raw) - 4 and len(raw) == SNIFF_BYTES:  # a letter cut by the sniffing window
            return raw[: error.start].decode("utf-8")
        raise IngestError(
            "not UTF-8 text",
            expected="UTF-8",
            got=f"byte {raw[error.start]:#04x} at {error.start}",
            where=file,
        ) from None


def _first_line(file: Path) -> tuple[str, tuple[str, ...]]:
    """Delimiter and fields of the first line."""
    text = _head_text(file)
    line, newline, _ = text.partition("\n")
    if not newline and len(text) >= SNIFF_BYTES:
        raise IngestError(
            "the first line never ends", expected=f"a line within {SNIFF_BYTES} bytes", got="none", where=file
        )
    line = line.rstrip("\r")
    if not line.strip():
        raise IngestError("the first line is blank", expected="column names", got="nothing", where=file)
    delimiter = max(DELIMITERS, key=line.count)
    try:
        fields = next(csv.reader(io.StringIO(line), delimiter=delimiter))
    except csv.Error as error:  # a lone return inside the line, a field beyond all measure
        raise IngestError(
            "the first line holds no column names", expected="lines that end in \\n", got=error, where=file
        ) from None
    return delimiter, tuple(field.strip() for field in fields)


def _read_delimited(
    part: Part, wanted: list[str], types: Mapping[str, Any] | None, names: Sequence[str] | None
) -> pl.DataFrame:
    headerless = names is not None
    schema = {name: (types or {}).get(name, pl.String) for name in (names or part.columns)}
    try:
        frame = pl.read_csv(
            part.path,
            separator=part.delimiter,
            has_header=not headerless,
            schema=schema,
            columns=[list(schema).index(name) for name in wanted] if headerless else wanted,
            null_values=list(NULL_WORDS) if types is None else None,
            quote_char=None if headerless else '"',
        )
    except pl.exceptions.ComputeError as error:
        text = str(error).partition("\n")[0]
        if types is not None and "could not parse" in text:
            raise
        raise IngestError(
            "the file is not a clean delimited table",
            expected=f"{len(schema)} fields a line, separated by {part.delimiter!r}, in UTF-8",
            got=text,
            where=part.path,
        ) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise IngestError(
            "the file cannot be read", got=str(error).partition("\n")[0], where=part.path
        ) from None
    return frame


def _guard(part: Part, read: Any) -> pl.DataFrame:
    return _guard_path(part.path, read)


def _guard_path(file: Path, read: Any) -> Any:
    """Run a reader; what it raises becomes one readable IngestError."""
    try:
        return read()
    except IngestError:
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, *_DAMAGE) as error:
        raise IngestError(
            "the file cannot be read",
            expected=f"a whole {file.suffix.lstrip('.')} file",
            got=str(error).partition("\n")[0][:300],
            where=file,
        ) from None
