"""The config keys of data and evaluation."""

from . import places
from .key import Key, Section
from .kinds import boolean, integer, list_of, name_in, number, one_of, optional, range_pair, text

DATA = Section(
    "Data",
    places.SETUP,
    (
        Key(
            "DATASETS.LVIS_FORMAT",
            [],
            list_of(list_of(text, 3)),
            "Datasets in LVIS format to register, each as [name, json_file, image_root].",
        ),
        Key(
            "DATASETS.ALLOW_OUTSIDE_ROOT",
            False,
            boolean,
            "Their file names may leave their image_root: by `..`, or as absolute paths. Set it "
            "only for datasets that you trust.",
        ),
        Key(
            "INPUT.MAX_BAD_IMAGES",
            0,
            integer(">= 0"),
            "Training: replace up to this many images that cannot be read, or have another size "
            "than annotated, by other ones, and log them. Each process counts its own, from its "
            "start. 0: the first one is an error. Which image replaces another depends on `SEED` "
            "alone.",
            places.LOADER,
        ),
        Key(
            "INPUT.LSJ.ENABLED",
            False,
            boolean,
            "Large-scale jitter instead of `INPUT.MIN_SIZE_TRAIN`, `INPUT.MAX_SIZE_TRAIN` and "
            "`INPUT.RANDOM_FLIP`: flip, resize by a random scale, then crop or pad to a square. "
            "Masks become bitmaps.",
            places.MAPPER,
        ),
        Key(
            "INPUT.LSJ.SIZE",
            1024,
            integer(">= 1"),
            "Sides of the square, in pixels.",
            places.MAPPER,
        ),
        Key(
            "INPUT.LSJ.SCALE",
            [0.1, 2.0],
            range_pair("> 0"),
            "Limits of the random scale: at 1, the longer side of the image is `INPUT.LSJ.SIZE`.",
            places.MAPPER,
        ),
        Key(
            "INPUT.COPY_PASTE.ENABLED",
            False,
            boolean,
            "Copy-paste: paste instances of the training set into its images, see "
            "[long-tail-methods.md](long-tail-methods.md#copy-paste).",
            places.LOADER,
        ),
        Key(
            "INPUT.COPY_PASTE.SAMPLING",
            "rare_first",
            one_of("uniform", "repeat_factor", "rare_first"),
            "Probability of a class: uniform, proportional to its repeat factor (with "
            "`DATALOADER.REPEAT_THRESHOLD`), or inversely proportional to its number of images. "
            "All instances of the class are equally probable.",
            places.LOADER,
        ),
        Key(
            "INPUT.COPY_PASTE.PROB",
            0.4,
            number("in [0, 1]"),
            "Probability that instances are pasted into an image.",
            places.LOADER,
        ),
        Key(
            "INPUT.COPY_PASTE.MAX_INSTANCES",
            2,
            integer(">= 1"),
            "Their number is uniform from 1 to this one.",
            places.LOADER,
        ),
        Key(
            "INPUT.COPY_PASTE.SCALE",
            [0.8, 1.25],
            range_pair("> 0"),
            "Limits of the uniform factor of their size, after the image that they come from was "
            "resized as in training.",
            places.LOADER,
        ),
        Key(
            "INPUT.COPY_PASTE.FLIP",
            0.5,
            number("in [0, 1]"),
            "Probability to flip a pasted instance horizontally.",
            places.LOADER,
        ),
        Key(
            "INPUT.COPY_PASTE.BLEND",
            0.0,
            number("in [0, 100]"),
            "Standard deviation in pixels of the Gaussian that blends the edges of pasted "
            "instances. 0: no blending. Masks are the same.",
            places.LOADER,
        ),
        Key(
            "INPUT.COPY_PASTE.MIN_VISIBLE",
            0.2,
            number("in [0, 1]"),
            "Drop instances of which a smaller fraction of the pixels stays visible, or none.",
            places.LOADER,
        ),
        Key(
            "INPUT.COPY_PASTE.CACHE_MB",
            128,
            integer(">= 0"),
            "Memory in MB, per process that loads images, for crops of the classes that are pasted "
            "most often. What is pasted does not depend on it.",
            places.LOADER,
        ),
        Key(
            "DATALOADER.MIN_IMAGE_SIDE",
            0,
            integer(">= 0"),
            "Leave out training images with a side below this many pixels. 0: keep all.",
            places.LOADER,
        ),
        Key(
            "DATALOADER.MIN_BOX_SIDE",
            0.0,
            number(">= 0"),
            "Leave out training boxes with a side below this many pixels, or outside of their "
            "image. An image that loses all its boxes stays. 0: keep all.",
            places.LOADER,
        ),
        Key(
            "DATALOADER.REPEAT_ROUNDING",
            "stochastic",
            one_of("stochastic", "up"),
            "Rounding of the repeat factors of RepeatFactorTrainingSampler and "
            "InstanceAwareRepeatFactorTrainingSampler: stochastic in each epoch, or up.",
            places.LOADER,
        ),
        Key(
            "DATALOADER.FREQUENT_SHARE",
            0.5,
            number("in (0, 1]"),
            "UndersamplingTrainingSampler: fraction of the images with only frequent classes that "
            "an epoch keeps. All other images are kept.",
            places.UNDERSAMPLING,
        ),
        Key(
            "DATALOADER.RANDOM_SUBSET_RATIO",
            1.0,
            number("in (0, 1]"),
            "RandomSubsetTrainingSampler: fraction of the images that are used. detectron2's "
            "sampler reads this key, but its config lacks it.",
            places.RANDOM_SUBSET,
        ),
    ),
    "`DATALOADER.SAMPLER_TRAIN` also takes InstanceAwareRepeatFactorTrainingSampler (which uses "
    "`DATALOADER.REPEAT_THRESHOLD`), ClassAwareTrainingSampler (which draws all classes equally "
    "often) and UndersamplingTrainingSampler, if `apa_det.data.build_train_loader` builds the "
    "loader. detectron2's loader refuses these names.",
)

