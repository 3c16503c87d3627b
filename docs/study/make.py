"""Write the study's texts and models into a folder: python docs/study/make.py FOLDER.

Needs Debian's perl and perl-doc (`apt-get install perl-doc`) and condense's own environment. The texts are the pods
of perl-doc as plain text (perl.jsonl, a document per pod, in the order of their names) and the topics of Python's
help (help.jsonl). The models are configurations without weights, with a byte-level BPE of 2,048 tokens that is
trained on perl.jsonl. Prints the sha256 of each.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

END = "<|endoftext|>"
SIZE = 2048
ALIKE = {"vocab_size": SIZE, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        n_layer=6,
        n_embd=128,
        n_head=4,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        architectures=["GPT2LMHeadModel"],
        **ALIKE,
    ),
    "llama": LlamaConfig(
        num_hidden_layers=6,
        hidden_size=128,
        num_attention_heads=4,
        intermediate_size=344,
        max_position_embeddings=256,
        architectures=["LlamaForCausalLM"],
        **ALIKE,
    ),
}


def pods() -> list[dict[str, str]]:
    """The documents of perl-doc: name and plain text of each pod, by name."""
    listed = subprocess.run(["dpkg", "-L", "perl-doc"], check=True, capture_output=True, text=True).stdout.split()
    paths = sorted(Path(line) for line in listed if line.endswith(".pod"))
    if not paths:
        sys.exit("perl-doc has no pods: apt-get install perl-doc")
    plain = ["pod2text", "--utf8", "--width=100"]
    texts = [subprocess.run([*plain, path], check=True, capture_output=True).stdout.decode() for path in paths]
    return [{"id": path.stem, "text": text} for path, text in zip(paths, texts, strict=True)]


def write(path: Path, documents: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")


def tokenizer(documents: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 tokens, trained on the documents."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator((document["text"] for document in documents), trainer)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=256, **special)


def main() -> None:
    """Write both texts and both models."""
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/study/make.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    documents = pods()
    write(folder / "perl.jsonl", documents)
    write(folder / "help.jsonl", [{"id": name, "text": topics[name]} for name in sorted(topics)])
    made = tokenizer(documents)
    for name, config in CONFIGS.items():
        made.save_pretrained(folder / name)
        config.save_pretrained(folder / name)
    for path in sorted([*folder.glob("*.jsonl"), *(path for name in CONFIGS for path in (folder / name).iterdir())]):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, path.relative_to(folder))


if __name__ == "__main__":
    main()
