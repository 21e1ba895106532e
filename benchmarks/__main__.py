"""Measure apa_det against alternatives: medians of interleaved repeats, as ratios."""

import argparse

from . import activation, class_loss, evaluation, layers, loader, models

HELP = {
    "activation": "AGLU against SiLU, ReLU and its formula",
    "gate": "the SE gate against its formula",
    "class-loss": "the class losses against detectron2's cross-entropies",
    "block": "a gated bottleneck block against detectron2's layers",
    "carafe": "CARAFE against the deconvolution it replaces",
    "step": "a training step of Mask R-CNN against detectron2's",
    "inference": "Mask R-CNN inference against detectron2's",
    "loader": "training images with copy-paste against those without",
    "evaluate": "LVIS evaluation against ultrafast-pycocotools and lvis-api",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command")

    def command(name: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=HELP[name])

    activation.add_arguments(command("activation"))
    activation.add_gate_arguments(command("gate"))
    class_loss.add_arguments(command("class-loss"))
    layers.add_block_arguments(command("block"))
    layers.add_carafe_arguments(command("carafe"))
    models.add_arguments(command("step"), "step")
    models.add_arguments(command("inference"), "inference")
    loader.add_arguments(command("loader"))
    evaluation.add_arguments(command("evaluate"))
    args = parser.parse_args(arguments)
    if args.command is None:
        args = parser.parse_args(["activation"])
    args.run(args)


if __name__ == "__main__":
    main()
