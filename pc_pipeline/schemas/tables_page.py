"""`docs/tables.md` from the schemas: `python -m pc_pipeline.schemas.tables_page > docs/tables.md`."""

from __future__ import annotations

import sys

from pc_pipeline.schemas.tables import TABLES

HEAD = """# Tables

Written from the Pandera models in `pc_pipeline/schemas/tables.py` (a test holds this page to them). Every
table is checked before it is written and again by a blocking asset check. Names and units:
[naming](naming.md).
"""


def tables_page() -> str:
    """The page: per table its purpose, columns with type, rule and meaning, and cross-column rules."""
    parts = [HEAD]
    for name, model in TABLES.items():
        schema = model.to_schema()
        parts.append(f"## `{name}`\n\n{(model.__doc__ or '').strip()}\n")
        parts.append("| column | type | rules | meaning |\n|---|---|---|---|")
        for column, field in schema.columns.items():
            rules = [str(check.error or check.name).replace("|", "\\|") for check in field.checks]
            rules += ["may be null"] * bool(field.nullable) + ["unique"] * bool(field.unique)
            parts.append(
                f"| `{column}` | {field.dtype} | {'; '.join(rules)} | {(field.description or '').strip()} |"
            )
        if schema.unique:
            parts.append(f"\nOne row per {', '.join(f'`{key}`' for key in schema.unique)}.")
        notes = [getattr(model, check.name or "", None) for check in schema.checks]
        texts = [(note.__doc__ or "").strip() for note in notes if note is not None]
        parts += [f"\n- {text}" for text in texts if text]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(tables_page())
