import pytest

from distkg.registry import Registry, UnknownNameError


def animals() -> Registry[type]:
    registry: Registry[type] = Registry("animal")
    registry.register("heron")(int)
    registry.register("crane")(str)
    return registry


def test_a_registered_class_is_found_by_its_name() -> None:
    registry = animals()
    assert registry["heron"] is int
    assert "heron" in registry
    assert "stork" not in registry


def test_names_come_in_alphabetical_order() -> None:
    assert list(animals()) == ["crane", "heron"]


def test_register_hands_the_class_back() -> None:
    registry: Registry[type] = Registry("animal")

    @registry.register("cat")
    class Cat: ...

    assert registry["cat"] is Cat


def test_an_unknown_name_answers_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no animal named 'stork'\. Known: crane, heron$"):
        animals()["stork"]


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'heron'"):
        animals()["hreon"]


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="animal name 'heron' is already taken"):
        animals().register("heron")(float)
