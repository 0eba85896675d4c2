"""Label selectors of a configuration: Ray's syntax, checked before Ray starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError
from ray._private.label_utils import validate_label_selector

from distkg.config import ConfigError, flatten, load_config, parse_config
from distkg.config.node_labels import check_label_selector, selects

KEY, VALUE = "cluster.label_selector", "Write a value, !VALUE, in(A, B) or !in(A, B), in quotes, such as"


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({"zone": 1}, f"label zone cannot be selected by 1. {VALUE}"),
        ({"zone": "in(a", "b)": None}, f"label zone cannot be selected by 'in(a'. {VALUE}"),
        ({"zone": "in()"}, f"label zone cannot be selected by 'in()'. {VALUE}"),
        ({"zone": ""}, f"label zone cannot be selected by ''. {VALUE}"),
        ({"zone": "a" * 64}, f"label zone cannot be selected by '{'a' * 64}'. {VALUE}"),
        ({"ray": {"io/market-type": "spot"}}, "label ray cannot be selected by {'io/market-type': 'spot'}."),
        ({"-zone": "a"}, "'-zone' is no name of a label. Write letters, digits and . - _ between them"),
        ({"a/b/c": "a"}, "'a/b/c' is no name of a label."),
        ({"a." * 120 + "!/b": "a"}, f"'{'a.' * 39}a… is no name of a label."),
        ("spot", "write labels and their values as a mapping, such as {ray.io/market-type: spot}"),
    ],
)
def test_a_malformed_selector_is_refused_with_what_to_write(selector: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"cluster": {"label_selector": selector}}, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {KEY}: {message}")


def test_other_keys_of_placement() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.accelerator_type: 'H 100' is no name of an accelerator type"):
        parse_config({"cluster": {"accelerator_type": "H 100"}}, "my.yaml")
    with pytest.raises(ConfigError, match=r"actor_label_selector: belongs to a run with negatives\.pool\.actors"):
        parse_config({"cluster": {"actor_label_selector": {"zone": "a"}}}, "my.yaml")
    changes = ["cluster.label_selector={ray.io/market-type: '!spot', zone: 'in(a, b)'}", "cluster.accelerator_type=L4"]
    values = flatten(load_config("preset:ultra", changes))
    assert values[f"{KEY}.ray.io/market-type"] == "!spot"
    assert values[f"{KEY}.zone"] == "in(a, b)"


TEXTS = st.text(alphabet="aZ3.-_/!(), in", max_size=12) | st.sampled_from(["!in(a, b)", "in(a,b)", "ray.io/zone"])


@given(name=TEXTS, value=TEXTS)
def test_what_is_taken_is_taken_by_ray(name: str, value: str) -> None:
    try:
        check_label_selector({name: value})
    except PydanticCustomError:
        return
    assert validate_label_selector({name: value}) is None


@pytest.mark.parametrize("selector", [{"a.b/c_d": "x.y"}, {"z": "!x"}, {"z": "in(x)"}, {"z": "!in(x,y, z)"}])
def test_what_ray_documents_is_taken(selector: dict[str, Any]) -> None:
    assert validate_label_selector(selector) is None
    assert check_label_selector(selector) == selector


@pytest.mark.parametrize(
    ("condition", "of_a", "of_none"),
    [
        ("a", True, False),
        ("!a", False, True),
        ("in(b, a)", True, False),
        ("!in(b,a)", False, True),
        ("b", False, False),
    ],
)
def test_nodes_that_a_condition_selects(condition: str, of_a: bool, of_none: bool) -> None:
    assert selects({"zone": condition}, {"zone": "a"}) is of_a
    assert selects({"zone": condition}, {"other": "a"}) is of_none
