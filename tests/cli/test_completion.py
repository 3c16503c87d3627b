"""Completion in a real bash: the script that is printed, the one that is installed, and what they complete."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = f"""#!{sys.executable}
import sys
sys.argv[0] = "condense"
from condense.cli.app import main
main()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a `condense` of this tree in its bin."""
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "condense"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    return tmp_path


def shell(home: Path, script: str, name: str = "bash") -> subprocess.CompletedProcess[str]:
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run([name, "-c", script], env=environment, capture_output=True, text=True, check=False)


def completed(*words: str) -> str:
    """Bash's own call of the completion of a command line whose last word is not finished."""
    quoted = " ".join(f"'{word}'" for word in words)
    return (
        f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _condense_completion condense; echo "${{COMPREPLY[@]}}"'
    )


def test_bash_completes_commands_flags_and_their_values(home: Path) -> None:
    asked = [
        completed("condense", "ana"),
        completed("condense", "analyze", "--dty"),
        completed("condense", "check", "--not-run", ""),
        completed("condense", "no-such", "x"),
    ]
    done = shell(home, "\n".join(['eval "$(condense --show-completion bash)"', *asked]))
    assert done.stdout.splitlines() == ["analyze", "--dtype", "fail warn ignore", ""], done.stderr


def test_what_is_installed_is_loaded_by_the_next_bash(home: Path) -> None:
    done = shell(home, "condense --install-completion bash")
    assert done.returncode == 0 and "bash completion installed in" in done.stdout, done.stderr
    asked = shell(home, f"source ~/.bashrc; complete -p condense; {completed('condense', 'rep')}")
    assert asked.stdout.splitlines() == ["complete -o default -F _condense_completion condense", "report"]


def test_another_shell_is_named_or_refused(home: Path) -> None:
    script = shell(home, "condense --show-completion zsh").stdout
    assert script.startswith("#compdef condense") and "complete_zsh" in script
    refused = shell(home, "condense --show-completion tcsh")
    assert refused.returncode == 2 and "tcsh" in refused.stderr
    if shutil.which("zsh"):
        checked = shell(home, "cd; condense --show-completion zsh > script; zsh -n script")
        assert (checked.returncode, checked.stderr) == (0, "")
