"""From YAML to typed settings: strict, precise, and never anything but a setting or one clear line."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nas.config import apply_overrides, build, to_plain
from search_spaces import InputError


@dataclass(frozen=True)
class Inner:
    ratio: float = 0.5
    pair: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise InputError(f"'ratio' is at least 0, not {self.ratio}")


@dataclass(frozen=True)
class Outer:
    count: int
    name: str = "x"
    flag: bool = False
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    either: int | str = 0
    file: Path | None = None
    numbers: tuple[float, ...] = ()
    table: dict[str, Any] = field(default_factory=dict)
    derived: int = field(default=7, init=False)


FULL = {
    **{"count": 3, "name": "größe", "flag": True, "mode": "slow", "inner": {"ratio": 2, "pair": [3, 4]}},
    **{"maybe": {"ratio": 1.5, "pair": [0, 0]}, "either": "text", "file": "a/b.json"},
    **{"numbers": [1, 2.5, "4e-3"], "table": {"a": [1, {"b": None}]}},
}


def test_every_kind_of_field() -> None:
    built = build(Outer, FULL, "here")
    assert built == Outer(
        **{"count": 3, "name": "größe", "flag": True, "mode": "slow", "inner": Inner(2.0, (3, 4))},  # type: ignore[arg-type]
        **{"maybe": Inner(1.5, (0, 0)), "either": "text", "file": Path("a/b.json")},  # type: ignore[arg-type]
        **{"numbers": (1.0, 2.5, 0.004), "table": {"a": [1, {"b": None}]}},  # type: ignore[arg-type]
    )
    assert build(Outer, to_plain(built), "here") == built


def test_defaults() -> None:
    assert build(Outer, {"count": 1}, "") == Outer(1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cuont": 1}, "here has an unknown key 'cuont'; did you mean 'count'?"),
        ({"derived": 1}, "here has an unknown key 'derived'"),
        ({"inner": {"ratoi": 1}}, "here.inner has an unknown key 'ratoi'; did you mean 'ratio'?"),
        ({"count": "many"}, "here.count is a whole number, not 'many'"),
        ({"count": 1.0}, "here.count is a whole number, not 1.0"),
        ({"count": True}, "here.count is a whole number, not True"),
        ({"count": None}, "here.count is a whole number, not None"),
        ({"flag": 1}, "here.flag is true or false, not 1"),
        ({"flag": "yes"}, "here.flag is true or false, not 'yes'"),
        ({"name": 5}, "here.name is a text, not 5"),
        ({"name": "a\0b"}, "here.name is a text, not 'a\\x00b'"),
        ({"name": "\ud800"}, "here.name is a text, not '\\ud800'"),
        ({"file": ""}, "here.file is a path, not ''"),
        ({"file": "a\0b"}, "here.file is a path, not 'a\\x00b'"),
        ({"mode": "fats"}, "here.mode: unknown 'fats'; did you mean 'fast'?"),
        ({"mode": 3}, "here.mode is one of fast, slow, not 3"),
        ({"inner": 3}, "here.inner must be a mapping"),
        ({"inner": {"ratio": "half"}}, "here.inner.ratio is a number, not 'half'"),
        ({"inner": {"ratio": float("nan")}}, "here.inner.ratio is a number, not nan"),
        ({"inner": {"ratio": "inf"}}, "here.inner.ratio is a number, not 'inf'"),
        ({"inner": {"ratio": 10**400}}, "here.inner.ratio is a number, not 1000"),
        ({"inner": {"ratio": -1}}, "here.inner: 'ratio' is at least 0, not -1.0"),
        ({"inner": {"pair": [1]}}, "here.inner.pair is a list of 2 values, not [1]"),
        ({"inner": {"pair": [1, "b"]}}, "here.inner.pair[1] is a whole number, not 'b'"),
        ({"inner": {"pair": 12}}, "here.inner.pair is a list, not 12"),
        ({"either": 1.5}, "here.either is a whole number or a text, not 1.5"),
        ({"numbers": [1, [2]]}, "here.numbers[1] is a number, not [2]"),
        ({"table": [1]}, "here.table is"),
    ],
)
def test_mistakes_name_the_dotted_field(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        build(Outer, {**FULL, **changes}, "here")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["", "here"])
def test_what_is_missing_is_named_with_its_type(where: str) -> None:
    with pytest.raises(InputError, match=rf"{where or 'the recipe'} lacks 'count' \(a whole number\)"):
        build(Outer, {"name": "x"}, where)


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_no_mapping(values: Any) -> None:
    with pytest.raises(InputError, match="must be a mapping"):
        build(Outer, values, "")


YAML_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, 0, -1, 2**63])
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.dates()
    | st.sampled_from([datetime.datetime(2024, 1, 1)]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.none() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=6,
)
"""Anything that YAML's safe subset can say."""


@settings(deadline=None)
@given(st.sampled_from(sorted(FULL)), YAML_VALUES)
@example("table", {"": {0: None}})
def test_any_value_in_any_field_is_taken_or_refused_in_one_line(name: str, value: Any) -> None:
    try:
        built = build(Outer, {**FULL, name: value}, "here")
    except InputError as error:
        assert f"here.{name}" in str(error)
    else:
        assert build(Outer, to_plain(built), "here") == built


# -- overrides ---------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_leave_the_original_alone() -> None:
    values: dict[str, Any] = {"train": {"epochs": 1}, "search": None}
    changed = apply_overrides(
        values,
        ["train.epochs=20", "train.scale=[1, 2]", "new.deep.key=a=b", "search.seed_archs=[litepose-s]", "x="],
    )
    assert changed == {
        "train": {"epochs": 20, "scale": [1, 2]},
        "search": {"seed_archs": ["litepose-s"]},
        "new": {"deep": {"key": "a=b"}},
        "x": None,
    }
    assert values == {"train": {"epochs": 1}, "search": None}


def test_the_last_override_of_a_key_counts() -> None:
    assert apply_overrides({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}
    assert apply_overrides({}, ["a={b: 1, c: 2}", "a.b=3"]) == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epochs", "key=value"),
        ("=3", "key=value"),
        ("a..b=1", "key=value"),
        (" .a=1", "key=value"),
        ("train.epochs.more=1", "'epochs' is not a mapping"),
        ("train=[1", "is not valid YAML"),
        ("train=2024-13-45", "does not fit its tag"),
        ("train=!!python/object:os.system x", "is not valid YAML"),
        ("train=!!bool maybe", "does not fit its tag"),
    ],
)
def test_malformed_overrides(text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        apply_overrides({"train": {"epochs": 1}}, [text])
    assert told in str(error.value)
    assert "--set" in str(error.value)


@settings(deadline=None)
@given(st.text())
def test_any_override_is_applied_or_refused(text: str) -> None:
    try:
        changed = apply_overrides({"train": {"epochs": 1}}, [text])
    except InputError as error:
        assert "--set" in str(error)
    else:
        assert changed["train"] is not None or text.partition("=")[0].strip() == "train"
