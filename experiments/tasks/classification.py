"""The class of an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data.batches import Batches, DataConfig
from experiments.data.images import ImageData, image_shape, images_sha256
from experiments.models.config import ModelConfig
from experiments.models.foreign import Work, logits_of
from experiments.models.next_token import NextToken
from experiments.models.source import ModelError
from experiments.tasks.on_examples import COUNTED, OnExamples
from experiments.tasks.task import Score


class Classification(OnExamples):
    """Cross-entropy in nats and accuracy, on images [B, C, H, W] and classes [B].

    The model turns images into logits [B, classes].
    """

    def __init__(self, data: DataConfig, model: ModelConfig) -> None:
        super().__init__(model)
        self.data = data

    def corpus(self) -> str:
        """The SHA-256 of the images and classes."""
        return images_sha256(self.data)

    def open(self, verify: bool = False) -> ImageData:
        """The images."""
        return ImageData(self.data, verify)

    def check(self, data: Batches, steps: int, batch_size: int) -> None:
        """Refuse a model with another number of outputs than there are classes, and few images."""
        assert isinstance(data, ImageData)
        data.check(steps, batch_size)
        (_, found), there = self.cost().returned, len(data.classes)
        if found != there:
            raise ModelError(
                f"model.name={self.model.name}: returns {found} logits for an image; {data.label} "
                f"has {there} classes"
            )

    def work(self) -> Work:
        """Images of the data's shape."""
        shape = COUNTED, *image_shape(self.data)
        said = f"images {list(shape)}"

        def forward(module: nn.Module) -> Tensor:
            logits = logits_of(module, torch.zeros(shape))
            if logits.ndim != 2 or logits.shape[0] != COUNTED:
                raise ModelError(
                    f"model.name={self.model.name}: returns {list(logits.shape)} for {said}; must "
                    "be logits, [batch, classes]"
                )
            return logits

        return Work(said, COUNTED, forward)

    def loss(self, model: NextToken, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean over images."""
        images, classes = batch
        return F.cross_entropy(model(images).float(), classes)

    def score(self, model: NextToken, batch: tuple[Tensor, Tensor]) -> Score:
        """Sums over images; what has the largest logit is the answer."""
        images, classes = batch
        logits = model(images).float()
        total = F.cross_entropy(logits, classes, reduction="sum").double().item()
        right = int((logits.argmax(-1) == classes).sum())
        return Score(total, len(classes), {"accuracy": right})

    def ceiling(self, data: Batches) -> float:
        """A uniform guess costs log(classes) nats."""
        assert isinstance(data, ImageData)
        return math.log(len(data.classes))
