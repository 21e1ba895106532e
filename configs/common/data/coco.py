from detectron2 import model_zoo

from apa_det.data import APADatasetMapper, build_train_loader, get_dataset_records

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset._target_ = get_dataset_records
dataloader.test.dataset._target_ = get_dataset_records
dataloader.train.mapper.update(_target_=APADatasetMapper, image_format="RGB")
dataloader.test.mapper._target_ = APADatasetMapper
dataloader.train.mapper.augmentations[0].short_edge_length = [800]
# Other samplers than plain shuffling: e.g. sampler="ClassAwareTrainingSampler"
dataloader.train.update(
    _target_=build_train_loader,
    sampler="TrainingSampler",
    dataset_names="${.dataset.names}",
    # Replace up to this many images that cannot be read: see INPUT.MAX_BAD_IMAGES
    max_bad_images=0,
)

# Datasets in LVIS format to register: a list of [name, json_file, image_root]
dataloader.lvis_format = []
# True: their file names may leave their image_root
dataloader.allow_outside_root = False
