"""The grammar of `--arms`."""

import itertools
import random
from pathlib import Path
from typing import get_args

import pytest

from condense.dispersion.config import DispersionConfig
from condense.errors import UsageError
from condense.records.plans import COSREG_DEFAULT, ArmSpec, LossName, Plan, RemedyName, TrialPlan
from condense.training.arm_names import parse_arms, slug
from condense.training.remedies import REMEDIES, Remedy, remedy_of

DOCS = Path(__file__).parents[2] / "docs"


def names(text: str, *coefficients: float) -> list[str]:
    return [spec.name for spec in parse_arms(text, coefficients)]


def test_an_arm_in_full() -> None:
    assert parse_arms("dispersion:mean_cosine@late=0.3")[1] == ArmSpec(
        "dispersion:mean_cosine@late=0.3", "dispersion", "mean_cosine", "late", 0.3
    )


def test_what_is_left_out_is_as_by_default() -> None:
    assert parse_arms("dispersion,cosreg,larger-vocab")[1:] == (
        ArmSpec("dispersion=0.1", "dispersion", Plan.loss, Plan.layers, Plan.coefficient),
        ArmSpec("cosreg=1", "cosreg", coefficient=COSREG_DEFAULT),
        ArmSpec("larger-vocab", "larger-vocab"),
    )


def test_what_is_by_default_is_left_out_of_the_name() -> None:
    assert names("dispersion:angular@all=0.10") == ["control", "dispersion=0.1"]


@pytest.mark.parametrize("text", ["control", "cosreg,control", "control,cosreg", "cosreg", " cosreg , control "])
def test_the_control_is_there_once_and_first(text: str) -> None:
    found = names(text)
    assert found[0] == "control" and found.count("control") == 1 and set(found) <= {"control", "cosreg=1"}


def test_every_remedy_can_be_named() -> None:
    remedies = get_args(RemedyName)
    assert [spec.remedy for spec in parse_arms(",".join(remedies))] == list(remedies)
    for loss in get_args(LossName):
        assert parse_arms(f"dispersion:{loss}")[1].loss == loss


def test_coefficients_expand_the_arms_that_have_none_of_their_own() -> None:
    assert names("dispersion,dispersion:l2_repel@last=3,cosreg,noisy-embedding", 0.01, 0.3) == [
        "control", "dispersion=0.01", "dispersion=0.3", "dispersion:l2_repel@last=3", "cosreg=0.01", "cosreg=0.3",
        "noisy-embedding",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "layers", "name"),
    [
        ("@3+7+-1", "3,7,-1", "@3+7+-1"),
        ("@7+3+-1+-2", "3,7,-2,-1", "@3+7+-2+-1"),
        ("@-1", "-1", "@-1"),
        ("@03+3", "3", "@3"),
        ("@late", "late", "@late"),
        ("@all", "all", ""),
    ],
)
def test_layers(written: str, layers: str, name: str) -> None:
    spec = parse_arms(f"dispersion{written}=1")[1]
    assert (spec.layers, spec.name) == (layers, f"dispersion{name}=1")
    DispersionConfig(layers=spec.layers or "")  # is understood by what disperses


