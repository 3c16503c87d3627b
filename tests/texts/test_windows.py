"""Windows: exactly S ids of one document, the right ones, counted and hashed as they should be."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from condense.errors import UnavailableError, UsageError
from condense.texts import windows as corpus
from condense.texts.documents import PROBE_VERSION, Document, probe
from condense.texts.windows import check_ids, windows, without_names

Tokenizers = dict[str, Any]
KINDS = ("bytes", "bos", "words")
every_kind = pytest.mark.parametrize("kind", KINDS)
LONG = probe()[0].text


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


# --- windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "before", "after"), [("bytes", [], []), ("bos", ["<s>"], []), ("words", ["[CLS]"], ["[SEP]"])]
)
def test_a_window_is_exactly_its_length_with_the_specials(
    tokenizers: Tokenizers, kind: str, before: list[str], after: list[str]
) -> None:
    tokenizer = tokenizers[kind]
    made = windows(tokenizer, num_texts=5, max_length=48)
    assert made.ids.shape == (5, 48) == made.special.shape and made.ids.dtype == torch.int64 and len(made) == 5
    first, last = tokenizer.convert_tokens_to_ids(before), tokenizer.convert_tokens_to_ids(after)
    inner = 48 - len(before) - len(after)
    for row, special, document in zip(made.ids.tolist(), made.special, probe(), strict=False):
        assert row == [*first, *plain(tokenizer, document.text)[:inner], *last]
        assert special.tolist() == [True] * len(before) + [False] * inner + [True] * len(after)
    assert made.mask_token_id == (tokenizer.mask_token_id if kind == "words" else None)


def spread(size: int, content: int, count: int) -> list[int]:
    """The definition in docs/metrics.md, written again."""
    return [round(j * (size - content) / (count - 1)) for j in range(count)] if count > 1 else [0]


@every_kind
def test_windows_are_shared_out_and_spread_over_each_document(tokenizers: Tokenizers, kind: str) -> None:
    """One window more for each document in turn, as far as it has room; evenly from its first token to its last."""
    tokenizer = tokenizers[kind]
    words = LONG.split()
    texts = [" ".join(words[:n]) for n in (120, 40, 200)]
    content = 20
    length = content + len(tokenizer("a b")["input_ids"]) - len(tokenizer("a b", add_special_tokens=False)["input_ids"])
    ids = [plain(tokenizer, text) for text in texts]
    room = [len(of) // content for of in ids]
    assert room[1] < 7 < room[0]
    for wanted in (2, 3, 4, 8, 1000):
        counts = [0, 0, 0]
        while sum(counts) < min(wanted, sum(room)):
            for d in range(3):
                counts[d] += counts[d] < room[d] and sum(counts) < wanted
        starts = [spread(len(ids[d]), content, counts[d]) if counts[d] else [] for d in range(3)]
        expected = [
            (d, k, ids[d][starts[d][k] : starts[d][k] + content])
            for k in range(max(counts))
            for d in range(3)
            if k < counts[d]
        ]
        made = windows(tokenizer, texts, num_texts=wanted, max_length=length)
        assert made.info.windows == tuple(f"text:{d}#{k}" for d, k, _ in expected)
        assert made.info.documents == tuple(d for d, _, _ in expected)
        assert made.ids[~made.special].view(-1, content).tolist() == [row for _, _, row in expected]
        assert made.info.requested == wanted and made.info.tokens == made.ids.numel()
        for d in range(3):
            assert all(b - a >= content for a, b in zip(starts[d], starts[d][1:], strict=False))
            assert counts[d] < 2 or starts[d][-1] + content == len(ids[d])


def test_repeated_documents_are_left_out_and_counted(tokenizers: Tokenizers) -> None:
    other = LONG[::-1]
    made = windows(
        tokenizers["bytes"], [LONG, f"  {LONG}\n", other, LONG, "short", "short"], num_texts=9, max_length=64
    )
    assert made.info.dropped == 2 and made.info.skipped == 2
    assert set(made.info.documents) == {0, 1} and made.info.windows[:2] == ("text:0#0", "text:2#0")
    assert windows(tokenizers["bytes"], [LONG, other], num_texts=9, max_length=64).info.dropped == 0


def test_a_document_is_not_read_to_its_end_for_its_first_window(tokenizers: Tokenizers) -> None:
    class Counting:
        """The byte tokenizer, which notes how much text it is given."""

        is_fast, seen = True, 0

        def __call__(self, text: str, **options: Any) -> Any:
            self.seen += len(text)
            return tokenizers["bytes"](text, **options)

    counting: Any = Counting()
    texts = [f"{number} " + "long " * 200_000 for number in range(3)]
    windows(counting, texts, num_texts=3, max_length=64)
    assert counting.seen < 30_000


def test_short_documents_are_skipped_and_counted(tokenizers: Tokenizers) -> None:
    texts = ["short", LONG, "", "also short", LONG[::-1]]
    made = windows(tokenizers["bytes"], texts, num_texts=4, max_length=64)
    assert made.info.skipped == 3 and made.info.windows == ("text:1#0", "text:4#0", "text:1#1", "text:4#1")
    assert made.info.documents == (0, 1, 0, 1)


def test_documents_are_never_glued(tokenizers: Tokenizers) -> None:
    with pytest.raises(UsageError):
        windows(tokenizers["bytes"], ["a few words only"] * 100, max_length=64)


@every_kind
def test_the_longest_document_is_named_when_none_is_long_enough(tokenizers: Tokenizers, kind: str) -> None:
    documents = [Document("tiny.txt", "a b"), Document("longest.txt", "a b c d e f g h i j k l"), Document("c", "x")]
    with pytest.raises(UsageError) as caught:
        windows(tokenizers[kind], documents, max_length=100)
    message = f"{caught.value} {caught.value.hint}"
    fits = len(tokenizers[kind](documents[1].text)["input_ids"])
    assert "longest.txt" in message and f"{fits} tokens" in message and "--max-length" in caught.value.hint
    assert windows(tokenizers[kind], documents, max_length=fits).info.windows == ("longest.txt#0",)


@pytest.mark.parametrize("texts", [[], [""], [" "]])
def test_nothing_to_measure(tokenizers: Tokenizers, texts: list[str]) -> None:
    with pytest.raises(UsageError, match="long enough"):
        windows(tokenizers["bytes"], texts, max_length=16)


def test_lengths(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["bytes"]
    assert windows(tokenizer, num_texts=1).info.length == 512
    assert windows(tokenizer, num_texts=1, positions=128).info.length == 128
    assert windows(tokenizer, num_texts=1, positions=4096).info.length == 512
    assert windows(tokenizer, num_texts=1, max_length=128, positions=128).info.length == 128
    with pytest.raises(UsageError, match="128 positions"):
        windows(tokenizer, max_length=129, positions=128)
    for length in (-5, 0, 1, 3):
        with pytest.raises(UsageError, match="tokens for text"):
            windows(tokenizers["words"], max_length=length)


@pytest.mark.parametrize("count", [0, -3])
def test_no_texts_is_no_request(tokenizers: Tokenizers, count: int) -> None:
    with pytest.raises(UsageError, match="num-texts"):
        windows(tokenizers["bytes"], num_texts=count, max_length=32)


def test_where_windows_come_from_is_told(tokenizers: Tokenizers, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(LONG)
    tokenizer = tokenizers["bytes"]
    assert windows(tokenizer, file, max_length=32).info.source == str(file)
    assert windows(tokenizer, str(file), max_length=32).info.windows[0] == "a.txt#0"
    assert windows(tokenizer, [LONG], max_length=32).info.source == "documents in memory"
    assert windows(tokenizer, [LONG], max_length=32, source="mine").info.source == "mine"
    shipped = windows(tokenizer, num_texts=2, max_length=32).info
    assert PROBE_VERSION in shipped.source and shipped.version == PROBE_VERSION
    assert windows(tokenizer, [LONG], max_length=32).info.version is None


def test_names_can_be_left_out(tokenizers: Tokenizers) -> None:
    made = windows(tokenizers["bytes"], [Document("secret/plan.txt", LONG)], num_texts=3, max_length=32, source="/x/y")
    told = without_names(made)
    assert "secret" not in str(told.info) and "/x/y" not in str(told.info)
    assert torch.equal(told.ids, made.ids) and told.info.windows_sha256 == made.info.windows_sha256


# --- text that spells control tokens ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spelled"),
    [("bytes", "<|endoftext|>"), ("bos", "<s>"), ("bos", "</s>"), ("words", "[MASK]"), ("words", "[SEP]")],
)
def test_text_that_spells_a_special_token_is_text(tokenizers: Tokenizers, kind: str, spelled: str) -> None:
    tokenizer = tokenizers[kind]
    token = tokenizer.convert_tokens_to_ids(spelled)
    assert token in tokenizer(f"a {spelled} b", add_special_tokens=False)["input_ids"]  # what a naive tool does
    made = windows(tokenizer, [f"{spelled} one {spelled}two " * 40], num_texts=2, max_length=64)
    assert token not in made.ids[~made.special].tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "bert"])
def test_a_tokenizer_from_disk_splits_special_tokens_too(opened: Callable[[str], Any], name: str) -> None:
    tokenizer = opened(name).tokenizer
    spelled = [token for token in tokenizer.all_special_tokens]
    made = windows(tokenizer, [" ".join(spelled) + LONG], num_texts=1, max_length=64)
    assert not set(tokenizer.all_special_ids) & set(made.ids[~made.special].tolist())


# --- bytes ------------------------------------------------------------------------------------------

MIXED = "Grüße aus Zürich — naïve 🙂 日本語 text. " * 60


def test_with_a_bos_every_token_of_a_window_is_predicted(tokenizers: Tokenizers) -> None:
    """So windows that touch have spans that join without a gap: those of a document of n · content tokens do."""
    tokenizer, content = tokenizers["bos"], 24
    ends = [end for _, end in tokenizer(MIXED, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    text = next(
        MIXED[: ends[n]] for n in range(len(ends) - 1, 0, -1) if len(plain(tokenizer, MIXED[: ends[n]])) % 24 == 0
    )
    made = windows(tokenizer, [text], num_texts=1000, max_length=content + 1)
    assert len(made) > 20 and len(made) == len(plain(tokenizer, text)) // content
    assert sum(size or 0 for size in made.predicted_bytes) == len(text.encode())
    assert "".join(passage for _, passage in made.passages) == text and {before for before, _ in made.passages} == {""}


def test_without_a_bos_the_first_token_is_given_not_predicted(tokenizers: Tokenizers) -> None:
    tokenizer, content = tokenizers["bytes"], 24
    made = windows(tokenizer, [MIXED], num_texts=1000, max_length=content)
    coded = tokenizer(MIXED, add_special_tokens=False, return_offsets_mapping=True)
    offsets = coded["offset_mapping"]
    starts = spread(len(offsets), content, len(made))
    for start, size, (before, passage) in zip(starts, made.predicted_bytes, made.passages, strict=True):
        predicted = MIXED[offsets[start][1] : offsets[start + content - 1][1]]
        assert passage == predicted and size == len(predicted.encode())
        assert before == MIXED[offsets[start - 1][1] if start else 0 : offsets[start][1]]


def test_bytes_of_plain_ascii_are_its_characters(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["bos"]
    text = "plain words only and no more " * 20
    made = windows(tokenizer, [text], num_texts=1, max_length=33)
    assert made.predicted_bytes[0] == len(tokenizer.decode(made.ids[0, 1:]))


def test_a_tokenizer_without_offsets_gives_no_bytes(tokenizers: Tokenizers) -> None:
    class Slow:
        """A tokenizer that knows no offsets."""

        is_fast = False

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            assert not options.get("return_offsets_mapping")
            return {"input_ids": plain(tokenizers["bytes"], text)}

    made = windows(Slow(), [LONG], num_texts=2, max_length=16)
    assert made.predicted_bytes == (None, None)
    assert made.mask_token_id is None


# --- long documents ---------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("joint", [" ", "", "🙂"])
def test_the_beginning_of_a_long_document_is_tokenised_as_if_whole(
    tokenizers: Tokenizers, kind: str, joint: str
) -> None:
    text = joint.join(d.text for d in probe())  # 150,000 characters
    tokenizer = tokenizers[kind]
    whole = plain(tokenizer, text)
    for count in (1, 3):
        made = windows(tokenizer, [text], num_texts=count, max_length=200)
        content = int((~made.special[0]).sum())
        starts = spread(len(whole), content, count)
        assert made.ids[~made.special].view(count, -1).tolist() == [whole[at : at + content] for at in starts]


@every_kind
def test_a_document_above_4_mb_is_spread_by_characters(
    tokenizers: Tokenizers, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first window from the beginning, each other from the line break after its place; only slices are read."""
    monkeypatch.setattr(corpus, "WHOLE_CHARACTERS", 100_000)
    text = "\n".join(f"line {number}: {line}" for number, line in enumerate(LONG[:90] for _ in range(1500)))
    tokenizer = tokenizers[kind]
    made = windows(tokenizer, [text], num_texts=5, max_length=64)
    content = int((~made.special[0]).sum())
    width = tokenizer(text[:4096], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][
        content - 1
    ][1]
    places = [0, *(text.index("\n", round(j * (len(text) - width) / 4)) + 1 for j in (1, 2, 3))]
    rows = made.ids[~made.special].view(5, content).tolist()
    assert rows[:4] == [plain(tokenizer, text[at : at + 4096])[:content] for at in places]
    last = [at for at in range(len(text) - 3 * width, len(text)) if plain(tokenizer, text[at:])[:content] == rows[4]]
    assert last and last[-1] > places[3] + width
    assert made.info.documents == (0,) * 5 and "above 4 MB" in made.info.notes[0]


