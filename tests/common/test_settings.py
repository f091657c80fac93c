"""Settings from flat values, files and words: what is taken, what is refused, and what the refusal names."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from common.settings import (
    InnerLoop,
    JudgeSettings,
    ModelSettings,
    RunSettings,
    Settings,
    Value,
    as_toml,
    flatten,
    layer_step_size,
    parse_assignments,
    read_toml,
)

DEFAULTS = flatten(Settings())


def declared() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every setting's key with its field."""
    for section in dataclasses.fields(Settings):
        for item in dataclasses.fields(getattr(Settings(), section.name)):
            yield f"{section.name}.{item.name.rstrip('_').replace('_', '-')}", item


FIELDS = dict(declared())


def valid_values(key: str) -> st.SearchStrategy[Value]:
    """Values that fit the declared type, limits and choices of a setting."""
    limits, default = FIELDS[key].metadata, DEFAULTS[key]
    if key.startswith("adapt."):  # as in [inner], or what [inner] takes
        return st.just(default) | valid_values(key.replace("adapt", "inner"))
    texts = {
        "model.network": st.sampled_from(["omniglot", "mlp", "package.module:function"]),
        "data.columns": st.sampled_from(["", "age", "age, cp=1|2|3|4"]),
        "outer.layer-step-sizes": st.sampled_from(["", "*=0.5", "conv1.*=0.5 head.*=2"]),
    }
    # TOML has no way to write DEL in a text as JSON does.
    plain = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=20)
    found: st.SearchStrategy[Value] = texts.get(key, plain)
    if limits["choices"]:
        found = st.sampled_from(limits["choices"])
    elif isinstance(default, bool):
        found = st.booleans()
    elif isinstance(default, int):
        found = st.integers(limits["least"], limits["most"] or 10**9)
    elif isinstance(default, float):
        found = st.floats(limits["least"], limits["most"], allow_nan=False, allow_infinity=False)
    return found


FOR_IMAGES: dict[str, Value] = {
    "data.channels": 1,
    "data.bits": 8,
    "data.white": 0.0,
    "data.invert": False,
    "data.beside": "",
    "data.rotated-classes": False,
    "inner.augment": "none",
    "inner.views": 1,
    "adapt.augment": "",
    "adapt.views": -1,
}
"""Settings for images only, switched off."""


def agreeing(flat: dict[str, Value]) -> dict[str, Value]:
    """The same values without the contradictions that settings can have."""
    whole = {**DEFAULTS, **flat}
    if whole["judge.transductive"]:
        flat = {**flat, "model.normalisation": "batch"}
    if whole["inner.augment"] == "none":
        flat = {**flat, "inner.views": 1}
    if (whole["adapt.augment"] or whole["inner.augment"]) == "none":
        flat = {**flat, "adapt.views": 1}
    if whole["data.kind"] == "table":
        flat = {**flat, "data.columns": whole["data.columns"] or "age, sex=0|1", "data.label": "label"}
    if whole["model.network"] == "mlp":
        flat = {**flat, "inner.batch-size": 20, "adapt.batch-size": -1}
    if whole["data.kind"] != "image":
        flat = {**flat, **FOR_IMAGES}
    return flat


valid = (
    st.lists(st.sampled_from(sorted(DEFAULTS)), unique=True, max_size=12)
    .flatmap(lambda keys: st.fixed_dictionaries({key: valid_values(key) for key in keys}))
    .map(agreeing)
)


def typed(flat: dict[str, Value]) -> list[tuple[str, type, Value]]:
    return sorted((key, type(value), value) for key, value in flat.items())


@given(valid)
def test_settings_come_back_from_their_flat_values_and_flat_values_from_their_settings(flat: dict[str, Value]) -> None:
    settings = Settings.from_flat(flat)
    assert typed(flatten(settings)) == typed({**DEFAULTS, **flat})
    assert Settings.from_flat(flatten(settings)) == settings


