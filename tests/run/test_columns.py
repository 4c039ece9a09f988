"""Every column is described, in code and in docs/tables.md, and what is described is what there is."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_up import STAGE, begun, folder, pack, result

import mup_tune
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.run.columns import CURVES, PACKS, STAGES, TABLES, TRIALS, Column, Table, markdown
from mup_tune.run.tables import write_tables
from mup_tune.settings import AXES
from mup_tune.trial import length_loss, source_loss

DOCS = Path(__file__).parents[2] / "docs" / "tables.md"


def test_a_column_needs_a_meaning() -> None:
    with pytest.raises(ValueError, match="the column lr has no meaning"):
        Column("lr", "number", "", "")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_page_shows_each_table_as_the_code_describes_it(table: Table) -> None:
    """`python -m mup_tune.run.columns` prints what belongs there."""
    assert f"## `{table.name}`\n\n{markdown(table)}" in DOCS.read_text()
    names = [column.name for column in table.columns]
    assert len(names) == len(set(names))


def test_help_names_every_column_with_its_unit() -> None:
    said = str(mup_tune.load_run.__doc__)
    for column in (column for table in TABLES for column in table.columns):
        assert f"    {column.name} ({column.type}{f', {column.unit}' if column.unit else ''}): {column.meaning}" in said


def test_families_cover_their_own_and_no_others() -> None:
    described = {name: TRIALS.column(name) for name in (*AXES, source_loss("code"), length_loss(4))}
    assert None not in described.values()
    assert {described[name].name for name in MULTIPLIER_NAMES} == {"<multiplier>"}  # type: ignore[union-attr]
    assert TRIALS.column("mlp_downs") is None
    assert TRIALS.column("loss_xy") is None
    assert PACKS.column("planned") is None


def test_files_carry_units_and_meanings_and_keep_what_nobody_described(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal, one = begun(run), pack([0.0, 1.0])
        journal.plan_pack(STAGE, one, {})
        done = result(one)
        for row in done.rows:
            row.metrics["of_a_fork"] = 1.5
        journal.commit(done)
        write_tables(run, journal)
    schema = pq.read_schema(tmp_path / "tables" / "trials.parquet")
    assert schema.field("loss").metadata[b"unit"] == b"nats/token"
    assert schema.field("ssm_B").metadata[b"description"].startswith(b"One column each")
    assert pq.read_table(tmp_path / "tables" / "trials.parquet").column("of_a_fork").to_pylist() == [1.5, 1.5]
    for table in (STAGES, CURVES):
        stored = pq.read_schema(tmp_path / "tables" / f"{table.name}.parquet")
        assert stored.names == [column.name for column in table.columns]
        assert all(stored.field(name).metadata[b"description"] for name in stored.names)
