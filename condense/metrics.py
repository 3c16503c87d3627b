"""The table of every number a user sees: its key, name in the field, unit, range, direction, source.

Standard library only: the terminal, the report, the gate and the documentation all read this table,
so that a number has one name and one explanation everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One number: how it is called, what it means, which values it can take, which way is condensed.

    The last four say how tables show it: under which group and short head, with how many digits, and where. `level`
    1 is in every table, 2 in the wider ones (Markdown, the arms beside each other, a wide terminal), 3 in the page's
    layer table only, 0 in none.
    """

    key: str
    title: str
    unit: str
    low: float | None
    high: float | None
    condensed: Literal["high", "low"] | None
    meaning: str
    formula: str
    source: str
    group: str = "Further"
    head: str = ""
    digits: int = 3
    level: Literal[0, 1, 2, 3] = 2


_TABLE = (
    Metric(
        "mean_cosine", "mean cosine", "cosine", -1, 1, "high",
        "How alike the directions of two tokens of one text are on average; 0 is spread, 1 is one direction.",
        "(‖s‖² − n)/(n(n−1)), s = Σ x/‖x‖", "Ethayarajh 2019, arXiv:1909.00512",
        group="Cosine", head="mean", level=1,
    ),
    Metric(
        "mean_cosine_distinct", "mean cosine, distinct tokens", "cosine", -1, 1, "high",
        "The mean cosine over pairs of different tokens: what a text repeats does not count as likeness.",
        "(‖s‖² − Σ_id‖s_id‖²)/(n² − Σ n_id²), s_id over the positions of one token", "definition of condense",
        group="Cosine", head="distinct",
    ),
    Metric(
        "cosine_std", "cosine spread", "cosine", 0, 1, None,
        "Standard deviation of the cosine similarity over all pairs of tokens of a text.",
        "sqrt(mean c² − (mean c)²) over pairs i<j", "Liu et al. 2026, arXiv:2602.00217",
        group="Cosine", head="spread", level=3,
    ),
    *(
        Metric(
            f"cosine_q{q}", f"cosine {q} % quantile", "cosine", -1, 1, None,
            f"{q} % of the pairs of tokens of a text are less similar than this.",
            "exact quantile over pairs i<j, linear interpolation", "Liu et al. 2026, arXiv:2602.00217",
            group="Cosine", head=f"{int(q)} %", digits=2, level=0 if q in ("25", "75") else 3,
        )
        for q in ("05", "25", "50", "75", "95")
    ),
    Metric(
        "effective_rank", "effective rank", "dimensions", 1, None, "low",
        "How many directions the tokens of a text use once their common direction is taken away.",
        "exp H(σ/Σσ), σ singular values of the centred unit rows", "Roy & Vetterli 2007, EUSIPCO",
        group="Rank", head="effective", digits=1, level=1,
    ),
    Metric(
        "entropy_rank", "entropy rank", "dimensions", 1, None, "low",
        "Exponential of the matrix entropy of the cosine matrix; falls to 1 when all tokens point one way.",
        "exp H(λ/Σλ), λ eigenvalues of C/n (uncentred)", "Skean et al. 2025, arXiv:2502.02013",
        group="Rank", head="entropy", digits=1,
    ),
    Metric(
        "participation_ratio", "participation ratio", "dimensions", 1, None, "low",
        "Number of directions that share the energy evenly, corrected for the number of tokens.",
        "1 / mean c² over pairs i<j", "Chun et al. 2026, arXiv:2509.26560",
        group="Rank", head="participation", digits=1, level=3,
    ),
    Metric(
        "dimension", "dimension", "dimensions", 0, None, "low",
        "Number of directions that share the variance evenly; does not depend on the number of tokens.",
        "(tr Σ)²/tr(Σ²) of the centred unit rows, by U-statistics", "Chun et al. 2026, arXiv:2509.26560",
        group="Rank", head="dimension", digits=1,
    ),
    Metric(
        "dimension_share", "dimension / width", "share", 0, None, "low",
        "The dimension as a share of the model's width, for models of different widths.",
        "dimension / d", "Chun et al. 2026, arXiv:2509.26560",
        group="Rank", head="of the width", digits=3, level=3,
    ),
    Metric(
        "relative_variance", "relative variance", "share", 0, 1, "low",
        "Share of the states' energy that is not in their mean.",
        "1 − n‖x̄‖²/‖X‖²_F, raw rows", "share of energy outside the mean; equals 1 − R² on unit rows",
        group="Variance", head="relative",
    ),
    Metric(
        "total_variance", "variance per dimension", "activation²", 0, None, "low",
        "Unbiased variance of the raw states, averaged over dimensions; not comparable across depth.",
        "tr Cov(X)/d", "Bardes et al. 2022, arXiv:2105.04906",
        group="Variance", head="per dim.", digits=2, level=3,
    ),
    Metric(
        "median_norm", "median norm", "activation", 0, None, None,
        "Median length of the token states: how far the residual stream has grown.",
        "median ‖x‖", "Sun et al. 2024, arXiv:2402.17762",
        group="Length", head="median norm", digits=1, level=3,
    ),
    Metric(
        "sink_ratio", "sink ratio", "ratio", 1, None, None,
        "Longest state of any position over the median: above 20 it is a sink, above 100 a massive activation.",
        "max ‖x‖ over all positions / median ‖x‖", "Sun et al. 2024, arXiv:2402.17762",
        group="Length", head="sink ratio", digits=1,
    ),
    Metric(
        "mean_cosine_with_sink", "mean cosine, sink kept", "cosine", -1, 1, "high",
        "The mean cosine a naive tool prints: position 0, special tokens and sinks kept.",
        "as mean_cosine, all positions", "Xiao et al. 2024, arXiv:2309.17453",
        group="Sink kept", head="cosine", level=3,
    ),
    Metric(
        "effective_rank_with_sink", "effective rank, sink kept", "dimensions", 1, None, "low",
        "The effective rank a naive tool prints: raw uncentred rows; position 0, special tokens and sinks kept.",
        "exp H(σ/Σσ), σ of the raw rows", "Roy & Vetterli 2007; arXiv:2510.06477 for the artefact",
        group="Sink kept", head="rank", digits=1, level=3,
    ),
    Metric(
        "top_dimension_share", "share of the top 3 dimensions", "share", None, None, None,
        "Share of the mean cosine that three single coordinates make; near 1 the cone is three dimensions.",
        "Σ top 3 of (s_k² − Σ u_ik²)/(n(n−1)) / mean_cosine",
        "Timkey & van Schijndel 2021, arXiv:2109.04404",
        group="Dimensions", head="share of top 3",
    ),
    Metric(
        "mean_cosine_without_top_dimensions", "mean cosine without top 3", "cosine", -1, 1, "high",
        "Mean cosine after the text's own three strongest coordinates are set to zero.",
        "as mean_cosine, top 3 coordinates zeroed in x",
        "Timkey & van Schijndel 2021, arXiv:2109.04404",
        group="Cosine", head="without top 3", level=1,
    ),
    Metric(
        "cross_text_cosine", "cross-text cosine", "cosine", -1, 1, "high",
        "Mean cosine of tokens of different documents: the anisotropy baseline, a direction common to all.",
        "(‖Σs_g‖² − Σ‖s_g‖²)/Σ_{g≠g'} n_g n_g', g the documents", "Ethayarajh 2019, arXiv:1909.00512",
        group="Cosine", head="cross-text",
    ),
    Metric(
        "update_ratio", "update ratio", "ratio", 0, None, None,
        "How much a block writes to a token's state, as a share of what it received; near 0 it changes nothing.",
        "mean over tokens of ‖h_l − h_{l−1}‖/‖h_{l−1}‖", "Sun et al. 2025, arXiv:2502.05795",
        group="Block", head="update",
    ),
    Metric(
        "update_cosine", "cosine of input and output", "cosine", -1, 1, None,
        "Mean cosine of what a block receives and what it hands on for the same token; 1: it turns nothing.",
        "mean over tokens of h_{l−1}·h_l/(‖h_{l−1}‖‖h_l‖)", "Men et al. 2024, arXiv:2403.03853",
        group="Block", head="in–out", level=3,
    ),
)  # fmt: skip

