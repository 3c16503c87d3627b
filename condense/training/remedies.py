"""The remedies that a treatment or a trial can train: one object each, which every other file reads.

Importing this loads neither torch nor transformers, because the grammar of `--arms` and the reports read it too. What a
remedy does to a model is in condense/training/interventions.py and vocabulary.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from condense.errors import UnavailableError
from condense.records.plans import (
    COEFFICIENT,
    COSREG_DEFAULT,
    DROPOUT_P,
    FORGET_EVERY,
    MAX_GROWTH,
    MIN_FREQUENCY,
    NOISE_ALPHA,
    SIMREG_DEFAULT,
    ArmSpec,
    Plan,
    RemedyName,
)
from condense.records.schedules import share_on, shortest_schedule

if TYPE_CHECKING:
    from condense.models.checkpoint import Checkpoint
    from condense.training.interventions import Intervention
    from condense.training.prepare import Prepared
    from condense.training.rows import Rows


# --- what an arm does: each imports what it needs when a model is there -----------------------------------


def _cross_entropy(spec: ArmSpec, plan: Plan) -> Intervention:
    from condense.training.interventions import Intervention, dispersion_config

    return Intervention(dispersion_config(plan, 0.0))


def _disperse(spec: ArmSpec, plan: Plan) -> Intervention:
    from condense.training.interventions import Intervention, dispersion_config

    chosen = replace(
        plan,
        loss=spec.loss or plan.loss,
        layers=spec.layers or plan.layers,
        coefficient_schedule=spec.schedule or plan.coefficient_schedule,
    )
    coefficient = plan.first_coefficient if spec.coefficient is None else spec.coefficient
    return Intervention(dispersion_config(chosen, coefficient))


def _penalise(spec: ArmSpec, plan: Plan) -> Intervention:
    """A penalty of the arm's own name on the states of all blocks, or of those that it names."""
    from condense.training.interventions import Intervention, dispersion_config

    chosen = replace(plan, coefficient_schedule=spec.schedule or plan.coefficient_schedule, loss="angular")
    default = remedy_of(spec).coefficient or plan.first_coefficient
    config = dispersion_config(chosen, default if spec.coefficient is None else spec.coefficient)
    layers = spec.layers or remedy_of(spec).layers
    constants = None if spec.remedy == "simreg" else config.constants
    return Intervention(replace(config, loss=spec.remedy, layers=layers, constants=constants, paper_sites=False))


def _couple_moments(spec: ArmSpec, plan: Plan) -> Intervention:
    from condense.training.pretraining import CoupledAdam

    return replace(_cross_entropy(spec, plan), callbacks=lambda: (CoupledAdam(),))


def _scale_norms(spec: ArmSpec, plan: Plan) -> Intervention:
    from condense.training.pretraining import fold_layernorm_scaling, layernorm_scaling

    return replace(_cross_entropy(spec, plan), hooks=layernorm_scaling, finish=fold_layernorm_scaling)


def _drop_embeddings(spec: ArmSpec, plan: Plan) -> Intervention:
    from condense.training.interventions import embedding_dropout

    return replace(_cross_entropy(spec, plan), hooks=embedding_dropout)


def _disturb_embeddings(spec: ArmSpec, plan: Plan) -> Intervention:
    from condense.training.interventions import noisy_embedding

    return replace(_cross_entropy(spec, plan), hooks=noisy_embedding)


def _forget_embeddings(spec: ArmSpec, plan: Plan) -> Intervention:
    from condense.training.interventions import ActiveForgetting

    return replace(_cross_entropy(spec, plan), callbacks=lambda: (ActiveForgetting(seed=plan.seed),))


def _regularise(spec: ArmSpec, plan: Plan) -> Intervention:
    from condense.training.interventions import Regulariser, cosreg

    coefficient = COSREG_DEFAULT if spec.coefficient is None else spec.coefficient
    return replace(_cross_entropy(spec, plan), regulariser=Regulariser(coefficient, cosreg))


