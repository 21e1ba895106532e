"""Readers of YOLO, Pascal VOC and Open Images datasets."""

from .open_images import read_open_images
from .pascal_voc import read_pascal_voc
from .source import Source
from .yolo import read_yolo
