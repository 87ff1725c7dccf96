"""A profile says how big a run is: what its settings are (`settings`), how it is read (`load`), what it refuses."""

from rlrecipes.profile.load import REFUSED, check_profile, load_profile, profile_names, settings_of, split_override
from rlrecipes.profile.settings import (
    LOWEST_TEMPERATURE,
    BaseSettings,
    CheckpointSettings,
    EvaluateSettings,
    LimitSettings,
    LoraSettings,
    MemorySettings,
    ModelSettings,
    PPOSettings,
    Profile,
    RewardSettings,
    SFTSettings,
    TrackSettings,
    TrainingSettings,
)

__all__ = [
    "LOWEST_TEMPERATURE",
    "REFUSED",
    "BaseSettings",
    "CheckpointSettings",
    "EvaluateSettings",
    "LimitSettings",
    "LoraSettings",
    "MemorySettings",
    "ModelSettings",
    "PPOSettings",
    "Profile",
    "RewardSettings",
    "SFTSettings",
    "TrackSettings",
    "TrainingSettings",
    "check_once",
    "check_profile",
    "load_profile",
    "profile_names",
    "settings_of",
    "split_override",
]
