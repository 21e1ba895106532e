"""Checks in two processes, which test_parallel.py starts with torchrun.

Arguments: a yaml config, a LazyConfig and overrides of the LazyConfig.
"""

import copy
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from test_step import Square, assert_same_gradients, detector, run_step
from torch import nn

from apa_det import AGLU, add_apa_config
from apa_det.engine import StrictCheckpointer, build_optimizer, load_model, run, setup_job
from apa_det.engine.checkpointer import ShardedCheckpointer
from apa_det.engine.ema import build_ema
from apa_det.engine.parallel import (
    full_state,
    load_full_states,
    replicate,
    shard,
)
from apa_det.engine.replay_memories import ReplayMemories
from apa_det.engine.step import StepTrainer
from apa_det.evaluation import LongTailEvaluator
from apa_det.modeling import FeatureReplay
from apa_det.modeling.feature_memory import FeatureMemory
from apa_det.modeling.losses import SIGMOID, EqualizationLossV2, SeesawLoss
from apa_det_cli import train_detector


def share(data):
    """Return this process's part of a batch."""
    size = len(data) // comm.get_world_size()
    return data[comm.get_rank() * size :][:size]


def assert_in_sync(model):
    for tensor in model.state_dict().values():
        ours, other = comm.all_gather(tensor)
        assert torch.equal(ours, other)


def check_gradients(arguments):
    """Gradients of a batch are equal in one and two processes, at once and in parts."""
    torch.manual_seed(0)
    model, data = Square().double(), list(torch.randn(8, 4).double())
    _, expected = run_step(copy.deepcopy(model), data)
    for num_parts in (1, 2, 4):
        whole, ours = copy.deepcopy(model), copy.deepcopy(model)
        run_step(whole, data)
        _, scalars = run_step(replicate(ours), share(data), num_parts=num_parts)
        assert_same_gradients(ours, whole, rtol=1e-12)
        assert_in_sync(ours)
        if comm.is_main_process():
            assert scalars["total_loss"] == pytest.approx(expected["total_loss"], rel=1e-12)

    with pytest.MonkeyPatch.context() as monkeypatch:
        model, data = detector(arguments, monkeypatch)
        whole, sharded = copy.deepcopy(model), copy.deepcopy(model)
        run_step(replicate(model), share(data), num_parts=2)
        if CAN_SHARD:
            shard(sharded)
            run_step(sharded, share(data), num_parts=2)
        with EventStorage():
            sum(whole(data).values()).backward()
    assert_same_gradients(model, whole)
    for name, parameter in sharded.named_parameters() if CAN_SHARD else ():
        model.get_parameter(name).grad = parameter.grad.full_tensor()
    assert_same_gradients(model, whole)


class Branch(nn.Module):
    """A model that uses its AGLU only for some images, and one layer never."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.never = nn.Linear(4, 4), AGLU(), nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, data):
        out = self.fc(self.frozen(torch.stack([x for x, _ in data])))
        if any(branch for _, branch in data):
            out = self.act(out)
        return {"loss": out.square().mean()}


def check_unused(arguments):
    """Processes and parts may use different branches."""
    torch.manual_seed(0)
    images = list(torch.randn(4, 4))
    for used in ([1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]):
        model = Branch()
        whole = copy.deepcopy(model)
        data = list(zip(images, used, strict=True))
        for image in data:
            (whole([image])["loss"] / 4).backward()
        run_step(replicate(model, find_unused_parameters=True), share(data), num_parts=2)
        for name, parameter in whole.named_parameters():
            ours = model.get_parameter(name)
            assert (ours.grad is None) == (parameter.grad is None), name
            if parameter.grad is not None:
                torch.testing.assert_close(ours.grad, parameter.grad)
        assert_in_sync(model)


def check_unused_is_an_error(arguments):
    """The main process raises it, while the other one waits for its gradients."""
    data = [(torch.ones(4), comm.get_rank())]
    model = Branch()
    model.never = nn.Identity()
    run_step(replicate(model), data, unused_key="SOLVER.FIND_UNUSED_PARAMETERS")


def check_gathers_once(arguments):
    cfg = setup_job(arguments()).config
    calls = []
    gather, all_gather = comm.gather, comm.all_gather
    comm.gather = lambda *args, **kwargs: calls.append("gather") or gather(*args, **kwargs)
    comm.all_gather = lambda *args: calls.append("all_gather") or all_gather(*args)
    evaluator = LongTailEvaluator(cfg.DATASETS.TEST[0], subset=3)
    calls.clear()
    for image_id in share(range(1, 7)):
        instances = Instances((64, 64))
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 20.0, 20.0]]))
        instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([1])
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    results = evaluator.evaluate()
    comm.gather, comm.all_gather = gather, all_gather
    assert calls == ["all_gather", "gather"], calls  # the sizes, then the predictions
    assert bool(results) == comm.is_main_process()


class Blocks(nn.Module):
    """Has what FSDP must handle: backbone blocks, tied and buffered, and layers used directly."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*(self.block() for _ in range(3)))
        self.backbone[2][1] = self.backbone[1][1]  # tied λ and κ
        self.head = nn.Linear(5, 3)
        self.act = AGLU()

    @staticmethod
    def block():
        return nn.Sequential(nn.Linear(5, 5), AGLU(), nn.BatchNorm1d(5))

    def forward(self, data):
        features = self.backbone(torch.stack(data))
        logits = self.act(nn.functional.linear(features, self.head.weight, self.head.bias))
        return {"loss": logits.square().mean()}


