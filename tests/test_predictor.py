"""`Predictor`: every kind of image in, the same answer however it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import CATEGORIES, lively_model, tiny_model

from unisolo import Predictor, Result, UniSolo, save_model
from unisolo.data.loader import collate
from unisolo.structures import Batch, Outputs
from unisolo.tasks import TASKS


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Patches of random colours: more to see than noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-height // 12), -(-width // 12), 3), dtype=np.uint8)
    return small.repeat(12, axis=0).repeat(12, axis=1)[:height, :width]


@pytest.fixture(scope="module")
def model() -> UniSolo:
    return lively_model()


@pytest.fixture
def predictor(model: UniSolo) -> Predictor:
    return Predictor(model)


def facts(result: Result) -> tuple[Any, ...]:
    """Everything that a result says, comparable."""
    panoptic = None if result.panoptic_seg is None else result.panoptic_seg.tolist()
    return result.image_size, result.to_coco(1), panoptic, result.segments_info


def same(ours: Result, theirs: Result) -> bool:
    return facts(ours) == facts(theirs)


# Images


def test_every_kind_of_image_gives_one_answer(predictor: Predictor, tmp_path: Path) -> None:
    array = picture(60, 84)
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = predictor.predict(array)
    assert len(expected) > 5
    assert expected.image_size == (60, 84)
    for image in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(array),
        torch.from_numpy(array).permute(2, 0, 1),
        array[:, ::-1][:, ::-1],  # not contiguous
    ):
        assert same(predictor.predict(image), expected)


def test_bgr_says_that_channels_are_turned(predictor: Predictor) -> None:
    array = picture(60, 84)
    turned = array[:, :, ::-1]
    expected = predictor.predict(array)
    assert same(predictor.predict(turned, bgr=True), expected)
    assert not same(predictor.predict(turned), expected)
    assert same(predictor.predict_batch([turned], bgr=True)[0], expected)


def test_grey_is_three_equal_channels(predictor: Predictor) -> None:
    grey = picture(60, 84)[:, :, 0]
    assert same(predictor.predict(grey), predictor.predict(np.stack([grey] * 3, axis=2)))


@pytest.mark.parametrize("as_path", [True, False])
def test_exif_orientation_is_applied(predictor: Predictor, tmp_path: Path, as_path: bool) -> None:
    upright = Image.fromarray(picture(60, 84))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise for looking at it
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    path = tmp_path / "turned.png"
    result = predictor.predict(path if as_path else Image.open(path))
    assert result.image_size == (60, 84)
    assert same(result, predictor.predict(upright))


@pytest.mark.parametrize(
    ("image", "received"),
    [
        (np.zeros((5, 7, 4), np.uint8), r"uint8 \[5, 7, 4\]"),
        (np.zeros((1, 5, 7, 3), np.uint8), r"uint8 \[1, 5, 7, 3\]"),
        (np.zeros((5, 7, 3), np.float32), r"float32 \[5, 7, 3\]"),
        (torch.zeros(5, 7, 3, dtype=torch.uint8), r"uint8 \[5, 7, 3\]"),
        (np.zeros((0, 7, 3), np.uint8), r"no pixels"),
    ],
)
def test_wrong_arrays_are_told_what_they_are(
    predictor: Predictor, image: Any, received: str
) -> None:
    with pytest.raises(ValueError, match=received):
        predictor.predict(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (400, 3), (333, 500)])
def test_odd_sizes_have_results_of_their_size(predictor: Predictor, size: tuple[int, int]) -> None:
    result = predictor.predict(picture(*size), score_threshold=0.0)
    assert result.image_size == size
    assert result.masks is not None
    assert result.masks.shape[1:] == size
    assert result.panoptic_seg is not None
    assert result.panoptic_seg.shape == size


def test_preprocess_names_files(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture(128, 96)).save(tmp_path / "street.png")
    sample = predictor.preprocess(tmp_path / "street.png")
    assert sample.meta.image_id == "street"
    assert sample.meta.file_name == str(tmp_path / "street.png")
    assert sample.meta.orig_size == (128, 96)
    assert sample.meta.input_size == (85, 64) == tuple(sample.image.shape[1:])
    assert predictor.preprocess(picture(128, 96)).meta.file_name == ""


# Tasks


def test_one_forward_answers_three_tasks_with_the_same_instances(predictor: Predictor) -> None:
    samples = [predictor.preprocess(picture(60, 84, seed)) for seed in (1, 2)]
    outputs = predictor.forward(samples)
    metas = [sample.meta for sample in samples]
    panoptic, instance, detection = (
        predictor.postprocess(outputs, metas, task=task, score_threshold=0.2)
        for task in ("panoptic", "instance", "detection")
    )
    for whole, masks, boxes in zip(panoptic, instance, detection, strict=True):
        assert len(whole) > 5
        for other in (masks, boxes):
            assert torch.equal(whole.scores, other.scores)
            assert torch.equal(whole.labels, other.labels)
            assert torch.equal(whole.boxes, other.boxes)
        assert torch.equal(whole.packed_masks, masks.packed_masks)
        assert boxes.packed_masks is None
        assert whole.panoptic_seg is not None
        assert masks.panoptic_seg is boxes.panoptic_seg is None


@pytest.mark.parametrize("task", list(TASKS))
def test_the_task_of_a_predictor_is_what_predict_answers(model: UniSolo, task: str) -> None:
    predictor = Predictor(model, task=task)
    result = predictor.predict(picture(60, 84))
    assert (result.packed_masks is None) == (task == "detection")
    assert (result.panoptic_seg is None) == (task != "panoptic")
    assert same(result, predictor.predict_batch([picture(60, 84)])[0])


def test_the_default_task_is_that_of_the_training() -> None:
    assert Predictor(tiny_model("task=detection")).task == "detection"


def test_an_unknown_task_lists_the_known_ones(predictor: Predictor, tmp_path: Path) -> None:
    for ask in (
        lambda: Predictor(tiny_model(), task="pose"),
        lambda: Predictor(tmp_path / "no such file", task="pose"),
        lambda: predictor.postprocess(_outputs(predictor), [], task="pose"),
    ):
        with pytest.raises(ValueError, match="'pose'; choose from panoptic, instance, detection"):
            ask()


def _outputs(predictor: Predictor) -> Outputs:
    return predictor.forward([predictor.preprocess(picture(60, 84))])


@pytest.mark.parametrize("trained", ["instance", "detection"])
def test_panoptic_needs_a_panoptic_checkpoint(trained: str, tmp_path: Path) -> None:
    model = tiny_model(f"task={trained}")
    path = save_model(model, tmp_path / "model.safetensors")
    for source in (model, path):
        with pytest.raises(ValueError, match=f"'{trained}' and has no stuff branch"):
            Predictor(source, task="panoptic")
    predictor = Predictor(path)
    sample = predictor.preprocess(picture(60, 84))
    with pytest.raises(ValueError, match="no stuff branch"):
        predictor.postprocess(predictor.forward([sample]), [sample.meta], task="panoptic")
    assert predictor.postprocess(predictor.forward([sample]), [sample.meta], task="instance")


# Thresholds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", 0.6),
        ("candidate_threshold", 0.6),
        ("mask_threshold", 0.7),
        ("max_candidates", 3),
        ("pre_nms", 3),
        ("nms_kernel", "linear"),
        ("nms_sigma", 0.5),
        ("update_threshold", 0.6),
        ("max_instances", 2),
        ("min_area", 150),
        ("panoptic_score_threshold", 0.95),
        ("panoptic_overlap_threshold", 0.0),
        ("stuff_area_threshold", 5000),
    ],
)
def test_every_threshold_changes_something_and_is_forgotten(
    predictor: Predictor, name: str, value: Any
) -> None:
    # Masks cut by a sharper threshold overlap less: here the panoptic thresholds have work to do.
    common: dict[str, Any] = {"panoptic_score_threshold": 0.3, "panoptic_overlap_threshold": 0.9}
    image = picture(70, 84, seed=4)
    before = predictor.predict(image, **common)
    changed = predictor.predict(image, **{**common, name: value})
    assert not same(changed, before)
    assert same(predictor.predict_batch([image], **{**common, name: value})[0], changed)
    sample = predictor.preprocess(image)
    (stage,) = predictor.postprocess(
        predictor.forward([sample]), [sample.meta], **{**common, name: value}
    )
    assert same(stage, changed)
    assert same(predictor.predict(image, **common), before)


def test_scores_are_at_least_the_threshold_and_the_map_has_its_own(predictor: Predictor) -> None:
    image = picture(60, 84)
    low, high = (predictor.predict(image, score_threshold=value) for value in (0.0, 0.5))
    assert float(high.scores.min()) >= 0.5 > float(low.scores.min())
    assert torch.equal(high.scores, low.scores[low.scores >= 0.5])
    assert torch.equal(high.panoptic_seg, low.panoptic_seg)


def test_thresholds_come_from_the_checkpoint(model: UniSolo) -> None:
    given = Predictor(model).predict(picture(60, 84), max_instances=3, nms_kernel="linear")
    kept = lively_model("inference.max_instances=3", "inference.nms_kernel=linear")
    assert same(Predictor(kept).predict(picture(60, 84)), given)


def test_a_mistyped_threshold_names_the_nearest(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match="did you mean 'mask_threshold'"):
        predictor.predict(picture(60, 84), mask_treshold=0.4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no threshold 'xyz'; choose from candidate_threshold"):
        predictor.predict_batch([], xyz=0.4)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", 1.5),
        ("candidate_threshold", -0.1),
        ("mask_threshold", 0.0),
        ("max_instances", 0),
        ("nms_kernel", "cubic"),
        ("stuff_area_threshold", None),
    ],
)
def test_thresholds_out_of_range_are_named(predictor: Predictor, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        predictor.predict(picture(60, 84), **{name: value})


def test_a_threshold_of_another_task_is_not_silently_dropped(model: UniSolo) -> None:
    with pytest.raises(ValueError, match="stuff_area_threshold changes nothing"):
        Predictor(model, task="instance").predict(picture(60, 84), stuff_area_threshold=1)


# Batches


def test_a_batch_gives_what_single_images_give_in_the_callers_order() -> None:
    # In double precision, so that the order of sums in a batch cannot turn near ties.
    predictor = Predictor(lively_model().double())
    sizes = [(60, 84), (84, 60), (64, 64), (59, 84), (84, 60), (30, 42), (64, 64)]
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    batches: list[Batch] = []
    forward = predictor.forward
    predictor.forward = lambda batch: (batches.append(batch), forward(batch))[1]  # type: ignore
    results = predictor.predict_batch(images, batch_size=2)
    predictor.forward = forward  # type: ignore[method-assign]
    assert [result.image_size for result in results] == sizes
    assert sorted(len(batch) for batch in batches) == [1, 2, 2, 2]
    for batch in batches:  # none is padded further than it would be alone
        alone = {tuple(collate([sample]).images.shape) for sample in _split(batch)}
        assert alone == {(1, *batch.images.shape[1:])}
    for image, result in zip(images, results, strict=True):
        assert len(result) > 5
        assert same(result, predictor.predict(image))


def _split(batch: Batch) -> list[Any]:
    from unisolo.structures import Sample

    return [
        Sample(image[:, : meta.input_size[0], : meta.input_size[1]], meta)
        for image, meta in zip(batch.images, batch.metas, strict=True)
    ]


def test_batch_size_bounds_the_images_held(predictor: Predictor) -> None:
    read = 0

    def images() -> Any:
        nonlocal read
        for seed in range(5):
            read += 1
            yield picture(60, 84, seed)

    seen = []
    forward = predictor.forward
    predictor.forward = lambda batch: (seen.append(read), forward(batch))[1]  # type: ignore
    assert len(predictor.predict_batch(images(), batch_size=2)) == 5
    assert seen == [2, 4, 5]


def test_an_empty_batch_is_normal(predictor: Predictor) -> None:
    assert predictor.predict_batch([]) == []


def test_one_image_is_not_taken_apart(predictor: Predictor) -> None:
    for single in ("street.jpg", Path("street.jpg"), Image.new("RGB", (5, 5)), picture(9, 9)):
        with pytest.raises(TypeError, match="for one image use predict"):
            predictor.predict_batch(single)  # type: ignore[arg-type]
    stack = np.stack([picture(60, 84, seed) for seed in range(2)])
    assert same(predictor.predict_batch(stack, batch_size=1)[1], predictor.predict(stack[1]))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        predictor.predict_batch(stack, batch_size=0)


def test_stages_refuse_what_does_not_fit(predictor: Predictor) -> None:
    sample = predictor.preprocess(picture(60, 84))
    with pytest.raises(TypeError, match=r"give \[sample\]"):
        predictor.forward(sample)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 metas for a batch of 1"):
        predictor.postprocess(predictor.forward([sample]), [sample.meta] * 2)


# The model


def test_a_checkpoint_file_answers_like_its_model(predictor: Predictor, tmp_path: Path) -> None:
    path = save_model(predictor.model, tmp_path / "model.safetensors")
    for source in (path, str(path)):
        loaded = Predictor(source)
        assert loaded.categories == CATEGORIES
        assert loaded.config == predictor.config
        assert same(loaded.predict(picture(60, 84)), predictor.predict(picture(60, 84)))


def test_training_mode_does_not_leak_in() -> None:
    model = lively_model().train()
    predictor = Predictor(model)
    assert not model.training
    before = predictor.predict(picture(60, 84))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()  # one more epoch, say
    assert same(predictor.predict(picture(60, 84)), before)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_asks_for_gradients(predictor: Predictor) -> None:
    outputs = _outputs(predictor)
    assert outputs.kernels.is_inference()
    assert not outputs.kernels.requires_grad
    with torch.inference_mode():
        inside = predictor.predict(picture(60, 84))
    assert same(inside, predictor.predict(picture(60, 84)))
    assert inside.numpy()["scores"].shape == (len(inside),)


def test_dtype_is_the_precision_of_the_forward(model: UniSolo) -> None:
    assert Predictor(model).dtype == torch.float32  # auto on a CPU
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        predictor = Predictor(model, dtype=name)
        assert _outputs(predictor).kernels.dtype == dtype
        assert next(predictor.model.parameters()).dtype == torch.float32
        assert predictor.predict(picture(60, 84)).scores.dtype == torch.float32
    with pytest.raises(ValueError, match="'int8'; choose from auto, fp32, bf16, fp16"):
        Predictor(model, dtype="int8")


def test_device_is_checked_and_auto_leaves_a_model_where_it_is(model: UniSolo) -> None:
    assert Predictor(model, device="cpu").device == torch.device("cpu")
    assert Predictor(model).device == next(model.parameters()).device
    with pytest.raises(ValueError, match="device 'abacus' cannot be used here"):
        Predictor(model, device="abacus")
    with pytest.raises(TypeError, match="a model's name, a UniSolo or a Graph, got int"):
        Predictor(7)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_answers_like_the_cpu(tmp_path: Path) -> None:
    path = save_model(lively_model(), tmp_path / "model.safetensors")
    there, here = Predictor(path, device="cuda", dtype="fp32"), Predictor(path, device="cpu")
    assert Predictor(path).dtype in (torch.bfloat16, torch.float16)
    ours, theirs = (one.predict(picture(60, 84)) for one in (there, here))
    assert ours.scores.device.type == "cpu"
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-3)


def test_threads_may_share_a_predictor(predictor: Predictor) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [picture(60, 84, seed) for seed in range(4)]
    expected = [predictor.predict(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(predictor.predict, images))
    assert all(same(ours, theirs) for ours, theirs in zip(results, expected, strict=True))


def test_no_training_packages_are_imported_even_to_predict(tmp_path: Path) -> None:
    save_model(lively_model(), tmp_path / "model.safetensors")
    code = (
        "import sys, numpy, unisolo;"
        "predictor = unisolo.Predictor(sys.argv[1], device='cpu');"
        "image = numpy.zeros((40, 50, 3), numpy.uint8);"
        "predictor.predict(image).plot(image);"
        "names = {'albumentations', 'cv2', 'hotcoco', 'matplotlib', 'pycocotools', 'supervision'};"
        "print(sorted(names & set(sys.modules)), 'unisolo.engine' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.safetensors")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.split() == ["[]", "False"]


def test_repr_is_short(predictor: Predictor) -> None:
    assert repr(predictor) == "Predictor(task='panoptic', device='cpu', dtype='float32')"
