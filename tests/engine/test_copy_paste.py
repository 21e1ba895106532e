"""Copy-paste and large-scale jitter by a yaml config and by its LazyConfig: the same batches."""

from itertools import islice

import pytest
import torch
from detectron2.structures import BitMasks

from apa_det.engine import setup_job
from apa_det.errors import UserError

from ..conftest import training_flags
from .test_both_formats import CONFIGS, NAMES, lazy_options, yaml_options

PASTE = {"enabled": True, "prob": 0.8, "sampling": "repeat_factor", "max_instances": 3}
JITTER = "[{_target_:apa_det.data.large_scale_jitter,size:64,scale:[0.3,2.0]}]"


def batches(suffix, opts, start=0):
    job = setup_job(training_flags(CONFIGS / f"{NAMES['mask']}{suffix}", *opts))
    loader = job.build_train_loader()
    loader.start = start
    return [image for batch in islice(loader, 6 - start) for image in batch]


@pytest.mark.parametrize("has_jitter", [False, True])
def test_same_batches(has_jitter, tiny_dataset, tmp_path):
    ours = yaml_options("mask", tiny_dataset, tmp_path)
    theirs = lazy_options("mask", tiny_dataset, tmp_path)
    for name, value in PASTE.items():
        ours += [f"INPUT.COPY_PASTE.{name.upper()}", str(value)]
        theirs += [f"dataloader.train.copy_paste.{name}={value}"]
    if has_jitter:
        ours += ["INPUT.LSJ.ENABLED", "True", "INPUT.LSJ.SIZE", "64", "INPUT.LSJ.SCALE", "[0.3, 2]"]
        theirs = [option for option in theirs if "train.mapper.augmentations" not in option]
        theirs += [f"dataloader.train.mapper.augmentations={JITTER}"]
        theirs += ["dataloader.train.mapper.recompute_boxes=True"]
    expected = batches(".yaml", ours)
    pasted = 0
    for other in (batches(".py", theirs), [None] * 6 + batches(".py", theirs, start=3)):
        for a, b in zip(expected, other, strict=True):
            if b is None:
                continue
            assert torch.equal(a["image"], b["image"])
            boxes = (x["instances"].gt_boxes.tensor for x in (a, b))
            assert torch.equal(*boxes)
            assert a["neg_category_ids"] == b["neg_category_ids"]
            pasted += isinstance(b["instances"].gt_masks, BitMasks)
    assert pasted > 6


def test_other_loader_is_refused(tiny_dataset, tmp_path):
    opts = lazy_options("mask", tiny_dataset, tmp_path)
    opts += ["dataloader.train.copy_paste.enabled=True"]
    opts += ["dataloader.train._target_=detectron2.data.build_detection_train_loader"]
    with pytest.raises(
        UserError, match="copy_paste needs dataloader.train to be L.apa_det.data.bu"
    ):
        batches(".py", opts)
