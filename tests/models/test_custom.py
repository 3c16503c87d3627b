"""Classes that came with their checkpoint: measured as what they are, or refused with the true reason."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import condense
from condense.errors import UnavailableError
from condense.models.locate import _POSITION_TABLE
from condense.texts.documents import probe
from tests.models.test_bad_input import assert_refused
from tests.models.test_bad_input import condense as command

HEAD = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput


class Settings(PreTrainedConfig):
    model_type = "theirs"

    def __init__(self, vocab_size=480, width=32, depth=3, loops=1, **more):
        super().__init__(**more)
        self.vocab_size, self.width, self.depth, self.loops = vocab_size, width, depth, loops


class Cell(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return x + self.out(torch.tanh(self.mix(self.norm(x).cumsum(1) / count)))
"""
BODY = """
class Body(PreTrainedModel):
    config_class = Settings
    base_model_prefix = "body"

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.cells = nn.ModuleList([Cell(config.width) for _ in range(config.depth)])
        self.ln_f = nn.LayerNorm(config.width)
        self.post_init()

    def forward(self, input_ids, OPTIONS):
        x = self.wte(input_ids)
        states = (x,)
        for cell in self.cells:
            x = cell(x)
            states += (x,)
        return RETURNED
"""
REPORTS = "BaseModelOutput(last_hidden_state=self.ln_f(x), hidden_states=(*states[:-1], self.ln_f(x)))"
WRAPPED = """

class Thing(PreTrainedModel):
    config_class = Settings
    base_model_prefix = "body"

    def __init__(self, config):
        super().__init__(config)
        self.body = Body(config)
        self.readout = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, labels=None, **kwargs):
        output = self.body(input_ids)
        x = output if isinstance(output, torch.Tensor) else output[0]
        return CausalLMOutput(logits=self.readout(x))
"""
FLAT = """
class Thing(PreTrainedModel):
    config_class = Settings

    def __init__(self, config):
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.start_norm = nn.LayerNorm(config.width)
        BLOCKS
        self.ln_f = nn.LayerNorm(config.width)
        self.readout = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, labels=None):
        x = self.start_norm(self.tokens(input_ids))
        for _ in range(self.config.loops):
            for cell in CELLS:
                x = cell(x)
        logits = self.readout(self.ln_f(x))
        return RETURNED
"""
LIST = "self.trunk = nn.ModuleList([Cell(config.width) for _ in range(config.depth)])"
SEQUENCE = "self.trunk = nn.Sequential(*[Cell(config.width) for _ in range(config.depth)])"
NAMED = "self.trunk = nn.ModuleDict({f'c{i}': Cell(config.width) for i in range(config.depth)})"
TWO = LIST + "; self.trunk2 = nn.ModuleList([Cell(config.width) for _ in range(config.depth)])"
OUTPUT = "CausalLMOutput(logits=logits)"


def flat(blocks: str = LIST, cells: str = "self.trunk", returned: str = OUTPUT) -> str:
    return FLAT.replace("BLOCKS", blocks).replace("CELLS", cells).replace("RETURNED", returned)


def body(options: str = "**kwargs", returned: str = REPORTS) -> str:
    return BODY.replace("OPTIONS", options).replace("RETURNED", returned) + WRAPPED


@pytest.fixture
def custom(tmp_path: Path, tokenizers: dict[str, Any]) -> Callable[..., Path]:
    """Call with code: a checkpoint folder of a class `Thing` in it, with random weights."""

    def folder(code: str, auto: dict[str, str] | None = None, **settings: Any) -> Path:
        path = tmp_path / "theirs"
        path.mkdir()
        names = auto or {"AutoModelForCausalLM": "code.Thing"}
        names = {key: value.replace("code.", f"theirs_{abs(hash(code))}.") for key, value in names.items()}
        module = f"theirs_{abs(hash(code))}"
        (path / f"{module}.py").write_text(HEAD + code)
        space: dict[str, Any] = {"__name__": module}
        exec(HEAD + code, space)  # the test's own code
        torch.manual_seed(0)
        config = space["Settings"](**settings)
        model = space["Thing"](config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path / "model.safetensors")
        mapped = {"AutoConfig": f"{module}.Settings", **names}
        content = {"model_type": "theirs", "architectures": ["Thing"], "auto_map": mapped, **settings}
        (path / "config.json").write_text(json.dumps({"vocab_size": 480, "width": 32, "depth": 3, **content}))
        tokenizers["bytes"].save_pretrained(path)
        return path

    return folder


def measured(folder: Path) -> Any:
    checkpoint = condense.load(folder, device="cpu", trust_remote_code=True)
    windows = condense.windows(checkpoint.tokenizer, num_texts=3, max_length=40)
    return checkpoint, condense.analyze(checkpoint, windows, spectral_tokens=8), windows


