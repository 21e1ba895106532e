"""The model of a config follows from the weights that its training starts from."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from apa_det.checkpoint.starting_weights import choose_starting_weights
from apa_det.data.recipe import RegisteredFile, write_config
from apa_det.engine import Trainer, read_config, read_job
from apa_det.errors import MissingFileError, UserError
from apa_det.model_zoo import configs_folder
from apa_det.utils.json_files import write_json

COCO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
NAMES = ["Dog", "unicorn", "traffic_light"]


def values(start):
    return {setting.key: setting.value for setting in start.settings}


@pytest.fixture
def dataset():
    """Three classes, of which COCO has two."""
    image = {"id": 1, "file_name": "a.png", "height": 20, "width": 30}
    polygon = [[1, 2, 11, 2, 11, 7, 1, 7]]
    box = {"image_id": 1, "bbox": [1, 2, 10, 5], "area": 50, "segmentation": polygon}
    return {
        "images": [image | {"neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "annotations": [box | {"id": i, "category_id": i} for i in (1, 2, 3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)],
    }


def test_downloads():
    """Those of detectron2's model zoo."""
    url = "https://dl.fbaipublicfiles.com/detectron2/"
    for masks, name in (
        (True, COCO),
        (False, "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"),
    ):
        settings = values(choose_starting_weights("coco", NAMES, masks=masks))
        weights = settings["MODEL.WEIGHTS"].replace("detectron2://", url)
        assert weights == model_zoo.get_checkpoint_url(name)
        assert settings["MODEL.TRANSFER_FROM"] == "coco_2017_train"
    settings = values(choose_starting_weights("coco", ["unicorn"], masks=False))
    assert "MODEL.TRANSFER_FROM" not in settings
    assert settings["MODEL.REINITIALIZE"] == ["*cls_score*", "*bbox_pred*"]
    start = choose_starting_weights("imagenet", NAMES, masks=True)
    theirs = read_config(
        str(configs_folder() / "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_2x.yaml")
    )
    ours = read_config(str(configs_folder() / start.base))
    ours.MODEL.WEIGHTS = values(start)["MODEL.WEIGHTS"]
    assert ours.dump() == theirs.dump()


@pytest.fixture(scope="module")
def coco_file(tmp_path_factory):
    """detectron2's Mask R-CNN with random weights."""
    cfg = model_zoo.get_config(COCO)
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("coco") / "downloaded.pth"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return path


def load(dataset, folder, start):
    """The model that training starts with."""
    write_json(dataset, folder / "train.json")
    train = RegisteredFile(folder / "train.json", folder, dataset)
    name = f"{folder.name}_{len(list(folder.iterdir()))}"
    write_config(folder / f"{name}.yaml", train, None, start)
    (folder / "a.png").touch()
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "1"]
    trainer = Trainer(read_job(folder / f"{name}.yaml", opts).config)
    trainer.resume_or_load(resume=False)
    return trainer.model.state_dict()


def test_coco_weights_fill_the_model(coco_file, dataset, tmp_path):
    """All but the classes that COCO does not have, in a file and in the layout of its config."""
    start = choose_starting_weights(str(coco_file), NAMES, masks=True)
    assert values(start)["MODEL.RESNETS.DEPTH"] == 50
    theirs = torch.load(coco_file)["model"]
    ours = load(dataset, tmp_path, start)
    names = MetadataCatalog.get("coco_2017_train").thing_classes
    score = "roi_heads.box_predictor.cls_score.weight"
    rows = [names.index("dog"), names.index("traffic light")]
    assert torch.equal(ours[score][[0, 2]], theirs[score][rows])
    assert not (ours[score][1] == theirs[score]).all(1).any()
    layers = ("cls_score", "bbox_pred", "mask_head.predictor", "box_predictor.score")
    for name, value in ours.items():
        if not any(layer in name for layer in layers):
            assert torch.equal(value, theirs[name]), name


