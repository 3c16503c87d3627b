r"""How condensed is a cloud of vectors? Pure functions on states (..., n, d).

Legend: n token states of one text at one site, d dimensions, x_i a row, u_i = x_i/‖x_i‖,
s = Σ u_i, c_ij = u_i·u_j. One function per key of `condense.metrics.METRICS`, named as the key, in `cosine`
(pairs of rows), `spectrum` (ranks and dimension) and `rows` (lengths and variance); all work in float64
and reduce the last two axes. `correspondence` has what takes two readings of the same tokens, `matrix` the rows of
an embedding matrix.
`measure` gives them all for one text from one Gram matrix, in float32
with float64 sums, as the streaming analysis needs it, and leaves sinks out.

Rows whose norm is at most 1e-6 times the root mean square of the row norms have no direction and are
left out, never softened by an epsilon. A quantity that is undefined (fewer than two rows with a
direction) is NaN; states that are not finite raise ValueError.
"""

from condense.geometry.correspondence import (
    block_updates,
    corresponding_cosine,
    corresponding_cosines,
    debiased_cka,
    debiased_hsic,
    divergences,
    update_cosine,
    update_ratio,
)
from condense.geometry.cosine import (
    BINS,
    QUANTILES,
    SHARE_FLOOR,
    TOP,
    cosine_q05,
    cosine_q25,
    cosine_q50,
    cosine_q75,
    cosine_q95,
    cosine_quantile,
    cosine_std,
    cross_cosines,
    cross_text_cosine,
    dimension_contributions,
    histogram,
    mean_cosine,
    mean_cosine_distinct,
    mean_cosine_without_top_dimensions,
    paper_mean_cosine,
    participation_ratio,
    top_dimension_share,
    top_dimensions,
)
from condense.geometry.matrix import MatrixNumbers, matrix_null, measure_matrix
from condense.geometry.measure import Measurement, measure, same_pairs, settle
from condense.geometry.rows import (
    median_norm,
    relative_variance,
    sink_ratio,
    sinks,
    total_variance,
)
from condense.geometry.spectrum import (
    SPECTRAL_TOKENS,
    dimension,
    dimension_moments,
    dimension_share,
    effective_rank,
    entropy_rank,
    gaussian_null,
    repeated_null,
)
from condense.metrics import SINK_FACTOR

__all__ = [
    "BINS",
    "QUANTILES",
    "SHARE_FLOOR",
    "SINK_FACTOR",
    "SPECTRAL_TOKENS",
    "TOP",
    "MatrixNumbers",
    "Measurement",
    "block_updates",
    "corresponding_cosine",
    "corresponding_cosines",
    "cosine_q05",
    "cosine_q25",
    "cosine_q50",
    "cosine_q75",
    "cosine_q95",
    "cosine_quantile",
    "cosine_std",
    "cross_cosines",
    "cross_text_cosine",
    "debiased_cka",
    "debiased_hsic",
    "dimension",
    "dimension_contributions",
    "dimension_moments",
    "dimension_share",
    "divergences",
    "effective_rank",
    "entropy_rank",
    "gaussian_null",
    "histogram",
    "matrix_null",
    "mean_cosine",
    "mean_cosine_distinct",
    "mean_cosine_without_top_dimensions",
    "measure",
    "measure_matrix",
    "median_norm",
    "paper_mean_cosine",
    "participation_ratio",
    "relative_variance",
    "repeated_null",
    "same_pairs",
    "settle",
    "sink_ratio",
    "sinks",
    "top_dimension_share",
    "top_dimensions",
    "total_variance",
    "update_cosine",
    "update_ratio",
]