@given(valid, valid)
def test_values_given_later_replace_earlier_ones(first: dict[str, Value], second: dict[str, Value]) -> None:
    assert flatten(Settings.from_flat(first).with_values(agreeing({**first, **second}))) == {
        **DEFAULTS,
        **agreeing({**first, **second}),
    }


def test_nothing_given_means_the_defaults() -> None:
    assert Settings.from_flat({}) == Settings()
    assert Settings().with_values({}) == Settings()


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("inner.step", "inner.steps"),
        ("inner.batch_size", "inner.batch-size"),
        ("inner.learning-rat", "inner.learning-rate"),
        ("outer.meta-step", "outer.meta-step-size"),
        ("meta-step-size", "outer.meta-step-size"),
        ("episode.ways", "episode.way"),
        ("run.Seed", "run.seed"),
    ],
)
def test_an_unknown_setting_is_refused_and_the_nearest_valid_one_named(key: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_flat({key: 1})
    assert repr(key) in str(caught.value)
    assert repr(nearest) in str(caught.value)


@given(st.text().filter(lambda key: key not in DEFAULTS))
def test_any_unknown_setting_is_refused_with_some_valid_one_named(key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_flat({key: 1})
    assert any(repr(near) in str(caught.value) for near in DEFAULTS)


WRONG_TYPES: dict[type, list[Any]] = {
    bool: [0, 1, 1.0, "true", None],
    int: [True, False, 2.0, "2", None, [2]],
    float: [True, False, "0.5", None, {}],
    str: [True, 1, 0.5, None, b"text", ["text"]],
}


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_value_of_the_wrong_type_is_refused_and_the_key_and_type_named(key: str) -> None:
    kind = type(DEFAULTS[key])
    needed = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    for value in WRONG_TYPES[kind]:
        with pytest.raises(SettingsError) as caught:
            Settings.from_flat({key: value})
        assert all(part in str(caught.value) for part in (key, repr(value), needed))


def test_a_whole_number_will_do_for_a_number_and_becomes_one() -> None:
    rate = Settings.from_flat({"inner.learning-rate": 2}).inner.learning_rate
    assert (rate, type(rate)) == (2.0, float)


LIMITED = [key for key, item in FIELDS.items() if item.metadata["least"] is not None]
BOUNDED = [key for key, item in FIELDS.items() if item.metadata["most"] is not None]
CHOSEN = [key for key, item in FIELDS.items() if item.metadata["choices"]]
NUMBERS = [key for key, value in DEFAULTS.items() if type(value) in (int, float)]
FRACTIONS = [key for key, value in DEFAULTS.items() if isinstance(value, float)]


def refused(key: str, value: Value) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.from_flat({key: value})
    assert key in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", LIMITED)
def test_a_value_below_its_least_is_refused_and_the_least_is_not(key: str) -> None:
    least = FIELDS[key].metadata["least"]
    assert flatten(Settings.from_flat({key: type(DEFAULTS[key])(least)}))[key] == least
    below: Value = least - 1 if isinstance(DEFAULTS[key], int) else math.nextafter(least, -math.inf)
    assert f"at least {least}" in refused(key, below)


@pytest.mark.parametrize("key", BOUNDED)
def test_a_value_above_its_most_is_refused_and_the_most_is_not(key: str) -> None:
    most = FIELDS[key].metadata["most"]
    assert flatten(Settings.from_flat({key: type(DEFAULTS[key])(most)}))[key] == most
    above: Value = most + 1 if isinstance(DEFAULTS[key], int) else math.nextafter(most, math.inf)
    assert f"at most {most}" in refused(key, above)


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_may_be_negative(key: str) -> None:
    refused(key, type(DEFAULTS[key])(-2))  # -1 stands for something in [adapt]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("key", FRACTIONS)
def test_a_number_that_is_not_finite_is_refused(key: str, value: float) -> None:
    refused(key, value)


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["far above", "far below"])
def test_a_whole_number_too_large_for_a_number_is_refused(value: int) -> None:
    refused("inner.learning-rate", value)


def test_a_whole_number_that_no_run_config_can_hold_is_refused() -> None:
    refused("run.seed", 2**64)


@pytest.mark.parametrize("key", CHOSEN)
def test_a_value_that_is_no_choice_is_refused_and_the_choices_named(key: str) -> None:
    message = refused(key, "something else" if isinstance(DEFAULTS[key], str) else 77)
    assert all(str(choice) in message for choice in FIELDS[key].metadata["choices"])


CONTRADICTIONS: dict[str, tuple[dict[str, Value], list[str]]] = {
    "a table without columns": ({"data.kind": "table"}, ["data.columns", "fedreptile-site columns"]),
    "a column named twice": ({"data.kind": "table", "data.columns": "age, sex, age"}, ["data.columns", "'age'"]),
    "turned rows of a table": (
        {"data.kind": "table", "data.columns": "age", "data.rotated-classes": True},
        ["data.rotated-classes", "'table'"],
    ),
    "pictures beside vectors": ({"data.kind": "vector", "data.beside": "mask"}, ["data.beside", "'vector'"]),
    "turned vectors": ({"data.kind": "vector", "inner.augment": "affine"}, ["inner.augment", "'vector'"]),
    "turned vectors in the end": ({"data.kind": "vector", "adapt.augment": "flip"}, ["adapt.augment", "'vector'"]),
    "transduction with frozen statistics": (
        {"judge.transductive": True},
        ["judge.transductive", "model.normalisation", "batch"],
    ),
    "copies that would be identical": ({"inner.views": 2}, ["inner.views", "inner.augment"]),
    "copies that would be identical in the end": (
        {"inner.augment": "flip", "inner.views": 2, "adapt.augment": "none"},
        ["adapt.views", "adapt.augment"],
    ),
    "a network that is neither ours nor named": ({"model.network": "resnet"}, ["'resnet'", "module:function"]),
    "no network": ({"model.network": ""}, ["model.network", "module:function"]),
}


@pytest.mark.parametrize(("flat", "named"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_settings_that_contradict_each_other_are_refused_and_both_named(
    flat: dict[str, Value], named: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_flat(flat)
    assert all(part in str(caught.value) for part in named)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Settings(judge=JudgeSettings(transductive=True)),
        lambda: Settings(inner=InnerLoop(views=3)),
        lambda: Settings(inner=InnerLoop(steps=-1)),
        lambda: Settings(model=ModelSettings(head="both")),
        lambda: dataclasses.replace(Settings(), run=RunSettings(rounds=-1)),
    ],
    ids=["transductive", "views", "steps", "head", "rounds"],
)
def test_settings_built_in_code_are_checked_as_well(build: Callable[[], Settings]) -> None:
    with pytest.raises(SettingsError):
        build()


@pytest.mark.parametrize(
    "flat",
    [
        {"judge.transductive": True, "model.normalisation": "batch"},
        {"inner.views": 4, "inner.augment": "flip"},
        {"model.network": "package.module:function"},
    ],
    ids=["transductive", "views", "network"],
)
def test_what_belongs_together_is_taken(flat: dict[str, Value]) -> None:
    assert {key: flatten(Settings.from_flat(flat))[key] for key in flat} == flat


@pytest.mark.parametrize("key", FIELDS)
def test_every_setting_says_what_it_means(key: str) -> None:
    assert FIELDS[key].metadata["meaning"].strip()


def test_settings_cannot_be_changed_and_can_be_a_key() -> None:
    settings = Settings()
    for target, name in [(settings, "inner"), (settings.inner, "steps"), (settings.model, "head")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(target, name, None)
    assert {settings: 1}[Settings()] == 1


def test_adaptation_in_the_end_is_the_inner_loop_where_nothing_else_is_given() -> None:
    inner: dict[str, Value] = {"inner.steps": 7, "inner.optimizer": "adam", "inner.frozen": "conv*"}
    same = Settings.from_flat(inner)
    assert same.adaptation == same.inner
    given: dict[str, Value] = {
        "adapt.learning-rate": 0.0,
        "adapt.steps": 0,
        "adapt.batch-size": 1,
        "adapt.augment": "flip",
        "adapt.views": 3,
    }
    expected = dataclasses.replace(same.inner, learning_rate=0.0, steps=0, batch_size=1, augment="flip", views=3)
    assert same.with_values(given).adaptation == expected
    assert same.with_values(given).inner == same.inner


@pytest.mark.parametrize(
    ("key", "value"),
    [("adapt.learning-rate", -0.5), ("adapt.batch-size", 0), ("adapt.views", 0), ("adapt.augment", "turn")],
)
def test_what_the_inner_loop_would_refuse_adaptation_in_the_end_refuses_too(key: str, value: Value) -> None:
    refused(key, value)


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ("", []),
        ("conv1.weight", ["conv1.weight"]),
        ("conv*", ["conv1.weight", "conv2.bias"]),
        ("*.bias head.*", ["conv2.bias", "head.weight"]),
        ("CONV*", []),
        ("conv[2-9].*", ["conv2.bias"]),
        ("*", ["conv1.weight", "conv2.bias", "head.weight"]),
    ],
)
def test_patterns_freeze_the_names_that_they_fit(patterns: str, frozen: list[str]) -> None:
    names = ["conv1.weight", "conv2.bias", "head.weight"]
    assert [name for name in names if InnerLoop(frozen=patterns).is_frozen(name)] == frozen


# --- Step sizes by name --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factors", "name", "expected"),
    [
        ("", "conv1.weight", 1.0),
        ("head.*=2", "conv1.weight", 1.0),
        ("conv1.*=0.5 head.*=2", "conv1.weight", 0.5),
        ("conv1.*=0.5 head.*=2", "head.bias", 2.0),
        ("*=3 conv1.*=0.5", "conv1.weight", 0.5),
        ("conv1.*=0.5 *=3", "conv1.weight", 3.0),
        ("*.bias=0", "conv1.bias", 0.0),
        ("  *=1e-3\t", "w", 0.001),
    ],
)
def test_the_last_pattern_that_fits_gives_the_step_size(factors: str, name: str, expected: float) -> None:
    assert layer_step_size(factors, name) == expected


