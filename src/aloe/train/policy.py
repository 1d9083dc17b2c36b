"""The model as training sees it: a module whose forward pass turns a packed row into log-probabilities.

One module rather than a function around the model, so that whatever shares a model among processes (copies, shards)
sees one forward and one backward pass of the whole, head included.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from aloe.train.attention import Backend, Packed, arguments, install
from aloe.train.logprobs import token_logprobs
from aloe.train.packing import PackedRow

Precision = Literal["float32", "bf16_autocast", "bf16_stochastic"]


class Policy(torch.nn.Module):
    """`model` is a transformers causal LM; `policy(row)` its log-probabilities [scored tokens] of the row, float32.

    Args:
        precision: `float32`; `bf16_autocast`, matrix products in bf16 beside float32 weights; `bf16_stochastic`, the
            weights themselves in bf16.
        attention: backend that keeps the row's trees apart.
        even: promise that a loss gives every token the same gradient (see `token_logprobs`).
        recompute_above: tokens of a row from which its layers are computed again in the backward pass rather than
            kept; none: never.
    """

    def __init__(
        self,
        model: Any,
        *,
        precision: Precision = "float32",
        attention: Backend = "sdpa",
        even: bool = False,
        recompute_above: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.precision, self.attention, self.even, self.recompute_above = precision, attention, even, recompute_above
        install(model)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """bf16 matrix products where weights are float32."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16_autocast")

    def forward(self, row: PackedRow | None, **call: Any) -> Any:
        """Log-probabilities of `row`; without one, what the causal LM itself gives for `call` (to generate)."""
        model = self.model
        if row is None:
            return model(**call)
        head = model.get_output_embeddings().weight
        device = head.device
        self._recompute(len(row.layout.ids))
        packed = Packed.of(row.layout, self.attention, device)
        with self.autocast(device):
            hidden = model.base_model(
                input_ids=torch.from_numpy(row.layout.ids).to(device)[None],
                position_ids=torch.from_numpy(row.layout.positions).to(device)[None],
                use_cache=False,
                **arguments(packed),
            ).last_hidden_state[0]
        # index_select, whose gradient sums in a fixed order where indexing adds from several threads at once
        states = hidden.index_select(0, torch.from_numpy(row.sources).to(device))
        dtype = torch.float32 if self.precision == "float32" else torch.bfloat16
        return token_logprobs(states, head, torch.from_numpy(row.targets).to(device), dtype, even=self.even)

    def _recompute(self, tokens: int) -> None:
        """Switch recomputing of layers for a row of so many tokens. It changes no result."""
        above = self.recompute_above
        for module in self.model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = above is not None and tokens > above and torch.is_grad_enabled()


def prepare(model: Any) -> None:
    """Training mode, which recomputing layers needs, but without dropout: it would make every loss a random number."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    if model.supports_gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
