from ..injection import inject, injected, restore
from .box_head import APAFastRCNNConvFCHead
from .box_predictor import APAFastRCNNOutputLayers
from .calibration import (
    CALIBRATION_REGISTRY,
    FRACAL,
    Calibration,
    LogitAdjustment,
    NorCal,
    TauNorm,
)
from .cascade import APACascadeROIHeads
from .dense import APAFCOS, APARetinaNet
from .feature_replay import FeatureReplay
from .losses import BOX_CLASS_LOSS_REGISTRY, BoxClassLoss
from .mask_head import APAMaskRCNNConvUpsampleHead
from .matching import APARPN, LowQualityMatcher
from .meta_arch import APAInjected, build_model, meta_architecture
from .nms import soft_nms
from .norm_folding import fuse
from .postprocessing import PostProcessing
from .queries import long_tailed_queries
from .resnet import (
    build_apa_resnet_backbone,
    build_apa_resnet_fpn_backbone,
    build_apa_retinanet_resnet_fpn_backbone,
    make_apa_resnet,
)
from .resnet_blocks import (
    APABasicBlock,
    APABasicStem,
    APABottleneckBlock,
    APADeepLabStem,
    APADeformBottleneckBlock,
)
from .roi_heads import APAROIHeads
