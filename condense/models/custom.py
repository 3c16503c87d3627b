"""Models of classes that came with a checkpoint (`auto_map`): embedding, head and blocks where the class names none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condense.errors import UnavailableError
from condense.models.adapt import Adapted, Blocks, adapt, candidate_blocks, is_transformers, logits_of

_PROBE_TOKENS = 8


def is_custom(model: nn.Module) -> bool:
    """Whether a transformers model is of a class that transformers does not ship, nor derives from one that it does."""
    return is_transformers(model) and not any(
        kind.__module__.startswith("transformers.models.") for kind in type(model).__mro__
    )


def input_embeddings(model: Any) -> nn.Module | None:
    """The embedding of token ids: as the class returns it, else the one table with as many rows as the vocabulary."""
    try:
        return model.get_input_embeddings()  # type: ignore[no-any-return]
    except (AttributeError, NotImplementedError):
        rows = _vocabulary(model)
        tables = [part for part in model.modules() if isinstance(part, nn.Embedding) and part.num_embeddings >= rows]
        return tables[0] if rows and len(tables) == 1 else None


def output_head(model: Any) -> nn.Module | None:
    """The map of states to logits: the class's, else the one linear map of a custom class onto the vocabulary."""
    own = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if own is not None or not is_custom(model):
        return own
    rows = _vocabulary(model)
    inside = {id(part) for blocks in candidate_blocks(model) for block in blocks.modules for part in block.modules()}
    heads = [
        part
        for part in model.modules()
        if isinstance(part, nn.Linear) and part.out_features >= rows and id(part) not in inside
    ]
    return heads[0] if rows and len(heads) == 1 else None


def _vocabulary(model: Any) -> int:
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    rows = getattr(config, "vocab_size", None) or getattr(config, "n_vocab", None)
    return rows if isinstance(rows, int) else 0


def flat(model: Any) -> Adapted | None:
    """A custom class whose head and blocks are parts of one module, with its final norm detected in a forward pass.

    None for any other model: then `base_model` gives the states, and the head is outside of it. UnavailableError,
    naming the candidates, where several lists of modules could be the blocks.
    """
    if not is_custom(model) or getattr(model, "base_model", model) is not model or output_head(model) is None:
        return None
    embedding = input_embeddings(model)
    rows = int(getattr(embedding, "num_embeddings", 0))
    if not rows:
        raise UnavailableError(
            f"{type(model).__name__} does not say which module embeds token ids", "it needs get_input_embeddings()"
        )
    adapted = adapt(model, embedding=embedding, head=output_head(model), input="input_ids")
    ids = (torch.arange(_PROBE_TOKENS) + rows // 2) % rows
    adapted.probe(ids[None].to(next(model.parameters()).device))
    return adapted


def blocks_of(root: nn.Module) -> Blocks:
    """The blocks of a custom class that keeps them in no list of modules, or in one of several."""
    return adapt(root).blocks


def logits(output: Any, ids: Tensor) -> Tensor | None:
    """Logits (B, S, V) in what a model returns for ids (B, S): by name, else the tensor that has this shape."""
    named = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    return named if isinstance(named, Tensor) else logits_of(output, ids, whole=True)
