from detectron2.config import CfgNode as CN

import apa_det


def add_their_config(cfg):
    apa_det.add_apa_config(cfg)
    cfg.MODEL.THEIR_NET = CN()
    cfg.MODEL.THEIR_NET.CHANNELS = 16
    cfg.SOLVER.THEIR_KAPPA_LR_FACTOR = 0.1
