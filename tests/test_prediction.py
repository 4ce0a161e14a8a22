"""Predictions of one teacher, several, and the largest logits."""

import pickle

import torch

from fnkd_plugin import Prediction


def test_a_prediction_is_its_logits_and_what_rescales_them() -> None:
    logits, norm, origin = torch.randn(2, 3), torch.rand(2), torch.zeros(3)
    assert Prediction(logits) == (logits, None, None)
    again = pickle.loads(pickle.dumps(Prediction(logits, norm, origin)))
    assert isinstance(again, Prediction)
    assert all(torch.equal(a, b) for a, b in zip(again, (logits, norm, origin), strict=True))
