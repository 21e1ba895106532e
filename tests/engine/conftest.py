from functools import partial

import pytest

from apa_det.engine import evaluate, setup_job, train

from ..conftest import training_flags


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def arguments(tiny_config, output, tmp_path):
    """Make the training flags of the tiny config; the output folder is set in its file."""
    config = tmp_path / "config.yaml"
    config.write_text(f"_BASE_: {tiny_config}\nOUTPUT_DIR: {output}\n")
    return partial(training_flags, config)


@pytest.fixture
def overrides(quickstart, output):
    """Overrides that run the quickstart's LazyConfig on the tiny dataset."""
    return [*quickstart.lazy_opts, f"train.output_dir={output}"]


@pytest.fixture
def lazy_arguments(quickstart, overrides):
    """Make the training flags of the quickstart's LazyConfig."""

    def make(*opts, config_file=quickstart.lazy, **flags):
        return training_flags(config_file, *overrides, *opts, **flags)

    return make


@pytest.fixture
def train_net():
    """Train or evaluate, as the train command does in each process."""

    def main(args):
        job = setup_job(args)
        if args.eval_only:
            return evaluate(job, resume=args.resume)
        return train(job, resume=args.resume, overwrite=args.overwrite)

    return main
