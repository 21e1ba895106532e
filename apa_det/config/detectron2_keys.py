"""The allowed values of detectron2's config keys. Other keys keep the type of their default."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY
from PIL import ImageMode

from .kinds import (
    Kind,
    anything,
    ascending,
    boolean,
    either,
    integer,
    list_of,
    name_in,
    number,
    one_of,
    optional,
    some,
    text,
)
from .training_keys import train_sampler

_count, _size = integer(">= 0"), integer(">= 1")
_weight, _positive, _fraction = number(">= 0"), number("> 0"), number("in [0, 1]")
_nms_threshold = number(">= 0")  # above 1 for no NMS
_names = list_of(text)
_iou_thresholds = some(number("in (0, 1]"))
_labels = list_of(one_of(-1, 0, 1))
_box_weights = list_of(_positive, 4, 5)  # 5 for rotated boxes
_box_loss = one_of("smooth_l1", "giou", "diou", "ciou")
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_norm = one_of(*_NORMS)
_pooler = one_of("ROIAlign", "ROIAlignV2", "ROIPool", "ROIAlignRotated")
_per_level = some(either(_positive, some(_positive)))


def _registered(registry: str, *also: str) -> Kind:
    return name_in(f"detectron2.modeling:{registry}_REGISTRY", *also)


def _num_channels(image_format: str) -> int:
    """Return the number of channels of a value of INPUT.FORMAT; 0 for an invalid one."""
    if image_format in ("BGR", "YUV-BT.601"):
        return 3
    try:
        bands = ImageMode.getmode(image_format).bands
    except KeyError:
        return 0
    return len(bands) if image_format == "L" or len(bands) > 1 else 0


def _is_device(value: object) -> bool:
    import torch

    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:
        return False


DETECTRON2_KINDS: dict[str, Kind] = {
    # Model
    "MODEL.META_ARCHITECTURE": _registered("META_ARCH"),
    "MODEL.DEVICE": Kind("a device of PyTorch such as cuda or cpu", _is_device),
    "MODEL.PIXEL_MEAN": some(number()),
    "MODEL.PIXEL_STD": some(_positive),
    "MODEL.BACKBONE.NAME": _registered("BACKBONE"),
    "MODEL.BACKBONE.FREEZE_AT": integer(">= -1"),
    "MODEL.RESNETS.DEPTH": _size,
    "MODEL.RESNETS.OUT_FEATURES": some(text),
    "MODEL.RESNETS.NUM_GROUPS": _size,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _size,
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2, 4),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _size,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _size,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": list_of(boolean, 4),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": _size,
    "MODEL.FPN.IN_FEATURES": _names,
    "MODEL.FPN.OUT_CHANNELS": _size,
    "MODEL.FPN.NORM": _norm,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.PROPOSAL_GENERATOR.NAME": _registered("PROPOSAL_GENERATOR", "", "PrecomputedProposals"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": _count,
    "MODEL.ANCHOR_GENERATOR.NAME": _registered("ANCHOR_GENERATOR", ""),
    "MODEL.ANCHOR_GENERATOR.SIZES": _per_level,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _per_level,
    "MODEL.ANCHOR_GENERATOR.OFFSET": number("in [0, 1)"),
    "MODEL.RPN.HEAD_NAME": _registered("RPN_HEAD", ""),
    "MODEL.RPN.IN_FEATURES": some(text),
    "MODEL.RPN.BOUNDARY_THRESH": integer(">= -1"),
    "MODEL.RPN.IOU_THRESHOLDS": _iou_thresholds,
    "MODEL.RPN.IOU_LABELS": _labels,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _size,
    "MODEL.RPN.POSITIVE_FRACTION": _fraction,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _box_loss,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _weight,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _box_weights,
    "MODEL.RPN.SMOOTH_L1_BETA": _weight,
    "MODEL.RPN.LOSS_WEIGHT": _weight,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _size,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _size,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _size,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _size,
    "MODEL.RPN.NMS_THRESH": _nms_threshold,
    "MODEL.RPN.CONV_DIMS": some(either(one_of(-1), _size)),
    "MODEL.ROI_HEADS.NAME": _registered("ROI_HEADS", ""),
    "MODEL.ROI_HEADS.NUM_CLASSES": _size,
    "MODEL.ROI_HEADS.IN_FEATURES": some(text),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _iou_thresholds,
    "MODEL.ROI_HEADS.IOU_LABELS": _labels,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _size,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _fraction,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _fraction,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _nms_threshold,
    "MODEL.ROI_BOX_HEAD.NAME": _registered("ROI_BOX_HEAD", ""),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _box_loss,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _weight,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _box_weights,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _weight,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": _size,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": _count,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _pooler,
    "MODEL.ROI_BOX_HEAD.NUM_FC": _count,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _size,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": _count,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _size,
    "MODEL.ROI_BOX_HEAD.NORM": _norm,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": _weight,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": _size,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": some(_box_weights),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": _iou_thresholds,
    "MODEL.ROI_MASK_HEAD.NAME": _registered("ROI_MASK_HEAD", ""),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": _size,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": _count,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": _count,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _size,
    "MODEL.ROI_MASK_HEAD.NORM": _norm,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _pooler,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": _registered("ROI_KEYPOINT_HEAD", ""),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": _size,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": _count,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": list_of(_size),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": _size,
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": _count,
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": _weight,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": _pooler,
    "MODEL.SEM_SEG_HEAD.NAME": _registered("SEM_SEG_HEADS", ""),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": some(text),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _size,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": _size,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": _size,
    "MODEL.SEM_SEG_HEAD.NORM": _norm,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": _weight,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": _weight,
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": _fraction,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": _count,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": _fraction,
    "MODEL.RETINANET.NUM_CLASSES": _size,
    "MODEL.RETINANET.IN_FEATURES": some(text),
    "MODEL.RETINANET.NUM_CONVS": _count,
    "MODEL.RETINANET.IOU_THRESHOLDS": _iou_thresholds,
    "MODEL.RETINANET.IOU_LABELS": _labels,
    "MODEL.RETINANET.PRIOR_PROB": number("in (0, 1)"),
    "MODEL.RETINANET.SCORE_THRESH_TEST": _fraction,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": _size,
    "MODEL.RETINANET.NMS_THRESH_TEST": _nms_threshold,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _box_weights,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": _weight,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": number("<= 1"),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": _weight,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _box_loss,
    "MODEL.RETINANET.NORM": _norm,
    # Data
    "INPUT.MIN_SIZE_TRAIN": some(_count),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": _size,
    "INPUT.MIN_SIZE_TEST": _count,
    "INPUT.MAX_SIZE_TEST": _size,
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": one_of("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": list_of(_positive, 2),
    "INPUT.FORMAT": Kind(
        "BGR, RGB, L, YUV-BT.601 or another color mode of Pillow",
        lambda value: isinstance(value, str) and _num_channels(value) > 0,
    ),
    "INPUT.MASK_FORMAT": one_of("polygon", "bitmask"),
    "DATASETS.TRAIN": _names,
    "DATASETS.TEST": _names,
    "DATASETS.PROPOSAL_FILES_TRAIN": _names,
    "DATASETS.PROPOSAL_FILES_TEST": _names,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _size,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _size,
    "DATALOADER.NUM_WORKERS": _count,
    "DATALOADER.SAMPLER_TRAIN": train_sampler,
    "DATALOADER.REPEAT_THRESHOLD": _weight,
    # Training
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
    ),
    "SOLVER.MAX_ITER": _size,
    "SOLVER.BASE_LR": _weight,
    "SOLVER.BASE_LR_END": _weight,
    "SOLVER.MOMENTUM": number("in [0, 1)"),
    "SOLVER.WEIGHT_DECAY": _weight,
    "SOLVER.WEIGHT_DECAY_NORM": optional(_weight),
    "SOLVER.WEIGHT_DECAY_BIAS": optional(_weight),
    "SOLVER.GAMMA": _weight,
    "SOLVER.STEPS": ascending(_count),
    "SOLVER.NUM_DECAYS": _count,
    "SOLVER.WARMUP_FACTOR": _weight,
    "SOLVER.WARMUP_ITERS": _count,
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.CHECKPOINT_PERIOD": _size,
    "SOLVER.IMS_PER_BATCH": _size,
    "SOLVER.REFERENCE_WORLD_SIZE": _count,
    "SOLVER.BIAS_LR_FACTOR": optional(_weight),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _positive,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": either(_positive, one_of(float("inf"))),
    # Evaluation
    "TEST.EXPECTED_RESULTS": list_of(anything),
    "TEST.EVAL_PERIOD": _count,
    "TEST.KEYPOINT_OKS_SIGMAS": list_of(_positive),
    "TEST.DETECTIONS_PER_IMAGE": either(_size, one_of(-1)),  # -1 for all
    "TEST.AUG.MIN_SIZES": some(_size),
    "TEST.AUG.MAX_SIZE": _size,
    "TEST.PRECISE_BN.NUM_ITER": _size,
    # General
    "SEED": integer("<= 4294967295"),
    "VIS_PERIOD": _count,
}


def conflicts(cfg: CfgNode) -> Iterator[str]:
    """Yield what is wrong with values that are valid by themselves, as :meth:`Kind.fault`."""
    model, solver, image_format = cfg.MODEL, cfg.SOLVER, cfg.INPUT.FORMAT
    channels = _num_channels(image_format)
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(model[key]) != channels:
            yield (
                f"MODEL.{key} must have length {channels}, one entry per channel of INPUT.FORMAT "
                f"{image_format}; got {len(model[key])}"
            )
    for node in ("RPN", "ROI_HEADS", "RETINANET"):
        thresholds, labels = model[node].IOU_THRESHOLDS, model[node].IOU_LABELS
        if list(thresholds) != sorted(thresholds):
            yield f"MODEL.{node}.IOU_THRESHOLDS must be ascending, got {list(thresholds)}"
        if len(labels) != len(thresholds) + 1:
            yield (
                f"MODEL.{node}.IOU_LABELS must have one entry more than "
                f"MODEL.{node}.IOU_THRESHOLDS, {len(thresholds) + 1}; got {len(labels)}"
            )
    cascade = model.ROI_BOX_CASCADE_HEAD
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        yield (
            "MODEL.ROI_BOX_CASCADE_HEAD.IOUS must have as many entries as "
            f"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS, {len(cascade.BBOX_REG_WEIGHTS)}; got "
            f"{len(cascade.IOUS)}"
        )
    if len(cascade.STAGE_LOSS_WEIGHTS) not in (0, len(cascade.IOUS)):
        yield (
            "MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS must be empty, or have as many entries "
            f"as MODEL.ROI_BOX_CASCADE_HEAD.IOUS, {len(cascade.IOUS)}; got "
            f"{len(cascade.STAGE_LOSS_WEIGHTS)}"
        )
    if model.RPN.LOW_QUALITY_IOU is not None and model.PROPOSAL_GENERATOR.NAME == "RPN":
        yield (
            "MODEL.RPN.LOW_QUALITY_IOU must be None with MODEL.PROPOSAL_GENERATOR.NAME RPN, got "
            f"{model.RPN.LOW_QUALITY_IOU}; set MODEL.PROPOSAL_GENERATOR.NAME to APARPN"
        )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        yield (
            "INPUT.MIN_SIZE_TRAIN must be (low, high) with INPUT.MIN_SIZE_TRAIN_SAMPLING range, "
            f"got {tuple(sizes)}"
        )
    if cfg.INPUT.CROP.TYPE.startswith("relative") and max(cfg.INPUT.CROP.SIZE) > 1:
        yield (
            "INPUT.CROP.SIZE must be fractions in (0, 1] with INPUT.CROP.TYPE "
            f"{cfg.INPUT.CROP.TYPE}, got {list(cfg.INPUT.CROP.SIZE)}"
        )
    if cfg.INPUT.LSJ.ENABLED and cfg.INPUT.CROP.ENABLED:
        yield (
            "INPUT.CROP.ENABLED must be False with INPUT.LSJ.ENABLED, which crops images too; got "
            "True"
        )
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and not (
        0 < solver.BASE_LR >= solver.BASE_LR_END
    ):
        yield (
            "SOLVER.BASE_LR must be > 0 and >= SOLVER.BASE_LR_END with SOLVER.LR_SCHEDULER_NAME "
            f"WarmupCosineLR, got {solver.BASE_LR} and {solver.BASE_LR_END}"
        )
    num_steps = sum(step <= solver.MAX_ITER for step in solver.STEPS)
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and num_steps >= solver.MAX_ITER:
        yield (
            f"SOLVER.STEPS must be fewer than the SOLVER.MAX_ITER {solver.MAX_ITER} iterations, "
            f"got {num_steps}"
        )
    backbone = model.BACKBONE.NAME
    package = BACKBONE_REGISTRY.get(backbone).__module__.partition(".")[0]
    if "resnet" in backbone and package in ("apa_det", "detectron2"):
        norms = one_of(*_NORMS, *["EvalBN"] * (package == "apa_det"))
        dilations = (1, 2, 4) if package == "apa_det" or "deeplab" in backbone else (1, 2)
        kinds = {
            "DEPTH": one_of(18, 34, 50, 101, 152),
            "NORM": norms,
            "RES5_DILATION": one_of(*dilations),
        }
        for key, kind in kinds.items():
            if fault := kind.fault(model.RESNETS[key]):
                yield f"MODEL.RESNETS.{key}{fault} with MODEL.BACKBONE.NAME {backbone}"
