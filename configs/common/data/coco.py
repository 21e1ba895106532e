from detectron2 import model_zoo

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations[0].short_edge_length = [800]

# Datasets of LVIS format to register: a list of [name, json_file, image_root]
dataloader.lvis_format = []
