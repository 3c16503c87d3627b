"""A run on several processes: the first prepares, measures, writes and speaks; the others train when it does.

What they are told goes through a group of its own that waits as long as it takes, so that no time limit ends them while
the first one measures.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch.distributed as dist

from condense.diagnosis.distributed import PATIENCE, Ranks, device_of, failing_together, have_all_failed, is_alone
from condense.errors import CondenseError, RunError, UsageError, as_condense_error
from condense.models import checkpoint as checkpoints
from condense.records.options import ModelOptions
from condense.records.plans import Plan
from condense.training.arm_trainer import launched_sharded
from condense.training.loop import InterruptedRunError
from condense.trials.arm_run import ArmTraining

Result = TypeVar("Result")


@dataclass(frozen=True)
class _End:
    """The work is done: what every process returns, or raises."""

    result: Any = None
    error: BaseException | None = None


class Team:
    """The processes of a run inside `together`: the first one leads, the others follow what it tells them."""

    def __init__(self, ranks: Ranks) -> None:
        """Every process makes one, at the same point."""
        self.ranks = ranks
        self._told = ""  # of which run the first process told last
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if ranks.size > 1 else None

    def tell(self, training: ArmTraining) -> None:
        """Have the others train an arm too; called by the first, which does so next.

        RunError where the first alone failed in the run before.
        """
        if is_alone(self._told, self.ranks):
            raise RunError("a run failed in one process of several, and the others are gone", "run again with --resume")
        self._told = str(training.run.folder)
        options = replace(training.run.options, token=None)  # each process has its own
        self._say(replace(training, run=replace(training.run, options=options)))

    def _say(self, message: ArmTraining | _End | None) -> ArmTraining | _End:
        said: ArmTraining | _End = self.ranks.told(message, self._group)
        return said

    def lead(self, work: Callable[[], Result]) -> Result:
        """Do the work on the first process; the others end with its result or its error."""
        try:
            result = work()
        except BaseException as error:
            if not is_alone(self._told, self.ranks):  # in training, where nobody listens
                with contextlib.suppress(CondenseError):  # they are gone, or will be told by the launcher
                    self._say(_End(error=_sendable(error)))
            raise
        self._say(_End(result))
        return result

    def follow(self, options: ModelOptions) -> Any:
        """Train what the first process trains, until it is done; returns what `lead` returns there.

        options: how this process opens models. CondenseError, KeyboardInterrupt or whatever else ended the first
        process, which has reported it.
        """
        while True:
            message = self._say(None)
            if isinstance(message, ArmTraining):
                name = str(message.run.folder)
                try:
                    with failing_together(name):
                        _train(message, options)
                except CondenseError:
                    if not have_all_failed(name, self.ranks):  # else the first says whether it goes on
                        raise
            elif message.error is None:
                return message.result
            else:
                raise message.error


def _train(training: ArmTraining, options: ModelOptions) -> None:
    """Train an arm with the first process, which saves it, and tells of a signal."""
    own = replace(training.run.options, token=options.token, device=device_of(options.device))
    with contextlib.suppress(InterruptedRunError):
        training.train(checkpoints.load(training.run.model, own))


def _sendable(error: BaseException) -> BaseException:
    """An error as the other processes raise it, which keep quiet about it."""
    sent = error if isinstance(error, KeyboardInterrupt | InterruptedRunError) else as_condense_error(error)
    if isinstance(sent, CondenseError):
        sent = copy.copy(sent)
        sent.shared = True
    return sent


def sharding(plan: Plan, ranks: Ranks) -> Plan:
    """The plan, sharded where `accelerate launch` was told to. UsageError where there is nothing to shard over."""
    sharded = plan.fsdp or launched_sharded()
    error = None
    if sharded and ranks.size == 1:
        error = UsageError("--fsdp shards a model over processes, and 1 process runs", "start it with torchrun")
    elif launched_sharded() and os.environ.get("FSDP_VERSION", "2") != "2":
        error = UsageError("accelerate was told to use FSDP 1", "set fsdp_version: 2 in its configuration")
    if error is not None:
        error.shared = True
        raise error
    if launched_sharded():  # every process reads the weights, and checks them
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return replace(plan, fsdp=sharded)
