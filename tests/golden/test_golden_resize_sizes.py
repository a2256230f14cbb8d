from __future__ import annotations

import pytest

from unisolo.data.transforms import resized_size


@pytest.mark.parametrize(("short", "long"), [(800, 1333), (448, 768), (512, 852)])
def test_sizes_are_the_reference_ones(golden, short: int, long: int) -> None:
    arrays = golden("resize_sizes")
    ours = [resized_size((int(h), int(w)), short, long) for h, w in arrays["hw"]]
    assert ours == [tuple(row) for row in arrays[f"mmcv_{long}_{short}"].tolist()]
