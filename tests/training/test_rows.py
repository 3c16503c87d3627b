"""Rows: exact lengths, restarts at documents, labels, and disjoint train, validation and probe texts."""

import re
import tracemalloc

import pytest
import torch

from condense.errors import UnavailableError, UsageError
from condense.records.plans import Plan
from condense.texts.documents import Document, Kept, probe
from condense.texts.fields import document_of
from condense.training import rows as rows_module
from condense.training.chats import IGNORED
from condense.training.prepare import MAX_TOKENS, TOKENS_PER_STEP, most_tokens, prepare_text
from condense.training.rows import (
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


STRICT = (
    "{% if not messages or messages[0].role == 'system' %}{{ raise_exception('system is not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no ' ~ m.role) }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTION, ANSWER = ("user", "What is the colour of snow in winter?"), ("assistant", "It is white, mostly.")


@pytest.fixture
def templated(tokenizers):
    """The byte tokenizer with a chat template."""
    from copy import deepcopy

    def with_template(template):
        tokenizer = deepcopy(tokenizers["bytes"])
        tokenizer.chat_template = template
        return tokenizer

    return with_template


def conversation(name, *turns):
    return Document(name, "\n".join(said for _, said in turns), tuple(turns))


def learned(tokenizer, row):
    return tokenizer.decode(row["labels"][row["labels"] != IGNORED]).strip()


def test_only_the_answer_of_a_chat_counts(templated):
    tokenizer = templated(CHAT)
    rows = padded_rows(tokenizer, [conversation("c", QUESTION, ANSWER)], 128)
    assert learned(tokenizer, rows[0]) == "It is white, mostly." and rows.notes == ()
    assert "colour of snow" in tokenizer.decode(rows[0]["input_ids"])
    longer = [conversation("c", QUESTION, ANSWER, ("user", "And in spring?"), ("assistant", "Then it is gone."))]
    rows = padded_rows(tokenizer, longer, 256)
    assert learned(tokenizer, rows[0]) == "Then it is gone."


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (CHAT, [], "has no turn"),
        (CHAT, [QUESTION], "ends with the user, not with an answer"),
        (CHAT, [QUESTION, ANSWER, QUESTION], "ends with the user, not with an answer"),
        (CHAT, [("system", "Be brief.")], "ends with the system, not with an answer"),
        (CHAT, [QUESTION, ("tool", "42")], "ends with the tool, not with an answer"),
        (CHAT, [ANSWER], "has an answer and nothing before it"),
        (CHAT, [QUESTION, ("assistant", " ")], "has a turn without text"),
        (CHAT, [QUESTION, ("assistant", ""), ("tool", "42"), ANSWER], "has a turn without text"),
        (
            STRICT,
            [("system", "Be brief."), QUESTION, ANSWER],
            "chat template (roles system, user, assistant): system is",
        ),
        (STRICT, [QUESTION, ("tool", "42"), ANSWER], "no tool"),
        (STRICT, [QUESTION, QUESTION, ANSWER], "roles must alternate"),
        ("{{ messages[5].content.strip() }}", [QUESTION, ANSWER], "is refused by the chat template"),
        ("{{ 1 / 0 }}", [QUESTION, ANSWER], "is refused by the chat template"),
        ("{{ messages[0].content }}", [QUESTION, ANSWER], "has no token of its answer"),
    ],
)
@pytest.mark.parametrize("make", [packed_rows, padded_rows])
def test_a_conversation_that_cannot_be_used_is_named_or_counted(templated, make, template, turns, reason):
    tokenizer = templated(template)
    unusable = conversation("a.jsonl:7", *turns)
    with pytest.raises(UsageError) as caught:
        make(tokenizer, [unusable], 64)
    assert caught.value.exit_code == 2 and "a.jsonl:7 " in str(caught.value) and reason in str(caught.value)
    plain = documents(4)
    rows = make(tokenizer, [*plain, unusable, unusable], 64)
    assert len(rows) == len(make(tokenizer, plain, 64)) > 0
    assert len(rows.notes) == 1 and rows.notes[0].startswith("2 conversations left out: a.jsonl:7 ")
    assert reason in rows.notes[0] and "\n" not in rows.notes[0]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"weight": 0}, "has an answer that is not to be trained on (weight 0)"),
        ({"train": False}, "has an answer that is not to be trained on (weight 0)"),
        ({"reasoning_content": "Snow reflects."}, "has reasoning_content, which is not read"),
        ({"thinking": "Snow reflects."}, "has thinking, which is not read"),
        ({"weight": 1, "train": True, "reasoning_content": None, "thinking": " "}, None),
        ({"weight": None, "train": None}, None),
    ],
)
def test_an_answer_that_is_not_to_be_learned_or_not_read_whole_is_left_out(templated, monkeypatch, keys, reason):
    """Turns with `weight: 0` were trained on, and reasoning beside the content was dropped without a word."""
    question, answer = ({"role": role, "content": said, "weight": 0} for role, said in (QUESTION, ANSWER))
    turns = [question, {**answer, "weight": 1, **keys}]
    records = {"messages": turns}, {"prompt": [question], "completion": turns[1:]}, {"messages": str(turns)}
    given = [document_of(f"a.jsonl:{number}", record, "text") for number, record in enumerate(records, 1)]
    monkeypatch.setattr("condense.texts.documents._IN_MEMORY", 10)
    kept = Kept()
    for document in (*documents(4), *given):
        kept.append(document)
    rows = padded_rows(templated(CHAT), kept, 128)
    assert rows.notes == (() if reason is None else (f"3 conversations left out: a.jsonl:1 {reason}",))
    assert kept[4] == given[0] and given[0].messages == (QUESTION, ANSWER)


