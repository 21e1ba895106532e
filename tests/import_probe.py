"""Run by test_import.py in subprocesses; each command prints JSON.

outputs first|between   hashes of the outputs of detectron2's models, with apa_det imported first,
                        or before and after its import
state                   global state that importing apa_det changes, and registered names
"""

import gc
import hashlib
import importlib
import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.registry import Registry

CONFIGS = (
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/fcos_R_50_FPN_1x.py",
)


def build(name):
    """Build the model of a config, with few proposals and detections for speed."""
    cfg = model_zoo.get_config(name)
    if name.endswith(".yaml"):
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20, 20
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        cfg.TEST.DETECTIONS_PER_IMAGE = 5
        return build_model(cfg)
    cfg.model.test_score_thresh = 0.0
    return instantiate(cfg.model)


def outputs(name):
    """Return a hash of the weights, and of losses, gradients and detections of one image."""
    torch.manual_seed(0)
    model = build(name)
    with torch.no_grad():  # with frozen batch norms, features would grow
        for parameter in model.backbone.parameters():
            parameter.mul_(0.7)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 4:30] = True
    instances = Instances((64, 64), gt_boxes=Boxes([[4.0, 8, 30, 40]]), gt_masks=BitMasks(masks))
    instances.gt_classes = torch.tensor([2])
    inputs = {"image": torch.randint(256, (3, 64, 64)).float(), "height": 64, "width": 64}
    labeled = {**inputs, "instances": instances, "sem_seg": masks[0].long()}
    with EventStorage():
        losses = model.train()([labeled])
    sum(losses.values()).backward()
    with torch.no_grad():
        (results,) = model.eval()([inputs])
    fields = results["instances"].get_fields()
    assert len(fields["scores"]) > 0
    tensors = [*model.state_dict().values(), *losses.values()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [getattr(fields[key], "tensor", fields[key]) for key in sorted(fields)]
    tensors += [results["sem_seg"]] if "sem_seg" in results else []
    assert all(t.isfinite().all() for t in tensors)
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def all_outputs():
    return {name: outputs(name) for name in CONFIGS}


def settings():
    """Return the global state of the process."""
    numpy_state = np.random.get_state()
    return {
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "threads": threading.active_count(),
        "torch random": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "numpy random": hashlib.sha256(repr(numpy_state).encode()).hexdigest(),
        "random": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
        "default dtype, device": (str(torch.get_default_dtype()), str(torch.get_default_device())),
        "grad": (torch.is_grad_enabled(), torch.is_anomaly_enabled()),
        "autocast": (torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": [getattr(torch.backends.cudnn, k) for k in ("enabled", "benchmark", "allow_tf32")],
        "denormals": (torch.tensor(1e-40) * 1.0).item(),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "start method": torch.multiprocessing.get_start_method(allow_none=True),
        "print options": [repr(vars(torch._tensor_str.PRINT_OPTS)), repr(np.get_printoptions())],
        "numpy errors": np.geterr(),
        "warnings": [repr(f) for f in warnings.filters] + [repr(warnings.showwarning)],
        "environment": dict(os.environ),
        "paths": [os.getcwd(), *sys.path],
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "signals": [repr(signal.getsignal(s)) for s in sorted(signal.valid_signals())],
        "garbage collection": [gc.isenabled(), gc.get_threshold()],
        "recursion": sys.getrecursionlimit(),
    }


def loggers():
    found = {"root": logging.getLogger(), **logging.Logger.manager.loggerDict}
    return {
        name: [logger.level, [repr(h) for h in logger.handlers], logger.propagate, logger.disabled]
        for name, logger in found.items()
        if isinstance(logger, logging.Logger)
    }


def attributes():
    """Return the identity of all attributes of modules and classes of other packages."""
    packages = ("detectron2", "fvcore", "iopath", "yacs", "torchvision", "torch.nn", "torch.optim")
    found = {}
    for name, module in list(sys.modules.items()):
        if name in ("torch", "numpy") or name.startswith(packages):
            for key, value in list(vars(module).items()):
                found[f"{name}.{key}"] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    members = vars(value).items()
                    found.update({f"{name}.{key}.{k}": id(v) for k, v in members})
    return found


def registries():
    """Return the entries of each registry of detectron2 by its name, and those of the catalogs."""
    found = {"datasets": {name: "" for name in DatasetCatalog}}
    found["metadata"] = {name: repr(vars(MetadataCatalog.get(name))) for name in MetadataCatalog}
    for name, module in list(sys.modules.items()):
        if name.startswith("detectron2"):
            for value in list(vars(module).values()):
                if isinstance(value, Registry):
                    found[value._name] = {key: id(obj) for key, obj in value}
    return found


def import_all(package):
    root = Path(package.__file__).parents[1]
    for file in sorted(root.glob(f"{package.__name__}/**/*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        importlib.import_module(".".join(parts).removesuffix(".__init__"))


def state():
    """Return what importing apa_det, then all its modules, changes and registers."""
    for name in ("engine", "evaluation", "checkpoint", "solver", "export", "projects", "layers"):
        importlib.import_module(f"detectron2.{name}")
    importlib.import_module("torch.distributed.fsdp")  # torch 2.4 appends to sys.path
    before = settings(), loggers(), attributes(), registries()
    changed, added = [], {}
    import apa_det

    for import_more in (lambda: None, lambda: import_all(apa_det)):
        import_more()
        after = settings(), loggers(), attributes(), registries()
        for old, new in zip(before[:3], after[:3], strict=True):
            changed += [f"{k}: {v} → {new.get(k)}" for k, v in old.items() if new.get(k) != v]
        for name, entries in before[3].items():
            now = after[3][name]
            changed += [f"{name} {key}" for key, value in entries.items() if now.get(key) != value]
            added[name] = sorted(now.keys() - entries.keys())
        names = after[1].keys() - before[1].keys()
        configured = [n for n in names if n.startswith("apa_det") and after[1][n][:2] != [0, []]]
        changed += [f"logger {name}" for name in configured]
    return {"changed": changed, "added": {k: v for k, v in added.items() if v}}


def main(command, when=""):
    if command == "state":
        return state()
    before = all_outputs() if when == "between" else None
    import apa_det  # noqa: F401

    return [before, all_outputs()]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
