import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


setup(
    name="apa_det",
    version=re.search(r'^__version__ = "(.+)"', read("apa_det/__init__.py"), re.M).group(1),
    description="Adaptive Parametric Activation for long-tailed detection: a detectron2 plugin",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="The apa_det authors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["apa_det", "apa_det.*"]),
    # torch, torchvision, detectron2 and lvis are left out: they stay as the user installed them.
    install_requires=["numpy", "pillow", "pycocotools", "tabulate", "tqdm"],
    extras_require={
        "fast": ["ultrafast-pycocotools==0.1.14"],
        "dev": ["hypothesis", "mpmath", "pytest", "pytest-xdist", "ruff"],
    },
)