def test_names_are_read_as_they_are_written() -> None:
    spelled = parse_arms(" Embedding_Dropout , dispersion:L2-repel@Late=1e-2,dispersion=-0.5,dispersion=0.12345678901")
    for spec in spelled:
        assert spec in parse_arms(spec.name)
    assert [spec.name for spec in spelled[1:]] == [
        "embedding-dropout", "dispersion:l2_repel@late=0.01", "dispersion=-0.5", "dispersion=0.12345678901",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("dispersal", "unknown arm 'dispersal'", "did you mean dispersion?"),
        ("embeding-dropout", "unknown arm", "did you mean embedding-dropout?"),
        ("xyz", "unknown arm 'xyz'", "there is control, dispersion"),
        ("dispersion:angle", "unknown loss 'angle'", "did you mean angular?"),
        ("dispersion@latest", "unknown choice of layers 'latest'", "did you mean late?"),
        ("dispersion@0", "unknown choice of layers '0'", "@3+7+-1"),
        ("dispersion@3;7", "unknown choice of layers", "@3+7+-1"),
        ("dispersion@3,7,-1", "unknown arm '7'", "there is"),
        ("dispersion@", "unknown choice of layers ''", "@3+7+-1"),
        ("dispersion:", "unknown loss ''", "angular"),
        ("dispersion=", "is '', not a number", "coefficient"),
        ("dispersion=much", "is 'much', not a number", "coefficient"),
        ("dispersion=nan", "is nan", "finite"),
        ("cosreg=inf", "is inf", "finite"),
        ("dispersion=0", "is 0", "the control"),
        ("dispersion=1=2", "'1=2', not a number", "coefficient"),
        ("dispersion@late:angular", "layers 'late:angular'", "@3+7+-1"),
        ("cosreg:angular", "cosreg takes no loss", "cosreg=1"),
        ("cosreg@late", "cosreg takes no layers", "cosreg=1"),
        ("larger-vocab=2", "larger-vocab takes no coefficient", "larger-vocab alone"),
        ("control=1", "control takes no coefficient", "control alone"),
        ("noisy-embedding@late", "noisy-embedding takes no layers", "alone"),
        ("cosreg,,control", "an arm without a name", "[:loss]"),
        ("", "an arm without a name", "[:loss]"),
        (":angular", "an arm without a name", "[:loss]"),
        ("control,control", "the arm control comes twice", "once"),
        ("dispersion,dispersion:angular@all=.1", "the arm dispersion=0.1 comes twice", "once"),
        ("dispersion@3+7,dispersion@7+3", "the arm dispersion@3+7=0.1 comes twice", "once"),
    ],
)
def test_what_is_not_in_the_grammar_is_refused(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arms(text)
    assert said in str(caught.value) and hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "coefficients", "said"),
    [
        ("dispersion", (0.1, 0.1), "dispersion=0.1 comes twice"),
        ("dispersion,dispersion=0.3", (0.1, 0.3), "dispersion=0.3 comes twice"),
        ("larger-vocab", (0.1,), "no arm takes one"),
        ("control,dispersion=1,larger-vocab", (3.0,), "each arm has a coefficient of its own: dispersion=1"),
        ("dispersion", (float("nan"),), "--coefficients"),
        ("dispersion", (0.0,), "--coefficients"),
    ],
)
def test_coefficients_that_make_no_sense_are_refused(text: str, coefficients: tuple[float, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_arms(text, coefficients)


def test_folder_names_are_safe_and_no_two_arms_share_one() -> None:
    layers = ["", "@all", "@late", "@early", "@last", "@3", "@-3", "@3+7", "@37", "@3+-7", "@-3+-7"]
    doses = ["0.1", "1", "-1", "1e-05", "10", "1e+20", "0.30000000000000004", "0.3"]
    losses = ["", *(f":{loss}" for loss in get_args(LossName))]
    written = [f"dispersion{a}{b}={c}" for a, b, c in itertools.product(losses, layers, doses)]
    written += [f"cosreg={dose}" for dose in doses] + [name for name in get_args(RemedyName) if name != "dispersion"]
    specs = {spec for text in written for spec in parse_arms(text)}
    slugs = {slug(spec) for spec in specs}
    assert len(slugs) == len(specs) == len({spec.name for spec in specs})
    assert len({name.lower() for name in slugs}) == len(slugs)  # where case does not count
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.@=+") for name in slugs)
    assert slug(parse_arms("dispersion:mean_cosine@3+-1")[1]) == "dispersion-mean_cosine@3+-1=0.1"


def test_a_folder_name_leads_nowhere_else() -> None:
    spec = ArmSpec("dispersion", "dispersion", "angular", "../../etc", 1.0)
    assert "/" not in slug(spec) and "\\" not in slug(spec)


def test_any_text_is_parsed_or_refused() -> None:
    draw = random.Random(0)
    alphabet = ["dispersion", "cosreg", "angular", "late", ":", "@", "=", "+", "-", ",", "1", "0", ".", " ", "é", "\n"]
    for _ in range(3000):
        text = "".join(draw.choices(alphabet, k=draw.randrange(9)))
        try:
            specs = parse_arms(text)
        except UsageError as error:
            assert str(error) and error.hint
        else:
            assert parse_arms(",".join(spec.name for spec in specs)) == specs


@pytest.mark.parametrize(
    ("written", "name", "schedule"),
    [
        ("dispersion+linear:0.25=1", "dispersion+linear:0.25=1", "linear:0.25"),
        ("dispersion + LINEAR:.250=1", "dispersion+linear:0.25=1", "linear:0.25"),
        ("dispersion:mean_cosine@late+cosine=0.3", "dispersion:mean_cosine@late+cosine=0.3", "cosine"),
        ("dispersion@3+7+-1+linear:0.5=1", "dispersion@3+7+-1+linear:0.5=1", "linear:0.5"),
        ("dispersion+constant=1", "dispersion+constant=1", "constant"),
        ("dispersion+linear:1=1", "dispersion+linear=1", "linear"),
        ("placebo-projection+linear:0.25=1", "placebo-projection+linear:0.25=1", "linear:0.25"),
    ],
)
def test_schedules(written: str, name: str, schedule: str | None) -> None:
    spec = parse_arms(written)[1]
    assert (spec.name, spec.schedule) == (name, schedule)
    assert parse_arms(spec.name)[1] == spec
    assert ":" not in slug(spec)


def test_an_arm_may_be_constant_beside_a_schedule_of_all() -> None:
    plan = Plan(coefficient_schedule="linear:0.5")
    for remedy in ("dispersion", "simreg", "placebo-norm"):
        specs = parse_arms(f"{remedy}=1,{remedy}+constant=1")
        own = [remedy_of(spec).acts(spec, plan).dispersion.schedule for spec in specs[1:]]
        assert own == ["linear:0.5", "constant"]
        assert len({slug(spec) for spec in specs}) == 3
        assert TrialPlan(specs, training=plan).arms == specs


@pytest.mark.parametrize("remedy", REMEDIES.values(), ids=lambda remedy: remedy.name)
def test_the_docs_name_every_arm_that_several_coefficients_repeat(remedy: Remedy) -> None:
    """They named dispersion and cosreg alone, and left the default coefficients of the others out."""
    written = (DOCS / "remedies.md").read_text(encoding="utf-8"), (DOCS / "trials.md").read_text(encoding="utf-8")
    said = [text.split("coefficient (", 1)[1].split(")", 1)[0].replace("`", "").split(", ") for text in written]
    word = "the placebos" if remedy.is_placebo else remedy.name
    repeated = remedy.coefficient is not None
    assert said[0] == said[1] and (word in said[0]) is repeated
    if repeated:
        assert [spec.coefficient for spec in parse_arms(remedy.name, (0.3, 0.7))] == [None, 0.3, 0.7]
        (row,) = [
            line for line in written[0].split("| written | means |")[1].splitlines() if f"`{remedy.name}`" in line
        ]
        assert f"coefficient {remedy.coefficient:g} |" in row
    elif not remedy.is_control:
        with pytest.raises(UsageError, match="no arm takes one") as refused:
            parse_arms(remedy.name, (0.3,))
        assert all(name in str(refused.value.hint) for name in ("dispersion", "cosreg", "simreg", "placebo-norm"))


@pytest.mark.parametrize(("written", "schedule"), [("+constant", "constant"), ("+linear:0.5", "linear:.50")])
def test_arms_that_are_trained_alike_are_refused(written: str, schedule: str) -> None:
    with pytest.raises(UsageError, match=r"the arms dispersion=1 and dispersion\+.* are the same"):
        TrialPlan(parse_arms(f"dispersion=1,dispersion{written}=1"), training=Plan(coefficient_schedule=schedule))


@pytest.mark.parametrize("written", ["dispersion+0.25=1", "dispersion+=1", "dispersion:robust+-1"])
def test_what_is_no_schedule_behind_a_plus_is_called_so(written: str) -> None:
    with pytest.raises(UsageError, match=r"no schedule behind \+"):
        parse_arms(written)


@pytest.mark.parametrize(
    "written",
    [
        "dispersion+line",
        "dispersion+linear:0=1",
        "dispersion+linear:2",
        "cosreg+linear",
        "dispersion+linear:=1",
        "dispersion+constant:=1",
    ],
)
def test_schedules_that_are_refused(written: str) -> None:
    with pytest.raises(UsageError):
        parse_arms(written)


def test_the_arms_of_the_study() -> None:
    placebos = "placebo-shuffled,placebo-projection=-1,placebo-norm@late"
    specs = parse_arms(f"simreg,coupled-adam,layernorm-scaling,dispersion:robust=1,{placebos}")[1:]
    assert [spec.name for spec in specs] == [
        "simreg=0.1", "coupled-adam", "layernorm-scaling", "dispersion:robust=1", "placebo-shuffled=0.1",
        "placebo-projection=-1", "placebo-norm@late=0.1",
    ]  # fmt: skip
    assert specs[0].layers == "last"
    for spec in specs:
        acts = remedy_of(spec).acts(spec, Plan(coefficient_schedule="linear:0.5"))
        if spec.coefficient is not None:
            assert acts.dispersion.coefficient == spec.coefficient and acts.dispersion.schedule == "linear:0.5"
            assert acts.dispersion.loss == (spec.loss or spec.remedy)
        assert remedy_of(spec).definition(spec) and remedy_of(spec).source
