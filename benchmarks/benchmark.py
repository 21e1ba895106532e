#!/usr/bin/env python
"""Measure apa_det against its rivals: median of interleaved repeats, as ratios, in one run."""

import argparse

import activation_benchmark
import evaluation_benchmark
import layer_benchmark
import model_benchmark


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command")
    activation_benchmark.add_activation_arguments(
        commands.add_parser("activation", help="AGLU against SiLU, ReLU and its formula")
    )
    activation_benchmark.add_class_loss_arguments(
        commands.add_parser(
            "class-loss", help="the class losses against detectron2's cross-entropies"
        )
    )
    layer_benchmark.add_block_arguments(
        commands.add_parser("block", help="a gated bottleneck block against detectron2's layers")
    )
    layer_benchmark.add_carafe_arguments(
        commands.add_parser("carafe", help="CARAFE against the deconvolution it replaces")
    )
    model_benchmark.add_arguments(
        commands.add_parser("step", help="a training step of Mask R-CNN against detectron2's"),
        "step",
    )
    model_benchmark.add_arguments(
        commands.add_parser("inference", help="Mask R-CNN in inference against detectron2's"),
        "inference",
    )
    evaluation_benchmark.add_arguments(
        commands.add_parser("evaluate", help="LVIS evaluation against its library and lvis-api")
    )
    args = parser.parse_args(arguments)
    if args.command is None:
        args = parser.parse_args(["activation"])
    args.run(args)


if __name__ == "__main__":
    main()
