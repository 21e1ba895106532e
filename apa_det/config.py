"""The config keys of apa_det."""

from detectron2.config import CfgNode as CN


def add_apa_config(cfg: CN) -> None:
    """Add all keys of apa_det to a detectron2 config. The defaults change nothing."""
    # Modules given by --import of the tools, which register components. Recorded here for
    # information, never imported from here
    cfg.IMPORTS = []

    # ---------------------------------------------------------------------------- #
    # APA ResNet backbones: build_apa_resnet_backbone, build_apa_resnet_fpn_backbone,
    # build_apa_retinanet_resnet_fpn_backbone
    # ---------------------------------------------------------------------------- #
    cfg.MODEL.APA = CN()
    # Activation of the stem and the residual blocks: aglu, relu, leaky_relu, prelu, elu, gelu,
    # silu, swish, mish or hardswish
    cfg.MODEL.APA.ACTIVATION = "relu"
    # A list of 5 activations, for the stem, res2, res3, res4 and res5. Empty: ACTIVATION everywhere
    cfg.MODEL.APA.ACTIVATION_PER_STAGE = []
    # True: aglu, prelu and swish learn their parameters (λ and κ, slope, β) per channel. False: per
    # layer
    cfg.MODEL.APA.PER_CHANNEL = False
    # [low, high] of the uniform distributions that initialize λ and κ of AGLU, in the backbone and
    # in the heads
    cfg.MODEL.APA.LAMBDA_RANGE = [0.0, 1.0]
    cfg.MODEL.APA.KAPPA_RANGE = [1.0, 1.3]
    # Lower bound that λ is clamped to, in activations, gates and class scores
    cfg.MODEL.APA.LAMBDA_MIN = 1e-4
    # Attention gate at the end of the residual branch of each block: none, se (channels), plain_se
    # (the original SE: no LayerNorm, no dropout, sigmoid), cbam (channels, then positions) or
    # spatial (positions)
    cfg.MODEL.APA.GATE = "none"
    # A list of 4 gates, for res2, res3, res4 and res5. Empty: GATE everywhere
    cfg.MODEL.APA.GATE_PER_STAGE = []
    # The keys GATE_* below apply to the gates of the backbone and of the box head.
    # Activation of the gates: apa or sigmoid
    cfg.MODEL.APA.GATE_ACTIVATION = "apa"
    # True: the gates learn λ and κ per channel. False: per layer
    cfg.MODEL.APA.GATE_PER_CHANNEL = False
    # The hidden layer of a gate has C // GATE_REDUCTION channels, and at least one
    cfg.MODEL.APA.GATE_REDUCTION = 16
    # Dropout probability before the activation of a gate
    cfg.MODEL.APA.GATE_DROPOUT = 0.1
    # Activation of the spatial gates of cbam and spatial. Empty: GATE_ACTIVATION
    cfg.MODEL.APA.GATE_SPATIAL_ACTIVATION = ""
    # Fraction of the channels of each image that pass a gate: those with the largest gate values.
    # The others are set to 0. 1: all channels pass
    cfg.MODEL.APA.GATE_TOP_SHARE = 1.0
    # [low, high] of the uniform distributions that initialize λ and κ of the gates
    cfg.MODEL.APA.GATE_LAMBDA_RANGE = [0.0, 1.0]
    cfg.MODEL.APA.GATE_KAPPA_RANGE = [-1.0, 0.0]
    # Compute norm, gate, shortcut and AGLU in one pass wherever the norm uses its running
    # statistics. The results are equal up to rounding
    cfg.MODEL.APA.FUSE = True
    # Weight decay of all λ and κ. None: SOLVER.WEIGHT_DECAY
    cfg.MODEL.APA.WEIGHT_DECAY = None
    # Learning rate of all λ and κ, as a multiple of SOLVER.BASE_LR
    cfg.MODEL.APA.LR_FACTOR = 1.0
    # Write all λ and κ to the event storage every LOG_PERIOD iterations. 0: never
    cfg.MODEL.APA.LOG_PERIOD = 100

    # ---------------------------------------------------------------------------- #
    # APA in any model (apa_det.inject): set MODEL.META_ARCHITECTURE to "APAInjected"
    # ---------------------------------------------------------------------------- #
    cfg.MODEL.APA.INJECT = CN()
    # Meta-architecture of the model to inject into
    cfg.MODEL.APA.INJECT.META_ARCHITECTURE = "GeneralizedRCNN"
    # Name patterns of the activations to replace, e.g. "backbone.*" or "roi_heads.box_head.*".
    # A pattern that starts with "!" excludes names, e.g. "!backbone.top_block.*"
    cfg.MODEL.APA.INJECT.NAMES = ["*"]
    # Types of the activations to replace. AGLU replaces relu, leaky_relu, relu6, elu, celu, selu,
    # gelu, silu, mish and hardswish; APA replaces sigmoid (modules only) and hardsigmoid. Empty:
    # all of these. Calls of torch.sigmoid may compute gates or scores, so they are replaced only if
    # functional_sigmoid is listed
    cfg.MODEL.APA.INJECT.TYPES = []
    # "replaced": initialize λ and κ to the best approximation of the replaced activation, so that
    # pretrained weights stay usable. Empty: draw them from LAMBDA_RANGE and KAPPA_RANGE for AGLU,
    # from GATE_LAMBDA_RANGE and GATE_KAPPA_RANGE for APA
    cfg.MODEL.APA.INJECT.LIKE = ""
    # shared: one λ and κ per replaced activation. per_channel: one pair per channel. tied: one pair
    # for all AGLUs of the model and one for all APA gates
    cfg.MODEL.APA.INJECT.PARAMETERS = "shared"

    # ---------------------------------------------------------------------------- #
    # Box head: APAFastRCNNConvFCHead, and its predictor in APAROIHeads and APACascadeROIHeads
    # ---------------------------------------------------------------------------- #
    # Activation of the layers of the box head: see MODEL.APA.ACTIVATION
    cfg.MODEL.ROI_BOX_HEAD.ACTIVATION = "relu"
    # Initialization: detectron2; xavier (uniform, for the FCs, as mmdetection's default) or torch
    # (the default of nn.Linear, for the FCs and the box regression, as published for LVIS)
    cfg.MODEL.ROI_BOX_HEAD.INIT = "detectron2"
    # SE gates of the box head: none, roi (on the RoI features, before the FCs), fc (on the output
    # of the last FC) or roi_fc (both)
    cfg.MODEL.ROI_BOX_HEAD.GATE = "none"
    # Class score: softmax, sigmoid, gumbel (APA with λ → 0, κ = 1) or apa (learned λ and κ).
    # Empty: as in detectron2, sigmoid if USE_SIGMOID_CE, else softmax
    cfg.MODEL.ROI_BOX_HEAD.CLASS_SCORE = ""
    # For sigmoid. True: K + 1 outputs, as in detectron2, which does not use that of the background.
    # False: K outputs, as in mmdetection
    cfg.MODEL.ROI_BOX_HEAD.BACKGROUND_OUTPUT = True
    # For apa. True: one λ and κ per class. False: one pair for all classes
    cfg.MODEL.ROI_BOX_HEAD.SCORE_PER_CLASS = False
    # For apa: [low, high] of the uniform distributions that initialize λ and κ. λ = κ = 1 is the
    # sigmoid
    cfg.MODEL.ROI_BOX_HEAD.SCORE_LAMBDA_RANGE = [1.0, 1.0]
    cfg.MODEL.ROI_BOX_HEAD.SCORE_KAPPA_RANGE = [1.0, 1.0]
    # For gumbel and apa: initial score of every class, which sets the bias of the classifier
    cfg.MODEL.ROI_BOX_HEAD.SCORE_PRIOR = 0.01
    # Classifier: linear, normed (cosine similarity times a temperature) or wrapped_cauchy
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR = "linear"
    # For normed: the temperature, or its initial value if it is learned
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR_TEMPERATURE = 20.0
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR_LEARN_TEMPERATURE = False
    # Constants that initialize the weights and biases of the classifier. None: the weights are
    # drawn from a normal distribution; the biases are 0, or set by SCORE_PRIOR
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR_WEIGHT_INIT = None
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR_BIAS_INIT = None
    # Clamp the logits to [-LOGIT_CLAMP, LOGIT_CLAMP] in training. 0: no clamp
    cfg.MODEL.ROI_BOX_HEAD.LOGIT_CLAMP = 0.0
    # Loss of the class scores. For softmax: CrossEntropy, BalancedSoftmax, SeesawLoss or
    # BalancedGroupSoftmax. For sigmoid, gumbel and apa: CrossEntropy, BalancedSoftmax, FocalLoss,
    # DropLoss, EqualizationLoss, EqualizationLossV2 or FederatedLoss. Or the name of a custom loss
    # in BOX_CLASS_LOSS_REGISTRY. Empty: DropLoss if USE_DROP_LOSS, FederatedLoss if USE_FED_LOSS,
    # else CrossEntropy
    cfg.MODEL.ROI_BOX_HEAD.CLASS_LOSS = ""
    # For CrossEntropy and FocalLoss: weight of each class. inverse or sqrt_inverse (of the class
    # frequency), effective_number, a list of one weight per class, or a .json file
    # {"class": weight, ...}. None: all weights are 1
    cfg.MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS = None
    # For effective_number: β in [0, 1). 0: all weights are equal. β → 1: the inverse frequency
    cfg.MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS_BETA = 0.999
    # Class frequency for CLASS_WEIGHTS, BalancedSoftmax and BalancedGroupSoftmax: image_count (the
    # training images with the class) or instance_count. The other losses use image_count
    cfg.MODEL.ROI_BOX_HEAD.CLASS_COUNT = "image_count"
    # FocalLoss: γ, and the weight α of positives (negatives get 1 − α). α < 0: no weighting
    cfg.MODEL.ROI_BOX_HEAD.FOCAL_LOSS_GAMMA = 2.0
    cfg.MODEL.ROI_BOX_HEAD.FOCAL_LOSS_ALPHA = 0.25
    # True: the same as CLASS_LOSS DropLoss
    cfg.MODEL.ROI_BOX_HEAD.USE_DROP_LOSS = False
    # DropLoss drops negatives of scarce classes: those with instances in less than this fraction of
    # the annotated training images
    cfg.MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD = 0.0011
    # EqualizationLoss: foreground proposals are no negatives for classes with instances in less
    # than this fraction of the annotated training images
    cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_THRESHOLD = 1.76e-3
    # EqualizationLossV2: γ, μ and α of the mapping from gradient ratios to weights
    cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_GAMMA = 12.0
    cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_MU = 0.8
    cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_ALPHA = 4.0
    # SeesawLoss: exponents p of the mitigation factor and q of the compensation factor
    cfg.MODEL.ROI_BOX_HEAD.SEESAW_LOSS_P = 0.8
    cfg.MODEL.ROI_BOX_HEAD.SEESAW_LOSS_Q = 2.0
    # BalancedSoftmax: τ times the log prior is added to the logits in training
    cfg.MODEL.ROI_BOX_HEAD.BALANCED_SOFTMAX_TAU = 1.0
    # BalancedGroupSoftmax: ascending class frequencies at which the next group starts, and the
    # maximum number of proposals of other groups sampled per proposal of a group
    cfg.MODEL.ROI_BOX_HEAD.GROUP_SOFTMAX_BOUNDARIES = [10, 100, 1000]
    cfg.MODEL.ROI_BOX_HEAD.GROUP_SOFTMAX_OTHERS_RATIO = 8.0
    # Post-hoc calibration of the class scores, in inference only: NorCal or LogitAdjustment (by the
    # image counts of DATASETS.TRAIN), FRACAL (by the image counts, and by how evenly the boxes of a
    # class spread over the images) or TauNorm (for the linear PREDICTOR). Empty: none
    cfg.MODEL.ROI_BOX_HEAD.CALIBRATION = ""
    # γ of NorCal, τ of LogitAdjustment and TauNorm, or strength of FRACAL (1: as published). 0: no
    # effect. tools/calibrate.py fits it on part of the training set
    cfg.MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH = 0.0

    # ---------------------------------------------------------------------------- #
    # Matching of boxes to ground truth in training
    # ---------------------------------------------------------------------------- #
    # Low-quality matches as in mmdetection: each ground truth box also gets the boxes that overlap
    # most with it, if their IoU is at least this value, even if another ground truth box overlaps
    # more. None: detectron2's rule. For the RPN, set MODEL.PROPOSAL_GENERATOR.NAME to "APARPN"
    cfg.MODEL.RPN.LOW_QUALITY_IOU = None
    cfg.MODEL.ROI_HEADS.LOW_QUALITY_IOU = None
    # APAROIHeads and APACascadeROIHeads: match proposals to jittered copies of ground truth boxes
    # that occur several times in an image. Their coordinates are multiplied by factors in
    # 1 ± JITTER_REPEATED_BOXES. 0: no jitter
    cfg.MODEL.ROI_HEADS.JITTER_REPEATED_BOXES = 0.0

    # ---------------------------------------------------------------------------- #
    # Cascade R-CNN: APACascadeROIHeads
    # ---------------------------------------------------------------------------- #
    # What is averaged over the stages in inference: probabilities, or logits, as in mmdetection
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.SCORE_AVERAGE = "probabilities"
    # Loss weight of each stage; the features then get the whole gradient. Empty: all weights are 1,
    # and the features get 1 / number of stages of the gradient, as in detectron2
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS = []
    # A mask head for each stage, as in mmdetection. False: one for the proposals of the RPN
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.MASK_HEAD_PER_STAGE = False

    # ---------------------------------------------------------------------------- #
    # Mask head: APAMaskRCNNConvUpsampleHead
    # ---------------------------------------------------------------------------- #
    # Activation of the layers of the mask head: see MODEL.APA.ACTIVATION
    cfg.MODEL.ROI_MASK_HEAD.ACTIVATION = "relu"
    # Upsampling layer: deconv (followed by ACTIVATION) or carafe (no activation)
    cfg.MODEL.ROI_MASK_HEAD.UPSAMPLE = "deconv"
    # Layer that predicts the mask logits: conv or normed (cosine similarity times a temperature)
    cfg.MODEL.ROI_MASK_HEAD.PREDICTOR = "conv"
    # For normed: the temperature, or its initial value if it is learned
    cfg.MODEL.ROI_MASK_HEAD.PREDICTOR_TEMPERATURE = 20.0
    cfg.MODEL.ROI_MASK_HEAD.PREDICTOR_LEARN_TEMPERATURE = False
    # Probability from which a pixel belongs to the predicted mask
    cfg.MODEL.ROI_MASK_HEAD.THRESHOLD = 0.5

    # ---------------------------------------------------------------------------- #
    # Training (apa_det.engine)
    # ---------------------------------------------------------------------------- #
    # Source of the class names of MODEL.WEIGHTS, if it was trained on other classes: "checkpoint"
    # (the file itself, if apa_det trained it), a registered dataset, or a .json file (a list of
    # names, or in LVIS or COCO format). The class rows of the heads' last layers are then copied by
    # class name; unmatched rows keep their initialization, and the log lists them. Empty: copy
    # class rows by position
    cfg.MODEL.TRANSFER_FROM = ""
    # Name patterns of parameters not to load from MODEL.WEIGHTS, e.g. "*score.*"
    cfg.MODEL.REINITIALIZE = []
    # Name patterns of the parameters to train. All others are frozen, their batch norms use running
    # statistics, and their dropout is off. Empty: train all
    cfg.SOLVER.TRAINED = []
    # Decoupled training: after SOLVER.MAX_ITER iterations, a second stage trains only the
    # classifier and writes to OUTPUT_DIR/classifier. apa_det.engine.train and tools/train_net.py
    # run both stages; a Trainer runs only the first
    cfg.SOLVER.DECOUPLED = CN()
    # Iterations of the second stage. 0: no second stage
    cfg.SOLVER.DECOUPLED.MAX_ITER = 0
    # DATALOADER.SAMPLER_TRAIN of the second stage
    cfg.SOLVER.DECOUPLED.SAMPLER_TRAIN = "ClassAwareTrainingSampler"
    # Initial learning rate of the second stage (None: SOLVER.BASE_LR), and the iterations at which
    # it is decreased
    cfg.SOLVER.DECOUPLED.BASE_LR = None
    cfg.SOLVER.DECOUPLED.STEPS = []
    # SOLVER.TRAINED of the second stage. The default trains the classifier, including λ and κ of
    # the class score
    cfg.SOLVER.DECOUPLED.TRAINED = ["*score.*"]
    # True: the second stage reinitializes these parameters. False: it continues from the first
    cfg.SOLVER.DECOUPLED.REINITIALIZE = True
    # Optimizer: SGD or ADAMW. For both, SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model",
    # which clips the norm of all gradients together
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Gradient accumulation: split the batch into this many parts, to save memory. IMS_PER_BATCH
    # stays the number of images per iteration (one optimizer step); each process forwards
    # IMS_PER_BATCH / number of processes / ACCUMULATE images at a time
    cfg.SOLVER.ACCUMULATE = 1
    # With several processes: allow parameters that get no gradient in an iteration, e.g. those of a
    # branch that is not always used. This costs some time. False: a missing gradient is an error
    cfg.SOLVER.FIND_UNUSED_PARAMETERS = False
    # With several processes: shard parameters, gradients and optimizer state (PyTorch's
    # fully_shard, torch >= 2.6). The checkpoint format does not change. Every parameter must get a
    # gradient in every iteration, and no parameter may be a scalar
    cfg.SOLVER.FSDP = False
    # Exponential moving average of the weights. The averaged model is evaluated. Checkpoints hold
    # both; model_best.pth holds only the averaged weights
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    # Factor of the old average in each update. It is smaller in the first iterations
    cfg.SOLVER.EMA.DECAY = 0.999

    # ---------------------------------------------------------------------------- #
    # Data and evaluation
    # ---------------------------------------------------------------------------- #
    # Datasets in LVIS format to register: a list of [name, json_file, image_root]
    cfg.DATASETS.LVIS_FORMAT = []
    # Their file names may leave their image_root: by "..", or as absolute paths. Set it only for
    # datasets that you trust
    cfg.DATASETS.ALLOW_OUTSIDE_ROOT = False
    # Leave out training images with a side below this many pixels. 0: keep all
    cfg.DATALOADER.MIN_IMAGE_SIDE = 0
    # Leave out training boxes with a side below this many pixels, or outside of their image. An
    # image that loses all its boxes stays. 0: keep all
    cfg.DATALOADER.MIN_BOX_SIDE = 0.0
    # Rounding of the repeat factors of RepeatFactorTrainingSampler and
    # InstanceAwareRepeatFactorTrainingSampler: stochastic in each epoch, or up
    cfg.DATALOADER.REPEAT_ROUNDING = "stochastic"
    # DATALOADER.SAMPLER_TRAIN also takes InstanceAwareRepeatFactorTrainingSampler (which uses
    # REPEAT_THRESHOLD), ClassAwareTrainingSampler (which draws all classes equally often) and
    # UndersamplingTrainingSampler.
    # UndersamplingTrainingSampler: fraction of the images with only frequent classes that an epoch
    # keeps. All other images are kept
    cfg.DATALOADER.FREQUENT_SHARE = 0.5
    # Metric by which the best model is saved as model_best.pth, e.g. "bbox/AP" or "segm/APr".
    # Empty: it is not saved
    cfg.TEST.BEST_METRIC = ""
    # During training, evaluate only this many images of each test set, chosen so that rare
    # categories are included. The metrics get the prefix "subset/", e.g. "subset/bbox/AP". After
    # the last iteration the whole test set is evaluated. 0: always evaluate the whole test set
    cfg.TEST.SUBSET = 0
    # Evaluation engine: fast (ultrafast-pycocotools) or lvis (lvis-api), which give the same
    # numbers. If ultrafast-pycocotools is not installed, fast falls back to lvis
    cfg.TEST.ENGINE = "fast"
    # Evaluate datasets in COCO format with the LVIS metrics, which include AP by frequency group,
    # instead of the COCO metrics
    cfg.TEST.LONG_TAIL = False
    # Frequency groups, each with its maximum image count, e.g. "r:10,c:100,f"; or a .json file
    # {"category": "group", ...}. Empty: those of LVIS, as given in the dataset's file
    cfg.TEST.FREQUENCY_GROUPS = ""
    # Registered dataset (usually the training set) that provides the image counts of the
    # categories. Empty: the evaluated dataset itself
    cfg.TEST.COUNT_FROM = ""
    # Names in apa_det.evaluation.METRIC_REGISTRY: AR (average recall, also by frequency group),
    # fixed (AP-fixed), pool (AP-pool) or a custom metric; and boundary (mask boundary AP; needs the
    # fast engine). All but AR add evaluation time
    cfg.TEST.EXTRA_METRICS = []
    # Write the AP of each category to OUTPUT_DIR/inference/<iou_type>_per_category.csv
    cfg.TEST.PER_CATEGORY = False
    # Write the predictions to OUTPUT_DIR/inference/lvis_instances_results.json
    cfg.TEST.SAVE_PREDICTIONS = False