def test_conversations_without_a_template_are_refused(tokenizers):
    with pytest.raises(UsageError, match=r"a\.jsonl:7 is a conversation and the tokenizer has no chat template"):
        padded_rows(tokenizers["bytes"], [conversation("a.jsonl:7", QUESTION, ANSWER)], 64)


@pytest.mark.parametrize("make", [packed_rows, padded_rows])
def test_a_row_without_any_label_never_reaches_the_loss(templated, make):
    """Of a prompt longer than rows only the rows with a part of the answer are left; counted."""
    tokenizer = templated(CHAT)
    long = conversation("c", ("user", "why " * 300), ("assistant", "Because it is so. " * 30))
    rows = make(tokenizer, [long], 64)
    assert len(rows) > 2 and all(bool((row["labels"] != IGNORED).any()) for row in rows.rows)
    (note,) = rows.notes
    assert "rows left out without any token that counts in the loss" in note and int(note.split()[0]) > 3
    silent = make(tokenizer, [conversation("c", ("user", "why " * 300), ("assistant", "So."))] * 1, 2000)
    assert len(silent) == (make is padded_rows)


def test_every_row_of_a_masked_batch_has_a_label(tokenizers):
    """Of rows of 8 tokens every third has none masked by the draw alone: its loss would be no number."""
    from condense.training.loop import collator

    tokenizer = tokenizers["words"]
    rows = padded_rows(tokenizer, documents(40, words=30), 8, masked=True)
    collate = collator(tokenizer, True, 0)
    drawn = []
    for row in rows.rows:
        batch = collate([row])
        counted = batch["labels"] != IGNORED
        assert bool(counted.any()) and torch.equal(batch["labels"][counted], row["input_ids"][None][counted])
        assert not bool(counted[0, 0]) and not bool(counted[0][~row["attention_mask"].bool()].any())
        drawn.append(int(counted.sum()))
    assert len(drawn) > 100 and 0.12 < sum(drawn) / (6 * len(drawn)) < 0.3


def test_short_pieces_are_counted(tokenizers):
    rows = padded_rows(tokenizers["words"], [Document("a", "one two"), *documents(3)], 32, masked=True)
    assert any("of fewer than 8 tokens left out" in note for note in rows.notes)


