"""The config of a dataset: flags of ``prepare-dataset`` that write one."""

import argparse

from .flags import whole_number


def add_recipe(group: argparse._ArgumentGroup) -> None:
    """Add the flags that choose starting weights and GPUs."""
    group.add_argument(
        "--weights",
        default="coco",
        metavar="START",
        help="starting weights: coco or imagenet, which detectron2 downloads; none for random "
        "ones; or a checkpoint file, e.g. a published one (default coco)",
    )
    group.add_argument(
        "--num-gpus",
        type=whole_number,
        metavar="N",
        help="GPUs of the training; 0: a small training on the CPU (default: 1 if there is one)",
    )


def add_image_roots(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the folders of the images of the training and the validation set."""
    parser.add_argument(
        "--image-root",
        required=required,
        metavar="DIR",
        help="folder that file names are relative to, for the config",
    )
    parser.add_argument(
        "--val-image-root",
        metavar="DIR",
        help="the same for the validation set (default: --image-root)",
    )


def require_config_output(args: argparse.Namespace, image_root: str | None) -> None:
    """Raise a UserError if ``--write-config`` cannot be written, or lacks the image folder."""
    from apa_det.errors import UserError
    from apa_det.utils.writable import require_writable_file

    if args.write_config:
        require_writable_file(args.write_config, ".yaml", "--write-config")
        if image_root is None:
            raise UserError("--write-config needs --image-root, the folder of the images.")


def write_dataset_config(
    args: argparse.Namespace, output: str, sets: list[tuple[str, dict]]
) -> None:
    """Write the config of a training set and, if given, a validation set."""
    from torch import cuda

    from apa_det.checkpoint.starting_weights import choose_starting_weights
    from apa_det.data import recipe

    num_gpus = int(cuda.is_available()) if args.num_gpus is None else args.num_gpus
    roots = (args.image_root, args.val_image_root or args.image_root)
    train, *others = [
        recipe.RegisteredFile(path, root, content)
        for (path, content), root in zip(sets, roots, strict=False)
    ]
    start = choose_starting_weights(
        args.weights,
        recipe.class_names(train.content),
        masks=recipe.has_masks(train.content),
        cpu=num_gpus == 0,
    )
    val = others[0] if others else None
    recipe.write_config(output, train, val, start, num_gpus=num_gpus)
    gpus = "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
    print(f"Wrote {output} for {gpus if num_gpus else 'the CPU'}. Next:")
    print(*recipe.commands(output, num_gpus, tested=val is not None), sep="\n")
