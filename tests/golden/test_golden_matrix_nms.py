from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_tools import unpack

from unisolo.ops.matrix_nms import matrix_nms

pytestmark = pytest.mark.usefixtures("each_twin")

FILES = ["1", "5", "50", "50_one_empty", "50_ties_dups", "300", "nan_edge"]
KERNELS = [
    ("decayed_gaussian_2.0", {"kernel": "gaussian", "sigma": 2.0}),
    ("decayed_gaussian_0.5", {"kernel": "gaussian", "sigma": 0.5}),
    ("decayed_linear", {"kernel": "linear"}),
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("name", "settings"), KERNELS)
def test_matrix_nms_equals_the_reference(golden, file, name, settings):
    arrays = golden(f"nms_{file}")
    scores = torch.from_numpy(arrays["scores"])
    decayed = matrix_nms(
        torch.from_numpy(unpack(arrays, "masks")),
        torch.from_numpy(arrays["labels"]),
        scores,
        **settings,
    ).numpy()

    assert np.isfinite(decayed).all()  # also where the reference divides 0 by 0
    known = np.isfinite(arrays[name])
    assert known.all() or file == "nan_edge"
    np.testing.assert_allclose(decayed[known], arrays[name][known], rtol=0, atol=1e-5)
