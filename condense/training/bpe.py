"""Byte-pair encoding continued: further merges, learned from words that are already split into tokens.

Sennrich et al., 2016, arXiv 1508.07909, begun not from characters but from what a tokenizer makes of the text.
Standard library only.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

Pair = tuple[int, int]


@dataclass(frozen=True)
class Merge:
    """One new token: the texts of the two tokens that it joins, in order, and how often they stood side by side.

    `pieces` are the ids of the original tokens that it stands for, in order.
    """

    left: str
    right: str
    frequency: int
    pieces: tuple[int, ...]

    @property
    def token(self) -> str:
        """The text of the new token."""
        return self.left + self.right


def continue_merges(
    words: Mapping[tuple[int, ...], int],
    texts: Mapping[int, str],
    known: Collection[str],
    *,
    limit: int,
    min_frequency: int,
    allowed: Callable[[str], bool] = lambda token: True,
) -> tuple[Merge, ...]:
    """The merges that join the most frequent pair of neighbours, again and again, in the order to apply them.

    words      how often each word occurs, as the ids of its tokens; nothing is merged across words.
    texts      the text of each id. known: every token there is; `allowed` says which texts may become one.

    A pair whose text is a token already is left alone, so each merge makes one new token, no old merge can apply
    to a new token, and encoding with old and new merges is the old encoding with the new merges applied to it in
    order. Ties go to the smaller ids (new tokens count on from the largest). Ends after `limit` merges or when
    no pair is left that occurs `min_frequency` times.
    """
    pairs = _Pairs(words, max(min_frequency, 1))
    texts, taken = dict(texts), set(known)
    pieces: dict[int, tuple[int, ...]] = {token: (token,) for token in texts}
    first, merges = max(texts, default=-1) + 1, list[Merge]()
    while len(merges) < limit and (found := pairs.best()) is not None:
        (left, right), frequency = found
        token = texts[left] + texts[right]
        if token in taken or not allowed(token):
            pairs.refuse((left, right))
            continue
        new = first + len(merges)
        taken.add(token)
        texts[new], pieces[new] = token, pieces[left] + pieces[right]
        merges.append(Merge(texts[left], texts[right], frequency, pieces[new]))
        pairs.join((left, right), new)
    return tuple(merges)


class _Pairs:
    """How often each pair of neighbours occurs and in which words; kept up to date, never counted anew."""

    def __init__(self, words: Mapping[tuple[int, ...], int], least: int) -> None:
        self._words = [list(word) for word in words if len(word) > 1]
        self._times = [times for word, times in words.items() if len(word) > 1]
        self._least = least
        self._counts: Counter[Pair] = Counter()
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        self._refused: set[Pair] = set()
        for index, word in enumerate(self._words):
            self._count(index, word, 1)
        # Entries may be out of date: too high ones are put back when they come up, higher ones are added at once.
        self._heap = [(-count, pair) for pair, count in self._counts.items() if count >= least]
        heapq.heapify(self._heap)

    def best(self) -> tuple[Pair, int] | None:
        """The most frequent pair and its frequency; None below the least one."""
        while self._heap:
            negative, pair = heapq.heappop(self._heap)
            count = self._counts[pair]
            if count == -negative and pair not in self._refused:
                return pair, count
            if self._least <= count < -negative:
                self._push(pair)
        return None

    def refuse(self, pair: Pair) -> None:
        """Never offer this pair again."""
        self._refused.add(pair)

    def join(self, pair: Pair, new: int) -> None:
        """Put `new` where the pair stands, in every word, from left to right."""
        touched: set[Pair] = set()
        for index in self._where.pop(pair):
            old = self._words[index]
            word = _joined_pair(old, pair, new)
            self._count(index, old, -1)
            touched |= self._count(index, word, 1)
            self._words[index] = word
        for changed in touched:
            if new in changed:  # only these can have become more frequent
                self._push(changed)

    def _count(self, index: int, word: list[int], sign: int) -> set[Pair]:
        neighbours = list(zip(word, word[1:], strict=False))
        for pair in neighbours:
            self._counts[pair] += sign * self._times[index]
            # A word that no longer holds a pair may stay listed under it: joining it there changes nothing.
            if sign > 0:
                self._where[pair].add(index)
        return set(neighbours)

    def _push(self, pair: Pair) -> None:
        if pair not in self._refused and self._counts[pair] >= self._least:
            heapq.heappush(self._heap, (-self._counts[pair], pair))


def _joined_pair(word: list[int], pair: Pair, new: int) -> list[int]:
    joined, at = [], 0
    while at < len(word):
        if at + 1 < len(word) and word[at] == pair[0] and word[at + 1] == pair[1]:
            joined.append(new)
            at += 2
        else:
            joined.append(word[at])
            at += 1
    return joined
