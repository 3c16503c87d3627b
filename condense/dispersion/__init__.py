"""The dispersion losses, the `Disperser` that adds them to any training loop, and its Trainer.

May import models, texts and what is below.
"""

from condense.dispersion.losses import LOSSES, angular, decorrelation, l2_repel, mean_cosine, orthogonal

__all__ = ["LOSSES", "angular", "decorrelation", "l2_repel", "mean_cosine", "orthogonal"]
