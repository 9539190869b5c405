"""Which model is trained, as plain numbers and names: the built-in one, or somebody else's."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

_OF_BUILT_IN = ("layers", "hidden", "ffn", "heads", "tied", "rope_base")


@dataclass
class ModelConfig:
    """A model: the built-in Transformer's numbers, or where another one comes from."""

    name: str = "ladder-b"
    layers: int = 2
    hidden: int = 64
    ffn: int = 192
    heads: int = 2
    vocab_size: int = 256
    tied: bool = True
    """Whether the head is the embedding's matrix."""
    rope_base: float = 10_000.0
    source: str = ""
    """A folder of a Hugging Face model, whose weights are taken, or a configuration (JSON), whose
    weights are drawn; needs the extra "hf"."""
    factory: str = ""
    """A function package.module:name that returns a `torch.nn.Module`: token ids to logits."""
    config: dict[str, Any] = field(default_factory=dict)
    """Keys of the Hugging Face configuration to change, or the factory's arguments."""
    sha256: str = ""
    """Hash of the source's files or the factory's, filled in: a run's result depends on it."""

    @property
    def foreign(self) -> bool:
        """Whether it is somebody else's."""
        return bool(self.source or self.factory or "model_type" in self.config)

    @property
    def from_transformers(self) -> bool:
        """Whether it is one of Hugging Face's transformers."""
        return self.foreign and not self.factory

    def problems(self) -> list[str]:
        """Errors of this model, each as "key=value: what would be right"."""
        if self.foreign:
            return self._foreign_problems()
        if not self.name:
            return [
                "model.source=: give a folder or a config.json of Hugging Face, or "
                "model.config.model_type (or model.name, for the built-in model)"
            ]
        found = []
        for key in ("layers", "hidden", "ffn", "heads", "vocab_size"):
            if getattr(self, key) < 1:
                found.append(f"model.{key}={getattr(self, key)}: must be 1 or more")
        if not found and (self.hidden % self.heads or self.hidden // self.heads % 2):
            found.append(
                f"model.heads={self.heads}: hidden={self.hidden} must split into heads of even size"
            )
        if self.config:
            found.append(
                f"model.config={self.config}: belongs to model=hf or model=module; the built-in "
                "model has keys of its own, as model.hidden"
            )
        if self.sha256:
            found.append(f"model.sha256={self.sha256}: the built-in model has no source to hash")
        return found

    def _foreign_problems(self) -> list[str]:
        """Errors of the keys that say where a model comes from."""
        if self.source and self.factory:
            return [f"model.factory={self.factory}: model.source={self.source} is another model"]
        default = {f.name: f.default for f in fields(self)}
        whose = f"model.factory={self.factory}" if self.factory else "a model of Hugging Face"
        keys = (*_OF_BUILT_IN, *(() if self.factory else ("vocab_size",)))
        return [
            f"model.{key}={getattr(self, key)}: has no effect on {whose}; set model.config.NAME "
            "by the name that it has there"
            for key in keys
            if getattr(self, key) != default[key]
        ]