MEASURED = {
    "body": body(),
    "body-without-options": body(options="attention_mask=None"),
    "body-returns-a-tensor": body(returned="self.ln_f(x)"),
    "body-returns-a-tuple": body(returned="(self.ln_f(x), states)"),
    "flat": flat(),
    "flat-sequence": flat(SEQUENCE),
    "flat-dictionary": flat(NAMED, "self.trunk.values()"),
    "flat-returns-a-tuple": flat(returned="(logits,)"),
    "flat-returns-a-dict": flat(returned="{'logits': logits}"),
    "flat-without-a-final-norm": flat().replace("self.ln_f(x)", "x"),
    "other-prefix": body().replace('base_model_prefix = "body"', 'base_model_prefix = "model"'),
}


@pytest.mark.parametrize("name", MEASURED)
def test_custom_classes_are_measured_as_what_they_are(name: str, custom: Callable[..., Path]) -> None:
    """The states are those of the blocks, the loss is that of the model's own logits."""
    checkpoint, found, windows = measured(custom(MEASURED[name]))
    model = checkpoint.model
    assert found.model.blocks == 3 and found.model.objective == "causal" and checkpoint.head_missing is None
    assert [site.site for site in found.sites] == ["embedding", "block", "block", "block", "output"]
    with torch.no_grad():
        output = model(input_ids=windows.ids)
        logits = output["logits"] if isinstance(output, dict) else output[0]
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), windows.ids[:, 1:], reduction="none")
    assert math.isclose(found.quality.loss.value, float(losses.mean()), rel_tol=1e-5)
    seen: list[torch.Tensor] = []
    cells = [part for part in model.modules() if type(part).__name__ == "Cell"]
    handle = cells[-1].register_forward_hook(lambda module, args, output: seen.append(output[0, 1:]))
    with torch.no_grad():
        model(input_ids=windows.ids[:1])
    handle.remove()
    unit = torch.nn.functional.normalize(seen[0].double(), dim=-1)
    expected = float((unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1)))
    assert found.sites[3].metrics["mean_cosine"].per_text[0] == pytest.approx(expected, abs=1e-6)


