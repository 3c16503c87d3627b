"""Tiny random checkpoints as real Hugging Face folders, and an environment that reaches nothing outside."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

VOCABULARY = 480
POSITIONS = 128


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--without-real`: leave out what needs the real models."""
    parser.addoption("--without-real", action="store_true", help="skip the tests on SmolLM2 and MiniLM")


# Warnings are errors, but for these, which other packages raise about themselves.
NOT_OURS = ("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",)  # peft 0.21 with transformers 5.23


LONGEST = ("trials", "treatment", "evaluation", "browser", "diagnosis")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # the folders of the longest files first, so that two workers end at about the same time
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)
    for item in items:
        for line in NOT_OURS:
            item.add_marker(pytest.mark.filterwarnings(line))
    if config.getoption("--without-real"):
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="--without-real"))


@pytest.fixture(scope="session", autouse=True)
def _session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this session's own, and one thread: on tiny tensors more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONDENSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CONDENSE_ATLAS", str(tmp_path_factory.mktemp("data") / "atlas"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _frozen_libraries() -> None:
    """What is imported by now is left out of garbage collections: training runs several, a quarter of a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_kept_diagnosis() -> None:
    """What another test measured is not used: every test sees a measurement of its own."""
    from condense.files import cache_root

    shutil.rmtree(cache_root() / "diagnoses", ignore_errors=True)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """A command sets how much the logger `condense` tells, for the rest of its process: for a test, of the test."""
    logger = logging.getLogger("condense")
    logger.setLevel(logging.NOTSET)  # a fixture of a whole module may have run a command before this test
    logger.handlers.clear()
    yield
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.fixture(scope="module")
def shared_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that outlives the session, so that a real GGUF is converted once; `CONDENSE_TEST_CACHE` names another."""
    cache = request.config.cache
    kept = cache.mkdir("condense") if cache is not None else tmp_path_factory.mktemp("condense")
    folder = Path(os.environ.get("CONDENSE_TEST_CACHE") or kept)
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONDENSE_CACHE", str(folder))
        yield folder
    torch.set_num_threads(threads)


# --- tokenizers -------------------------------------------------------------------------------------


def _corpus() -> list[str]:
    from condense.texts.documents import probe

    return [document.text for document in probe()]


def byte_tokenizer(*, bos: str | None = None, eos: str = "<|endoftext|>", size: int = VOCABULARY) -> Any:
    """A byte-level BPE like GPT-2's; with `bos` it puts one before every text, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = [token for token in (bos, eos) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(_corpus(), trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    else:
        core.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, model_max_length=POSITIONS)


def word_tokenizer(size: int = VOCABULARY) -> Any:
    """A WordPiece like BERT's: [CLS] text [SEP], with a mask token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    core.train_from_iterator(_corpus(), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=POSITIONS,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """The tokenizers of the tiny models: `bytes` (no specials), `bos` (one before), `words` ([CLS] … [SEP])."""
    return {
        "bytes": byte_tokenizer(),
        "bos": byte_tokenizer(bos="<s>", eos="</s>"),
        "words": word_tokenizer(),
    }


# --- checkpoints ------------------------------------------------------------------------------------


def build(config: Any, seed: int = 7, cls: Any = None) -> Any:
    """A random model of `config.architectures[0]` (or `cls`) whose norm weights are random too."""
    import transformers

    cls = cls or getattr(transformers, config.architectures[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).eval()
        with torch.no_grad():
            for module in model.modules():
                if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None:
                    module.weight.uniform_(0.5, 1.5)
                    if getattr(module, "bias", None) is not None:
                        module.bias.normal_(0, 0.2)
    return model


def write_checkpoint(folder: Path, config: Any, tokenizer: Any = None, *, seed: int = 7, cls: Any = None) -> Path:
    """Write a random checkpoint as Hugging Face would: config.json, model.safetensors, tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    build(config, seed, cls).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def tiny_config(name: str) -> Any:
    """The config of a tiny model by its short name."""
    import transformers as t

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    wide = {**sizes, "intermediate_size": 48, "max_position_embeddings": POSITIONS, "initializer_range": 0.2}
    grouped = {**wide, "num_key_value_heads": 1}
    makers: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: t.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=2, n_positions=POSITIONS, initializer_range=0.2,
            bos_token_id=0, eos_token_id=0, architectures=["GPT2LMHeadModel"],
        ),
        "llama": lambda: t.LlamaConfig(**grouped, bos_token_id=0, eos_token_id=1, architectures=["LlamaForCausalLM"]),
        "qwen2": lambda: t.Qwen2Config(**grouped, bos_token_id=0, eos_token_id=0, architectures=["Qwen2ForCausalLM"]),
        "qwen3": lambda: t.Qwen3Config(
            **grouped, head_dim=16, bos_token_id=0, eos_token_id=0, architectures=["Qwen3ForCausalLM"]
        ),
        "bert": lambda: t.BertConfig(**wide, pad_token_id=0, architectures=["BertForMaskedLM"]),
        "albert": lambda: t.AlbertConfig(
            **wide, embedding_size=16, pad_token_id=0, num_hidden_groups=1, architectures=["AlbertForMaskedLM"]
        ),
        "bart": lambda: t.BartConfig(
            vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=POSITIONS,
            init_std=0.2, pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3,
            forced_eos_token_id=None, architectures=["BartForConditionalGeneration"],
        ),
        "t5": lambda: t.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=2,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
            architectures=["T5ForConditionalGeneration"],
        ),
    }  # fmt: skip
    return makers[name]()


TOKENIZER_OF = {"llama": "bos", "bert": "words", "albert": "words", "bart": "words"}
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Any]) -> Callable[[str], Path]:
    """Call with gpt2, llama, qwen2, qwen3, bert, albert, bart or t5: the folder of a tiny checkpoint (do not write)."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(name: str) -> Path:
        if name not in made:
            tokenizer = tokenizers[TOKENIZER_OF.get(name, "bytes")]
            made[name] = write_checkpoint(root / name, tiny_config(name), tokenizer)
        return made[name]

    return folder


@pytest.fixture
def copy_of(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny checkpoint that a test may damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny(name), tmp_path / name))

    return copy


@pytest.fixture(scope="session")
def opened(tiny: Callable[[str], Path]) -> Callable[[str], Any]:
    """Call with a name: the loaded `Checkpoint` of a tiny model, opened once per session (do not change)."""
    from condense.models.checkpoint import load

    made: dict[str, Any] = {}

    def checkpoint(name: str) -> Any:
        if name not in made:
            made[name] = load(tiny(name), device="cpu")
        return made[name]

    return checkpoint


@pytest.fixture(scope="session")
def diagnosed(opened: Callable[[str], Any]) -> Callable[[str], Any]:
    """Call with a name: the `Diagnosis` of a tiny model on 8 windows of 64 tokens, made once per session."""
    from condense.diagnosis.run import analyze
    from condense.texts.windows import windows

    made: dict[str, Any] = {}

    def diagnosis(name: str) -> Any:
        if name not in made:
            checkpoint = opened(name)
            texts = windows(checkpoint.tokenizer, num_texts=8, max_length=64, positions=checkpoint.positions)
            made[name] = analyze(checkpoint, texts, spectral_tokens=32, command="condense analyze tiny")
        return made[name]

    return diagnosis
