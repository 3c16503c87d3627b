"""A larger vocabulary: what the tokenizer does with it, what the rows of the model become."""

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from condense.errors import UnavailableError
from condense.records.plans import MAX_GROWTH, MIN_FREQUENCY
from condense.texts.documents import Document, probe
from condense.training.vocabulary import Enlarged, enlarge_vocabulary
from tests.conftest import VOCABULARY, build, tiny_config, word_tokenizer
from tests.conftest import byte_tokenizer as train_byte_tokenizer

HARD = [
    "", " ", "  two  blanks\n\nand lines\t", "naïve café 北京 🙂 ﬁ", "The the THE theatre", "1234567890",
    "<s> </s> <unk> <0xE2> <|endoftext|> <|later|>", "▁under▁lines▁ and Ġ", "a" * 50,
]  # fmt: skip


TEXTS = probe()[::4]  # a passage of each register


def plain(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text as training encodes it: without specials, and those in the text are text."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return list(ids)


# --- tokenizers -------------------------------------------------------------------------------------


_trained = functools.cache(train_byte_tokenizer)


def byte_tokenizer(**options: Any) -> Any:
    """A copy, which may be changed, of a tokenizer that is trained once."""
    return copy.deepcopy(_trained(**options))


def later_tokenizer() -> Any:
    """Byte-level, with special tokens beyond the vocabulary of its model, as Llama 3 has them."""
    tokenizer = byte_tokenizer(size=VOCABULARY - 20)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|later|>", "<|latest|>"]})
    tokenizer.add_tokens(["the theatre"])
    return tokenizer


def whole_word_tokenizer() -> Any:
    """As above, and it looks for whole words in the vocabulary before it merges (Llama 3: `ignore_merges`)."""
    from tokenizers import Tokenizer

    tokenizer = later_tokenizer()
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["model"]["ignore_merges"] = True
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(data))
    return tokenizer


