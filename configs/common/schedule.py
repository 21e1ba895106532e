from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def multi_step(max_iter, steps, *, warmup_iters=1000, warmup_factor=0.001):
    """Return the learning rate multiplier: linear warm-up, then ×0.1 at each step.

    Steps and warm-up are fractions of training: they scale with ``train.max_iter``.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**k for k in range(len(steps) + 1)],
            milestones=list(steps),
            num_updates=max_iter,
        ),
        warmup_length=warmup_iters / max_iter,
        warmup_factor=warmup_factor,
        warmup_method="linear",
    )