def _enlarge(source: Checkpoint, texts: Prepared, plan: Plan) -> tuple[Checkpoint, Rows, tuple[str, ...]]:
    from condense.training.prepare import training_rows
    from condense.training.vocabulary import enlarge_vocabulary

    if texts.masked:
        raise UnavailableError("larger-vocab needs a causal model: a masked one has no bits per byte to compare")
    if plan.use_peft:
        raise UnavailableError("larger-vocab needs full training: with LoRA the new rows would stay as they start")
    larger = enlarge_vocabulary(source.model, source.tokenizer, texts.parts.train)
    source = replace(source, model=larger.model, tokenizer=larger.tokenizer)
    return source, training_rows(source, texts.parts, texts.rows.length, texts.masked, texts.rows.most), larger.details


def _define_dispersion(spec: ArmSpec) -> str:
    blocks = {
        "all": "all blocks",
        "late": "the deepest half of the blocks",
        "early": "the first half of the blocks",
        "last": "the last block",
    }
    layers = str(spec.layers or Plan.layers)
    where = blocks.get(layers, f"the blocks {layers.replace(',', ', ')}")
    penalty = _PENALTY_WORDS.get(spec.remedy, f"the {spec.loss} loss on the directions of the tokens of a text")
    return f"Cross-entropy + {spec.coefficient} · {penalty}, mean over the states after {where}."


_PENALTY_WORDS = {
    "placebo-shuffled": "the angular loss on the same states, the tokens drawn from all texts of the batch",
    "placebo-projection": "the angular loss on a fixed random projection of the states to an eighth of the dimensions",
    "placebo-norm": "the spread of the norms, (‖x‖/mean ‖x‖ − 1)², with a gradient as large as the angular loss's",
}


# --- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caution:
    """What a reader should know before an arm of a remedy is judged, and how many times the steps it would need."""

    title: str
    why: str
    source: str
    steps: int


Need = Literal["Adam", "trained embeddings", "next tokens", "several texts"]


@dataclass(frozen=True)
class Remedy:
    """One way to train an arm: its name, what it takes, what it does, who proposed it, how it is drawn.

    in_a_line    what it does in a few words, without its settings; `definition(spec)` says it with all constants.
    inks         the colours of its arms, by their names in the palette of the reports.
    takes        the parts of the grammar that an arm of it may carry: loss, layers, coefficient.
    coefficient, layers  what they are where an arm does not name them.
    acts         what an arm adds to training; cross-entropy alone by default.
    needs        what the model, the rows or the plan have to give it; `trials.refusals` refuses what has none of it.
    from_scratch whether it is only for models with random weights (`--random-init`).
    enlarge      (source, texts, plan) → a model and tokenizer of its own, their rows, details. An arm with other
                 tokens is compared by bits per byte, and unpaired where numbers are per token.
    """

    name: RemedyName
    title: str
    in_a_line: str
    definition: Callable[[ArmSpec], str]
    source: str
    inks: tuple[str, ...]
    takes: tuple[str, ...] = ()
    coefficient: float | None = None
    layers: str = Plan.layers
    acts: Callable[[ArmSpec, Plan], Intervention] = _cross_entropy
    needs: tuple[Need, ...] = ()
    from_scratch: bool = False
    enlarge: Callable[[Checkpoint, Prepared, Plan], tuple[Checkpoint, Rows, tuple[str, ...]]] | None = None
    caution: Caution | None = None

    @property
    def other_tokens(self) -> bool:
        """Whether an arm of it has another tokenizer than the control, so that its rows and windows differ."""
        return self.enlarge is not None

    @property
    def is_control(self) -> bool:
        """Whether it is what every other arm is compared with."""
        return self.name == "control"

    @property
    def is_placebo(self) -> bool:
        """Whether it is a penalty of equal size with no reason to help, to compare with and not to use."""
        return self.name in _PENALTY_WORDS


