"""Memory predicted beside the app: in a process of its own, for the page."""

import pytest

from workbench.config import configure
from workbench.memory import GIB
from workbench.sizing import predict_memory


def test_a_plan_comes_back_as_numbers_and_says_whether_it_fits() -> None:
    plan = predict_memory(configure("shapes"), 24)
    assert plan["fits"]
    assert plan["device"] == 24 * GIB
    assert plan["total"] == max(plan["stages"].values()) > sum(plan["parts"].values()) > 0
    assert plan["advice"] == plan["advised"] == []


def test_what_does_not_fit_comes_with_settings_that_take_less() -> None:
    plan = predict_memory(configure("shapes"), 0.02)
    assert not plan["fits"]
    settings = [advice["setting"] for advice in plan["advice"]]
    assert "compute.train_batch" in settings
    assert all(said.startswith(setting) for said, setting in zip(plan["advised"], settings, strict=True))


def test_a_model_of_which_nothing_is_known_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="someone/unknown is made of is not known"):
        predict_memory(configure("flow_grpo_sd35_ocr", {"model.source": "someone/unknown"}))
