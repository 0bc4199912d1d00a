"""The model: encoder and objective as one module, from pictures to losses; what several processes hold copies of."""

import torch
from torch import Tensor, nn

from dim.chunks import embedded_in_chunks
from dim.objective import Embedded, Losses, Objective


class Model(nn.Module):
    """Pictures -> losses. chunk: images embedded at a time, 0: all at once. bf16: autocast, scores and bounds in float32."""

    def __init__(
        self, encoder: nn.Module, objective: Objective, views: int = 1, chunk: int = 0, bf16: bool = False, seed: int = 0
    ):
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.views, self.chunk, self.bf16, self.seed = views, chunk, bf16, seed

    def forward(self, pictures: Tensor, image: Tensor, step: int, keep_scores: bool = False) -> tuple[Losses, Embedded]:
        """pictures [views * N, C, S, S], the first N of view one; image [N], their data-set numbers; step: from it
        negatives and prior samples follow -> what each owner minimises, and the codes and vectors behind it."""
        at = self.embed(pictures)
        with self.autocast(pictures):
            return self.objective.losses(at, image, self.seed, step, self.views, keep_scores), at

    def embed(self, pictures: Tensor) -> Embedded:
        """The part that looks at each picture by itself (batch statistics apart)."""
        parts = nn.ModuleList([self.encoder, self.objective.critics()])  # whose statistics it changes; a queue is none
        with self.autocast(pictures):
            return embedded_in_chunks(
                lambda some: self.objective.embed(self.encoder(some)), parts, pictures, self.chunk, self.views
            )

    def owned_by_encoder(self) -> list[nn.Parameter]:
        """What the encoder's loss trains: encoder and critics."""
        critics = [p for name, p in self.objective.named_parameters() if not name.startswith("prior.")]
        return [*self.encoder.parameters(), *critics]

    def statistics(self) -> list[Tensor]:
        """What a forward pass changes beside its output, as it is now: the running statistics."""
        return [buffer.clone() for part in (self.encoder, self.objective.critics()) for buffer in part.buffers()]

    @torch.no_grad()
    def restore(self, statistics: list[Tensor] | None, where: Tensor) -> None:
        """Where the flag on the device is set, the running statistics are again what they were; None: nothing to do."""
        if statistics is not None:
            buffers = (buffer for part in (self.encoder, self.objective.critics()) for buffer in part.buffers())
            for buffer, before in zip(buffers, statistics, strict=True):
                buffer.copy_(torch.where(where, before, buffer))

    def autocast(self, pictures: Tensor) -> torch.autocast:
        return torch.autocast(pictures.device.type, torch.bfloat16, enabled=self.bf16)
