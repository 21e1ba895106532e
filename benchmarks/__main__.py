"""Measure apa_det against alternatives: medians of interleaved repeats, as ratios."""

import argparse

from . import (
    activation,
    class_loss,
    compiled,
    data,
    evaluation,
    gradients,
    ground_truth,
    layers,
    loader,
    models,
    report,
    v3det_evaluation,
)

HELP = {
    "activation": "AGLU against SiLU, ReLU and its formula",
    "gate": "the SE gate against its formula",
    "class-loss": "the class losses against detectron2's cross-entropies",
    "block": "a gated bottleneck block against detectron2's layers",
    "carafe": "CARAFE against the deconvolution it replaces",
    "step": "a training step of Mask R-CNN against detectron2's",
    "compile": "a training step with torch.compile against eager",
    "inference": "Mask R-CNN inference against detectron2's",
    "gradients": "gradients of λ and κ against those of the weights around them",
    "loader": "training images with copy-paste against those without",
    "data": "reading LVIS and the training loader against detectron2's",
    "evaluate": "LVIS evaluation against ultrafast-pycocotools and lvis-api",
    "ground-truth": "reading LVIS ground truth against the JSON parser and lvis-api",
    "report": "the report of evaluate-predictions, time and memory of the whole command",
    "evaluate-v3det": "box AP of V3Det's classes against detectron2's COCOEvaluator",
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
    compiled.add_arguments(command("compile"))
    models.add_arguments(command("inference"), "inference")
    gradients.add_arguments(command("gradients"))
    loader.add_arguments(command("loader"))
    evaluation.add_arguments(command("evaluate"))
    data.add_arguments(command("data"))
    ground_truth.add_arguments(command("ground-truth"))
    report.add_arguments(command("report"))
    v3det_evaluation.add_arguments(command("evaluate-v3det"))
    args = parser.parse_args(arguments)
    if args.command is None:
        args = parser.parse_args(["activation"])
    args.run(args)


if __name__ == "__main__":
    main()
