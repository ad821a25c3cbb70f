from .predictor import Prediction, as_predictor

__all__ = ["Prediction", "as_predictor"]
