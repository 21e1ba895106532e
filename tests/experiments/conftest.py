import pytest
import yaml


@pytest.fixture(scope="session")
def config_file(tiny_config, tmp_path_factory):
    """The config of a tiny Faster R-CNN with ReLU."""
    path = tmp_path_factory.mktemp("config") / "base.yaml"
    model = {
        "MASK_ON": False,
        "APA": {"ACTIVATION": "relu", "LOG_PERIOD": 0},
        "ROI_HEADS": {"NAME": "APAROIHeads"},
        "ROI_BOX_HEAD": {"NAME": "APAFastRCNNConvFCHead"},
    }
    path.write_text(yaml.safe_dump({"_BASE_": str(tiny_config), "MODEL": model}))
    return path


@pytest.fixture(scope="session")
def describe(config_file, tmp_path_factory):
    """Write a comparison of rows of the tiny config in a new folder, and return its path."""

    def write(*rows, **content):
        content = {"base": str(config_file), "seeds": [0], "rows": list(rows), **content}
        path = tmp_path_factory.mktemp("description") / "comparison.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return write