def test_no_class_of_coco(coco_file, dataset, tmp_path):
    """80 other classes: the class rows are not copied by position."""
    dataset["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    names = [c["name"] for c in dataset["categories"]]
    theirs = torch.load(coco_file)["model"]
    ours = load(dataset, tmp_path, choose_starting_weights(str(coco_file), names, masks=True))
    for name in ("box_predictor.bbox_pred.weight", "mask_head.predictor.weight"):
        assert ours[f"roi_heads.{name}"].shape == theirs[f"roi_heads.{name}"].shape
        assert not torch.equal(ours[f"roi_heads.{name}"], theirs[f"roi_heads.{name}"])
    assert torch.equal(ours["backbone.fpn_lateral2.weight"], theirs["backbone.fpn_lateral2.weight"])


def published(depth, detector=True, classes=1203, carafe=None):
    """The names by which a published file is recognized."""
    prefix = "backbone." if detector else ""
    state = {f"{prefix}layer3.{i}.conv3.weight": 0 for i in range({50: 6, 101: 23}[depth])}
    block = ("conv1.weight", "unirect1.lambda_param", "se.uniact.lambda_param", "se.norm.weight")
    block += ("se.excitation.0.weight", "se.excitation.2.weight")
    state |= {f"{prefix}layer1.0.{name}": 0 for name in block}
    if detector:
        head, masks = "roi_head.bbox_head", "roi_head.mask_head"
        state |= {f"{head}.fc_cls.weight": classes, f"{head}.shared_fcs.0.weight": 0}
        state |= {f"{masks}.conv_logits.weight": 0}
        if carafe if carafe is not None else depth == 50:
            state |= {f"{masks}.upsample.channel_compressor.weight": 0}
            state |= {f"{masks}.conv_logits.tempearture": 0}
    return {name: torch.zeros(rows, 1) for name, rows in state.items()}


@pytest.mark.parametrize("depth", [50, 101])
def test_published_files(depth, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"state_dict": published(depth), "meta": {}}, path)
    lvis = MetadataCatalog.get("lvis_v1_train").thing_classes
    start = choose_starting_weights(str(path), [lvis[5], "unknown"], masks=True)
    cfg = read_config(str(configs_folder() / start.base))
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.APA.ACTIVATION) == (depth, "aglu")
    assert cfg.MODEL.ROI_BOX_HEAD.CLASS_SCORE == start.score == "gumbel"
    expected = {"MODEL.WEIGHTS": str(path), "SOLVER.AMP.ENABLED": True}
    assert values(start) == {**expected, "MODEL.TRANSFER_FROM": "lvis_v1_train"}
    torch.save({"state_dict": published(depth, carafe=depth == 101)}, path)
    head = "MODEL.ROI_MASK_HEAD"
    other = choose_starting_weights(str(path), NAMES, masks=True)
    assert other.base == start.base
    assert values(other)[f"{head}.UPSAMPLE"] == ("carafe" if depth == 101 else "deconv")
    assert values(other)[f"{head}.PREDICTOR_LEARN_TEMPERATURE"] == (depth == 101)
    torch.save({"model": published(depth, detector=False)}, path)
    start = choose_starting_weights(str(path), NAMES, masks=True)
    assert values(start) == expected


def test_torchvision(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    path = tmp_path / "resnet.pth"
    torch.save(torchvision.models.resnet101().state_dict(), path)
    settings = values(choose_starting_weights(str(path), NAMES, masks=True))
    assert settings == {"MODEL.WEIGHTS": str(path), "MODEL.RESNETS.DEPTH": 101}


def test_a_checkpoint_of_apa_det(dataset, tmp_path, quickstart):
    """Its config.yaml is the base; but not where its own training started from."""
    cfg = read_config(quickstart.yaml, quickstart.opts)
    cfg.MODEL.TRANSFER_FROM, cfg.MODEL.REINITIALIZE = "coco_2017_train", ["*cls_score*"]
    cfg.TEST.COUNT_FROM, cfg.INPUT.MIN_SIZE_TRAIN = "another_train", (96,)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    model = build_model(cfg)
    path = tmp_path / "run/model_final.pth"
    torch.save({"model": model.state_dict(), "class_names": ["dog", "a", "b", "c"]}, path)
    start = choose_starting_weights(str(path), NAMES, masks=True)
    assert values(start) == {
        "MODEL.WEIGHTS": str(path),
        "MODEL.TRANSFER_FROM": "checkpoint",
        "MODEL.REINITIALIZE": [],
    }
    ours, theirs = load(dataset, tmp_path, start), model.state_dict()
    score = "roi_heads.box_predictor.cls_score.weight"
    assert len(ours[score]) == 3 and torch.equal(ours[score][0], theirs[score][0])
    train = RegisteredFile(tmp_path / "train.json", tmp_path, dataset)
    for num_gpus, device in ((0, "cpu"), (2, "cuda")):
        write_config(tmp_path / "x.yaml", train, train, start, num_gpus=num_gpus)
        written = read_config(str(tmp_path / "x.yaml"))
        assert (written.MODEL.DEVICE, written.TEST.COUNT_FROM) == (device, "")
        assert written.INPUT.MIN_SIZE_TRAIN == (96,)
        assert written.MODEL.ROI_BOX_HEAD.CLASS_SCORE == cfg.MODEL.ROI_BOX_HEAD.CLASS_SCORE
    start = choose_starting_weights(str(path), ["unicorn"], masks=False)
    assert values(start)["MODEL.TRANSFER_FROM"] == ""
    assert values(start)["MODEL.REINITIALIZE"] == ["*cls_score*", "*bbox_pred*"]


def test_errors(tmp_path):
    def error(choice):
        with pytest.raises(UserError) as caught:
            choose_starting_weights(str(choice), NAMES, masks=True)
        return caught

    path = tmp_path / "x.pth"
    assert error(path).type is MissingFileError
    for state in (published(50, classes=7), {"a.weight": torch.zeros(1)}):
        torch.save({"state_dict": state}, path)
        assert "Copy the config.yaml of its training beside it" in str(error(path).value)
    torch.save({"meta": 1}, path)
    assert f"{path}: The checkpoint has no weights" in str(error(path).value)
