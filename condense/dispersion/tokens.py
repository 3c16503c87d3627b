"""Which tokens of a batch count in the penalty, document by document, and which of them are drawn. Torch only.

Left out are padding, special tokens and the first token of each document; a row holds one document unless its
position ids restart. Where it is given none, no shape here depends on the tokens: the host never waits for a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condense.errors import RunError
from condense.models.layers import unwrapped

_SPECIAL = ("bos", "eos", "pad", "sep", "cls", "decoder_start")
_NO_IDS = ("labels", "targets", "target", "attention_mask", "position_ids", "token_type_ids")
GIVEN = ("input_ids", "attention_mask", "position_ids")


class Documents(NamedTuple):
    """The tokens (B, S) of a batch, separated by document; a row holds one unless its position ids restart."""

    attended: Tensor  # bool: not padding
    valid: Tensor  # bool: neither padding, nor special, nor the first token of its document
    document: Tensor  # running number over the batch; meaningless at padding
    position: Tensor  # within the document, from 0; meaningless at padding
    one_a_row: bool = False  # known without looking: there are no position ids

    @property
    def sequences(self) -> Tensor:
        """How many documents have the two valid tokens it takes to make a pair; a scalar."""
        if self.one_a_row:
            return (self.valid.sum(1) >= 2).sum()
        return (torch.bincount(self.document[self.valid]) >= 2).sum()


def find_documents(attended: Tensor, ids: Tensor | None, position_ids: Tensor | None, special: Tensor) -> Documents:
    """Separate documents: attended (B, S) bool, ids and position_ids (B, S) or None, special (k,) ids."""
    width = attended.shape[1]
    columns = torch.arange(width, device=attended.device).expand_as(attended)
    seen = torch.where(attended, columns, -1).cummax(1).values
    previous = torch.cat([torch.full_like(seen[:, :1], -1), seen[:, :-1]], 1)  # the attended token before
    start = attended & (previous < 0)
    if position_ids is not None:
        start |= attended & (position_ids <= position_ids.gather(1, previous.clamp(min=0)))
    valid = attended & ~start
    if ids is not None:
        valid &= ~torch.isin(ids, special.to(ids.device))
    if position_ids is None:
        rows = torch.arange(len(attended), device=attended.device).unsqueeze(1).expand_as(attended)
        return Documents(attended, valid, rows, attended.cumsum(1) - 1, one_a_row=True)
    document = (start.flatten().cumsum(0) - 1).clamp(min=0)
    running = attended.flatten().cumsum(0) - 1
    first = torch.cat([running[start.flatten()], running.new_zeros(1)])
    return Documents(attended, valid, document.view_as(valid), (running - first[document]).view_as(valid))


def read_documents(inputs: Mapping[str, Any], special: Tensor) -> Documents:
    """The documents of a model's inputs: input_ids (B, S), attention_mask and position_ids if there are any.

    ValueError without ids, or with an attention mask of another shape.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise ValueError("documents are separated in input_ids (B, S)")
    return from_candidates({name: [inputs.get(name)] for name in GIVEN}, ids, special)


def from_candidates(given: Mapping[str, list[Any]], like: Tensor, special: Tensor) -> Documents:
    """Documents of a batch whose states or ids are `like`; of the candidates for an input the first that fits."""
    shape, device = like.shape[:2], like.device
    ids, mask, position_ids = (_fitting(name, given[name], shape, device) for name in GIVEN)
    attended = torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask.bool()
    return find_documents(attended, ids, position_ids, special)


