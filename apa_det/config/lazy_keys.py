"""The allowed values of LazyConfigs: those of the yaml keys that they correspond to."""

from .kinds import Kind, boolean, either, integer, list_of, one_of, optional, text
from .training_keys import train_sampler

_names = either(text, list_of(text))
# Also an object that is already built
_group = Kind(
    "a group of keys", lambda value: not isinstance(value, bool | int | float | str | list | None)
)

# The kind of each key, or the yaml key with the same one
LAZY_KEYS: dict[str, str | Kind] = {
    "model": _group,
    "lr_multiplier": _group,
    "train.output_dir": "OUTPUT_DIR",
    "train.init_checkpoint": optional(text),
    "train.max_iter": "SOLVER.MAX_ITER",
    "train.device": "MODEL.DEVICE",
    "train.seed": "SEED",
    "train.eval_period": "TEST.EVAL_PERIOD",
    "train.log_period": integer(">= 1"),
    "train.checkpointer.period": "SOLVER.CHECKPOINT_PERIOD",
    "train.checkpointer.max_to_keep": optional(integer(">= 1")),
    "train.amp.enabled": "SOLVER.AMP.ENABLED",
    "train.ddp": _group,
    "train.ddp.broadcast_buffers": boolean,
    "train.ddp.find_unused_parameters": "SOLVER.FIND_UNUSED_PARAMETERS",
    "train.ddp.fp16_compression": boolean,
    "train.fsdp": "SOLVER.FSDP",
    "train.accumulate": "SOLVER.ACCUMULATE",
    "train.reference_world_size": "SOLVER.REFERENCE_WORLD_SIZE",
    "train.clip_gradients.clip_type": one_of("", "value", "norm", "full_model"),
    "train.clip_gradients.clip_value": "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "train.clip_gradients.norm_type": "SOLVER.CLIP_GRADIENTS.NORM_TYPE",
    "train.ema.enabled": "SOLVER.EMA.ENABLED",
    "train.ema.decay": "SOLVER.EMA.DECAY",
    "train.skip_nonfinite": "SOLVER.SKIP_NONFINITE",
    "train.trained": "SOLVER.TRAINED",
    "train.reinitialize": "MODEL.REINITIALIZE",
    "train.transfer_from": "MODEL.TRANSFER_FROM",
    "train.decoupled.max_iter": "SOLVER.DECOUPLED.MAX_ITER",
    "train.decoupled.sampler": "SOLVER.DECOUPLED.SAMPLER_TRAIN",
    "train.decoupled.lr": "SOLVER.DECOUPLED.BASE_LR",
    "train.decoupled.steps": "SOLVER.DECOUPLED.STEPS",
    "train.decoupled.trained": "SOLVER.DECOUPLED.TRAINED",
    "train.decoupled.reinitialize": "SOLVER.DECOUPLED.REINITIALIZE",
    "train.apa_log_period": "MODEL.APA.LOG_PERIOD",
    "train.best_metric": "TEST.BEST_METRIC",
    "train.early_stopping_patience": "TEST.EARLY_STOPPING_PATIENCE",
    "train.eval_subset": "TEST.SUBSET",
    "train.test_augmentation.enabled": "TEST.AUG.ENABLED",
    "train.test_augmentation.min_sizes": "TEST.AUG.MIN_SIZES",
    "train.test_augmentation.max_size": "TEST.AUG.MAX_SIZE",
    "train.test_augmentation.flip": "TEST.AUG.FLIP",
    "train.precise_bn.enabled": "TEST.PRECISE_BN.ENABLED",
    "train.precise_bn.num_iter": "TEST.PRECISE_BN.NUM_ITER",
    "train.imports": "IMPORTS",
    "optimizer.lr": "SOLVER.BASE_LR",
    "optimizer.momentum": "SOLVER.MOMENTUM",
    "optimizer.weight_decay": "SOLVER.WEIGHT_DECAY",
    "dataloader.lvis_format": "DATASETS.LVIS_FORMAT",
    "dataloader.allow_outside_root": "DATASETS.ALLOW_OUTSIDE_ROOT",
    "dataloader.train.dataset.names": _names,
    "dataloader.train.mapper": _group,
    "dataloader.train.total_batch_size": "SOLVER.IMS_PER_BATCH",
    "dataloader.train.num_workers": "DATALOADER.NUM_WORKERS",
    "dataloader.train.sampler": train_sampler,
    "dataloader.train.repeat_thresh": "DATALOADER.REPEAT_THRESHOLD",
    "dataloader.train.repeat_rounding": "DATALOADER.REPEAT_ROUNDING",
    "dataloader.train.min_image_side": "DATALOADER.MIN_IMAGE_SIDE",
    "dataloader.train.min_box_side": "DATALOADER.MIN_BOX_SIDE",
    "dataloader.train.frequent_share": "DATALOADER.FREQUENT_SHARE",
    "dataloader.train.max_bad_images": "INPUT.MAX_BAD_IMAGES",
    "dataloader.test.dataset.names": _names,
    "dataloader.test.mapper": _group,
    "dataloader.test.num_workers": "DATALOADER.NUM_WORKERS",
    "dataloader.evaluator.engine": "TEST.ENGINE",
    "dataloader.evaluator.count_from": "TEST.COUNT_FROM",
    "dataloader.evaluator.extra_metrics": "TEST.EXTRA_METRICS",
    "dataloader.evaluator.save_predictions": "TEST.SAVE_PREDICTIONS",
    "dataloader.evaluator.per_category": "TEST.PER_CATEGORY",
}
# Keys without which no job can be read
REQUIRED_LAZY_KEYS = {
    *("model", "lr_multiplier", "train.output_dir", "train.init_checkpoint", "train.max_iter"),
    *("train.device", "train.eval_period", "train.log_period", "train.checkpointer.period"),
    *("train.amp.enabled", "train.ddp"),
}
