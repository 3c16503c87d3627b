"""Special tokens, found on the text itself, for every kind of vocabulary."""

from typing import Any

import pytest

from condense.texts.tokens import added_specials
from condense.texts.windows import windows


def letters(alphabet: str, *, before: tuple[str, ...] = (), after: tuple[str, ...] = (), unk: str = "[UNK]") -> Any:
    """A tokenizer with one token for each letter of an alphabet and nothing else."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = [unk, *dict.fromkeys((*before, *after))]
    vocabulary = {token: number for number, token in enumerate([*dict.fromkeys(specials), *alphabet])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    if before or after:
        core.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=[(token, vocabulary[token]) for token in (*before, *after)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=unk,
        bos_token=before[0] if before else None,
        eos_token=after[-1] if after else None,
    )


DNA = "ACGTTGCAAC" * 40
CASES = [
    ("nucleotides", letters("ACGT", before=("<s>",), after=("</s>",)), DNA, ["<s>"], ["</s>"]),
    ("nucleotides, end only", letters("ACGT", after=("</s>",)), DNA, [], ["</s>"]),
    ("nucleotides, start only", letters("ACGT", before=("<s>",)), DNA, ["<s>"], []),
    ("two before", letters("ACGT", before=("<s>", "<dna>"), after=("</s>",)), DNA, ["<s>", "<dna>"], ["</s>"]),
    ("digits", letters("0123456789", before=("<s>",), after=("</s>",)), "0123456789" * 40, ["<s>"], ["</s>"]),
    ("one letter", letters("A", before=("<s>",), after=("</s>",)), "A" * 400, ["<s>"], ["</s>"]),
    ("unknown text", letters("ACGT", before=("<s>",), after=("</s>",)), "xyz" * 100, ["<s>"], ["</s>"]),
    ("unknown is BOS", letters("ACGT", before=("<s>",), unk="<s>"), "x" * 300, ["<s>"], []),
    ("Greek", letters("αβγδ", before=("<s>",), after=("</s>",)), "αβγδ" * 100, ["<s>"], ["</s>"]),
    ("none", letters("ACGT"), DNA, [], []),
    ("proteins", letters("ACDEFGHIKLMNPQRSTVWY", before=("<c>",), after=("<e>",)), "MKVLAT" * 60, ["<c>"], ["<e>"]),
]
NAMES = [case[0] for case in CASES]


@pytest.mark.parametrize(("tokenizer", "text", "before", "after"), [case[1:] for case in CASES], ids=NAMES)
def test_bos_stands_first_and_eos_last(tokenizer: Any, text: str, before: list[str], after: list[str]) -> None:
    first, last = tokenizer.convert_tokens_to_ids(before), tokenizer.convert_tokens_to_ids(after)
    assert added_specials(tokenizer, text) == (first, last)
    made = windows(tokenizer, [text], num_texts=3, max_length=20)
    inner = 20 - len(before) - len(after)
    for row, special in zip(made.ids.tolist(), made.special.tolist(), strict=True):
        assert row[: len(before)] == first and row[len(row) - len(after) :] == last
        assert special == [True] * len(before) + [False] * inner + [True] * len(after)
    assert made.info.bos is bool(before)


def test_tokenizers_without_files() -> None:
    """Bytes and code points are computed, not looked up."""
    from transformers import ByT5Tokenizer, CanineTokenizer

    assert added_specials(ByT5Tokenizer(), "grüße 🙂") == ([], [1])
    canine = CanineTokenizer()
    assert added_specials(canine, "grüße 🙂") == ([canine.cls_token_id], [canine.sep_token_id])


def test_text_that_spells_a_special_token_is_no_special_token(tokenizers: dict[str, Any]) -> None:
    for kind, before, after in (("bytes", 0, 0), ("bos", 1, 0), ("words", 1, 1)):
        tokenizer = tokenizers[kind]
        spelled = " ".join(tokenizer.all_special_tokens) * 3
        found = added_specials(tokenizer, spelled)
        assert (len(found[0]), len(found[1])) == (before, after)
        assert found == added_specials(tokenizer, "plain words")


def test_a_blank_text_still_shows_them(tokenizers: dict[str, Any]) -> None:
    bos = tokenizers["bos"]
    assert added_specials(bos, "") == ([bos.bos_token_id], []) == added_specials(bos, " \n")
    words = tokenizers["words"]
    assert added_specials(words, "") == ([words.cls_token_id], [words.sep_token_id])


def test_a_tokenizer_that_has_no_token_for_the_text(tokenizers: dict[str, Any]) -> None:
    """A normaliser may remove all there is: what is left are the special tokens, and which is which is known."""
    from tokenizers import normalizers

    tokenizer = letters("ACGT", before=("<s>",), after=("</s>",))
    tokenizer._tokenizer.normalizer = normalizers.Replace("-", "")
    assert added_specials(tokenizer, "---") == tuple(map(tokenizer.convert_tokens_to_ids, (["<s>"], ["</s>"])))


def test_a_tokenizer_whose_first_token_changes_behind_a_bos() -> None:
    class Glued:
        """Its tokens after a BOS differ from those without one; its mask says which are special."""

        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> dict[str, Any]:
            if add_special_tokens:
                return {"input_ids": [1, 7, 8, 2], "special_tokens_mask": [1, 0, 0, 1]}
            return {"input_ids": [6, 8]}

    assert added_specials(Glued(), "some text") == ([1], [2])
