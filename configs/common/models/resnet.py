from detectron2.config import LazyCall as L

from apa_det.modeling import make_apa_resnet

# activation and gate are names, or callables that make a module from the number of channels, e.g.
# functools.partial(apa_det.layers.get_activation, "aglu", per_channel=True).
# Lists set them per stage: activation for the stem and res2 to res5, gate for res2 to res5.
bottom_up = L(make_apa_resnet)(
    depth=50,
    norm="EvalBN",
    activation="relu",
    gate="none",
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=2,
)
