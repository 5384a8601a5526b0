"""What a run leaves behind loads as a model, without a trainer."""

import dataclasses
import json

import pytest
import torch
from runs import CLASSES, assert_same_weights, rich_trainer, tiny_model, tiny_task, trainer

import vtkernels as vt
from vtkernels.models._checkpoint import revived, save_model
from vtkernels.models._registry import _as_saved

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_the_folder_of_a_run_is_a_checkpoint(tmp_path):
    made = trainer(tmp_path, epochs=1)
    made.fit()
    expected = made.model.eval()(IMAGES)
    for source in (tmp_path, tmp_path / "weights", str(tmp_path)):
        model = vt.create_model(checkpoint=source)
        assert model.load_report.complete and model.config == made.model.config and model.variant == "vit_nano_patch4_32"
        torch.testing.assert_close(model.eval()(IMAGES), expected, rtol=0, atol=0)
    # its name may be said, and fields replaced
    assert vt.create_model("vit_nano_patch4_32", checkpoint=tmp_path, drop_path=0.3).config.width == 16
    assert vt.create_model(checkpoint=tmp_path, num_classes=7).num_classes == 7


def test_the_weights_are_those_of_the_best_epoch(tmp_path):
    metrics = iter([{"top1": 0.2}, {"top1": 0.6}, {"top1": 0.4}])
    made = trainer(tmp_path, epochs=3)
    made.evaluate = lambda: next(metrics)
    weights = []
    save = made.save
    made.save = lambda best=False: (weights.append({name: value.clone() for name, value in made.model.state_dict().items()}), save(best))
    history = made.fit()
    assert history.best.epoch == 2
    saved = vt.create_model(checkpoint=tmp_path).state_dict()
    assert all(torch.equal(saved[name], weights[1][name]) for name in saved)
    assert trainer(tmp_path).resume(tmp_path / "best.pt").progress.epoch == 2
    assert trainer(tmp_path).resume().progress.epoch == 3


def test_averaged_weights_are_what_is_published(tmp_path):
    made = rich_trainer(tmp_path, [], epochs=1)
    made.fit()
    saved = vt.create_model(checkpoint=tmp_path)
    with made.ema.applied(made.model):
        assert_same_weights(saved, made.model)
    assert not torch.equal(saved.head.weight, made.model.head.weight)


def test_weights_without_an_evaluation(tmp_path):
    made = trainer(tmp_path, valid=False)
    made.valid_loader = None
    history = made.fit()
    assert history.best is None and history.epochs[0].valid is None
    assert_same_weights(vt.create_model(checkpoint=tmp_path), made.model)


@pytest.mark.parametrize("name", vt.list_models())
def test_every_configuration_survives_json(name):
    config = vt.models.model_config(name)
    saved = {"vtkernels": "0", "model": name, "config": json.loads(json.dumps(dataclasses.asdict(config)))}
    found = _as_saved(config, saved)
    assert found == config
    assert repr(found) == repr(config)


def test_values_from_json_take_the_shape_of_the_default():
    assert revived([8, 12], 224) == (8, 12)
    assert revived([[1, 2], [3]], ((0,),)) == ((1, 2), (3,))
    assert revived("a", ()) == "a"


def test_a_new_head_is_what_is_saved(tmp_path):
    model = tiny_model()
    model.reset_classifier(9)
    save_model(model, tmp_path)
    assert vt.create_model(checkpoint=tmp_path).head.weight.shape == (9, 16)


def test_other_folders_and_broken_files_are_told(tmp_path):
    with pytest.raises(TypeError, match="name must be given"):
        vt.create_model(checkpoint=tmp_path)
    with pytest.raises(TypeError, match="name must be given"):
        vt.create_model()
    save_model(tiny_model(), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"]["of_tomorrow"] = 1
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="of_tomorrow"):
        vt.create_model(checkpoint=tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="JSON"):
        vt.create_model(checkpoint=tmp_path)
    # the one of another library is not looked at
    (tmp_path / "config.json").write_text('{"architecture": "vit"}')
    assert vt.create_model("vit_nano_patch4_32", CLASSES, 8, checkpoint=tmp_path, width=16, heads=2).load_report.complete


def test_models_of_others_are_saved_without_a_config(tmp_path):
    save_model(torch.nn.Linear(2, 3), tmp_path)
    assert not (tmp_path / "config.json").exists() and (tmp_path / "model.safetensors").exists()
    assert tiny_task().model.variant == "vit_nano_patch4_32"
