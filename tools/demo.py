#!/usr/bin/env python3
"""Detect in pictures or in a video; draw what is found, and list it as JSON.

What is drawn has the colour of its frequency group: vermilion for rare classes, green for common
ones, blue for frequent ones, and grey where the group is unknown.
"""

import argparse
import os
import sys

from detectron2.utils.logger import setup_logger

from apa_det.demo import (
    VIDEOS,
    build_predictor,
    find_pictures,
    open_video,
    output_paths,
    run_on_pictures,
    run_on_video,
)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--config-file", required=True, metavar="FILE", help="yaml or LazyConfig")
    inputs = result.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="pictures, folders, or patterns such as 'a/*.jpg'",
    )
    inputs.add_argument("--video-input", metavar="FILE", help="a video")
    result.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="a folder for what is drawn and detections.json; or, for a single picture or a video, "
        "the file to draw, with the JSON beside it",
    )
    result.add_argument(
        "--confidence-threshold",
        default="0.5",
        metavar="SCORE",
        help="least score that is shown (default 0.5), or one for each frequency group: "
        "r:0.1,c:0.2,f:0.4",
    )
    result.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="overrides of the config, last on the line: MODEL.WEIGHTS model_final.pth; of a "
        "LazyConfig train.init_checkpoint=model_final.pth",
    )
    return result


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    setup_logger(name="fvcore")
    setup_logger(name="apa_det")
    predictor_args = args.config_file, args.opts, args.confidence_threshold
    try:
        if args.video_input:
            open_video(args.video_input)  # before the model is built
            (drawn,), json_file = output_paths([args.video_input], args.output, VIDEOS)
            run_on_video(build_predictor(*predictor_args), args.video_input, drawn, json_file)
            return 0
        pictures = find_pictures(args.input)
        drawn, json_file = output_paths(pictures, args.output)
        unread = run_on_pictures(build_predictor(*predictor_args), pictures, drawn, json_file)
        return 1 if unread else 0
    except (ImportError, OSError, ValueError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