def trained(model, optimizer, ema, data, steps=3, num_parts=1):
    trainer = StepTrainer(model, [data] * steps, optimizer, num_parts=num_parts)
    with EventStorage():
        for trainer.iter in range(steps):
            trainer.run_step()
            ema.update_parameters(model)
    return trainer


def assert_close(state, expected):
    """Compare in the main process, whose batch norm statistics are saved."""
    if comm.is_main_process():
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, msg=name)


def check_fsdp(arguments):
    """FSDP equals DistributedDataParallel, and each can resume the other's checkpoints."""
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.APA.WEIGHT_DECAY = 0.1
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    torch.manual_seed(0)
    data = list(torch.randn(8, 5))

    def build(*, sharded):
        torch.manual_seed(comm.get_rank() + 1)  # shard and replicate use the main process's
        model = Blocks()
        ema = build_ema(model, 0.9)
        if sharded:
            shard(model)
            shard(ema.module)
        optimizer = build_optimizer(cfg, model)
        if sharded:
            load_full_states(optimizer)
        else:
            model = replicate(model)
            ema.load_state_dict(full_state(build_ema(model.module, 0.9).state_dict()))
        return model, optimizer, ema

    def full(model):
        return full_state(getattr(model, "module", model).state_dict())

    replicated, sharded = build(sharded=False), build(sharded=True)
    model, optimizer, ema = sharded
    decays = {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name, p in model.named_parameters()
        if any(p is other for other in group["params"])
    }
    assert {d for name, d in decays.items() if name.endswith(("_param",))} == {0.1}
    assert decays["head.weight"] == cfg.SOLVER.WEIGHT_DECAY
    for name, parameter in model.named_parameters():
        local = parameter.to_local()
        assert local.numel() < parameter.numel() or parameter.numel() == 1, name

    ours = trained(*sharded, share(data), num_parts=2)
    expected = trained(*replicated, share(data), num_parts=2)
    assert_close(full(model), full(replicated[0]))
    assert_close(full_state(ema.state_dict()), full_state(replicated[2].state_dict()))

    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(exist_ok=True)
    file = str(folder / "sharded.pth")
    ShardedCheckpointer(model, folder, trainer=ours, ema=ema).save("sharded")
    comm.synchronize()
    plain = Blocks()
    StrictCheckpointer(plain).load(file)
    assert_close(plain.state_dict(), full(replicated[0]))
    StrictCheckpointer(plain, averaged=True).load(file)
    assert_close(plain.state_dict(), full(replicated[2]))

    # from either file, either kind of model continues like the uninterrupted one
    other = str(folder / "replicated.pth")
    StrictCheckpointer(replicated[0], folder, trainer=expected, ema=replicated[2]).save(
        "replicated"
    )
    comm.synchronize()
    trained(*replicated, share(data))
    for path in (file, other):
        for kind in (ShardedCheckpointer, StrictCheckpointer):
            resumed = build(sharded=kind is ShardedCheckpointer)
            trainer = StepTrainer(resumed[0], [], resumed[1])
            kind(resumed[0], trainer=trainer, ema=resumed[2]).load(path)
            trained(*resumed, share(data))
            assert_close(full(resumed[0]), full(replicated[0]))
            assert_close(full(resumed[2]), full(replicated[2]))

    model = Blocks()
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="FSDP cannot shard the scalar scale"):
        shard(model)


def check_fsdp_overflow(arguments):
    """If a float16 gradient overflows in one process, both skip the step."""

    class Overflow(Blocks):
        def forward(self, data):
            kappa = self.act.kappa_param * 1  # one element, in the main process's shard
            kappa.register_hook(lambda gradient: gradient * torch.inf)
            losses = super().forward(data)
            return {"loss": losses["loss"] + kappa.sum()}

    torch.manual_seed(0)
    model = Overflow()
    shard(model)
    before = full_state(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = share(list(torch.randn(8, 5)))
    trainer, _ = run_step(model, data, optimizer, precision=torch.float16)
    assert trainer.grad_scaler.get_scale() == 2.0**15
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.full_tensor(), before[name]), name