REFUSED = {
    "looped": (flat(), {"loops": 2}, r"Thing is a looped model: its 3 blocks are called 6 times in a forward pass"),
    "looped-body": (
        body().replace("for cell in self.cells:", "for cell in [*self.cells, *self.cells]:"),
        {},
        "Body is a looped model: its 3 blocks are called 6 times",
    ),
    "two-lists": (flat(TWO), {}, r"several lists of modules could be the blocks of Thing.*trunk \(3 x Cell\), trunk2"),
    "no-list": (
        flat("self.a = Cell(config.width); self.b = Cell(config.width)", "(self.a, self.b)"),
        {},
        "no list of blocks found in Thing",
    ),
    "fails": (
        flat().replace("for _ in range(self", "raise KeyError('no such head')\n        for _ in range(self"),
        {},
        "Thing fails in its forward pass: nothing is known of 'no such head'",
    ),
    "no-embedding": (
        flat()
        .replace("self.tokens(input_ids)", "self.one_hot(input_ids)")
        .replace(
            "    def forward",
            "    def one_hot(self, ids):\n"
            "        return nn.functional.one_hot(ids, 480).float() @ self.tokens.weight\n\n    def forward",
        )
        .replace("nn.Embedding(config", "nn.Bilinear(1, config"),
        {},
        "does not say which module embeds token ids",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_says_why(name: str, custom: Callable[..., Path]) -> None:
    code, settings, line = REFUSED[name]
    with pytest.raises(UnavailableError, match=line) as caught:
        measured(custom(code, **settings))
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_model_is_refused(custom: Callable[..., Path]) -> None:
    folder = custom(body() + "\n\nclass Plain(nn.Module):\n    pass\n", {"AutoModelForCausalLM": "code.Plain"})
    with pytest.raises(UnavailableError, match=r"Plain \(auto_map\) is no PreTrainedModel"):
        condense.load(folder, device="cpu", trust_remote_code=True)


def test_code_that_names_no_model_is_refused(custom: Callable[..., Path]) -> None:
    folder = custom(body(), {"AutoProcessor": "code.Thing"})
    with pytest.raises(UnavailableError, match="auto_map of theirs names no class of a model"):
        condense.load(folder, device="cpu", trust_remote_code=True)


def test_auto_map_decides_over_a_class_of_the_same_name(custom: Callable[..., Path]) -> None:
    code = body().replace("Thing", "LlamaForCausalLM") + "\n\nThing = LlamaForCausalLM\n"
    folder = custom(code, {"AutoModelForCausalLM": "code.LlamaForCausalLM"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    found = condense.load(folder, device="cpu", trust_remote_code=True)
    assert type(found.model).__module__.startswith("transformers_modules")
    del config["model_type"]  # nor does the architecture's name decide then
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(UnavailableError, match="needs code of its own"):
        condense.load(folder, device="cpu")


@pytest.mark.parametrize("table", ["nn.Embedding(50, config.width)", "nn.Parameter(torch.zeros(1, 50, config.width))"])
def test_a_table_of_positions_ends_where_it_ends(table: str, custom: Callable[..., Path]) -> None:
    """Its config names no longest input; the rows of the weights do."""
    positions = "self.pos_emb(torch.arange(x.shape[1]))" if "Embedding" in table else "self.pos_emb[:, : x.shape[1]]"
    code = flat(f"self.pos_emb = {table}; {LIST}").replace(
        "x = self.start_norm(self.tokens(input_ids))", f"x = self.tokens(input_ids); x = x + {positions}"
    )
    checkpoint = condense.load(custom(code), device="cpu", trust_remote_code=True)
    assert checkpoint.positions == 50
    windows = condense.windows(checkpoint.tokenizer, num_texts=2, positions=checkpoint.positions)
    assert windows.info.length == 50
    assert condense.analyze(checkpoint, windows, spectral_tokens=8).quality.loss.value is not None


@pytest.mark.parametrize(
    ("name", "is_table"),
    [
        ("transformer.wpe.weight", True),
        ("wpe.weight", True),
        ("embeddings.position_embeddings.weight", True),
        ("model.decoder.embed_positions.weight", True),
        ("pos_embedding", True),
        ("position_embedding.weight", True),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", False),
        ("rel_pos_emb.weight", False),
        ("vision_model.embeddings.position_embedding.weight", False),
        ("model.embed_tokens.weight", False),
        ("layers.0.pos_proj.weight", False),
        ("positional_norm.weight", False),
    ],
)
def test_tables_of_positions_by_name(name: str, is_table: bool) -> None:
    assert bool(_POSITION_TABLE.search(name)) == is_table


BYTES = """
from transformers import PreTrainedTokenizer


class Bytes(PreTrainedTokenizer):
    @property
    def vocab_size(self):
        return 256

    def get_vocab(self):
        return {f"<{i}>": i for i in range(256)} | self.added_tokens_encoder

    def _tokenize(self, text):
        return [f"<{i}>" for i in text.encode()]

    def _convert_token_to_id(self, token):
        return int(token[1:-1])

    def _convert_id_to_token(self, index):
        return f"<{index}>"
"""


def test_a_tokenizer_of_its_own_code_needs_no_file_of_a_known_name(custom: Callable[..., Path]) -> None:
    folder = custom(body())
    for file in folder.glob("*tok*"):
        file.unlink()
    (folder / "bytes_of_theirs.py").write_text(BYTES)
    settings = {"tokenizer_class": "Bytes", "auto_map": {"AutoTokenizer": ["bytes_of_theirs.Bytes", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    checkpoint, found, windows = measured(folder)
    text = condense.windows(checkpoint.tokenizer, ["déjà vu, " * 20], num_texts=1, max_length=12)
    assert bytes(text.ids[0].tolist()) == "déjà vu, d".encode() and found.corpus.texts == 3
    assert windows.ids.max() < 256


LOSS = """logits = self.readout(x)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)"""


def test_a_custom_class_is_trained_and_saved_with_its_code(custom: Callable[..., Path], tmp_path: Path) -> None:
    code = body().replace("return CausalLMOutput(logits=self.readout(x))", LOSS)
    folder, text = custom(code), tmp_path / "text.txt"
    text.write_text("\n\n".join(document.text for document in probe()[:4]) + " And something more than the probe.")
    options = ["--text", text, "--max-steps", "1", "--max-length", "48", "--num-texts", "4", "--device", "cpu"]
    result = command("treat", folder, "-o", tmp_path / "out", *options, "--trust-remote-code")
    assert result.exit_code == 0 and not (tmp_path / "out.work").exists(), result.output
    found, before = (
        condense.load(path, device="cpu", trust_remote_code=True).model for path in (tmp_path / "out", folder)
    )
    assert type(found).__name__ == "Thing"
    assert any(not torch.equal(a, b) for a, b in zip(found.parameters(), before.parameters(), strict=True))


def test_a_custom_class_that_gives_no_loss_cannot_be_trained(custom: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(document.text for document in probe()[:4]) + " And something more than the probe.")
    options = ["--text", text, "--max-steps", "1", "--max-length", "48", "--num-texts", "4", "--device", "cpu"]
    result = command("treat", custom(body()), "-o", tmp_path / "out", *options, "--trust-remote-code")
    assert_refused(result, 3, "Thing gives no loss where it is given labels", "condense.Disperser")
