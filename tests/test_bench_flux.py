"""The benchmark of FLUX's real size, in the shape that every machine can take."""

from pathlib import Path

import pytest
import torch

from workbench.benchmarks.flux import COMMAND, DEV, LITE, SIZES, _config, bench_flux, update_flops
from workbench.models.outline import META, network


@pytest.mark.skipif(torch.cuda.is_available(), reason="would take the real size")
def test_every_line_of_it_runs_and_the_figures_say_what_they_are_of(tmp_path: Path) -> None:
    told = bench_flux(str(tmp_path), iterations=1)
    assert COMMAND in told["note"]
    figures = told["tiny"]
    assert figures["images_per_second"] > 0
    assert figures["update_mfu"] == figures["update_flops_per_second"] / figures["matmul_flops_per_second"]
    assert figures["update_flops_per_second"] == figures["update_flops"] / figures["update_seconds"]
    assert "addmm" in (tmp_path / "tiny" / "operations.txt").read_text()
    assert (tmp_path / "tiny" / "trace.json").stat().st_size > 0


def test_work_is_counted_once_whether_activations_are_worked_out_again_or_not() -> None:
    plain, again = (update_flops(_config("tiny", {"model.gradient_checkpointing": on})) for on in (False, True))
    config = _config("tiny", None)
    tokens = (config.model.resolution // 4) ** 2 + config.model.max_tokens
    with META:
        blocks = [block for name in ("transformer_blocks", "single_transformer_blocks") for block in _blocks(name)]
    once = 2 * tokens * sum(p.numel() for block in blocks for p in block.parameters() if p.dim() == 2)  # as if all saw each token
    assert plain == again
    assert 1 < plain / once < 4  # forward, and backward to the inputs; a double block's weights see only their own tokens


def _blocks(name: str) -> list[torch.nn.Module]:
    return list(getattr(network(SIZES["tiny"]["transformer"]), name))


@pytest.mark.parametrize(("settings", "billions"), [(DEV, 11.9), (LITE, 8.2)])
def test_the_real_sizes_are_those_that_are_published(settings: dict, billions: float) -> None:
    with META:
        made = network(settings["transformer"])
    assert sum(parameter.numel() for parameter in made.parameters()) / 1e9 == pytest.approx(billions, abs=0.1)
