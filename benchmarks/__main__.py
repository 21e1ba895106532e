"""Measure apa_det against alternatives: medians of interleaved repeats, as ratios."""

import argparse

from . import activation, class_loss, evaluation, layers, models


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    activation.add_arguments(
        commands.add_parser("activation", help="AGLU against SiLU, ReLU and its formula")
    )
    class_loss.add_arguments(
        commands.add_parser(
            "class-loss", help="the class losses against detectron2's cross-entropies"
        )
    )
    layers.add_block_arguments(
        commands.add_parser("block", help="a gated bottleneck block against detectron2's layers")
    )
    layers.add_carafe_arguments(
        commands.add_parser("carafe", help="CARAFE against the deconvolution it replaces")
    )
    models.add_arguments(
        commands.add_parser("step", help="a training step of Mask R-CNN against detectron2's"),
        "step",
    )
    models.add_arguments(
        commands.add_parser("inference", help="Mask R-CNN inference against detectron2's"),
        "inference",
    )
    evaluation.add_arguments(
        commands.add_parser(
            "evaluate", help="LVIS evaluation against ultrafast-pycocotools and lvis-api"
        )
    )
    args = parser.parse_args(arguments)
    if args.command is None:
        args = parser.parse_args(["activation"])
    args.run(args)


if __name__ == "__main__":
    main()