def test_few_conversations_are_set_apart_whole():
    chats = [conversation(f"c{i}", ("user", f"question {i}"), ("assistant", f"answer {i}")) for i in range(6)]
    parts = split(chats, seed=0)
    assert len(parts.validation) == 1 and len(parts.train) == 5 and parts.validation[0] not in parts.train
    mixed = split([*chats, *documents(3)], seed=0)
    assert sum(d.messages is not None for d in mixed.validation) == 1 and len(mixed.validation) == 4
    assert split(chats[:1], seed=0).train == (chats[0],)


def test_what_was_dropped_is_said():
    parts = split([*documents(25), *documents(5), probe()[3]], seed=0)
    assert parts.notes == ("6 documents left out as repeats of another one or of the probe text",)
    assert split(documents(25), seed=0).notes == ()
    chats = [conversation("c"), conversation("d", QUESTION, ANSWER), Document("e", " ")]
    assert split(chats, seed=0).notes == ("2 documents left out without text",)
    with pytest.raises(UnavailableError, match="1 of the documents are empty, 1 repeat the probe text"):
        split([Document("a", ""), probe()[0]], seed=0)


def test_validation_windows_shrink_until_there_are_eight(tokenizers):
    tokenizer = tokenizers["bytes"]
    short = [Document(f"d{i}", " ".join(f"w{i}x{j}" for j in range(30))) for i in range(8)]
    found = validation_windows(tokenizer, tuple(short), 32, longest=512)
    assert len(found) >= 8 and found.info.length < 512
    assert validation_windows(tokenizer, tuple(short), 32, longest=48).info.length == 48


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


# --- control tokens that a turn spells -------------------------------------------------------------------------

CONTROL = (
    "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|>assistant: {% endif %}"
)


def test_a_control_token_that_a_turn_spells_is_text(templated):
    """As in plain text and in what is measured: whoever writes <|endoftext|> into a question ends no turn."""
    tokenizer = templated(CONTROL)
    end = tokenizer.eos_token_id
    asked = ("user", "What does <|endoftext|> mean, and <|endoftext|><|endoftext|>?")
    rows = padded_rows(tokenizer, [conversation("a.jsonl:1", asked, ANSWER)], 256)
    ids = rows[0]["input_ids"][rows[0]["attention_mask"].bool()]
    assert int((ids == end).sum()) == 4, "two turns, each between two of the template's own"
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
        [{"role": role, "content": said} for role, said in (asked, ANSWER)], tokenize=False
    )
    assert learned(tokenizer, rows[0]) == "It is white, mostly.<|endoftext|>"
    assert rows.notes == ("1 conversation with a control token spelled in a turn, read as text: a.jsonl:1",)
    plain = padded_rows(tokenizer, [conversation("a", QUESTION, ANSWER)], 256)
    turns = [{"role": role, "content": said} for role, said in (QUESTION, ANSWER)]
    assert plain[0]["input_ids"][plain[0]["attention_mask"].bool()].tolist() == tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=False
    )


def test_a_control_token_that_cannot_be_kept_apart_is_dropped_and_counted(templated):
    tokenizer = templated("{% for m in messages %}{{ m.role }} {{ m.content[:9] }}\n{% endfor %}!")
    spelled = conversation("b.jsonl:7", ("user", "What does <|endoftext|> mean?"), ANSWER)
    said = "b.jsonl:7 spells a control token, <|endoftext|>, in a turn that the chat template does not show whole"
    with pytest.raises(UsageError, match=re.escape(said)):
        padded_rows(tokenizer, [spelled], 64)
    rows = padded_rows(tokenizer, [spelled, conversation("c", QUESTION, ANSWER)], 64)
    assert len(rows) == 1 and rows.notes == (f"1 conversation left out: {said}",)


# --- more text than memory, more text than is trained on ---------------------------------------------------------


def test_no_more_is_tokenised_than_the_run_can_use(tokenizers):
    tokenizer, texts = tokenizers["bytes"], documents(30)
    whole = packed_rows(tokenizer, texts, 32)
    rows = packed_rows(tokenizer, texts, 32, most=5 * 32)
    assert len(whole) > 20 and 5 <= len(rows) < 20 and rows.most == 160
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(rows, whole, strict=False))
    (note,) = rows.notes
    used = int(note.split()[0])
    assert note == f"{used} of 30 training documents fill all the rows that the run can use"
    assert len(packed_rows(tokenizer, texts[:used], 32)) == len(rows) and whole.notes == ()
    padded = padded_rows(tokenizer, texts, 32, most=5 * 32)
    assert 5 <= len(padded) < len(padded_rows(tokenizer, texts, 32))


