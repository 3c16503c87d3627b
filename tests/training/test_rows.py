"""Rows: exact lengths, restarts at documents, labels, and disjoint train, validation and probe texts."""

import pytest
import torch

from condense.errors import UnavailableError
from condense.texts.documents import Document, probe
from condense.training.rows import (
    IGNORED,
    keeps_documents_apart,
    packed_rows,
    padded_rows,
    split,
    validation_windows,
)


def documents(count, words=60):
    return [Document(f"d{i}", " ".join(f"word{i} number{j}" for j in range(words))) for i in range(count)]


def test_ten_percent_of_the_documents_are_set_apart():
    parts = split(documents(40), seed=1)
    assert len(parts.validation) == 4 and len(parts.train) == 36
    assert not {d.text for d in parts.train} & {d.text for d in parts.validation}
    assert split(documents(40), seed=1) == parts and split(documents(40), seed=2) != parts
    assert parts.train_sha256 != parts.validation_sha256


def test_few_documents_give_their_tails():
    parts = split(documents(3), seed=0)
    assert len(parts.train) == len(parts.validation) == 3
    whole = {d.text for d in documents(3)}
    joined = {f"{a.text} {b.text}" for a, b in zip(parts.train, parts.validation, strict=True)}
    assert joined == whole
    assert all(8 < len(a.text) / len(b.text) < 11 for a, b in zip(parts.train, parts.validation, strict=True))


def test_repeated_and_probe_documents_are_dropped():
    parts = split([*documents(25), *documents(5), probe()[3]], seed=0)
    assert parts.dropped == 6
    assert len(parts.train) + len(parts.validation) == 25


def test_nothing_to_train_on():
    with pytest.raises(UnavailableError, match="no text to train on"):
        split([Document("a", "  "), probe()[0]], seed=0)


def test_packed_rows_restart_with_every_document(tokenizers):
    tokenizer = tokenizers["bytes"]
    rows = packed_rows(tokenizer, documents(6), 64)
    assert rows.packed and all(row["input_ids"].shape == (64,) for row in rows.rows)
    stream = torch.cat([row["input_ids"] for row in rows.rows]).tolist()
    expected = []
    for document in documents(6):
        expected += [*tokenizer(document.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert stream == expected[: len(stream)]
    assert len(expected) - len(stream) < 64
    ends = [i for i, token in enumerate(stream[:-1]) if token == tokenizer.eos_token_id]
    positions = torch.cat([row["position_ids"] for row in rows.rows])
    labels = torch.cat([row["labels"] for row in rows.rows])
    starts = {0, *(i + 1 for i in ends), *range(0, len(stream), 64)}
    assert {int(i) for i in (positions == 0).nonzero().flatten()} == starts
    assert {int(i) for i in (labels == IGNORED).nonzero().flatten()} == starts
    kept = labels != IGNORED
    assert torch.equal(labels[kept], torch.tensor(stream)[kept])


def test_padded_rows_hold_one_document_each(tokenizers):
    tokenizer = tokenizers["bytes"]
    rows = padded_rows(tokenizer, documents(3, words=12), 64)
    for row in rows.rows:
        attended = row["attention_mask"].bool()
        assert row["input_ids"].shape == (64,)
        assert (row["labels"][~attended] == IGNORED).all()
        assert row["labels"][0] == IGNORED
        assert torch.equal(row["labels"][attended][1:], row["input_ids"][attended][1:])


def test_masked_rows_carry_the_tokenizers_specials(tokenizers):
    tokenizer = tokenizers["words"]
    rows = padded_rows(tokenizer, documents(3), 32, masked=True)
    for row in rows.rows:
        length = int(row["attention_mask"].sum())
        assert "labels" not in row
        assert row["input_ids"][0] == tokenizer.cls_token_id
        assert row["input_ids"][length - 1] == tokenizer.sep_token_id


CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_only_the_answer_of_a_chat_counts(tokenizers):
    from copy import deepcopy

    tokenizer = deepcopy(tokenizers["bytes"])
    tokenizer.chat_template = CHAT
    chat = Document("c", "", (("user", "What is the colour of snow in winter?"), ("assistant", "It is white, mostly.")))
    rows = padded_rows(tokenizer, [chat], 128)
    labels = rows[0]["labels"]
    assert tokenizer.decode(labels[labels != IGNORED]).strip() == "It is white, mostly."
    assert "colour of snow" in tokenizer.decode(rows[0]["input_ids"])


def test_validation_windows_shrink_until_there_are_eight(tokenizers):
    tokenizer = tokenizers["bytes"]
    short = [Document(f"d{i}", " ".join(f"w{i}x{j}" for j in range(30))) for i in range(8)]
    found = validation_windows(tokenizer, tuple(short), 32, positions=None)
    assert len(found) >= 8 and found.info.length < 512


@pytest.mark.parametrize(("name", "apart"), [("llama", True), ("gpt2", True), ("qwen3", True)])
def test_decoders_that_keep_documents_apart(opened, name, apart):
    assert keeps_documents_apart(opened(name).model) is apart


def test_a_model_that_looks_across_the_border_is_noticed():
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=200, hidden_size=32, n_layer=2, n_head=2)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)
    assert not keeps_documents_apart(model)
