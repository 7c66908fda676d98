"""Tables of networks: read back without loss, searched within, and every fault in one named."""

from __future__ import annotations

import gzip
import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.search import AP, MACS, SAMPLERS, Evaluation, search
from nas.search.tabular import Listed, Table, TabularEvaluator, read_table, write_table
from search_spaces import InputError
from tests.nas.problems import analytic_ap, small_space

ROOT = Path(__file__).resolve().parents[2]
SPACE = small_space()


@pytest.fixture(scope="module")
def table() -> Table:
    rng = np.random.default_rng(0)
    genotypes = SPACE.genotypes()[rng.choice(SPACE.count(), 60, replace=False)]
    evaluations = tuple(
        Evaluation(analytic_ap(SPACE.decode(genotype)), {"AP50": 0.5}, 1.25) for genotype in genotypes
    )
    return Table("made-up", SPACE, {"images": "40 (abc)"}, {"date": "today"}, genotypes, evaluations)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_table_is_read_back_without_loss(table: Table, name: str, tmp_path: Path) -> None:
    write_table(tmp_path / name, table)
    first = (tmp_path / name).read_bytes()
    found = read_table(tmp_path / name)
    assert replace(found, genotypes=table.genotypes) == table
    assert (found.genotypes == table.genotypes).all()
    write_table(tmp_path / name, found)
    assert (tmp_path / name).read_bytes() == first


def test_networks_are_found_by_their_genotype(table: Table) -> None:
    order = np.random.default_rng(1).permutation(60)
    assert (table.places(table.genotypes[order]) == order).all()
    inside = {tuple(genotype) for genotype in table.genotypes}
    for genotype, place in zip(SPACE.genotypes(), table.places(SPACE.genotypes()), strict=True):
        assert (place >= 0) == (tuple(genotype) in inside)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_stays_within_a_table(table: Table, sampler: str, tmp_path: Path) -> None:
    listed = Listed(table)
    result = search(
        SPACE, TabularEvaluator(table), storage=tmp_path / "a.journal", trials=1000, objectives=[AP, MACS],
        pricers=[listed], constraints=[listed.constraint], sampler=sampler,
    )  # fmt: skip
    assert result.stopped == "exhausted"
    by_id = {SPACE.decode(g).id: e.ap for g, e in zip(table.genotypes, table.evaluations, strict=True)}
    assert {record.arch.id: record.ap for record in result.evaluated} == by_id
    assert result.evaluated[0].seconds == 1.25


def test_a_network_that_a_table_lacks_is_an_error(table: Table) -> None:
    lacking = SPACE.genotypes()[int((table.places(SPACE.genotypes()) < 0).argmax())]
    with pytest.raises(InputError, match=r"the table 'made-up' lacks the network .*: search within it"):
        TabularEvaluator(table).evaluate(SPACE.decode(lacking))


def _edit(number: int, change: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    return lambda lines: change(lines[number])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edit(0, lambda line: line.update(format=9)), "is no table of networks of format 1"),
        (_edit(0, lambda line: line.pop("context")), r"is damaged \(KeyError: 'context'\)"),
        (
            _edit(0, lambda line: line.update(fingerprint="0")),
            "is of another space than its header describes",
        ),
        (
            _edit(0, lambda line: line["space"].update(kind="other")),
            "the space of '.*': unknown kind 'other'",
        ),
        (_edit(3, lambda line: line.update(ap=-1)), "line 4: AP is a number from 0 up, not -1"),
        (_edit(3, lambda line: line.update(ap=float("nan"))), "line 4: AP is a number from 0 up, not nan"),
        (_edit(3, lambda line: line.update(id="x")), "line 4: the genotype builds .* said to be of x"),
        (_edit(3, lambda line: line["genotype"].__setitem__(0, 9)), "line 4: gene 'resolution' lies in 0..1"),
        (_edit(3, lambda line: line["genotype"].pop()), "is damaged"),
        (_edit(3, lambda line: line.pop("seconds")), "is damaged"),
        (lambda lines: lines.append(lines[2]), "line 62: the network .* stands in line 3 already"),
        (lambda lines: lines.__setitem__(slice(1, None), []), "holds no network"),
        (lambda lines: lines.insert(4, [1]), "line 5: not a JSON object"),
        (lambda lines: lines.clear(), "is no table"),
    ],
)
def test_a_damaged_table_is_named(
    damage: Callable[[list[Any]], None], message: str, table: Table, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    write_table(path, table)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    damage(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=message) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the table '.*': No such file"):
        read_table(tmp_path / "absent.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"cannot read the table .*gz"):
        read_table(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"kind": "header"}')[:-9])
    with pytest.raises(InputError, match=r"cannot read the table .*gz"):
        read_table(tmp_path / "b.jsonl.gz")


def test_a_trained_run_is_recorded(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["tabular.py", str(trained), "--networks", "3", "--name", "tiny", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    ends = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "experiments" / "tabular.py"), run_name="__main__")
        ends.append(ended.value.code)
    assert ends == [0, 2], "what is recorded already is not overwritten"
    found = read_table(tmp_path / "tiny.jsonl.gz")
    assert len(found.aps) == 3 and set(found.context) >= {"supernet", "images"}
    assert found.evaluations[0].seconds > 0 and "AP50" in found.evaluations[0].stats
    text = json.dumps([dict(found.context), dict(found.record)])
    assert str(tmp_path) not in text and str(trained) not in text and '"/' not in text
