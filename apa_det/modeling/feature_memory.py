"""A bounded memory of features by class, and interpolation between neighbors in it (SMOTE)."""

import torch
from torch import Tensor


class FeatureMemory:
    """The newest features of each of some classes: first in, first out.

    Attributes:
        classes: int64, shape (C,), ascending, on the CPU.
        size: S, the largest number of features of a class.
        counts: int64, shape (C,), on the CPU: the features pushed of each class so far. The next
            one of a class goes to the slot count modulo S.
        features: shape (C, S, D), in the dtype and on the device of the first features; None before
            them. The first min(count, S) slots of a class are filled, the others 0.
    """

    def __init__(self, classes: Tensor, size: int):
        self.classes = classes.cpu()
        self.size = size
        self.counts = torch.zeros(len(classes), dtype=torch.int64)
        self.features: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """int64, shape (C,), on the CPU: number of features of each class."""
        return self.counts.clamp(max=self.size)

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Add features, in this order.

        Args:
            features: shape (N, D).
            labels: int64, shape (N,): entries of ``classes``.
        """
        if not len(features):
            return
        if self.features is None:
            self.features = features.new_zeros(len(self.classes), self.size, features.shape[1])
        rows = torch.searchsorted(self.classes, labels.cpu())
        for feature, row in zip(features, rows.tolist(), strict=True):
            self.features[row, self.counts[row] % self.size] = feature
            self.counts[row] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the filled slots, shape (n, D), and the counts, on the CPU."""
        if self.features is None:
            return {}
        filled = self.features[self._filled().to(self.features.device)].cpu()
        return {"classes": self.classes, "counts": self.counts.clone(), "features": filled}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device | str) -> None:
        """Restore the memory, with its features on a device.

        Raises:
            ValueError: the state is of other classes or of another size, or is damaged.
        """
        if not state:
            self.counts, self.features = torch.zeros_like(self.counts), None
            return
        classes, counts, features = (state[key] for key in ("classes", "counts", "features"))
        if not torch.equal(classes, self.classes):
            raise ValueError(
                f"the replay memory is of {len(classes)} classes, but {len(self.classes)} classes "
                "are scarce, or other ones"
            )
        if counts.shape != self.counts.shape or counts.dtype != torch.int64 or (counts < 0).any():
            raise ValueError("the counts of the replay memory must be integers >= 0, one per class")
        self.counts = counts.clone()
        if features.dim() != 2 or len(features) != self.sizes.sum():
            raise ValueError(
                f"the replay memory has features of shape {tuple(features.shape)}, but "
                f"{self.sizes.sum()} slots are filled with {self.size} per class"
            )
        if not features.is_floating_point() or not features.isfinite().all():
            raise ValueError("the features of the replay memory must be finite numbers")
        shape = len(self.classes), self.size, features.shape[1]
        self.features = torch.zeros(shape, dtype=features.dtype, device=device)
        self.features[self._filled().to(device)] = features.to(device)

    def _filled(self) -> Tensor:
        return torch.arange(self.size) < self.sizes[:, None]


def draw_features(
    memory: FeatureMemory, number: int, neighbors: int
) -> tuple[Tensor, Tensor] | None:
    """Draw features: a class, one of its features, and, for SMOTE, one of its nearest neighbors.

    All classes with features in the memory are equally likely, and all features of a class. A
    feature x becomes x + u (x_nn − x), where x_nn is one of the k nearest neighbors of x in the
    memory of its class, and u is uniform in [0, 1) ("SMOTE: Synthetic Minority Over-sampling
    Technique", Chawla et al., 2002, section 4.2). If the class has fewer than k others, all of them
    are neighbors; if it has none, x stays as it is.

    Random numbers come from torch's global generator of the device of the features.

    Args:
        memory: the memory.
        number: M, the number of features.
        neighbors: k; 0 returns features of the memory.

    Returns:
        The features, shape (M, D), in the dtype of the memory, and their classes, int64, shape
        (M,), on their device. None if the memory is empty.
    """
    if memory.features is None or not number:
        return None
    device = memory.features.device
    sizes = memory.sizes.to(device)
    known = sizes.nonzero()[:, 0]
    rows = known[_below(torch.full((number,), len(known), device=device))]
    slots = _below(sizes[rows])
    x = memory.features[rows, slots]
    labels = memory.classes.to(device)[rows]
    neighbors = min(neighbors, memory.size - 1)
    if not neighbors:
        return x, labels
    nearest = _nearest(memory.features[rows].float(), slots, sizes[rows], neighbors)
    others = (sizes[rows] - 1).clamp(max=neighbors)
    chosen = nearest.gather(1, _below(others)[:, None])[:, 0]
    x_nn = memory.features[rows, chosen].float()
    u = torch.rand(number, 1, device=device) * (others > 0)[:, None]
    return (x.float() + u * (x_nn - x.float())).to(x.dtype), labels


def _nearest(points: Tensor, slots: Tensor, sizes: Tensor, k: int) -> Tensor:
    """Return the indices of the k other points that are nearest to one point, nearest first.

    Args:
        points: shape (M, S, D).
        slots: shape (M,): index of the point.
        sizes: shape (M,): the number n of points that count, the first ones.
        k: at most S − 1.

    Returns:
        Shape (M, k). Only the first n − 1 are valid if n − 1 < k.
    """
    rows = torch.arange(len(points), device=points.device)
    own = points[rows, slots][:, None]
    mode = "donot_use_mm_for_euclid_dist"  # exact, also for near points
    distances = torch.cdist(own, points, compute_mode=mode)[:, 0]
    distances[torch.arange(points.shape[1], device=points.device) >= sizes[:, None]] = torch.inf
    distances[rows, slots] = torch.inf
    return distances.topk(k, largest=False).indices


def _below(limits: Tensor) -> Tensor:
    """Draw an integer in [0, limit) for each limit; 0 for 0."""
    drawn = torch.rand(limits.shape, dtype=torch.float64, device=limits.device) * limits
    return drawn.long()
