"""The early peak of the deep mean cosine (H7): python docs/study/peak.py FOLDER OUT [seeds].

Trains the GPT-2 and the Llama that docs/study/make.py wrote into FOLDER on its perl.jsonl, with cross-entropy alone and
with the angular loss at coefficient 1, from the same weights and on the same rows, and writes what `condense.Monitor`
measures on the way into OUT/MODEL-ARM-SEED.jsonl. A finished file is not made again. A minute of one core per run.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import condense

STEPS = (0, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 120, 160)
LENGTH, ROWS, RATE, WARMUP = 128, 16, 2e-3, 40
COEFFICIENTS = {"control": 0.0, "dispersion": 1.0}


def ids_of(folder: Path, name: str) -> torch.Tensor:
    """The token ids of the training text, one document after the other."""
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    lines = (folder / "perl.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    ids = [tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    return torch.tensor([id for part in ids for id in part])


def train(folder: Path, name: str, coefficient: float, seed: int, ids: torch.Tensor, out: Path) -> None:
    """160 steps, measured at STEPS on 16 texts that are not trained on."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / name)).train()
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    probe = condense.windows(tokenizer, str(folder / "help.jsonl"), num_texts=16, max_length=LENGTH)
    begun = out.with_suffix(".part")
    begun.unlink(missing_ok=True)
    monitor = condense.Monitor(model, probe, path=begun)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    with condense.Disperser(model, coefficient=coefficient, max_tokens=0) as disperser:
        for step in range(max(STEPS)):
            starts = torch.randint(0, len(ids) - LENGTH, (ROWS,), generator=generator).tolist()
            rows = torch.stack([ids[start : start + LENGTH] for start in starts])
            loss = model(input_ids=rows, labels=rows).loss
            if step in STEPS:
                monitor(step, loss=loss.item())
            (loss + disperser.penalty() if coefficient else loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / WARMUP)
            optimizer.step()
            optimizer.zero_grad()
        monitor(max(STEPS))
    begun.rename(out)


def main() -> None:
    """Every model and arm under every seed."""
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python docs/study/peak.py FOLDER OUT [seeds]")
    folder, made, seeds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) == 4 else 5
    made.mkdir(parents=True, exist_ok=True)
    ids = {name: ids_of(folder, name) for name in ("gpt2", "llama")}
    for seed in range(seeds):
        for name in ids:
            for arm, coefficient in COEFFICIENTS.items():
                out = made / f"{name}-{arm}-{seed}.jsonl"
                if not out.exists():
                    train(folder, name, coefficient, seed, ids[name], out)
                    print(out)


if __name__ == "__main__":
    main()
