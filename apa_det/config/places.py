"""Where config keys act in the training of another project. The commands honor all keys."""

from .key import Place

_MODEL, _THEIRS = "apa_det.modeling", "detectron2.modeling"
_BLOCKS = (f"{_MODEL}.resnet_blocks._GatedBlock", f"{_MODEL}.resnet_blocks.APABasicStem")
_BOX_HEAD = (f"{_MODEL}.box_head.APAFastRCNNConvFCHead",)
_PREDICTOR = (f"{_MODEL}.box_predictor.APAFastRCNNOutputLayers",)
_MASK_HEAD = (f"{_MODEL}.mask_head.APAMaskRCNNConvUpsampleHead",)
_ROI_HEADS, _CASCADE = f"{_MODEL}.roi_heads.APAROIHeads", f"{_MODEL}.cascade.APACascadeROIHeads"
_TRAINER = ("apa_det.engine.trainer.JobTrainer",)
# detectron2's modules, which read no key of apa_det. Those of other projects may read some.
_BLOCK_NAMES = ("BasicBlock", "BottleneckBlock", "DeformBottleneckBlock")
_NO_BLOCKS = tuple(f"{_THEIRS}.backbone.resnet.{name}" for name in _BLOCK_NAMES)
_DENSE = tuple(f"{_MODEL}.dense.{name}" for name in ("APARetinaNet", "APAFCOS"))
_NO_DENSE = tuple(f"{_THEIRS}.meta_arch.{name}" for name in ("retinanet.RetinaNet", "fcos.FCOS"))
_ONE_STAGE = (*_NO_DENSE, *_DENSE)
_NO_BOX_HEAD = (f"{_THEIRS}.roi_heads.box_head.FastRCNNConvFCHead", *_ONE_STAGE)
_NO_PREDICTOR = (f"{_THEIRS}.roi_heads.fast_rcnn.FastRCNNOutputLayers", *_ONE_STAGE)
_NO_ROI_HEADS = (
    f"{_THEIRS}.roi_heads.roi_heads.StandardROIHeads",
    f"{_THEIRS}.roi_heads.cascade_rcnn.CascadeROIHeads",
    *_ONE_STAGE,
)
_NO_MASK_HEAD = (f"{_THEIRS}.roi_heads.mask_head.MaskRCNNConvUpsampleHead", *_ONE_STAGE)

BACKBONE = Place("APA ResNet backbones", _BLOCKS, _NO_BLOCKS)
LAST_LEVEL = Place("`build_apa_retinanet_resnet_fpn_backbone`", _BLOCKS, _NO_BLOCKS)
BOX_HEAD = Place("`APAFastRCNNConvFCHead`", _BOX_HEAD, _NO_BOX_HEAD)
GATES = Place("APA ResNet backbones, `APAFastRCNNConvFCHead`", (*_BLOCKS, *_BOX_HEAD), _NO_BLOCKS)
ACTIVATIONS = Place(
    "APA ResNet backbones, heads of apa_det", (*_BLOCKS, *_BOX_HEAD, *_MASK_HEAD), _NO_BLOCKS
)
PREDICTOR = Place("`APAROIHeads`, `APACascadeROIHeads`", _PREDICTOR, _NO_PREDICTOR)
ROI_HEADS = Place("`APAROIHeads`, `APACascadeROIHeads`", (_ROI_HEADS, _CASCADE), _NO_ROI_HEADS)
RETINANET = Place("`APARetinaNet`", _DENSE, (*_NO_DENSE, _ROI_HEADS, _CASCADE, *_NO_ROI_HEADS))
POSTPROCESSING = Place(
    "`APAROIHeads`, `APACascadeROIHeads`, `APARetinaNet`",
    (*_PREDICTOR, *_DENSE),
    (*_NO_ROI_HEADS, *_NO_DENSE),
)
MASK_SCORE = Place("`APAROIHeads`, `APACascadeROIHeads`", (_ROI_HEADS, _CASCADE), _NO_ROI_HEADS)
CASCADE = Place("`APACascadeROIHeads`", (_CASCADE,), (_ROI_HEADS, *_NO_ROI_HEADS))
RPN = Place(
    "`APARPN`",
    (f"{_MODEL}.matching.APARPN",),
    (f"{_THEIRS}.proposal_generator.rpn.RPN", *_ONE_STAGE),
)
MASK_HEAD = Place("`APAMaskRCNNConvUpsampleHead`", _MASK_HEAD, _NO_MASK_HEAD)
RANGES = Place("APA ResNet backbones, heads of apa_det, injection")
BUILD_MODEL = Place("`apa_det.build_model`")
INJECTED = Place("`APAInjected`")
INJECT = Place("`apa_det.build_model`, `APAInjected`")
PARAM_GROUPS = Place("`apa_det.param_groups`")
OPTIMIZER = Place("`apa_det.engine.build_optimizer`")
TRAINED = Place("`apa_det.engine.Trainer`, `apa_det.engine.train_only`")
TRAINER = Place("`apa_det.engine.Trainer`", _TRAINER)
LOG = Place(
    "`apa_det.engine.Trainer`, the hook `apa_det.engine.LambdaKappaWriter`",
    (*_TRAINER, "apa_det.engine.hooks.LambdaKappaWriter"),
)
BEST = Place(
    "`apa_det.engine.Trainer`, the hook `apa_det.engine.BestCheckpointer`",
    (*_TRAINER, "apa_det.engine.hooks.BestCheckpointer"),
)
SETUP = Place("`apa_det.setup`")
LOADER = Place(
    "`apa_det.data.build_train_loader`",
    ("apa_det.data.stream.TrainLoader", "apa_det.data.sampling.bad_images.BadImageReplacer"),
)
MAPPER = Place("`apa_det.data.APADatasetMapper`", ("apa_det.data.mapper.APADatasetMapper",))
UNDERSAMPLING = Place(
    "`UndersamplingTrainingSampler`",
    ("apa_det.data.sampling.undersampling.UndersamplingTrainingSampler",),
)
RANDOM_SUBSET = Place("`apa_det.data.build_train_loader`, detectron2's loader")
EVALUATOR = Place("`apa_det.evaluation.evaluator_arguments`")
COMMANDS = Place("`apa-det train`, `apa_det.engine.train`", _TRAINER)
LONG_TAIL = Place("`apa_det.engine.Trainer`")
NOWHERE = Place("nowhere")
