"""The config keys of training."""

from detectron2.config import get_cfg

from . import places
from .key import Key, Section
from .kinds import ascending, boolean, integer, list_of, name_in, number, one_of, optional, text

# Those that detectron2 builds; old versions lack their key
_WEIGHTED = ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")
train_sampler = name_in(
    "apa_det.data:TRAIN_SAMPLER_REGISTRY",
    *(_WEIGHTED if "TRAIN_REPEAT_FACTOR" in get_cfg().DATASETS else ()),
)

WEIGHTS = Section(
    "Starting weights",
    places.TRAINER,
    (
        Key(
            "MODEL.TRANSFER_FROM",
            "",
            text,
            "Source of the class names of `MODEL.WEIGHTS`, if it was trained on other classes: "
            "`checkpoint` (the file itself, if apa_det trained it), a registered dataset, or a "
            ".json file (a list of names, or in LVIS or COCO format). The class rows of the heads' "
            "last layers are then copied by class name; unmatched rows keep their initialization, "
            "and the log lists them. Empty: copy class rows by position.",
        ),
        Key(
            "MODEL.REINITIALIZE",
            [],
            list_of(text),
            "Name patterns of parameters not to load from `MODEL.WEIGHTS`, e.g. `*score.*`.",
        ),
    ),
)

TRAINING = Section(
    "Training",
    places.TRAINER,
    (
        Key(
            "SOLVER.TRAINED",
            [],
            list_of(text),
            "Name patterns of the parameters to train. All others are frozen, their batch norms "
            "use running statistics, and their dropout is off. Empty: train all.",
            places.TRAINED,
        ),
        Key(
            "SOLVER.DECOUPLED.MAX_ITER",
            0,
            integer(">= 0"),
            "Decoupled training: after `SOLVER.MAX_ITER` iterations, a second stage of this many "
            "iterations trains only the classifier and writes to `OUTPUT_DIR/classifier`. "
            "`apa-det train` and `apa_det.engine.train` run both stages; a Trainer runs only the "
            "first. 0: no second stage.",
            places.COMMANDS,
        ),
        Key(
            "SOLVER.DECOUPLED.SAMPLER_TRAIN",
            "ClassAwareTrainingSampler",
            train_sampler,
            "`DATALOADER.SAMPLER_TRAIN` of the second stage.",
            places.COMMANDS,
        ),
        Key(
            "SOLVER.DECOUPLED.BASE_LR",
            None,
            optional(number(">= 0")),
            "Initial learning rate of the second stage. None: `SOLVER.BASE_LR`.",
            places.COMMANDS,
        ),
        Key(
            "SOLVER.DECOUPLED.STEPS",
            [],
            ascending(integer(">= 0")),
            "Iterations of the second stage at which the learning rate is decreased.",
            places.COMMANDS,
        ),
        Key(
            "SOLVER.DECOUPLED.TRAINED",
            ["*score.*"],
            list_of(text),
            "`SOLVER.TRAINED` of the second stage. The default trains the classifier, including λ "
            "and κ of the class score.",
            places.COMMANDS,
        ),
        Key(
            "SOLVER.DECOUPLED.REINITIALIZE",
            True,
            boolean,
            "True: the second stage reinitializes these parameters. False: it continues from the "
            "first.",
            places.COMMANDS,
        ),
        Key(
            "SOLVER.DECOUPLED.REPLAY_SHARE",
            None,
            optional(number("in [0, 1]")),
            "`MODEL.ROI_BOX_HEAD.REPLAY.SHARE` of the second stage, from its first iteration on. "
            "None: that of the first stage.",
            places.COMMANDS,
        ),
        Key(
            "SOLVER.OPTIMIZER",
            "SGD",
            one_of("SGD", "ADAMW"),
            "Optimizer. For both, `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` may also be full_model, which "
            "clips the norm of all gradients together.",
            places.OPTIMIZER,
        ),
        Key(
            "SOLVER.ACCUMULATE",
            1,
            integer(">= 1"),
            "Gradient accumulation: split the batch into this many parts, to save memory. "
            "`SOLVER.IMS_PER_BATCH` stays the number of images per iteration (one optimizer step); "
            "each process forwards `IMS_PER_BATCH` / number of processes / `ACCUMULATE` images at "
            "a time.",
        ),
        Key(
            "SOLVER.AMP.DTYPE",
            "",
            one_of("", "float16", "bfloat16"),
            "Precision of `SOLVER.AMP.ENABLED`: float16, with loss scaling, or bfloat16, which "
            "needs none. Empty: float16 on a GPU, as in detectron2, and bfloat16 on a CPU.",
        ),
        Key(
            "SOLVER.FIND_UNUSED_PARAMETERS",
            False,
            boolean,
            "With several processes: allow parameters that get no gradient in an iteration, e.g. "
            "those of a branch that is not always used. This costs some time. False: a missing "
            "gradient is an error.",
        ),
        Key(
            "SOLVER.FSDP",
            False,
            boolean,
            "With several processes: shard parameters, gradients and optimizer state (PyTorch's "
            "fully_shard, torch >= 2.6). The checkpoint format does not change. Every parameter "
            "must get a gradient in every iteration, and no parameter may be a scalar.",
        ),
        Key(
            "SOLVER.CHECKPOINTS_KEPT",
            0,
            integer(">= 0"),
            "Number of periodic checkpoints to keep, the newest ones. `model_final.pth`, "
            "`model_best.pth` and the one that `last_checkpoint` names are always kept. 0: keep "
            "all.",
        ),
        Key(
            "SOLVER.SKIP_NONFINITE",
            0,
            integer(">= 0"),
            "Skip up to this many iterations in a row in which a loss or a gradient is NaN or "
            "infinite; one more is an error. With mixed precision in float16, infinite gradients "
            "alone do not count: loss scaling skips them. 0: each is an error.",
        ),
        Key(
            "FIGURES",
            True,
            boolean,
            "Draw `labels.png`, `train_batch.png`, `results.png` and `val_predictions.png` into "
            "`OUTPUT_DIR`.",
        ),
        Key(
            "WRITERS",
            [],
            list_of(name_in("apa_det.engine:WRITER_REGISTRY")),
            "Event writers beside those of detectron2, e.g. for an experiment tracker.",
        ),
        Key(
            "SOLVER.EMA.ENABLED",
            False,
            boolean,
            "Exponential moving average of the weights. The averaged model is evaluated. "
            "Checkpoints hold both; `model_best.pth` holds only the averaged weights.",
        ),
        Key(
            "SOLVER.EMA.DECAY",
            0.999,
            number("in [0, 1)"),
            "Factor of the old average in each update. It is smaller in the first iterations.",
        ),
    ),
)