@functools.cache
def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=specials, show_progress=False)
    core.train_from_iterator([document.text for document in probe()], trainer)
    model = json.loads(core.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def sentence_tokenizer() -> Any:
    """SentencePiece's BPE in `tokenizers`: blanks become ▁, no pre-tokenizer, unknown letters become bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _pieces()
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def llama_tokenizer() -> Any:
    """The class of transformers that builds itself anew from vocabulary and merges."""
    from transformers import LlamaTokenizer

    vocabulary, merges = _pieces()
    return LlamaTokenizer(vocab=vocabulary, merges=merges)


def gpt2_tokenizer() -> Any:
    """Another such class, byte-level."""
    from transformers import GPT2Tokenizer

    model = json.loads(byte_tokenizer().backend_tokenizer.to_str())["model"]
    return GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


MAKERS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "bos": lambda: byte_tokenizer(bos="<s>", eos="</s>"),
    "later": later_tokenizer,
    "whole words": whole_word_tokenizer,
    "sentences": sentence_tokenizer,
    "LlamaTokenizer": llama_tokenizer,
    "GPT2Tokenizer": gpt2_tokenizer,
}


def model_for(tokenizer: Any, name: str = "llama", **changes: Any) -> Any:
    config = tiny_config(name)
    config.vocab_size = len(tokenizer)
    for key, value in changes.items():
        setattr(config, key, value)
    return build(config)


@pytest.fixture(scope="module")
def made() -> Callable[[str], tuple[Any, Enlarged, list[dict[str, Any]]]]:
    """Call with a name: the tokenizer as it was, the enlarged pair, and the merges that were added."""
    known: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in known:
            tokenizer = MAKERS[name]()
            enlarged = enlarge_vocabulary(model_for(tokenizer), tokenizer, TEXTS)
            before, after = (
                json.loads(each.backend_tokenizer.to_str())["model"] for each in (tokenizer, enlarged.tokenizer)
            )
            assert after["merges"][: len(before["merges"])] == before["merges"]
            known[name] = tokenizer, enlarged, after["merges"][len(before["merges"]) :]
        return known[name]

    return make


@pytest.mark.parametrize("name", MAKERS)
def test_old_tokens_keep_their_ids_and_new_ones_follow(name: str, made: Any) -> None:
    tokenizer, enlarged, merges = made(name)
    old, new = tokenizer.get_vocab(), enlarged.tokenizer.get_vocab()
    assert old.items() <= new.items()
    assert len(new) == len(enlarged.tokenizer) == len(old) + enlarged.added
    assert enlarged.added == len(merges) == int(MAX_GROWTH * len(old))  # the texts have enough for it
    assert [new[left + right] for left, right in merges] == list(range(len(old), len(new)))
    assert enlarged.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert enlarged.tokenizer.added_tokens_encoder == tokenizer.added_tokens_encoder
    assert enlarged.tokenizer.model_max_length == tokenizer.model_max_length


def apply(merges: list[list[str]], tokens: list[str]) -> list[str]:
    """Merges in order, each everywhere from left to right: BPE as its definition has it."""
    for left, right in merges:
        at = 0
        while at < len(tokens) - 1:
            if tokens[at] == left and tokens[at + 1] == right:
                tokens[at : at + 2] = [left + right]
            at += 1
    return tokens


def words_of(tokenizer: Any, text: str) -> list[list[str]]:
    """The tokens of a text by the words of the tokenizer; one word where it has none."""
    core = tokenizer.backend_tokenizer
    core.encode_special_tokens = True
    encoding = core.encode(text, add_special_tokens=False)
    words: dict[int, list[str]] = {}
    for token, word in zip(encoding.tokens, encoding.word_ids, strict=True):
        words.setdefault(word, []).append(token)
    return list(words.values())


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "whole words"])
def test_the_new_encoding_is_the_old_one_with_the_new_merges_applied(name: str, made: Any) -> None:
    tokenizer, enlarged, merges = made(name)
    new = enlarged.tokenizer.get_vocab()
    for text in [*(document.text for document in TEXTS), *HARD]:
        wanted = [new[token] for word in words_of(tokenizer, text) for token in apply(merges, word)]
        assert plain(enlarged.tokenizer, text) == wanted


@pytest.mark.parametrize("name", MAKERS)
def test_texts_come_back_as_before(name: str, made: Any) -> None:
    tokenizer, enlarged, _ = made(name)
    for text in [*(document.text for document in TEXTS), *HARD]:
        old, new = plain(tokenizer, text), plain(enlarged.tokenizer, text)
        assert enlarged.tokenizer.decode(new) == tokenizer.decode(old)
        assert enlarged.tokenizer.decode(old) == tokenizer.decode(old)


@pytest.mark.parametrize("name", MAKERS)
def test_saved_and_opened_again_it_encodes_the_same(name: str, made: Any, tmp_path: Path) -> None:
    _, enlarged, _ = made(name)
    enlarged.tokenizer.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.get_vocab() == enlarged.tokenizer.get_vocab()
    for text in [*(document.text for document in TEXTS), *HARD]:
        assert plain(opened, text) == plain(enlarged.tokenizer, text)
        assert opened(text)["input_ids"] == enlarged.tokenizer(text)["input_ids"]  # with specials, in both senses
        assert opened.decode(opened(text)["input_ids"]) == enlarged.tokenizer.decode(opened(text)["input_ids"])


@pytest.mark.parametrize("name", MAKERS)
def test_specials_stay_special_and_their_spelling_stays_text(name: str, made: Any) -> None:
    tokenizer, enlarged, merges = made(name)
    text = "".join(f"see {token} there" for token in tokenizer.all_special_tokens)
    specials = set(tokenizer.all_special_ids)
    assert specials <= set(enlarged.tokenizer(text)["input_ids"])
    assert not specials & set(plain(enlarged.tokenizer, text))
    spelled = {*tokenizer.added_tokens_encoder, *(f"<0x{byte:02X}>" for byte in range(256))}
    for left, right in merges:
        assert not {left, right, left + right} & spelled


@pytest.mark.parametrize("name", ["sentences", "LlamaTokenizer"])
def test_no_token_crosses_the_border_of_a_word(name: str, made: Any) -> None:
    _, _, merges = made(name)
    for left, right in merges:
        token = left + right
        assert not set("▁ \n\t") & set(token[1:])
    assert any(left[0] == "▁" for left, _ in merges)


def test_a_byte_level_tokenizer_that_does_not_divide_text_ends_words_at_blanks() -> None:
    from tokenizers import pre_tokenizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    enlarged = enlarge_vocabulary(model_for(tokenizer), tokenizer, TEXTS)
    added = [
        enlarged.tokenizer.convert_ids_to_tokens(index) for index in range(len(tokenizer), len(enlarged.tokenizer))
    ]
    assert added and all("Ġ" not in token[1:] for token in added)


# --- how much is learned ----------------------------------------------------------------------------


def test_frequency_decides() -> None:
    tokenizer = byte_tokenizer(size=258)  # bytes and one merge
    texts = [Document("a", " xyq" * MIN_FREQUENCY + " wvj" * (MIN_FREQUENCY - 1))]
    enlarged = enlarge_vocabulary(model_for(tokenizer), tokenizer, texts)
    added = {
        enlarged.tokenizer.convert_ids_to_tokens(index) for index in range(len(tokenizer), len(enlarged.tokenizer))
    }
    assert any("q" in token for token in added) and not any("j" in token for token in added)
    (said, *_) = enlarged.details
    words = 2 * MIN_FREQUENCY - 1
    assert f"{enlarged.added} tokens added" in said and f"{words} words in 1 document;" in said
    before, after = (len(plain(each, texts[0].text)) for each in (tokenizer, enlarged.tokenizer))
    assert f"({before} before, {after} after)" in said and f"{1 - after / before:.1%} fewer" in said


def test_too_little_text_is_refused_and_the_model_left_alone() -> None:
    tokenizer = byte_tokenizer()
    model = model_for(tokenizer)
    for texts in ([], [Document("a", "too little")]):
        with pytest.raises(UnavailableError, match="no token to add"):
            enlarge_vocabulary(model, tokenizer, texts)
    assert len(model.get_input_embeddings().weight) == len(tokenizer)


def test_the_tokenizer_that_was_given_is_left_alone(made: Any) -> None:
    tokenizer, enlarged, _ = made("bytes")
    assert tokenizer is not enlarged.tokenizer
    assert tokenizer.get_vocab() == byte_tokenizer().get_vocab()


# --- what cannot be enlarged ------------------------------------------------------------------------


def unigram_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def with_model(**changes: Any) -> Any:
    from tokenizers import Tokenizer

    tokenizer = byte_tokenizer()
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["model"] |= changes
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(data))
    return tokenizer


def slow_tokenizer() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@pytest.mark.parametrize(
    ("maker", "said"),
    [
        (word_tokenizer, "is WordPiece, not BPE"),
        (unigram_tokenizer, "is Unigram, not BPE"),
        (lambda: with_model(merges=[]), "BPE without merges"),
        (lambda: with_model(dropout=0.1), "BPE-dropout"),
        (slow_tokenizer, "ByT5Tokenizer is a slow tokenizer"),
    ],
    ids=["WordPiece", "Unigram", "no merges", "dropout", "slow"],
)
def test_other_tokenizers_are_refused_with_the_reason(maker: Callable[[], Any], said: str) -> None:
    tokenizer = maker()
    with pytest.raises(UnavailableError, match=said) as caught:
        enlarge_vocabulary(model_for(tokenizer, vocab_size=500), tokenizer, TEXTS)
    assert "larger-vocab" in caught.value.hint


def test_a_special_token_that_text_would_reach_is_refused() -> None:
    tokenizer = whole_word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["special"]})  # spelled as a word
    with pytest.raises(UnavailableError, match="spells special"):
        enlarge_vocabulary(model_for(tokenizer), tokenizer, TEXTS)


# --- the model --------------------------------------------------------------------------------------


def pieces_of(tokenizer: Any, enlarged: Enlarged, merges: Any) -> dict[int, list[int]]:
    """The original tokens that each new one stands for."""
    old, new = tokenizer.get_vocab(), enlarged.tokenizer.get_vocab()
    parts: dict[str, list[int]] = {token: [index] for token, index in old.items()}
    for left, right in merges:
        parts[left + right] = parts[left] + parts[right]
    return {new[left + right]: parts[left + right] for left, right in merges}


def added_merges(tokenizer: Any, enlarged: Enlarged) -> Any:
    before, after = (
        json.loads(t.backend_tokenizer.to_str())["model"]["merges"] for t in (tokenizer, enlarged.tokenizer)
    )
    return after[len(before) :]


MODELS: dict[str, Callable[[Any], Any]] = {
    "tied": lambda t: model_for(t, tie_word_embeddings=True),
    "untied": lambda t: model_for(t, tie_word_embeddings=False),
    "gpt2": lambda t: model_for(t, "gpt2"),
    "padded a little": lambda t: model_for(t, vocab_size=len(t) + 7, tie_word_embeddings=False),
    "padded a lot": lambda t: model_for(t, vocab_size=len(t) + 200, tie_word_embeddings=True),
    "head with a bias": lambda t: phi(t),
    "masked, with a bias": lambda t: roberta(t),
}


def phi(tokenizer: Any) -> Any:
    from transformers import PhiConfig

    config = PhiConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        architectures=["PhiForCausalLM"],
    )  # fmt: skip
    model = build(config)
    model.lm_head.bias.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


def roberta(tokenizer: Any) -> Any:
    from transformers import RobertaConfig

    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        architectures=["RobertaForMaskedLM"],
    )  # fmt: skip
    model = build(config)
    model.lm_head.bias.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_new_rows_are_the_mean_of_their_pieces_and_nothing_else_changes(name: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = MODELS[name](tokenizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ids = torch.tensor([plain(tokenizer, probe()[0].text)[:60]])
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    rows, logits = model.config.vocab_size, model(input_ids=ids).logits
    enlarged = enlarge_vocabulary(model, tokenizer, TEXTS)
    model = enlarged.model
    pieces = pieces_of(tokenizer, enlarged, added_merges(tokenizer, enlarged))
    head = model.get_output_embeddings()
    assert (head.weight is model.get_input_embeddings().weight) == tied
    assert model.config.vocab_size == len(head.weight) == max(rows, len(enlarged.tokenizer))
    grown = 0
    for key, value in model.state_dict().items():
        if len(value.shape) and value.shape[0] == model.config.vocab_size:
            old, grown = before[key], grown + 1
            assert torch.equal(value[: len(tokenizer)], old[: len(tokenizer)]), key
            beyond = len(enlarged.tokenizer)
            assert torch.equal(value[beyond:], old[beyond:]), key
            for new, parts in pieces.items():
                torch.testing.assert_close(value[new], torch.stack([old[part] for part in parts]).mean(0))
        else:
            assert torch.equal(value, before[key]), key
    assert grown >= 2 and set(model.state_dict()) == set(before)
    torch.testing.assert_close(model(input_ids=ids).logits[..., : len(tokenizer)], logits[..., : len(tokenizer)])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    spare = min(max(rows - len(tokenizer), 0), enlarged.added)
    assert (f"{spare} of the new tokens use rows" in " ".join(enlarged.details)) == bool(spare)


def test_the_enlarged_pair_trains(tmp_path: Path) -> None:
    tokenizer = later_tokenizer()
    enlarged = enlarge_vocabulary(model_for(tokenizer), tokenizer, TEXTS)
    ids = torch.tensor([plain(enlarged.tokenizer, probe()[0].text)[:60]])
    assert int(ids.max()) >= len(tokenizer)
    enlarged.model.train()(input_ids=ids, labels=ids).loss.backward()
    new = enlarged.model.get_input_embeddings().weight.grad[len(tokenizer) :]
    assert bool((new.abs().sum(-1) > 0).any())


def test_half_precision_rows_are_means_in_single_precision() -> None:
    tokenizer = byte_tokenizer()
    model = model_for(tokenizer, tie_word_embeddings=False).to(torch.bfloat16)
    enlarged = enlarge_vocabulary(model, tokenizer, TEXTS)
    weight = enlarged.model.get_input_embeddings().weight
    assert weight.dtype == torch.bfloat16
    for new, parts in pieces_of(tokenizer, enlarged, added_merges(tokenizer, enlarged)).items():
        assert torch.equal(weight[new], weight[parts].float().mean(0).bfloat16())


def test_tokens_that_the_model_never_had_get_the_mean_row() -> None:
    tokenizer = byte_tokenizer()
    model = model_for(tokenizer)
    mean = model.get_input_embeddings().weight.detach().mean(0)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # the usual omission: no resize
    enlarged = enlarge_vocabulary(model, tokenizer, TEXTS)
    weight = enlarged.model.get_input_embeddings().weight
    torch.testing.assert_close(weight[tokenizer.pad_token_id], mean)
    assert enlarged.tokenizer.pad_token_id == tokenizer.pad_token_id and len(weight) == len(enlarged.tokenizer)


def test_a_model_of_another_tokenizer_is_refused() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(UnavailableError, match="only 60 embeddings"):
        enlarge_vocabulary(model_for(tokenizer, vocab_size=60), tokenizer, TEXTS)
