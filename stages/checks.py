"""Data contracts, checked by Great Expectations before a stage publishes.

A stage calls its contract, say `features_contract`, and writes what comes back as checks.json: plain values in a fixed order, so
equal data is equal bytes. Of a broken contract DataError names each expectation and the first rows.
"""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from metadiff.errors import DataError
from stages.contracts import EPISODE, Rule, Table, features_tables, manifest_tables, results_tables, trajectories_tables

if TYPE_CHECKING:
    from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext

SHOWN = ("source", "label", "task", *EPISODE)  # columns by which a person finds a row again, where a table has them
SHOWN_ROWS = 10

Row = dict[str, str | bool]
Outcome = dict[str, Any]  # what Great Expectations found of one expectation, in plain types
P = ParamSpec("P")


def check(tables: Iterable[Table]) -> list[Row]:
    """One row an expectation, sorted; DataError, with the rows that break them, if any fails."""
    context = _context()
    found = [(table, rule, outcome) for table in tables for rule, outcome in _outcomes(context, table)]
    failures = [_failure(*one) for one in found if not one[-1]["success"]]
    if failures:
        raise DataError("\n".join(failures))
    return sorted((_row(*one) for one in found), key=lambda row: (row["table"], row["column"], row["expectation"]))


def build_docs(folder: Path, tables: Iterable[Table]) -> Path:
    """Great Expectations' pages about the tables, good or bad, and an index; their style sheets, but no facts, are on the web."""
    for part in ("validations", "expectations"):
        shutil.rmtree(folder / part, ignore_errors=True)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())}
    context = _context({"class_name": "SiteBuilder", "show_how_to_buttons": False, "store_backend": store})
    broken = {table.name: sum(not outcome["success"] for _, outcome in _outcomes(context, table)) for table in tables}
    context.build_data_docs(build_index=False)  # their index stays empty without scripts from the web
    pages = {
        page.relative_to(folder).parts[1]: page.relative_to(folder).as_posix() for page in folder.glob("validations/**/*.html")
    }
    lines = [f'<li><a href="{pages[name]}">{name}</a>: {count} expectations broken</li>' for name, count in broken.items()]
    index = folder / "index.html"
    index.write_text(
        "\n".join(["<!doctype html>", "<title>Data contracts</title>", "<ul>", *lines, "</ul>", ""]), encoding="utf-8"
    )
    return index


def _contract(tables: Callable[P, tuple[Table, ...]]) -> Callable[P, list[Row]]:
    """The same arguments, checked at once."""

    @functools.wraps(tables)
    def checked(*args: P.args, **kwargs: P.kwargs) -> list[Row]:
        return check(tables(*args, **kwargs))

    return checked


manifest_contract = _contract(manifest_tables)
features_contract = _contract(features_tables)
trajectories_contract = _contract(trajectories_tables)
results_contract = _contract(results_tables)


def _context(site: dict[str, Any] | None = None) -> EphemeralDataContext:
    """A Great Expectations that keeps all in memory, draws nothing on the screen and sends nothing; its import takes seconds."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings(action="ignore"):
        import great_expectations as gx
        from great_expectations.data_context.types import base

        config = base.DataContextConfig(
            store_backend_defaults=base.InMemoryStoreBackendDefaults(),
            data_docs_sites={"checks": site} if site else {},
            progress_bars=base.ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        )
        return gx.get_context(mode="ephemeral", project_config=config)


def _outcomes(context: EphemeralDataContext, table: Table) -> list[tuple[Rule, Outcome]]:
    """Each rule of the table with what Great Expectations finds; that reorders them, so each carries its number."""
    import great_expectations as gx

    rules = enumerate(table.rules)
    with warnings.catch_warnings(action="ignore"):
        expectations = [getattr(gx.expectations, rule.kind)(**rule.arguments, meta={"rule": number}) for number, rule in rules]
        asset = context.data_sources.add_pandas(table.name).add_dataframe_asset(table.name)
        batch = asset.add_batch_definition_whole_dataframe(table.name)
        suite = context.suites.add(gx.ExpectationSuite(table.name, expectations=expectations))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=table.name, data=batch, suite=suite))
        facts = {"dataframe": table.facts.reset_index(drop=True)}
        shown = {"result_format": "SUMMARY", "partial_unexpected_count": SHOWN_ROWS}
        found: Any = definition.run(batch_parameters=facts, result_format=shown)
        outcomes = sorted(found.to_json_dict()["results"], key=lambda outcome: int(outcome["expectation_config"]["meta"]["rule"]))
    return list(zip(table.rules, outcomes, strict=True))


def _row(table: Table, rule: Rule, outcome: Outcome) -> Row:
    asked = {
        "table": table.name,
        "column": rule.column,
        "expectation": outcome["expectation_config"]["type"],
        "expected": rule.expected,
    }
    return asked | {"success": outcome["success"], "observed": _observed(table, outcome["result"])}


def _observed(table: Table, result: Mapping[str, Any]) -> str:
    if "unexpected_count" in result:
        return f"{result['unexpected_count']} of {len(table.facts)} rows break it"
    value = result.get("observed_value", "values of a kind that cannot be compared")
    if isinstance(value, list):
        value = ", ".join(sorted(map(str, value))) or "none"
    return f"{value} rows" if isinstance(value, int) else f"found {value}"


def _failure(table: Table, rule: Rule, outcome: Outcome) -> str:
    where = f"table {table.name}" + (f", column {rule.column}" if rule.column else "")
    lines = [f"{where}: must be {rule.expected}; {_observed(table, outcome['result'])}"]
    used = {rule.column, *(rule.arguments.get(key) for key in ("column", "column_A", "column_B"))}
    columns = [name for name in table.facts if name in SHOWN or name in used]
    for number in outcome["result"].get("partial_unexpected_index_list") or ():
        facts = table.facts.iloc[number]
        lines.append(f"  row {number}: " + ", ".join(f"{name} {facts[name]}" for name in columns))
    return "\n".join(lines)
