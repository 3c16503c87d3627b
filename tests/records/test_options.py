"""Option groups: one field with its flag is the home of an option; values that mean nothing are refused by name."""

import dataclasses
import inspect
import math
from typing import Annotated, Any

import pytest

import condense
from condense.errors import UsageError
from condense.records.options import (
    CompareOptions,
    Flag,
    GateOptions,
    MeasureOptions,
    ModelOptions,
    Options,
    OutputOptions,
    RunOptions,
    TextOptions,
    flag_of,
    options_of,
    takes,
)
from condense.records.plans import Plan, TrialPlan

GROUPS = (
    ModelOptions, TextOptions, MeasureOptions, CompareOptions, OutputOptions, GateOptions, RunOptions, Plan, TrialPlan,
)  # fmt: skip
FLAGS = [
    pytest.param(group, name, option, id=f"{group.__name__}.{name}")
    for group in GROUPS
    for name, option in options_of(group).items()
    if option.flag
]


@pytest.mark.parametrize(("group", "name", "option"), FLAGS)
def test_the_default_of_a_flag_is_that_of_its_field(group: type[Options], name: str, option: Any) -> None:
    assert option.default is not dataclasses.MISSING
    assert getattr(group(), name) == option.default
    if option.flag.read is not None:
        assert option.flag.read(option.flag.unread) == option.default


@pytest.mark.parametrize(("group", "name", "option"), FLAGS)
def test_every_number_refuses_what_is_not_finite(group: Any, name: str, option: Any) -> None:
    if isinstance(option.default, bool) or not (
        isinstance(option.default, int | float) or {int, float} & set(getattr(option.kind, "__args__", ()))
    ):
        return
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UsageError, match=option.flag.name_of(name)):
            group(**{name: value})


@pytest.mark.parametrize(
    ("group", "fields", "said"),
    [
        (Plan, {"learning_rate": 0}, "--learning-rate is 0"),
        (Plan, {"max_length": 4}, "--max-length is 4"),
        (Plan, {"max_tokens": 1}, "--max-tokens is 1"),
        (Plan, {"optim": ""}, "--optim is empty"),
        (Plan, {"eval_limit": 3}, "belong to tasks"),
        (TrialPlan, {"seeds": 0}, "--seeds is 0"),
        (TextOptions, {"text": ""}, "--text is empty"),
        (TextOptions, {"text": "a", "dataset": "b"}, "both given"),
        (MeasureOptions, {"no_cache": True, "refresh": True}, "both given"),
        (ModelOptions, {"device": "gpu"}, "cannot use device 'gpu'"),
        (ModelOptions, {"device": "cuda:"}, "cannot use device 'cuda:'"),
        (ModelOptions, {"tokenizer": ""}, "--tokenizer is empty"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_name(group: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        group(**fields)


def test_a_token_is_stripped_and_never_shown() -> None:
    assert ModelOptions(token="hf_secret\n").token == "hf_secret"
    assert ModelOptions(token="").token is None and ModelOptions(token=" \n").token is None
    assert "hf_secret" not in repr(ModelOptions(token="hf_secret"))


def test_keywords_come_before_the_object() -> None:
    options = ModelOptions(device="cpu", dtype="bfloat16")
    assert ModelOptions.of(options, {"dtype": "float16"}) == ModelOptions(device="cpu", dtype="float16")
    assert ModelOptions.of(None, {}) == ModelOptions()
    assert options.dtype == "bfloat16"
    with pytest.raises(TypeError, match="colour"):
        ModelOptions.of(None, {"colour": "blue"})


@pytest.mark.parametrize("name", ["load", "treat", "trial", "compare"])
def test_public_functions_show_the_fields(name: str) -> None:
    parameters = inspect.signature(getattr(condense, name)).parameters
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    assert "options" in parameters
    for field, option in options_of(ModelOptions).items():
        assert parameters[field].default == option.default and parameters[field].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("function", "name", "group", "field"),
    [
        (condense.windows, "num_texts", MeasureOptions, "num_texts"),
        (condense.windows, "seed", MeasureOptions, "seed"),
        (condense.windows, "max_length", MeasureOptions, "max_length"),
        (condense.windows, "text_column", TextOptions, "text_column"),
        (condense.analyze, "seed", MeasureOptions, "seed"),
        (condense.analyze, "batch_size", MeasureOptions, "batch_size"),
        (condense.analyze, "twin", MeasureOptions, "random_twin"),
        (condense.treat, "text_column", TextOptions, "text_column"),
        (condense.treat, "resume", RunOptions, "resume"),
        (condense.trial, "force", RunOptions, "force"),
    ],
)
def test_python_and_the_flags_have_one_default(function: Any, name: str, group: Any, field: str) -> None:
    assert inspect.signature(function).parameters[name].default == getattr(group(), field)


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="colour"):
        condense.load("nowhere", colour="blue")


def test_a_flag_is_found_in_an_annotation() -> None:
    flag = Flag("Help.", "Panel")
    assert flag_of(Annotated[int, flag]) == (int, flag)
    assert flag_of(int | None) == (int | None, None)
    assert flag.name_of("some_field") == "--some-field"
    assert Flag("Help.", names=("--on/--off",)).name_of("on") == "--on"


def test_takes_leaves_parameters_of_the_same_name_alone() -> None:
    @takes(TextOptions)
    def read(text: int, *, options: TextOptions | None = None, **fields: Any) -> TextOptions:
        return TextOptions.of(options, fields)

    signature = inspect.signature(read)
    assert list(signature.parameters) == ["text", "options", "dataset", "dataset_config", "split", "text_column"]
    assert signature.parameters["text"].annotation == "int" or signature.parameters["text"].annotation is int
    assert read(1, split="test") == TextOptions(split="test")
