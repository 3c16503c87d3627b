"""`condense` with the other `robust`: the three strongest coordinates left out, nothing standardised.

python docs/study/leave_out.py trial …, as batch R of results.md.
"""

import torch
from torch import Tensor

from condense.cli.app import main
from condense.dispersion.losses import angular
from condense.dispersion.variants import PENALTIES, usual_tokens

LEFT_OUT = 3


def leave_strongest_out(states: Tensor, mask: Tensor | None = None, *, tau: float = 1.0, clamp: float = 0.1) -> Tensor:
    """`angular` on states without sinks and without the coordinates of the largest mean square.

    Shapes: states (B, S, d), mask (B, S) -> scalar. Range: that of `angular`.
    """
    kept = usual_tokens(states, mask)
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    size = states.detach()[kept].square().mean(0)
    weak = size.topk(max(1, len(size) - LEFT_OUT), largest=False).indices.sort().values
    return angular(states[..., weak], kept, tau=tau, clamp=clamp)


if __name__ == "__main__":
    PENALTIES["robust"] = leave_strongest_out
    main()