EVALUATION = Section(
    "Evaluation",
    places.EVALUATOR,
    (
        Key(
            "TEST.BEST_METRIC",
            "",
            text,
            "Metric by which the best model is saved as `model_best.pth`, e.g. `bbox/AP` or "
            "`segm/APr`. With several test sets, the name of one comes first: "
            "`lvis_v1_val/segm/APr`. Empty: it is not saved.",
            places.BEST,
        ),
        Key(
            "TEST.EARLY_STOPPING_PATIENCE",
            0,
            integer(">= 0"),
            "Early stopping: end the training after this many evaluations in a row without a "
            "better `TEST.BEST_METRIC`. `model_final.pth` is the last model, `model_best.pth` the "
            "best one. 0: no early stopping.",
            places.TRAINER,
        ),
        Key(
            "TEST.SUBSET",
            0,
            integer(">= 0"),
            "During training, evaluate only this many images of each test set, chosen so that rare "
            "categories are included. The metrics get the prefix `subset/`, e.g. "
            "`subset/bbox/AP`. After the last iteration the whole test set is evaluated. 0: always "
            "evaluate the whole test set.",
            places.TRAINER,
        ),
        Key(
            "TEST.ENGINE",
            "fast",
            one_of("fast", "lvis"),
            "Evaluation engine: fast (ultrafast-pycocotools) or lvis (lvis-api), which give the "
            "same numbers. If ultrafast-pycocotools is not installed, fast falls back to lvis.",
        ),
        Key(
            "TEST.LONG_TAIL",
            False,
            boolean,
            "Evaluate datasets in COCO format with the LVIS metrics, which include AP by frequency "
            "group, instead of the COCO metrics.",
            places.LONG_TAIL,
        ),
        Key(
            "TEST.FREQUENCY_GROUPS",
            "",
            text,
            "Frequency groups, each with its maximum image count, e.g. `r:10,c:100,f`; or a .json "
            'file `{"category": "group", ...}`. Empty: those of LVIS, as given in the dataset\'s '
            "file.",
        ),
        Key(
            "TEST.COUNT_FROM",
            "",
            text,
            "Registered dataset (usually the training set) that provides the image counts of the "
            "categories. Empty: the evaluated dataset itself.",
        ),
        Key(
            "TEST.EXTRA_METRICS",
            [],
            list_of(name_in("apa_det.evaluation:METRIC_REGISTRY", "boundary")),
            "Further metrics: AR (average recall, also by frequency group), fixed (AP-fixed), pool "
            "(AP-pool), boundary (mask boundary AP; needs the fast engine) or a custom metric. All "
            "but AR add evaluation time.",
        ),
        Key(
            "TEST.PER_CATEGORY",
            False,
            boolean,
            "Write the AP of each category to `OUTPUT_DIR/inference/<iou_type>_per_category.csv`.",
        ),
        Key(
            "TEST.SAVE_PREDICTIONS",
            None,
            optional(boolean),
            "Write the predictions to `OUTPUT_DIR/inference/lvis_instances_results.json`. None: in "
            "`apa-det eval` (`--eval-only`), not in the evaluations of a training.",
        ),
    ),
)