_QUALITY = (
    Metric(
        "loss", "loss", "nats/token", 0, None, None,
        "Mean negative log-likelihood of the predicted tokens; for masked models a pseudo-loss.",
        "−mean log p(token)", "Salazar et al. 2020, arXiv:1910.14659 for the masked form",
        group="Quality", head="loss", digits=4, level=1,
    ),
    Metric(
        "perplexity", "perplexity", "", 1, None, None,
        "Exponential of the loss; comparable only between models with one tokenizer.",
        "exp(loss)", "Jelinek et al. 1977",
        group="Quality", head="perplexity", digits=2,
    ),
    Metric(
        "bits_per_byte", "bits per byte", "bits/byte", 0, None, None,
        "Bits the model needs for a byte of text; comparable across tokenizers and vocabularies.",
        "Σ nats / (ln 2 · UTF-8 bytes of the predicted span)", "Gao et al. 2020, arXiv:2101.00027",
        group="Quality", head="bits/byte", digits=4, level=1,
    ),
)  # fmt: skip

_PAIR = (
    Metric(
        "same.kl", "KL to the first", "nats/token", 0, None, None,
        "How far the predictions of two models on the same tokens are apart; 0 where they are the same.",
        "mean over predicted positions of Σ p·log(p/q), p the first's", "Kullback & Leibler 1951",
        group="Same model", head="KL", digits=4,
    ),
    Metric(
        "same.top1", "top-1 agreement", "share", 0, 1, None,
        "Share of the predicted positions at which two models have the same most likely token.",
        "mean of [argmax p = argmax q]", "as the perplexity tool of llama.cpp prints it",
        group="Same model", head="top-1", digits=4,
    ),
    Metric(
        "same.sites.cosine", "cosine of corresponding states", "cosine", -1, 1, None,
        "Mean cosine of the two models' states of the same token at one site; 1 − cosine above rounding parts them.",
        "mean x·y/(‖x‖‖y‖) over kept tokens", "definition of condense",
        group="Same model", head="cosine", digits=4,
    ),
    Metric(
        "same.sites.cka", "debiased CKA", "", -1, 1, None,
        "Whether two models' states of the same tokens have one geometry, up to rotation and scale; 0 for unrelated.",
        "HSIC₁(K, L)/√(HSIC₁(K, K)·HSIC₁(L, L)), linear kernels, HSIC₁ averaged over windows",
        "Kornblith et al. 2019, arXiv:1905.00414; Murphy et al. 2024, arXiv:2405.01012",
        group="Same model", head="CKA", digits=4,
    ),
)  # fmt: skip

