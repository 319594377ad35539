"""What is trained: Quintet's own transformer, put together from parts, or a model of Hugging Face's library."""

from typing import Annotated

from pydantic import Field

from quintet.config.model.attention import AttentionConfig, BidirectionalAttentionConfig, CausalAttentionConfig
from quintet.config.model.feedforward import (
    Activation,
    FeedForwardConfig,
    GatedFeedForwardConfig,
    PlainFeedForwardConfig,
)
from quintet.config.model.huggingface import HuggingFaceConfig, LoraConfig
from quintet.config.model.init import (
    InitConfig,
    KaimingInitConfig,
    NoInitConfig,
    NormalInitConfig,
    PretrainedInitConfig,
    XavierInitConfig,
)
from quintet.config.model.norm import (
    LayerNormConfig,
    ModelNormConfig,
    NoNormConfig,
    NormConfig,
    PlaceNormConfig,
    RMSNormConfig,
)
from quintet.config.model.position import (
    LearnedPositionConfig,
    LinearScalingConfig,
    Llama3ScalingConfig,
    NoPositionConfig,
    NoScalingConfig,
    NTKScalingConfig,
    PositionConfig,
    RopeConfig,
    RopeScalingConfig,
    SinusoidalPositionConfig,
    YarnScalingConfig,
)
from quintet.config.model.transformer import HeadConfig, TransformerConfig

ModelConfig = Annotated[TransformerConfig | HuggingFaceConfig, Field(discriminator="kind")]

__all__ = [
    "Activation",
    "AttentionConfig",
    "BidirectionalAttentionConfig",
    "CausalAttentionConfig",
    "FeedForwardConfig",
    "GatedFeedForwardConfig",
    "HeadConfig",
    "HuggingFaceConfig",
    "InitConfig",
    "KaimingInitConfig",
    "LayerNormConfig",
    "LearnedPositionConfig",
    "LinearScalingConfig",
    "Llama3ScalingConfig",
    "LoraConfig",
    "ModelConfig",
    "ModelNormConfig",
    "NTKScalingConfig",
    "NoInitConfig",
    "NoNormConfig",
    "NoPositionConfig",
    "NoScalingConfig",
    "NormConfig",
    "NormalInitConfig",
    "PlaceNormConfig",
    "PlainFeedForwardConfig",
    "PositionConfig",
    "PretrainedInitConfig",
    "RMSNormConfig",
    "RopeConfig",
    "RopeScalingConfig",
    "SinusoidalPositionConfig",
    "TransformerConfig",
    "XavierInitConfig",
    "YarnScalingConfig",
]