@pytest.mark.parametrize(
    "word", ["head.*", "head.*=", "=2", "head.*=x", "head.*=-1", "head.*=nan", "head.*=inf", "a=b=1"]
)
def test_a_step_size_that_is_not_one_is_refused_by_the_settings(word: str) -> None:
    for factors in (word, f"conv1.*=1 {word}"):
        assert repr(word) in refused("outer.layer-step-sizes", factors)


# --- Files and words -----------------------------------------------------------------------------


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[bytes | str], Path]:
    """Return a function that writes a settings file."""

    def write(content: bytes | str) -> Path:
        path = tmp_path / "run.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_settings_file_is_read_by_section_and_key(toml: Callable[[str], Path]) -> None:
    path = toml('[run]\nseed = 3\n[inner]\nlearning-rate = 0.25\noptimizer = "adam"\n[judge]\ntransductive = false\n')
    values = read_toml(path)
    assert values == {
        "run.seed": 3,
        "inner.learning-rate": 0.25,
        "inner.optimizer": "adam",
        "judge.transductive": False,
    }
    assert Settings.from_flat(values).inner.optimizer == "adam"
    assert read_toml(toml("")) == {}


@pytest.mark.parametrize(
    "content",
    [
        "[run",
        "seed = 3",
        "[run]\nseed",
        "[run]\nseed=1\nseed=2",
        b"[run]\nseed = \xe4",
        "[inner]\n[inner.adam]\nsteps = 1",
        "[[inner]]",
    ],
    ids=["not TOML", "outside a section", "no value", "twice", "not UTF-8", "two levels", "a list of sections"],
)
def test_a_settings_file_that_cannot_be_used_is_refused_and_named(
    toml: Callable[[bytes | str], Path], content: bytes | str
) -> None:
    path = toml(content)
    with pytest.raises(SettingsError) as caught:
        read_toml(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("place", ["missing.toml", "."], ids=["missing", "a folder"])
def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_toml(tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("inner.steps=5", "inner.steps", 5),
        ("inner.learning-rate=0.5", "inner.learning-rate", 0.5),
        ("inner.learning-rate=1e-3", "inner.learning-rate", 0.001),
        ("run.resume=false", "run.resume", False),
        ("inner.optimizer=adam", "inner.optimizer", "adam"),
        ('inner.optimizer="adam"', "inner.optimizer", "adam"),
        ("model.network=my.module:function", "model.network", "my.module:function"),
        ("inner.frozen=conv1.* conv2.*", "inner.frozen", "conv1.* conv2.*"),
        ("outer.layer-step-sizes=conv1.*=0.5 head.*=2", "outer.layer-step-sizes", "conv1.*=0.5 head.*=2"),
        ("run.dir=", "run.dir", ""),
        ("run.dir=/a/b=c", "run.dir", "/a/b=c"),
        (" run.seed =7", "run.seed", 7),
    ],
)
def test_words_give_values_as_a_settings_file_would_and_else_text(word: str, key: str, value: Value) -> None:
    found = parse_assignments([word])
    assert found == {key: value}
    assert type(found[key]) is type(value)
    Settings.from_flat(found)


