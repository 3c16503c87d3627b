"""Point clouds by recipe: the golden ones, and those that stand for a diagnosis."""

import numpy as np
import torch
from torch import Tensor


def cloud(seed: int, n: int, d: int, *, cone: float = 0.0, rogue: float = 0.0, sink: float = 0.0) -> np.ndarray:
    """The recipe of golden/geometry.json: a Gaussian cloud with a common mean, a rogue coordinate, a sink row."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    if cone:
        x += cone * rng.standard_normal(d)
    if rogue:
        x[:, 3] += rogue
    if sink:
        x[0] *= 1 + sink
    return x.astype(np.float32)


def states(seed: int, n: int, d: int, **more: float) -> Tensor:
    """The same as a tensor."""
    return torch.from_numpy(cloud(seed, n, d, **more))
