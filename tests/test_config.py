from __future__ import annotations

from pathlib import Path

import pytest

from unisolo.config import Config, ConfigError, config_to_dict, load_config

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_valid() -> None:
    assert load_config() == Config()


def test_base_file_override_and_values_are_laid_over_each_other(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "train: {lr: 0.5, seed: 3, batch_size: 2}\ntask: instance\n")
    path = write(tmp_path / "top.yaml", "base: base.yaml\ntrain: {lr: 0.25, batch_size: 4}\n")
    config = load_config(path, ["train.batch_size=8"], values={"train": {"batch_size": 6}})
    assert config.task == "instance"
    assert (config.train.lr, config.train.seed, config.train.batch_size) == (0.25, 3, 8)


def test_scientific_notation_is_a_number() -> None:
    # YAML 1.1 reads 1e-4 (no dot) as text.
    assert load_config(None, ["train.lr=1e-4"]).train.lr == 1e-4


def test_round_trip_through_plain_values() -> None:
    config = load_config(
        None, ["model.scale_ranges=[[1, 10], [5, 20]]", "data.root=/x", "data.augment.crop=[8, 9]"]
    )
    assert load_config(values=config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lrr=1", "did you mean 'lr'"),
        ("trian.lr=1", "did you mean 'train'"),
        ("model.backbon=resnet18", "did you mean 'backbone'"),
        ("data.augment.flipp=1", "did you mean 'flip'"),
        ("data.augment.zzzzz=1", "valid keys: sizes"),
        ("train.lr=fast", "train.lr"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.milestones=[9, 11]", "fractions of the run"),
        ("data.augment.scale_jitter=[2, 1]", "scale_jitter"),
        ("train.lr", "key.sub=value"),
        ("train.lr=[1", "not valid YAML"),
        ("train=3", "train"),
    ],
)
def test_mistakes_name_the_key_and_the_fix(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + words.replace("[", r"\[")):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "expected keys and values"),
        ("a: [1\n", "not valid YAML"),
        ("base: missing.yaml\n", "missing.yaml: no such configuration file"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "broken.yaml", text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_a_base_has_no_base(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    path = write(tmp_path / "c.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match="may not have a 'base' of its own"):
        load_config(path)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 30