def test_the_rows_of_a_run_are_those_of_all_its_text_as_far_as_its_budget_goes():
    assert most_tokens(Plan(coefficient=0.1), 64) == MAX_TOKENS
    assert most_tokens(Plan(coefficient=0.1, train_tokens=5_000_000), 64) == 5_000_000
    assert most_tokens(Plan(coefficient=0.1, max_steps=100), 64) == 100 * TOKENS_PER_STEP
    many = Plan(coefficient=0.1, max_steps=1000, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    assert most_tokens(many, 128) == 1000 * 8 * 4 * 128


def test_documents_beyond_64_mb_are_kept_in_a_file(monkeypatch):
    """The same split, the same hashes, the same rows."""
    given = [*documents(25), conversation("c", QUESTION, ANSWER), Document("d", "déjà \ud800 vu " * 30)]
    held = split(given, seed=3)
    monkeypatch.setattr("condense.texts.documents._IN_MEMORY", 1000)
    kept = split(given, seed=3)
    assert not isinstance(kept.train, tuple) and isinstance(held.train, tuple)
    assert tuple(kept.train) == held.train and tuple(kept.validation) == held.validation
    assert (kept.train_sha256, kept.validation_sha256) == (held.train_sha256, held.validation_sha256)


def test_splitting_takes_flat_memory(monkeypatch):
    monkeypatch.setattr("condense.texts.documents._IN_MEMORY", 1 << 20)
    tracemalloc.start()
    try:
        parts = split((Document(f"d{i}", f"{i} " * 5000) for i in range(400)), seed=0)
        assert len(parts.train_sha256) == 64
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(len(document.text) for document in parts.train) > 6e6 and peak < 3e6


def test_a_long_text_is_tokenised_in_pieces(tokenizers, monkeypatch):
    """Cut at line breaks: the same tokens, with one beginning and one end."""
    tokenizer = tokenizers["bos"]
    text = "\n".join(f"Line {number} of a long text, with something in it." for number in range(200))
    (whole,) = list(rows_module._Sequences(tokenizer, [Document("a", text)], lambda: False))
    monkeypatch.setattr(rows_module, "WHOLE_CHARACTERS", 1000)
    monkeypatch.setattr(rows_module, "_PIECE", 700)
    pieces = list(rows_module._Sequences(tokenizer, [Document("a", text)], lambda: False))
    joined = [token for ids, _ in pieces for token in ids]
    assert len(pieces) > 5 and joined[0] == tokenizer.bos_token_id and joined[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(joined) == tokenizer.decode(whole[0]) and joined.count(tokenizer.bos_token_id) == 1


# --- how long what is measured is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "asked", "measured"), [(32, None, 32), (48, None, 48), (32, 16, 16), (32, 32, 32), (64, 9, 9)]
)
def test_nothing_is_measured_at_positions_that_no_row_reaches(opened, trained, asked, measured):
    """By default as long as the rows: tiny GPT-2 has more positions, whose embeddings were never trained."""
    model = opened("gpt2")
    assert model.positions > 64
    plan = Plan(max_length=trained, eval_length=asked, num_texts=8, max_steps=1)
    prepared = prepare_text("gpt2", model, [d.text * 3 for d in documents(30)], "text", plan)
    assert prepared.rows.length == trained
    assert (prepared.validation.info.length, prepared.probe.info.length) == (measured, measured)


def test_a_measured_length_beyond_the_rows_is_refused(opened):
    plan = Plan(max_length=32, eval_length=33, max_steps=1)
    with pytest.raises(UsageError, match="--eval-length 33 is longer than the rows of 32 tokens"):
        prepare_text("gpt2", opened("gpt2"), [d.text for d in documents(30)], "text", plan)
