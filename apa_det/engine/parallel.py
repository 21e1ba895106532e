"""A model in several processes: data parallelism, in full copies or sharded (FSDP)."""

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import Tensor, nn

__all__ = [
    "broadcast",
    "full_state",
    "replicate",
    "shard",
    "take_full_states",
]


def replicate(model: nn.Module, *, broadcast_buffers: bool = False, **kwargs) -> nn.Module:
    """Wrap a model in DistributedDataParallel, on a GPU or the CPU, if there are several processes.

    ``kwargs`` are those of :func:`detectron2.engine.create_ddp_model`.
    """
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [comm.get_local_rank()] if on_gpu else None
    return create_ddp_model(
        model, broadcast_buffers=broadcast_buffers, device_ids=device_ids, **kwargs
    )


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the values of the main one."""
    if comm.get_world_size() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)


def shard(model: nn.Module) -> None:
    """Split the parameters of a model over all processes (PyTorch's ``fully_shard``), in place.

    Every process starts from the main one's values. Blocks of the backbone are gathered one after
    the other, and the rest of the model at once: parts of heads are used outside of their
    ``forward``. Build the optimizer afterwards. The model's ``state_dict`` then holds DTensors, see
    :func:`full_state`; ``load_state_dict`` takes tensors as they are in an unsharded model.

    Raises:
        ValueError: a parameter is a scalar, which cannot be split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = [name for name, p in model.named_parameters() if p.dim() == 0]
    if scalars:
        raise ValueError(f"SOLVER.FSDP cannot split {scalars[0]}, a scalar: set it to False.")
    broadcast([*model.parameters(), *model.buffers()])
    device_type = next(model.parameters()).device.type
    mesh = init_device_mesh(device_type, (comm.get_world_size(),))
    for block in list(_blocks(model)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_load_state_dict_pre_hook(_split_like_model)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost elements of the lists and sequences of modules in a model's backbone."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    lists = (nn.ModuleList, nn.ModuleDict)

    def search(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            in_sequence = isinstance(module, (nn.ModuleList, nn.Sequential))
            has_parts = any(True for _ in child.children())
            tied = any(uses[id(p)] > 1 for p in child.parameters())
            if in_sequence and has_parts and not tied and not isinstance(child, lists):
                yield child
            else:
                yield from search(child)

    if isinstance(getattr(model, "backbone", None), nn.Module):
        yield from search(model.backbone)


def _split_like_model(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for name, own in module.state_dict(prefix=prefix).items():
        if name in state_dict:
            state_dict[name] = _split_like(own, state_dict[name])


def _split_like(own: Tensor, value: Tensor) -> Tensor:
    """This process's part of a tensor, where that of the model is a part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or isinstance(value, DTensor) or value.shape != own.shape:
        return value
    part = distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
    return torch.empty_like(own).copy_(part)  # a part alone keeps the memory of the whole


def take_full_states(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer of sharded parameters load the state of one of unsharded parameters."""

    def split(optimizer: torch.optim.Optimizer, state_dict: dict) -> dict:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        own = dict(zip(keys, parameters, strict=False))  # torch itself counts them afterwards
        state = {
            key: {
                name: _split_like(own[key], value) if isinstance(value, Tensor) else value
                for name, value in values.items()
            }
            for key, values in state_dict["state"].items()
            if key in own
        }
        return {**state_dict, "state": state}

    optimizer.register_load_state_dict_pre_hook(split)


def full_state(state):
    """A state dict, nested or not, with sharded tensors put together, on the CPU.

    Every process must call it.
    """
    if isinstance(state, dict):
        return {key: full_state(value) for key, value in state.items()}
    if isinstance(state, Tensor) and hasattr(state, "full_tensor"):
        return state.full_tensor().cpu()
    return state
