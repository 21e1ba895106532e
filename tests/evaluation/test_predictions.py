import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.multiprocessing as mp
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from apa_det.errors import UserError
from apa_det.evaluation import predictions
from apa_det.evaluation.predictions import PredictionStore, detections_from_instances

CATEGORY_IDS = np.array([7, 3, 20])


def random_instances(number, seed=0, masks=True):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((30, 50))
    boxes = torch.rand(number, 4, generator=generator) * 25
    boxes[:, 2:] += boxes[:, :2]
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.rand(number, generator=generator)
    instances.pred_classes = torch.randint(3, (number,), generator=generator)
    if masks:
        instances.pred_masks = torch.rand(number, 30, 50, generator=generator) > 0.7
    return instances


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("number", [0, 1, 70])
def test_equals_the_records_of_detectron2(number, masks):
    instances = random_instances(number, masks=masks)
    expected = instances_to_coco_json(instances, 11)
    for record in expected:
        record["category_id"] = int(CATEGORY_IDS[record["category_id"]])
    detections = detections_from_instances(instances, 11, CATEGORY_IDS)
    assert list(detections.records()) == expected
    assert (detections.masks is not None) == masks
    instances.scores.zero_(), instances.pred_boxes.tensor.zero_()  # the columns are copies
    assert list(detections.records()) == expected


def test_rle_masks():
    instances = random_instances(5)
    encoded = [mask_util.encode(np.asfortranarray(m)) for m in instances.pred_masks.byte().numpy()]
    instances.remove("pred_masks")
    instances.pred_masks_rle = encoded
    assert detections_from_instances(instances, 1, CATEGORY_IDS).masks.rles() == encoded


def test_invalid_rle_masks():
    instances = random_instances(3, masks=False)
    encoded = mask_util.encode(np.zeros((30, 50, 3), np.uint8, order="F"))
    encoded[1]["counts"] = b"0"
    instances.pred_masks_rle = encoded
    message = r"Image 17: detection 1 \(from 0\): pred_masks_rle counts must be RLE"
    with pytest.raises(UserError, match=message):
        detections_from_instances(instances, 17, CATEGORY_IDS)


def test_half_precision():
    instances = random_instances(5, masks=False)
    instances.scores = instances.scores.half()
    detections = detections_from_instances(instances, 1, CATEGORY_IDS)
    assert detections.scores.dtype == np.float32
    assert detections.scores.tolist() == instances.scores.tolist()


def test_nan_scores():
    instances = random_instances(5)
    instances.scores[3] = float("nan")
    with pytest.raises(UserError, match="image 17 as NaN or inf"):
        detections_from_instances(instances, 17, CATEGORY_IDS)


def filled(image_ids):
    store = PredictionStore()
    for image_id in image_ids:
        instances = random_instances(image_id % 4, seed=image_id)
        store.add(image_id, detections_from_instances(instances, image_id, CATEGORY_IDS))
    return store


SHARES = [
    ([1, 2, 3, 4, 5, 6, 7], [8, 9]),
    ([], [8, 9, 10, 11]),
    ([1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 1]),  # three images in both
]


def gather(rank, init_file, gathered):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{init_file}", rank=rank, world_size=2
    )
    predictions._IMAGES_AT_ONCE = 3
    gathered[rank] = [filled(share[rank]).gather(distributed=True) for share in SHARES]
    torch.distributed.destroy_process_group()


def test_two_processes_gather_the_same_as_one(tmp_path):
    with mp.Manager() as manager:
        gathered = manager.dict()
        mp.spawn(gather, (str(tmp_path / "store"), gathered), nprocs=2)
        gathered = dict(gathered)
    assert gathered[1] == [None] * len(SHARES)
    for share, (detections, seen) in zip(SHARES, gathered[0], strict=True):
        alone, everything = filled({*share[0], *share[1]}).gather(distributed=False)
        assert np.array_equal(seen, everything)
        assert sorted(detections.records(), key=str) == sorted(alone.records(), key=str)
        assert len(detections) == len(alone) > 0


def test_repeated_image():
    store = filled([3, 5])
    store.add(3, detections_from_instances(random_instances(0), 3, CATEGORY_IDS))
    detections, seen = store.gather(distributed=False)
    assert seen.tolist() == [3, 5] and set(detections.image_ids) == {5}
