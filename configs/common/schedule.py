from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def multi_step(max_iter, steps, *, warmup_iters=1000, warmup_factor=0.001):
    """The multiplier of the learning rate: ×0.1 at each step, after a linear warm-up.

    It is set in shares of the training: with another ``train.max_iter``, steps and warm-up move.
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
