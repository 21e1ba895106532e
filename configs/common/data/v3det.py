from detectron2.config import LazyCall as L

from apa_det.evaluation import V3DetEvaluator

from .lvis_v1 import dataloader

dataloader.train.dataset.names = "v3det_train"
dataloader.train.mapper.use_instance_mask = False
dataloader.train.total_batch_size = 32
dataloader.test.dataset.names = "v3det_val"
dataloader.evaluator = L(V3DetEvaluator)(dataset_name="${..test.dataset.names}")
