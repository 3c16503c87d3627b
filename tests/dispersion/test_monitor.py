"""The monitor in loops without a Trainer, and as a callback for every model class."""

import errno
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import condense
from condense.dispersion.callback import CondensationMonitor
from condense.dispersion.monitor import KEYS, alarms_of
from condense.errors import UnavailableError, UsageError
from condense.records.monitor import MonitorRun
from tests.conftest import CAUSAL, build, tiny_config
from tests.dispersion.ddp_gradients import llama
from tests.models.test_adapt import NanoGPT, Titan

PROBE = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(2))


def by_hand(model: nn.Module, blocks: list[nn.Module]) -> list[float]:
    """Mean cosine after each block without position 0, mean over the probe's texts."""
    states: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda m, a, o: states.append(o)) for block in blocks]
    model.eval()
    with torch.no_grad():
        model(PROBE)
    for hook in hooks:
        hook.remove()
    unit = [nn.functional.normalize(site[:, 1:].double(), dim=-1) for site in states]
    return [float(((u.sum(1).square().sum(-1) - 11) / (11 * 10)).mean()) for u in unit]


def test_a_plain_loop_on_a_plain_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NanoGPT()
    path = tmp_path / "run.jsonl"
    monitor = condense.Monitor(model, PROBE, path=path, every=2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    returned = []
    for step in range(5):
        loss = model(PROBE, PROBE)[1]
        returned.append(monitor(step, loss=float(loss.detach())))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [bool(numbers) for numbers in returned] == [True, False, True, False, True] and model.training
    assert monitor.status == "4 of 4 blocks, 0 errors" and 0 < monitor.share_of_time < 1
    run = MonitorRun.from_lines(path)
    assert [one.step for one in run.measurements] == [0, 2, 4] and run.blocks == 4 and run.path == "transformer.h"
    assert run.measurements[1].deep == {k: pytest.approx(returned[2][f"deep.{k}"]) for k in KEYS}
    assert set(run.measurements[0].beside) == {"loss"} and len(run.rows()) == 3
    last = condense.Monitor(model, PROBE)(0)
    cosines = by_hand(model, list(model.transformer["h"]))
    assert last["deep.mean_cosine"] == pytest.approx((cosines[2] + cosines[3]) / 2, abs=1e-6)


@pytest.mark.parametrize("family", CAUSAL)
def test_every_family_is_measured(family: str) -> None:
    model = build(tiny_config(family))
    numbers = condense.Monitor(model, PROBE)(0)
    assert numbers["monitor_errors"] == 0 and -1 <= numbers["deep.mean_cosine"] <= 1


def test_windows_are_a_probe_and_specials_are_left_out() -> None:
    model, special = llama(), int(PROBE[0, 3])
    cut = condense.windows(PROBE, max_length=12, special_ids=[special])
    one = condense.Monitor(model, cut)(0)
    other = condense.Monitor(model, PROBE, special_ids=[special])(0)
    assert one["deep.mean_cosine"] == pytest.approx(other["deep.mean_cosine"], abs=1e-6)
    assert one["deep.mean_cosine"] != condense.Monitor(model, PROBE, special_ids=[])(0)["deep.mean_cosine"]


def test_a_compiled_model_is_measured_as_the_plain_one() -> None:
    model = llama().eval()
    expected = condense.Monitor(model, PROBE)(0)["deep.mean_cosine"]
    for block in model.model.layers:
        block.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(PROBE)
        assert condense.Monitor(model, PROBE)(0)["deep.mean_cosine"] == pytest.approx(expected, abs=1e-6)
    torch.compiler.reset()


def test_what_fails_is_counted_and_training_goes_on(tmp_path: Path) -> None:
    model = llama()
    monitor = condense.Monitor(model, PROBE + 1000, path=tmp_path / "run.jsonl")
    with pytest.warns(UserWarning, match="could not measure"):
        numbers = monitor(0)
    assert numbers["monitor_errors"] == 1 and "deep.mean_cosine" not in numbers
    assert monitor.status.startswith("0 of 3 blocks, 1 errors (")
    assert MonitorRun.from_lines(tmp_path / "run.jsonl").measurements[0].errors == 1
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    broken = condense.Monitor(model, PROBE)
    assert broken(0)["blocks_measured"] == 1 and "deep.mean_cosine" not in broken(1)


def test_alarms_are_relative_to_the_first_step(tmp_path: Path) -> None:
    first = {"mean_cosine": 0.3, "effective_rank": 40.0, "relative_variance": 0.6}
    assert alarms_of(first, {"mean_cosine": 0.45, "effective_rank": 21.0, "relative_variance": 0.31}) == {}
    assert set(alarms_of(first, {"mean_cosine": 0.5, "effective_rank": 19.0, "relative_variance": 0.2})) == {
        "cosine", "effective_rank", "relative_variance",
    }  # fmt: skip
    model = llama()
    monitor = condense.Monitor(model, PROBE, path=tmp_path / "run.jsonl")
    monitor(0)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight.zero_()
            block.self_attn.o_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.ones_like(model.model.embed_tokens.weight))
    with pytest.warns(UserWarning) as caught:
        monitor(1)
    assert any("deep mean cosine" in str(one.message) and "1.000 now" in str(one.message) for one in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor(2)
    assert len(MonitorRun.from_lines(tmp_path / "run.jsonl").measurements[2].alarms) >= 1


def test_a_file_is_gone_on_with_or_left_alone(tmp_path: Path) -> None:
    path, model = tmp_path / "run.jsonl", llama()
    condense.Monitor(model, PROBE, path=path)(0)
    condense.Monitor(model, PROBE, path=path)(10)
    assert [one.step for one in MonitorRun.from_lines(path).measurements] == [0, 10]
    with path.open("a") as file:
        file.write('{"step": 20, "de')  # being written
    assert len(MonitorRun.from_lines(path).measurements) == 2
    condense.Monitor(model, PROBE, path=path)(20)  # it was cut off: what is written next is no part of that line
    assert [one.step for one in MonitorRun.from_lines(path).measurements] == [0, 10, 20]
    for text in ("notes of mine\n", '{"schema":"condense.monitor/1","model":"Other","blocks":3}\n', "[1]\n"):
        path.write_text(text)
        with pytest.raises(UsageError, match="not a monitor's file"):
            condense.Monitor(model, PROBE, path=path)
        assert path.read_text() == text


def test_a_line_that_did_not_fit_on_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    monitor = condense.Monitor(llama(), PROBE, path=path)
    monitor(0)
    whole = path.read_bytes()

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exception: object) -> None:
            self.file.close()

        def tell(self) -> int:
            return len(whole)

        def write(self, data: bytes) -> None:
            self.file.write(data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        opened = Path.open
        patch.setattr(Path, "open", lambda self, *given, **more: Full(opened(self, *given, **more)))
        monitor(1)
    assert monitor.errors == 1 and path.read_bytes() == whole
    monitor(2)
    assert [one.step for one in MonitorRun.from_lines(path).measurements] == [0, 2]


def test_a_step_or_a_loss_of_any_kind_does_not_stop_the_training(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    monitor = condense.Monitor(llama(), PROBE, path=path)
    for step in (np.int64(0), torch.tensor(1)):
        monitor(step, loss=torch.tensor(2.0), lr=None, grads=torch.ones(2), name="a")
    known = MonitorRun.from_lines(path).measurements
    assert [one.step for one in known] == [0, 1]
    assert known[0].beside == {"loss": 2.0, "lr": None, "grads": None, "name": None}


def test_files_that_no_monitor_wrote(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for text in ("", "{}\n", "not json\n", json.dumps({"schema": "condense.monitor/1"}) + "\n", "[" * 10**5 + "\n"):
        path.write_text(text)
        with pytest.raises(UnavailableError):
            MonitorRun.from_lines(path)
    with pytest.raises(UnavailableError, match="no such run file"):
        MonitorRun.from_lines(tmp_path / "none.jsonl")


def test_probes_that_are_none() -> None:
    for probe in (torch.zeros(4), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 9), np.zeros((2, 9))):
        with pytest.raises(ValueError, match="probe must be"):
            condense.Monitor(llama(), probe)
    with pytest.raises(ValueError, match="every"):
        condense.Monitor(llama(), PROBE, every=0)


# --- the callback -----------------------------------------------------------------------------------------


def other(name: str) -> nn.Module:
    """A tiny model of a class that calls its blocks in a way of its own."""
    import transformers as t

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3}
    heads = {**sizes, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    makers = {
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**heads)),
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(**sizes, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=16)
        ),
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=64, hidden_size=16, n_layer=3, n_head=2)),
        "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(**sizes, state_size=4)),
        "roberta": lambda: t.RobertaForMaskedLM(t.RobertaConfig(**heads)),
    }
    return makers[name]() if name in makers else build(tiny_config(name))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "bloom", "bert", "roberta", "mamba", "t5", "bart"])