POOLINGS: tuple[str, ...] = ("mean", "last", "cls")
"""How a text becomes one vector: the mean of its states, the last of them, or that of the special token before it."""

_POOLED = (
    Metric(
        key="pooled.cosine",
        title="cosine between texts",
        unit="cosine",
        low=-1,
        high=1,
        condensed="high",
        meaning="How alike the vectors of two texts of different documents are on average.",
        formula="(‖Σs_g‖² − Σ‖s_g‖²)/Σ_{g≠g'} n_g n_g', s_g the sum of a document's unit vectors",
        source="Ethayarajh 2019, arXiv:1909.00512, of whole texts",
        group="Pooled",
        head="cosine",
        digits=2,
    ),
    Metric(
        key="pooled.dimension",
        title="dimension of the texts' vectors",
        unit="dimensions",
        low=0,
        high=None,
        condensed="low",
        meaning="Number of directions that share the variance of the texts' vectors evenly.",
        formula="as dimension, each text a row",
        source="Chun et al. 2026, arXiv:2509.26560",
        group="Pooled",
        head="dimension",
        digits=1,
    ),
    Metric(
        key="pooled.effective_rank",
        title="effective rank of the texts' vectors",
        unit="dimensions",
        low=1,
        high=None,
        condensed="low",
        meaning="How many directions the texts' vectors use once their common direction is taken away.",
        formula="as effective_rank, each text a row",
        source="Roy & Vetterli 2007, EUSIPCO",
        group="Pooled",
        head="rank",
        digits=1,
    ),
    Metric(
        key="pooled.halves_found",
        title="halves that find each other",
        unit="share",
        low=0,
        high=1,
        condensed="low",
        meaning="How often the vector of half a text is nearest to that of its other half, among the halves of all.",
        formula="mean of [argmax_j cos(a_i, b_j) = i] and [argmax_j cos(b_i, a_j) = i]; k equal ones count 1/k",
        source="definition of condense; spans of one document as positives: Giorgi et al. 2021, arXiv:2006.03659",
        group="Pooled",
        head="halves found",
        digits=2,
    ),
)

POOLED: dict[str, Metric] = {metric.key.removeprefix("pooled."): metric for metric in _POOLED}
"""One vector per text: one row per key of `pooled.mean`, `pooled.last` and `pooled.cls`."""

