import logging

import pytest
import torch
from detectron2.data import DatasetCatalog

from apa_det.engine import setup_job
from apa_det.errors import MissingFileError, UserError


def test_reads_file_and_options(arguments, output):
    cfg = setup_job(arguments("SOLVER.MAX_ITER", 7, "MODEL.APA.GATE", "se")).config
    assert cfg.is_frozen()
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.APA.GATE) == (7, 2, "se")
    assert {"tiny_train", "tiny_val"} <= set(DatasetCatalog.keys())
    assert (output / "config.yaml").exists()
    logging.getLogger("apa_det.anything").info("to the log")
    assert "to the log" in (output / "log.txt").read_text()


def test_cpu_without_cuda(arguments, output, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup_job(arguments("MODEL.DEVICE", "cuda")).config.MODEL.DEVICE == "cpu"
    assert "using cpu" in (output / "log.txt").read_text()


@pytest.mark.parametrize(
    "opts, message",
    [
        (("MODEL.NO_SUCH_KEY", 1), "there is no config key MODEL.NO_SUCH_KEY"),
        (("SOLVER.MAX_ITER", "many"), "SOLVER.MAX_ITER"),
        (("SOLVER.MAX_ITER",), "must be KEY VALUE pairs, got"),
        (("DATASETS.LVIS_FORMAT", "[['name', 'file']]"), r"LVIS_FORMAT\[0\] must be a list of"),
        (("DATASETS.LVIS_FORMAT", "[['tiny_val', 'a', 'b']]"), "registered already"),
    ],
)
def test_bad_options(arguments, output, opts, message):
    setup_job(arguments())
    (output / "config.yaml").unlink()
    with pytest.raises(UserError, match=message):
        setup_job(arguments(*opts))
    assert not (output / "config.yaml").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: {NO_SUCH_KEY: 1}", "bad.yaml: there is no config key MODEL.NO_SUCH_KEY"),
        ("MODEL: [", "bad.yaml: "),
        ("_BASE_: missing.yaml", "bad.yaml: .*missing.yaml"),
    ],
)
def test_bad_config_file(arguments, tmp_path, text, message):
    args = arguments()
    args.config_file = str(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text(text + "\nVERSION: 2\n")
    with pytest.raises(UserError, match=message):
        setup_job(args)


def test_missing_config_file(arguments):
    args = arguments()
    args.config_file = "missing.yaml"
    with pytest.raises(MissingFileError, match="no config file missing.yaml"):
        setup_job(args)
