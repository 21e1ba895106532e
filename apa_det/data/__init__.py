"""Datasets in LVIS format: registration, validation, conversion, sampling, synthetic data."""

from .catalog import get_dataset_records
from .coco_to_lvis import coco_to_lvis
from .copy_paste import CopyPaste
from .dataset_records import DatasetRecords
from .dataset_report import DatasetReport, check_dataset
from .frequency import complete_categories, frequency_group
from .lvis_format import (
    ensure_metadata,
    has_ground_truth,
    load_lvis_format,
    register_lvis_format,
    require_annotations,
    require_dataset_files,
)
from .mapper import APADatasetMapper
from .sampling import TRAIN_SAMPLER_REGISTRY, build_train_loader
from .scale_jitter import large_scale_jitter
from .synthetic import generate_dataset
from .validation import Problem, read_coco_json, read_lvis_json