_PLACEBOS: tuple[tuple[RemedyName, str, str], ...] = (
    ("placebo-shuffled", "Placebo: shuffled states", "the angular loss on tokens of other texts"),
    ("placebo-projection", "Placebo: random projection", "the angular loss on a random projection"),
    ("placebo-norm", "Placebo: norms", "a penalty on norms with the same gradient size"),
)
_TABLE = (
    Remedy(
        name="control",
        title="Control",
        in_a_line="cross-entropy only, the reference",
        definition=lambda spec: "Cross-entropy only: same text in the same order, same steps, same seed.",
        source="—",
        inks=("warm",),
    ),
    Remedy(
        name="dispersion",
        title="Dispersion loss",
        in_a_line="a dispersion loss on the token states",
        definition=_define_dispersion,
        source="Liu et al., 2026, arXiv:2602.00217",
        inks=("accent", "navy", "sky"),
        takes=("loss", "layers", "schedule", "coefficient"),
        coefficient=COEFFICIENT,
        acts=_disperse,
    ),
    Remedy(
        name="embedding-dropout",
        title="Embedding dropout",
        in_a_line="whole vocabulary rows dropped while training",
        definition=lambda spec: (
            f"In training each row of the input embedding matrix is dropped with probability {DROPOUT_P:g} in a "
            f"forward pass, wherever its token stands but at the start of a document; the others are multiplied by "
            f"1/{1 - DROPOUT_P:g}."
        ),
        source="Merity et al., 2018, arXiv:1708.02182",
        inks=("plum",),
        acts=_drop_embeddings,
    ),
    Remedy(
        name="noisy-embedding",
        title="Noisy embeddings (NEFTune)",
        in_a_line="uniform noise on the embeddings while training (NEFTune)",
        definition=lambda spec: (
            f"In training U(−1, 1) · {NOISE_ALPHA:g}/√(L·d) is added to the input embeddings; L is the length of "
            "the row without padding, d the width."
        ),
        source="Jain et al., 2023, arXiv:2310.05914",
        inks=("leaf",),
        acts=_disturb_embeddings,
    ),
    Remedy(
        name="active-forgetting",
        title="Active forgetting",
        in_a_line="input embeddings drawn anew from time to time",
        definition=lambda spec: (
            f"Every min({FORGET_EVERY:,}, a third of the) steps the input embeddings are drawn anew and their "
            "optimizer moments zeroed, never after the last step. A pre-training method: late in fine-tuning it "
            "destroys what the embeddings knew."
        ),
        source="Chen et al., 2023, arXiv:2307.01163",
        inks=("rose",),
        acts=_forget_embeddings,
        needs=("trained embeddings",),
        caution=Caution(
            "Active forgetting is a pre-training method",
            "It re-initialises the embeddings while the body is still learning; late in fine-tuning it destroys what "
            "they knew.",
            "Chen et al. 2023, arXiv:2307.01163",
            steps=30,
        ),
    ),
    Remedy(
        name="larger-vocab",
        title="Larger vocabulary",
        in_a_line="new tokens learned from the training text",
        definition=lambda spec: (
            f"New tokens continue the tokenizer's BPE merges on the training text (frequency ≥ {MIN_FREQUENCY}, at "
            f"most {MAX_GROWTH:.0%} of the vocabulary); their rows start as the mean of the pieces they replace. "
            "To be compared by bits per byte, not by perplexity."
        ),
        source=(
            "Merges: Sennrich et al., 2016, arXiv:1508.07909; larger vocabularies: Tao et al., 2024, arXiv:2407.13623"
        ),
        inks=("teal",),
        enlarge=_enlarge,
        caution=Caution(
            "A larger vocabulary is a design for training from the start",
            "New rows start as means of old ones and need training; compare it by bits per byte, never by perplexity. "
            "It sees more text per step than the other arms.",
            "Tao et al. 2024, arXiv:2407.13623",
            steps=10,
        ),
    ),
    Remedy(
        name="cosreg",
        title="Cosine regularisation",
        in_a_line="mean cosine of the output embedding rows in the loss",
        definition=lambda spec: (
            f"Cross-entropy + {spec.coefficient} · the mean cosine over pairs of rows of the output embedding matrix."
        ),
        source="Gao et al., 2019, arXiv:1907.12009",
        inks=("moss",),
        takes=("coefficient",),
        coefficient=COSREG_DEFAULT,
        acts=_regularise,
        needs=("trained embeddings",),
    ),
    Remedy(
        name="simreg",
        title="Similarity regularisation (SimReg)",
        in_a_line="tokens with the same next token pulled together",
        definition=lambda spec: (
            f"Cross-entropy + {spec.coefficient} · a contrastive loss (temperature 0.1) on the states after the last "
            "block: tokens of a text that share the next token are pulled together, the others pushed apart."
        ),
        source="after arXiv:2605.08809",
        inks=("leaf",),
        takes=("layers", "schedule", "coefficient"),
        coefficient=SIMREG_DEFAULT,
        layers="last",
        acts=_penalise,
        needs=("next tokens",),
    ),
    Remedy(
        name="coupled-adam",
        title="Coupled Adam",
        in_a_line="Adam's second moment shared over the vocabulary",
        definition=lambda spec: (
            "For the rows of input and output embeddings Adam's bias-corrected second moment is replaced by its mean "
            "over the rows."
        ),
        source="after arXiv:2502.08441",
        inks=("sky",),
        acts=_couple_moments,
        needs=("Adam", "trained embeddings"),
    ),
    Remedy(
        name="layernorm-scaling",
        title="LayerNorm scaling",
        in_a_line="norms of block l times 1/√l, from scratch",
        definition=lambda spec: "The output of each norm in block l is multiplied by 1/√l, from the first step on.",
        source="after Sun et al., 2025, arXiv:2502.05795",
        inks=("navy",),
        acts=_scale_norms,
        from_scratch=True,
    ),
    *(
        Remedy(
            name=name,
            title=title,
            in_a_line=line,
            definition=_define_dispersion,
            source="ours, a control of equal size",
            inks=("quiet",),
            takes=("layers", "schedule", "coefficient"),
            coefficient=COEFFICIENT,
            acts=_penalise,
            needs=("several texts",) if name == "placebo-shuffled" else (),
        )
        for name, title, line in _PLACEBOS
    ),
)
REMEDIES: dict[str, Remedy] = {remedy.name: remedy for remedy in _TABLE}


