from detectron2 import model_zoo

optim = model_zoo.get_config("common/optim.py")
SGD, AdamW = optim.SGD, optim.AdamW