@pytest.mark.parametrize(("text", "least"), [("a" * 150_000, 30), ("word " * 30_000, 30), ("\n" * 150_000, 30)])
def test_windows_of_a_document_above_4_mb_do_not_overlap(
    tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch, text: str, least: int
) -> None:
    monkeypatch.setattr(corpus, "WHOLE_CHARACTERS", 100_000)
    numbered = "".join(f"{number:06d} {text[number : number + 20]}" for number in range(0, len(text), 20))
    made = windows(tokenizers["bytes"], [numbered], num_texts=40, max_length=64)
    spans = [tokenizers["bytes"].decode(row) for row in made.ids]
    starts = [numbered.index(span) for span in spans]
    assert len(made) >= least
    assert all(starts[k] + len(spans[k]) <= starts[k + 1] for k in range(len(spans) - 1))
    assert starts[0] == 0 and starts[-1] + 3 * len(spans[-1]) > len(numbered)


def test_a_document_of_one_endless_word(tokenizers: Tokenizers) -> None:
    text = "a" * 60_000
    made = windows(tokenizers["bytes"], [text], num_texts=4, max_length=64)
    ids = plain(tokenizers["bytes"], text)
    assert made.ids.tolist() == [ids[at : at + 64] for at in spread(len(ids), 64, 4)]