def remedy_of(spec: ArmSpec) -> Remedy:
    """The remedy that an arm is of."""
    return REMEDIES[spec.remedy]


def can_be_chosen(spec: ArmSpec) -> bool:
    """Whether an arm may be recommended; placebos and negative coefficients are trained to compare with."""
    return not remedy_of(spec).is_placebo and (spec.coefficient is None or spec.coefficient > 0)


def schedule_of(spec: ArmSpec, asked: str) -> str:
    """The schedule of an arm's coefficient: its own, else what is asked for all; constant where it takes none."""
    return (spec.schedule or shortest_schedule(asked)) if "schedule" in remedy_of(spec).takes else "constant"


def while_on(schedule: str) -> str:
    """What a cost measured with the loss on stands for: empty for every step, else ` while …, 25 % of the steps`."""
    share = share_on(schedule)
    return "" if share == 1 else f" while the loss is on, {share:.0%} of the steps"


def dose_in_words(coefficient: float | None, schedule: str) -> str:
    """A coefficient and how it changes: `coefficient 1, falling to 0 (linear:0.25)`; empty where there is neither."""
    known = [] if coefficient is None else [f"coefficient {coefficient:g}"]
    falls = [] if schedule == "constant" or coefficient == 0 else [f"falling to 0 ({schedule})"]
    return ", ".join([*known, *falls])


def definition_of(spec: ArmSpec, asked: str) -> str:
    """What an arm does, with all constants and the schedule of its coefficient; asked: as in `schedule_of`."""
    schedule = schedule_of(spec, asked)
    falls = "" if schedule == "constant" else f" The coefficient falls to 0 ({schedule})."
    return remedy_of(spec).definition(spec) + falls