_MATRIX = (
    Metric(
        "matrix.mean_cosine", "mean cosine of rows", "cosine", -1, 1, "high",
        "How alike the directions of two rows of an embedding matrix are on average.",
        "(‖Σu‖² − V)/(V(V−1)) over all rows", "Gao et al. 2019, arXiv:1907.12009",
        group="Embedding matrix", head="mean cosine", digits=4,
    ),
    Metric(
        "matrix.mean_shift", "mean shift of rows", "ratio", 0, 1, "high",
        "How far the rows are moved in common: the length of their mean over their root mean square length.",
        "‖mean row‖/rms ‖row‖", "Coupled Adam 2025, arXiv:2502.08441",
        group="Embedding matrix", head="mean shift",
    ),
    Metric(
        "matrix.effective_rank", "effective rank of rows", "dimensions", 1, None, "low",
        "How many directions the rows use once their common direction is taken away.",
        "exp H(σ/Σσ), σ singular values of the centred unit rows", "Roy & Vetterli 2007, EUSIPCO",
        group="Embedding matrix", head="effective rank", digits=1,
    ),
    Metric(
        "matrix.dimension", "dimension of rows", "dimensions", 0, None, "low",
        "Number of directions that share the variance of the unit rows evenly.",
        "(tr Σ)²/tr(Σ²) of the centred unit rows, by U-statistics", "Chun et al. 2026, arXiv:2509.26560",
        group="Embedding matrix", head="dimension", digits=1,
    ),
    *(
        Metric(
            f"matrix.norm_q{q}", f"row length, {q} % quantile", "weight", 0, None, None,
            f"{q} % of the rows are shorter than this.", "exact quantile of ‖row‖", "definition of condense",
            group="Embedding matrix", head=f"length {int(q)} %",
        )
        for q in ("05", "50", "95")
    ),
    Metric(
        "matrix.untrained_share", "rows never trained", "share", 0, 1, None,
        "Share of the rows that are zero, equal to another row, or as the initialisation drew them.",
        "(zero or duplicate or initial)/V", "Land & Bartolo 2024, arXiv:2405.05417, for why they matter",
        group="Embedding matrix", head="never trained", digits=4,
    ),
)  # fmt: skip

_LENS = (
    Metric(
        "lens.cross_entropy", "logit lens: cross-entropy", "nats/token", 0, None, None,
        "Loss of what the head would predict from the state after a block; at the last block the model's own.",
        "−mean log p(next token), p the head on the normed state", "nostalgebraist 2020; Belrose et al. 2023, "
        "arXiv:2303.08112",
        group="Logit lens", head="cross-entropy", digits=2,
    ),
    Metric(
        "lens.kl", "logit lens: KL", "nats/token", 0, None, None,
        "How far that prediction is from the model's final one; 0 at the last block.",
        "mean Σ p·log(p/q), p the final prediction, q the lens", "Belrose et al. 2023, arXiv:2303.08112",
        group="Logit lens", head="KL", digits=3,
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _TABLE}
"""Geometry: one row per key of `sites[].metrics` and `deep`."""

QUALITY: dict[str, Metric] = {metric.key: metric for metric in _QUALITY}
"""Quality: one row per key of `quality`."""

PAIR: dict[str, Metric] = {metric.key: metric for metric in _PAIR}
"""Two live models on the same tokens: one row per number of `members[].same` in a comparison."""

MATRIX: dict[str, Metric] = {metric.key: metric for metric in _MATRIX}
"""Embedding and unembedding matrices: one row per number of `matrices`, there without the prefix."""

LENS: dict[str, Metric] = {metric.key: metric for metric in _LENS}
"""The logit lens: at every site but the output, with `--lens`."""

UPDATES: tuple[str, ...] = ("update_ratio", "update_cosine")
"""What a block does to the states it receives: at blocks only."""

PER_TEXT: tuple[str, ...] = tuple(key for key in METRICS if key not in ("cross_text_cosine", *UPDATES))
"""The metrics that one site of a text gives alone; `cross_text_cosine` is pooled over texts."""

SPECTRAL: tuple[str, ...] = ("effective_rank", "entropy_rank")
"""The metrics that carry a Gaussian null of the same (n, d)."""

SINK_FACTOR = 20.0
"""A position whose state is this many times longer than the median one of its window is a sink, wherever it stands."""

VERSIONS: dict[str, int] = {
    **dict.fromkeys(METRICS, 2),  # 2: sinks are found by their norm and left out; deep is a mean over blocks
    **dict.fromkeys((*UPDATES, "mean_cosine_distinct", "dimension", "dimension_share", *QUALITY), 1),
    **{metric.key: 1 for metric in (*_POOLED, *_MATRIX, *_LENS)},
}
"""The version of each number's definition: two runs compare in a key where its versions agree."""
