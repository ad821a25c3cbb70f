from . import convnets  # noqa: F401  its names are among those of `classifiers.build`, whatever is imported first
from .predictor import Prediction, as_predictor

__all__ = ["Prediction", "as_predictor"]
