"""Data parallelism: a copy of the model per process, or shards of one (FSDP)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import UserError


def replicate(model: nn.Module, *, broadcast_buffers: bool = False, **kwargs) -> nn.Module:
    """Wrap a model in DistributedDataParallel, on GPU or CPU; with one process, return it as is.

    ``kwargs`` are those of :func:`detectron2.engine.create_ddp_model`.
    """
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [comm.get_local_rank()] if on_gpu else None
    return create_ddp_model(
        model, broadcast_buffers=broadcast_buffers, device_ids=device_ids, **kwargs
    )


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with those of the main process, in all processes."""
    if comm.get_world_size() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)


def largest(value: float) -> float:
    """Return the largest value of all processes; every process must call it.

    It does not wait for GPUs.

    Args:
        value: of this process.
    """
    if comm.get_world_size() == 1:
        return value
    number = torch.tensor(float(value))
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=_host_group())
    return number.item()


@cache
def _host_group() -> torch.distributed.ProcessGroup:
    """Return a group of all processes that communicates tensors on the CPU."""
    if torch.distributed.get_backend() == "nccl":
        return torch.distributed.new_group(backend="gloo")
    return torch.distributed.group.WORLD


def shard(model: nn.Module, key: str = "FSDP") -> None:
    """Shard the parameters of a model over all processes (PyTorch's ``fully_shard``), in place.

    All processes start from the main process's values. Each block of the backbone is gathered when
    it runs; the rest of the model is gathered at once, because heads use some of their layers
    outside ``forward``. Build the optimizer afterwards. ``state_dict`` then holds DTensors (see
    :func:`full_state`); ``load_state_dict`` accepts the tensors of an unsharded model.

    Args:
        model: the model, not in DistributedDataParallel.
        key: config key of FSDP, for the error message.

    Raises:
        UserError: a parameter is a scalar, which cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = [name for name, p in model.named_parameters() if p.dim() == 0]
    if scalars:
        raise UserError(f"{key} cannot shard the scalar {scalars[0]}: set it to False.")
    broadcast([*model.parameters(), *model.buffers()])
    device_type = next(model.parameters()).device.type
    mesh = init_device_mesh(device_type, (comm.get_world_size(),))
    for block in list(_blocks(model)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_load_state_dict_pre_hook(_shard_like_model)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost elements of ModuleLists and Sequentials in a model's backbone."""
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


def _shard_like_model(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for name, own in module.state_dict(prefix=prefix).items():
        if name in state_dict:
            state_dict[name] = _shard_like(own, state_dict[name])


def _shard_like(own: Tensor, value: Tensor) -> Tensor:
    """Return this process's shard of a tensor if ``own`` is sharded, else the tensor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or isinstance(value, DTensor) or value.shape != own.shape:
        return value
    part = distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
    return torch.empty_like(own).copy_(part)  # a view would keep the whole tensor in memory


def load_full_states(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer of sharded parameters load the state of an unsharded training."""

    def shard_state(optimizer: torch.optim.Optimizer, state_dict: dict) -> dict:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        own = dict(zip(keys, parameters, strict=False))  # torch checks the number later
        state = {
            key: {
                name: _shard_like(own[key], value) if isinstance(value, Tensor) else value
                for name, value in values.items()
            }
            for key, values in state_dict["state"].items()
            if key in own
        }
        return {**state_dict, "state": state}

    optimizer.register_load_state_dict_pre_hook(shard_state)


def full_state(state):
    """Return a (nested) state dict with its sharded tensors gathered on the CPU.

    Every process must call it.
    """
    if isinstance(state, dict):
        return {key: full_state(value) for key, value in state.items()}
    if isinstance(state, Tensor) and hasattr(state, "full_tensor"):
        return state.full_tensor().cpu()
    return state
