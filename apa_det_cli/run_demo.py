"""Detect in images or in a video, draw the detections, and list them as JSON.

Colors are those of the frequency groups: vermilion for rare classes, green for common ones, blue
for frequent ones, gray if unknown.

evaluate-predictions takes detections.json as it is, and finds the images of its ground truth by
file name. With --gt, the file has the image and category ids of this ground truth, also for other
programs. For AP, give a low --confidence-threshold, e.g. 0.
"""

import argparse

from .flags import add_config_file, add_ground_truth, add_overrides, command_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    add_config_file(result, required=True)
    inputs = result.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders, or patterns, e.g. 'a/*.jpg'"
    )
    inputs.add_argument("--video-input", metavar="FILE", help="a video")
    result.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="a folder for drawn images and detections.json; for a single image or a video also "
        "the file to draw, with the JSON beside it",
    )
    result.add_argument(
        "--confidence-threshold",
        metavar="SCORE",
        help="lowest score to show, or one for each frequency group, e.g. r:0.1,c:0.2,f:0.4, or a "
        "JSON file {class: score} (default TEST.SCORE_THRESH_PER_GROUP of the config, else 0.5)",
    )
    add_ground_truth(result)
    add_overrides(result)
    return result


def run(args: argparse.Namespace) -> int:
    import os

    from detectron2.utils.logger import setup_logger

    from apa_det.demo import (
        VIDEO_EXTENSIONS,
        GroundTruthIds,
        build_predictor,
        find_images,
        open_video,
        output_paths,
        run_on_images,
        run_on_video,
    )
    from apa_det.engine import read_job
    from apa_det.errors import UserError
    from apa_det.utils.log_file import keep_from_terminal
    from apa_det.utils.writable import require_writable_folder

    for name in ("fvcore", "apa_det"):
        keep_from_terminal(setup_logger(name=name))
    if args.gt and args.video_input:
        raise UserError("--gt is for images, with --input: remove it.")
    if args.video_input:
        open_video(args.video_input)  # before the model is built
        drawn, json_file = output_paths([args.video_input], args.output, VIDEO_EXTENSIONS)
    else:
        images = find_images(args.input)
        drawn, json_file = output_paths(images, args.output)
    require_writable_folder(os.path.dirname(json_file) or ".")
    ids = GroundTruthIds(args.gt) if args.gt else None
    image_ids = ids and ids.of_images(images)
    job = read_job(args.config_file, args.opts, args.imports, eval_only=True)
    predictor = build_predictor(job, args.confidence_threshold)
    if args.video_input:
        run_on_video(predictor, args.video_input, drawn[0], json_file)
        return 0
    if ids:
        ids.set_categories(predictor)
    return 1 if run_on_images(predictor, images, drawn, json_file, image_ids) else 0
