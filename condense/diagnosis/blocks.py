"""The finding on blocks of the deeper half that change their input by almost nothing."""

from __future__ import annotations

from condense.diagnosis.verdict import Facts
from condense.records.base import Finding

IDLE = 0.05
"""A block that writes less than this share of what it receives changes almost nothing; a convention of condense."""
CURSE = "Sun et al. 2025, arXiv:2502.05795; Men et al. 2024, arXiv:2403.03853"


def idle_finding(facts: Facts) -> Finding | None:
    """Most blocks of the deeper half write less than 5 % of what they receive; None where they do not."""
    curve = facts.curves.get("update_ratio") or [None] * len(facts.labels)
    ratios = [(label, value) for label, value in zip(facts.labels, curve, strict=True) if label.startswith("block")]
    deep = ratios[len(ratios) // 2 :]
    idle = [(label, value) for label, value in deep if value is not None and value < IDLE]
    if not idle or 2 * len(idle) <= len(deep):
        return None
    between = deep[deep.index(idle[0]) : deep.index(idle[-1]) + 1]
    which = f"{idle[0][0]} to {idle[-1][0]}" if between == idle else ", ".join(label for label, _ in idle)
    return Finding(
        id="idle-blocks",
        severity="info",
        title=f"Most of the deeper half changes almost nothing: {len(idle)} of {len(deep)} blocks",
        seen=f"{which} write {min(v for _, v in idle):.3f} to {max(v for _, v in idle):.3f} of "
        "what they receive (update ratio, mean over tokens)",
        why="Where blocks write little, states stay as they were: a cosine that does not fall over depth is then an "
        "unchanged one, no condensation by these blocks. Such blocks can often be left out at a small loss.",
        next=facts.command("analyze", "--lens -o report/"),
        source=CURSE,
    )
