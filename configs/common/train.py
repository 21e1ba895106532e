from detectron2 import model_zoo

train = model_zoo.get_config("common/train.py").train
train.eval_period = 0  # only at the end of training

# Precision with train.amp.enabled: "float16", "bfloat16", or "": float16 on a GPU, else bfloat16
train.amp.dtype = ""

# The keys of apa_det, in addition to detectron2's
train.update(
    # Save the checkpoint that is best in this metric, e.g. "bbox/AP" or "segm/APr", as
    # model_best.pth. Empty: do not save it
    best_metric="",
    # Early stopping: end the training after this many evaluations in a row without a better
    # best_metric. 0: no early stopping
    early_stopping_patience=0,
    # Skip up to this many iterations in a row in which a loss or a gradient is NaN or infinite; one
    # more is an error. 0: each is an error
    skip_nonfinite=0,
    # During training, evaluate only this many images of the test set, chosen so that rare
    # categories are included; metrics get the prefix "subset/". The whole set is evaluated after
    # the last iteration. 0: always evaluate the whole set
    eval_subset=0,
    # After the last iteration, and with --eval-only, also evaluate with test-time augmentation: at
    # these sizes of the shorter side (longer side up to max_size), and flipped
    test_augmentation=dict(
        enabled=False,
        min_sizes=[400, 500, 600, 700, 800, 900, 1000, 1100, 1200],
        max_size=4000,
        flip=True,
    ),
    # Recompute the batch norm statistics over num_iter batches before each evaluation
    precise_bn=dict(enabled=False, num_iter=200),
    # Draw labels.png, train_batch.png, results.png and val_predictions.png into output_dir
    figures=True,
    # Names in apa_det.engine.WRITER_REGISTRY of event writers beside detectron2's
    writers=[],
    # Write every λ and κ to the event storage every this many iterations. 0: never
    apa_log_period=100,
    # Gradient clipping: "value" or "norm" of each parameter, or the norm of all parameters,
    # "full_model". Empty: no clipping
    clip_gradients=dict(clip_type="", clip_value=1.0, norm_type=2.0),
    # Gradient accumulation: split each batch into this many parts
    accumulate=1,
    # Shard parameters, gradients and optimizer state over the processes (fully_shard, torch >= 2.6)
    fsdp=False,
    # Number of processes that this config is written for. With another number, batch size, learning
    # rate, max_iter, periods and EMA decay are scaled. 0: no scaling
    reference_world_size=0,
    # Exponential moving average of the weights, used in evaluation
    ema=dict(enabled=False, decay=0.999),
    # Source of the class names of init_checkpoint, to copy class rows of the heads by name:
    # "checkpoint", a registered dataset or a .json file. Empty: copy class rows by position
    transfer_from="",
    # Name patterns of parameters that are not loaded from init_checkpoint, e.g. "*score.*"
    reinitialize=[],
    # Name patterns of the parameters to train; the others are frozen. Empty: train all
    trained=[],
    # Decoupled training: a second stage of max_iter iterations trains only the classifier, in
    # output_dir/classifier. 0: no second stage. lr=None: same learning rate; steps: iterations
    # that lower it; replay_share: share of the FeatureReplay of the box predictor, None: the same
    decoupled=dict(
        max_iter=0,
        sampler="ClassAwareTrainingSampler",
        lr=None,
        steps=[],
        trained=["*score.*"],
        reinitialize=True,
        replay_share=None,
    ),
    # Negative: a different seed in every run
    seed=-1,
    # Modules given by --import, recorded for information; they are not imported from here
    imports=[],
)
