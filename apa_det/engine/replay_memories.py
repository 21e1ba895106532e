"""The replay memories of all processes, and their part of a checkpoint."""

from collections.abc import Mapping, Sequence

from detectron2.utils import comm
from torch import nn

from ..modeling.feature_memory import FeatureMemory
from ..modeling.feature_replay import FeatureReplay


class ReplayMemories:
    """Fills the memories of a model's :class:`FeatureReplay` modules after each step.

    Each process has its own memory. A checkpoint is written by the main process alone, at any time,
    also while the others train on or evaluate: so the main process has a copy of the memories of
    the others on the CPU, which gets the same new features in each step.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: in DistributedDataParallel or not; its replays have looked up their classes.
        """
        modules = getattr(model, "module", model).named_modules()
        self._replays = {name: m for name, m in modules if isinstance(m, FeatureReplay)}
        for replay in self._replays.values():
            replay.is_recording = True
        others = range(1, comm.get_world_size()) if comm.is_main_process() else ()
        self._others = [
            {n: FeatureMemory(r.memory.classes, r.size) for n, r in self._replays.items()}
            for _ in others
        ]
        self._device = next(model.parameters()).device

    def forget_recorded(self) -> None:
        """Forget features that were recorded and not committed, as a step begins."""
        for replay in self._replays.values():
            replay.take_recorded()

    def commit(self) -> None:
        """Add the features of a step to the memories. Every process must call it."""
        if not self._replays:
            return
        recorded = {name: replay.take_recorded() for name, replay in self._replays.items()}
        for name, new in recorded.items():
            if new is not None:
                self._replays[name].memory.push(*new)
        if comm.get_world_size() == 1:
            return
        new = {name: (x.cpu(), labels.cpu()) for name, (x, labels) in _not_none(recorded)}
        gathered = comm.gather(new)
        for memories, new in zip(self._others, gathered[1:], strict=True):
            for name, features in new.items():
                memories[name].push(*features)

    def state_dict(self) -> list[dict]:
        """Return the memories of each process by module; empty if all are empty.

        Of a process other than the main one, only its own.
        """
        own = {name: replay.memory for name, replay in self._replays.items()}
        states = [_states(memories) for memories in (own, *self._others)]
        return states if any(states) else []

    def load_state_dict(self, states: Sequence[Mapping]) -> None:
        """Restore the memories. With another number of processes, they take turns.

        Raises:
            ValueError: a state does not fit.
        """
        if not states:
            return
        state = states[comm.get_rank() % len(states)]
        for name, replay in self._replays.items():
            replay.memory.load_state_dict(state.get(name, {}), self._device)
        for rank, memories in enumerate(self._others, start=1):
            for name, memory in memories.items():
                memory.load_state_dict(states[rank % len(states)].get(name, {}), "cpu")


def _not_none(recorded: Mapping) -> list[tuple]:
    return [(name, new) for name, new in recorded.items() if new is not None]


def _states(memories: Mapping[str, FeatureMemory]) -> dict[str, dict]:
    states = {name: memory.state_dict() for name, memory in memories.items()}
    return {name: state for name, state in states.items() if state}
