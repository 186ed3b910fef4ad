"""The head of a pipeline: whoever reads it says the same of what is wrong with it."""

from pathlib import Path

import pytest

from workbench.linked import parts_of
from workbench.models.diffusers_folder import pipeline_folder


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (None, r"holds no pipeline of diffusers: it has no model_index\.json; name the folder that has it$"),
        ("{", r"model_index\.json is not readable \(.*\); fetch it again$"),
        ("[]", r"model_index\.json holds no settings; fetch it again$"),
    ],
)
def test_a_head_that_is_missing_or_damaged_is_told_wherever_it_is_read(tmp_path: Path, head: str | None, said: str) -> None:
    if head is not None:
        (tmp_path / "model_index.json").write_text(head)
    with pytest.raises(ValueError, match=said):
        pipeline_folder(str(tmp_path), "FluxPipeline", ("transformer",))
    with pytest.raises(ValueError, match=said):
        parts_of(tmp_path)
