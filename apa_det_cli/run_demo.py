"""Detect in images or in a video, draw the detections, and list them as JSON.

Colors are those of the frequency groups: vermilion for rare classes, green for common ones, blue
for frequent ones, gray if unknown.
"""

import argparse

from .flags import add_config_file, add_overrides, command_parser


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
    add_overrides(result)
    return result


def run(args: argparse.Namespace) -> int:
    import os

    from detectron2.utils.logger import setup_logger

    from apa_det.demo import (
        VIDEO_EXTENSIONS,
        build_predictor,
        find_images,
        open_video,
        output_paths,
        run_on_images,
        run_on_video,
    )
    from apa_det.engine import read_job
    from apa_det.utils.writable import require_writable_folder

    for name in ("fvcore", "apa_det"):
        setup_logger(name=name)
    if args.video_input:
        open_video(args.video_input)  # before the model is built
        drawn, json_file = output_paths([args.video_input], args.output, VIDEO_EXTENSIONS)
    else:
        images = find_images(args.input)
        drawn, json_file = output_paths(images, args.output)
    require_writable_folder(os.path.dirname(json_file) or ".")
    job = read_job(args.config_file, args.opts, args.imports, eval_only=True)
    predictor = build_predictor(job, args.confidence_threshold)
    if args.video_input:
        run_on_video(predictor, args.video_input, drawn[0], json_file)
        return 0
    return 1 if run_on_images(predictor, images, drawn, json_file) else 0