def check_fsdp_of_lazy_config(arguments):
    """A LazyConfig trains with shards, and a single process can load its checkpoint."""
    options = ("train.output_dir=lazy", "dataloader.evaluator=null", "train.max_iter=1")
    trainer = setup_job(arguments(*options, "train.fsdp=True", lazy=True)).build_trainer()
    assert all(hasattr(p, "to_local") for p in trainer.model.parameters())
    trainer.train()
    comm.synchronize()
    weights = "train.init_checkpoint=lazy/model_final.pth"
    elsewhere = "train.output_dir=loaded"
    model = load_model(setup_job(arguments(*options, weights, elsewhere, lazy=True)))
    assert_close(model.state_dict(), full_state(trainer.model.state_dict()))


def check_fsdp_is_saved_before_evaluation(arguments):
    """A signal during an evaluation cannot save shards, which takes all processes."""
    options = ("train.output_dir=evaluated", "train.max_iter=3", "train.eval_period=2")
    trainer = setup_job(arguments(*options, "train.fsdp=True", lazy=True)).build_trainer()
    trainer.job.test = lambda model: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        trainer.train()
    assert exit_.value.code == 143
    comm.synchronize()
    assert Path("evaluated/last_checkpoint").read_text() == "model_0000001.pth"


def check_class_losses(arguments):
    """Statistics of two processes, one without proposals, equal those of one process."""
    torch.manual_seed(0)
    logits, gt_classes = torch.randn(8, 5), torch.tensor([0, 1, 4, 2, 0, 4, 4, 3])
    for loss in (SeesawLoss(4), EqualizationLossV2(4)):
        whole = copy.deepcopy(loss)
        columns = slice(None if isinstance(loss, SeesawLoss) else -1)
        for size in (4, 8, 2):  # of the main process
            ours = slice(size) if comm.is_main_process() else slice(size, None)
            loss(logits[ours, columns], gt_classes[ours], SIGMOID)
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(comm, "get_world_size", lambda: 1)
                whole(logits[:, columns], gt_classes, SIGMOID)
        assert_in_sync(loss)
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(loss.get_buffer(name), buffer, rtol=1e-6, atol=0)


def check_replay_memories(arguments):
    """The main process saves the memory of each process, which then gets its own back."""

    def build():
        model = nn.Sequential(nn.Linear(1, 1))
        model.replay = FeatureReplay(3, datasets=(), memory=2)
        model.replay.memory = FeatureMemory(torch.tensor([0, 2]), 2)
        return model.replay, ReplayMemories(replicate(model))

    replay, memories = build()
    for step in range(3):
        features = torch.tensor([[10.0 * step + comm.get_rank()]])
        replay._recorded.append((features, torch.tensor([2])))
        if comm.is_main_process() and step == 2:
            replay.take_recorded()  # the main process has nothing new
        memories.commit()
    (states,) = filter(None, comm.all_gather(comm.is_main_process() and memories.state_dict()))
    kept = [state["replay"]["features"].flatten().tolist() for state in states]
    assert kept == [[0.0, 10.0], [21.0, 11.0]]
    other, restored = build()
    restored.load_state_dict(states)
    assert torch.equal(other.memory.features, replay.memory.features)
    assert torch.equal(other.memory.counts, replay.memory.counts)
    if comm.is_main_process():
        again = [state["replay"]["features"] for state in restored.state_dict()]
        assert [x.flatten().tolist() for x in again] == kept
    other, single = build()
    single.load_state_dict(states[:1])  # of a training in one process
    assert other.memory.features[1].flatten().tolist() == kept[0]


def main(args):
    torch.set_num_threads(1)

    def arguments(*opts, lazy=False):
        config_file, *overrides = args.lazy if lazy else [args.yaml]
        flags = ["--config-file", config_file, "--opts", *overrides, *map(str, opts)]
        return train_detector.parser().parse_args(flags)

    for check in CHECKS:
        check(arguments)
        comm.synchronize()
        print(f"{check.__name__}: ok", flush=True)
    check_unused_is_an_error(arguments)


CHECKS = (
    check_gradients,
    check_unused,
    check_gathers_once,
    check_fsdp,
    check_fsdp_overflow,
    check_fsdp_of_lazy_config,
    check_fsdp_is_saved_before_evaluation,
    check_class_losses,
    check_replay_memories,
)
CAN_SHARD = hasattr(torch.distributed.fsdp, "fully_shard")  # torch >= 2.6
if not CAN_SHARD:
    CHECKS = tuple(check for check in CHECKS if "fsdp" not in check.__name__)

if __name__ == "__main__":
    os.chdir(os.environ["TMPDIR"])
    run(main, Namespace(yaml=sys.argv[1], lazy=sys.argv[2:], num_gpus=1, num_machines=1))
