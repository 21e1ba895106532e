"""The config keys of apa_det."""

from detectron2.config import CfgNode as CN


def add_apa_config(cfg: CN) -> None:
    """Add every key of apa_det to a detectron2 config, with defaults that change nothing."""
    # ---------------------------------------------------------------------------- #
    # APA ResNet backbones (build_apa_resnet_backbone and those with an FPN on it)
    # ---------------------------------------------------------------------------- #
    cfg.MODEL.APA = CN()
    # Activation of the stem and the blocks:
    # aglu, relu, leaky_relu, prelu, elu, gelu, silu, swish, mish or hardswish
    cfg.MODEL.APA.ACTIVATION = "relu"
    # One for each of the stem, res2, res3, res4 and res5. Empty: ACTIVATION everywhere
    cfg.MODEL.APA.ACTIVATION_PER_STAGE = []
    # One λ and κ (or slope of PReLU, or β of Swish) per channel instead of one per layer
    cfg.MODEL.APA.PER_CHANNEL = False
    # Ranges of the uniform distributions that the λ and κ of AGLU start from. They also hold for
    # AGLU in the heads.
    cfg.MODEL.APA.LAMBDA_RANGE = [0.0, 1.0]
    cfg.MODEL.APA.KAPPA_RANGE = [1.0, 1.3]
    # λ is clamped to at least this, in activations, gates and class scores
    cfg.MODEL.APA.LAMBDA_MIN = 1e-4
    # Attention gate at the end of each block's residual branch: none, se or cbam
    cfg.MODEL.APA.GATE = "none"
    # One for each of res2, res3, res4 and res5. Empty: GATE everywhere
    cfg.MODEL.APA.GATE_PER_STAGE = []
    # Settings of that gate, and of the gates of the box head: apa or sigmoid
    cfg.MODEL.APA.GATE_ACTIVATION = "apa"
    cfg.MODEL.APA.GATE_PER_CHANNEL = False
    cfg.MODEL.APA.GATE_REDUCTION = 16
    cfg.MODEL.APA.GATE_DROPOUT = 0.1
    # Of the channels of each picture, this share passes, those with the strongest gates; the gates
    # of the others are 0. 1: all pass
    cfg.MODEL.APA.GATE_TOP_SHARE = 1.0
    cfg.MODEL.APA.GATE_LAMBDA_RANGE = [0.0, 1.0]
    cfg.MODEL.APA.GATE_KAPPA_RANGE = [-1.0, 0.0]
    # Run norm, gate, shortcut and AGLU in one pass where the norm runs on stored statistics: the
    # same results, but for rounding
    cfg.MODEL.APA.FUSE = True
    # Weight decay of every λ and κ. None: SOLVER.WEIGHT_DECAY
    cfg.MODEL.APA.WEIGHT_DECAY = None
    # Their learning rate is SOLVER.BASE_LR times this
    cfg.MODEL.APA.LR_FACTOR = 1.0
    # Iterations between two writes of every λ and κ to the event storage. 0: never
    cfg.MODEL.APA.LOG_PERIOD = 100

    # ---------------------------------------------------------------------------- #
    # APA in any model (apa_det.inject), where MODEL.META_ARCHITECTURE is "APAInjected"
    # ---------------------------------------------------------------------------- #
    cfg.MODEL.APA.INJECT = CN()
    # The meta-architecture of the model
    cfg.MODEL.APA.INJECT.META_ARCHITECTURE = "GeneralizedRCNN"
    # Patterns of the names of activations, such as "backbone.*" or "roi_heads.box_head.*", and of
    # those to leave out, such as "!backbone.top_block.*"
    cfg.MODEL.APA.INJECT.NAMES = ["*"]
    # AGLU takes the place of relu, leaky_relu, relu6, elu, celu, selu, gelu, silu, mish and
    # hardswish, and APA that of sigmoid (modules) and hardsigmoid. Empty: all of them. Calls of
    # torch.sigmoid, which may be gates or scores, only by their own name, functional_sigmoid
    cfg.MODEL.APA.INJECT.TYPES = []
    # replaced: λ and κ start where they come closest to what was there, so that trained weights go
    # on working. Empty: they start from LAMBDA_RANGE and KAPPA_RANGE, those of APA from
    # GATE_LAMBDA_RANGE and GATE_KAPPA_RANGE
    cfg.MODEL.APA.INJECT.LIKE = ""
    # shared: one λ and κ for each place; per_channel: one pair for each channel; tied: one pair for
    # all activations, and one for all gates
    cfg.MODEL.APA.INJECT.PARAMETERS = "shared"

    # ---------------------------------------------------------------------------- #
    # Heads: APAFastRCNNConvFCHead, APAROIHeads, APACascadeROIHeads,
    # APAMaskRCNNConvUpsampleHead
    # ---------------------------------------------------------------------------- #
    # Activation of the box head's layers; as MODEL.APA.ACTIVATION
    cfg.MODEL.ROI_BOX_HEAD.ACTIVATION = "relu"
    # Channel gates of the box head: none, roi (on the RoI features, before the FCs), fc (on the
    # features after the last FC) or roi_fc (both)
    cfg.MODEL.ROI_BOX_HEAD.GATE = "none"
    # The class score: softmax, sigmoid, gumbel (APA with λ → 0, κ = 1) or apa (learned λ and κ).
    # Empty: detectron2's own, softmax unless USE_SIGMOID_CE.
    cfg.MODEL.ROI_BOX_HEAD.CLASS_SCORE = ""
    # For apa: a λ and κ for each class, and the ranges they start from (1 and 1: the sigmoid)
    cfg.MODEL.ROI_BOX_HEAD.SCORE_PER_CLASS = False
    cfg.MODEL.ROI_BOX_HEAD.SCORE_LAMBDA_RANGE = [1.0, 1.0]
    cfg.MODEL.ROI_BOX_HEAD.SCORE_KAPPA_RANGE = [1.0, 1.0]
    # For gumbel and apa: the score that every class starts with, set through the bias
    cfg.MODEL.ROI_BOX_HEAD.SCORE_PRIOR = 0.01
    # The layer that predicts the classes: linear, normed (the cosine times a temperature) or
    # wrapped_cauchy
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR = "linear"
    # For normed: the temperature, at the start if it is learned
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR_TEMPERATURE = 20.0
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR_LEARN_TEMPERATURE = False
    # Constants that the layer's weights and biases start from. None: weights are normally
    # distributed; biases are 0, or follow SCORE_PRIOR
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR_WEIGHT_INIT = None
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR_BIAS_INIT = None
    # In training, its outputs are clamped to ± this. 0: they are not
    cfg.MODEL.ROI_BOX_HEAD.LOGIT_CLAMP = 0.0
    # The loss of the class scores. For softmax: CrossEntropy, BalancedSoftmax, SeesawLoss or
    # BalancedGroupSoftmax. For sigmoid, gumbel and apa: CrossEntropy, BalancedSoftmax, FocalLoss,
    # DropLoss, EqualizationLoss, EqualizationLossV2 or FederatedLoss. Or one of your own in
    # BOX_CLASS_LOSS_REGISTRY. Empty: CrossEntropy, or DropLoss with USE_DROP_LOSS, or FederatedLoss
    # with USE_FED_LOSS
    cfg.MODEL.ROI_BOX_HEAD.CLASS_LOSS = ""
    # For CrossEntropy and FocalLoss: weights of the classes. inverse or sqrt_inverse (of their
    # frequency), effective_number, a list of one for each class, or a .json file
    # {"class": weight, ...}. None: they are alike
    cfg.MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS = None
    # For effective_number: β, from 0 (all alike) to below 1 (inverse)
    cfg.MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS_BETA = 0.999
    # What the frequency of a class is, for CLASS_WEIGHTS, BalancedSoftmax and BalancedGroupSoftmax:
    # image_count, its training pictures, or instance_count. The other losses take image counts
    cfg.MODEL.ROI_BOX_HEAD.CLASS_COUNT = "image_count"
    # FocalLoss: γ, and α, the weight of positives (1 − α is that of negatives). Below 0: no α
    cfg.MODEL.ROI_BOX_HEAD.FOCAL_LOSS_GAMMA = 2.0
    cfg.MODEL.ROI_BOX_HEAD.FOCAL_LOSS_ALPHA = 0.25
    # DropLoss: scarce classes, those with instances in less than the threshold's share of the
    # training pictures, get fewer negatives
    cfg.MODEL.ROI_BOX_HEAD.USE_DROP_LOSS = False
    cfg.MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD = 0.0011
    # EqualizationLoss: a foreground proposal gives no negative loss to classes below this share
    cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_THRESHOLD = 1.76e-3
    # EqualizationLossV2: γ, μ and α, which map ratios of gradients to weights
    cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_GAMMA = 12.0
    cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_MU = 0.8
    cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_ALPHA = 4.0
    # SeesawLoss: the exponents of the mitigation and of the compensation factor
    cfg.MODEL.ROI_BOX_HEAD.SEESAW_LOSS_P = 0.8
    cfg.MODEL.ROI_BOX_HEAD.SEESAW_LOSS_Q = 2.0
    # BalancedSoftmax: τ, the share of the log prior that is added to the logits in training
    cfg.MODEL.ROI_BOX_HEAD.BALANCED_SOFTMAX_TAU = 1.0
    # BalancedGroupSoftmax: the frequencies from which on a class is in the next group, and how many
    # proposals of other groups are taken for each of a group's own
    cfg.MODEL.ROI_BOX_HEAD.GROUP_SOFTMAX_BOUNDARIES = [10, 100, 1000]
    cfg.MODEL.ROI_BOX_HEAD.GROUP_SOFTMAX_OTHERS_RATIO = 8.0
    # Calibration of the class scores, in inference alone: NorCal or LogitAdjustment, by the image
    # counts of DATASETS.TRAIN, or TauNorm, for the linear PREDICTOR. Empty: none
    cfg.MODEL.ROI_BOX_HEAD.CALIBRATION = ""
    # Its γ (NorCal) or τ; tools/calibrate.py fits it on a part of the training set. 0: no effect
    cfg.MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH = 0.0
    # Activation of the mask head's layers; as MODEL.APA.ACTIVATION
    cfg.MODEL.ROI_MASK_HEAD.ACTIVATION = "relu"
    # Upsampling: deconv, with an activation after it, or carafe, without
    cfg.MODEL.ROI_MASK_HEAD.UPSAMPLE = "deconv"
    # The layer that predicts the masks: conv or normed (the cosine times a temperature)
    cfg.MODEL.ROI_MASK_HEAD.PREDICTOR = "conv"
    # For normed: the temperature, at the start if it is learned
    cfg.MODEL.ROI_MASK_HEAD.PREDICTOR_TEMPERATURE = 20.0
    cfg.MODEL.ROI_MASK_HEAD.PREDICTOR_LEARN_TEMPERATURE = False
    # Pixels of at least this probability are part of a predicted mask
    cfg.MODEL.ROI_MASK_HEAD.THRESHOLD = 0.5

    # ---------------------------------------------------------------------------- #
    # Training (apa_det.engine)
    # ---------------------------------------------------------------------------- #
    # MODEL.WEIGHTS of other classes: the rows of the heads' last layers are taken over by class
    # name, and those without a counterpart start at random, as the log lists. Where the names of
    # the checkpoint's classes are: "checkpoint" (in it, as in those trained here), a registered
    # dataset, or a .json file, a list of names or in LVIS or COCO format. Empty: rows are rows
    cfg.MODEL.TRANSFER_FROM = ""
    # Patterns of the names of parameters, such as "*score.*", that MODEL.WEIGHTS does not fill
    cfg.MODEL.REINITIALIZE = []
    # Patterns of the names of the parameters that train. All others are frozen, with batch norms on
    # stored statistics and dropout off. Empty: all train
    cfg.SOLVER.TRAINED = []
    # Decoupled training: after SOLVER.MAX_ITER iterations, a second stage trains the classifier
    # alone, in the folder OUTPUT_DIR/classifier. apa_det.engine.train, and so tools/train_net.py,
    # runs both; a Trainer alone does the first
    cfg.SOLVER.DECOUPLED = CN()
    # Its iterations. 0: there is no second stage
    cfg.SOLVER.DECOUPLED.MAX_ITER = 0
    # Its DATALOADER.SAMPLER_TRAIN
    cfg.SOLVER.DECOUPLED.SAMPLER_TRAIN = "ClassAwareTrainingSampler"
    # Its learning rate at the start (None: SOLVER.BASE_LR), and the iterations that lower it
    cfg.SOLVER.DECOUPLED.BASE_LR = None
    cfg.SOLVER.DECOUPLED.STEPS = []
    # Its SOLVER.TRAINED: the layers that predict classes, λ and κ of the class score included
    cfg.SOLVER.DECOUPLED.TRAINED = ["*score.*"]
    # Whether these start anew, from their initial values
    cfg.SOLVER.DECOUPLED.REINITIALIZE = True
    # SGD or ADAMW
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": the norm of the gradients of all
    # parameters together is clipped
    # The parts that the pictures of a step go through the model in, one after the other, for want
    # of memory. SOLVER.IMS_PER_BATCH stays the pictures of a step, and an iteration is a step: each
    # process takes IMS_PER_BATCH / processes / ACCUMULATE pictures at once
    cfg.SOLVER.ACCUMULATE = 1
    # Several processes: whether a parameter may get no gradient in an iteration, as in a branch
    # that is not always taken. Takes a little time. False: that is an error
    cfg.SOLVER.FIND_UNUSED_PARAMETERS = False
    # Several processes: split the parameters, their gradients and the optimizer's state over them
    # (PyTorch's fully_shard, torch 2.6 or later). Checkpoints are the same as without. Each
    # parameter must get a gradient in each iteration, and none may be a scalar
    cfg.SOLVER.FSDP = False
    # An exponential moving average of the weights, which is evaluated, and kept in checkpoints
    # beside them. model_best.pth holds the averaged weights alone
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    # The share of the average that stays in each iteration; less in the first iterations
    cfg.SOLVER.EMA.DECAY = 0.999

    # ---------------------------------------------------------------------------- #
    # Data and evaluation
    # ---------------------------------------------------------------------------- #
    # Datasets of LVIS format to register: a list of [name, json_file, image_root]
    cfg.DATASETS.LVIS_FORMAT = []
    # DATALOADER.SAMPLER_TRAIN takes three names beside detectron2's:
    # InstanceAwareRepeatFactorTrainingSampler, which reads REPEAT_THRESHOLD;
    # ClassAwareTrainingSampler, which draws each class as often as any other; and
    # UndersamplingTrainingSampler, which keeps this share of the pictures of frequent classes alone
    cfg.DATALOADER.FREQUENT_SHARE = 0.5
    # Keep the checkpoint that is best by this metric, such as "bbox/AP" or "segm/APr", as
    # model_best.pth. Empty: keep none
    cfg.TEST.BEST_METRIC = ""
    # While training, evaluate this many pictures of each test set alone, with names such as
    # "subset/bbox/AP"; they are chosen so that rare categories stay in. The whole set is evaluated
    # at the end. 0: always the whole set
    cfg.TEST.SUBSET = 0
    # fast (ultrafast-pycocotools) or lvis (lvis-api): the same numbers. Where the fast one is not
    # installed, lvis-api evaluates
    cfg.TEST.ENGINE = "fast"
    # Evaluate COCO-format datasets by LVIS's metrics too, with AP by frequency group
    cfg.TEST.LONG_TAIL = False
    # The frequency groups, each with its largest image count: "r:10,c:100,f"; or a .json file
    # {"category": "group", ...}. Empty: LVIS's, as the dataset's file says
    cfg.TEST.FREQUENCY_GROUPS = ""
    # A registered dataset, such as the training set, to take the image counts of the categories
    # from. Empty: the counts in the evaluated file
    cfg.TEST.COUNT_FROM = ""
    # Any of AR (average recalls, of the groups too), fixed (AP-fixed), pool (AP-pool) and boundary
    # (mask boundary AP; with the fast engine). All but AR take their time
    cfg.TEST.EXTRA_METRICS = []
    # Write the AP of each category to OUTPUT_DIR/inference/<task>_per_category.csv
    cfg.TEST.PER_CATEGORY = False
    # Write the predictions to OUTPUT_DIR/inference/lvis_instances_results.json
    cfg.TEST.SAVE_PREDICTIONS = False