def test_the_callback_takes_its_probe_from_the_first_batch_of_any_class(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = other(family)
    rows: list[dict[str, Any]] = [{"input_ids": row, "labels": row} for row in PROBE]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=3, report_to="none", use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.add_callback(CondensationMonitor(trainer=trainer, quiet=True))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "probe_mean_cosine" in entry]
    assert len(logged) == 2 and all(-1 <= entry["probe_mean_cosine"] <= 1 for entry in logged)


def test_a_module_of_ones_own_under_a_trainer(tmp_path: Path) -> None:
    class Loss(Titan):
        def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Any:
            logits = super().forward(tokens)
            flat = logits.flatten(0, 1)
            return {"loss": nn.functional.cross_entropy(flat, tokens.flatten()), "logits": logits}

    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=3, report_to="none", use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(Loss(), args, train_dataset=[{"tokens": row} for row in PROBE])
    trainer.add_callback(CondensationMonitor(trainer=trainer, quiet=True))
    trainer.train()
    assert any("probe_mean_cosine" in entry for entry in trainer.state.log_history)


def test_a_loss_that_is_no_cross_entropy_is_not_called_so(tmp_path: Path) -> None:
    from tests.dispersion.ddp_gradients import collate
    from tests.dispersion.ddp_gradients import rows as padded

    class GRPOTrainer(Trainer):
        """Stands for TRL's: a loss near 0 that may be negative."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * 1e-6

    class Dispersed(condense.DispersionMixin, GRPOTrainer):
        pass

    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer = Dispersed(
            llama(), args, train_dataset=padded(), data_collator=collate, dispersion={"coefficient": 1.0},
            callbacks=[CondensationMonitor(PROBE, quiet=True)],
        )  # fmt: skip
        trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert "task_loss" in logs and "penalty_to_task_loss" in logs
    assert "ce_loss" not in logs and "penalty_to_ce" not in logs


def test_which_losses_are_cross_entropy() -> None:
    trl = pytest.importorskip("trl")
    from condense.dispersion.trainer import is_cross_entropy

    assert (
        is_cross_entropy(Trainer) and is_cross_entropy(trl.SFTTrainer) and is_cross_entropy(condense.DispersionTrainer)
    )
    assert not any(map(is_cross_entropy, (trl.DPOTrainer, trl.KTOTrainer, trl.GRPOTrainer, trl.RewardTrainer)))
