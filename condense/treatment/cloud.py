"""The picture of a treatment: a few tokens of every arm after one block, on two axes that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condense.diagnosis.forward import kept_positions
from condense.models.layers import Site, find_stacks, run, watching
from condense.texts.windows import Windows

CLOUD_TEXTS = 8
CLOUD_TOKENS = 48


@torch.inference_mode()
def token_states(model: Any, windows: Windows, texts: int = CLOUD_TEXTS, tokens: int = CLOUD_TOKENS) -> Tensor:
    """Unit states of a few tokens of a few texts after the middle block of the deepest half, (texts·tokens, d).

    Every arm gives the same tokens in the same order.
    """
    stack = find_stacks(model)[-1]
    keep = kept_positions(windows.special)
    rows = []
    for index in range(min(texts, len(windows))):
        kept = torch.nonzero(keep[index]).flatten()
        chosen = kept[torch.linspace(0, len(kept) - 1, min(tokens, len(kept))).round().long()]
        found: list[Tensor] = []

        def receive(site: Site, states: Tensor, chosen: Tensor = chosen, found: list[Tensor] = found) -> None:
            if site.name == "block" and site.index == drawn_block(stack.blocks):
                found.append(states[0, chosen.to(states.device)].double().cpu())

        with watching(stack, receive):
            run(model, find_stacks(model), windows.ids[index : index + 1].to(model.device))
        rows.append(found[0])
    cloud = torch.cat(rows)
    units: Tensor = cloud / cloud.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return units


def drawn_block(blocks: int) -> int:
    """The block whose cloud is drawn: three quarters down."""
    return max(1, round(0.75 * blocks))


def project(clouds: Mapping[str, Tensor]) -> tuple[dict[str, tuple[tuple[float, ...], ...]], tuple[float, ...]]:
    """Two principal axes of all clouds together, not centred per arm: coordinates per arm, variance shares."""
    from sklearn.decomposition import PCA

    stacked = np.vstack([cloud.numpy() for cloud in clouds.values()])
    pca = PCA(n_components=2, svd_solver="full").fit(stacked)
    drawn = {
        name: tuple(tuple(round(float(v), 4) for v in point) for point in pca.transform(cloud.numpy()))
        for name, cloud in clouds.items()
    }
    return drawn, tuple(round(float(v), 4) for v in pca.explained_variance_ratio_)