def test_invalid_bytes_are_told(tokenizers: Tokenizers, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 " + LONG.encode())
    (tmp_path / "b.txt").write_text(LONG[::-1])
    assert "1 of the documents hold U+FFFD" in windows(tokenizers["bytes"], tmp_path, max_length=64).info.notes[0]
    assert windows(tokenizers["bytes"], tmp_path / "b.txt", max_length=64).info.notes == ()


def test_lone_surrogates(tokenizers: Tokenizers) -> None:
    made = windows(tokenizers["bytes"], ["\ud800 broken \udfff" + LONG], num_texts=1, max_length=64)
    assert made.predicted_bytes[0]


# --- hashes -----------------------------------------------------------------------------------------


def test_hashes_are_stable_and_tell_texts_apart(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["bytes"]

    def info(texts: list[str], length: int = 32) -> Any:
        return windows(tokenizer, texts, num_texts=2, max_length=length).info

    first, again = info([LONG, MIXED]), info([LONG, MIXED])
    assert (first.sha256, first.windows_sha256) == (again.sha256, again.windows_sha256)
    other = info([LONG, MIXED + "!"])  # beyond the windows: another source, the same windows
    assert other.sha256 != first.sha256 and other.windows_sha256 == first.windows_sha256
    longer = info([LONG, MIXED], 48)
    assert longer.sha256 == first.sha256 and longer.windows_sha256 != first.windows_sha256
    assert info(["ab" * 90, "c" * 90]).sha256 != info(["ab" * 90 + "c", "c" * 89]).sha256  # where one ends counts


def test_the_hash_of_the_probe_is_pinned() -> None:
    """Saved runs refer to it: changed text needs a new PROBE_VERSION."""
    digest = hashlib.sha256()
    for document in probe():
        data = document.text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    assert (PROBE_VERSION, digest.hexdigest()) == ("1", PINNED)


PINNED = "bb6d47adeb96679eda7a478ad40ecd0a72006f55ed9ce57fa3f254716d163172"


def test_ids_beyond_the_embedding() -> None:
    check_ids(torch.tensor([[0, 9]]), 10)
    with pytest.raises(UnavailableError, match="token id 10 .* 10 rows") as caught:
        check_ids(torch.tensor([[0, 10]]), 10)
    assert "--tokenizer" in caught.value.hint
