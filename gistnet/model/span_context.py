"""Where spans stand in windows that the teacher has read, for a GistNet that reads them there."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from gistnet.errors import DataError
from gistnet.model.attention_passes import BranchPass
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.model.teacher_layers import TeacherLayers


@dataclass(frozen=True)
class SpanContext:
    """What the teacher made of the windows that spans lie in, and where they begin.

    Attributes:
        read: the pass over the windows, with the states that the GistNet asks for (`GistNet.hidden_state_layer`).
        windows: `[spans]`, the window of each span.
        firsts: `[spans]`, the index of its first token.
    """

    read: PrefillOutput
    windows: Tensor
    firsts: Tensor

    @classmethod
    def of_windows(
        cls,
        teacher: Teacher,
        hidden_state_layer: int | None,
        tokens: Tensor,
        firsts: Tensor,
        windows: Tensor | None = None,
    ) -> Self:
        """Spans of windows that the teacher reads for them alone, no farther than to the layer whose states they need.

        Args:
            hidden_state_layer: behind how many layers (`GistNet.hidden_state_layer`).
            tokens: `[windows, tokens]`.
            firsts: `[spans]`, the index of each span's first token.
            windows: `[spans]`, the window of each; None: there is only one.
        """
        read = teacher.prefill(tokens, hidden_state_layer=hidden_state_layer, to_the_end=False)
        return cls(read, torch.zeros_like(firsts) if windows is None else windows, firsts)

    def spans(self, count: int, tokens: int) -> Self:
        """The context of the `count` spans of so many tokens that each of these consists of, `[spans * count]`."""
        order = torch.arange(count, device=self.firsts.device) * tokens
        windows = self.windows[:, None].expand(-1, count).flatten()
        return replace(self, windows=windows, firsts=(self.firsts[:, None] + order).flatten())

    def states(self, tokens: int) -> Tensor:
        """The states of the spans' tokens where they stand, `[spans, tokens, dim]`.

        Raises:
            DataError: the windows were read without keeping states.
        """
        if self.read.states is None:
            raise DataError("The windows were read without keeping states; expected those that the GistNet reads.")
        order = torch.arange(tokens, device=self.firsts.device)
        return self.read.states[self.windows[:, None], self.firsts[:, None] + order]

    def last_states(self, layers: TeacherLayers, last_tokens: Tensor, tokens: int) -> Tensor:
        """The states of the spans' last tokens behind `layers`, which see what the teacher made of all before them.

        Args:
            last_tokens: their embeddings, `[spans, dim]`, in the number format of the layers.
            tokens: of a span.
        """
        last = self.firsts + tokens - 1
        pass_in_context = BranchPass(
            cache=self.read.cache,
            windows=tuple(self.windows.tolist()),
            prefix_lengths=tuple(last.tolist()),
            positions=last[:, None],
        )
        return layers.in_context(last_tokens, pass_in_context)
