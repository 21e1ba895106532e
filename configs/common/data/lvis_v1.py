from detectron2.config import LazyCall as L

from apa_det.evaluation import LongTailEvaluator

from .coco import dataloader

dataloader.train.update(sampler="RepeatFactorTrainingSampler", repeat_thresh=0.001)
dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.mapper.augmentations[0].short_edge_length = [640, 672, 704, 736, 768, 800]
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator = L(LongTailEvaluator)(dataset_name="${..test.dataset.names}")
