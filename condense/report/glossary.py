"""The glossary at the foot of every page: the terms of its kind, then those of all pages, then every metric."""

from __future__ import annotations

from condense.metrics import METRICS, PAIR, POOLED, QUALITY, Metric

Groups = list[tuple[str, list[Metric]]]
CONVENTION = "convention of condense"
CLUSTERS = "Liang & Zeger 1986; Bell & McCaffrey 2002"
LIU = "Liu et al. 2026, arXiv:2602.00217"
TIMKEY = "Timkey & van Schijndel 2021, arXiv:2109.04404"


def term(title: str, meaning: str, source: str = CONVENTION, formula: str = "") -> Metric:
    """A term of the glossary that is not a metric."""
    return Metric(title, title, "", None, None, None, meaning, formula, source)


DEEP = term("deep", "Read over the deepest half of the blocks, as a mean; see “deepest half” below.")
MEASURABLE = term(
    "measurable",
    "The 95 % interval of a difference in deep mean cosine excludes 0 and the difference is at least the smallest that "
    "counts (--min-effect). A difference whose whole interval lies within ± that is too small to count; anything else "
    "is not decided by the texts.",
)
TOLERANCE = term(
    "tolerance",
    "Quality counts as held if even the upper bound of the change in bits per byte is at most this share of the "
    "reference’s value (--quality-tolerance).",
)
DISPERSION = term(
    "dispersion loss, penalty, coefficient",
    "A term added to cross-entropy that falls as the tokens of a text spread. The penalty is coefficient × the loss, a "
    "mean over the treated layers.",
    LIU,
)
OPENED = term(
    "what opened",
    "A loss on cosines is met most cheaply by rescaling the few dimensions that dominate them. If the difference stays "
    "without each text’s top three dimensions, the cone itself opened.",
    TIMKEY,
)
TREATMENT = [
    term(
        "control arm",
        "The same model trained on the same rows in the same order, with the same seed and number of steps, by "
        "cross-entropy alone. Only what differs from it can be the loss.",
    ),
    term(
        "paired difference",
        "Treated minus control on the very same windows. What all arms share with a window cancels, so the interval "
        "is narrower than the arms’ own. It covers documents, and training seeds where there are several.",
        CLUSTERS,
    ),
    MEASURABLE,
    TOLERANCE,
    DEEP,
    DISPERSION,
    OPENED,
]
TRIAL = [
    term(
        "arm",
        "One remedy with its settings. All arms start from the same weights and get the same rows in the same order, "
        "the same number of steps and the same seeds.",
    ),
    term(
        "control arm",
        "Cross-entropy alone. Between before and control lies training as such; only what differs from the control "
        "can be a remedy’s effect.",
    ),
    term(
        "Δ, difference to the control",
        "Arm minus control, paired by seed and window, mean over seeds. The 95 % interval covers seeds and documents.",
        CLUSTERS,
    ),
    term(
        "spread over seeds, SD",
        "Standard deviation of the difference over the training seeds: what another seed would change. Few seeds "
        "estimate it badly.",
    ),
    term(
        "place, tie",
        "1 + the number of arms that are clearly better: at least five seeds, a difference of at least what counts, "
        "and p below .05 after Holm’s adjustment for all pairs. What is not clear is a tie.",
    ),
    term(
        "early or final effect, the sign turns",
        "The difference to the control in bits per byte is judged in three quarters of the steps and at the end. A "
        "sign turns only where both signs are measurable.",
    ),
    term(
        "after equal time",
        "After as many seconds of training as the control had, under the same seed: an arm whose steps take longer is "
        "read at fewer steps.",
    ),
    term(
        "dose and response, recommended coefficient",
        "Arms that differ in their coefficient alone. Recommended is the one with the largest measurable effect whose "
        "quality is held, or none.",
    ),
    term(
        "time and memory per step",
        "Time: training steps of all arms in turn, so that background load does not decide. Memory: the peak of a "
        "process per arm.",
    ),
    MEASURABLE,
    TOLERANCE,
    DEEP,
    DISPERSION,
    OPENED,
]
COMPARISON = [
    *PAIR.values(),
    term(
        "identical, equivalent, different",
        "Two models that read the same token ids: identical where no state leaves the rounding of the arithmetic, "
        "equivalent where the whole interval of the KL lies below the tolerated share of the first’s loss, different "
        "where all of it lies above; else it is not shown.",
    ),
    term(
        "paired difference",
        "A member minus the first on the very same windows; the interval covers documents. What both share with a "
        "window cancels. Where the windows differ the variances of both are added: unpaired, and wider.",
        CLUSTERS,
    ),
    term(
        "trend over depth",
        "Rank correlation of the mean cosine with depth, Spearman’s rho and Kendall’s tau. Published as severity; here "
        "a trend, for random weights score +1.",
        LIU,
    ),
    term(
        "early peak",
        "A checkpoint inside a run whose deep mean cosine lies measurably above the first and the last; early if it "
        "lies in the first half of the steps.",
    ),
    MEASURABLE,
    TOLERANCE,
    DEEP,
]
TERMS = [
    term("text, window", "A run of exactly max-length tokens of one document. Documents are never glued together."),
    term(
        "deepest half",
        "The later half of the blocks. A deep number is the mean over them; the verdict reads only these.",
        formula="blocks ⌊L/2⌋+1 to L",
    ),
    term(
        "attention sink",
        "A token, usually the first, that attention heads look at when they have nothing to look at. Its state is huge "
        "and would hide all others, so position 0 and special tokens are left out of every primary number.",
        "Xiao et al. 2024, arXiv:2309.17453; Sun et al. 2024, arXiv:2402.17762",
    ),
    term(
        "rogue dimension",
        "A coordinate with a large offset common to all tokens, which makes every cosine large although the other "
        "coordinates differ.",
        TIMKEY,
    ),
    term(
        "Gaussian null",
        "The same number for random Gaussian rows of the same shape: what no structure at all would give. A rank is "
        "read against it, never alone.",
    ),
    term(
        "random twin", "The same architecture with random weights. What training added is the difference to the twin."
    ),
    term(
        "95 % interval",
        "How far the number may move with other documents of the same kind: Student’s t over documents, for windows of "
        "one document resemble each other. Few documents give a wide interval, one document none.",
        f"Student 1908; {CLUSTERS}",
    ),
]


def glossary(title: str = "", terms: list[Metric] | None = None) -> Groups:
    """The terms of a kind of report under their title, those of every page, then the metrics by group."""
    metrics: dict[str, list[Metric]] = {}
    for metric in (*METRICS.values(), *QUALITY.values(), *POOLED.values()):
        metrics.setdefault(metric.group, []).append(metric)
    return [*([(title, terms)] if terms else []), ("Terms", TERMS), *metrics.items()]
