from detectron2 import model_zoo

train = model_zoo.get_config("common/train.py").train
train.eval_period = 0  # once, when training ends

# The keys that tools/lazyconfig_train_net.py reads beside detectron2's own
train.update(
    # Keep the checkpoint that is best by this metric, such as "bbox/AP" or "segm/APr", as
    # model_best.pth. Empty: keep none
    best_metric="",
    # Iterations between two writes of every λ and κ to the event storage. 0: never
    apa_log_period=100,
    # Clip gradients: of each parameter alone by "value" or "norm", or the norm of all together,
    # "full_model". Empty: they are not clipped
    clip_gradients=dict(clip_type="", clip_value=1.0, norm_type=2.0),
    # The parts that the pictures of a step go through the model in, one after the other
    accumulate=1,
    # An exponential moving average of the weights, which is evaluated
    ema=dict(enabled=False, decay=0.999),
    # Where the names of the classes of init_checkpoint are, to take over the rows of the heads by
    # name: "checkpoint", a registered dataset or a .json file. Empty: rows are rows
    transfer_from="",
    # Patterns of the names of parameters, such as "*score.*", that init_checkpoint does not fill
    reinitialize=[],
    # Patterns of the names of the parameters that train; all others are frozen. Empty: all train
    trained=[],
    # Decoupled training: then a second stage of max_iter iterations trains the classifier alone, in
    # the folder "classifier" of output_dir. lr=None: the same; steps: where it falls
    decoupled=dict(
        max_iter=0,
        sampler="ClassAwareTrainingSampler",
        lr=None,
        steps=[],
        trained=["*score.*"],
        reinitialize=True,
    ),
    # Below 0: another one each time
    seed=-1,
)