@given(valid.map(lambda flat: {key: value for key, value in flat.items() if not isinstance(value, str)}))
def test_words_written_from_values_give_the_values_back(flat: dict[str, Value]) -> None:
    words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in flat.items()]
    assert typed(parse_assignments(words)) == typed(flat)


@given(valid)
def test_settings_printed_as_toml_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, flat: dict[str, Value]
) -> None:
    settings = Settings.from_flat(flat)
    path = tmp_path_factory.getbasetemp() / "printed.toml"
    path.write_text(as_toml(settings), encoding="utf-8")
    assert typed(read_toml(path)) == typed(flatten(settings))


def test_settings_may_be_left_out_of_what_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "printed.toml"
    path.write_text(as_toml(Settings(), {"run.dir", "data.sites"}), encoding="utf-8")
    assert read_toml(path).keys() == DEFAULTS.keys() - {"run.dir", "data.sites"}


def test_the_last_of_two_words_for_a_key_counts() -> None:
    assert parse_assignments(["run.seed=1", "run.rounds=3", "run.seed=2"]) == {"run.seed": 2, "run.rounds": 3}


@pytest.mark.parametrize("word", ["inner.steps", "", "5"])
def test_a_word_without_an_equals_sign_is_refused_and_named(word: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_assignments(["run.seed=1", word])
    assert repr(word) in str(caught.value)


@pytest.mark.parametrize("text", ["2024-01-01", "123", "true", "[a]"])
def test_a_quoted_word_is_text_whatever_it_looks_like(text: str) -> None:
    settings = Settings.from_flat(parse_assignments([f"data.sites='{text}'"]))
    assert settings.data.sites == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"], ids=["UTF-8", "Notepad", "PowerShell's >"])
def test_a_settings_file_is_read_as_any_shell_or_editor_writes_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine.toml").write_bytes('[data]\nsites = "/données"\n'.encode(encoding))
    assert read_toml(tmp_path / "mine.toml") == {"data.sites": "/données"}


@pytest.mark.parametrize("key", ["data.channels", "data.bits", "data.white", "data.invert"])
def test_a_setting_for_pictures_is_refused_where_there_are_none(key: str) -> None:
    value: Value = {"data.channels": 3, "data.bits": 16, "data.white": 5.0, "data.invert": True}[key]
    with pytest.raises(SettingsError, match=key):
        Settings.from_flat({"data.kind": "vector", key: value})


def test_the_class_is_no_input_and_an_mlp_needs_two_inputs_for_its_statistics() -> None:
    with pytest.raises(SettingsError, match=r"data\.label"):
        Settings.from_flat({"data.kind": "table", "data.columns": "age, label=0|1"})
    with pytest.raises(SettingsError, match=r"inner\.batch-size"):
        Settings.from_flat({"data.kind": "vector", "model.network": "mlp", "inner.batch-size": 1})
