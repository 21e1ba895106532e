import pytest
from detectron2.data import MetadataCatalog


@pytest.fixture
def dataset():
    """Return a function that registers the class counts of a dataset and returns its name."""
    names = []

    def register(counts, num_images=100, **metadata):
        names.append(f"losses_{len(names)}")
        MetadataCatalog.get(names[-1]).set(
            class_image_count=[
                {"id": i, "image_count": n, "instance_count": 2 * n} for i, n in enumerate(counts)
            ],
            num_images=num_images,
            **metadata,
        )
        return names[-1]

    yield register
    for name in names:
        MetadataCatalog.pop(name)
