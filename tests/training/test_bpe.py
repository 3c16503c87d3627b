"""BPE continued, against an implementation that counts everything anew for each merge."""

import random
import time
from collections import Counter

import pytest

from condense.training.bpe import Merge, continue_merges

Words = dict[tuple[int, ...], int]


def naive(
    words: Words, texts: dict[int, str], limit: int, least: int, forbidden: str = ""
) -> list[tuple[str, str, int]]:
    """The definition: count every pair of neighbours, join the most frequent everywhere, begin again."""
    words, texts, merges = dict(words), dict(texts), []
    while len(merges) < limit:
        counts: Counter[tuple[int, int]] = Counter()
        for word, times in words.items():
            for at in range(len(word) - 1):
                counts[word[at], word[at + 1]] += times
        fit = [
            (-count, pair)
            for pair, count in counts.items()
            if count >= least
            and texts[pair[0]] + texts[pair[1]] not in texts.values()
            and not (forbidden and forbidden in texts[pair[0]] + texts[pair[1]])
        ]
        if not fit:
            break
        negative, (left, right) = min(fit)
        new = max(texts) + 1
        texts[new] = texts[left] + texts[right]
        merges.append((texts[left], texts[right], -negative))
        joined: Counter[tuple[int, ...]] = Counter()
        for word, times in words.items():
            whole, rest = [], list(word)
            while rest:
                if tuple(rest[:2]) == (left, right):
                    whole.append(new)
                    del rest[:2]
                else:
                    whole.append(rest.pop(0))
            joined[tuple(whole)] += times
        words = dict(joined)
    return merges


def drawn(seed: int) -> tuple[Words, dict[int, str]]:
    draw = random.Random(seed)
    letters = "abcde"[: draw.randrange(1, 6)]
    texts = {10 + 3 * index: letter for index, letter in enumerate(letters)} | {90: "ab", 91: "bca"}
    words: Counter[tuple[int, ...]] = Counter()
    for _ in range(draw.randrange(1, 60)):
        words[tuple(draw.choices(list(texts), k=draw.randrange(1, 9)))] += draw.randrange(1, 5)
    return dict(words), texts


@pytest.mark.parametrize("seed", range(60))
def test_merges_are_those_of_counting_anew(seed: int) -> None:
    words, texts = drawn(seed)
    limit, least = random.Random(seed).choice([(5, 1), (1000, 4), (1000, 2)])
    found = continue_merges(words, texts, texts.values(), limit=limit, min_frequency=least)
    assert [(merge.left, merge.right, merge.frequency) for merge in found] == naive(words, texts, limit, least)
    for merge in found:
        assert "".join(texts[piece] for piece in merge.pieces) == merge.token
        assert set(merge.pieces) <= set(texts) and len(merge.pieces) > 1
    tokens = [*texts.values(), *(merge.token for merge in found)]
    assert len(set(tokens)) == len(tokens)


def test_what_may_not_become_a_token_does_not() -> None:
    words, texts = drawn(3)
    found = continue_merges(
        words, texts, texts.values(), limit=1000, min_frequency=2, allowed=lambda token: "b" not in token
    )
    assert [(merge.left, merge.right, merge.frequency) for merge in found] == naive(words, texts, 1000, 2, "b")


def test_by_hand() -> None:
    texts = {0: "l", 1: "o", 2: "w", 3: "e", 4: "r"}
    words = {(0, 1, 2): 5, (0, 1, 2, 3, 4): 2, (3, 4): 1}
    found = continue_merges(words, texts, texts.values(), limit=9, min_frequency=3)
    assert found == (
        Merge("l", "o", 7, (0, 1)),  # as frequent as o w, and its ids are smaller
        Merge("lo", "w", 7, (0, 1, 2)),
        Merge("e", "r", 3, (3, 4)),
    )


def test_a_run_of_one_letter() -> None:
    found = continue_merges({(0,) * 5: 10}, {0: "a"}, ["a"], limit=9, min_frequency=10)
    assert [merge.token for merge in found] == ["aa", "aaa", "aaaaa"]  # aa aa a; then aa a, whose ids are smaller


@pytest.mark.parametrize("words", [{}, {(0,): 99}, {(0, 1): 9}])
def test_nothing_is_learned_from_too_little(words: Words) -> None:
    assert continue_merges(words, {0: "a", 1: "b"}, ["a", "b"], limit=9, min_frequency=10) == ()


def test_the_order_of_words_does_not_matter() -> None:
    words, texts = drawn(7)
    backwards = dict(reversed(words.items()))
    one, two = (continue_merges(each, texts, texts.values(), limit=99, min_frequency=1) for each in (words, backwards))
    assert one == two


def test_thousands_of_merges_take_seconds() -> None:
    draw = random.Random(0)
    texts = {index: chr(0x4E00 + index) for index in range(300)}
    words = Counter(tuple(draw.choices(range(300), k=draw.randrange(2, 9))) for _ in range(20_000))
    started = time.perf_counter()
    found = continue_merges(words, texts, texts.values(), limit=5000, min_frequency=2)
    assert len(found) == 5000 and time.perf_counter() - started < 20