class Choice(NamedTuple):
    """Where the chosen tokens stand in the flattened batch: sequences made of documents, padded at the end."""

    tokens: Tensor  # (sequences, most tokens), indices into B * S
    mask: Tensor  # (sequences, most tokens), bool

    def of(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (sequences, most tokens, d) of states (B, S, d), and their mask."""
        return states.flatten(0, 1)[self.tokens.to(states.device)], self.mask.to(states.device)


def choose(documents: Documents, max_tokens: int, seed: int, step: int) -> Choice:
    """Draw at most max_tokens (0: all) valid tokens of each document, the same positions in every batch of a step."""
    if documents.one_a_row:
        return _choose_in_rows(documents, max_tokens, seed, step)
    token = documents.valid.flatten().nonzero().squeeze(1)
    document = documents.document.flatten()[token]
    position = documents.position.flatten()[token]
    rank = _permutation(int(position.max()) + 1 if len(position) else 1, seed, step).to(token.device)
    by = (document * len(rank) + rank[position]).argsort()
    token, document = token[by], document[by]
    size = torch.bincount(document)
    column = torch.arange(len(token), device=token.device) - (size.cumsum(0) - size)[document]
    kept = size[document] >= 2
    if max_tokens:
        kept &= column < max_tokens
    row = ((size >= 2).cumsum(0) - 1)[document[kept]]
    shape = (int(row.max()) + 1, int(column[kept].max()) + 1) if len(row) else (0, 0)
    table, mask = token.new_zeros(shape), torch.zeros(shape, dtype=torch.bool, device=token.device)
    table[row, column[kept]] = token[kept]
    mask[row, column[kept]] = True
    return Choice(table, mask)


def _choose_in_rows(documents: Documents, max_tokens: int, seed: int, step: int) -> Choice:
    """The same where each row holds one document: as many columns for every row, those without a token masked."""
    valid, (rows, width) = documents.valid, documents.valid.shape
    rank = _permutation(width, seed, step).to(valid.device, non_blocking=True)
    order = torch.where(valid, rank[documents.position.clamp(min=0)], width).argsort(dim=1, stable=True)
    columns = min(max_tokens or width, width)
    sizes = valid.sum(1, keepdim=True)
    mask = (torch.arange(columns, device=valid.device) < sizes) & (sizes >= 2)
    return Choice(order[:, :columns] + width * torch.arange(rows, device=valid.device).unsqueeze(1), mask)


def _permutation(length: int, seed: int, step: int) -> Tensor:
    """Rank of each position in one random order that does not depend on how long a batch happens to be."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    # One draw per position, in order: a longer batch draws the same numbers and then some.
    # `randperm` would give every length an order of its own.
    return torch.rand(length, generator=generator, dtype=torch.float64).argsort(stable=True).argsort()


def special_tokens(model: nn.Module, ids: Sequence[int] | None = None) -> Tensor:
    """Ids (k,) of the tokens to leave out: those given, else those that the model's config names."""
    config: Any = getattr(unwrapped(model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = set(ids or ())
    for name in _SPECIAL if ids is None else ():
        for value in (getattr(part, f"{name}_token_id", None) for part in (config, text)):
            found.update(value if isinstance(value, list | tuple) else () if value is None else (value,))
    return torch.tensor(sorted(found), dtype=torch.long)


def overriding(
    given: Mapping[str, list[Any]], explicit: Mapping[str, Tensor | None], shape: torch.Size
) -> dict[str, list[Any]]:
    """The inputs of a forward pass, with those that the caller names in their place."""
    merged = dict(given)
    for name, value in explicit.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)} like the states, got {tuple(value.shape)}")
        merged[name] = given[name] if value is None else [value]
    return merged


def _fitting(name: str, candidates: list[Any], shape: torch.Size, device: torch.device) -> Tensor | None:
    """The first candidate that is (B, S), or longer by a cached prefix."""
    given = [value for value in candidates if value is not None]
    for value in given:
        if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] >= shape[1]:
            value = value[:, value.shape[1] - shape[1] :].to(device)
            if value.shape[0] in (1, shape[0]):
                return value.expand(shape)
    if given and name == "attention_mask":
        raise ValueError(f"attention_mask must be {tuple(shape)}: pass penalty() one that marks the padding")
    return None


def next_tokens(given: Mapping[str, list[Any]], like: Tensor, documents: Documents) -> Tensor:
    """The token that follows each one in its document, (B, S); -1 at the end of a document and at padding.

    RunError where the forward pass shows no token ids.
    """
    ids = _fitting("input_ids", given["input_ids"], like.shape[:2], like.device)
    if ids is None:
        raise RunError("this loss needs the next tokens, but the forward pass shows no ids", "pass input_ids=")
    following = torch.full_like(ids, -1)
    inside = documents.attended[:, 1:] & documents.attended[:, :-1]
    inside &= documents.document[:, 1:] == documents.document[:, :-1]
    following[:, :-1] = torch.where(inside, ids[:, 1:], -1)
    return following


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's positional arguments."""
    return tuple(inspect.signature(unwrapped(module).forward).parameters)


def ids_among(named: Mapping[str, Any]) -> Tensor | None:
    """The token ids among a module's inputs, whatever they are called: the first (B, S) of whole numbers."""
    for name, value in named.items():
        if name in _NO_IDS or not isinstance(value, Tensor):
            continue
        if value.ndim == 2 and value.dtype in (torch.int64, torch.int32):
            return value
    return None
