"""Four small models with one fault each: a cone, a rogue dimension, a sink and a low rank.

All are one random Llama (6 blocks, width 64) with a few weights set by hand; nothing is trained. Each fault comes with
the attribution that the verdict has to give, so that `condense demo --sick` is an example and a test of the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, BLOCKS, HEADS, VOCABULARY, POSITIONS = 64, 6, 4, 1024, 256
CHANNEL = 17  # the coordinate of the rogue dimension and of the sink


@dataclass(frozen=True)
class Sick:
    """A fault: its name, what was done to the weights, how the numbers show it, and the attribution it has to get."""

    name: str
    fault: str
    lesson: str
    attribution: str
    make: Callable[[Any], None]

    def write(self, folder: Path) -> None:
        """Write the model and its tokenizer as a checkpoint folder; the same bytes every time."""
        import torch

        model = healthy()
        with torch.no_grad():
            self.make(model)
        model.save_pretrained(folder)
        _train_tokenizer().save_pretrained(folder)


def healthy() -> Any:
    """The random Llama before a fault is built in: a low cone, an intact rank, no sink; every token predicted alike."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=POSITIONS,
        initializer_range=0.1,
        mlp_bias=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.zero_()
    return model


def _train_tokenizer() -> Any:
    """A byte-level BPE of 1,024 tokens learned from the probe text, with `<s>` before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from condense.texts.documents import probe

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((document.text for document in probe()), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", model_max_length=POSITIONS)


def _cone(model: Any) -> None:
    import torch

    signs = torch.randint(0, 2, (WIDTH,), generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0
    for block in model.model.layers:
        block.mlp.down_proj.bias += 0.6 * signs


def _rogue_dimension(model: Any) -> None:
    for block in model.model.layers:
        _unread(block)
        block.mlp.down_proj.bias[CHANNEL] += 2.5


def _sink(model: Any) -> None:
    """The MLP of block 2 recognises `<s>` by a coordinate that no other token uses, and writes a huge value into it."""
    embedding = model.model.embed_tokens.weight
    embedding[:, CHANNEL] = 0
    embedding[0] = 0
    embedding[0, CHANNEL] = WIDTH**0.5
    for block in model.model.layers:
        _unread(block)
        block.self_attn.o_proj.weight[CHANNEL] = 0
        block.mlp.down_proj.weight[CHANNEL] = 0
    mlp = model.model.layers[1].mlp
    for matrix in (mlp.gate_proj.weight, mlp.up_proj.weight):
        matrix[0] = 0
        matrix[0, CHANNEL] = 2
    mlp.down_proj.weight[:, 0] = 0
    mlp.down_proj.weight[CHANNEL, 0] = WIDTH / 4


def _low_rank(model: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(WIDTH, 3, generator=generator)
    for block in model.model.layers:
        weights = block.mlp.down_proj.weight
        weights.copy_(2 * basis @ torch.randn(3, weights.shape[1], generator=generator))


def _unread(block: Any) -> None:
    """Zero a block's input from the channel: its value adds to every cosine and carries no information."""
    attention, mlp = block.self_attn, block.mlp
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        part.weight[:, CHANNEL] = 0


SICK: tuple[Sick, ...] = (
    Sick(
        name="cone",
        fault="every block adds one and the same vector, spread over all coordinates, to every token",
        lesson="The mean cosine climbs with depth, stays without the top 3 dimensions, and is as high between texts: "
        "one direction common to all. The centred rank hardly falls, for the tokens still differ around it.",
        attribution="common direction",
        make=_cone,
    ),
    Sick(
        name="rogue-dimension",
        fault=f"every block adds a large number to coordinate {CHANNEL} of every token, which no block reads",
        lesson="The same climbing mean cosine, but it is gone once each text's three strongest dimensions are set to "
        "zero: one coordinate makes the cone.",
        attribution="rogue dimensions",
        make=_rogue_dimension,
    ),
    Sick(
        name="sink",
        fault="the MLP of block 2 recognises the first token and gives it a state hundreds of times as long",
        lesson="The mean cosine stays low. The sink ratio steps up at block 2, and a rank that keeps the first token "
        "falls there, while the rank of the other tokens does not move.",
        attribution="attention-sink artefact",
        make=_sink,
    ),
    Sick(
        name="low-rank",
        fault="every block writes into the same three directions only",
        lesson="The mean cosine stays low: the tokens point everywhere, but within three directions. Only the rank "
        "tells, and dispersion loss, which acts on cosines, does not aim at it.",
        attribution="rank collapse without a cone",
        make=_low_rank,
    ),
)
"""The faults, in the order in which they are shown."""
