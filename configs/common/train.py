from detectron2 import model_zoo

train = model_zoo.get_config("common/train.py").train
train.eval_period = 0  # only at the end of training

# Keys that tools/lazyconfig_train_net.py reads in addition to detectron2's
train.update(
    # Save the checkpoint that is best in this metric, e.g. "bbox/AP" or "segm/APr", as
    # model_best.pth. Empty: do not save it
    best_metric="",
    # Write every λ and κ to the event storage every this many iterations. 0: never
    apa_log_period=100,
    # Gradient clipping: "value" or "norm" of each parameter, or the norm of all parameters,
    # "full_model". Empty: no clipping
    clip_gradients=dict(clip_type="", clip_value=1.0, norm_type=2.0),
    # Gradient accumulation: split each batch into this many parts
    accumulate=1,
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
    # that lower it
    decoupled=dict(
        max_iter=0,
        sampler="ClassAwareTrainingSampler",
        lr=None,
        steps=[],
        trained=["*score.*"],
        reinitialize=True,
    ),
    # Negative: a different seed in every run
    seed=-1,
)
