"""Makes the small PyTorch files that tests/checkpoint_torch.rs reads.

    python make_bins.py        (torch 2.15.0)

tiny.bin is the zip container, tiny_legacy.bin the one before PyTorch 1.6.
"""

from pathlib import Path

import torch

HERE = Path(__file__).parent


def state_dict():
    matrix = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "plain": matrix,
        "half": matrix[:2].half(),
        "bfloat": torch.nn.Parameter(matrix[1:].bfloat16(), requires_grad=False),
        "transposed": matrix.t(),
        "window": matrix[1:, 1:3],
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 4),
        "position_ids": torch.arange(5).expand(1, -1),
        "double": torch.zeros(2, dtype=torch.float64),
        "not_a_tensor": 3,
    }


torch.save(state_dict(), HERE / "tiny.bin")
torch.save(state_dict(), HERE / "tiny_legacy.bin", _use_new_zipfile_serialization=False)
