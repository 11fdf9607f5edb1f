"""Ten changes of the architecture, each in the fewest lines; the README shows this code."""

import torch
from torch import nn
from torch.nn import functional as F

from kogpt.kernels.attention import attention_mask, mix, scores
from kogpt.model import MLP, Attention, Block, KoGPT
from kogpt.model.rotary import RotaryEmbedding
from kogpt.model.variants import parts


class SwiGLU(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.fc_gate = nn.Linear(config.n_embd, config.inner_dim)

    def forward(self, x):
        return self.dropout(self.fc_out(F.silu(self.fc_gate(x)) * self.fc_in(x)))


class SwiGLUBlock(Block):
    mlp_class = SwiGLU


class WithSwiGLU(KoGPT):
    block_class = SwiGLUBlock


class RMSNormBlock(Block):
    norm_class = nn.RMSNorm


class WithRMSNorm(KoGPT):
    block_class = RMSNormBlock


class SlidingWindow(Attention):
    window = 256

    def attend(self, q, k, v, starts):
        last = torch.arange(k.size(1) - q.size(1), k.size(1), device=q.device)
        first = (last - self.window + 1).clamp(min=0).expand(len(q), -1)  # (B, T)
        padding = 0 if starts is None else starts.view(len(q), -1)
        return super().attend(q, k, v, first.clamp(min=padding))


class SlidingWindowBlock(Block):
    attention_class = SlidingWindow


class WithSlidingWindow(KoGPT):
    block_class = SlidingWindowBlock


class GroupedQuery(Attention):
    groups = 2

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.k_proj = nn.Linear(config.n_embd, config.n_embd // self.groups, bias=False)
        self.v_proj = nn.Linear(config.n_embd, config.n_embd // self.groups, bias=False)

    def attend(self, q, k, v, starts):
        k, v = (x.repeat_interleave(self.groups, dim=2) for x in (k, v))
        return super().attend(q, k, v, starts)


class GroupedQueryBlock(Block):
    attention_class = GroupedQuery


class WithGroupedQueries(KoGPT):
    block_class = GroupedQueryBlock


class WithSequentialResidual(KoGPT):
    block_class = parts.SequentialBlock


class WithLearnedPositions(KoGPT):  # and rotary_dim=0
    transformer_class = parts.LearnedPositions


class ALiBi(Attention):
    def attend(self, q, k, v, starts):
        T, H, S = q.size(1), q.size(2), k.size(1)
        key = torch.arange(S, device=q.device)
        slopes = 2 ** (-8 * (1 + torch.arange(H, device=q.device)) / H)
        bias = slopes[:, None, None] * (key - key[S - T :, None])  # (H, T, S)
        return mix(scores(q, k, attention_mask(T, S, starts, q.device)) + bias, v)


class ALiBiBlock(Block):
    attention_class = ALiBi


class WithALiBi(KoGPT):  # and rotary_dim=0
    block_class = ALiBiBlock


class WithNTKScaling(KoGPT):
    factor = 4  # times the context it was trained with

    @classmethod
    def make_rotary(cls, config):
        R = config.rotary_width
        return RotaryEmbedding(R, config.n_positions, base=10000 * cls.factor ** (R / (R - 2)))


class WithHalfRotation(KoGPT):
    @staticmethod
    def make_rotary(config):
        return parts.HalfRotaryEmbedding(config.rotary_width, config.n_positions)


class WithTiedHead(KoGPT):
    def make_head(self, config):
        return parts.TiedHead(self.transformer.wte)
